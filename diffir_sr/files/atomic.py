"""Writing files whole or not at all, whatever ends the process meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffir_sr.errors import SaveFailed

_LONGEST = 255  # bytes of a file name on the usual file systems


def partial_name(name: str) -> str:
    """The temporary name of this process for a file called `name`: never longer than file systems allow."""
    return f"{partial_prefix(name)}{os.getpid()}"


def partial_prefix(name: str) -> str:
    """How the temporary names of all processes for a file called `name` begin."""
    plain = f".{name}.partial-"
    if len(os.fsencode(plain)) <= _LONGEST - 10:  # a process number may follow
        return plain
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}.partial-"


def write_atomically(data: bytes, path: Path) -> None:
    """Write a whole file or none: to a temporary name beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name))
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


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
    partial = os.path.join(os.path.dirname(path), partial_name(os.path.basename(path)))
    for left in reversed(range(tries)):
        try:
            if save:
                save(thing, partial)
            else:
                with open(partial, "wb") as file:  # given a path, torch would write its name, with our number, inside
                    torch.save(thing, file)
            with open(partial, "rb+") as file:  # a machine that loses power must not keep the name of an empty file
                os.fsync(file.fileno())
            os.replace(partial, path)
            return
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            if not left:
                raise SaveFailed(
                    f"cannot save {os.path.abspath(path)}: {_cause(error)}; free space or fix permissions, then go on "
                    "from the last checkpoint with --auto_resume"
                ) from error
            time.sleep(wait_s)


def save_text(text: str, path: str | os.PathLike[str]) -> None:
    """`save_atomically` for text."""
    save_atomically(text, path, save=lambda content, partial: Path(partial).write_text(content))


def _cause(error: BaseException) -> str:
    """The refusal of the system behind an error of a library, or what the library says, in one line."""
    behind = error.__cause__ or error.__context__
    if behind is not None or (isinstance(error, OSError) and error.strerror):
        return _cause(behind) if behind is not None else str(getattr(error, "strerror", error))
    return str(error).splitlines()[0] if str(error) else type(error).__name__
