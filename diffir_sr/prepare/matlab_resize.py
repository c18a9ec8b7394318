"""MATLAB's antialiased bicubic `imresize`, which made the low-resolution images of DIV2K and most benchmarks."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_matrix

from diffir_sr.errors import InputError


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
