"""Writing to standard output, which may be closed, full, or a broken pipe."""

from __future__ import annotations

import contextlib
import os
import sys

from diffir_sr.errors import InputError


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
