"""The metrics of each table of the paper, and their protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from diffir_sr.errors import OptionError


@dataclass(frozen=True)
class Preset:
    """The protocol of one table: `metrics` in its order, Y or RGB and the border of PSNR, SSIM and NIQE.

    `spare` is the number of pixels by which a ground truth may be larger than the restored image; they are cropped at
    the bottom and the right.
    """

    metrics: tuple[str, ...]
    luma: bool
    border: int
    spare: int = 0


PRESETS = {
    "sr": Preset(("psnr", "ssim", "lpips_alex", "dists"), luma=True, border=4, spare=3),
    "realsr": Preset(("lpips_vgg", "dists", "psnr", "ssim"), luma=True, border=4, spare=3),
    "deblur": Preset(("psnr", "ssim_matlab"), luma=False, border=0),
    "inpaint": Preset(("lpips_vgg", "ssim", "fid"), luma=False, border=0),
    # Whang et al. 2022: distances of sets on parts of pictures, everything else on whole ones.
    "dvsr": Preset(("lpips_alex", "niqe", "patch_fid", "patch_kid", "psnr", "ssim"), luma=False, border=0),
}
IMAGE_METRICS: dict[str, dict[str, Any]] = {
    "psnr": {"type": "calculate_psnr"},
    "ssim": {"type": "calculate_ssim"},
    "ssim_matlab": {"type": "calculate_ssim_matlab"},
    "niqe": {"type": "calculate_niqe"},
    "lpips_alex": {"type": "calculate_lpips", "net": "alex"},
    "lpips_vgg": {"type": "calculate_lpips", "net": "vgg"},
    "dists": {"type": "calculate_dists"},
}


@dataclass(frozen=True)
class SetMetric:
    """A distance between the two sets: kind, whose features, and whether pictures are cut into `PATCH`es for it."""

    kind: Literal["frechet", "kernel"]
    features: Literal["inception", "vgg16"]
    patches: bool = False


SET_METRICS = {
    "fid": SetMetric("frechet", "inception"),
    "kid": SetMetric("kernel", "inception"),
    "fd_vgg16": SetMetric("frechet", "vgg16"),
    "kd_vgg16": SetMetric("kernel", "vgg16"),
}
SET_METRICS |= {f"patch_{name}": replace(metric, patches=True) for name, metric in SET_METRICS.items()}
PATCH = 240, 256  # height and width: 15 in a picture of GoPro, 1280 x 720
HIGHER_IS_BETTER = ("psnr", "ssim", "ssim_matlab")


@dataclass(frozen=True)
class MeasurementPlan:
    """The metrics to measure: entries as in `val.metrics` for each image, and distances between the two sets."""

    preset: str
    images: dict[str, dict[str, Any]]
    sets: tuple[str, ...]
    spare: int


def plan_measurement(
    preset: str, metrics: Sequence[str] = (), *, border: int | None = None, luma: bool | None = None
) -> MeasurementPlan:
    """The metrics of a preset, or the given ones, with its border and channel unless others are given."""
    chosen = PRESETS[preset]
    names = list(dict.fromkeys(metrics or chosen.metrics))
    unknown = [name for name in names if name not in IMAGE_METRICS and name not in SET_METRICS]
    if unknown:
        every = (*IMAGE_METRICS, *SET_METRICS)
        near = [name for one in unknown for name in every if name.startswith(one)]
        near = near or [name for one in unknown for name in get_close_matches(one, every, n=1)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise OptionError(f"--metrics: unknown {', '.join(unknown)}; {hint}known: {', '.join(every)}")
    if border is not None and border < 0:
        raise OptionError(f"--border: expected 0 or more pixels, found {border}")
    how = {
        "crop_border": chosen.border if border is None else border,
        "test_y_channel": chosen.luma if luma is None else luma,
    }
    images = {name: IMAGE_METRICS[name] | _how(name, how) for name in names if name in IMAGE_METRICS}
    return MeasurementPlan(preset, images, tuple(name for name in names if name in SET_METRICS), chosen.spare)


def _how(name: str, how: dict[str, Any]) -> dict[str, Any]:
    if name in HIGHER_IS_BETTER:
        return how
    # Networks see whole colour images in every table; NIQE is defined on brightness.
    return {"crop_border": how["crop_border"]} if name == "niqe" else {"crop_border": 0}
