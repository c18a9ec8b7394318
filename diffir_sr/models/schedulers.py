"""Learning rates over iterations: BasicSR's schedulers by name, one more, and the two-phase law of warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffir_sr.errors import OptionError


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
