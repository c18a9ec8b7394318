"""Which sample comes when: a function of seed, epoch and position, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


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
