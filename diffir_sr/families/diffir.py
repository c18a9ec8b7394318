"""The record of DiffIR: what it adds to BasicSR, and identification of its weights by keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from diffir_sr.archs.geometry import GEOMETRIES, GT_UNSHUFFLE
from diffir_sr.archs.layers import PRIOR_WIDTH
from diffir_sr.errors import CheckpointError
from diffir_sr.families.base import Family, Identity, Tensors

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
_TASKS = {"sr": "super-resolution", "deblur": "deblurring", "inpaint": "inpainting"}
# Arguments of DiffIRS2 that the shapes of its weights do not determine; without a network section, the card has them.
_NOT_IN_WEIGHTS = ("prediction", "variance_noise")


@dataclass(frozen=True, kw_only=True)
class DiffIRIdentity(Identity):
    """The identity of a DiffIR checkpoint, from its keys and shapes."""

    stage: int
    task: str
    scale: int
    core: ClassVar[str] = "G."

    def refusal(self, found: Identity | None, *, starting: bool, partly: bool) -> str | None:
        if not isinstance(found, DiffIRIdentity):
            return f"is {found}; expected {self}" if found else None
        if found.stage != self.stage and not (starting and self.takes_core_of(found)):
            home = (
                "a stage-1 file belongs to path.pretrain_network_S1 (or, to start training stage 2, to "
                "path.pretrain_network_g of DiffIRS2Model)"
                if found.stage == 1
                else "a stage-2 file belongs to path.pretrain_network_g of a stage-2 model"
            )
            return f"is {found}, expected {self}; {home}"
        if (found.task, found.scale) != (self.task, self.scale) and not (partly and self.takes_parts_of(found)):
            loosely = (
                ", or start a training from another scale with path.strict_load_g: false"
                if self.takes_parts_of(found)
                else ""
            )
            return (
                f"is {found}; the options describe {self}; set task and scale of the network to the file's, or choose "
                f"another file{loosely}"
            )
        core_only = found.stage != self.stage
        return self.differing(found, but=frozenset({"n_encoder_res"} if core_only else {"scale"}))

    def takes_core_of(self, found: Identity | None) -> bool:
        return isinstance(found, DiffIRIdentity) and (self.stage, found.stage) == (2, 1)

    def takes_parts_of(self, found: Identity | None) -> bool:
        """All but the layers that read and enlarge the image of the same network for another scale."""
        return (
            isinstance(found, DiffIRIdentity)
            and (self.stage, self.task) == (found.stage, found.task)
            and self.scale != found.scale
            and self.differing(found, but=frozenset({"scale"})) is None
        )


_NEEDS_GT = (
    "which needs the ground truth to restore; give the file of a stage-2 network (DiffIRS2Model or DiffIRGANS2Model "
    "wrote it)"
)


def identify(tensors: Tensors, card: Mapping[str, Any]) -> DiffIRIdentity | None:
    """Stage, task, scale and constructor arguments of the DiffIR network with these tensors, or None.

    The weights do not determine whether the denoiser predicts x0 or noise (`prediction`), nor `variance_noise`; the
    card may. Raises CheckpointError, which names the tensor, if one is missing or has an impossible shape.
    """
    if "G.patch_embed.proj.weight" not in tensors or "G.latent.0.ffn.project_out.weight" not in tensors:
        return None
    stage = 1 if "E.E.0.weight" in tensors else 2
    encoder = "E" if stage == 1 else "condition"
    if f"{encoder}.E.0.weight" not in tensors:
        return None
    _check_telling(tensors, encoder)
    seen = tensors[f"{encoder}.E.0.weight"].shape[1]
    width = tensors[f"{encoder}.mlp.0.weight"].shape[0]
    gt_alone = stage == 1 and seen == 3 * GT_UNSHUFFLE**2
    geometry = _geometry_of(tensors, stage, None if gt_alone else seen)
    if geometry is None:
        return None
    task, scale = geometry
    dim = tensors["G.patch_embed.proj.weight"].shape[0]
    arguments: dict[str, Any] = {
        "n_encoder_res": _count(tensors, f"{encoder}.E", inside=".body.0.weight"),
        "dim": dim,
        "num_blocks": [_count(tensors, f"G.{level}") for level in LEVELS],
        "num_refinement_blocks": _count(tensors, "G.refinement"),
        "heads": [len(tensors[f"G.{level}.0.attn.temperature"]) for level in LEVELS],
        "ffn_expansion_factor": _expansion(tensors["G.latent.0.ffn.project_out.weight"].shape[1], 8 * dim),
        "bias": "G.latent.0.attn.qkv.bias" in tensors,
        "LayerNorm_type": "WithBias" if "G.latent.0.norm1.body.bias" in tensors else "BiasFree",
        "task": task,
    }
    if task == "sr":
        arguments["scale"] = scale
    if width != PRIOR_WIDTH:
        arguments["prior_width"] = width
    if gt_alone:
        arguments["prior_input"] = "gt"
    if stage == 2 and "diffusion.betas" not in tensors:
        arguments["use_diffusion"] = False
    elif stage == 2:
        betas = tensors["diffusion.betas"]
        arguments |= {
            "n_denoise_res": _count(tensors, "denoise.resmlp", inside=".resmlp.0.weight"),
            "linear_start": round(betas[0].item(), 6),
            "linear_end": round(betas[-1].item(), 6) if len(betas) > 1 else 0.99,
            "timesteps": len(betas),
        }
    if stage == 2:
        arguments |= {name: card[name] for name in _NOT_IN_WEIGHTS if name in card}
    return _identity(stage, task, scale, arguments)


def _identity(stage: int, task: str, scale: int, arguments: dict[str, Any]) -> DiffIRIdentity:
    times = f" x{scale}" if task == "sr" else ""
    blocks = ",".join(str(count) for count in arguments["num_blocks"])
    how = (
        "1, restores with the ground truth; trains stage 2"
        if stage == 1
        else "2, restores images (weights do not show whether they were trained with a discriminator)"
    )
    return DiffIRIdentity(
        arch=f"DiffIRS{stage}",
        arguments=arguments,
        title=f"DiffIR stage {stage}, {task}{times}, dim {arguments['dim']}, blocks {blocks}",
        refuses=_NEEDS_GT if stage == 1 else "",
        facts={"task": f"{_TASKS[task]}{times}", "stage": how},
        card={"stage": stage, "task": task, "scale": scale},
        stage=stage,
        task=task,
        scale=scale,
    )


def _check_telling(tensors: Tensors, encoder: str) -> None:
    """Refuse a DiffIR network that lacks one of the tensors needed to determine its sizes."""
    wanted = {"G.patch_embed.proj.weight": 4, "G.latent.0.ffn.project_out.weight": 4, f"{encoder}.E.0.weight": 4}
    wanted |= {f"{encoder}.mlp.0.weight": 2} | {f"G.{level}.0.attn.temperature": 3 for level in LEVELS}
    if "diffusion.betas" in tensors:
        wanted["diffusion.betas"] = 1
    for name, dimensions in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"the tensor {name} of a DiffIR network is missing; copy or fetch the weights again")
        if tensors[name].ndim != dimensions or 0 in tensors[name].shape:
            raise CheckpointError(
                f"the tensor {name} has the shape {tuple(tensors[name].shape)}, invalid for DiffIR; expected "
                f"{dimensions} dimensions, none of them 0; copy or fetch the weights again"
            )


def _geometry_of(tensors: Tensors, stage: int, prior_channels: int | None) -> tuple[str, int] | None:
    """`prior_channels` None: the prior encoder does not see the degraded image."""
    body_channels = tensors["G.patch_embed.proj.weight"].shape[1]
    if stage == 1 and prior_channels is not None:
        prior_channels -= 3 * GT_UNSHUFFLE**2
    for (task, scale), geometry in GEOMETRIES.items():
        same_tail = ("G.tail.1.weight" in tensors) == (geometry.upsample > 1)
        same_body = geometry.channels * geometry.body_unshuffle**2 == body_channels
        if same_tail and same_body and prior_channels in (None, geometry.prior_channels):
            return task, scale
    return None


def _count(tensors: Tensors, prefix: str, *, inside: str = "") -> int:
    """Number of numbered children of `prefix` (with a tensor that ends in `inside`)."""
    rests = (name.removeprefix(f"{prefix}.") for name in tensors if name.startswith(f"{prefix}."))
    return len({rest.split(".")[0] for rest in rests if rest.endswith(inside)})


def _expansion(hidden: int, channels: int) -> float:
    """The shortest factor whose product with `channels` truncates to `hidden` (hence at every level)."""
    middle = (hidden + 0.5) / channels
    rounded = (round(middle, digits) for digits in range(1, 6))
    return next((factor for factor in rounded if int(channels * factor) == hidden), middle)


DIFFIR = Family(
    name="DiffIR",
    archs=("diffir_sr.archs.diffir_arch:DiffIRS1", "diffir_sr.archs.diffir_arch:DiffIRS2"),
    models=(
        "diffir_sr.models.diffir_models:DiffIRS1Model",
        "diffir_sr.models.diffir_models:DiffIRS2Model",
        "diffir_sr.models.diffir_models:DiffIRGANS2Model",
        "diffir_sr.models.diffir_inpainting_models:DiffIRInpaintS1Model",
        "diffir_sr.models.diffir_inpainting_models:DiffIRInpaintS2Model",
    ),
    losses=("diffir_sr.losses:KDLoss",),
    identify=identify,
    engines={"diffir_sr.archs.diffir_arch:DiffIRS2": "diffir_sr.inference.strips.engine:StripEngine"},
)
