"""Images as they are stored: 8 bits, grey or RGB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

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


# MATLAB's antialiased bicubic `imresize`, which made the low-resolution images of DIV2K and most benchmarks.


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def resize_matrix(length: int, scale: float) -> csr_matrix:
    """The linear map of one axis, (ceil(length * scale), length): antialiased when shrinking, mirrored borders."""
    out = math.ceil(length * scale)
    stretch = min(scale, 1.0)  # a kernel as wide as an output pixel
    support = 4.0 / stretch
    taps = math.ceil(support) + 2
    centre = (np.arange(out) + 0.5) / scale - 0.5
    first = np.floor(centre - support / 2).astype(int)
    index = first[:, None] + np.arange(taps)
    weight = stretch * cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    # Mirror with the border repeated: -1 is 0, -2 is 1; likewise at the far end.
    folded = np.mod(index, 2 * length)
    folded = np.where(folded < length, folded, 2 * length - 1 - folded)
    rows = np.repeat(np.arange(out), taps)
    return csr_matrix((weight.ravel(), (rows, folded.ravel())), shape=(out, length))


def bicubic_resize(image: np.ndarray, *, scale: float) -> np.ndarray:
    """Resize (H, W, C) uint8 or uint16 by `scale`, rounded and clipped, as MATLAB's imresize(image, scale).

    Sides become ceil(side * scale).
    """
    if image.ndim != 3 or not np.issubdtype(image.dtype, np.unsignedinteger):
        raise InputError(f"expected an integer image (height, width, channels), got {image.dtype} {image.shape}")
    height, width, channels = image.shape
    rows, columns = resize_matrix(height, scale), resize_matrix(width, scale)
    # Heights first, as MATLAB does for equal scales.
    tall = rows @ image.reshape(height, width * channels).astype(np.float64)
    turned = tall.reshape(-1, width, channels).transpose(1, 0, 2).reshape(width, -1)
    wide = (columns @ turned).reshape(-1, len(tall), channels).transpose(1, 0, 2)
    return (wide + 0.5).clip(0, np.iinfo(image.dtype).max).astype(image.dtype)
