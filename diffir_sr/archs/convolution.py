"""Convolutions of inference on a CPU: the numbers of torch's to rounding, with fewer multiplications or copies.

A 3x3 convolution of many channels is computed by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016), which
multiplies 36 times per 4x4 outputs and pair of channels instead of 144 times. Interpolation at 0, +-sqrt(1/2) and
+-sqrt(2) keeps its rounding errors at those of a direct convolution (Barabasz et al. 2020); the usual 0, +-1, +-2 would
make them five times as large.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OUT, _IN = 4, 6  # sides of a tile behind and before the filter
# Where it is the faster way, as measured: channels of input and output, and tiles of a picture. Transformed filters
# take four times the memory; larger ones (75 MiB) stay as they are.
_CHANNELS, _TILES, _LARGEST = 128, 16, 2**19
_AT_ONCE = 2**21  # numbers in a band of transformed tiles, which then stays in the processor's cache


class Convolution(nn.Conv2d):
    """`nn.Conv2d` that chooses how it computes where nothing is trained; weights are kept channels-last."""

    def __init__(self, inside: int, outside: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inside, outside, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.to(memory_format=torch.channels_last)
        self._filters: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not _may_choose(input, self.weight):
            return super().forward(input)
        if self.kernel_size == (1, 1) and self.stride == (1, 1):
            # A channels-last image is a matrix of pixels already.
            made = F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return made.permute(0, 3, 1, 2)
        height, width = input.shape[-2:]
        tiles = len(input) * -(-height // _OUT) * -(-width // _OUT)
        is_plain = self.kernel_size == (3, 3) and self.stride == (1, 1)
        fits = min(self.in_channels, self.out_channels) >= _CHANNELS
        fits &= self.in_channels * self.out_channels <= _LARGEST
        if is_plain and fits and tiles >= _TILES:
            return winograd(input, self._transformed(), self.bias)
        if is_plain and tiles < _TILES and min(self.in_channels, self.out_channels) >= _CHANNELS:
            return as_product(input, self.weight, self.bias)
        return super().forward(input)

    def _transformed(self) -> Tensor:
        """The filters for `winograd`, computed when the weights have changed."""
        now = self.weight._version, self.weight.data_ptr()
        if self._filters is None or self._filters[0] != now:
            self._filters = now, transformed(self.weight)
        return self._filters[1]


def _may_choose(x: Tensor, weight: Tensor) -> bool:
    # Shapes without values (counting costs) are for the plain form, of which others know what it is.
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()  # has no version, so that changes would not be seen
    )


def as_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of a small picture as one matrix product; channels-last weights are that matrix already."""
    count, inside, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    step = padded.stride()
    seen = padded.as_strided((count, height, width, 3, 3, inside), (*step[:3], step[1], step[2], 1))
    made = F.linear(seen.reshape(-1, 9 * inside), weight.permute(0, 2, 3, 1).reshape(len(weight), -1), bias)
    return made.view(count, height, width, -1).permute(0, 3, 1, 2)


@cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transforms of the output (4, 6), of filters (6, 3) and of the input (6, 6), float64: Toom and Cook's way."""
    points = [0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2)]

    def powers(count: int) -> np.ndarray:
        return np.array([[point**k for k in range(count)] for point in points] + [[0.0] * (count - 1) + [1.0]])

    return powers(_OUT).T, powers(3), np.linalg.inv(powers(_IN)).T


def transformed(weight: Tensor) -> Tensor:
    """Filters (O, I, 3, 3) as `winograd` takes them, (36, I, O)."""
    _, filters, _ = _matrices()
    both = np.kron(filters, filters)
    flat = weight.detach().contiguous().numpy().astype(np.float64).reshape(-1, 9).T
    found = (both @ flat).astype(np.float32).reshape(_IN**2, *weight.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(found.transpose(0, 2, 1)))


@cache
def _two_dimensional() -> tuple[Tensor, Tensor]:
    output, _, source = _matrices()
    return tuple(torch.from_numpy(np.kron(one, one).astype(np.float32)) for one in (output, source))  # pyright: ignore[reportReturnType]


def winograd(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of `x` (B, I, H, W) with zeros around it, (B, O, H, W) channels-last.

    `filters` are `transformed`.
    """
    output, source = _two_dimensional()
    count, inside, height, width = x.shape
    outside = filters.shape[2]
    rows, columns = -(-height // _OUT), -(-width // _OUT)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, _OUT * columns - width + 1, 1, _OUT * rows - height + 1))
    step = padded.stride()
    made = x.new_empty((count, _OUT * rows, _OUT * columns, outside))
    band = max(1, _AT_ONCE // (_IN**2 * count * columns * max(inside, outside)))
    for top in range(0, rows, band):
        high = min(band, rows - top)
        shape = (_IN, _IN, count, high, columns, inside)
        strides = (step[1], step[2], step[0], _OUT * step[1], _OUT * step[2], 1)
        tiles = padded.as_strided(shape, strides, padded.storage_offset() + _OUT * top * step[1])
        seen = (source @ tiles.reshape(_IN**2, -1)).view(_IN**2, -1, inside)
        found = output @ torch.bmm(seen, filters).view(_IN**2, -1)
        part = found.view(_OUT, _OUT, count, high, columns, outside).permute(2, 3, 0, 4, 1, 5)
        target = made[:, _OUT * top : _OUT * (top + high)].unflatten(2, (columns, _OUT)).unflatten(1, (high, _OUT))
        target.copy_(part) if bias is None else torch.add(part, bias, out=target)
    return made[:, :height, :width].permute(0, 3, 1, 2)
