"""The losses of inpainting: golden numbers, second implementations, and weights that are refused."""

import hashlib
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from basicsr.losses import build_loss
from golden_cases import load_case

from diffir_sr import losses
from diffir_sr.errors import CheckpointError
from diffir_sr.losses import (
    ADE20KPerceptualLoss,
    DilatedResNet50,
    FeatureMatchingLoss,
    MaskedGANLoss,
    MaskedL1Loss,
)
from diffir_sr.models.diffir_inpainting_models import MaskDiscriminator

TOLERANCE = 1e-4  # relative


def fill_discriminator(net):
    for key, weight in net.named_parameters():
        shape = tuple(weight.shape)
        values = np.random.default_rng(zlib.crc32(f"d.{key}".encode())).standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            values = 1 + 0.1 * values if key.endswith(".1.weight") else 0.05 * values
        else:
            values = values / np.float32(np.sqrt(np.prod(shape[1:])))
        weight.data.copy_(torch.from_numpy(values.astype(np.float32)))


@pytest.fixture(params=["inpaint_losses_tiny", "inpaint_losses_paper"])
def case(request):
    facts, arrays = load_case(request.param)
    arguments = {key: value for key, value in facts["discriminator"].items() if key != "norm"}
    net = build_network(dict(type="NLayerDiscriminator", **arguments))
    fill_discriminator(net)
    return facts, arrays, net.train()


def adversary_of(net, *, optimizer=None, **change):
    options = dict(gan=MaskedGANLoss(), matching=FeatureMatchingLoss(), clip_grad_norm=None)
    return MaskDiscriminator(net, optimizer=optimizer or torch.optim.SGD(net.parameters(), lr=0.0), **options | change)


def test_the_discriminator_has_the_published_tensors_and_logits(case):
    facts, golden, net = case
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == facts["state_dict"]
    assert sum(weight.numel() for weight in net.parameters()) == facts["parameters"]
    for image, logits in (("real", "logits_real"), ("pred", "logits_fake")):
        assert torch.allclose(net(golden[image]), golden[logits], rtol=TOLERANCE, atol=1e-5)


def test_the_losses_of_the_generator_and_their_gradient_are_the_published_ones(case):
    facts, golden, net = case
    pred = golden["pred"].clone().requires_grad_()
    judged = adversary_of(net).generator_loss(golden["real"], pred)
    l1 = MaskedL1Loss()(pred, golden["real"], golden["mask"])
    computed = {"l1": l1.item(), "adversarial": judged["l_g_gan"].item(), "feature_matching": judged["l_feat"].item()}
    expected = {key: facts["generator"][key] for key in computed}
    expected["feature_matching"] *= 100
    assert computed == pytest.approx(expected, rel=TOLERANCE)
    (l1 + judged["l_g_gan"] + judged["l_feat"]).backward()
    assert pred.grad.norm().item() == pytest.approx(facts["generator"]["grad_norm_pred"], rel=TOLERANCE)
    assert (pred.grad - golden["grad_pred"]).norm() < TOLERANCE * golden["grad_pred"].norm()
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())


def test_the_step_of_the_discriminator_is_the_published_one(case):
    facts, golden, net = case
    noted = adversary_of(net).train_step(golden["real"], golden["pred"], golden["mask"])
    loss = noted["l_d_real"] + noted["l_d_fake"] + noted["l_d_r1"]
    expected = facts["discriminator_step"]
    assert loss.item() == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert noted["l_d_r1"].item() == pytest.approx(expected["gradient_penalty"], rel=TOLERANCE)
    assert noted["out_d_real"].item() == pytest.approx(expected["real_mean"], rel=TOLERANCE)
    assert noted["out_d_fake"].item() == pytest.approx(expected["fake_mean"], rel=TOLERANCE)
    # Summing four million squares in float32 is off by more than the tolerance.
    norms = {name: weight.grad.double().norm().item() for name, weight in net.named_parameters()}
    assert norms == pytest.approx(facts["discriminator_grad_norms"], rel=TOLERANCE, abs=1e-6)


def test_r1_is_the_squared_slope_of_the_logits():
    """Against differences: the slope of the summed logits, number by number."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 2)).double()
    real = torch.rand(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    penalty = MaskedGANLoss(gp_coef=0.5).penalty(net(real), real)
    slopes, step = torch.zeros_like(real), 1e-6
    with torch.no_grad():
        for index in np.ndindex(*real.shape):
            moved = torch.zeros_like(real)
            moved[index] = step
            slopes[index] = (net(real + moved).sum() - net(real - moved).sum()) / (2 * step)
    assert penalty.item() == pytest.approx(0.5 * slopes.square().sum().item() / 2, rel=1e-6)
    penalty.backward()
    assert all(weight.grad.norm() > 0 for name, weight in net.named_parameters() if not name.startswith("2.bias"))


def test_only_holes_of_fakes_are_fake_to_the_discriminator():
    logits = torch.randn(2, 1, 3, 3)
    mask = torch.zeros(2, 1, 12, 12)
    loss = MaskedGANLoss()
    assert torch.allclose(loss.fake_loss(logits, mask), loss.real_loss(logits))
    assert torch.allclose(loss.fake_loss(logits, mask + 1), loss.real_loss(-logits))
    mask[:, :, :4, :4] = 1
    known = F.softplus(-logits)
    known[:, :, 0, 0] = F.softplus(logits[:, :, 0, 0])
    assert torch.allclose(loss.fake_loss(logits, mask), known.mean())
    assert torch.allclose(MaskedGANLoss(mask_as_fake_target=False).fake_loss(logits, mask), loss.real_loss(-logits))


@pytest.mark.parametrize(("known", "missing"), [(10.0, 0.0), (0.0, 2.0), (1.0, 3.0)])
def test_known_and_missing_pixels_are_weighed_apart(known, missing):
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    restored, gt = torch.full((1, 3, 4, 4), 0.75), torch.full((1, 3, 4, 4), 0.25)
    loss = MaskedL1Loss(known, missing)(restored, gt, mask)
    assert loss.item() == pytest.approx(0.5 * (known + missing) / 2)


# The backbone of the perceptual loss


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A file as the published one: random weights, no counts of batches, buffers of its own."""
    torch.manual_seed(0)
    tensors = {name: value for name, value in DilatedResNet50().state_dict().items() if "num_batches" not in name}
    path = tmp_path_factory.mktemp("ade20k") / "encoder_epoch_20.pth"
    torch.save({**tensors, "bn1._tmp_running_mean": torch.zeros(64)}, path, _use_new_zipfile_serialization=False)
    return path


def test_the_loss_is_the_sum_of_squared_differences_of_four_stages(encoder):
    loss = ADE20KPerceptualLoss(perceptual_weight=7.0, weights_path=str(encoder)).train()
    real, fake = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fake.requires_grad_()
    value, style = loss(fake, real)
    assert style is None
    normalised = [
        (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        for image in (fake, real)
    ]
    first, second = (loss.net.eval()(image) for image in normalised)
    assert [tuple(stage.shape[1:]) for stage in first] == [(256, 8, 8), (512, 4, 4), (1024, 4, 4), (2048, 4, 4)]
    expected = 7.0 * sum(((one - other) ** 2).mean() for one, other in zip(first, second, strict=True))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert fake.grad.norm() > 0
    assert all(not weight.requires_grad for weight in loss.parameters())


def test_the_backbone_dilates_as_the_segmentation_encoder_does():
    with torch.device("meta"):
        net = DilatedResNet50()
    found = {
        (name, module.stride[0], module.dilation[0])
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Conv2d) and name.startswith(("layer3", "layer4")) and name.endswith("conv2")
    }
    assert found == {
        *((f"layer3.{block}.conv2", 1, 1 if block == 0 else 2) for block in range(6)),
        *((f"layer4.{block}.conv2", 1, 2 if block == 0 else 4) for block in range(3)),
    }
    # torchvision's, without its head and with another start and a first block that takes 128 channels
    start = (3 * 64 + 64 * 64 + 64 * 128) * 9 + 2 * (64 + 64 + 128)
    torchvisions = 25_557_032 - 2_049_000 - (7 * 7 * 3 * 64 + 2 * 64)
    assert sum(weight.numel() for weight in net.parameters()) == torchvisions + start + 64 * (64 + 256)


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))


def test_absent_weights_tell_every_place_the_source_and_the_alternative(no_cache):
    with pytest.raises(CheckpointError) as absent:
        build_loss(dict(type="ADE20KPerceptualLoss"))
    for part in ("experiments/pretrained_models", "cache/ade20k", "csail.mit.edu", "weights_path", "vgg_type: vgg16"):
        assert part in str(absent.value)


def test_weights_are_taken_from_where_published_trainings_have_them_but_not_instead_of_named_ones(
    no_cache, tmp_path, encoder
):
    place = tmp_path / "cache/ade20k/ade20k-resnet50dilated-ppm_deepsup/encoder_epoch_20.pth"
    place.parent.mkdir(parents=True)
    place.symlink_to(encoder)
    assert losses.backbone_file(None) == place
    with pytest.raises(CheckpointError, match=r"mine\.pth"):
        losses.backbone_file("mine.pth")


def test_another_file_is_refused(encoder, tmp_path):
    good = hashlib.sha256(encoder.read_bytes()).hexdigest()
    loaded = losses.load_backbone(encoder, sha256=good.upper())
    tensors = torch.load(encoder, weights_only=True)
    assert torch.equal(loaded.layer4[2].conv3.weight, tensors["layer4.2.conv3.weight"])
    with pytest.raises(CheckpointError, match=f"sha256 is {good}, expected 00"):
        losses.load_backbone(encoder, sha256="00")
    for change, message in (
        ({"layer4.2.conv3.weight": None}, "1 of 275 tensors are missing, such as layer4.2.conv3.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"conv1.weight is \(64, 3, 7, 7\), not \(64, 3, 3, 3\)"),
    ):
        torch.save({**tensors, **change}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=message):
            losses.load_backbone(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a readable PyTorch weights file"):
        losses.load_backbone(tmp_path / "text.pth")
