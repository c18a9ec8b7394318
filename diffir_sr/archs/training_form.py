"""The DIRformer in its training form: the plain form's numbers to rounding, in fewer passes over memory.

Maps are kept as (B, pixels, C), the layout that matrix products, norms and depth-wise convolutions are fastest in, and
which is a channels-last image when viewed. Each half of a block is one function with a backward of its own: gain of
the norm and modulation by the prior are one scale and shift that the norm applies; q, k and v, gate and value are maps
of their own, as element-wise passes over a part of the channels are three times slower; the attention map takes in the
projection behind it; q and k are never normalised, the small C x C matrix of their products is; sums happen where a
map is written anyway. The linear x4 tail is one convolution. The modules and their weights are the plain form's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffir_sr.archs.layers import Block, ChannelAttention, ChannelNorm, GatedFeedForward, Level

_EPS = 1e-5  # of ChannelNorm
_FLOOR = 1e-12  # of torch.nn.functional.normalize
_LANES = 16  # float32 numbers in a wide register; depth-wise convolutions of other channel counts are slower
_SHUFFLE = 2

_Optional = Tensor | None


@dataclass(frozen=True)
class _Run:
    """How the maps of a level are computed."""

    height: int
    dtype: torch.dtype  # of the wide maps
    frugal: bool  # whether the backward computes the wide maps again instead of keeping them

    def image(self, y: Tensor) -> Tensor:
        """A map (B, P, C) as an image (B, C, H, W), channels last."""
        return y.unflatten(1, (self.height, -1)).permute(0, 3, 1, 2)

    def pointwise(self, y: Tensor, weight: Tensor, bias: _Optional) -> Tensor:
        """y @ weight.T + bias by oneDNN where it can, which is faster than the matrix products of torch on a CPU."""
        if y.device.type != "cpu" or y.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return F.linear(y, weight, bias)
        made = torch.mkldnn_convolution(self.image(y), weight[..., None, None], bias, (0, 0), (1, 1), (1, 1), 1)
        return _map(made)


def _map(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).flatten(1, 2)


class _Norm:
    """x (B, P, C) divided by the deviation of its channels, then * gain + shift, both (B, C)."""

    def __init__(self, x: Tensor, gain: Tensor, shift: Tensor, centred: bool) -> None:
        self.x, self.gain, self.shift, self.centred = x, gain, shift, centred

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised map, and mean and reciprocal deviation (B, P, 1)."""
        y, means, rstds = torch.empty_like(self.x), [], []
        for x, gain, shift, into in zip(self.x, self.gain, self.shift, y, strict=True):
            made, mean, rstd = torch.native_layer_norm(x, [x.shape[1]], gain, shift, _EPS)
            into.copy_(made)
            means.append(mean)
            rstds.append(rstd)
        mean, rstd = torch.stack(means), torch.stack(rstds)
        if not self.centred:  # the published BiasFree norm does not subtract the mean
            y.addcmul_(mean * rstd, self.gain[:, None])
        return y, mean, rstd

    def backward(self, to_y: Tensor, mean: Tensor, rstd: Tensor, beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to x, with that of what goes `beside` the norm added, to gain and to shift."""
        channels = self.x.shape[2]
        to_x, along, by_weights = torch.empty_like(beside), torch.empty_like(mean), []
        for index, (grad, x, gain) in enumerate(zip(to_y, self.x, self.gain, strict=True)):
            by_x, *by_weight = torch.ops.aten.native_layer_norm_backward(
                grad, x, [channels], mean[index], rstd[index], gain, gain, [True, True, True]
            )
            torch.add(beside[index], by_x, out=to_x[index])
            by_weights.append(by_weight)
            if not self.centred:
                torch.mv(grad, gain, out=along[index, :, 0])
        to_gain, to_shift = (torch.stack(one) for one in zip(*by_weights, strict=True))
        if not self.centred:
            # What the mean adds, mean * rstd * gain, has a gradient of its own, by both factors.
            level, along = mean * rstd, along * (rstd / channels)
            to_x.addcmul_(self.x, -along * level * rstd).add_(along * (1 + level.square()))
            to_gain += (level.transpose(1, 2) @ to_y)[:, 0]
        return to_x, to_gain, to_shift


class _Expansion:
    """Norm, 1x1 convolution and depth-wise 3x3 convolution of a map, to several maps (B, P, O / parts)."""

    def __init__(self, run: _Run, centred: bool, parts: int, *given: Any) -> None:
        """`given`: x (B, P, C), gain and shift of the norm (B, C), matrix (O, C), bias, taps (O, 1, 3, 3), bias."""
        x, gain, shift, *weights = given
        self.run, self.norm = run, _Norm(x, gain, shift, centred)
        self.has_bias = [one is not None for one in weights]
        cast_weights = [[None] * parts if one is None else one.to(run.dtype).chunk(parts) for one in weights]
        self.parts = list(zip(*cast_weights, strict=True))  # of matrix, bias, taps, tap bias

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """The maps, and what the backward needs beside them."""
        y, mean, rstd = self.norm.forward()
        y = y.to(self.run.dtype)
        between, made = [], []
        for matrix, bias, taps, tap_bias in self.parts:
            between.append(self.run.pointwise(y, matrix, bias))
            made.append(_map(F.conv2d(self.run.image(between[-1]), taps, tap_bias, padding=1, groups=len(taps))))
        return made, [y, mean, rstd, *between]

    def backward(self, grads: Iterable[Tensor], kept: list[Tensor], beside: Tensor) -> list[_Optional]:
        """Gradients to x, with that of what goes `beside` the expansion added, gain, shift and the weights."""
        y, mean, rstd, *between = kept
        to_y, found = None, []
        rows = y.flatten(0, 1)
        for grad, before, (matrix, bias, taps, tap_bias) in zip(grads, between, self.parts, strict=True):
            to_before, to_taps, to_tap_bias = torch.ops.aten.convolution_backward(
                self.run.image(grad), self.run.image(before), taps, [len(taps)], [1, 1], [1, 1], [1, 1], False, [0, 0],
                len(taps), [True, True, tap_bias is not None],
            )  # fmt: skip
            to_before = _map(to_before)
            to_rows = to_before.flatten(0, 1)
            found.append((to_rows.T @ rows, None if bias is None else to_rows.sum(0), to_taps, to_tap_bias))
            share = self.run.pointwise(to_before, matrix.T, None)
            to_y = share if to_y is None else to_y.add_(share)
        to_y = cast(Tensor, to_y).to(beside.dtype)
        weights = (
            torch.cat([cast(Tensor, one) for one in parts]).to(beside.dtype) if present else None
            for parts, present in zip(zip(*found, strict=True), self.has_bias, strict=True)
        )
        return [*self.norm.backward(to_y, mean, rstd, beside), *weights]


class _Attention(torch.autograd.Function):
    """x + the attention of channels (DMTA) over an expansion to q, k and v, projected by `out` (C, C).

    Parts of the expansion may have more channels than x; those are left alone.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, centred: bool, temperature: Tensor, out: Tensor, *expanded: _Optional) -> Tensor:
        x = cast(Tensor, expanded[0])
        heads, channels = len(temperature), x.shape[2]
        maps, kept = _Expansion(run, centred, 3, *expanded).forward()
        q, k, v = (one[..., :channels] for one in maps)
        norms = torch.stack([one.to(x.dtype).square().sum(1) for one in (q, k)], dim=1).sqrt_().clamp_min_(_FLOOR)
        norms = norms.unflatten(2, (heads, -1))
        products = torch.stack([_products(heads, *pair) for pair in zip(q, k, strict=True)]).to(x.dtype)
        cosines = products / (norms[:, 0, :, :, None] * norms[:, 1, :, None, :])
        attention = (cosines * temperature).softmax(dim=-1)
        mixing = _projected(out, attention).to(run.dtype)
        if run.dtype == x.dtype:
            y = torch.empty_like(x)
            for index in range(len(x)):
                torch.addmm(x[index], v[index], mixing[index].T, out=y[index])
        else:
            y = x + v @ mixing.transpose(1, 2)
        ctx.run, ctx.centred = run, centred
        ctx.save_for_backward(
            temperature, out, norms, cosines, attention, *expanded, *([] if run.frugal else maps + kept)
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Optional, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        temperature, out, norms, cosines, attention, *saved = ctx.saved_tensors
        run, expansion = ctx.run, _Expansion(ctx.run, ctx.centred, 3, *saved[:7])
        maps, kept = expansion.forward() if run.frugal else (saved[7:10], saved[10:])
        beside = grads[0].contiguous()
        grad = beside.to(run.dtype)
        heads, channels = len(temperature), grad.shape[2]
        q, k, v = (one[..., :channels] for one in maps)
        to_maps = [torch.empty_like(one) for one in maps]
        for one in to_maps:
            one[..., channels:] = 0
        to_q, to_k, to_v = (one[..., :channels] for one in to_maps)
        mixing = _projected(out, attention).to(run.dtype)
        for index in range(len(grad)):
            torch.mm(grad[index], mixing[index], out=to_v[index])
        to_mixing = torch.stack([g.T @ one for g, one in zip(grad, v, strict=True)]).to(out.dtype)
        split = to_mixing.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, C, channels per head)
        projection = out.unflatten(1, (heads, -1)).transpose(0, 1)  # (heads, C, channels per head)
        to_out = (split @ attention.transpose(2, 3)).sum(0).transpose(0, 1).flatten(1)
        to_attention = projection.transpose(1, 2) @ split
        inner = attention * to_attention
        to_logits = inner - attention * inner.sum(dim=-1, keepdim=True)
        to_temperature = (to_logits * cosines).sum(dim=(0, 2, 3)).reshape_as(temperature)
        to_cosines = to_logits * temperature
        # cosine = product / (|q| |k|): each norm takes back its share along q and k themselves.
        shares = to_cosines * cosines
        to_products = (to_cosines / (norms[:, 0, :, :, None] * norms[:, 1, :, None, :])).to(run.dtype)
        back = torch.stack([shares.sum(dim=3), shares.sum(dim=2)], dim=1) / norms.square()
        back = torch.where(norms > _FLOOR, back, 0).flatten(2).neg().to(run.dtype)
        torch.mul(q, back[:, :1], out=to_q)
        torch.mul(k, back[:, 1:], out=to_k)
        for index in range(len(grad)):
            parts = _by_head(heads, to_q[index], to_k[index], q[index], k[index])
            for (into_q, into_k, one, other), matrix in zip(parts, to_products[index], strict=True):
                into_q.addmm_(other, matrix.T)
                into_k.addmm_(one, matrix)
        return None, None, to_temperature, to_out, *expansion.backward(to_maps, kept, beside)


def _products(heads: int, q: Tensor, k: Tensor) -> Tensor:
    """Products of the channels (P, C) of q and k within each head, summed over pixels, (heads, c, c)."""
    return torch.stack([one.T @ other for one, other in _by_head(heads, q, k)])


def _by_head(heads: int, *maps: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(one.chunk(heads, dim=-1) for one in maps), strict=True)


def _projected(out: Tensor, attention: Tensor) -> Tensor:
    """Attention (B, heads, c, c), then the projection (C, C), as one matrix for each sample, (B, C, C)."""
    projection = out.unflatten(1, (attention.shape[1], -1)).transpose(0, 1)
    return (projection @ attention).transpose(1, 2).flatten(2)


class _FeedForward(torch.autograd.Function):
    """x + the projection `out` (C, H) of GELU(gate) * value, where gate and value are an expansion."""

    @staticmethod
    def forward(ctx: Any, run: _Run, centred: bool, out: Tensor, *expanded: _Optional) -> Tensor:
        x = cast(Tensor, expanded[0])
        maps, kept = _Expansion(run, centred, 2, *expanded).forward()
        gate, value = maps
        ctx.run, ctx.centred = run, centred
        ctx.save_for_backward(out, *expanded, *([] if run.frugal else maps + kept))
        made = run.pointwise(F.gelu(gate).mul_(value), out.to(run.dtype), None)
        return made.add_(x) if made.dtype == x.dtype else x + made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[_Optional, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, *saved = ctx.saved_tensors
        run, expansion = ctx.run, _Expansion(ctx.run, ctx.centred, 2, *saved[:7])
        (gate, value), kept = expansion.forward() if run.frugal else (saved[7:9], saved[9:])
        beside = grads[0].contiguous()
        grad = beside.to(run.dtype)
        to_gated, opened = run.pointwise(grad, out.to(run.dtype).T, None), F.gelu(gate)
        to_out = grad.flatten(0, 1).T @ (opened * value).flatten(0, 1)
        to_value = opened.mul_(to_gated)
        to_gate = torch.ops.aten.gelu_backward(to_gated.mul_(value), gate)
        return None, None, to_out.to(out.dtype), *expansion.backward((to_gate, to_value), kept, beside)


def _weights(pointwise: nn.Conv2d, depthwise: nn.Conv2d, *, parts: int) -> Iterator[_Optional]:
    """Weights and biases of an expansion; each of `parts` groups of channels fills whole registers."""
    for weight in (pointwise.weight.flatten(1), pointwise.bias, depthwise.weight, depthwise.bias):
        yield None if weight is None else _filled(weight, parts)


def _filled(weight: Tensor, parts: int) -> Tensor:
    missing = -(len(weight) // parts) % _LANES
    if not missing:
        return weight
    grouped = weight.unflatten(0, (parts, -1))
    return F.pad(grouped, [0, 0] * (grouped.ndim - 2) + [0, missing]).flatten(0, 1)


def _modulated(norm: ChannelNorm, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and shift (B, C) of the norm followed by modulation [k1, k2] (B, 2C)."""
    gain, shift = modulation.chunk(2, dim=1)
    if norm.body.bias is not None:
        shift = torch.addcmul(shift, gain, norm.body.bias)
    return gain * norm.body.weight, shift


def _attended(x: Tensor, layer: ChannelAttention, norm: ChannelNorm, prior: Tensor, run: _Run) -> Tensor:
    by_norm, weights = _modulated(norm, layer.kernel(prior)), _weights(layer.qkv, layer.qkv_dwconv, parts=3)
    out, centred = layer.project_out.weight.flatten(1), norm.body.bias is not None
    x = cast(Tensor, _Attention.apply(run, centred, layer.temperature, out, x, *by_norm, *weights))
    return x if layer.project_out.bias is None else x + layer.project_out.bias


def _fed_forward(x: Tensor, layer: GatedFeedForward, norm: ChannelNorm, prior: Tensor, run: _Run) -> Tensor:
    by_norm, weights = _modulated(norm, layer.kernel(prior)), _weights(layer.project_in, layer.dwconv, parts=2)
    out = layer.project_out.weight.flatten(1)
    out = F.pad(out, [0, -out.shape[1] % _LANES])
    x = cast(Tensor, _FeedForward.apply(run, norm.body.bias is not None, out, x, *by_norm, *weights))
    return x if layer.project_out.bias is None else x + layer.project_out.bias


def level_in_training(level: Level, image: Tensor, prior: Tensor) -> Tensor:
    """What `Level.forward` makes of a map (B, C, H, W) and a prior (B, D); channels last.

    Under autocast the wide maps alone are in half precision; the sum of the blocks, norms and attention stay float32.
    With `level.checkpointing` each half of a block keeps its input, and its backward computes the wide maps again.
    """
    run = _Run(image.shape[2], _computed_in(image), frugal=level.checkpointing)
    with torch.autocast(image.device.type, enabled=False):
        dtype = next(level.parameters()).dtype
        x, prior = _map(image).contiguous().to(dtype), prior.to(dtype)
        for block in cast(Iterable[Block], level):
            x = _attended(x, block.attn, block.norm1, prior, run)
            x = _fed_forward(x, block.ffn, block.norm2, prior, run)
        return run.image(x)


def _computed_in(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# The tail is convolution, pixel shuffle, convolution, pixel shuffle, convolution, with nothing non-linear in between.

_Convolution = tuple[Tensor, Tensor]  # weight (O, C, k, k) and bias (O,); zeros around, the size stays


def tail_in_training(tail: nn.Sequential, x: Tensor) -> Tensor:
    """The x4 tail of features (B, C, H, W), H and W 2 or more, as one 5x5 convolution; exact up to the edge.

    Where a layer sees zeros around the picture, the one convolution sees what the layer before would have made there;
    that is a line of pixels on each side, and its share is taken off again.
    """
    first, second, third = (
        (layer.weight, cast(Tensor, layer.bias)) for layer in tail.modules() if isinstance(layer, nn.Conv2d)
    )
    dtype = _computed_in(x)
    with torch.autocast(x.device.type, enabled=False):  # composed weights and the image itself stay in float32
        last = _joined(second, third)
        weight, bias = _joined(first, last)
        image = F.conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), padding=2).to(bias.dtype)
        image = F.pixel_shuffle(image, _SHUFFLE)
        x = x.to(bias.dtype)
        edges = {(axis, far): _lines(x, axis, far, _SHUFFLE) for axis in (2, 3) for far in (False, True)}
        _take_off(image, {side: _lines(edge, *side, 1) for side, edge in edges.items()}, first, last)
        image = F.pixel_shuffle(image, _SHUFFLE)
        _take_off(image, {side: _enlarged_edge(edge, side, first) for side, edge in edges.items()}, second, third)
    return image


def _lines(x: Tensor, axis: int, far: bool, count: int) -> Tensor:
    """The outermost `count` lines of pixels of x at one side."""
    return x.narrow(axis, x.shape[axis] - count if far else 0, count)


_Side = tuple[int, bool]  # axis, and whether it is the far side


def _joined(first: _Convolution, second: _Convolution) -> _Convolution:
    """`first`, 3x3, pixel shuffle and `second`, 3x3 or 5x5, as one 5x5 convolution before the shuffle."""
    radius, outputs = second[0].shape[2] // 2, len(second[1])
    patch = torch.eye(outputs * _SHUFFLE**2, dtype=first[0].dtype, device=first[0].device)[:, :, None, None]
    patch = F.pad(F.pixel_shuffle(patch, _SHUFFLE), [_SHUFFLE] * 4)
    # How a patch depends on what is around it: the derivative of a convolution is the transposed one.
    back = F.pixel_unshuffle(F.conv_transpose2d(patch, second[0], padding=radius), _SHUFFLE)
    weight = F.conv_transpose2d(back, first[0])
    seen = slice(_SHUFFLE - radius, 2 * _SHUFFLE + radius)
    flat = F.pixel_shuffle(first[1][None, :, None, None].expand(-1, -1, 3, 3), _SHUFFLE)[..., seen, seen]
    return weight, F.pixel_unshuffle(F.conv2d(flat, *second), _SHUFFLE).flatten()


def _take_off(image: Tensor, edges: dict[_Side, Tensor], first: _Convolution, second: _Convolution) -> None:
    """Subtract what `second` made of pixels beyond the picture, which `first` makes of the picture's `edges`."""
    radius = second[0].shape[2] // 2
    for side, edge in edges.items():
        axis, far = side
        beyond = _beyond(edge, side, first, radius)
        start = image.shape[axis] - radius if far else 0
        image.narrow(axis, start, radius).sub_(F.conv2d(beyond, second[0]))


def _beyond(edge: Tensor, side: _Side, first: _Convolution, radius: int) -> Tensor:
    """`radius` lines of pixels beyond the picture, corners with its upper and lower side, and zeros inside of it."""
    axis, far = side
    kernel = first[0].narrow(axis, 0 if far else 2, 1)
    made = F.pixel_shuffle(F.conv2d(edge, kernel, first[1], padding=(0, 2) if axis == 2 else (1, 0)), _SHUFFLE)
    made = made.narrow(axis, 0 if far else _SHUFFLE - radius, radius)
    inside = [2 * radius, 0] if far else [0, 2 * radius]
    if axis == 2:
        surplus = _SHUFFLE - radius
        return F.pad(made[..., surplus : made.shape[3] - surplus], [0, 0, *inside])
    return F.pad(made, [*inside, radius, radius])


def _enlarged_edge(edge: Tensor, side: _Side, first: _Convolution) -> Tensor:
    """The outermost pixels of what `first` and the shuffle make of the two outermost lines of features."""
    axis, far = side
    outside = [0, 1] if far else [1, 0]
    seen = F.pad(edge, [1, 1, *outside] if axis == 2 else [*outside, 1, 1])
    return _lines(F.pixel_shuffle(F.conv2d(seen, *first), _SHUFFLE), axis, far, 1)
