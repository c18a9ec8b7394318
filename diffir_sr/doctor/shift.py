"""How far a degraded image lies beside its ground truth, to a fraction of a pixel, and whether that can be told."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_LARGEST_TILE = 128
_SMALLEST_TILE = 24
_LEAST_CONTRAST = 2.0  # grey levels (deviation) inside a tile
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
    if min(lq.std(), gt.std()) < _LEAST_CONTRAST:
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
