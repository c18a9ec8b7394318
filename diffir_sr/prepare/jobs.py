"""Run one function over many files in several processes, with a bar, and tell every failure at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm

from diffir_sr.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")
_SHOWN = 10


def default_jobs() -> int:
    return os.cpu_count() or 1


def run_all(work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int, label: str) -> list[Result]:
    """Results in the order of `tasks`; raises one InputError with all files that failed, after the others are done.

    `work` must be a module-level function; it reports a bad file by raising InputError.
    """
    results: dict[int, Result] = {}
    failures: list[str] = []
    bar = tqdm(total=len(tasks), desc=label, unit="image", file=sys.stderr)

    def note(index: int, call: Callable[[], Result]) -> None:
        try:
            results[index] = call()
        except (InputError, OSError) as error:
            failures.append(str(error))
        bar.update()

    with bar:
        if jobs <= 1 or len(tasks) < 2:
            for index, task in enumerate(tasks):
                note(index, lambda task=task: work(task))
        else:
            with ProcessPoolExecutor(max_workers=min(jobs, len(tasks))) as pool:
                waiting = {pool.submit(work, task): index for index, task in enumerate(tasks)}
                try:
                    for done in as_completed(waiting):
                        note(waiting[done], done.result)
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    if failures:
        shown = "\n  ".join(sorted(failures)[:_SHOWN])
        more = f"\n  ... {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise InputError(f"{label}: {len(failures)} of {len(tasks)} images failed:\n  {shown}{more}")
    return [results[index] for index in range(len(tasks))]
