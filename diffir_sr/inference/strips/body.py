"""DiffIR in its inference form, in strips of rows: the prior encoder, the DIRformer, the x4 tail.

Maps are (1, C, H, W), channels last. Each row of a map is computed once and in order, so strips cost no extra
computation, and a map can be overwritten behind the pass that reads it.

The encoder's convolutions keep two rows each, and only the pooled sum is accumulated. The DIRformer is folded for one
prior, in channels-last layout; only the features of the current level and, for the decoder, of the levels above are
whole maps in memory. They are always float32, since many blocks add to them. The tail is one convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.diffir_arch import CPEN
from diffir_sr.archs.dirformer import DIRformer
from diffir_sr.archs.layers import Block, ChannelAttention, ChannelNorm, Down, GatedFeedForward, Level, Up
from diffir_sr.devices import widest_float

RowSource = Callable[[int, int], Tensor]  # rows [start, stop) of a map; each row is requested once, from top to bottom

_SUMMED_PIXELS = 1024  # per block: large enough for a fast matrix product, small enough for a narrow strip


class Neighbours:
    """The rows of a source with `radius` rows above and below them, zero outside the image."""

    def __init__(self, source: RowSource, *, height: int, radius: int = 1) -> None:
        self._source = source
        self._height = height
        self._radius = radius
        self._read = 0
        self._kept: Tensor | None = None

    def until(self, stop: int) -> Tensor:
        """Rows [start - radius, stop + radius), where start is the stop of the last call."""
        ahead = min(stop + self._radius, self._height)
        parts = [] if self._kept is None else [self._kept]
        if ahead > self._read:
            parts.append(self._source(self._read, ahead))
        if self._kept is None:
            parts.insert(0, _zeros(parts[0], self._radius))
        if stop + self._radius > ahead:
            parts.append(_zeros(parts[0], stop + self._radius - ahead))
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        self._read = ahead
        self._kept = rows[:, :, -2 * self._radius :].clone()  # a view would keep all rows in memory
        return rows


def _zeros(like: Tensor, rows: int) -> Tensor:
    return empty_map(like.shape[1], rows, like.shape[3], like=like).zero_()


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Tensor:
    """Like torch.nn.functional.conv2d, with oneDNN if possible; torch does not use it with a single thread."""
    if x.device.type == "cpu" and _by_onednn(x.dtype):
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1), (1, 1), groups)
    return F.conv2d(x, weight, bias, padding=padding, groups=groups)


@cache
def _by_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype == torch.float32 or (dtype in known and bool(getattr(torch.ops.mkldnn, known[dtype])()))


def block_rows(width: int) -> int:
    """Rows summed at once, independent of the strips, so that sums over a map never depend on them. Even."""
    return even_rows(_SUMMED_PIXELS, width)


def even_rows(pixels: int, width: int) -> int:
    """The number of rows for `pixels` pixels: even, and at least 2."""
    return max(2, pixels // width // 2 * 2)


def strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of strips of `rows` rows, the last one shorter."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def rows_of(image: Tensor, dtype: torch.dtype) -> RowSource:
    """A map in memory as a source of rows in `dtype`."""
    return lambda start, stop: image[:, :, start:stop].to(dtype)


def empty_map(channels: int, height: int, width: int, *, like: Tensor) -> Tensor:
    """An empty map (1, channels, height, width) like `like`."""
    return torch.empty(
        (1, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


# Planning the memory for an image in advance.


_FLOAT = 4  # bytes
# Pixels in a strip on a CPU: small enough for values to stay in the cache between operations; measured with the paper's
# networks.
_FAST_PIXELS = 4096
_DENSE_PIXELS = 2048


@dataclass(frozen=True)
class StripPlan:
    """The strips for one image with features of (height, width) at the uppermost level."""

    height: int
    width: int
    rows: int  # of a strip there
    bytes: int  # memory of the run beyond weights and input
    fixed_dense: bool = True
    narrowed: bool = False  # whether strips were reduced to fit into memory

    def strip_rows(self, width: int) -> int:
        """Rows of a strip for a map of this width: the same number of pixels as at the uppermost level, in blocks."""
        block = block_rows(width)
        return max(1, self.rows * self.width // width // block) * block

    def dense_rows(self, width: int) -> int:
        """Rows of a strip for 3x3 convolutions of all channels, which need little memory. Even.

        CPU libraries select their algorithm, and thereby the rounding, by the size. Here it depends only on the width,
        so that results do not depend on the memory.
        """
        return even_rows(_DENSE_PIXELS, width) if self.fixed_dense else self.strip_rows(width)

    @property
    def is_smallest(self) -> bool:
        """Whether no narrower strip is possible."""
        return self.rows <= block_rows(self.width)

    def __str__(self) -> str:
        rows = min(self.rows, self.height)
        return f"strips of {rows} of {self.height} rows, about {self.bytes / 2**20:.0f} MiB"


class Planner:
    """Chooses strips for the body of a network, computed in `dtype`."""

    def __init__(self, body: DIRformer, *, dtype: torch.dtype, device: torch.device) -> None:
        self._geometry = body.geometry
        self._dim = body.patch_embed.proj.out_channels
        blocks = [cast(Block, block) for level in (body.latent, body.decoder_level1) for block in level]
        widths = [2 * one.ffn.project_out.in_channels + len(one.norm1.body.weight) for one in blocks]
        self._hidden = max(widths, default=2 * self._dim)
        # Bytes per value in a strip: in half precision, values exist in both widths.
        narrow = 0 if dtype == torch.float32 else torch.empty((), dtype=dtype).element_size()
        self._bytes = _FLOAT + narrow
        self._device = device

    def plan(self, height: int, width: int, *, rows: int) -> StripPlan:
        """The memory for a padded image in strips of `rows` rows of its uppermost features."""
        fold, scale = self._geometry.body_unshuffle, self._geometry.scale
        high, wide = height // fold, width // fold
        block = block_rows(wide)
        rows = max(1, min(rows, high + block - 1) // block) * block
        # The peak: level 1 before and after it is concatenated with the upsampled features.
        maps = high * wide * self._dim * 7 // 2 * _FLOAT
        image = 3 * height * width * scale * scale * _FLOAT
        strip = (min(rows, high) + 3) * wide * 3 * self._hidden * self._bytes
        edge = 0 if self._geometry.upsample == 1 else 3 * wide * 2 * 20 * self._dim * self._bytes
        return StripPlan(high, wide, rows, maps + image + max(strip, edge), fixed_dense=self._device.type == "cpu")

    def best(self, height: int, width: int, *, limit: int) -> StripPlan:
        """The fastest plan within `limit` bytes, or the smallest one if none is."""
        plan = self.plan(height, width, rows=self._fast_rows(height, width))
        while plan.bytes > limit and not plan.is_smallest:
            plan = self.narrower(height, width, plan)
        return plan

    def narrower(self, height: int, width: int, plan: StripPlan) -> StripPlan:
        """The plan with strips of half the rows."""
        return replace(self.plan(height, width, rows=plan.rows // 2), narrowed=True)

    def _fast_rows(self, height: int, width: int) -> int:
        if self._device.type != "cpu":
            return height  # GPUs benefit from large operations
        return max(1, _FAST_PIXELS // (width // self._geometry.body_unshuffle))


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


class FoldedBody:
    """A DIRformer for one image at a time, computed in `dtype` on the device of the network."""

    def __init__(self, body: DIRformer, *, dtype: torch.dtype) -> None:
        self._body = body
        self._geometry = body.geometry
        self._dtype = dtype
        self._tail = FoldedTail(body.tail, dtype=dtype) if self._geometry.upsample > 1 else None

    def __call__(self, image: Tensor, prior: Tensor, *, plan: StripPlan) -> Tensor:
        """Map image (1, C, H, W), padded, and prior (1, D) to (1, 3, H * scale, W * scale), float32 on the CPU."""
        run = _Run(prior, self._dtype, plan)
        x = self._features(image, run)
        scale, height, width = self._geometry.scale, *image.shape[-2:]
        made = torch.empty((1, 3, height * scale, width * scale))
        per_row = self._geometry.upsample if self._tail is not None else 1
        for start, stop, rows in self._image_rows(x, run):
            begin, end = start * per_row, stop * per_row
            if self._geometry.residual:
                rows = rows + _enlarged(image[:, :, begin // scale : end // scale], scale)
            made[:, :, begin:end] = rows
        return made

    def _features(self, image: Tensor, run: _Run) -> Tensor:
        body = self._body
        level1 = run.level(body.encoder_level1, self._embedded(image, run))
        level2 = run.level(body.encoder_level2, run.down(body.down1_2, level1))
        level3 = run.level(body.encoder_level3, run.down(body.down2_3, level2))
        x = run.level(body.latent, run.down(body.down3_4, level3))
        x = run.level(body.decoder_level3, run.joined(body.up4_3, x, level3, body.reduce_chan_level3))
        del level3
        x = run.level(body.decoder_level2, run.joined(body.up3_2, x, level2, body.reduce_chan_level2))
        del level2
        x = run.joined(body.up2_1, x, level1, None)
        del level1
        x = run.level(body.decoder_level1, x)
        return x if body.refinement is None else run.level(body.refinement, x)

    def _embedded(self, image: Tensor, run: _Run) -> Tensor:
        fold = self._geometry.body_unshuffle

        def folded(start: int, stop: int) -> Tensor:
            rows = image[:, :, start * fold : stop * fold]
            rows = F.pixel_unshuffle(rows, fold) if fold > 1 else rows
            return rows.to(self._dtype).contiguous(memory_format=torch.channels_last)

        size = (image.shape[2] // fold, image.shape[3] // fold)
        return run.convolved(self._body.patch_embed.proj, folded, size)

    def _image_rows(self, x: Tensor, run: _Run) -> Iterator[tuple[int, int, Tensor]]:
        height, rows = x.shape[2], run.plan.dense_rows(x.shape[3])
        seen = Neighbours(rows_of(x, self._dtype), height=height, radius=1 if self._tail is None else RADIUS)
        for start, stop in strips(height, rows):
            if self._tail is None:
                layer = self._body.output
                yield start, stop, convolve(seen.until(stop), *run.weights(layer), padding=(0, 1)).float()
            else:
                made = self._tail(seen.until(stop))
                if start == 0:
                    made[:, :, :4] = self._tail.top(x)
                if stop == height:
                    made[:, :, -4:] = self._tail.bottom(x)
                yield start, stop, made


class _Run:
    """The forward pass of one image."""

    def __init__(self, prior: Tensor, dtype: torch.dtype, plan: StripPlan) -> None:
        self._prior = prior
        self._dtype = dtype
        self.plan = plan

    def level(self, level: Level, x: Tensor) -> Tensor:
        rows = self.plan.strip_rows(x.shape[3])
        for block in level:
            FoldedBlock(cast(Block, block), self._prior, dtype=self._dtype).apply(x, rows=rows)
        return x

    def convolved(self, layer: nn.Conv2d, source: RowSource, size: tuple[int, int]) -> Tensor:
        height, width = size
        weight, bias = self.weights(layer)
        made = empty_map(len(weight), height, width, like=self._prior)
        seen = Neighbours(source, height=height)
        for start, stop in strips(height, self.plan.dense_rows(width)):
            made[:, :, start:stop] = convolve(seen.until(stop), weight, bias, padding=(0, 1))
        return made

    def down(self, layer: Down, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        weight, _ = self.weights(cast(nn.Conv2d, layer.body[0]))
        made = empty_map(4 * len(weight), height // 2, width // 2, like=x)
        seen = Neighbours(rows_of(x, self._dtype), height=height)
        for start, stop in strips(height, self.plan.dense_rows(width)):
            rows = convolve(seen.until(stop), weight, padding=(0, 1))
            made[:, :, start // 2 : stop // 2] = F.pixel_unshuffle(rows, 2)
        return made

    def joined(self, layer: Up, x: Tensor, skip: Tensor, reduce: nn.Conv2d | None) -> Tensor:
        height, width = x.shape[-2:]
        weight, _ = self.weights(cast(nn.Conv2d, layer.body[0]))
        wide = len(weight) // 4 + skip.shape[1]
        made = empty_map(wide if reduce is None else reduce.out_channels, 2 * height, 2 * width, like=x)
        seen = Neighbours(rows_of(x, self._dtype), height=height)
        for start, stop in strips(height, self.plan.dense_rows(2 * width)):
            rows = F.pixel_shuffle(convolve(seen.until(stop), weight, padding=(0, 1)), 2)
            rows = torch.cat([rows, skip[:, :, 2 * start : 2 * stop].to(self._dtype)], dim=1)
            made[:, :, 2 * start : 2 * stop] = rows if reduce is None else convolve(rows, *self.weights(reduce))
        return made

    def weights(self, layer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
        bias = None if layer.bias is None else layer.bias.to(self._dtype)
        return layer.weight.to(self._dtype), bias


def _enlarged(image: Tensor, scale: int) -> Tensor:
    return F.interpolate(image, scale_factor=scale, mode="nearest") if scale > 1 else image


# Transformer blocks, with all constants of an image folded into the weights.


_LANES = 16  # float32 values per vector register; convolutions with other channel counts take twice as long


class FoldedBlock:
    """A block of the network under one prior (1, D), computed in `dtype` between float32 maps."""

    def __init__(self, block: Block, prior: Tensor, *, dtype: torch.dtype) -> None:
        self._attention = _FoldedAttention(block.attn, block.norm1, prior, dtype)
        self._feed_forward = _FoldedFeedForward(block.ffn, block.norm2, prior, dtype)

    def apply(self, x: Tensor, *, rows: int) -> None:
        """Replace the map `x` (1, C, H, W) by the output of the block, in strips of `rows` rows."""
        self._attention.apply(x, rows)
        self._feed_forward.apply(x, rows)


class _Expansion:
    """Norm, modulation, 1x1 and depth-wise 3x3 convolution of a map: the beginning of both halves of a block."""

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
        """The same for a part of its channels, with each group padded with zeros to whole registers."""
        part = object.__new__(_Expansion)
        part._centred = self._centred
        for name in ("weight", "bias", "taps", "tap_bias"):
            groups = [getattr(self, name)[group] for group in channels]
            setattr(part, name, torch.cat([_filled(group) for group in groups]).to(dtype))
        return part

    def over(self, x: Tensor) -> Neighbours:
        """Rows of the result of the 1x1 convolution, with their neighbours."""

        def rows(start: int, stop: int) -> Tensor:
            return convolve(self._normal(x[:, :, start:stop]), self.weight, self.bias)

        return Neighbours(rows, height=x.shape[2])

    def mixed(self, rows: Tensor) -> Tensor:
        """The 3x3 convolution of rows that include their neighbours."""
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
        """Accumulate rows of [q, k]; the order of summation must not depend on the strips."""
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
