"""What a run measured, as one JSON object per line: made for plots and scripts, beside the log made for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffir_sr.data.records import read_records


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line to a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(dict(values)) + "\n")


def forget_after(path: Path, iteration: int) -> None:
    """Drop the lines beyond `iteration`, which a resumed run will write again."""
    if path.is_file():
        kept = [row for row in read_records(path) if row["iter"] <= iteration]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
        partial.replace(path)
