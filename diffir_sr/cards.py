"""Weights as safetensors with an embedded model card: the network, its training, and its licence."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffir_sr.errors import CheckpointError

SUFFIX = ".safetensors"
_ENTRY = "diffir_card"  # key in the metadata of the file, which holds only strings


def write_card_file(tensors: Mapping[str, Tensor], card: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write tensors and their card."""
    # Stage-2 networks hold some tensors under two names, and the format does not allow sharing.
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    data = save(apart, metadata={"format": "pt", _ENTRY: json.dumps(dict(card))})
    Path(path).write_bytes(_in_order(data))


def _in_order(data: bytes) -> bytes:
    """The same file with the entries of its metadata sorted; the library writes them in random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def read_card_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors on the CPU and the card ({} if there is none); raises CheckpointError for a damaged file."""
    tensors, card, _ = read_stored(path)
    return tensors, card


def read_stored(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors on the CPU, card, and the other entries of the metadata; raises CheckpointError for a damaged file.

    In a file written by `safetensors.torch.save_model`, the other entries map each omitted tensor to its stored name.
    """
    try:
        path.open("rb").close()  # for a file without read permission, safetensors reports that it does not exist
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.resolve()}: not a readable safetensors file ({str(error).splitlines()[0]}); copy or fetch it again"
        ) from error
    return tensors, _card(metadata.pop(_ENTRY, "{}"), path), metadata


def _card(text: str, path: Path) -> dict[str, Any]:
    remedy = "write the card again, or remove it from the metadata of the file"
    try:
        card = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path.resolve()}: its model card ({_ENTRY}) is not JSON ({error}); {remedy}") from error
    if not isinstance(card, dict):
        raise CheckpointError(
            f"{path.resolve()}: its model card ({_ENTRY}) is a JSON {type(card).__name__}, not an object; {remedy}"
        )
    return card


def training_card(
    opt: Mapping[str, Any], *, weights: str, iteration: int, metrics: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """The card of a network saved by a training with these options."""
    train = (opt.get("datasets") or {}).get("train") or {}
    network = opt.get("network_g") or {}
    data = {key: train[key] for key in ("name", "type", "dataroot_gt", "dataroot_lq") if train.get(key)}
    return {
        "name": opt["name"],
        "model": opt["model_type"],
        "network": dict(network),
        "scale": opt.get("scale"),
        "weights": weights,
        "iterations": iteration,
        "data": data,
        "metrics": dict(metrics),
        "licence": opt.get("licence") or "not stated",
        "made with": f"diffir_sr {version}, torch {torch.__version__}",
    }


def plain(value: Any) -> Any:
    """Values as YAML and JSON support them: anything that is neither text nor a number becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
