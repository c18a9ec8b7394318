"""Transformer blocks with everything folded that is constant for one picture.

A block's norm is x / sigma (minus the mean), its gain and the prior's modulation are a weight and a bias for each
channel, and the 1x1 convolution that follows takes them in. The attention map of channels is one C x C matrix, which
takes in the projection after it. All sums over pixels are float32 in blocks of rows, and float64 over the blocks.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.layers import Block, ChannelAttention, ChannelNorm, GatedFeedForward
from diffir_sr.devices import widest_float
from diffir_sr.inference.strips.rows import Neighbours, block_rows, convolve, strips

_LANES = 16  # float32 numbers in a wide register; convolutions of other channel counts take twice as long


class FoldedBlock:
    """A block of the network under one prior (1, D), computed in `dtype` between float32 maps."""

    def __init__(self, block: Block, prior: Tensor, *, dtype: torch.dtype) -> None:
        self._attention = _FoldedAttention(block.attn, block.norm1, prior, dtype)
        self._feed_forward = _FoldedFeedForward(block.ffn, block.norm2, prior, dtype)

    def apply(self, x: Tensor, *, rows: int) -> None:
        """Replace the map `x` (1, C, H, W) by the block's output, in strips of `rows` rows."""
        self._attention.apply(x, rows)
        self._feed_forward.apply(x, rows)


class _Expansion:
    """Norm, modulation, 1x1 and depth-wise 3x3 convolution of a map: how both halves of a block begin."""

    def __init__(self, norm: ChannelNorm, modulation: Tensor, pointwise: nn.Conv2d, depthwise: nn.Conv2d) -> None:
        self._centred = norm.body.bias is not None
        gain, shift = modulation.chunk(2)
        if norm.body.bias is not None:
            shift = shift + gain * norm.body.bias.float()
        matrix = pointwise.weight.float()[:, :, 0, 0]
        self.weight = (matrix * (gain * norm.body.weight.float()))[:, :, None, None]
        self.bias = matrix @ shift
        if pointwise.bias is not None:
            self.bias = self.bias + pointwise.bias.float()
        self.taps = depthwise.weight.float()
        self.tap_bias = torch.zeros_like(self.bias) if depthwise.bias is None else depthwise.bias.float()

    def part(self, channels: list[slice], dtype: torch.dtype) -> _Expansion:
        """The same for some of its channels only, each group filled up with zeros to whole registers."""
        part = object.__new__(_Expansion)
        part._centred = self._centred
        for name in ("weight", "bias", "taps", "tap_bias"):
            groups = [getattr(self, name)[group] for group in channels]
            setattr(part, name, torch.cat([_filled(group) for group in groups]).to(dtype))
        return part

    def over(self, x: Tensor) -> Neighbours:
        """Rows of the 1x1 convolution's result, with their neighbours."""

        def rows(start: int, stop: int) -> Tensor:
            return convolve(self._normal(x[:, :, start:stop]), self.weight, self.bias)

        return Neighbours(rows, height=x.shape[2])

    def mixed(self, rows: Tensor) -> Tensor:
        """The 3x3 convolution of rows that bring their neighbours."""
        return convolve(rows, self.taps, self.tap_bias, padding=(0, 1), groups=len(self.taps))

    def _normal(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        normal, _, scale = torch.native_layer_norm(pixels, [x.shape[1]], None, None, 1e-5)
        # The published BiasFree norm divides by the centred deviation without subtracting the mean.
        return (normal if self._centred else pixels * scale).to(self.weight.dtype).permute(0, 3, 1, 2)


class _FoldedAttention:
    def __init__(self, attention: ChannelAttention, norm: ChannelNorm, prior: Tensor, dtype: torch.dtype) -> None:
        both = _Expansion(norm, attention.kernel(prior)[0], attention.qkv, attention.qkv_dwconv)
        channels = len(norm.body.weight)
        self._heads = attention.heads
        self._temperature = attention.temperature.float()
        self._seen = both.part([slice(channels), slice(channels, 2 * channels)], dtype)
        self._value = both.part([slice(2 * channels, None)], dtype)
        self._out = attention.project_out
        self._dtype = dtype

    def apply(self, x: Tensor, rows: int) -> None:
        height, channels = x.shape[2], x.shape[1]
        sums = _Products(channels, self._heads, rows=block_rows(x.shape[3]))
        seen = self._seen.over(x)
        for _, stop in strips(height, rows):
            sums.add(self._seen.mixed(seen.until(stop)))
        weight, bias = self._projection(sums.attention(self._temperature))
        value = self._value.over(x)
        for start, stop in strips(height, rows):
            x[:, :, start:stop] += convolve(self._value.mixed(value.until(stop)), weight, bias)

    def _projection(self, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self._out.weight.float()[:, :, 0, 0]
        per_head = out.reshape(len(out), self._heads, -1).transpose(0, 1) @ attention
        weight = _filled(per_head.transpose(0, 1).reshape(len(out), -1).T).T
        bias = None if self._out.bias is None else self._out.bias.to(self._dtype)
        return weight[:, :, None, None].to(self._dtype), bias


class _Products:
    """Products of all pairs of q and k channels within a head, and their norms, summed over the pixels of a map."""

    def __init__(self, channels: int, heads: int, *, rows: int) -> None:
        self._channels = channels
        self._heads = heads
        self._rows = rows
        self._products: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, both: Tensor) -> None:
        """Take in rows of [q, k]; what is added from which row on may not depend on strips."""
        for block in both.split(self._rows, dim=2):
            pixels = block.permute(0, 2, 3, 1).reshape(-1, block.shape[1]).float()
            q, k = (half[:, : self._channels] for half in pixels.chunk(2, dim=1))
            q, k = (one.unflatten(1, (self._heads, -1)) for one in (q, k))
            wide = widest_float(pixels.device)
            products = torch.bmm(q.permute(1, 2, 0), k.permute(1, 0, 2)).to(wide)
            squares = pixels.square().sum(0).to(wide)
            self._products = products if self._products is None else self._products + products
            self._squares = squares if self._squares is None else self._squares + squares

    def attention(self, temperature: Tensor) -> Tensor:
        """The attention map (heads, C per head, C per head)."""
        norms = cast(Tensor, self._squares).sqrt().clamp_min(1e-12)  # torch.nn.functional.normalize's floor
        q, k = (half[: self._channels].reshape(self._heads, -1) for half in norms.chunk(2))
        cosines = cast(Tensor, self._products) / (q[:, :, None] * k[:, None, :])
        return (cosines.float() * temperature).softmax(dim=-1)


class _FoldedFeedForward:
    def __init__(self, layer: GatedFeedForward, norm: ChannelNorm, prior: Tensor, dtype: torch.dtype) -> None:
        both = _Expansion(norm, layer.kernel(prior)[0], layer.project_in, layer.dwconv)
        hidden = layer.project_out.in_channels
        self._both = both.part([slice(hidden), slice(hidden, None)], dtype)
        self._weight = _filled(layer.project_out.weight.float().transpose(0, 1)).transpose(0, 1).to(dtype)
        self._bias = None if layer.project_out.bias is None else layer.project_out.bias.to(dtype)

    def apply(self, x: Tensor, rows: int) -> None:
        both = self._both.over(x)
        for start, stop in strips(x.shape[2], rows):
            gate, value = self._both.mixed(both.until(stop)).chunk(2, dim=1)
            x[:, :, start:stop] += convolve(F.gelu(gate).mul_(value), self._weight, self._bias)


def _filled(group: Tensor) -> Tensor:
    missing = -len(group) % _LANES
    return torch.cat([group, group.new_zeros((missing, *group.shape[1:]))]) if missing else group
