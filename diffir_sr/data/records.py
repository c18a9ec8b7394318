"""Records of a run as JSON lines: appended, readable after a kill, and truncated when a run resumes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffir_sr.errors import SaveFailed
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.images import read_file


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file as objects; none if there is no file.

    An incomplete line, as after a full disk or a crash, is skipped, so that the run can continue. Raises InputError for
    a file that cannot be read.
    """
    found: list[dict[str, Any]] = []
    text = read_file(path).decode(errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Append a line to a .jsonl file; raises SaveFailed if it cannot be written."""
    try:
        cut = path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        with path.open("a") as file:
            file.write(("\n" if cut else "") + json.dumps(dict(values)) + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def forget_after(path: Path, iteration: int) -> None:
    """Remove the lines after `iteration`, which a resumed run will write again."""
    if path.is_file():
        kept = [row for row in read_records(path) if row["iter"] <= iteration]
        write_atomically("".join(f"{json.dumps(row)}\n" for row in kept).encode(), path)


def unwritable(path: Path | str, error: OSError) -> SaveFailed:
    """The error that ends a run when a file cannot be written, with its cause and what to do."""
    why = error.strerror or str(error)
    return SaveFailed(
        f"cannot write {Path(path).absolute()}: {why}; free space or fix permissions, then resume from the last "
        "checkpoint with --auto_resume"
    )
