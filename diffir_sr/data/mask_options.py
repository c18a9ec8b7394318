"""Masks as option files describe them: generated like LaMa's, one of the evaluation kinds, or given as images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field

from diffir_sr.data.masks import EVALUATION, Boxes, MaskMix, Strokes, mask_values
from diffir_sr.errors import InputError
from diffir_sr.option_types import Found, NotNegative, Section, Small, SmallOrZero, View, Whole

_Stroke = Annotated[Whole, Field(ge=1, le=32_000)]  # OpenCV draws no thicker lines
_Often = Annotated[Whole, Field(ge=1, le=10_000)]


class IrregularMasks(Section):
    """Polylines with thick strokes."""

    max_angle: Small = Field(Strokes.max_angle, description="Largest turn in radians plus one.")
    max_len: Small = Field(Strokes.max_len, description="Longest segment in pixels, less ten.")
    max_width: _Stroke = Field(Strokes.max_width, description="Thickest stroke in pixels, less five.")
    min_times: SmallOrZero = Field(Strokes.min_times, description="Fewest polylines.")
    max_times: _Often = Field(Strokes.max_times, description="Most polylines, less one.")

    def strokes(self) -> Strokes:
        """As the generator knows them."""
        return Strokes(**self.model_dump())


class BoxMasks(Section):
    """Axis-parallel boxes."""

    margin: SmallOrZero = Field(Boxes.margin, description="Pixels between a box and the border.")
    bbox_min_size: Small = Field(Boxes.min_size, description="Shortest side in pixels.")
    bbox_max_size: Small = Field(Boxes.max_size, description="Longest side in pixels.")
    min_times: _Often = Field(Boxes.min_times, description="Fewest boxes.")
    max_times: _Often = Field(Boxes.max_times, description="Most boxes.")

    def boxes(self) -> Boxes:
        """As the generator knows them."""
        return Boxes(self.min_times, self.max_times, self.bbox_min_size, self.bbox_max_size, self.margin)


class MaskGenerator(Section):
    """Random masks, under the published names."""

    irregular_proba: NotNegative = Field(1.0, description="Weight of polyline masks.")
    irregular_kwargs: IrregularMasks | None = Field(None, description="How polylines are drawn.")
    box_proba: NotNegative = Field(1.0, description="Weight of box masks.")
    box_kwargs: BoxMasks | None = Field(None, description="How boxes are drawn.")


def masks_can_be_drawn(view: View, at: tuple[str, ...]) -> Found:
    """Something is drawn, at least as often as at most, and boxes grow from small to large."""
    section = (*at, "mask_gen")
    if not view.has(*section):
        return
    if view.get(*section, "irregular_proba", default=1) + view.get(*section, "box_proba", default=1) == 0:
        yield section, "irregular_proba and box_proba are both 0, which leaves nothing to draw"
    for key, defaults in (("irregular_kwargs", IrregularMasks.of({})), ("box_kwargs", BoxMasks.of({}))):
        given = {**defaults.model_dump(), **view.get(*section, key, default={})}
        for low, high in (("min_times", "max_times"), ("bbox_min_size", "bbox_max_size")):
            if low in given and given[low] > given[high]:
                yield (*section, key, low), f"{given[low]} is more than {high}, which is {given[high]}"


def mix_from_options(opt: MaskGenerator | Mapping[str, Any] | None) -> MaskMix:
    """The generator that a `mask_gen` section describes under LaMa's names; what is absent has the published value.

    `irregular_proba` and `box_proba` are relative to each other.
    """
    given = opt if isinstance(opt, MaskGenerator) else MaskGenerator.of(opt)
    strokes, boxes = given.irregular_proba, given.box_proba
    if strokes + boxes == 0:
        raise InputError(f"mask_gen: irregular_proba {strokes} and box_proba {boxes} leave nothing to draw")
    lines, rectangles = given.irregular_kwargs or IrregularMasks.of({}), given.box_kwargs or BoxMasks.of({})
    return MaskMix(lines.strokes(), rectangles.boxes(), boxes / (strokes + boxes))


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
