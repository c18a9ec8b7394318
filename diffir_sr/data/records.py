"""Records of a run as JSON lines: appended, read whatever a killed process left, cut back when a run resumes."""

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
    """The lines of a .jsonl file as objects; none where there is no file.

    Half a line, as a full disk or a lost machine leaves it, is left out: a run must go on without it. Raises
    InputError for a file that cannot be read.
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
    """Add one line to a .jsonl file; raises SaveFailed where it cannot be written."""
    try:
        cut = path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        with path.open("a") as file:
            file.write(("\n" if cut else "") + json.dumps(dict(values)) + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def forget_after(path: Path, iteration: int) -> None:
    """Drop the lines beyond `iteration`, which a resumed run will write again."""
    if path.is_file():
        kept = [row for row in read_records(path) if row["iter"] <= iteration]
        write_atomically("".join(f"{json.dumps(row)}\n" for row in kept).encode(), path)


def unwritable(path: Path | str, error: OSError) -> SaveFailed:
    """The error that ends a run for a file that cannot be written, with its cause and what to do."""
    why = error.strerror or str(error)
    return SaveFailed(
        f"cannot write {Path(path).absolute()}: {why}; free space or fix permissions, then go on from the last "
        "checkpoint with --auto_resume"
    )
