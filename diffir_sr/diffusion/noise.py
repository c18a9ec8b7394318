"""Randomness as an argument: normal values of any shape that are a function of where they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

START = "start"  # the name of x_T; its values are those that results have always had
_ROWS = 256  # hashed at a time, which bounds memory
_LEVELS = 65535


class Noise(Protocol):
    """Standard normal values; the caller alone knows which shape it needs."""

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        """Values of `shape` (B, ...), float32 on the CPU; equal for equal shapes and names, independent for others."""
        ...


class PictureNoise:
    """Noise of pictures `lq` (B, C, H, W) in [0, 1]: a function of content, `seed`, `sample` and name.

    Row i of a draw belongs to picture i, whatever the batch, its order, the device or the process. A single picture
    gives rows to a batch of any size, all equal (the frames of a video share the noise of the first).
    """

    def __init__(self, lq: Tensor, *, seed: int = 0, sample: int = 0) -> None:
        self._keys = [f"{seed} {sample} {_digest(picture)}" for picture in lq]

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        count, *rest = shape
        keys = self._keys * count if len(self._keys) == 1 else self._keys
        if len(keys) != count:
            raise ValueError(f"noise of {len(keys)} pictures was asked for {count} rows")
        return torch.stack([_drawn(key if name == START else f"{key} {name}", rest) for key in keys])


class IterationNoise:
    """Noise of a training iteration: a function of seed, iteration, rank and name, so that resuming changes nothing."""

    def __init__(self, *, seed: int, iteration: int, rank: int = 0) -> None:
        self._key = (seed * 1_000_003 + iteration) * 4_099 + rank

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        key = self._key % 2**63 if name == START else _seed_of(f"{self._key} {name}")
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key))


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


def _drawn(key: str, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(_seed_of(key)))


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
