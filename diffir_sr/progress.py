"""Progress bars and writing to standard output, which may be closed, full, or a broken pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from diffir_sr.errors import InputError

_SECONDS = 10.0  # between two lines of a bar


def progress_bar(*args: Any, **kwargs: Any) -> tqdm[Any]:
    """A tqdm on standard error (or on `file`), with tqdm's arguments; `_Lines` if that is not a terminal."""
    stream = kwargs.setdefault("file", sys.stderr)
    is_terminal = stream is not None and stream.isatty()
    return (tqdm if is_terminal else _Lines)(*args, **kwargs)


class _Lines(tqdm):
    """Writes the state of a bar as a line every ten seconds, and once at its end if it lasted that long."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._started = self._written = time.monotonic()
        self._shown = 0.0
        super().__init__(*args, **{"ncols": 0, **kwargs})  # numbers without a bar

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if time.monotonic() - self._written >= _SECONDS:
            self._line()

    def clear(self, nolock: bool = False) -> None:
        """Nothing to clear, since nothing is drawn in place."""

    def moveto(self, n: int) -> None:
        """Lines have no position."""

    def close(self) -> None:
        if self.disable:
            return
        if self.n != self._shown and time.monotonic() - self._started >= _SECONDS:
            self._line()
        self.disable = True
        self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue] - missing in its stubs

    def _line(self) -> None:
        self._written, self._shown = time.monotonic(), self.n
        self.fp.write(str(self).strip() + "\n")
        self.fp.flush()


def write_out(content: str | bytes) -> None:
    """Write to standard output immediately; raises InputError if that fails."""
    out = sys.stdout
    if out is None:  # it was closed at start
        raise InputError("standard output cannot be written (closed); open it, or redirect it to a file")
    try:
        if isinstance(content, bytes):
            out.buffer.write(content)
        else:
            out.write(content)
        out.flush()
    except OSError as error:
        close_standard_output()
        raise InputError(f"standard output cannot be written ({error.strerror}); check its redirection") from error


def close_standard_output() -> None:
    """Discard buffered output, so that Python does not fail again when it exits."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
