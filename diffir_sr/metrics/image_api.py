"""Metrics with the names and signatures used in `val.metrics` of BasicSR's option files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from basicsr.metrics.metric_util import reorder_image
from torch import Tensor

from diffir_sr.devices import default_device
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.metrics.features import Net, dists, lpips, prepare
from diffir_sr.metrics.fidelity import as_unit_tensor, check_arrays, ssim

Order = Literal["HWC", "CHW"]
Better = Literal["higher", "lower"]


def calculate_ssim_matlab(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    input_order: Order = "HWC",
    test_y_channel: bool = False,
    better: Better = "higher",
) -> float:
    """SSIM of two BGR arrays of uint8 as computed by MATLAB's ssim(), on RGB with a window that includes channels."""
    a, b = _rgb(img, img2, crop_border, input_order)
    return float(ssim(a, b, luma=test_y_channel, convention="matlab"))


def calculate_lpips(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    input_order: Order = "HWC",
    net: Net = "alex",
    backbone: str | None = None,
    better: Better = "lower",
) -> float:
    """LPIPS of two BGR arrays of uint8, on the GPU if there is one; see `perceptual.lpips`."""
    return lpips(*_tensors(img, img2, crop_border, input_order), net=net, backbone=backbone).item()


def calculate_dists(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    input_order: Order = "HWC",
    backbone: str | None = None,
    better: Better = "lower",
) -> float:
    """DISTS of two BGR arrays of uint8 at full size, on the GPU if there is one; see `perceptual.dists`."""
    return dists(*_tensors(img, img2, crop_border, input_order), backbone=backbone).item()


def check_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CheckpointError, which names the entry, if a metric of `val.metrics` lacks its package or weights."""
    for name, opt in metrics.items():
        backbone = opt.get("backbone")
        try:
            if opt["type"] == "calculate_lpips":
                prepare("lpips", net=opt.get("net", "alex"), backbone=backbone)
            elif opt["type"] == "calculate_dists":
                prepare("dists", backbone=backbone)
        except CheckpointError as error:
            raise CheckpointError(f"val.metrics.{name}: {error}") from error


def _rgb(img: np.ndarray, img2: np.ndarray, border: int, order: str) -> tuple[np.ndarray, np.ndarray]:
    if border < 0:
        raise InputError(f"crop_border: expected 0 or more pixels, found {border}")
    a, b = (reorder_image(image, input_order=order)[..., ::-1] for image in (img, img2))
    check_arrays(a, b, smallest=2 * border + 1)
    height, width = a.shape[:2]
    inner = (slice(border, height - border), slice(border, width - border))
    return a[inner], b[inner]


def _tensors(img: np.ndarray, img2: np.ndarray, border: int, order: str) -> list[Tensor]:
    return [as_unit_tensor(image).to(default_device()) for image in _rgb(img, img2, border, order)]
