"""Random masks for inpainting, (H, W) uint8 with 1 = missing, a function of the generator given.

The generators follow LaMa's, which the published inpainting recipes use: polylines with thick strokes, and boxes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field

from diffir_sr.errors import InputError
from diffir_sr.option_types import Found, NotNegative, Section, Small, SmallOrZero, View, Whole


@dataclass(frozen=True)
class Strokes:
    """Polylines: number, length and width in pixels; `max_angle` in radians, at least 0.01."""

    min_times: int = 1
    max_times: int = 5
    max_width: int = 100
    max_len: int = 200
    max_angle: int = 4


@dataclass(frozen=True)
class Boxes:
    """Axis-parallel boxes with sides of `min_size` to `max_size` pixels, `margin` away from the border."""

    min_times: int = 1
    max_times: int = 4
    min_size: int = 30
    max_size: int = 150
    margin: int = 10


@dataclass(frozen=True)
class MaskMix:
    """Strokes, or boxes with probability `box_prob`."""

    strokes: Strokes = Strokes()
    boxes: Boxes = Boxes()
    box_prob: float = 0.5


def mask_values(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """The channels of a mask image (H, W, C) that contain the mask, (H, W, 1 or 3), and whether these are its alpha.

    If the colours vary, alpha is ignored; if they are uniform, alpha is the mask.
    """
    if image.shape[2] not in (2, 4):
        return image, False
    colours, alpha = image[..., :-1], image[..., -1:]
    if (colours == colours[:1, :1]).all() and (alpha != alpha[0, 0]).any():
        return alpha, True
    return colours, False


def stroke_mask(rng: np.random.Generator, strokes: Strokes, *, height: int, width: int) -> np.ndarray:
    """Polylines of one to five segments; every second segment turns by 2 pi minus its angle."""
    mask = np.zeros((height, width), np.uint8)
    # One more than max_times is possible: the published class adds one to an already inclusive bound.
    for stroke in range(int(rng.integers(strokes.min_times, strokes.max_times + 2))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        for _ in range(1 + int(rng.integers(5))):
            angle = 0.01 + int(rng.integers(strokes.max_angle))
            angle = 2 * math.pi - angle if stroke % 2 == 0 else angle
            length = 10 + int(rng.integers(strokes.max_len))
            thickness = 5 + int(rng.integers(strokes.max_width))
            end_x = int(min(max(x + length * math.sin(angle), 0), width))
            end_y = int(min(max(y + length * math.cos(angle), 0), height))
            cv2.line(mask, (x, y), (end_x, end_y), 1, thickness)
            x, y = end_x, end_y
    return mask


def box_mask(rng: np.random.Generator, boxes: Boxes, *, height: int, width: int) -> np.ndarray:
    """Filled boxes; sides are limited by the margins."""
    largest = min(boxes.max_size, width - 2 * boxes.margin, height - 2 * boxes.margin)
    if largest < boxes.min_size:
        raise InputError(
            f"a {height}x{width} mask is too small for boxes of {boxes.min_size} pixels with margin {boxes.margin}; "
            "lower box min_size or margin"
        )
    mask = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(boxes.min_times, boxes.max_times + 1))):
        wide, tall = (int(rng.integers(boxes.min_size, largest + 1)) for _ in range(2))
        left = int(rng.integers(boxes.margin, width - boxes.margin - wide + 1))
        top = int(rng.integers(boxes.margin, height - boxes.margin - tall + 1))
        mask[top : top + tall, left : left + wide] = 1
    return mask


def mixed_mask(rng: np.random.Generator, mix: MaskMix, *, height: int, width: int) -> np.ndarray:
    """A stroke mask, or a box mask with probability `box_prob`."""
    if rng.random() < mix.box_prob:
        return box_mask(rng, mix.boxes, height=height, width=width)
    return stroke_mask(rng, mix.strokes, height=height, width=width)


# The evaluation sets of the published protocol: name -> mix. "narrow" in the paper's table is thin, "wide" is thick.
EVALUATION: dict[str, MaskMix] = {
    "thick_256": MaskMix(Strokes(1, 5, 100, 200), Boxes(1, 3, 30, 150, 10), 0.3),
    "thick_512": MaskMix(Strokes(1, 5, 250, 450), Boxes(1, 4, 30, 300, 10), 0.3),
    "medium_256": MaskMix(Strokes(4, 5, 50, 100), Boxes(1, 5, 10, 50, 0), 0.3),
    "medium_512": MaskMix(Strokes(4, 10, 100, 200), Boxes(1, 5, 30, 150, 0), 0.3),
    "thin_256": MaskMix(Strokes(4, 50, 10, 40), Boxes(), 0.0),
    "thin_512": MaskMix(Strokes(4, 70, 20, 100), Boxes(), 0.0),
}
_TRIES = 1000
LARGEST_SHARE = 0.5  # evaluation masks cover at most half of the image


def evaluation_mask(kind: str, *, size: int, seed: int, name: str) -> np.ndarray:
    """The mask of an image in an evaluation set, (size, size): a function of only (kind, size, seed, name)."""
    key = f"{kind}_{size}"
    if key not in EVALUATION:
        raise InputError(f"no evaluation masks {kind!r} of {size} pixels; known: {', '.join(EVALUATION)}")
    return mask_of_name(EVALUATION[key], key=key, height=size, width=size, seed=seed, name=name)


def mask_of_name(mix: MaskMix, *, key: str, height: int, width: int, seed: int, name: str) -> np.ndarray:
    """A mask of `mix`, (height, width), as a function of only (seed, key, name).

    Masks that cover more than half are redrawn, as in the published script; so are empty ones.
    """
    rng = np.random.default_rng((seed, zlib.crc32(f"{key}/{name}".encode())))
    for _ in range(_TRIES):
        mask = mixed_mask(rng, mix, height=height, width=width)
        if 0 < mask.mean() <= LARGEST_SHARE:
            return mask
    raise InputError(
        f"{name}: of {_TRIES} {key} masks of {height}x{width} pixels, none is neither empty nor above half; the "
        "image is too small for such holes, choose thinner ones"
    )


# Masks as option files describe them: generated like LaMa's, one of the evaluation kinds, or given as images.


_Stroke = Annotated[Whole, Field(ge=1, le=32_000)]  # OpenCV's limit for the thickness of lines
_Often = Annotated[Whole, Field(ge=1, le=10_000)]


class IrregularMasks(Section):
    """Polylines with thick strokes."""

    max_angle: Small = Field(Strokes.max_angle, description="Largest turn in radians, plus one.")
    max_len: Small = Field(Strokes.max_len, description="Longest segment in pixels, minus ten.")
    max_width: _Stroke = Field(Strokes.max_width, description="Thickest stroke in pixels, minus five.")
    min_times: SmallOrZero = Field(Strokes.min_times, description="Smallest number of polylines.")
    max_times: _Often = Field(Strokes.max_times, description="Largest number of polylines, minus one.")

    def strokes(self) -> Strokes:
        """As parameters of the generator."""
        return Strokes(**self.model_dump())


class BoxMasks(Section):
    """Axis-parallel boxes."""

    margin: SmallOrZero = Field(Boxes.margin, description="Pixels between a box and the border.")
    bbox_min_size: Small = Field(Boxes.min_size, description="Shortest side in pixels.")
    bbox_max_size: Small = Field(Boxes.max_size, description="Longest side in pixels.")
    min_times: _Often = Field(Boxes.min_times, description="Smallest number of boxes.")
    max_times: _Often = Field(Boxes.max_times, description="Largest number of boxes.")

    def boxes(self) -> Boxes:
        """As parameters of the generator."""
        return Boxes(self.min_times, self.max_times, self.bbox_min_size, self.bbox_max_size, self.margin)


class MaskGenerator(Section):
    """Random masks, under the published names."""

    irregular_proba: NotNegative = Field(1.0, description="Weight of polyline masks.")
    irregular_kwargs: IrregularMasks | None = Field(None, description="Parameters of polylines.")
    box_proba: NotNegative = Field(1.0, description="Weight of box masks.")
    box_kwargs: BoxMasks | None = Field(None, description="Parameters of boxes.")


def masks_can_be_drawn(view: View, at: tuple[str, ...]) -> Found:
    """Something is drawn, and minima do not exceed maxima."""
    section = (*at, "mask_gen")
    if not view.has(*section):
        return
    if view.effective(*section, "irregular_proba") + view.effective(*section, "box_proba") == 0:
        yield section, "irregular_proba and box_proba are both 0, so there is nothing to draw"
    for key, defaults in (("irregular_kwargs", IrregularMasks.of({})), ("box_kwargs", BoxMasks.of({}))):
        given = {**defaults.model_dump(), **view.get(*section, key, default={})}
        for low, high in (("min_times", "max_times"), ("bbox_min_size", "bbox_max_size")):
            if low in given and given[low] > given[high]:
                yield (*section, key, low), f"{given[low]} is more than {high}, which is {given[high]}"


def mix_from_options(opt: MaskGenerator | Mapping[str, Any] | None) -> MaskMix:
    """The generator of a `mask_gen` section, which uses LaMa's names, with published values as defaults.

    `irregular_proba` and `box_proba` are relative to each other.
    """
    given = opt if isinstance(opt, MaskGenerator) else MaskGenerator.of(opt)
    strokes, boxes = given.irregular_proba, given.box_proba
    if strokes + boxes == 0:
        raise InputError(f"mask_gen: irregular_proba {strokes} and box_proba {boxes} leave nothing to draw")
    lines, rectangles = given.irregular_kwargs or IrregularMasks.of({}), given.box_kwargs or BoxMasks.of({})
    return MaskMix(lines.strokes(), rectangles.boxes(), boxes / (strokes + boxes))


def evaluation_size(kind: str, side: int) -> int:
    """The size (256 or 512) of the evaluation masks for an image of some side; raises InputError for an unknown kind.

    For other sides, masks of the nearer size are drawn at the size of the image.
    """
    sizes = [int(key.rsplit("_", 1)[1]) for key in EVALUATION if key.rsplit("_", 1)[0] == kind]
    if not sizes:
        kinds = sorted({key.rsplit("_", 1)[0] for key in EVALUATION})
        raise InputError(f"mask_kind: unknown {kind!r}; known: random, {', '.join(kinds)}")
    return min(sizes, key=lambda size: abs(size - side))


def binary(mask: np.ndarray, *, dilate: int = 0) -> np.ndarray:
    """Convert a mask image (H, W, C) to (H, W) uint8, 1 = missing: values above 0 are missing, as published.

    `dilate` enlarges holes by this number of pixels, to cover the soft edges of objects to be removed.
    """
    hole = (mask_values(mask)[0].max(axis=2) > 0).astype(np.uint8)
    return hole if dilate == 0 else cv2.dilate(hole, np.ones((2 * dilate + 1, 2 * dilate + 1), np.uint8))
