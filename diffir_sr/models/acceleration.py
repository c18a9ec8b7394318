"""How a training step is computed: choices of time and memory that change no number beyond rounding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("basicsr")


def accelerate(net: nn.Module, train: Mapping[str, Any], device: torch.device) -> None:
    """Let the parts of `net` that can do so be computed as the section `train` says: `form`, `checkpointing`."""
    form = train.get("form", "auto")
    fast = form == "fast" or (form == "auto" and device.type == "cpu")
    parts: list[Any] = [part for part in net.modules() if hasattr(part, "fast_training")]
    for part in parts:
        part.fast_training = fast
    if parts:
        logger.info(f"Training form: {'fast' if fast else 'plain'}")
    levels: list[Any] = [part for part in net.modules() if hasattr(part, "checkpointing")]
    for level in levels:
        level.checkpointing = bool(train.get("checkpointing"))


def in_precision(call: Callable[[], Any], autocast: str, device: torch.device) -> Any:
    """What `call` returns when it runs under `train.autocast`; tensors of half precision come back as float32."""
    if autocast == "none":
        return call()
    with torch.autocast(device.type, dtype=getattr(torch, autocast)):
        return _in_float32(call())


def _in_float32(made: Any) -> Any:
    if isinstance(made, list | tuple):
        return type(made)(_in_float32(one) for one in made)
    return made.float() if torch.is_tensor(made) and made.is_floating_point() else made
