"""The prior encoder in strips of rows: each of its convolutions keeps two rows, only the pooled sum grows.

No map of features is ever whole in memory.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.prior import CPEN
from diffir_sr.devices import widest_float
from diffir_sr.inference.strips.memory import Plan
from diffir_sr.inference.strips.rows import Neighbours, Source, block_rows, convolve, strips


class _Shared:
    """A source that two readers follow at their own pace; rows are kept until the second has read them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._waiting: Tensor | None = None

    def first(self, start: int, stop: int) -> Tensor:
        rows = self._source(start, stop)
        self._waiting = rows if self._waiting is None else torch.cat([self._waiting, rows], dim=2)
        return rows

    def second(self, count: int) -> Tensor:
        if self._waiting is None:
            raise RuntimeError("the second reader may not run ahead of the first")
        rows, self._waiting = self._waiting[:, :, :count], self._waiting[:, :, count:]
        return rows


def condition(encoder: CPEN, image: Tensor, *, plan: Plan, dtype: torch.dtype) -> Tensor:
    """What stage 2's encoder makes of an image (1, C, H, W) of padded sides, (1, D): as encoder(image)."""
    fold = encoder.unshuffle
    height, width = image.shape[2] // fold, image.shape[3] // fold

    def folded(start: int, stop: int) -> Tensor:
        part = image[:, :, start * fold : stop * fold]
        part = F.pixel_unshuffle(part, fold) if fold > 1 else part
        return part.to(dtype).contiguous(memory_format=torch.channels_last)

    source: Source = folded
    for layer in encoder.E[:-1]:
        source = _after(layer, source, height, dtype)
    total = torch.zeros((), dtype=widest_float(image.device), device=image.device)
    for start, stop in strips(height, plan.dense_rows(width)):
        for block in source(start, stop).split(block_rows(width), dim=2):
            total = total + block.float().sum(dim=(2, 3)).to(total.dtype)
    return encoder.mlp((total / (height * width)).float())


def _after(layer: nn.Module, source: Source, height: int, dtype: torch.dtype) -> Source:
    """The source of what `layer` makes of another source's rows."""
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight.to(dtype)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        seen = Neighbours(source, height=height)
        return lambda _, stop: convolve(seen.until(stop), weight, bias, padding=(0, 1))
    if isinstance(layer, nn.LeakyReLU):
        return lambda start, stop: F.leaky_relu_(source(start, stop), layer.negative_slope)
    shared = _Shared(source)
    inner: Source = shared.first
    for part in cast(nn.Sequential, layer.body):
        inner = _after(part, inner, height, dtype)
    return lambda start, stop: inner(start, stop) + shared.second(stop - start)
