"""Masks as option files describe them: generated like LaMa's, one of the evaluation kinds, or given as images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from diffir_sr.data.masks import EVALUATION, Boxes, MaskMix, Strokes, mask_values
from diffir_sr.errors import InputError

# Published names of the generator's arguments, and ours.
_STROKES = {name: name for name in ("min_times", "max_times", "max_width", "max_len", "max_angle")}
_BOXES = {name: name for name in ("min_times", "max_times", "margin")}
_BOXES |= {"bbox_min_size": "min_size", "bbox_max_size": "max_size"}


def mix_from_options(opt: Mapping[str, Any] | None) -> MaskMix:
    """The generator that a `mask_gen` section describes under LaMa's names; what is absent has the published value.

    `irregular_proba` and `box_proba` are relative to each other.
    """
    opt = opt or {}
    strokes, boxes = float(opt.get("irregular_proba", 1)), float(opt.get("box_proba", 1))
    if strokes < 0 or boxes < 0 or strokes + boxes == 0:
        raise InputError(f"mask_gen: irregular_proba {strokes} and box_proba {boxes} leave nothing to draw")
    return MaskMix(
        replace(Strokes(), **_renamed(opt.get("irregular_kwargs"), _STROKES)),
        replace(Boxes(), **_renamed(opt.get("box_kwargs"), _BOXES)),
        boxes / (strokes + boxes),
    )


def _renamed(given: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, int]:
    return {names[name]: int(value) for name, value in (given or {}).items() if value is not None}


def evaluation_size(kind: str, side: int) -> int:
    """The size (256 or 512) whose evaluation masks an image of some side gets; raises InputError for an unknown kind.

    Other sides get the masks of the nearer size, drawn at their own.
    """
    sizes = [int(key.rsplit("_", 1)[1]) for key in EVALUATION if key.rsplit("_", 1)[0] == kind]
    if not sizes:
        kinds = sorted({key.rsplit("_", 1)[0] for key in EVALUATION})
        raise InputError(f"mask_kind: unknown {kind!r}; known: random, {', '.join(kinds)}")
    return min(sizes, key=lambda size: abs(size - side))


def binary(mask: np.ndarray, *, dilate: int = 0) -> np.ndarray:
    """A mask image (H, W, C) as (H, W) uint8, 1 = missing: every value above 0 is missing, as published.

    `dilate` grows holes by so many pixels, which takes away the soft rim of what is to be removed.
    """
    hole = (mask_values(mask)[0].max(axis=2) > 0).astype(np.uint8)
    return hole if dilate == 0 else cv2.dilate(hole, np.ones((2 * dilate + 1, 2 * dilate + 1), np.uint8))
