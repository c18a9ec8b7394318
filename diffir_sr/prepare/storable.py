"""Images as they are stored: 8 bits, grey or RGB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.data.encoded import is_png, orientation
from diffir_sr.data.images import decode, read_file
from diffir_sr.errors import InputError


@dataclass(frozen=True)
class Storable:
    """uint8 grey or RGB (H, W, C), and the file's own bytes where they are a PNG of exactly that (else None)."""

    image: np.ndarray
    png: bytes | None
    dropped_alpha: bool


def read_storable(file: Path, *, to_8bit: bool) -> Storable:
    """An image file without alpha, upright; raises InputError for 16 bits per channel unless they may be rounded."""
    data = read_file(file)
    image = decode(data, where=str(file))
    whole = is_png(data) and orientation(data) == 1
    if image.dtype == np.uint16:
        if not to_8bit:
            raise InputError(f"{file}: 16 bits per channel; give --to-8bit to round to 8, or convert it")
        image, whole = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8), False
    dropped = image.shape[2] == 4
    if dropped:
        image, whole = np.ascontiguousarray(image[..., :3]), False
    return Storable(image, data if whole else None, dropped)
