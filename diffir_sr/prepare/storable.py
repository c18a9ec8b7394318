"""Images as they are stored: 8 bits, grey or RGB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files.images import decode, inspect, read_file
from diffir_sr.files.picture import as_bits


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
    known = inspect(data, where=str(file))
    whole = known.format == "png" and known.metadata.turn == 1
    if image.dtype != np.uint8:
        if not to_8bit:
            depth = "floats" if image.dtype.kind == "f" else "16 bits per channel"
            raise InputError(f"{file}: {depth}; give --to-8bit to round to 8, or convert it")
        image, whole = as_bits(image, np.uint8), False
    dropped = image.shape[2] in (2, 4)
    if dropped:
        image, whole = np.ascontiguousarray(image[..., :-1]), False
    return Storable(image, data if whole else None, dropped)
