"""What metrics take: pairs of images of one size, as tensors in [0, 1] or 8-bit arrays; everything else is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffir_sr.errors import InputError


def check_tensors(restored: Tensor, gt: Tensor, *, channels: tuple[int, ...] = (1, 3), smallest: int = 1) -> None:
    """Raise InputError unless both are (N, C, H, W), of one shape, in [0, 1], with sides of `smallest` or more."""
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
            raise InputError(f"{name}: expected values in [0, 1], found {low:g} to {high:g}; clamp or rescale it first")


def check_arrays(restored: np.ndarray, gt: np.ndarray, *, smallest: int = 1) -> None:
    """Raise InputError unless both are (H, W), (H, W, 1) or (H, W, 3), of one shape, uint8."""
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
        raise InputError(f"{name}: {side} pixels at its shorter side, this metric needs {smallest} or more")


def as_unit_tensor(image: np.ndarray) -> Tensor:
    """(1, C, H, W) float32 in [0, 1] from an array (H, W, C) of uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255


# How a metric was measured, in the words that stand beside its value.


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
