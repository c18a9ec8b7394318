"""Run one function over many files in several processes, with a bar, and tell every failure at the end."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TypeVar

from diffir_sr.errors import InputError
from diffir_sr.progress import progress_bar

Task = TypeVar("Task")
Result = TypeVar("Result")
_AHEAD = 8  # tasks per process that are under way or wait to be fetched: bounds memory
_NO_POINT_IN_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def run_all(work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int, label: str) -> list[Result]:
    """Results in the order of `tasks`; raises as `stream` does."""
    return list(stream(work, tasks, jobs=jobs, label=label))


def stream(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int, label: str
) -> Generator[Result, None, None]:
    """Results in the order of `tasks`, as they come; at the end one InputError with all files that failed.

    `work` must be a module-level function; it reports a bad file by raising InputError.
    """
    if jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, got {jobs}")
    failures: list[str] = []
    with progress_bar(total=len(tasks), desc=label, unit="image") as bar:
        for outcome in _outcomes(work, tasks, jobs=jobs):
            try:
                result = outcome()
            except InputError as error:
                failures.append(str(error))
            except BrokenProcessPool as error:
                raise InputError(
                    f"{label}: a process was ended from outside, perhaps for want of memory; lower --jobs (now {jobs})"
                ) from error
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                if error.errno in _NO_POINT_IN_GOING_ON:
                    raise InputError(
                        f"{label}: {where}{error.strerror}; make room or mend permissions, and start again, it goes on "
                        "from there"
                    ) from error
                failures.append(f"{where}{error.strerror or error}")
            except MemoryError as error:
                raise InputError(
                    f"{label}: too little memory for {jobs} processes; lower --jobs, or free some"
                ) from error
            else:
                yield result
            bar.update()
    if failures:
        lines = "".join(f"\n  {failure}" for failure in sorted(failures))
        raise InputError(f"{label}: {len(failures)} of {len(tasks)} images failed:{lines}")


def _outcomes(work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int) -> Iterator[Callable[[], Result]]:
    """For each task, something that gives its result or raises what it raised."""
    if jobs == 1 or len(tasks) < 2:
        yield from (partial(work, task) for task in tasks)
        return
    pool = ProcessPoolExecutor(max_workers=min(jobs, len(tasks)), initializer=_prepare_worker)
    try:
        waiting: deque[Callable[[], Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(work, task).result)
            if len(waiting) >= _AHEAD * jobs:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """Ctrl-C is the parent's affair; a worker whose parent was killed ends as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def check_apart(source: Path, *outputs: Path | None) -> None:
    """Raise InputError for an output folder that is the input folder or lies in it: images would be taken twice."""
    for output in outputs:
        if output is not None and source.resolve() in (output.resolve(), *output.resolve().parents):
            raise InputError(
                f"{output.absolute()} is the input folder {source.absolute()} or lies in it; results would replace the "
                "images, or be taken for some the next time; choose a folder beside it"
            )
