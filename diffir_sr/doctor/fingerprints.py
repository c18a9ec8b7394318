"""Short descriptions of a picture by which it is recognised again, and how pictures are found by them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np

_SIDE = 32  # of the reduced picture under the hash
_LOW = 8  # frequencies per axis that the hash keeps
THUMB = 16
_LEAST_CONTRAST = 4.0  # grey levels (deviation) below which a reduced picture says nothing
_WINDOW = 8  # side in pixels of what a landmark describes
_ONE_IN = 2**12  # places that become landmarks
_BLOCK = 512
_NEAR_BITS = 10  # of 64: what JPEG, rescaling and rounding change; pictures that differ have about 32
_ALIKE = 0.985  # correlation of thumbnails of one picture: 0.99 after JPEG of quality 20 or at a quarter of its size


def luma(image: np.ndarray) -> np.ndarray:
    """Brightness of (H, W, C), C of 1, 3 or 4, as float32 (H, W) in grey levels, 0 to 255."""
    scale = np.float32(255 / 65535 if image.dtype == np.uint16 else 1)
    if image.shape[2] < 3:
        return image[..., 0].astype(np.float32) * scale
    return image[..., :3].astype(np.float32) @ (np.array([0.299, 0.587, 0.114], np.float32) * scale)


def perceptual_hash(grey: np.ndarray) -> int | None:
    """64 bits that outlive rescaling and JPEG: signs of low frequencies of (H, W); None for a picture without any.

    The frequencies are those of a DCT of the picture reduced to 32 x 32, each compared with their median.
    """
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if float(small.std()) < _LEAST_CONTRAST:
        return None
    low = cv2.dct(small)[: _LOW + 1, : _LOW + 1].ravel()[1 : 8 * 8 + 1]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """(H, W) as uint8 (16, 16), to tell pictures apart whose hashes are near."""
    return cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).round().clip(0, 255).astype(np.uint8)


def similarity(one: np.ndarray, other: np.ndarray) -> float | None:
    """Correlation of two thumbnails, -1 to 1; None where one of them is too flat to tell."""
    first, second = (thumb.astype(np.float64).ravel() - thumb.mean() for thumb in (one, other))
    if min(first.std(), second.std()) < _LEAST_CONTRAST:
        return None
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def near(hashes: np.ndarray, others: np.ndarray, *, bits: int = _NEAR_BITS) -> Iterator[tuple[int, int]]:
    """Index pairs of uint64 hashes, (N,) and (M,), that differ in at most `bits` of their 64 bits."""
    for start in range(0, len(hashes), _BLOCK):
        apart = _differing_bits(hashes[start : start + _BLOCK, None] ^ others[None])
        rows, columns = np.nonzero(apart <= bits)
        yield from zip((rows + start).tolist(), columns.tolist(), strict=True)


def near_within(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Index pairs (earlier, later) within one array that `near` would find, each once."""
    for start in range(0, len(hashes), _BLOCK):
        stop = start + _BLOCK
        for one, other in near(hashes[start:stop], hashes[start:]):
            if one < other:
                yield one + start, other + start


def shows_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two thumbnails are of one picture; None of flat pictures is."""
    alike = similarity(one, other)
    return alike is not None and alike >= _ALIKE


def _differing_bits(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    return _bits_of_16()[words.view(np.uint16)].reshape(*words.shape, 4).sum(axis=-1, dtype=np.uint8)


@cache
def _bits_of_16() -> np.ndarray:
    return np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
        axis=1, dtype=np.uint8
    )


def landmarks(image: np.ndarray) -> np.ndarray:
    """Numbers (uint64, sorted, unique) of about one in 4096 places of (H, W, C), chosen by what is there.

    A picture cut out of another without loss has its landmarks: both choose the same places. Rescaled, turned or
    JPEG-compressed cuts have not.
    """
    height, width = (side - _WINDOW + 1 for side in image.shape[:2])
    if height < 1 or width < 1:
        return np.empty(0, np.uint64)
    colours = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    wide = colours.astype(np.uint64)
    mixed = wide[..., 0] * np.uint64(0x10001) + wide[..., 1] * np.uint64(0x101) + wide[..., 2]
    rows = np.zeros((mixed.shape[0], width), np.uint64)
    for shift in range(_WINDOW):
        rows *= np.uint64(0x9E3779B97F4A7C15)
        rows += mixed[:, shift : shift + width]
    whole = np.zeros((height, width), np.uint64)
    for shift in range(_WINDOW):
        whole *= np.uint64(0xC2B2AE3D27D4EB4F)
        whole += rows[shift : shift + height]
    whole ^= whole >> np.uint64(29)
    whole *= np.uint64(0xBF58476D1CE4E5B9)
    chosen = np.flatnonzero(whole >> np.uint64(52) == 0)
    marks, first = np.unique(whole.ravel()[chosen], return_index=True)  # a flat area is one mark, however large
    places = zip(*(where.tolist() for where in np.unravel_index(chosen[first], whole.shape)), strict=True)
    windows = (colours[y : y + _WINDOW, x : x + _WINDOW, 1] for y, x in places)
    return marks[[float(window.std()) >= _LEAST_CONTRAST for window in windows]]
