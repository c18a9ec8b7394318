"""Progress bars: updated in place on a terminal, and written as occasional whole lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

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
