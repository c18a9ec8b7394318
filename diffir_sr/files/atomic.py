"""Atomic writes: a file is written completely or not at all, even if the process or the machine dies meanwhile."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from diffir_sr.errors import SaveFailed
from diffir_sr.files.processes import is_running, short_name

_PARTIAL = re.compile(r"\..+\.partial-(?P<process>\d+)(-[a-p]{6})?(\.\w+)?", re.DOTALL)


def partial_name(name: str, *, suffix: str = "") -> str:
    """The temporary name of this process for the file `name`; some programs need a suffix at its end.

    Processes on two machines, or in two containers, often have the same number.
    """
    return f"{partial_prefix(name)}{os.getpid()}-{_machine(platform.node())}{suffix}"


@cache
def _machine(node: str) -> str:
    digest = hashlib.blake2b(node.encode(errors="surrogateescape"), digest_size=3).hexdigest()
    return digest.translate(str.maketrans("0123456789abcdef", "abcdefghijklmnop"))  # no digits, as in a process number


def partial_prefix(name: str) -> str:
    """The common prefix of the temporary names of all processes for the file `name`."""
    return short_name(name, ending=".partial-")


@contextlib.contextmanager
def replacing(path: Path, *, suffix: str = "", sync: bool = True) -> Iterator[Path]:
    """A temporary path next to `path` for a file or folder, renamed at the end and removed after an error.

    With `sync`, a power failure leaves either the previous content or the complete new one, never an empty file. When
    writing thousands of small files, disable it and call `sync_all` once. System errors name `path`.
    """
    partial = path.with_name(partial_name(path.name, suffix=suffix))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if sync:
            _sync_content(partial)
        os.replace(partial, path)
        if sync:
            _sync_folder(path.parent)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError) and error.errno and str(error.filename or partial).startswith(str(partial)):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(data: bytes, path: Path, *, sync: bool = True) -> None:
    """Write a file atomically; `sync` as in `replacing`."""
    with replacing(path, sync=sync) as partial:
        partial.write_bytes(data)


def write_report(text: str, path: Path) -> None:
    """Write the text output of a command as UTF-8, and remove partial files of killed runs."""
    sweep(path.parent, of=path.name)
    write_atomically(text.encode(), path)


def save_atomically(
    thing: Any,
    path: str | os.PathLike[str],
    *,
    tries: int = 3,
    wait_s: float = 1.0,
    save: Callable[[Any, str], object] | None = None,
) -> None:
    """`save` (torch.save) to a temporary name next to `path`, sync, then rename; SaveFailed after the last attempt."""
    import torch

    path = os.fspath(path)
    for left in reversed(range(tries)):
        try:
            with replacing(Path(path)) as partial:
                if save:
                    save(thing, str(partial))
                else:
                    with open(partial, "wb") as file:  # given a path, torch would store the temporary name in the file
                        torch.save(thing, file)
            return
        except (OSError, RuntimeError) as error:
            if not left:
                raise SaveFailed(
                    f"cannot save {os.path.abspath(path)}: {_cause(error)}; free space or fix permissions, then resume "
                    "from the last checkpoint with --auto_resume"
                ) from error
            time.sleep(wait_s)


def save_text(text: str, path: str | os.PathLike[str]) -> None:
    """`save_atomically` for text."""
    save_atomically(text, path, save=lambda content, partial: Path(partial).write_text(content, encoding="utf-8"))


def check_writable(path: Path) -> None:
    """Check in advance whether a file can be created at `path`; leaves nothing. Raises OSError, which names it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(one for one in path.absolute().parents if one.exists())
    probe = folder / partial_name(path.name)  # if killed, the next run removes it
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def sweep(folder: Path, *, of: str | Collection[str] | None = None, below: bool = False) -> list[Path]:
    """Remove partial files of killed processes in a folder (and `below` it), all or those of some names; returns them.

    Files of running processes are kept.
    """
    names = [of] if isinstance(of, str) else of
    prefixes = ("",) if names is None else tuple(partial_prefix(name) for name in names)
    removed = []
    with contextlib.suppress(OSError):
        for path in list(folder.rglob(".*.partial-*") if below else folder.glob(".*.partial-*")):
            found = _PARTIAL.fullmatch(path.name)
            if found and path.name.startswith(prefixes) and not is_running(int(found["process"])):
                _remove(path)
                removed.append(path)
    return removed


def sync_all() -> None:
    """Flush everything written so far to the disk: one call is faster than syncing thousands of files."""
    if hasattr(os, "sync"):  # not on Windows, which flushes soon anyway
        os.sync()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _sync_content(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else (path,):
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    if path.is_dir():
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the system allows opening folders."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network folders sync by themselves
            raise
    finally:
        os.close(handle)


def _cause(error: BaseException) -> str:
    """The system error behind an error of a library, or the message of the library, in one line."""
    behind = error.__cause__ or error.__context__
    if behind is not None or (isinstance(error, OSError) and error.strerror):
        return _cause(behind) if behind is not None else str(getattr(error, "strerror", error))
    return str(error).splitlines()[0] if str(error) else type(error).__name__
