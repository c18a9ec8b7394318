"""One function over many files in several processes; arguments and words that jobs share."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffir_sr.errors import InputError
from diffir_sr.files.processes import available_cpus
from diffir_sr.parsing import add_accept_damaged, deferred
from diffir_sr.progress import progress_bar

if TYPE_CHECKING:
    from diffir_sr.data.sources import FolderSource


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


# Arguments and words that the jobs of `diffir prepare` share.


_SHOWN = 10

# Choices and defaults of jobs, which their parsers show.
RESIZE_METHODS = ("bicubic", "area", "lanczos")
GOPRO_SIZE, GOPRO_OVERLAP, GOPRO_MIDDLE = 512, 256, 256  # pixels
DEGRADATION_KINDS = ("noise", "blur", "rain", "underexposure", "haze", "low-resolution", "raindrop")
MASK_KINDS = ("thin", "medium", "thick")
MASK_SIZES = (256, 512)  # pixels
FACTORS = (0.75, 0.5, 1 / 3)
SHORTEST = 400  # pixels


def add_job(
    jobs: Any, name: str, what: str, *, module: str = "", source: str = "folder of images"
) -> argparse.ArgumentParser:
    """A parser with input, --output, --jobs and --dry-run; `command` of `module` (called as the job) takes them."""
    parser = jobs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help=f"{source}, sub-folders included")
    parser.add_argument("-o", "--output", type=Path, required=True)
    add_running(parser, module or name)
    return parser


def add_running(parser: argparse.ArgumentParser, module: str) -> None:
    """How a job runs: --jobs, --dry-run, --accept-damaged."""
    add_accept_damaged(parser)
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.set_defaults(run=deferred(f"diffir_sr.prepare.{module}:command"))


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="make again what exists (default: keep it) and remove what other parameters made in its place",
    )


def add_to_8bit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to-8bit", action="store_true", help="round 16-bit images to 8 bits (default: an error)")


def folder(path: Path) -> FolderSource:
    """The images of a folder; raises InputError for an LMDB."""
    from diffir_sr.data.sources import FolderSource, open_source

    source = open_source(path)
    if not isinstance(source, FolderSource):
        raise InputError(f"{path.absolute()} is an LMDB; expected a folder of image files")
    return source


def say(text: str) -> int:
    """Print a line; gives exit code 0."""
    sys.stdout.write(text + "\n")
    return 0


def examples(paths: Sequence[Path]) -> str:
    """The first files of a plan, one per line."""
    lines = [f"\n  {path}" for path in paths[:_SHOWN]]
    return "".join(lines) + (f"\n  ... {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


def on_disk(pixels: float, *, copied: Sequence[Path] = ()) -> str:
    """A rough size of so many colour pixels as PNG (photographs take about 1.5 bytes of their 3), and of copies."""
    return f"about {(pixels * 1.5 + sum(file.stat().st_size for file in copied)) / 2**20:,.1f} MiB"


def alpha_note(done: Sequence[Any]) -> list[str]:
    """What a job says at its end of images whose alpha it dropped."""
    count = sum(one.dropped_alpha for one in done)
    return [f"alpha dropped in {count}"] if count else []
