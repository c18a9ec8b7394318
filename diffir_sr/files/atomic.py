"""Writing files whole or not at all, whatever ends the process or the machine meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffir_sr.errors import SaveFailed
from diffir_sr.files.processes import is_running, short_name

_PARTIAL = re.compile(r"\..+\.partial-(?P<process>\d+)(\.\w+)?", re.DOTALL)


def partial_name(name: str, *, suffix: str = "") -> str:
    """The temporary name of this process for a file called `name`; some programs want a suffix at its end."""
    return f"{partial_prefix(name)}{os.getpid()}{suffix}"


def partial_prefix(name: str) -> str:
    """How the temporary names of all processes for a file called `name` begin."""
    return short_name(name, ending=".partial-")


@contextlib.contextmanager
def replacing(path: Path, *, suffix: str = "", sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` for a file or folder, which gets its name at the end; after an error it is gone.

    With `sync` a machine that loses power keeps what was there before or the whole of this, never the name of an empty
    file; who writes thousands of small files asks for none and calls `sync_all` once. Errors of the system tell `path`.
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
    """Write a whole file or none; `sync` as in `replacing`."""
    with replacing(path, sync=sync) as partial:
        partial.write_bytes(data)


def write_report(text: str, path: Path) -> None:
    """Write a text that a command was asked for, as UTF-8, and remove what killed runs left of it."""
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
    """`save` (torch.save) to a temporary name beside `path`, sync, then rename; SaveFailed after the last try."""
    import torch

    path = os.fspath(path)
    for left in reversed(range(tries)):
        try:
            with replacing(Path(path)) as partial:
                if save:
                    save(thing, str(partial))
                else:
                    with open(partial, "wb") as file:  # given a path, torch would write its name, with our number, in
                        torch.save(thing, file)
            return
        except (OSError, RuntimeError) as error:
            if not left:
                raise SaveFailed(
                    f"cannot save {os.path.abspath(path)}: {_cause(error)}; free space or fix permissions, then go on "
                    "from the last checkpoint with --auto_resume"
                ) from error
            time.sleep(wait_s)


def save_text(text: str, path: str | os.PathLike[str]) -> None:
    """`save_atomically` for text."""
    save_atomically(text, path, save=lambda content, partial: Path(partial).write_text(content, encoding="utf-8"))


def check_writable(path: Path) -> None:
    """Find out before the work whether a file can be made at `path`; leaves nothing. Raises OSError that tells it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(one for one in path.absolute().parents if one.exists())
    probe = folder / partial_name(path.name)  # what a kill leaves, the next run removes
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def sweep(folder: Path, *, of: str | None = None, below: bool = False) -> list[Path]:
    """Remove what killed processes left half written in a folder (and `below` it), all or that of one name; gives it.

    What belongs to a process that runs stays.
    """
    prefix = "" if of is None else partial_prefix(of)
    removed = []
    with contextlib.suppress(OSError):
        for path in list(folder.rglob(".*.partial-*") if below else folder.glob(".*.partial-*")):
            found = _PARTIAL.fullmatch(path.name)
            if found and path.name.startswith(prefix) and not is_running(int(found["process"])):
                _remove(path)
                removed.append(path)
    return removed


def sync_all() -> None:
    """Have everything that was written so far on the disk: one call for thousands of files costs less than theirs."""
    if hasattr(os, "sync"):  # Windows has none, and writes soon by itself
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
    """Have the names in a folder on the disk, where the system lets folders be opened."""
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
    """The refusal of the system behind an error of a library, or what the library says, in one line."""
    behind = error.__cause__ or error.__context__
    if behind is not None or (isinstance(error, OSError) and error.strerror):
        return _cause(behind) if behind is not None else str(getattr(error, "strerror", error))
    return str(error).splitlines()[0] if str(error) else type(error).__name__
