"""What a family of restoring networks promises, and the record by which the rest of the package knows it."""

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
    """A network that restores pictures; validation, test, `diffir restore` and `evaluate` know nothing else of it.

    `scale` is output size over input size, `multiple_of` what both input sides must divide by (pixels), `conditions`
    the names of what `restore` needs beside the degraded picture: "mask" (B, 1, H, W), 1 where pixels are missing;
    "gt" (B, 3, H * scale, W * scale).
    """

    scale: int
    multiple_of: int
    conditions: frozenset[str]

    def restore(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """(B, 3, H * scale, W * scale) of `lq` (B, 3, H, W) in [0, 1], its sides multiples of `multiple_of`.

        Owns the whole loop, of however many steps. Missing pixels are 0 in `lq`.
        """
        ...


@runtime_checkable
class WalksInSteps(Restores, Protocol):
    """A network that restores by steps of a sampler, of which the user may choose number and kind."""

    sampling: Sampling  # settable; OptionError for what the network cannot do

    def restore_in_one_step(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """`restore` with a single step, for which as much memory is needed as for many."""
        ...


@runtime_checkable
class BeginsWithGuess(Restores, Protocol):
    """A network whose samples of one picture begin with the same first guess, in which noise has no part."""

    def first_guess(self, lq: Tensor) -> Tensor:
        """(B, 3, H * scale, W * scale), in the range and type that the network itself wants back."""
        ...

    def restore(self, lq: Tensor, *, noise: Noise, first: Tensor | None = None, **conditions: Any) -> Tensor:
        """See `Restores`; `first` is the first guess where it is known already."""
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A network that may be asked to restore otherwise, in ways of its own."""

    def adjust(self, **changes: Any) -> None:
        """Restore so from now on; None changes nothing. OptionError for what the network cannot do."""
        ...

    def settings(self) -> dict[str, Any]:
        """What decides results, as values for records."""
        ...


@runtime_checkable
class HasLeastSize(Protocol):
    """A network that cannot restore pictures of fewer pixels than it says."""

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for a degraded picture of a size that is too small."""
        ...


class Engine(Protocol):
    """Restores pictures of any size with one network, in memory that is planned."""

    device: torch.device
    dtype: torch.dtype

    @property
    def network(self) -> Restores:
        """What the engine runs."""
        ...

    def __call__(self, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
        """(B, 3, H * scale, W * scale), float32 on the CPU, not clipped, of `lq` (B, 3, H, W) in [0, 1]."""
        ...

    def plan(self, height: int, width: int) -> Any:
        """How a picture of this size is restored, as text and with `narrowed`; InputError if it cannot be."""
        ...


@dataclass(frozen=True)
class Identity:
    """What a weights file is."""

    arch: str  # the name that BasicSR's registry has for it
    arguments: dict[str, Any]  # of its constructor
    title: str  # for people: "DiffIR stage 2, sr x4, dim 64"
    refuses: str = ""  # why it cannot restore pictures, or "" if it can
    facts: dict[str, str] = field(default_factory=dict)  # lines of `diffir describe`
    card: dict[str, Any] = field(default_factory=dict)  # entries of the model card that only this family has
    # Prefix of the tensors with which a training of the family may start while others keep their start values.
    core: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.title

    def refusal(self, found: Identity | None, *, starting: bool) -> str | None:
        """Why weights that are `found` do not fit a network that is this one; None if they do.

        `starting`: a training begins, which may take a part of another network (see `core`).
        """
        if found is None or found.arch != self.arch:
            return f"is {found or 'of an unknown kind'}; expected {self}"
        return self.differing(found)

    def differing(self, found: Identity, *, but: frozenset[str] = frozenset()) -> str | None:
        """The arguments that two networks of one arch do not share, as a sentence; None if there are none."""
        shared = (set(self.arguments) & set(found.arguments)) - but
        differing = [
            f"{name}: {found.arguments[name]} in the file, {self.arguments[name]} in the options"
            for name in sorted(shared)
            if found.arguments[name] != self.arguments[name]
        ]
        return f"is another network than the options describe: {'; '.join(differing)}" if differing else None

    def takes_core_of(self, found: Identity | None) -> bool:
        """Whether a training of this network may start with the core of `found`."""
        return False


@dataclass(frozen=True)
class Family:
    """One family of networks. Classes and functions are named as "module:name" and imported when they are needed.

    `identify(tensors, card)` gives the Identity of weights without a network section (foreign files), or None; it
    raises CheckpointError for weights of the family that are damaged. `engines` maps the exact class of a network to
    an engine that is faster than the plain one; derived classes do not get it, because they may restore otherwise.
    `load(tensors, card)` is for families that build networks by themselves; it is asked after every `identify`.
    `stand_ins` maps classes and functions of other packages to what declares their options (see `option_types`).
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
