"""Reading LMDBs safely: one environment per file and process, none carried across a fork."""

from __future__ import annotations

import contextlib
import os
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
        with _environment(self.path).begin(buffers=buffers) as transaction:
            yield transaction


_environments: dict[tuple[int, int], Any] = {}


def _environment(path: Path) -> Any:
    try:
        file = (path / "data.mdb").stat()
        key = (file.st_dev, file.st_ino)
        if key not in _environments:
            _environments[key] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
    except (OSError, lmdb.Error) as error:
        raise InputError(f"{path.absolute()}: not a readable LMDB ({error}); build it again") from error
    return _environments[key]


def close_all() -> None:
    """Close every environment; the next reading opens its own again."""
    while _environments:
        _environments.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=close_all)
