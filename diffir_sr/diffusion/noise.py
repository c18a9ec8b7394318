"""Randomness as an argument: normal values of any shape that are a function of where they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

START = "start"  # the name of x_T; its values are those that results have always had
_ROWS = 256  # hashed at a time, which bounds memory
_BLOCK = 64  # pixels: noise of pictures is drawn in squares of this side, each from a seed of its own
_LEVELS = 65535


class Noise(Protocol):
    """Standard normal values; the caller alone knows which shape it needs."""

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        """Values of `shape` (B, ...), float32 on the CPU; equal for equal shapes and names, independent for others."""
        ...


@runtime_checkable
class PixelNoise(Noise, Protocol):
    """Noise that is tied to pixels, so that parts of a picture can have their own of it."""

    def window(self, shape: Sequence[int], name: str, *, top: int, left: int) -> Tensor:
        """`normal` of a larger picture from row `top` and column `left` on; `shape` has four dimensions."""
        ...


class PictureNoise:
    """Noise of pictures `lq` (B, C, H, W) in [0, 1]: a function of content, `seed`, `sample` and name.

    Row i of a draw belongs to picture i, whatever the batch, its order, the device or the process. A single picture
    gives rows to a batch of any size, all equal (the frames of a video share the noise of the first). A draw of four
    dimensions is tied to pixels: a smaller one of the same name is its top left corner.
    """

    def __init__(self, lq: Tensor, *, seed: int = 0, sample: int = 0) -> None:
        self._keys = [f"{seed} {sample} {_digest(picture)}" for picture in lq]

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        return self.window(shape, name, top=0, left=0)

    def window(self, shape: Sequence[int], name: str, *, top: int, left: int) -> Tensor:
        """See `PixelNoise`."""
        count, *rest = shape
        keys = self._keys * count if len(self._keys) == 1 else self._keys
        if len(keys) != count:
            raise ValueError(f"noise of {len(keys)} pictures was asked for {count} rows")
        keys = [key if name == START else f"{key} {name}" for key in keys]
        if len(shape) != 4:
            return torch.stack([_drawn(key, rest) for key in keys])
        return torch.stack([_field(key, rest, top=top, left=left) for key in keys])


class WindowNoise:
    """Noise of a part of a picture: what the whole picture's `noise` has there, so that parts agree where they overlap.

    `top`, `left`, `height` and `width` are those of the part in the degraded picture; draws of pictures may be of
    another resolution, all others are the whole picture's.
    """

    def __init__(self, noise: Noise, *, top: int, left: int, height: int, width: int) -> None:
        self._noise = noise
        self._place = top, left
        self._size = height, width

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        if len(shape) != 4 or not isinstance(self._noise, PixelNoise):
            return self._noise.normal(shape, name)
        sides = zip(self._place, self._size, shape[2:], strict=True)
        top, left = (round(start * drawn / side) for start, side, drawn in sides)
        return self._noise.window(shape, name, top=top, left=left)


class NamedNoise:
    """The part of a noise that belongs to `owner`, such as one of several networks that are run one after the other."""

    def __init__(self, noise: Noise, owner: str) -> None:
        self._noise, self._owner = noise, owner

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        return self._noise.normal(shape, f"{self._owner} {name}")

    def window(self, shape: Sequence[int], name: str, *, top: int, left: int) -> Tensor:
        """See `PixelNoise`."""
        if not isinstance(self._noise, PixelNoise):
            return self.normal(shape, name)
        return self._noise.window(shape, f"{self._owner} {name}", top=top, left=left)


class StackedNoise:
    """Noise of a batch whose rows have a noise each, such as several samples of one picture."""

    def __init__(self, rows: Sequence[PixelNoise]) -> None:
        self._rows = rows

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        return torch.cat([row.normal((1, *shape[1:]), name) for row in self._rows])

    def window(self, shape: Sequence[int], name: str, *, top: int, left: int) -> Tensor:
        """See `PixelNoise`."""
        return torch.cat([row.window((1, *shape[1:]), name, top=top, left=left) for row in self._rows])


class IterationNoise:
    """Noise of a training iteration: a function of seed, iteration, rank and name, so that resuming changes nothing."""

    def __init__(self, *, seed: int, iteration: int, rank: int = 0) -> None:
        self._key = (seed * 1_000_003 + iteration) * 4_099 + rank

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        key = self._key % 2**63 if name == START else _seed_of(f"{self._key} {name}")
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key))


class RowsNoise:
    """Noise of some rows of a batch: what the `noise` of all its `count` rows has there, from row `first` on."""

    def __init__(self, noise: Noise, *, first: int, count: int) -> None:
        self._noise, self._first, self._count = noise, first, count

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        rows, *rest = shape
        return self._noise.normal((self._count, *rest), name)[self._first : self._first + rows]


class GivenNoise:
    """Start noise that is at hand, (B, ...), for tests and for models exported with noise as an input."""

    def __init__(self, start: Tensor) -> None:
        self._start = start

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        if name != START or tuple(shape) != tuple(self._start.shape):
            raise ValueError(f"noise {name!r} of shape {tuple(shape)} is not the given {tuple(self._start.shape)}")
        return self._start


def picture_noise(lq: Tensor, *, width: int, seed: int = 0, sample: int = 0) -> Tensor:
    """The start noise (B, width) of pictures: `PictureNoise` for the published call of DiffIR, which takes a tensor."""
    return PictureNoise(lq, seed=seed, sample=sample).normal((len(lq), width))


def fixed_noise(width: int, *, seed: int = 0) -> Tensor:
    """Start noise (1, width) that does not depend on the picture, for programs that only pass pictures or tiles."""
    return _drawn(f"fixed {seed}", [width])[None]


def _drawn(key: str, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(_seed_of(key)))


def _field(key: str, shape: Sequence[int], *, top: int, left: int) -> Tensor:
    """Values (C, H, W) from row `top` and column `left` of a plane without end, which `key` names."""
    channels, height, width = shape
    field = torch.empty(channels, height, width)
    for row in range(top // _BLOCK, -(-(top + height) // _BLOCK)):
        for column in range(left // _BLOCK, -(-(left + width) // _BLOCK)):
            block = _drawn(f"{key} {row} {column}", (channels, _BLOCK, _BLOCK))
            # Where the block and the window meet, seen from either.
            rows = max(top, row * _BLOCK), min(top + height, (row + 1) * _BLOCK)
            columns = max(left, column * _BLOCK), min(left + width, (column + 1) * _BLOCK)
            there = (..., slice(rows[0] - top, rows[1] - top), slice(columns[0] - left, columns[1] - left))
            y, x = row * _BLOCK, column * _BLOCK
            field[there] = block[..., rows[0] - y : rows[1] - y, columns[0] - x : columns[1] - x]
    return field


def _seed_of(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def _digest(picture: Tensor) -> str:
    """A name for the content of (C, H, W): its values in 16 bits, so that the way they were computed has no part."""
    found = hashlib.blake2b(str(tuple(picture.shape)).encode(), digest_size=16)
    for channel in picture:
        for top in range(0, channel.shape[0], _ROWS):
            values = channel[top : top + _ROWS].detach().cpu().float().clamp(0, 1) * _LEVELS
            found.update(values.round().to(torch.int32).numpy().astype("<u2").tobytes())
    return found.hexdigest()
