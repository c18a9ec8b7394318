"""How a metric was measured, in the words that stand beside its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
