"""How a training step is computed: choices of time and memory that change no number beyond rounding."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("basicsr")


def choose_form(net: nn.Module, form: str, device: torch.device) -> None:
    """Let the parts of `net` that have a fast training form use it, or not: `train.form` auto, plain or fast."""
    fast = form == "fast" or (form == "auto" and device.type == "cpu")
    parts: list[Any] = [part for part in net.modules() if hasattr(part, "fast_training")]
    for part in parts:
        part.fast_training = fast
    if parts:
        logger.info(f"Training form: {'fast' if fast else 'plain'}")
