"""Batches on their way from the processes that load data to the one that trains, in shared memory that is used again.

torch makes a new shared file for every tensor of every batch, hands it over in a conversation through a socket, and
touches each of its pages for the first time. For patches of uint8, that takes several times as long as reading, cutting
and turning them. Here every worker has a few slots of shared memory, each handed over once.
"""

from __future__ import annotations

import multiprocessing
import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

_ALIGNED = 64  # bytes; the first of a slot says whether it is in use


class _Part(NamedTuple):
    """Where a tensor of a batch lies in its slot, in bytes, and what it is."""

    first: int
    last: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def of(self, slot: Tensor) -> Tensor:
        return slot[self.first : self.last].view(self.dtype).view(self.shape)


class SharedBatches:
    """A `collate_fn` for DataLoader: the batches of torch's `default_collate`, which arrive faster from workers.

    The tensors of a batch of dictionaries are parts of one slot, which its worker fills again when the last of them is
    gone. There are as many slots as batches that exist at the same time, so none is ever waited for.
    """

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self._own: list[Tensor] = []  # in a worker: its slots
        self._of_workers: dict[int, dict[int, Tensor]] = {}  # in the other process: slots by worker and number
        _here[self.name] = self

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_own": [], "_of_workers": {}}

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch of samples; in a worker, an object that arrives as the batch."""
        if get_worker_info() is None or not isinstance(samples[0], dict):
            return default_collate(list(samples))
        batch: dict[str, Any] = {}
        tensors: dict[str, list[Tensor]] = {}
        end = _ALIGNED
        for key in samples[0]:
            values = [sample[key] for sample in samples]
            if not _can_be_stacked(values):
                batch[key] = default_collate(values)
                continue
            first = values[0]
            size = len(values) * first.nbytes
            batch[key] = _Part(end, end + size, first.dtype, (len(values), *first.shape))
            tensors[key] = values
            end += -(-size // _ALIGNED) * _ALIGNED
        number, is_new = self._free_slot(end)
        slot = self._own[number]
        for key, values in tensors.items():
            torch.stack(values, out=batch[key].of(slot))
        return _Sent(self.name, os.getpid(), number, slot if is_new else None, batch)

    def _free_slot(self, size: int) -> tuple[int, bool]:
        """The number of a slot of at least `size` bytes, from now on in use, and whether it is a new one."""
        free = [number for number, slot in enumerate(self._own) if not slot[0]]
        large = [number for number in free if self._own[number].numel() >= size]
        number = (large or free or [len(self._own)])[0]
        if not large:
            self._own[number : number + 1] = [torch.empty(size, dtype=torch.uint8).share_memory_()]
        self._own[number][0] = 1
        return number, not large

    def slots_of(self, worker: int) -> dict[int, Tensor]:
        """The slots of a worker that have arrived, by number; the memory of workers that have ended is given back."""
        if worker not in self._of_workers:
            alive = {child.pid for child in multiprocessing.active_children()}
            self._of_workers = {pid: slots for pid, slots in self._of_workers.items() if pid in alive} | {worker: {}}
        return self._of_workers[worker]


_here: weakref.WeakValueDictionary[str, SharedBatches] = weakref.WeakValueDictionary()


class _Sent:
    """A batch that a worker sends: what arrives is what `_arrived` makes of it."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return _arrived, self.what


def _arrived(name: str, worker: int, number: int, new: Tensor | None, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch in a slot; `new` is the slot, if no earlier batch was in it."""
    slots = _here[name].slots_of(worker)
    if new is not None:
        slots[number] = new
    # torch keeps the array for as long as a tensor needs its memory; after that, the worker may have it back.
    array = slots[number].numpy()
    weakref.finalize(array, _give_back, slots[number], os.getpid()).atexit = False
    slot = torch.from_numpy(array)
    return {key: value.of(slot) if isinstance(value, _Part) else value for key, value in batch.items()}


def _give_back(slot: Tensor, owner: int) -> None:
    if os.getpid() == owner:  # a process forked meanwhile has a batch of its own, of which nobody else knows
        slot[0] = 0


def _can_be_stacked(values: Sequence[Any]) -> bool:
    """Whether values are plain tensors of one shape and type, and not empty."""
    first = values[0]
    return all(
        type(one) is Tensor
        and (one.layout, one.device.type) == (torch.strided, "cpu")
        and not one.requires_grad
        and (one.dtype, one.shape) == (first.dtype, first.shape)
        for one in values
    )
