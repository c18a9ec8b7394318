"""Restoring a picture in overlapping tiles that are blended. Each tile is a picture to the network, so what attention
knows about the whole is lost: results differ from the exact ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(length: int, *, tile: int, overlap: int) -> list[int]:
    """Left edges of equal tiles that cover `length` pixels; the last one is moved back to fit."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def in_tiles(run: Callable[[Tensor], Tensor], lq: Tensor, *, tile: int, overlap: int, scale: int) -> Tensor:
    """`run` on every tile of `lq` (B, C, H, W), the results (B, 3, H * scale, W * scale) faded into each other."""
    height, width = lq.shape[-2:]
    result = torch.zeros((len(lq), 3, height * scale, width * scale))
    weights = torch.zeros((1, 1, height * scale, width * scale))
    for top in tile_starts(height, tile=tile, overlap=overlap):
        for left in tile_starts(width, tile=tile, overlap=overlap):
            part = lq[:, :, top : top + tile, left : left + tile]
            weight = _feather(part.shape[-2] * scale, overlap * scale)[:, None]
            weight = weight * _feather(part.shape[-1] * scale, overlap * scale)
            there = (
                ...,
                slice(top * scale, (top + part.shape[-2]) * scale),
                slice(left * scale, (left + part.shape[-1]) * scale),
            )
            result[there] += run(part) * weight
            weights[there] += weight
    return result.div_(weights)


def _feather(length: int, overlap: int) -> Tensor:
    """Weights that rise over the overlap from both ends, never zero."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=max(1, overlap)) / max(1, overlap)
