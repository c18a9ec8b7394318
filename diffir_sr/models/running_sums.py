"""Sums of the losses since the log last printed: kept beside a training state, so that resuming changes no mean."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffir_sr.files.atomic import save_text

Sums = dict[str, tuple[Any, int]]  # loss -> sum, number of summands


def _file(opt: Mapping[str, Any], iteration: int) -> Path:
    return Path(opt["path"]["training_states"]) / f"{iteration}_sums_{opt['rank']}.json"


def save_sums(sums: Sums, opt: Mapping[str, Any], iteration: int) -> None:
    """Write the sums of this process; nothing where the log has just printed, or for 'latest' (-1)."""
    if sums and iteration >= 0:
        text = json.dumps({name: [float(total), count] for name, (total, count) in sums.items()})
        save_text(text, _file(opt, iteration))


def load_sums(opt: Mapping[str, Any], iteration: int, *, device: torch.device) -> Sums:
    """The sums that belong to the state of an iteration; none if none were kept, as the next mean then shows."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        kept = json.loads(_file(opt, iteration).read_text())
        return {
            str(name): (torch.tensor(float(total), device=device), int(count)) for name, (total, count) in kept.items()
        }
    return {}
