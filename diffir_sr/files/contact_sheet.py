"""Contact sheets: many small labelled images on one page, to inspect the results of a job."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

_GAP = 6
_LABEL = 18
_LETTERS = 0.4
_PAPER = 190  # unlike masks, neither black nor white


def contact_sheet(tiles: Sequence[tuple[str, np.ndarray]], *, columns: int) -> np.ndarray:
    """Labelled images (H, W, 3) uint8 in rows of `columns`; each cell is as large as the largest tile."""
    height = max(tile.shape[0] for _, tile in tiles) + _LABEL
    width = max(tile.shape[1] for _, tile in tiles)
    rows = math.ceil(len(tiles) / columns)
    page = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _PAPER, np.uint8)
    for index, (label, tile) in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        page[top + _LABEL : top + _LABEL + tile.shape[0], left : left + tile.shape[1]] = tile
        room = int(width / (18 * _LETTERS))
        shown = label if len(label) <= room else f"{label[: room - 2]}.."
        place = (left, top + _LABEL - 5)
        cv2.putText(page, shown, place, cv2.FONT_HERSHEY_SIMPLEX, _LETTERS, (0, 0, 0), 1, cv2.LINE_AA)
    return page


def centre(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image, at most `size` pixels per side."""
    top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge by pixel repetition, without smoothing."""
    return np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
