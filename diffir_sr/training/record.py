"""What a run measured, as one JSON object per line: made for plots and scripts, beside the log made for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line to a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(dict(values)) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file as objects; none where there is no file.

    Half a line, as a full disk or a lost machine leaves it, is left out: a run must go on without it.
    """
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def forget_after(path: Path, iteration: int) -> None:
    """Drop the lines beyond `iteration`, which a resumed run will write again."""
    if path.is_file():
        kept = [row for row in read_records(path) if row["iter"] <= iteration]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
        partial.replace(path)
