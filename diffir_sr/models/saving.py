"""The safetensors file with a model card that a training writes beside the `.pth` of its network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffir_sr.data.records import read_records
from diffir_sr.errors import CheckpointError
from diffir_sr.families import identify
from diffir_sr.files.atomic import save_atomically, save_text
from diffir_sr.version import __version__
from diffir_sr.weights_files import SUFFIX, read_card_file, training_card, write_card_file


class CardFiles:
    """Writes `models/net_g_<label>.safetensors`: the weights that validation uses, and what is known of them."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        self.iteration = int((opt.get("train") or {}).get("total_iter") or 0)  # the last one that was done
        self._last: tuple[str, bool] | None = None

    def save(self, net: nn.Module, current_iter: int, *, averaged: bool) -> None:
        """Write the file of a checkpoint; `current_iter` -1 is the last one, 'latest'. Rank 0 alone writes."""
        self._last = ("latest" if current_iter == -1 else str(current_iter), averaged)
        self._write(net)

    def measured(self, net: nn.Module, current_iter: int) -> None:
        """Validation comes after saving: put what it measured into the card of the network it measured."""
        if self._last is not None and current_iter == self.iteration and self._last[0] in ("latest", str(current_iter)):
            self._write(net)

    def resumed(self, iteration: int, *, averaged: bool) -> None:
        """Go on after a saved iteration: its card is the one that the next measurement belongs into."""
        self.iteration, self._last = iteration, (str(iteration), averaged)

    def refresh(self, net: nn.Module) -> None:
        """Write the last card anew if it lacks what the record of validation has, or cannot be read."""
        if self.opt["rank"] != 0 or self._last is None:
            return
        try:
            card = read_card_file(self._path())[1]
        except CheckpointError:
            card = {}
        if card.get("metrics") != last_measured(Path(self.opt["path"]["log"]) / "validation.jsonl"):
            self._write(net)

    def _path(self) -> Path:
        label = self._last[0] if self._last else "latest"
        return Path(self.opt["path"]["models"]) / f"net_g_{label}{SUFFIX}"

    def _write(self, net: nn.Module) -> None:
        if self.opt["rank"] != 0 or self._last is None:
            return
        (_, averaged), tensors = self._last, net.state_dict()
        card = training_card(
            self.opt,
            weights="params_ema" if averaged else "params",
            iteration=self.iteration,
            metrics=last_measured(Path(self.opt["path"]["log"]) / "validation.jsonl"),
            version=__version__,
        )
        identity = identify(tensors)
        if identity is not None:
            card |= identity.card
        save_atomically(tensors, self._path(), save=partial(_write, card))


def _write(card: Mapping[str, Any], tensors: Any, path: str) -> None:
    write_card_file(tensors, card, path)


def last_measured(record: Path) -> dict[str, dict[str, float]]:
    """The newest line of each dataset in validation.jsonl: dataset -> iter and metrics."""
    return {row.pop("dataset"): row for row in read_records(record)}


# Sums of the losses since the log last printed: kept beside a training state, so that resuming changes no mean.


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


# The scale of float16 losses, kept likewise.


def _scale_file(opt: Mapping[str, Any], iteration: int) -> Path:
    return Path(opt["path"]["training_states"]) / f"{iteration}_scale_{opt['rank']}.json"


def save_scale(state: Mapping[str, Any], opt: Mapping[str, Any], iteration: int) -> None:
    """Write the state of `ScaledSteps` beside the training state of an iteration; nothing for 'latest' (-1)."""
    if iteration >= 0:
        save_text(json.dumps(dict(state)), _scale_file(opt, iteration))


def load_scale(opt: Mapping[str, Any], iteration: int) -> dict[str, Any] | None:
    """The state of `ScaledSteps` that belongs to the state of an iteration; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(_scale_file(opt, iteration).read_text())
        if isinstance(kept, dict) and {"scale", "_growth_tracker", "skipped"} <= kept.keys():
            return kept
    return None
