"""Several weights files: interpolated into one network, or applied one after the other as a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffir_sr.checkpoints import description, load_network
from diffir_sr.diffusion.noise import NamedNoise, Noise
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.families.base import Engine, Restores
from diffir_sr.inference.plain import engine_for


class Cascade(nn.ModuleList):
    """The networks of a cascade, in order."""


def engine_of(network: nn.Module, **how: Any) -> Engine:
    """The engine of a network (`inference.plain.engine_for`), or of all networks of a cascade."""
    if not isinstance(network, Cascade):
        return engine_for(network, **how)
    return CascadeEngine([engine_for(one, **how) for one in network])


@dataclass(frozen=True)
class CascadePlan:
    """The plan of each network for its image."""

    plans: Sequence[Any]

    @property
    def narrowed(self) -> bool:
        return any(plan.narrowed for plan in self.plans)

    def __str__(self) -> str:
        return ", then ".join(str(plan) for plan in self.plans)


class CascadeEngine:
    """Restores with one engine after the other; it is its own network. Intermediate results are clipped to [0, 1].

    Only the first network may have conditions besides the image; every network has its own noise.
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
                raise OptionError(f"network {number} of the cascade needs {needed}, which only the first one receives")

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


# Networks from weights files, single or interpolated: a trade-off between fidelity and sharpness.


def interpolated(first: Path, second: Path, share: float) -> tuple[nn.Module, str]:
    """The network with weights (1 - share) * `first` + share * `second`, which must have the same architecture.

    Interpolating the weights of a network and of the same network fine-tuned with a discriminator trades fidelity for
    sharpness continuously (deep network interpolation, Wang et al. 2019).
    """
    if not 0 <= share <= 1:
        raise InputError(f"blend: expected a share from 0 (only {first.name}) to 1 (only {second.name}), got {share}")
    one, two = load_network(first), load_network(second)
    shapes = [[(name, weight.shape) for name, weight in net.network.named_parameters()] for net in (one, two)]
    makes = [(net.identity.arch, net.identity.arguments) for net in (one, two)]
    if makes[0] != makes[1] or shapes[0] != shapes[1]:
        raise CheckpointError(
            f"blend: {first} is {one.identity} and {second} is {two.identity}; only weights of the same network can "
            "be blended, such as a stage 2 and the GAN training that started from it"
        )
    with torch.no_grad():
        for weight, towards in zip(one.network.parameters(), two.network.parameters(), strict=True):
            weight.lerp_(towards, share)
    return one.network, f"{description(one.weights, one.identity)}\n  blended: {share:g} of {second}"
