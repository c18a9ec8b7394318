"""Running a function over many files in several processes; arguments and messages shared by jobs."""

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
_AHEAD = 8  # limit of pending tasks and unfetched results per process, which bounds memory
_NO_POINT_IN_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def run_all(work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int, label: str) -> list[Result]:
    """Results in the order of `tasks`; raises the errors of `stream`."""
    return list(stream(work, tasks, jobs=jobs, label=label))


def stream(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int, label: str
) -> Generator[Result, None, None]:
    """Yield results in the order of `tasks`; at the end raises one InputError with all failed files.

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
                    f"{label}: a worker was killed, possibly out of memory; lower --jobs (now {jobs})"
                ) from error
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                if error.errno in _NO_POINT_IN_GOING_ON:
                    raise InputError(
                        f"{label}: {where}{error.strerror}; free space or fix permissions, then start again to continue"
                    ) from error
                failures.append(f"{where}{error.strerror or error}")
            except MemoryError as error:
                raise InputError(
                    f"{label}: not enough memory for {jobs} processes; lower --jobs, or free memory"
                ) from error
            else:
                yield result
            bar.update()
    if failures:
        lines = "".join(f"\n  {failure}" for failure in sorted(failures))
        raise InputError(f"{label}: {len(failures)} of {len(tasks)} images failed:{lines}")


def _outcomes(work: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int) -> Iterator[Callable[[], Result]]:
    """For each task, a callable that returns its result or raises its error."""
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
    """Leave Ctrl-C to the parent, and end the worker if its parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def check_apart(source: Path, *outputs: Path | None) -> None:
    """Raise InputError if the output folder is the input folder or inside it, since results would become inputs."""
    for output in outputs:
        if output is not None and source.resolve() in (output.resolve(), *output.resolve().parents):
            raise InputError(
                f"{output.absolute()} is the input folder {source.absolute()} or inside it; results would replace the "
                "images, or become inputs the next time; choose a folder next to it"
            )


# Arguments and messages shared by the jobs of `diffir prepare`.


_SHOWN = 10

# Choices and defaults of jobs, shown by their parsers.
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
    """Add a parser with input, --output, --jobs and --dry-run, which runs `command` of the module of the job."""
    parser = jobs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help=f"{source}, including sub-folders")
    parser.add_argument("-o", "--output", type=Path, required=True)
    add_running(parser, module or name)
    return parser


def add_running(parser: argparse.ArgumentParser, module: str) -> None:
    """Add --jobs, --dry-run and --accept-damaged."""
    add_accept_damaged(parser)
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    parser.set_defaults(run=deferred(f"diffir_sr.prepare.{module}:command"))


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing results (default: keep them), and remove those made with other parameters",
    )


def add_to_8bit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to-8bit", action="store_true", help="round 16-bit images to 8 bits (default: an error)")


def folder(path: Path) -> FolderSource:
    """The images of a folder; raises InputError for other sources."""
    from diffir_sr.data.sources import FolderSource, open_source

    source = open_source(path)
    if not isinstance(source, FolderSource):
        raise InputError(f"{path.absolute()} is {source.kind}; expected a folder of image files")
    return source


def say(text: str) -> int:
    """Print a line; returns exit code 0."""
    sys.stdout.write(text + "\n")
    return 0


def examples(paths: Sequence[Path]) -> str:
    """The first files of a plan, one per line."""
    lines = [f"\n  {path}" for path in paths[:_SHOWN]]
    return "".join(lines) + (f"\n  ... {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


def on_disk(pixels: float, *, copied: Sequence[Path] = ()) -> str:
    """Estimated size of colour pixels as PNG (1.5 of 3 bytes per pixel for photographs), plus that of copied files."""
    return f"about {(pixels * 1.5 + sum(file.stat().st_size for file in copied)) / 2**20:,.1f} MiB"


def alpha_note(done: Sequence[Any]) -> list[str]:
    """Text for the summary of a job about images whose alpha was dropped."""
    count = sum(one.dropped_alpha for one in done)
    return [f"alpha dropped in {count}"] if count else []
