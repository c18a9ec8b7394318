"""How weights are moved: learning rates over iterations, and the form and precision of a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffir_sr.errors import OptionError
from diffir_sr.option_types import Section


class CosineAnnealingRestartCyclicLR(LRScheduler):
    """Cosine cycles, each with its own length, start weight and floor (the published deblurring schedule).

    After iteration k of a cycle of length n: floor + (base * weight - floor) / 2 * (1 + cos(pi k / n)). A floor
    above the start makes the rate rise, as the first published cycle does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        periods: Sequence[int],
        restart_weights: Sequence[float] = (1,),
        eta_mins: Sequence[float] = (0,),
        last_epoch: int = -1,
    ) -> None:
        if not len(periods) == len(restart_weights) == len(eta_mins):
            raise OptionError(
                "train.scheduler: periods, restart_weights and eta_mins need equal lengths, got "
                f"{len(periods)}, {len(restart_weights)} and {len(eta_mins)}"
            )
        self.periods = list(periods)
        self.restart_weights = list(restart_weights)
        self.eta_mins = list(eta_mins)
        self.ends = list(accumulate(periods))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        # Beyond the last cycle its end value stays.
        now = min(self.last_epoch, self.ends[-1])
        cycle = next(index for index, end in enumerate(self.ends) if now <= end)
        done = (now - (self.ends[cycle] - self.periods[cycle])) / self.periods[cycle]
        floor, weight = self.eta_mins[cycle], self.restart_weights[cycle]
        return [floor + (base * weight - floor) / 2 * (1 + math.cos(math.pi * done)) for base in self.base_lrs]


SCHEDULERS: dict[str, Any] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
    "CosineAnnealingRestartCyclicLR": CosineAnnealingRestartCyclicLR,
}


def build_scheduler(optimizer: Optimizer, opt: Mapping[str, Any]) -> LRScheduler:
    """The scheduler that a `train.scheduler` section describes; `opt` is not changed."""
    arguments = {name: value for name, value in opt.items() if name != "type"}
    if opt["type"] not in SCHEDULERS:
        raise OptionError(f"train.scheduler.type: unknown {opt['type']!r}; known: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[opt["type"]](optimizer, **arguments)


def step_decay_rate(base: float, *, gamma: float, every: int, iteration: int) -> float:
    """base * gamma ** (iteration // every): the law of lr_encoder / lr_sr in the published warm-up recipes."""
    return base * gamma ** (max(iteration, 0) // every)


# How a training step is computed: choices of time and memory that change no number beyond rounding.


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
