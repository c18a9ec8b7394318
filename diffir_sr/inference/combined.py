"""Several weights files at once: mixed into one network, or one network after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffir_sr.checkpoints import load_network
from diffir_sr.describe import description
from diffir_sr.diffusion.noise import NamedNoise, Noise
from diffir_sr.errors import CheckpointError, InputError, OptionError
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


# Networks out of weights files, alone or mixed: the dial between faithful and sharp.


def interpolated(first: Path, second: Path, share: float) -> tuple[nn.Module, str]:
    """The network whose weights are (1 - share) of `first` and share of `second`, which must be of one make.

    Interpolating the weights of a network and of the same one fine-tuned with a discriminator trades fidelity for
    sharpness without steps (deep network interpolation, Wang et al. 2019).
    """
    if not 0 <= share <= 1:
        raise InputError(f"blend: expected a share from 0 ({first.name} alone) to 1 ({second.name} alone), got {share}")
    one, two = load_network(first), load_network(second)
    shapes = [[(name, weight.shape) for name, weight in net.network.named_parameters()] for net in (one, two)]
    makes = [(net.identity.arch, net.identity.arguments) for net in (one, two)]
    if makes[0] != makes[1] or shapes[0] != shapes[1]:
        raise CheckpointError(
            f"blend: {first} is {one.identity} and {second} is {two.identity}; only weights of one network can "
            "be mixed, such as a stage 2 and the GAN training that started from it"
        )
    with torch.no_grad():
        for weight, towards in zip(one.network.parameters(), two.network.parameters(), strict=True):
            weight.lerp_(towards, share)
    return one.network, f"{description(one.weights, one.identity)}\n  blended: {share:g} of {second}"
