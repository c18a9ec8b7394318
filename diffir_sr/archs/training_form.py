"""The DIRformer in its training form: the plain form's numbers to rounding, in fewer passes over memory.

Maps are kept as (B, pixels, C), the layout that matrix products, norms and depth-wise convolutions are fastest in, and
which is a channels-last image when viewed. Gain of the norm and modulation by the prior are one scale and shift that
the norm applies; the attention map takes in the projection behind it; q and k are never normalised, the small C x C
matrix of their products is; the linear x4 tail is one convolution. The modules and their weights are the plain form's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
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


class _ScaledNorm(torch.autograd.Function):
    """x (B, P, C) divided by the deviation of its channels, then * gain + shift, both (B, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, centred: bool) -> Tensor:
        made = [torch.native_layer_norm(*one, _EPS) for one in _per_sample(x, gain, shift)]
        y, mean, rstd = (torch.stack(parts) for parts in zip(*made, strict=True))
        if not centred:  # the published BiasFree norm does not subtract the mean
            y.addcmul_(mean * rstd, gain[:, None])
        ctx.save_for_backward(x, mean, rstd, gain)
        ctx.centred = centred
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, mean, rstd, gain = ctx.saved_tensors
        grad = grads[0].contiguous()
        channels = x.shape[2]
        made = [
            torch.ops.aten.native_layer_norm_backward(*one, weight, weight, [True, True, True])
            for *one, weight in zip(grad, x, [[channels]] * len(x), mean, rstd, gain, strict=True)
        ]
        to_x, to_gain, to_shift = (torch.stack(parts) for parts in zip(*made, strict=True))
        if not ctx.centred:
            # What the mean adds, mean * rstd * gain, has a gradient of its own, by both factors.
            level = mean * rstd
            along = grad @ gain[:, :, None] * (rstd / channels)
            to_x.addcmul_(x, -along * level * rstd).add_(along * (1 + level.square()))
            to_gain += (level.transpose(1, 2) @ grad)[:, 0]
        return to_x, to_gain, to_shift, None


def _per_sample(x: Tensor, gain: Tensor, shift: Tensor) -> Iterable[tuple[Tensor, list[int], Tensor, Tensor]]:
    return zip(x, [[x.shape[2]]] * len(x), gain, shift, strict=True)


def modulated_norm(x: Tensor, norm: ChannelNorm, modulation: Tensor) -> Tensor:
    """The norm of x (B, P, C), scaled and shifted by [k1, k2] = modulation (B, 2C)."""
    gain, shift = modulation.chunk(2, dim=1)
    if norm.body.bias is not None:
        shift = torch.addcmul(shift, gain, norm.body.bias)
    return cast(Tensor, _ScaledNorm.apply(x, gain * norm.body.weight, shift, norm.body.bias is not None))


class _Attention(torch.autograd.Function):
    """x + the attention of channels (DMTA) over q, k, v = qkv (B, P, 3C or more), projected by `out` (C, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, qkv: Tensor, temperature: Tensor, out: Tensor) -> Tensor:
        heads, channels = len(temperature), x.shape[2]
        q, k, v = (qkv[..., start : start + channels] for start in range(0, 3 * channels, channels))
        norms = qkv[..., : 2 * channels].to(x.dtype).square().sum(dim=1).sqrt_().clamp_min_(_FLOOR)
        norms = norms.reshape(len(x), 2, heads, -1)
        products = torch.stack([_products(heads, *pair) for pair in zip(q, k, strict=True)]).to(x.dtype)
        cosines = products / (norms[:, 0, :, :, None] * norms[:, 1, :, None, :])
        attention = (cosines * temperature).softmax(dim=-1)
        mixing = _projected(out, attention).to(v.dtype)
        if v.dtype == x.dtype:
            y = torch.empty_like(x)
            for index in range(len(x)):
                torch.addmm(x[index], v[index], mixing[index].T, out=y[index])
        else:
            y = x + v @ mixing.transpose(1, 2)
        ctx.save_for_backward(qkv, temperature, out, norms, cosines, attention)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv, temperature, out, norms, cosines, attention = ctx.saved_tensors
        grad = grads[0].contiguous().to(qkv.dtype)
        heads, channels = len(temperature), grad.shape[2]
        q, k, v = (qkv[..., start : start + channels] for start in range(0, 3 * channels, channels))
        to_qkv = torch.empty_like(qkv)
        to_qkv[..., 3 * channels :] = 0
        to_q, to_k, to_v = (to_qkv[..., start : start + channels] for start in range(0, 3 * channels, channels))
        mixing = _projected(out, attention).to(qkv.dtype)
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
        to_products = (to_cosines / (norms[:, 0, :, :, None] * norms[:, 1, :, None, :])).to(qkv.dtype)
        back = torch.stack([shares.sum(dim=3), shares.sum(dim=2)], dim=1) / norms.square()
        back = torch.where(norms > _FLOOR, back, 0).flatten(2).neg().to(qkv.dtype)
        torch.mul(q, back[:, :1], out=to_q)
        torch.mul(k, back[:, 1:], out=to_k)
        for index in range(len(grad)):
            parts = _by_head(heads, to_q[index], to_k[index], q[index], k[index])
            for (into_q, into_k, one, other), matrix in zip(parts, to_products[index], strict=True):
                into_q.addmm_(other, matrix.T)
                into_k.addmm_(one, matrix)
        return grads[0], to_qkv, to_temperature, to_out


def _products(heads: int, q: Tensor, k: Tensor) -> Tensor:
    """Products of the channels (P, C) of q and k within each head, summed over pixels, (heads, c, c)."""
    return torch.stack([one.T @ other for one, other in _by_head(heads, q, k)])


def _by_head(heads: int, *maps: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(one.chunk(heads, dim=-1) for one in maps), strict=True)


def _projected(out: Tensor, attention: Tensor) -> Tensor:
    """Attention (B, heads, c, c), then the projection (C, C), as one matrix for each sample, (B, C, C)."""
    projection = out.unflatten(1, (attention.shape[1], -1)).transpose(0, 1)
    return (projection @ attention).transpose(1, 2).flatten(2)


class _Gate(torch.autograd.Function):
    """GELU(a) * b of [a, b] (B, P, 2H)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        gate, value = both.chunk(2, dim=2)
        opened = F.gelu(gate)
        ctx.save_for_backward(both, opened)
        return opened * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), (both, opened) = grads, ctx.saved_tensors
        gate, value = both.chunk(2, dim=2)
        made = torch.empty_like(both)
        to_gate, to_value = made.chunk(2, dim=2)
        torch.mul(grad, value, out=to_gate)
        torch.ops.aten.gelu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        torch.mul(opened, grad, out=to_value)
        return made


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution (O, C) of a map (B, P, C) that is `height` pixels high."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor | None, height: int) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.height, ctx.has_bias = height, bias is not None
        return _product(y, weight, bias, height)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        rows = grad.flatten(0, 1)
        to_bias = rows.sum(dim=0) if ctx.has_bias else None
        return _product(grad, weight.T, None, ctx.height), rows.T @ y.flatten(0, 1), to_bias, None


def _product(y: Tensor, weight: Tensor, bias: Tensor | None, height: int) -> Tensor:
    """y @ weight.T + bias by oneDNN where it can, which is faster than the matrix products of torch on a CPU."""
    if y.device.type != "cpu" or y.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.linear(y, weight, bias)
    made = torch.mkldnn_convolution(_image(y, height), weight[..., None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return _map(made)


def _image(y: Tensor, height: int) -> Tensor:
    """A map (B, P, C) as an image (B, C, H, W), channels last."""
    return y.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def _map(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).flatten(1, 2)


@dataclass(frozen=True)
class _Run:
    """How the wide maps of a level are computed."""

    height: int  # of the maps, pixels
    dtype: torch.dtype

    def pointwise(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast_bias = None if bias is None else bias.to(self.dtype)
        return cast(Tensor, _Pointwise.apply(y.to(self.dtype), weight.to(self.dtype), cast_bias, self.height))

    def depthwise(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast_bias = None if bias is None else bias.to(self.dtype)
        image = _image(y, self.height)
        return _map(F.conv2d(image, weight.to(self.dtype), cast_bias, padding=1, groups=len(weight)))


def _expanded(y: Tensor, pointwise: nn.Conv2d, depthwise: nn.Conv2d, run: _Run, *, parts: int) -> Tensor:
    """1x1 and depth-wise convolution of a map; each of `parts` groups of channels fills whole registers."""
    matrix, taps = _filled(pointwise.weight.flatten(1), parts), _filled(depthwise.weight, parts)
    bias, tap_bias = (None if one.bias is None else _filled(one.bias, parts) for one in (pointwise, depthwise))
    return run.depthwise(run.pointwise(y, matrix, bias), taps, tap_bias)


def _filled(weight: Tensor, parts: int) -> Tensor:
    missing = -(len(weight) // parts) % _LANES
    if not missing:
        return weight
    grouped = weight.unflatten(0, (parts, -1))
    return F.pad(grouped, [0, 0] * (grouped.ndim - 2) + [0, missing]).flatten(0, 1)


def _attended(x: Tensor, layer: ChannelAttention, norm: ChannelNorm, prior: Tensor, run: _Run) -> Tensor:
    y = modulated_norm(x, norm, layer.kernel(prior))
    qkv = _expanded(y, layer.qkv, layer.qkv_dwconv, run, parts=1)
    x = cast(Tensor, _Attention.apply(x, qkv, layer.temperature, layer.project_out.weight.flatten(1)))
    return x if layer.project_out.bias is None else x + layer.project_out.bias


def _fed_forward(x: Tensor, layer: GatedFeedForward, norm: ChannelNorm, prior: Tensor, run: _Run) -> Tensor:
    y = modulated_norm(x, norm, layer.kernel(prior))
    gated = cast(Tensor, _Gate.apply(_expanded(y, layer.project_in, layer.dwconv, run, parts=2)))
    weight = layer.project_out.weight.flatten(1)
    weight = F.pad(weight, [0, gated.shape[2] - weight.shape[1]])
    return x + run.pointwise(gated, weight, layer.project_out.bias)


def _block(block: Block, run: _Run, x: Tensor, prior: Tensor) -> Tensor:
    x = _attended(x, block.attn, block.norm1, prior, run)
    return _fed_forward(x, block.ffn, block.norm2, prior, run)


def level_in_training(level: Level, image: Tensor, prior: Tensor) -> Tensor:
    """What `Level.forward` makes of a map (B, C, H, W) and a prior (B, D); channels last.

    Under autocast the wide maps alone are in half precision; the sum of the blocks, norms and attention stay float32.
    """
    run = _Run(image.shape[2], _computed_in(image))
    with torch.autocast(image.device.type, enabled=False):
        dtype = next(level.parameters()).dtype
        x, prior = _map(image).contiguous().to(dtype), prior.to(dtype)
        for block in level:
            x = level.through(partial(_block, cast(Block, block), run), x, prior)
        return _image(x, run.height)


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
