"""Whether a losslessly stored picture was a JPEG before: edges on a grid of 8 x 8 pixels."""

from __future__ import annotations

import numpy as np

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
