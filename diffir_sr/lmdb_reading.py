"""Reading LMDBs safely: one environment per file and process, none carried across a fork."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from diffir_sr.errors import InputError


class SharedLmdb:
    """An LMDB to read from, opened at the first reading; picklable, and usable before and after a fork.

    LMDB allows one environment per file in a process, and py-lmdb (from 1.7 on) refuses or crashes where an open one
    crossed a fork. So all readers of a file share one, and all are closed just before a fork, to be opened again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def begin(self, *, write: bool = False, buffers: bool = False) -> Iterator[Any]:
        """A transaction that reads; the buffers it gives live as long as it."""
        if write:
            raise InputError(f"{self.path.absolute()}: opened for reading only")
        with _lock, _environment(self.path).begin(buffers=buffers) as transaction:
            yield transaction


_environments: dict[tuple[int, int], Any] = {}
_lock = threading.RLock()  # a fork waits until no thread is reading
_TAIL_BYTES = 2**20  # pages at the end that may not have been written yet


def _environment(path: Path) -> Any:
    try:
        file = (path / "data.mdb").stat()
        key = (file.st_dev, file.st_ino)
        if key not in _environments:
            opened = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
            _check_whole(opened, path, size=file.st_size)
            _environments[key] = opened
    except (OSError, lmdb.Error) as error:
        raise InputError(
            f"{path.absolute()}: not a readable LMDB ({error}); check its permissions, or build it again"
        ) from error
    return _environments[key]


def _check_whole(environment: Any, path: Path, *, size: int) -> None:
    """Raise InputError for a data file that was cut short: reading past its end would kill the process."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size + _TAIL_BYTES < needed:
        environment.close()
        raise InputError(
            f"{(path / 'data.mdb').absolute()}: cut short, {size:,d} of {needed:,d} bytes are there; copy it again or "
            "build it again"
        )


def close_all() -> None:
    """Close every environment; the next reading opens its own again."""
    while _environments:
        _environments.popitem()[1].close()


def _before_fork() -> None:
    _lock.acquire()
    close_all()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
