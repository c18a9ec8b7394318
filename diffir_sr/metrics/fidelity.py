"""PSNR and SSIM in the conventions of published tables, and the checks of inputs shared by all metrics.

Metrics take pairs of equal size: tensors in [0, 1] or 8-bit arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from basicsr.metrics.metric_util import to_y_channel
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from scipy.ndimage import correlate1d
from torch import Tensor

from diffir_sr.errors import InputError


def check_tensors(restored: Tensor, gt: Tensor, *, channels: tuple[int, ...] = (1, 3), smallest: int = 1) -> None:
    """Raise InputError unless both are (N, C, H, W) with equal shapes, in [0, 1], with sides of at least `smallest`."""
    _check_same_shape(restored, gt)
    for name, image in (("restored", restored), ("gt", gt)):
        if image.ndim != 4 or image.shape[1] not in channels or not image.shape[0]:
            wanted = " or ".join(str(count) for count in channels)
            raise InputError(f"{name}: expected (N, C, H, W) with C of {wanted}, found {tuple(image.shape)}")
        _check_side(min(image.shape[2:]), smallest, name)
        if not image.is_floating_point():
            raise InputError(f"{name}: expected floating-point values in [0, 1], found {image.dtype}; divide by 255")
        low, high = (float(extreme) for extreme in image.detach().aminmax())
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise InputError(
                f"{name}: expected values in [0, 1], found {low:g} to {high:g}; clamp or rescale them first"
            )


def check_arrays(restored: np.ndarray, gt: np.ndarray, *, smallest: int = 1) -> None:
    """Raise InputError unless both are (H, W), (H, W, 1) or (H, W, 3) with equal shapes, uint8."""
    _check_same_shape(restored, gt)
    for name, image in (("restored", restored), ("gt", gt)):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise InputError(f"{name}: expected (H, W), (H, W, 1) or (H, W, 3), found {image.shape}")
        _check_side(min(image.shape[:2]), smallest, name)
        if image.dtype != np.uint8:
            raise InputError(f"{name}: expected an array of uint8, 0 to 255, found {image.dtype}; round it first")


def _check_same_shape(restored: Any, gt: Any) -> None:
    if restored.shape != gt.shape:
        raise InputError(
            f"the images differ in shape: restored {tuple(restored.shape)}, gt {tuple(gt.shape)}; crop or resize one"
        )


def _check_side(side: int, smallest: int, name: str) -> None:
    if side < smallest:
        raise InputError(f"{name}: its shorter side has {side} pixels, this metric needs {smallest} or more")


def as_unit_tensor(image: np.ndarray) -> Tensor:
    """Convert a uint8 array (H, W, C) to float32 (1, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255


# The protocol of a metric as text.


def protocol(opt: Mapping[str, Any]) -> str:
    """Channel, border and variant of one entry of `val.metrics`: 'Y, border 4', 'RGB, border 0, net vgg'."""
    kind = opt.get("type")
    luma = opt.get("test_y_channel") or (kind == "calculate_niqe" and opt.get("convert_to", "y") == "y")
    parts = ["Y" if luma else "RGB"]
    ours = kind in ("calculate_ssim_matlab", "calculate_lpips", "calculate_dists")
    if ours or "crop_border" in opt:
        parts.append(f"border {opt.get('crop_border', 0)}")
    if kind == "calculate_ssim_matlab":
        parts.append("MATLAB's" if luma else "MATLAB's, window over channels too")
    if kind == "calculate_lpips":
        parts.append(f"net {opt.get('net', 'alex')}")
    if kind == "calculate_dists":
        parts.append("full size")
    return ", ".join(parts)


# PSNR and SSIM.


Convention = Literal["basicsr", "matlab"]
_WINDOW = 11
_SIGMA = 1.5
# (0.01 L)^2 and (0.03 L)^2 of Wang et al. 2004, for L = 255
_C1, _C2 = 6.5025, 58.5225

Images = TypeVar("Images", Tensor, np.ndarray)


def psnr(restored: Images, gt: Images, *, border: int = 0, luma: bool = False) -> Tensor | float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Tensors are (N, C, H, W) in [0, 1], C of 1 or 3 (RGB), are not rounded, and give (N,) in float64. Arrays are
    (H, W[, C]) of uint8 and give a number. `border` pixels are ignored at each side. `luma` compares Y of BT.601
    (16 to 235, not rounded) instead of RGB. Equal to BasicSR's `calculate_psnr` and, on RGB, to MATLAB's psnr().
    """
    return _of_each(restored, gt, border, smallest=1, measure=lambda a, b: calculate_psnr(a, b, 0, test_y_channel=luma))


def ssim(
    restored: Images, gt: Images, *, border: int = 0, luma: bool = False, convention: Convention = "basicsr"
) -> Tensor | float:
    """Structural similarity, at most 1, and 1 for equal images. Images and arguments are those of `psnr`.

    Both conventions use a Gaussian window of 11 pixels, sigma 1.5. "basicsr" (Wang et al. 2004) takes the mean over
    channels, each separately, and over positions where the window fits. "matlab" is MATLAB's ssim(): edges are extended
    and every pixel counts, and an image with three channels is a volume with a window of 11 x 11 x 11, so channels mix;
    the paper's deblurring table uses it. Its Y of uint8 is rounded.
    """
    if convention not in get_args(Convention):
        raise InputError(f"convention: expected one of {', '.join(get_args(Convention))}, found {convention!r}")
    if convention == "basicsr":
        return _of_each(restored, gt, border, _WINDOW, lambda a, b: calculate_ssim(a, b, 0, test_y_channel=luma))
    return _of_each(restored, gt, border, 1, lambda a, b: _volumetric_ssim(*(_planes(image, luma) for image in (a, b))))


def _of_each(
    restored: Images, gt: Images, border: int, smallest: int, measure: Callable[[np.ndarray, np.ndarray], float]
) -> Tensor | float:
    """`measure` for every pair, as (H, W, C) in BGR from 0 to 255, without its border."""
    if border < 0:
        raise InputError(f"border: expected 0 or more pixels, found {border}")
    if isinstance(restored, Tensor) and isinstance(gt, Tensor):
        check_tensors(restored, gt, smallest=smallest + 2 * border)
        pairs = zip(_as_arrays(restored), _as_arrays(gt), strict=True)
        values = [float(measure(_inner(a, border), _inner(b, border))) for a, b in pairs]
        return torch.tensor(values, dtype=torch.float64)
    if not (isinstance(restored, np.ndarray) and isinstance(gt, np.ndarray)):
        raise InputError(f"expected two tensors or two arrays, found {type(restored).__name__}, {type(gt).__name__}")
    check_arrays(restored, gt, smallest=smallest + 2 * border)
    a, b = (image.reshape(*image.shape[:2], -1)[..., ::-1] for image in (restored, gt))
    return float(measure(_inner(a, border), _inner(b, border)))


def _as_arrays(images: Tensor) -> np.ndarray:
    return images.detach().cpu().double().mul(255).permute(0, 2, 3, 1).flip(3).numpy()


def _inner(image: np.ndarray, border: int) -> np.ndarray:
    return np.ascontiguousarray(image[border : image.shape[0] - border, border : image.shape[1] - border])


def _planes(image: np.ndarray, luma: bool) -> np.ndarray:
    """(H, W, C) as in MATLAB, whose rgb2ycbcr() rounds Y of uint8 images."""
    values = (to_y_channel(image) if luma else image).astype(np.float64)
    return np.floor(values + 0.5) if luma and image.dtype == np.uint8 else values


def _volumetric_ssim(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((likeness / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))).mean())


def _smooth(volume: np.ndarray) -> np.ndarray:
    """Weighted mean around every value of (H, W, C), also along C if there is more than one channel."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    for axis in range(3 if volume.shape[2] > 1 else 2):
        volume = correlate1d(volume, weights / weights.sum(), axis=axis, mode="nearest")
    return volume
