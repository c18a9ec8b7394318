"""Networks one after the other: each restores what the one before made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffir_sr.diffusion.noise import NamedNoise, Noise
from diffir_sr.errors import OptionError
from diffir_sr.families.base import Engine, Restores
from diffir_sr.inference.plain import engine_for


class Cascade(nn.ModuleList):
    """The networks of a cascade, the first one first."""


def engine_of(network: nn.Module, **how: Any) -> Engine:
    """The engine of a network (`inference.plain.engine_for`), or of all that are in a cascade."""
    if not isinstance(network, Cascade):
        return engine_for(network, **how)
    return CascadeEngine([engine_for(one, **how) for one in network])


@dataclass(frozen=True)
class CascadePlan:
    """How each network goes about its picture."""

    plans: Sequence[Any]

    @property
    def narrowed(self) -> bool:
        return any(plan.narrowed for plan in self.plans)

    def __str__(self) -> str:
        return ", then ".join(str(plan) for plan in self.plans)


class CascadeEngine:
    """Restores with one engine after the other; it is its own network. What lies between is clipped to [0, 1].

    Only the first network may need something beside the picture; every network has noise of its own.
    """

    multiple_of = 1  # every engine pads for itself

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self.device: torch.device = engines[0].device
        self.dtype: torch.dtype = engines[0].dtype
        self.conditions = engines[0].network.conditions
        self.scale = 1
        for number, engine in enumerate(engines, start=1):
            self.scale *= engine.network.scale
            if number > 1 and engine.network.conditions:
                needed = ", ".join(sorted(engine.network.conditions))
                raise OptionError(f"network {number} of the cascade needs {needed}, which only the first is given")

    @property
    def network(self) -> Restores:
        return self

    def restore(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """See `families.base.Restores`."""
        return self(lq, noise=noise, **conditions)

    def __call__(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        first, *others = self._engines
        made = first(lq, noise=noise, **conditions)
        for number, engine in enumerate(others, start=2):
            made = engine(made.clamp(0, 1), noise=NamedNoise(noise, f"network {number}"))
        return made

    def plan(self, height: int, width: int) -> CascadePlan:
        """See `families.base.Engine`."""
        plans = []
        for engine in self._engines:
            plans.append(engine.plan(height, width))
            height, width = height * engine.network.scale, width * engine.network.scale
        return CascadePlan(plans)
