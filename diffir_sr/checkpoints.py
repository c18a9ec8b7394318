"""Weights files: read safely, told apart by their keys, fitted into networks with the reason where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffir_sr.archs.frames import FRAMES, GT_UNSHUFFLE
from diffir_sr.archs.layers import PRIOR_WIDTH
from diffir_sr.cards import SUFFIX, read_stored
from diffir_sr.errors import CheckpointError
from diffir_sr.weights_files import StandIn, check_reachable, is_safetensors, objects_in, read_pickled
from diffir_sr.weights_tensors import bare, plain

Tensors = Mapping[str, Tensor]
LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
_KEYS = ("params_ema", "params")
_LIGHTNING = "state_dict"


@dataclass(frozen=True)
class Weights:
    """The tensors of one network out of a file, and where they were."""

    path: Path
    key: str | None  # 'params_ema', 'params', or None where the file is the state dict itself
    tensors: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)  # what a safetensors file tells about its training


@dataclass(frozen=True)
class Identity:
    """What a DiffIR checkpoint is, read off its keys and shapes alone."""

    stage: int
    task: str
    scale: int
    arguments: dict[str, Any]  # constructor arguments of DiffIRS1 or DiffIRS2

    def __str__(self) -> str:
        scale = f" x{self.scale}" if self.task == "sr" else ""
        blocks = ",".join(str(count) for count in self.arguments["num_blocks"])
        return f"DiffIR stage {self.stage}, {self.task}{scale}, dim {self.arguments['dim']}, blocks {blocks}"


def read_weights(path: str | Path, *, key: str | None = "params_ema") -> Weights:
    """The network stored in a `.pth` file under `key`, or under the other of params_ema and params, or bare.

    A Lightning checkpoint (published inpainting) holds it under state_dict, with `generator.` before every name; a
    `.safetensors` file holds one network and perhaps its model card. Tensors arrive on the CPU; nothing in the file
    is executed. Raises CheckpointError for a missing, damaged or foreign file.
    """
    path = Path(path).expanduser()
    check_reachable(path)
    if is_safetensors(path):
        tensors, card, ties = read_stored(path)
        return Weights(path, None, plain(tensors, path, ties=ties), card)
    # A renamed file is read as what it is.
    content = read_pickled(path, kind="safetensors file" if path.suffix == SUFFIX else "PyTorch weights file")
    found, tensors = _unwrap(content, key)
    if tensors is None:
        raise CheckpointError(f"{path.resolve()}: {_no_network(content)}")
    return Weights(path, found, plain(tensors, path))


def _unwrap(content: Any, key: str | None) -> tuple[str | None, dict[str, Tensor] | None]:
    if not isinstance(content, Mapping):
        return None, None
    for candidate in (key, *_KEYS):
        if candidate in content and _is_network(content[candidate]):
            return candidate, content[candidate]
    if _is_network(content.get(_LIGHTNING)):
        return _LIGHTNING, _generator(content[_LIGHTNING])
    return None, dict(content) if _is_network(content) else None


def _generator(tensors: Tensors) -> dict[str, Tensor]:
    """The restoring network of a Lightning module, which holds losses, a discriminator and a teacher beside it."""
    for prefix in ("generator.", "generatorS2."):
        own = {
            bare(name).removeprefix(prefix): tensor for name, tensor in tensors.items() if bare(name).startswith(prefix)
        }
        if own:
            return own
    return dict(tensors)


def _is_network(content: Any) -> bool:
    tensors = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    return tensors and len(content) > 0 and all(isinstance(name, str) for name in content)


def _no_network(content: Any) -> str:
    objects = objects_in(content)
    if isinstance(content, StandIn):
        return (
            f"holds a pickled model object of class {objects[0]}, not its weights alone, and reading it would execute "
            "code; where that class is installed, save torch.save(model.state_dict(), 'weights.pth')"
        )
    held = f"holds no network; expected {' or '.join(_KEYS)}, found {_summary(content)}"
    if objects:
        held += f", with objects of class {', '.join(objects[:3])}; save torch.save(model.state_dict(), 'weights.pth')"
    return held


def _summary(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        return "the entries " + ", ".join(str(name) for name in list(content)[:5])
    return f"an empty {type(content).__name__}" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def identify(tensors: Tensors) -> Identity | None:
    """Stage, task, scale and constructor arguments of the DiffIR network that has these tensors, or None.

    Not told by the weights: whether the denoiser predicts x0 or noise (`prediction`), and `variance_noise`. Raises
    CheckpointError that names the tensor where one of such a network is missing, or has a shape that none has.
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
    frame = _frame_of(tensors, stage, None if gt_alone else seen)
    if frame is None:
        return None
    task, scale = frame
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
        arguments["prior_sees"] = "gt"
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
    return Identity(stage, task, scale, arguments)


def identity_in(weights: Weights) -> Identity | None:
    """`identify` for weights out of a file, which its errors name."""
    try:
        return identify(weights.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path.resolve()}: {error}") from None


def _check_telling(tensors: Tensors, encoder: str) -> None:
    """Refuse a DiffIR network that lacks one of the tensors which tell its sizes."""
    wanted = {"G.patch_embed.proj.weight": 4, "G.latent.0.ffn.project_out.weight": 4, f"{encoder}.E.0.weight": 4}
    wanted |= {f"{encoder}.mlp.0.weight": 2} | {f"G.{level}.0.attn.temperature": 3 for level in LEVELS}
    if "diffusion.betas" in tensors:
        wanted["diffusion.betas"] = 1
    for name, dimensions in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"the tensor {name} of a DiffIR network is missing; copy or fetch the weights again")
        if tensors[name].ndim != dimensions or 0 in tensors[name].shape:
            raise CheckpointError(
                f"the tensor {name} has the shape {tuple(tensors[name].shape)}, which no DiffIR network has; expected "
                f"{dimensions} dimensions, none of them 0; copy or fetch the weights again"
            )


def _frame_of(tensors: Tensors, stage: int, prior_channels: int | None) -> tuple[str, int] | None:
    """`prior_channels` None: the prior's encoder does not see the degraded image."""
    body_channels = tensors["G.patch_embed.proj.weight"].shape[1]
    if stage == 1 and prior_channels is not None:
        prior_channels -= 3 * GT_UNSHUFFLE**2
    for (task, scale), frame in FRAMES.items():
        same_tail = ("G.tail.1.weight" in tensors) == (frame.upsample > 1)
        same_body = frame.channels * frame.body_unshuffle**2 == body_channels
        if same_tail and same_body and prior_channels in (None, frame.prior_channels):
            return task, scale
    return None


def _count(tensors: Tensors, prefix: str, *, inside: str = "") -> int:
    """How many numbered children of `prefix` (with a tensor that ends in `inside`) there are."""
    rests = (name.removeprefix(f"{prefix}.") for name in tensors if name.startswith(f"{prefix}."))
    return len({rest.split(".")[0] for rest in rests if rest.endswith(inside)})


def _expansion(hidden: int, channels: int) -> float:
    """The shortest factor whose product with `channels` truncates to `hidden` (hence at every level)."""
    middle = (hidden + 0.5) / channels
    rounded = (round(middle, digits) for digits in range(1, 6))
    return next((factor for factor in rounded if int(channels * factor) == hidden), middle)


def fit(net: nn.Module, weights: Weights, *, where: str, strict: bool, from_stage_1: bool = False) -> str:
    """Load `weights` into `net` and say in one line what was loaded; refuses what `fitting` refuses."""
    tensors = fitting(net, weights, where=where, strict=strict, from_stage_1=from_stage_1)
    net.load_state_dict(tensors, strict=False)
    total = len(net.state_dict())
    kept = f"; {total - len(tensors)} keep their start values" if len(tensors) < total else ""
    return f"{where}: {len(tensors)} of {total} tensors from {weights.path} [{weights.key or 'bare'}]{kept}"


def fitting(
    net: nn.Module, weights: Weights, *, where: str, strict: bool, from_stage_1: bool = False
) -> dict[str, Tensor]:
    """The tensors that `net` takes of `weights`; CheckpointError for a file that does not belong there.

    `where` is the option that named the file. A DiffIR network must have its own stage, task, scale and sizes;
    with `from_stage_1` a stage-2 network takes the body G of a stage-1 file and keeps the rest. `strict=False`
    forgives differences outside G, never in it.
    """
    wanted = identify(net.state_dict())
    found = identity_in(weights)
    place = f"{where}: {weights.path.resolve()}"
    if wanted is not None:
        _check_identity(wanted, found, weights, place=place, from_stage_1=from_stage_1)
    tensors = dict(weights.tensors)
    starting = wanted is not None and found is not None and (wanted.stage, found.stage) == (2, 1)
    if starting:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("G.")}
    own = net.state_dict()
    missing, unexpected, reshaped = _differences(own, tensors)
    fatal = [*missing, *unexpected, *reshaped]
    if starting or not strict:
        fatal = [name for name in fatal if name.startswith("G.")] if wanted is not None else reshaped
    if fatal:
        raise CheckpointError(_mismatch(place, fatal, missing, unexpected, reshaped, own, tensors))
    if wanted is None and not strict and not set(own) & set(tensors):
        raise CheckpointError(f"{place}: not one of its {len(tensors)} tensors belongs to {type(net).__name__}")
    return {name: tensor for name, tensor in tensors.items() if name in own and name not in reshaped}


def _check_identity(
    wanted: Identity, found: Identity | None, weights: Weights, *, place: str, from_stage_1: bool
) -> None:
    if found is None:
        names = ", ".join(list(weights.tensors)[:3])
        raise CheckpointError(f"{place} is not a DiffIR checkpoint (its tensors: {names}, ...); expected {wanted}")
    if found.stage != wanted.stage and not (found.stage == 1 and from_stage_1):
        home = (
            "a stage-1 file belongs to path.pretrain_network_S1 (or, to start training stage 2, to "
            "path.pretrain_network_g of DiffIRS2Model)"
            if found.stage == 1
            else "a stage-2 file belongs to path.pretrain_network_g of a stage-2 model"
        )
        raise CheckpointError(f"{place} is {found}; needed here is {wanted}; {home}")
    if (found.task, found.scale) != (wanted.task, wanted.scale):
        raise CheckpointError(
            f"{place} is {found}; the options describe {wanted}; set task and scale of the network to the "
            "file's, or choose another file"
        )
    shared = set(wanted.arguments) & set(found.arguments)
    body_only = found.stage != wanted.stage
    differing = [
        f"{name}: {found.arguments[name]} in the file, {wanted.arguments[name]} in the options"
        for name in sorted(shared)
        if found.arguments[name] != wanted.arguments[name] and not (body_only and name == "n_encoder_res")
    ]
    if differing:
        raise CheckpointError(f"{place} is another network than the options describe: {'; '.join(differing)}")


def _differences(own: Tensors, tensors: Tensors) -> tuple[list[str], list[str], list[str]]:
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    reshaped = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    return missing, unexpected, reshaped


def _mismatch(
    place: str,
    fatal: list[str],
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
    own: Tensors,
    tensors: Tensors,
) -> str:
    def shapes(name: str) -> str:
        return f"{name} ({tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the network)"

    parts = [
        ("missing in the file", [name for name in missing if name in fatal]),
        ("unknown to the network", [name for name in unexpected if name in fatal]),
        ("of another shape", [shapes(name) for name in reshaped if name in fatal]),
    ]
    said = [f"{len(names)} {what}, such as {', '.join(names[:3])}" for what, names in parts if names]
    return f"{place} does not fit: {'; '.join(said)}"
