"""Checkpoints: reading weights files safely, identifying, describing and loading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from diffir_sr.diffusion.schedule import STORED_CONSTANTS
from diffir_sr.errors import CheckpointError
from diffir_sr.families import identify, load_foreign
from diffir_sr.families.autodir import is_folder, read_folder
from diffir_sr.families.base import Identity, Tensors
from diffir_sr.families.exported import ONNX, is_onnx, load_onnx, onnx_identity, read_onnx
from diffir_sr.families.spandrel import missing
from diffir_sr.weights.ncnn import graph_of, read_ncnn
from diffir_sr.weights_files import (
    SUFFIX,
    StandIn,
    as_plain_data,
    bare,
    bare_tensors,
    check_reachable,
    is_safetensors,
    objects_in,
    read_pickled,
    read_stored,
)

_KEYS = ("params_ema", "params")
_LIGHTNING = "state_dict"


@dataclass(frozen=True)
class Weights:
    """The tensors of one network from a file, and their origin."""

    path: Path
    key: str | None  # 'params_ema', 'params', 'onnx', or None if the file is the state dict itself
    tensors: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)  # model card of a safetensors file


def read_weights(path: str | Path, *, key: str | None = "params_ema") -> Weights:
    """The network stored in a `.pth` file under `key`, or under the other of params_ema and params, or bare.

    A Lightning checkpoint (published inpainting) stores it under state_dict, with the prefix `generator.`; a
    `.safetensors` file contains one network and optionally its model card; an ncnn `.param` file needs its `.bin` file
    next to it; an `.onnx` file is a whole exported network. Tensors are on the CPU; no code in the file is executed.
    Raises CheckpointError for a missing, damaged or foreign file.
    """
    path = Path(os.path.expanduser(path))
    if is_folder(path):
        tensors, card = read_folder(path)
        return Weights(path, None, bare_tensors(tensors, path), card)
    check_reachable(path)
    if is_safetensors(path):
        tensors, card, ties = read_stored(path)
        return Weights(path, None, bare_tensors(tensors, path, ties=ties), card)
    if is_onnx(path):
        tensors, card = read_onnx(path)
        return Weights(path, ONNX, tensors, card)
    graph = graph_of(path)
    if graph is not None:
        return Weights(path, None, bare_tensors(read_ncnn(graph), path))
    # The format is detected by content, in case a file was renamed.
    content = read_pickled(path, kind="safetensors file" if path.suffix == SUFFIX else "PyTorch weights file")
    found, tensors = _unwrap(content, key)
    if tensors is None:
        raise CheckpointError(f"{path.resolve()}: {_no_network(content)}")
    return Weights(path, found, bare_tensors(tensors, path))


def _unwrap(content: Any, key: str | None) -> tuple[str | None, dict[str, Tensor] | None]:
    if not isinstance(content, Mapping):
        return None, None
    for candidate in (key, *_KEYS):
        if candidate in content and _is_network(content[candidate]):
            return candidate, content[candidate]
    if _is_network(content.get(_LIGHTNING)):
        return _LIGHTNING, generator_in(content[_LIGHTNING])
    return None, dict(content) if _is_network(content) else None


def generator_in(tensors: Tensors) -> dict[str, Tensor]:
    """The restoration network of a Lightning module, which also contains losses, a discriminator and a teacher."""
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
            f"contains a pickled model object of class {objects[0]} instead of weights, and reading it would execute "
            "code; where that class is installed, save torch.save(model.state_dict(), 'weights.pth')"
        )
    held = f"contains no network; expected {' or '.join(_KEYS)}, found {_summary(content)}"
    if objects:
        held += f", with objects of class {', '.join(objects[:3])}; save torch.save(model.state_dict(), 'weights.pth')"
    return held


def _summary(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        return "the entries " + ", ".join(str(name) for name in list(content)[:5])
    return f"an empty {type(content).__name__}" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def identity_in(weights: Weights) -> Identity | None:
    """Identify the weights of a file by their keys and shapes; errors name the file."""
    if weights.key == ONNX:
        return onnx_identity(weights.path, weights.card)
    try:
        return identify(weights.tensors, weights.card)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path.resolve()}: {error}") from None


@dataclass(frozen=True)
class Loaded:
    """A network loaded from a weights file, in evaluation mode on the CPU, without gradients."""

    network: nn.Module
    identity: Identity
    weights: Weights


def identity_of(weights: Weights) -> Identity:
    """The identity of the network of these weights, from the model card, else from keys and shapes.

    Raises CheckpointError if neither identifies it.
    """
    section = weights.card.get("network")
    if section is not None and weights.key != ONNX:
        return _described(section, weights)
    identity = identity_in(weights)
    return _foreign(weights)[1] if identity is None else identity


def _foreign(weights: Weights) -> tuple[nn.Module, Identity]:
    """The network, built by a family that does this itself; raises CheckpointError if no family recognises it."""
    try:
        found = load_foreign(weights.tensors, weights.card)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path.resolve()}: {error}") from error
    if found is not None:
        return found
    names = ", ".join(list(weights.tensors)[:3])
    raise CheckpointError(
        f"{weights.path.resolve()}: its tensors ({names}, ...) belong to no known network; trainings of this package "
        f"also write a .safetensors file, which names its network; {missing()}"
    )


def _described(section: Any, weights: Weights) -> Identity:
    """The identity according to the network section (`type` and arguments) of a model card."""
    if not isinstance(section, Mapping) or not isinstance(section.get("type"), str):
        raise CheckpointError(
            f"{weights.path.resolve()}: the model card's network section is {section!r}, expected type and arguments"
        )
    arguments = {name: value for name, value in section.items() if name != "type"}
    arch = section["type"]
    found = identity_in(weights)
    if found is not None and found.arch == arch:  # the family knows more details
        return replace(found, arguments=found.arguments | arguments)
    scale = weights.card.get("scale")
    title = f"{arch}{f' x{scale}' if scale else ''}"
    return Identity(arch=arch, arguments=arguments, title=title)


def load_network(path: str | Path) -> Loaded:
    """The network of a weights file: any arch in BasicSR's registry, including plugins.

    Raises CheckpointError for a file without a known network, or with one that does not restore images by itself.
    """
    weights = read_weights(path)
    if weights.key == ONNX:
        return Loaded(*load_onnx(weights.path, weights.card), weights)
    section = weights.card.get("network")
    identity = identity_in(weights) if section is None else _described(section, weights)
    if identity is None:
        return Loaded(*_foreign(weights), weights)
    place = weights.path.resolve()
    if identity.refuses:
        raise CheckpointError(f"{place} is {identity}, {identity.refuses}")
    arch = identity.arch if identity.arch in ARCH_REGISTRY else f"{identity.arch}_basicsr"
    if arch not in ARCH_REGISTRY:
        raise CheckpointError(
            f"{place} is a network of type {identity.arch!r}, which is not registered here; install the package that "
            "registers it through the entry point group diffir_sr.plugins, or import that package first"
        )
    try:
        network = ARCH_REGISTRY.get(arch)(**identity.arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"{place}: {identity.arch} cannot be built according to its model card ({error})"
        ) from error
    fit(network, weights, where="weights", strict=True)
    return Loaded(network.eval().requires_grad_(False), identity, weights)


def fit(
    net: nn.Module,
    weights: Weights,
    *,
    where: str,
    strict: bool,
    starting: bool = False,
    from_stage_1: bool = False,
) -> str:
    """Load `weights` into `net` and return a line about what was loaded; raises the errors of `fitting`."""
    tensors = fitting(net, weights, where=where, strict=strict, starting=starting, from_stage_1=from_stage_1)
    net.load_state_dict(tensors, strict=False)
    total = len(net.state_dict())
    kept = f"; {total - len(tensors)} keep their initial values" if len(tensors) < total else ""
    return f"{where}: {len(tensors)} of {total} tensors from {weights.path} [{weights.key or 'bare'}]{kept}"


def fitting(
    net: nn.Module,
    weights: Weights,
    *,
    where: str,
    strict: bool,
    starting: bool = False,
    from_stage_1: bool = False,
) -> dict[str, Tensor]:
    """The tensors of `weights` that `net` loads; CheckpointError if the file does not belong to the network.

    `where` is the option that named the file. Stage, task, scale and sizes of a DiffIR network must match; with
    `from_stage_1`, a stage-2 network loads the body G of a stage-1 file and keeps the rest. `strict=False` allows
    differences outside G, and, where a training is `starting`, those of the same network for another scale.
    """
    wanted = identify(net.state_dict())
    found = identity_in(weights)
    place = f"{where}: {weights.path.resolve()}"
    if wanted is not None and found is None:
        names = ", ".join(list(weights.tensors)[:3])
        family = str(wanted).split()[0]
        raise CheckpointError(f"{place} is not a {family} checkpoint (its tensors: {names}, ...); expected {wanted}")
    partly = starting and not strict
    refusal = None if wanted is None else wanted.refusal(found, starting=from_stage_1, partly=partly)
    if refusal is not None:
        raise CheckpointError(f"{place} {refusal}")
    computed = getattr(net, "computed_tensors", frozenset())  # tensors that the network computes itself
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in computed}
    core_only = wanted is not None and wanted.takes_core_of(found)
    if wanted is not None and core_only:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(wanted.core)}
    own = net.state_dict()
    missing, unexpected, reshaped = _differences(own, tensors)
    fatal = [*missing, *unexpected, *reshaped]
    if wanted is not None and partly and wanted.takes_parts_of(found):
        fatal = []
    elif core_only or not strict:
        fatal = reshaped if wanted is None else [name for name in fatal if name.startswith(wanted.core)]
    if fatal:
        raise CheckpointError(_mismatch(place, fatal, missing, unexpected, reshaped, own, tensors))
    if wanted is None and not strict and not set(own) & set(tensors):
        raise CheckpointError(f"{place}: none of its {len(tensors)} tensors belongs to {type(net).__name__}")
    return {name: tensor for name, tensor in tensors.items() if name in own and name not in reshaped}


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
        ("unknown in the network", [name for name in unexpected if name in fatal]),
        ("with another shape", [shapes(name) for name in reshaped if name in fatal]),
    ]
    differences = [f"{len(names)} {what}, such as {', '.join(names[:3])}" for what, names in parts if names]
    return f"{place} does not fit: {'; '.join(differences)}"


def description(weights: Weights, identity: Identity | None = None) -> str:
    """Several lines about a weights file; raises CheckpointError if its network is unknown.

    Pass `identity` if the file is already identified: identifying it builds networks of other projects.
    """
    identity = identity_of(weights) if identity is None else identity
    count, size, types = _size(weights)
    lines = [
        f"{weights.path}: {identity}",
        *(f"  {name}: {value}" for name, value in identity.facts.items()),
        f"  weights: {_layout(weights)}, {count:,d} numbers ({', '.join(types)}, {size / 2**20:.1f} MiB)",
        *(f"  {name}: {value}" for name, value in identity.arguments.items()),
    ]
    return "\n".join([*lines, *_record(weights.card)])


def facts(weights: Weights) -> dict[str, Any]:
    """The same as values for JSON, with the whole model card; raises CheckpointError if its network is unknown."""
    identity = identity_of(weights)
    count, size, types = _size(weights)
    return {
        "file": str(weights.path),
        "title": str(identity),
        "arch": identity.arch,
        "arguments": as_plain_data(identity.arguments),
        "restores": not identity.refuses,
        "facts": identity.facts,
        "layout": _layout(weights),
        "numbers": count,
        "bytes": size,
        "dtypes": types,
        "card": as_plain_data(dict(weights.card)),
    }


def _size(weights: Weights) -> tuple[int, int, list[str]]:
    """Count, bytes and types of the trained parameters."""
    once = [tensor for name, tensor in weights.tensors.items() if not _repeats(name)]
    count = sum(tensor.numel() for tensor in once)
    size = sum(tensor.numel() * tensor.element_size() for tensor in once)
    return count, size, sorted({str(tensor.dtype).removeprefix("torch.") for tensor in once})


def _repeats(name: str) -> bool:
    """Whether a tensor is the second copy in the diffusion, or a constant of the schedule, so not a parameter."""
    return name.startswith("diffusion.") or name in STORED_CONSTANTS


def _layout(weights: Weights) -> str:
    return weights.key or ("safetensors" if weights.path.suffix == ".safetensors" else "bare state dict")


def _record(card: Mapping[str, Any]) -> list[str]:
    """The training record of the model card, one line per entry."""
    if not card:
        return ["  training: not recorded in this file"]
    lines = []
    for name, value in card.items():
        if name in ("stage", "task", "scale", "network", "export"):
            continue
        text = "; ".join(_entry(key, entry) for key, entry in value.items()) if isinstance(value, dict) else str(value)
        lines.append(f"  {name}: {text or 'none'}")
    return lines


def _entry(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key}: " + ", ".join(f"{name} {number}" for name, number in value.items())
    return f"{key} {value}"
