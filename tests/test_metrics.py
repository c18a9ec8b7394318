"""PSNR and SSIM against second implementations, and images that metrics refuse."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from basicsr.metrics import calculate_psnr, calculate_ssim
from skimage.metrics import structural_similarity

from diffir_sr.errors import InputError
from diffir_sr.metrics import psnr, ssim


def photograph():
    return np.ascontiguousarray(skimage.data.astronaut()[:64, 150:230])


def worse(image, seed=0):
    noise = np.random.default_rng(seed).normal(0, 12, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def tensor(*images):
    return torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1).double() / 255 for image in images])


@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("border", [0, 4])
def test_arrays_give_basicsr_numbers_to_the_digit(luma, border):
    gt = photograph()
    restored = worse(gt)
    how = dict(crop_border=border, test_y_channel=luma)
    bgr = restored[..., ::-1], gt[..., ::-1]
    assert psnr(restored, gt, border=border, luma=luma) == calculate_psnr(*bgr, **how)
    assert ssim(restored, gt, border=border, luma=luma) == calculate_ssim(*bgr, **how)


def test_tensors_are_measured_one_by_one_and_not_rounded():
    gt = photograph()
    images = [worse(gt, seed) for seed in range(3)]
    batch, truth = tensor(*images), tensor(gt, gt, gt)
    assert psnr(batch, truth).tolist() == pytest.approx([psnr(image, gt) for image in images], rel=1e-12)
    assert ssim(batch, truth, border=3).tolist() == pytest.approx([ssim(image, gt, border=3) for image in images])
    shifted = truth * 0.99 + 0.001
    expected = -10 * (shifted - truth).square().mean((1, 2, 3)).log10()
    assert psnr(shifted, truth).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("convention", ["basicsr", "matlab"])
def test_equal_images_give_infinity_and_one(luma, convention):
    image = photograph()
    assert psnr(image, image, luma=luma) == float("inf")
    assert ssim(image, image, luma=luma, convention=convention) == 1
    assert psnr(tensor(image), tensor(image), luma=luma).tolist() == [float("inf")]
    assert ssim(tensor(image), tensor(image), luma=luma, convention=convention).tolist() == [1]


def test_matlab_ssim_is_one_convolution_of_a_volume_whose_edges_are_continued():
    gt = photograph()
    restored = worse(gt)
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / 4.5)
    window = torch.einsum("i,j,k->ijk", line, line, line)
    window = (window / window.sum())[None, None]

    def smooth(volume):
        return F.conv3d(F.pad(volume[None, None], (5,) * 6, mode="replicate"), window)[0, 0]

    a, b = (torch.from_numpy(image.astype(float)) for image in (restored, gt))
    va, vb, cov = (smooth(x * y) - smooth(x) * smooth(y) for x, y in ((a, a), (b, b), (a, b)))
    top = (2 * smooth(a) * smooth(b) + 2.55**2) * (2 * cov + 7.65**2)
    expected = (top / ((smooth(a) ** 2 + smooth(b) ** 2 + 2.55**2) * (va + vb + 7.65**2))).mean().item()
    assert ssim(restored, gt, convention="matlab") == pytest.approx(expected, abs=1e-10)


def test_matlab_ssim_equals_scikit_image_on_a_volume_padded_by_its_edges():
    gt = photograph()
    restored = worse(gt)
    volumes = [np.pad(image.astype(float), 5 + 5, mode="edge") for image in (restored, gt)]
    how = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True)
    places = structural_similarity(*volumes, **how)[1][10:-10, 10:-10, 10:-10]
    assert ssim(restored, gt, convention="matlab") == pytest.approx(places.mean(), abs=1e-10)
    grey = [image.mean(2).round().astype(np.uint8) for image in (restored, gt)]
    padded = [np.pad(image.astype(float), 10, mode="edge") for image in grey]
    places = structural_similarity(*padded, **how)[1][10:-10, 10:-10]
    assert ssim(*grey, convention="matlab") == pytest.approx(places.mean(), abs=1e-10)


def test_matlab_rounds_the_brightness_of_8_bit_images_and_not_of_floats():
    gt = photograph()
    restored = worse(gt)
    y = [image @ np.array([65.481, 128.553, 24.966]) / 255 + 16 for image in (restored.astype(float), gt.astype(float))]
    rounded = [np.floor(one + 0.5).astype(np.uint8) for one in y]
    expected = ssim(*rounded, convention="matlab")
    assert ssim(restored, gt, luma=True, convention="matlab") == pytest.approx(expected, abs=1e-12)
    exact = ssim(*(torch.from_numpy(one)[None, None] / 255 for one in y), convention="matlab").item()
    assert ssim(tensor(restored), tensor(gt), luma=True, convention="matlab").item() == pytest.approx(exact, abs=1e-6)
    assert abs(exact - expected) > 1e-6


def test_three_equal_channels_are_one_in_both_conventions():
    grey = [np.repeat(image[..., 1:2], 3, axis=2) for image in (worse(photograph()), photograph())]
    for convention in ("basicsr", "matlab"):
        colour = ssim(*grey, convention=convention)
        assert colour == pytest.approx(ssim(grey[0][..., 0], grey[1][..., 0], convention=convention))


IMAGE = photograph()
REFUSED = {
    "the images differ in shape": (IMAGE, IMAGE[:-1], {}),
    r"\(H, W, 3\), found \(64, 80, 4\)": (np.zeros((64, 80, 4), np.uint8),) * 2 + ({},),
    "expected an array of uint8.* found float32": (IMAGE.astype(np.float32),) * 2 + ({},),
    "found uint16": (IMAGE.astype(np.uint16),) * 2 + ({},),
    r"values in \[0, 1\], found 0 to 232": (tensor(IMAGE) * 255, tensor(IMAGE), {}),
    "restored: expected values.* nan": (tensor(IMAGE) * float("nan"), tensor(IMAGE), {}),
    "found torch.uint8": (torch.zeros(1, 3, 16, 16, dtype=torch.uint8),) * 2 + ({},),
    r"expected \(N, C, H, W\)": (tensor(IMAGE)[0], tensor(IMAGE)[0], {}),
    "two tensors or two arrays": (tensor(IMAGE), tensor(IMAGE).numpy(), {}),
    "its shorter side has 64 pixels, this metric needs 71": (IMAGE, IMAGE, dict(border=30)),
    "border: expected 0 or more": (IMAGE, IMAGE, dict(border=-1)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_size_channel_count_or_range_is_an_error(message):
    *images, how = REFUSED[message]
    with pytest.raises(InputError, match=message):
        ssim(*images, **how)


def test_an_unknown_convention_is_named():
    with pytest.raises(InputError, match="basicsr, matlab, found 'skimage'"):
        ssim(IMAGE, IMAGE, convention="skimage")


def moved(image, pixels):
    """The mean of `pixels` copies of an image, each one pixel further to the side."""
    return cv2.filter2D(image, -1, np.full((1, pixels), 1 / pixels))


def test_the_documented_difference_of_the_ssim_conventions_is_the_measured_one():
    page = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| (\w+) \[(\d+):(\d+), (\d+):(\d+)\] \| (\d+) \| ([\d. |]+) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for name, top, bottom, left, right, pixels, values in rows:
        gt = getattr(skimage.data, name)()[int(top) : int(bottom), int(left) : int(right)].copy()
        soft = moved(gt, int(pixels))
        apart = np.mean([ssim(soft[..., c].copy(), gt[..., c].copy(), convention="matlab") for c in range(3)])
        measured = psnr(soft, gt), ssim(soft, gt), apart, ssim(soft, gt, convention="matlab")
        output = [float(value) for value in values.split(" | ")]
        assert output[0] == pytest.approx(measured[0], abs=0.006), name
        assert output[1:] == pytest.approx(measured[1:], abs=6e-5), name
