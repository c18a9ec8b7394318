"""What is measured on single images and pairs: shifts, fingerprints, traces of JPEG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

_LARGEST_TILE = 128
_SMALLEST_TILE = 24
_LEAST_SHIFT_CONTRAST = 2.0  # grey levels (deviation) inside a tile
_FINE = 20  # steps per pixel in the search for the peak
_HIGHEST = 0.25  # cycles per pixel: above it, degraded and true image share little
_AGREE_PX = 0.15  # how far tiles may differ from their median
_TILES_PER_AXIS = 3


@dataclass(frozen=True)
class Shift:
    """By how many degraded pixels the degraded image lies lower and more to the right than its ground truth."""

    down: float
    right: float

    @property
    def length(self) -> float:
        return float(np.hypot(self.down, self.right))


def find_shift(lq: np.ndarray, gt: np.ndarray) -> Shift | None:
    """The shift between brightness (H, W) and ground truth (H * scale, W * scale); None where it cannot be told.

    Phase correlation of the degraded image with the ground truth reduced by area, tile by tile. It can be told where
    two thirds of the tiles have detail and agree: motion blur, noise and flat areas give answers that do not.
    """
    height, width = lq.shape
    low = cv2.resize(gt, (width, height), interpolation=cv2.INTER_AREA) if gt.shape != lq.shape else gt
    side = min(_LARGEST_TILE, max(_SMALLEST_TILE, min(height, width) // 2))
    if min(height, width) < side:
        return None
    found = [
        _tile_shift(lq[y : y + side, x : x + side], low[y : y + side, x : x + side])
        for y in _starts(height, side)
        for x in _starts(width, side)
    ]
    told = np.array([shift for shift in found if shift is not None]).reshape(-1, 2)
    if len(told) < 2 or 3 * len(told) < 2 * len(found):
        return None
    middle = np.median(told, axis=0)
    agree = np.abs(told - middle).max(axis=1) <= _AGREE_PX
    if 3 * agree.sum() < 2 * len(found):
        return None
    down, right = told[agree].mean(axis=0)
    return Shift(float(down), float(right))


def _starts(length: int, side: int) -> list[int]:
    return sorted({round(step * (length - side) / (_TILES_PER_AXIS - 1)) for step in range(_TILES_PER_AXIS)})


def _tile_shift(lq: np.ndarray, gt: np.ndarray) -> tuple[float, float] | None:
    if min(lq.std(), gt.std()) < _LEAST_SHIFT_CONTRAST:
        return None
    side = len(lq)
    window = np.outer(np.hanning(side), np.hanning(side))
    spectra = [np.fft.fft2((tile - np.average(tile, weights=window)) * window) for tile in (lq, gt)]
    cross = spectra[0] * spectra[1].conj()
    frequency = np.fft.fftfreq(side)
    band = np.hypot(frequency[:, None], frequency[None]) <= _HIGHEST
    band[0, 0] = False
    # The square root keeps noise in weak frequencies from outvoting the picture, as pure phases would let it.
    weighed = np.where(band, cross / np.sqrt(np.abs(cross) + 1e-12), 0)
    coarse = np.fft.ifft2(weighed).real
    peak = np.array(np.unravel_index(int(np.argmax(coarse)), coarse.shape), np.float64)
    peak = np.where(peak > side // 2, peak - side, peak)
    if np.abs(peak).max() > side // 4:
        return None
    return _refined(weighed, frequency, peak)


def _refined(weighed: np.ndarray, frequency: np.ndarray, peak: np.ndarray) -> tuple[float, float]:
    """The highest place of the correlation within a pixel of its coarse peak (matrix DFT, Guizar-Sicairos 2008)."""
    steps = np.arange(-_FINE, _FINE + 1) / _FINE
    rows, columns = (np.exp(2j * np.pi * np.outer(at + steps, frequency)) for at in peak)
    fine = (rows @ weighed @ columns.T).real
    down, right = np.unravel_index(np.argmax(fine), fine.shape)
    return float(peak[0] + steps[down]), float(peak[1] + steps[right])


# Short descriptions of a picture by which it is recognised again, and how pictures are found by them.


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


# Whether a losslessly stored picture was a JPEG before: edges on a grid of 8 x 8 pixels.


_GRID = 8
_LEAST_SIDE = 64
_LARGEST = 1024  # pixels per axis that are looked at
_LEAST_EXCESS = 0.05  # share of places on the grid that are edges more often than elsewhere
_LEAST_DEVIATIONS = 8.0  # standard deviations above chance


def has_jpeg_grid(grey: np.ndarray) -> bool:
    """Whether brightness (H, W) has steps every 8 pixels along both axes, as strong JPEG compression leaves them.

    A step between two pixels counts where it is larger than those before and after it. Mild compression (quality 90
    and more), dense texture and rescaling afterwards leave too little to tell.
    """
    if min(grey.shape) < _LEAST_SIDE:
        return False
    part = grey[:_LARGEST, :_LARGEST]
    return _stands_out(part) and _stands_out(part.T)


def _stands_out(grey: np.ndarray) -> bool:
    steps = np.abs(np.diff(grey, axis=1))
    edge = 2 * steps[:, 1:-1] > steps[:, :-2] + steps[:, 2:] + 1.0
    columns = edge.shape[1] // _GRID * _GRID
    shares = edge[:, :columns].reshape(len(edge), -1, _GRID).mean(axis=(0, 1))
    place = int(np.argmax(shares))
    others = np.delete(shares, place)
    excess = shares[place] - others.max()
    expected = float(others.mean())
    deviation = np.sqrt(max(expected * (1 - expected), 1e-6) * _GRID / edge[:, :columns].size)
    return bool(excess >= _LEAST_EXCESS and excess >= _LEAST_DEVIATIONS * deviation)
