"""Numbered draws of training datasets: which sample comes when, and the random generator of each.

Both are functions of seed, epoch and position, so that a sample depends on nothing else and a resumed run continues
where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset, Sampler

from diffir_sr.errors import InputError
from diffir_sr.option_types import Positive, Section, Seed


class Draw(NamedTuple):
    """Number of the draw, and the side of its ground-truth patch in pixels if it changes during training."""

    number: int
    gt_size: int | None = None


class DrawnOptions(Section):
    """Training datasets: all random choices are determined by the seed and the draw number."""

    seed: Seed | None = Field(None, description="Seed of all random choices; by default manual_seed.")
    source_weights: list[Positive] | None = Field(
        None, description="Sampling weights for several roots; by default proportional to their sizes."
    )


class DrawnDataset(Dataset[dict[str, Any]]):
    """A dataset whose random choices are a function of only (`seed`, draw number).

    The index given to [] is the draw number. With a sampler that never repeats one during a training, which sets
    `draws_are_unique`, samples do not depend on workers, ranks or resuming.
    """

    OPTIONS: ClassVar[Any] = DrawnOptions
    NEEDED_IN_TRAINING: ClassVar[tuple[str, ...]] = ()  # options of this section required for training

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Raise InputError unless the data of a section can be used; building one only reads headers and lists."""
        cls(opt)

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt  # BasicSR's models read the name of a dataset from it
        self.seed = int(opt.get("seed") or 0)
        # Otherwise two passes would show the same crops, so a value that differs between passes and workers is
        # mixed in.
        self.draws_are_unique = False
        self._visits = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each image once; without this, Python would iterate over draws endlessly."""
        return (self[index] for index in range(len(self)))

    def random(self, draw: int) -> np.random.Generator:
        """The generator of a draw."""
        if self.draws_are_unique:
            return np.random.default_rng((self.seed, draw))
        self._visits += 1
        return np.random.default_rng((self.seed, draw, torch.initial_seed() % 2**63, self._visits))


class Mixture:
    """Maps draws to sources and images, with given shares of the draws.

    In every pass of `len` draws, each source has its share to within one draw, and its images are used equally often: a
    source with a small share shows other images in the next pass.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float] | None = None) -> None:
        """`counts`: images of each source; `weights`: shares of the draws, by default the counts."""
        if weights is not None and len(weights) != len(counts):
            raise InputError(f"source_weights: {len(weights)} numbers for {len(counts)} sources; give one per root")
        shares = np.asarray(counts if weights is None else weights, float)
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise InputError(f"source_weights: expected numbers above 0, got {list(weights or counts)}")
        self.counts = list(counts)
        self.slots = _apportioned(sum(counts), shares / shares.sum())
        self._ends = np.cumsum(self.slots)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, draw: int) -> tuple[int, int]:
        """(source, image index) of a draw."""
        epoch, slot = divmod(draw, len(self))
        source = int(np.searchsorted(self._ends, slot, side="right"))
        slots = self.slots[source]
        within = slot - (int(self._ends[source]) - slots)
        return source, (epoch * slots + within) % self.counts[source]


def _apportioned(total: int, shares: np.ndarray) -> list[int]:
    """Distribute `total` by the largest remainder method, with at least one each."""
    exact = shares * max(total, len(shares))
    slots = np.floor(exact).astype(int)
    missing = max(total, len(shares)) - int(slots.sum())
    slots[np.argsort(slots - exact, kind="stable")[:missing]] += 1
    while (slots == 0).any():
        slots[slots.argmax()] -= 1
        slots[slots.argmin()] += 1
    return [int(count) for count in slots]


# Progressive training: patches that grow while batches shrink (Restormer's scheme, used for motion deblurring).


@dataclass(frozen=True)
class Phase:
    """Iterations `first` to `last` (from 1) train with `batch` patches per process of `gt_size` pixels."""

    first: int
    last: int | None  # the last phase has no end
    gt_size: int
    batch: int


@dataclass(frozen=True)
class Curriculum:
    """Phases in order, without gaps."""

    phases: tuple[Phase, ...]

    def at(self, iteration: int) -> Phase:
        """The phase of an iteration (the first is 1)."""
        return next(phase for phase in self.phases if phase.last is None or iteration <= phase.last)

    def drawn_before(self, iteration: int) -> int:
        """Number of samples that a process has used before an iteration, where a resumed training continues."""
        done = iteration - 1
        return sum(
            phase.batch * (min(done, done if phase.last is None else phase.last) - phase.first + 1)
            for phase in self.phases
            if phase.first <= done
        )


def curriculum_from_options(opt: Mapping[str, Any]) -> Curriculum | None:
    """The phases from the published lists `iters`, `gt_sizes`, `mini_batch_sizes` of a dataset section, or None.

    The published code crops smaller patches from a batch that was read in full; here only the required patches are
    read, each at its own position.
    """
    names = ("iters", "gt_sizes", "mini_batch_sizes")
    lists: list[Sequence[int]] = [opt.get(name) or [] for name in names]
    if not any(lists):
        return None
    if len({len(values) for values in lists}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in zip(names, lists, strict=True))
        raise InputError(f"progressive training needs three lists of the same length: {lengths}")
    ends = list(accumulate(int(value) for value in lists[0]))
    phases = tuple(
        Phase(end - int(count) + 1, end if end != ends[-1] else None, int(size), int(batch))
        for end, count, size, batch in zip(ends, *lists, strict=True)
    )
    _check(phases, opt)
    return Curriculum(phases)


def _check(phases: Sequence[Phase], opt: Mapping[str, Any]) -> None:
    largest, batch = max(phase.gt_size for phase in phases), max(phase.batch for phase in phases)
    if largest > int(opt["gt_size"]):
        raise InputError(f"gt_sizes: {largest} is larger than gt_size, which is {opt['gt_size']}; raise gt_size")
    if batch > int(opt.get("batch_size_per_gpu") or batch):
        raise InputError(
            f"mini_batch_sizes: {batch} is larger than batch_size_per_gpu, which is {opt['batch_size_per_gpu']}"
        )


class DrawSampler(Sampler[int]):
    """Shuffled passes over an enlarged dataset, shared among ranks.

    For datasets with the attribute `draws_are_unique` it yields draw numbers that never repeat during a training
    (`draw % len(dataset)` is the image, the draw itself seeds crop and flips); for others plain indices.
    """

    def __init__(self, dataset: Any, *, ratio: int, rank: int, world_size: int, seed: int) -> None:
        self.size = len(dataset)
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.per_rank = math.ceil(self.size * ratio / world_size)
        self.unique = hasattr(dataset, "draws_are_unique")
        if self.unique:
            dataset.draws_are_unique = True
        self.epoch = 0
        self.skip = 0

    def start_at(self, epoch: int, *, skip: int = 0) -> None:
        """Let the next pass be that of `epoch`, without its first `skip` samples."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[int]:
        total = self.per_rank * self.world_size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(total, generator=generator)[self.rank :: self.world_size][self.skip :]
        for position in order.tolist():
            # A whole number of datasets lies between two epochs, so that the image is position % size in each.
            yield (
                self.epoch * math.ceil(total / self.size) * self.size + position
                if self.unique
                else position % self.size
            )

    def __len__(self) -> int:
        return self.per_rank - self.skip


class GrowingBatchSampler(Sampler[list[Draw]]):
    """Batches of a progressive training without end: size and patch by iteration, draws as DrawSampler has them.

    A batch may take the last draws of one epoch and the first of the next; none is left out.
    """

    def __init__(self, draws: DrawSampler, curriculum: Curriculum, *, devices: int = 1) -> None:
        self.draws, self.curriculum, self.devices = draws, curriculum, devices
        self.done = 0

    def start_after(self, done: int) -> None:
        """Let the next pass begin with the batch after the `done`-th."""
        self.done = done

    def epoch_of(self, iteration: int) -> int:
        """The epoch in which the batch of an iteration begins."""
        return self._used_before(iteration) // self.draws.per_rank

    def _used_before(self, iteration: int) -> int:
        return self.curriculum.drawn_before(iteration) * self.devices

    def _draws_from(self, epoch: int, skip: int) -> Iterator[int]:
        while True:
            self.draws.start_at(epoch, skip=skip)
            yield from self.draws
            epoch, skip = epoch + 1, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        iteration = self.done + 1
        supply = self._draws_from(*divmod(self._used_before(iteration), self.draws.per_rank))
        while True:
            phase = self.curriculum.at(iteration)
            yield [Draw(number, phase.gt_size) for number in islice(supply, phase.batch * self.devices)]
            iteration += 1
