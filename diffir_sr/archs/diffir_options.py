"""What DiffIR's networks say about their options: arguments with bounds, rules, and repairs of published files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Literal

from pydantic import Field

from diffir_sr.archs.geometry import TASKS, geometry_of
from diffir_sr.errors import OptionError
from diffir_sr.option_types import Blocks, Found, Positive, Section, Small, View, Whole

RENAMED = {"retuned": "rescale_schedule", "prior_sees": "prior_input"}
_VALUES = {"prior_sees": {"both": "lq_gt"}}
_Levels = Annotated[list[Blocks], Field(min_length=4, max_length=4)]
_Heads = Annotated[list[Annotated[Whole, Field(ge=1, le=1024)]], Field(min_length=4, max_length=4)]
_Width = Annotated[Whole, Field(ge=1, le=4096)]


class BodyArguments(Section):
    """Arguments of both stages."""

    task: str = Field(description="What is restored: sr (super-resolution), deblur or inpaint.")
    scale: Small = Field(description="Output size over input size: 1, 2 or 4 for sr (4 if absent), 1 for other tasks.")
    n_encoder_res: Blocks = Field(description="Residual blocks of the prior encoder.")
    inp_channels: Small = Field(description="Has no effect but must suit the task if given; published files carry it.")
    out_channels: Literal[3] = Field(description="Channels of the restored image; always 3.")
    dim: _Width = Field(description="Channels of the first level of the body.")
    num_blocks: _Levels = Field(description="Transformer blocks on each of the four levels.")
    num_refinement_blocks: Blocks = Field(
        description="Transformer blocks after the last level; has no effect for inpaint."
    )
    heads: _Heads = Field(description="Attention heads on each of the four levels; each divides the channels there.")
    ffn_expansion_factor: Annotated[Positive, Field(le=64)] = Field(
        description="Width inside the feed-forward parts over their channels."
    )
    prior_width: _Width = Field(description="Numbers in the prior; published: 256.")
    bias: bool = Field(description="Whether convolutions of the body have a bias.")
    LayerNorm_type: Literal["BiasFree", "WithBias"] = Field(
        description="BiasFree (norms scale) or WithBias (norms scale and shift)."
    )


class Stage1Arguments(BodyArguments):
    """Arguments of stage 1."""

    prior_input: Literal["lq_gt", "gt"] = Field(
        description="What the prior is made of: lq_gt, both images (published), or gt, the ground truth alone."
    )


class Stage2Arguments(BodyArguments):
    """Arguments of stage 2."""

    n_denoise_res: Blocks = Field(description="Layers of the denoiser after the first.")
    linear_start: Annotated[Positive, Field(lt=1)] = Field(description="Variance of the first diffusion step.")
    linear_end: Annotated[Positive, Field(lt=1)] = Field(description="Variance of the last diffusion step.")
    timesteps: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        description="Diffusion steps; a network works with the number that it was trained with."
    )
    prediction: Literal["x0", "eps"] = Field(
        description="What the denoiser predicts: x0, the clean prior (published), or eps, the noise."
    )
    use_diffusion: bool = Field(
        description="Whether the prior is diffused; else the condition itself is it (the paper's V1, worse)."
    )
    variance_noise: bool = Field(description="Whether steps back add noise (the paper's V4, worse).")
    rescale_schedule: bool = Field(
        description="Whether linear_end is chosen so that x_T is noise for any timesteps (the paper's ablation over T)."
    )


def takes_old_names(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that also takes the earlier names of its arguments, which model cards may hold."""

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
        yield (*at, "prior_input"), "both is now called lq_gt"


def settle_task(values: dict[str, Any], at: tuple[str, ...]) -> Found:
    """Published deblurring files use the names of the super-resolution networks; their dataset tells them apart."""
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
    """There is a network for this task and scale."""
    task = view.get(*at, "task", default="sr")
    try:
        geometry_of(task, view.get(*at, "scale"))
    except OptionError as error:
        yield (*at, "task" if task not in TASKS else "scale"), str(error)


def refinement_has_effect(view: View, at: tuple[str, ...]) -> Found:
    """The published inpainting network has no refinement blocks, whatever its file says."""
    if view.get(*at, "task") == "inpaint" and view.get(*at, "num_refinement_blocks", default=0):
        yield (
            (*at, "num_refinement_blocks"),
            "has no effect: the inpainting network has no refinement blocks (write 0 or leave it out)",
        )
