"""The protocols of restoration networks and engines, and the record that describes a family of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffir_sr.diffusion.noise import Noise
from diffir_sr.diffusion.sampling import Sampling

Tensors = Mapping[str, Tensor]


@runtime_checkable
class Restores(Protocol):
    """A restoration network; validation, testing and `diffir restore` use only this interface.

    `scale` is the ratio of output size to input size, `multiple_of` a divisor required of both input sides (pixels),
    and `conditions` the names of the inputs of `restore` besides the degraded image: "mask" (B, 1, H, W), 1 for missing
    pixels; "gt" (B, 3, H * scale, W * scale).
    """

    scale: int
    multiple_of: int
    conditions: frozenset[str]

    def restore(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """Restore `lq` (B, 3, H, W) in [0, 1], with sides that are multiples of `multiple_of`.

        Returns (B, 3, H * scale, W * scale). Runs the whole sampling loop. Missing pixels are 0 in `lq`.
        """
        ...


@runtime_checkable
class WalksInSteps(Restores, Protocol):
    """A network that restores with a sampler, whose kind and number of steps are configurable."""

    sampling: Sampling  # settable; OptionError for unsupported values

    def restore_in_one_step(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """`restore` with a single step, which needs as much memory as many steps."""
        ...


@runtime_checkable
class BeginsWithGuess(Restores, Protocol):
    """A network whose samples of an image start from the same first guess, which does not depend on noise."""

    def first_guess(self, lq: Tensor) -> Tensor:
        """The first guess (B, 3, H * scale, W * scale), in the range and type that `restore` expects."""
        ...

    def restore(self, lq: Tensor, *, noise: Noise, first: Tensor | None = None, **conditions: Any) -> Tensor:
        """See `Restores`; `first` is the first guess if it is already known."""
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A network with settings of its own that change how it restores."""

    def adjust(self, **changes: Any) -> None:
        """Set how to restore from now on; None changes nothing. OptionError for unsupported values."""
        ...

    def settings(self) -> dict[str, Any]:
        """The settings that determine results, as values for records."""
        ...


@runtime_checkable
class HasLeastSize(Protocol):
    """A network with a minimum image size."""

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for a degraded image that is too small."""
        ...


class Engine(Protocol):
    """Restores images of any size with one network, with planned memory."""

    device: torch.device
    dtype: torch.dtype

    @property
    def network(self) -> Restores:
        """The network that the engine runs."""
        ...

    def __call__(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """Restore `lq` (B, 3, H, W) in [0, 1] to (B, 3, H * scale, W * scale), float32 on the CPU, not clipped."""
        ...

    def plan(self, height: int, width: int) -> Any:
        """The plan for an image of this size, with a text form and `narrowed`; InputError if it cannot be restored."""
        ...


@dataclass(frozen=True)
class Identity:
    """The identity of the network in a weights file."""

    arch: str  # name in BasicSR's registry
    arguments: dict[str, Any]  # of the constructor
    title: str  # readable: "DiffIR stage 2, sr x4, dim 64"
    refuses: str = ""  # why it cannot restore images, or ""
    facts: dict[str, str] = field(default_factory=dict)  # lines of `diffir describe`
    card: dict[str, Any] = field(default_factory=dict)  # entries of the model card specific to this family
    # Prefix of the tensors with which a training may start while the others keep their initial values.
    core: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.title

    def refusal(self, found: Identity | None, *, starting: bool, partly: bool) -> str | None:
        """Why weights with the identity `found` do not fit this network; None if they do.

        `starting`: whether a training begins, which may load part of another network (see `core`). `partly`: whether
        it may begin with what fits (see `takes_parts_of`).
        """
        if found is None or found.arch != self.arch:
            return f"is {found or 'of an unknown kind'}; expected {self}"
        return self.differing(found)

    def differing(self, found: Identity, *, but: frozenset[str] = frozenset()) -> str | None:
        """The differing arguments of two networks of the same arch, as a sentence; None if there are none."""
        shared = (set(self.arguments) & set(found.arguments)) - but
        differing = [
            f"{name}: {found.arguments[name]} in the file, {self.arguments[name]} in the options"
            for name in sorted(shared)
            if found.arguments[name] != self.arguments[name]
        ]
        return f"differs from the network in the options: {'; '.join(differing)}" if differing else None

    def takes_core_of(self, found: Identity | None) -> bool:
        """Whether a training of this network may start with the core of `found`."""
        return False

    def takes_parts_of(self, found: Identity | None) -> bool:
        """Whether a training of this network may begin with those tensors of `found` that fit."""
        return False


@dataclass(frozen=True)
class Family:
    """One family of networks. Classes and functions are named "module:name" and imported on first use.

    `identify(tensors, card)` returns the Identity of weights without a network section (foreign files), or None; it
    raises CheckpointError for damaged weights of the family. `engines` maps the exact class of a network to a faster
    engine than the plain one; derived classes do not get it, because they may restore differently. `load(tensors,
    card)` is for families that build networks themselves; it is tried after every `identify`. `stand_ins` maps classes
    and functions of other packages to substitutes that declare their options (see `option_types`).
    """

    name: str
    archs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    identify: Callable[[Tensors, Mapping[str, Any]], Identity | None] | None = None
    engines: Mapping[str, str] = field(default_factory=dict)
    load: Callable[[Tensors, Mapping[str, Any]], tuple[nn.Module, Identity] | None] | None = None
    stand_ins: Mapping[str, str] = field(default_factory=dict)
