"""How a training step is computed: choices of time and memory that change no number beyond rounding."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from diffir_sr.option_types import Section

logger = logging.getLogger("basicsr")


class Acceleration(Section):
    """How a training step is computed."""

    form: Literal["auto", "plain", "fast"] = Field(
        "auto",
        description="How DiffIR's body is computed in training: plain, as it is defined; fast, in fewer passes over "
        "memory, with the same numbers to rounding; auto is fast on CPUs and plain elsewhere.",
    )
    autocast: Literal["none", "bfloat16"] = Field(
        "none",
        description="bfloat16 computes convolutions and matrix products of network_g in half precision; weights, norm "
        "statistics, diffusion and losses stay in float32.",
    )
    checkpointing: bool = Field(
        False,
        description="Whether DiffIR's blocks are computed again in the backward pass instead of being kept: the same "
        "numbers in a fraction of the memory, and about a third more time.",
    )


def accelerate(net: nn.Module, options: Acceleration, device: torch.device) -> None:
    """Let the parts of `net` that can do so be computed as `form` and `checkpointing` say."""
    fast = options.form == "fast" or (options.form == "auto" and device.type == "cpu")
    parts: list[Any] = [part for part in net.modules() if hasattr(part, "fast_training")]
    for part in parts:
        part.fast_training = fast
    if parts:
        logger.info(f"Training form: {'fast' if fast else 'plain'}")
    levels: list[Any] = [part for part in net.modules() if hasattr(part, "checkpointing")]
    for level in levels:
        level.checkpointing = options.checkpointing


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
