"""Progressive training: patches that grow while batches shrink (Restormer's scheme, used for motion deblurring)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from diffir_sr.errors import InputError


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
        """How many samples a process has used up before an iteration: where a resumed training goes on."""
        done = iteration - 1
        return sum(
            phase.batch * (min(done, done if phase.last is None else phase.last) - phase.first + 1)
            for phase in self.phases
            if phase.first <= done
        )


def curriculum_from_options(opt: Mapping[str, Any]) -> Curriculum | None:
    """The phases of the published lists `iters`, `gt_sizes`, `mini_batch_sizes` of a dataset section; None without.

    The model of the published code cuts smaller patches out of a batch that was read in full; here no more is read
    than is used, and every patch has its own place.
    """
    names = ("iters", "gt_sizes", "mini_batch_sizes")
    lists: list[Sequence[int]] = [opt.get(name) or [] for name in names]
    if not any(lists):
        return None
    if len({len(values) for values in lists}) > 1:
        told = ", ".join(f"{name} has {len(values)}" for name, values in zip(names, lists, strict=True))
        raise InputError(f"progressive training needs three lists of one length: {told}")
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
