"""What an interrupted run still owed when it ended: validations, model cards, the final networks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from diffir_sr.cards import SUFFIX, read_card_file
from diffir_sr.data.records import read_records
from diffir_sr.models.saving import last_measured

logger = logging.getLogger("basicsr")


def agreed(opt: dict[str, Any], value: Any) -> Any:
    """The value that rank 0 has, on every rank: files change while others still look at them."""
    if opt["dist"]:
        box = [value]
        torch.distributed.broadcast_object_list(box, 0)
        return box[0]
    return value


def unmeasured(opt: dict[str, Any], evaluations: list[Any], iteration: int) -> list[Any]:
    """The loaders of those datasets for which validation.jsonl has no line of this iteration."""
    rows = read_records(Path(opt["path"]["log"]) / "validation.jsonl")
    known = {row.get("dataset") for row in rows if row.get("iter") == iteration}
    owed = agreed(opt, [loader.dataset.opt["name"] not in known for loader in evaluations])
    return [loader for loader, is_owed in zip(evaluations, owed, strict=True) if is_owed]


def make_up(model: Any, opt: dict[str, Any], evaluations: list[Any], writer: Any, *, done: int) -> None:
    """Validate what was due after the last saved iteration and is not recorded, and bring its model card up to date."""
    if not opt.get("val") or not done or done % opt["val"]["val_freq"]:
        return
    for loader in unmeasured(opt, evaluations, done):
        logger.info(f"Making up for the validation of {loader.dataset.opt['name']} after iteration {done:,d}")
        model.validation(loader, done, writer, opt["val"].get("save_img", False))
    if hasattr(model, "card_files"):
        model.card_files.refresh(model.evaluated_net)


def is_complete(opt: dict[str, Any], evaluations: list[Any], *, done: int) -> bool:
    """Whether a training at its last iteration has left nothing undone: final networks, validation, model card."""
    return agreed(opt, _has_latest(opt, done) and _card_is_current(opt, done)) and not (
        opt.get("val") and unmeasured(opt, evaluations, done)
    )


def _has_latest(opt: dict[str, Any], done: int) -> bool:
    """Whether the networks of the last iteration were also saved as 'latest', after its training state was."""
    models = Path(opt["path"]["models"])
    state = Path(opt["path"]["training_states"]) / f"{done}.state"
    saved = [file for file in models.glob(f"*_{done}.*") if file.suffix in (".pth", ".safetensors")]
    latest = [file.with_name(file.name.replace(f"_{done}.", "_latest.")) for file in saved]
    begun = state.stat().st_mtime_ns if state.is_file() else 0
    return bool(latest) and all(file.is_file() and file.stat().st_mtime_ns >= begun for file in latest)


def _card_is_current(opt: dict[str, Any], done: int) -> bool:
    file = Path(opt["path"]["models"]) / f"net_g_{done}{SUFFIX}"
    if not opt.get("val") or done % opt["val"]["val_freq"] or not file.is_file():
        return True
    measured = last_measured(Path(opt["path"]["log"]) / "validation.jsonl")
    return read_card_file(file)[1].get("metrics") == measured
