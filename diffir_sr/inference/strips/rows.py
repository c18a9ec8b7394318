"""Feature maps in strips of rows: how convolutions see across the seams, and where the seams lie.

Maps are (1, C, H, W), channels last. Each row of a map is made once and in order, so a pass over a map costs nothing
more in strips than in one piece, and a map may be overwritten behind the pass that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Source = Callable[[int, int], Tensor]  # rows [start, stop) of a map; asked once for each row, from top to bottom

_SUMMED_PIXELS = 1024  # in one block: large enough for a fast matrix product, small enough for a narrow strip


class Neighbours:
    """The rows of a source with `radius` rows above and below them, zero outside of the picture."""

    def __init__(self, source: Source, *, height: int, radius: int = 1) -> None:
        self._source = source
        self._height = height
        self._radius = radius
        self._read = 0
        self._kept: Tensor | None = None

    def until(self, stop: int) -> Tensor:
        """Rows [start - radius, stop + radius), where start is the last call's stop."""
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
    """As torch.nn.functional.conv2d, by oneDNN wherever it can: torch itself leaves it out for a single thread."""
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
    """Rows whose sums are taken at once, whatever the strip: sums over a map then never depend on strips. Even."""
    return even_rows(_SUMMED_PIXELS, width)


def even_rows(pixels: int, width: int) -> int:
    """As many rows as `pixels` fill, but an even number, and 2 at least."""
    return max(2, pixels // width // 2 * 2)


def strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of strips of `rows` rows, the last one shorter."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def rows_of(image: Tensor, dtype: torch.dtype) -> Source:
    """A map that lies in memory, as a source of rows in `dtype`."""
    return lambda start, stop: image[:, :, start:stop].to(dtype)


def empty_map(channels: int, height: int, width: int, *, like: Tensor) -> Tensor:
    """Room for a map (1, channels, height, width) of the same kind as `like`."""
    return torch.empty(
        (1, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
