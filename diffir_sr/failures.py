"""Failures for users: one sentence for errors of the system, a crash report for bugs of this package."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffir_sr.errors import DiffIRError
from diffir_sr.version import __version__

# What to do about errors of the system.
_ADVICE = {
    errno.ENOSPC: "free disk space and start again",
    errno.EDQUOT: "your disk quota is exhausted: free disk space and start again",
    errno.EFBIG: "the file system or a limit of the shell (ulimit -f) does not allow files of this size",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.ENOENT: "check the name and the current folder",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EEXIST: "remove it or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n) or use fewer workers",
    errno.ENFILE: "too many files are open on this machine",
    errno.EIO: "the disk or its network connection is failing: check it, and copy the file again",
    errno.ESTALE: "the network folder was remounted: start again",
    errno.EBUSY: "another program is using it: close that program and start again",
    errno.EPIPE: "the program that reads the output has ended",
}
_MEMORY = "free memory, or use less of it (a smaller --tile, fewer --jobs, a smaller batch)"
_PACKAGES = (
    "torch",
    "torchvision",
    "basicsr",
    "numpy",
    "opencv-python",
    "pillow",
    "lmdb",
    "pydantic",
    "spandrel",
    "av",
)


def sentence(error: BaseException) -> str | None:
    """One sentence about an error caused by the input or the machine; None for a bug of this package.

    Errors raised by this package keep their message. For errors of the system (OSError), lack of memory and text
    that cannot be encoded, the sentence names the file, if Python knows it, and says what to do.
    """
    if isinstance(error, DiffIRError):
        return str(error)
    if out_of_memory(error):
        first = (str(error).splitlines() or [""])[0][:160]
        return f"out of memory{f' ({first})' if first else ''}; {_MEMORY}"
    if isinstance(error, OSError) and error.errno is not None:
        names = [os.fsdecode(one) for one in (error.filename, error.filename2) if isinstance(one, str | bytes)]
        where = f"{' -> '.join(names)}: " if names else ""
        advice = _ADVICE.get(error.errno, "check the file, its folder and the disk")
        return f"{where}{os.strerror(error.errno)}; {advice}"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[error.start : error.end]!r} cannot be written in {error.encoding}, the encoding of this "
            "terminal or file system; set PYTHONUTF8=1 or a UTF-8 locale"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, and nothing else."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return True
    # torch's CPU allocator and OpenCV have no specific exception types for it.
    text = str(error)
    on_the_cpu = type(error) is RuntimeError and "DefaultCPUAllocator: " in text and "tried to allocate" in text
    in_opencv = type(error).__module__.startswith("cv2") and "Insufficient memory" in text
    return on_the_cpu or in_opencv


def write_crash_report(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write a crash report to the current folder or, if that fails, to the temporary one; returns its path.

    It contains the command, versions and the traceback, but no images and no environment. None if it cannot be written.
    """
    text = "\n".join(
        [
            f"diffir_sr {__version__} ended with {type(error).__name__}",
            f"command: {' '.join(arguments)}",
            f"Python {platform.python_version()} on {platform.platform()}",
            *(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
            "",
            *traceback.format_exception(error),
        ]
    )
    name = f"diffir-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            path = folder() / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
    return None


def _version(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def tell_launcher(message: str) -> None:
    """Leave what ended this rank where torchrun looks for it: its summary then names the rank with this message."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        about = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": about}}))
