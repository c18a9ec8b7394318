"""What a weights file is, in words: network, size, arguments, training record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffir_sr.checkpoints import Weights, identity_of
from diffir_sr.families.base import Identity


def description(weights: Weights, identity: Identity | None = None) -> str:
    """Several lines about a weights file; raises CheckpointError for one of no known network.

    `identity` is what the file is, if that is known already: finding out builds networks of other projects.
    """
    identity = identity_of(weights) if identity is None else identity
    once = [tensor for name, tensor in weights.tensors.items() if not name.startswith("diffusion.")]  # no second copies
    count = sum(tensor.numel() for tensor in once)
    size = sum(tensor.numel() * tensor.element_size() for tensor in once)
    types = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in once}))
    lines = [
        f"{weights.path}: {identity}",
        *(f"  {name}: {value}" for name, value in identity.facts.items()),
        f"  weights: {_layout(weights)}, {count:,d} numbers ({types}, {size / 2**20:.1f} MiB)",
        *(f"  {name}: {value}" for name, value in identity.arguments.items()),
    ]
    return "\n".join([*lines, *_record(weights.card)])


def _layout(weights: Weights) -> str:
    return weights.key or ("safetensors" if weights.path.suffix == ".safetensors" else "bare state dict")


def _record(card: Mapping[str, Any]) -> list[str]:
    """The training record of the model card, one line per entry."""
    if not card:
        return ["  training: not recorded in this file"]
    lines = []
    for name, value in card.items():
        if name in ("stage", "task", "scale", "network"):
            continue
        text = "; ".join(_entry(key, entry) for key, entry in value.items()) if isinstance(value, dict) else str(value)
        lines.append(f"  {name}: {text or 'none'}")
    return lines


def _entry(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key}: " + ", ".join(f"{name} {number}" for name, number in value.items())
    return f"{key} {value}"
