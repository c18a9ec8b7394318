"""The prior encoder in strips of rows, and the x4 tail as one convolution.

Each convolution of the encoder keeps two rows, and only the pooled sum is accumulated; no feature map is ever complete
in memory.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.prior import CPEN
from diffir_sr.devices import widest_float
from diffir_sr.inference.strips.rows import Neighbours, RowSource, StripPlan, block_rows, convolve, strips


class _Shared:
    """A source with two readers at different positions; rows are kept until the second reader has read them."""

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self._waiting: Tensor | None = None

    def first(self, start: int, stop: int) -> Tensor:
        rows = self._source(start, stop)
        self._waiting = rows if self._waiting is None else torch.cat([self._waiting, rows], dim=2)
        return rows

    def second(self, count: int) -> Tensor:
        if self._waiting is None:
            raise RuntimeError("the second reader must not be ahead of the first")
        rows, self._waiting = self._waiting[:, :, :count], self._waiting[:, :, count:]
        return rows


def condition(encoder: CPEN, image: Tensor, *, plan: StripPlan, dtype: torch.dtype) -> Tensor:
    """The output (1, D) of stage 2's encoder for a padded image (1, C, H, W), equal to encoder(image)."""
    fold = encoder.unshuffle
    height, width = image.shape[2] // fold, image.shape[3] // fold

    def folded(start: int, stop: int) -> Tensor:
        part = image[:, :, start * fold : stop * fold]
        part = F.pixel_unshuffle(part, fold) if fold > 1 else part
        return part.to(dtype).contiguous(memory_format=torch.channels_last)

    source: RowSource = folded
    for layer in encoder.E[:-1]:
        source = _after(layer, source, height, dtype)
    total = torch.zeros((), dtype=widest_float(image.device), device=image.device)
    for start, stop in strips(height, plan.dense_rows(width)):
        for block in source(start, stop).split(block_rows(width), dim=2):
            total = total + block.float().sum(dim=(2, 3)).to(total.dtype)
    return encoder.mlp((total / (height * width)).float())


def _after(layer: nn.Module, source: RowSource, height: int, dtype: torch.dtype) -> RowSource:
    """A source that applies `layer` to the rows of another source."""
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight.to(dtype)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        seen = Neighbours(source, height=height)
        return lambda _, stop: convolve(seen.until(stop), weight, bias, padding=(0, 1))
    if isinstance(layer, nn.LeakyReLU):
        return lambda start, stop: F.leaky_relu_(source(start, stop), layer.negative_slope)
    shared = _Shared(source)
    inner: RowSource = shared.first
    for part in cast(nn.Sequential, layer.body):
        inner = _after(part, inner, height, dtype)
    return lambda start, stop: inner(start, stop) + shared.second(stop - start)


# The x4 tail of the networks (convolution, shuffle, convolution, shuffle, convolution) as one convolution.


RADIUS = 2  # receptive field of the tail in rows and columns of features
_EDGE = 1  # border in feature pixels where the 5x5 convolution is wrong
_NEAR = _EDGE + RADIUS
_SCALE = 4


class FoldedTail:
    """Maps features (1, C, H, W) to an image (1, 3, 4 H, 4 W), float32, in rows."""

    def __init__(self, tail: nn.Sequential, *, dtype: torch.dtype) -> None:
        layers = [layer for layer in tail.modules() if isinstance(layer, nn.Conv2d)]
        exact = [(layer.weight.float(), layer.bias.float()) for layer in layers if layer.bias is not None]
        weight, bias = _as_one_convolution(exact)
        self._weight, self._bias = weight.to(dtype), bias.to(dtype)
        self._layers = [(weight.to(dtype), bias.to(dtype)) for weight, bias in exact]

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows with two neighbours above and below, (1, C, h + 4, W), to (1, 3, 4 h, 4 W).

        Rows at the upper and lower edge of the image are wrong; use `top` and `bottom` for them.
        """
        image = F.pixel_shuffle(convolve(rows, self._weight, self._bias, padding=(0, RADIUS)), _SCALE).float()
        inside, edge = slice(_SCALE * RADIUS, -_SCALE * RADIUS), _SCALE * _EDGE
        image[..., :edge] = _long_way(rows[..., :_NEAR], self._layers)[:, :, inside, :edge]
        image[..., -edge:] = _long_way(rows[..., -_NEAR:], self._layers)[:, :, inside, -edge:]
        return image

    def top(self, features: Tensor) -> Tensor:
        """The first rows of the image of all `features`, (1, 3, 4, 4 W)."""
        return _long_way(features[:, :, :_NEAR].to(self._weight.dtype), self._layers)[:, :, : _SCALE * _EDGE].float()

    def bottom(self, features: Tensor) -> Tensor:
        """The last rows of the image, (1, 3, 4, 4 W)."""
        return _long_way(features[:, :, -_NEAR:].to(self._weight.dtype), self._layers)[:, :, -_SCALE * _EDGE :].float()


def _long_way(features: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    for weight, bias in layers[:-1]:
        features = F.pixel_shuffle(convolve(features, weight, bias, padding=(1, 1)), 2)
    return convolve(features, *layers[-1], padding=(1, 1))


def _as_one_convolution(layers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Weight (48, C, 5, 5) and bias (48,) of the map from features to 4x4 patches of the image."""
    first, second, third = (weight for weight, _ in layers)
    patch = torch.eye(3 * _SCALE**2, device=first.device)[:, :, None, None]
    patch = F.pad(F.pixel_shuffle(patch, _SCALE), [_SCALE * RADIUS] * 4)
    # A convolution's derivative is the transposed convolution.
    back = F.pixel_unshuffle(F.conv_transpose2d(patch, third, padding=1), 2)
    back = F.pixel_unshuffle(F.conv_transpose2d(back, second, padding=1), 2)
    weight = F.conv_transpose2d(back, first, padding=1)
    size = 2 * RADIUS + 1
    at_zero = _long_way(first.new_zeros(1, first.shape[1], size, size), layers)
    return weight, F.pixel_unshuffle(at_zero, _SCALE)[0, :, RADIUS, RADIUS]
