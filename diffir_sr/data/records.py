"""JSON lines: one object per line, as a run notes what it measured."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from diffir_sr.data.images import read_file


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
