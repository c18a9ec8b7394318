"""Geometry of DiffIR's networks per task (channels, folding, scale, size rule), and their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diffir_sr.errors import InputError, OptionError
from diffir_sr.option_types import Blocks, Found, Positive, Section, Small, View, Whole

GT_UNSHUFFLE = 4  # pixel unshuffle of the ground truth for the stage-1 prior encoder, in every task
BODY_DEPTH = 8  # the body downsamples three times by 2


@dataclass(frozen=True)
class TaskGeometry:
    """Geometry of one task; a new task is a new row of `GEOMETRIES`, never a branch in a network."""

    task: str
    scale: int = 1  # output size / input size
    channels: int = 3  # of the input image
    body_unshuffle: int = 1  # pixels folded into channels before the body
    prior_unshuffle: int = 4  # the same before the prior encoder
    upsample: int = 1  # after the body; scale = upsample / body_unshuffle
    residual: bool = True  # whether the input, enlarged by nearest neighbour, is added to the output

    @property
    def multiple_of(self) -> int:
        """Required divisor of input height and width in pixels; networks pad to it in evaluation."""
        return BODY_DEPTH * self.body_unshuffle

    @property
    def prior_channels(self) -> int:
        """Channels of the degraded image in the input of the prior encoder."""
        return self.channels * self.prior_unshuffle**2


def _super_resolution(scale: int) -> TaskGeometry:
    # All scales share the x4 tail; x2 and x1 compensate with pixel unshuffle at the input.
    fold = 4 // scale
    return TaskGeometry("sr", scale=scale, body_unshuffle=fold, prior_unshuffle=fold, upsample=4)


GEOMETRIES: dict[tuple[str, int], TaskGeometry] = {
    **{("sr", scale): _super_resolution(scale) for scale in (1, 2, 4)},
    ("deblur", 1): TaskGeometry("deblur"),
    ("inpaint", 1): TaskGeometry("inpaint", channels=4, residual=False),
}
NETWORK_TASKS = tuple(dict.fromkeys(task for task, _ in GEOMETRIES))


def geometry_of(task: str, scale: int | None = None) -> TaskGeometry:
    """The geometry of a task; `scale` applies only to 'sr' (default 4) and must be 1 or None otherwise."""
    scale = scale if scale is not None else (4 if task == "sr" else 1)
    if (task, scale) in GEOMETRIES:
        return GEOMETRIES[task, scale]
    if task not in NETWORK_TASKS:
        raise OptionError(f"task {task!r} is unknown; known tasks: {', '.join(NETWORK_TASKS)}")
    scales = ", ".join(str(known) for name, known in GEOMETRIES if name == task)
    raise OptionError(f"scale {scale} is not possible for task {task!r}; possible: {scales}")


def pad_to_multiple(image: Tensor, *, multiple_of: int) -> Tensor:
    """Pad (B, C, H, W) at the right and bottom to multiples, by reflection, then by replication if the image is small.

    Reflection cannot add more than the image has, so for an image of a few pixels the last row or column is repeated.
    """
    height, width = image.shape[-2:]
    right, bottom = -width % multiple_of, -height % multiple_of
    if not right and not bottom:
        return image
    mirror_right, mirror_bottom = min(right, width - 1), min(bottom, height - 1)
    image = F.pad(image, (0, mirror_right, 0, mirror_bottom), mode="reflect")
    return F.pad(image, (0, right - mirror_right, 0, bottom - mirror_bottom), mode="replicate")


def with_mask(lq: Tensor, mask: Tensor | None) -> Tensor:
    """The input of inpainting networks from `lq` (B, 3, H, W) and the mask of missing pixels (B, 1, H, W)."""
    return lq if mask is None else torch.cat([lq, mask.to(lq)], dim=1)


def check_image(image: Tensor, *, channels: int, name: str) -> None:
    """Raise InputError unless `image` is a non-empty (B, channels, H, W) tensor."""
    if image.ndim != 4 or image.shape[1] != channels or 0 in image.shape:
        raise InputError(f"{name}: expected a tensor (batch, {channels}, height, width), got {tuple(image.shape)}")


def check_multiple(image: Tensor, *, multiple_of: int, name: str) -> None:
    """Raise InputError unless both sides of `image` are multiples of `multiple_of` (training does not pad)."""
    height, width = image.shape[-2:]
    if height % multiple_of or width % multiple_of:
        raise InputError(
            f"{name}: training patches must be multiples of {multiple_of} pixels, got {height}x{width}; "
            f"choose gt_size so that the {name} patch is a multiple of {multiple_of}"
        )


# Declarations of DiffIR's networks: arguments with bounds, rules, and corrections of published files.


RENAMED = {"retuned": "rescale_schedule", "prior_sees": "prior_input"}
_VALUES = {"prior_sees": {"both": "lq_gt"}}
_Levels = Annotated[list[Blocks], Field(min_length=4, max_length=4)]
_Heads = Annotated[list[Annotated[Whole, Field(ge=1, le=1024)]], Field(min_length=4, max_length=4)]
_Width = Annotated[Whole, Field(ge=1, le=4096)]


class BodyArguments(Section):
    """Arguments of both stages."""

    task: str = Field(description="Task: sr (super-resolution), deblur or inpaint.")
    scale: Small = Field(
        description="Ratio of output size to input size: 1, 2 or 4 for sr (default 4), 1 for other tasks."
    )
    n_encoder_res: Blocks = Field(description="Residual blocks of the prior encoder.")
    inp_channels: Small = Field(description="No effect, but must match the task if given; present in published files.")
    out_channels: Literal[3] = Field(description="Channels of the restored image; always 3.")
    dim: _Width = Field(description="Channels of the first level of the body.")
    num_blocks: _Levels = Field(description="Transformer blocks of each of the four levels.")
    num_refinement_blocks: Blocks = Field(description="Transformer blocks after the last level; no effect for inpaint.")
    heads: _Heads = Field(
        description="Attention heads of each of the four levels; each must divide the channels there."
    )
    ffn_expansion_factor: Annotated[Positive, Field(le=64)] = Field(
        description="Expansion of the feed-forward layers relative to their channels."
    )
    prior_width: _Width = Field(description="Width of the prior; published: 256.")
    bias: bool = Field(description="Whether convolutions of the body have a bias.")
    LayerNorm_type: Literal["BiasFree", "WithBias"] = Field(
        description="BiasFree (norms only scale) or WithBias (norms scale and shift)."
    )


class Stage1Arguments(BodyArguments):
    """Arguments of stage 1."""

    prior_input: Literal["lq_gt", "gt"] = Field(
        description="Input of the prior encoder: lq_gt, both images (published), or gt, only the ground truth."
    )


class Stage2Arguments(BodyArguments):
    """Arguments of stage 2."""

    n_denoise_res: Blocks = Field(description="Layers of the denoiser after the first.")
    linear_start: Annotated[Positive, Field(lt=1)] = Field(description="Variance of the first diffusion step.")
    linear_end: Annotated[Positive, Field(lt=1)] = Field(description="Variance of the last diffusion step.")
    timesteps: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        description="Diffusion steps; must be the number used in training."
    )
    prediction: Literal["x0", "eps"] = Field(
        description="Prediction of the denoiser: x0, the clean prior (published), or eps, the noise."
    )
    use_diffusion: bool = Field(
        description="Whether the prior is estimated by diffusion; else it is the condition (the paper's V1, worse)."
    )
    variance_noise: bool = Field(description="Whether reverse steps add noise (the paper's V4, worse).")
    rescale_schedule: bool = Field(
        description="Whether linear_end is set so that x_T is noise for any timesteps (the paper's ablation over T)."
    )


def takes_old_names(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that also accepts earlier names of its arguments, which model cards may contain."""

    @wraps(init)
    def constructor(self: Any, **given: Any) -> None:
        for old in RENAMED.keys() & given.keys():
            value = given.pop(old)
            given.setdefault(RENAMED[old], _VALUES.get(old, {}).get(value, value))
        init(self, **given)

    return constructor


def settle_values(values: dict[str, Any], at: tuple[str, ...]) -> Found:
    """The earlier name of a value: `both` is `lq_gt`."""
    section = values[at[0]]
    if section.get("prior_input") == "both":
        section["prior_input"] = "lq_gt"
        yield (*at, "prior_input"), "both is now named lq_gt"


def infer_task(values: dict[str, Any], at: tuple[str, ...]) -> Found:
    """Published deblurring files use the names of the super-resolution networks; their dataset identifies them."""
    datasets = values.get("datasets")
    sections = datasets.values() if isinstance(datasets, Mapping) else ()
    deblurs = any(isinstance(one, Mapping) and one.get("type") == "DeblurPairedDataset" for one in sections)
    network = values[at[0]]
    if not deblurs or at != ("network_g",) or "task" in network or "scale" in network:
        return
    settled = [name for name in ("network_g", "network_S1") if isinstance(values.get(name), dict)]
    for name in settled:
        values[name].setdefault("task", "deblur")
    names = " and ".join(f"{name}.task" for name in settled)
    yield at, f"{names} set to 'deblur', because a dataset is a DeblurPairedDataset and no scale is given"
    if values.get("scale") not in (None, 1):
        yield ("scale",), f"corrected from {values['scale']} to 1: deblurring does not change the size"
        values["scale"] = 1


def geometry_exists(view: View, at: tuple[str, ...]) -> Found:
    """A network exists for this task and scale."""
    task = view.effective(*at, "task")
    try:
        geometry_of(task, view.get(*at, "scale"))
    except OptionError as error:
        yield (*at, "task" if task not in NETWORK_TASKS else "scale"), str(error)


def refinement_has_effect(view: View, at: tuple[str, ...]) -> Found:
    """The published inpainting network has no refinement blocks, regardless of the option."""
    if view.get(*at, "task") == "inpaint" and view.get(*at, "num_refinement_blocks"):
        yield (
            (*at, "num_refinement_blocks"),
            "has no effect: the inpainting network has no refinement blocks (write 0 or leave it out)",
        )
