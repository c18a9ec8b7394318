"""Text descriptions of weights files: network, size, arguments, training record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffir_sr.cards import plain
from diffir_sr.checkpoints import Weights, identity_of
from diffir_sr.diffusion.schedule import STORED_CONSTANTS
from diffir_sr.families.base import Identity


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
        "arguments": plain(identity.arguments),
        "restores": not identity.refuses,
        "facts": identity.facts,
        "layout": _layout(weights),
        "numbers": count,
        "bytes": size,
        "dtypes": types,
        "card": plain(dict(weights.card)),
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
