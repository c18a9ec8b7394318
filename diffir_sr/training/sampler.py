"""Which sample comes when: a function of seed, epoch and position, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler

from diffir_sr.data.draws import Curriculum, Draw


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
