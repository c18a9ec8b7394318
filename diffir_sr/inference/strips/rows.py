"""Feature maps in strips of rows: neighbouring rows for convolutions, and planning of strips.

Maps are (1, C, H, W), channels last. Each row of a map is computed once and in order, so strips cost no extra
computation, and a map can be overwritten behind the pass that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from diffir_sr.archs.dirformer import DIRformer
from diffir_sr.archs.layers import Block

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
