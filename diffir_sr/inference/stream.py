"""Standard output, which may be closed, full, or a pipe that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import sys

from diffir_sr.errors import InputError


def write_out(content: str | bytes) -> None:
    """Write to standard output, at once; raises InputError where that cannot take it."""
    out = sys.stdout
    if out is None:  # started with it closed
        raise InputError("standard output cannot be written (closed); leave it open, or send it to a file")
    try:
        if isinstance(content, bytes):
            out.buffer.write(content)
        else:
            out.write(content)
        out.flush()
    except OSError as error:
        close_standard_output()
        raise InputError(f"standard output cannot be written ({error.strerror}); check where it is sent to") from error


def close_standard_output() -> None:
    """Send what is still to be written nowhere, or Python would fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
