"""Start noise x_T as a function of the picture and a seed: nothing else about a run can change a result."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_ROWS = 256  # hashed at a time, which bounds memory
_LEVELS = 65535


def picture_noise(lq: Tensor, *, width: int, seed: int = 0, sample: int = 0) -> Tensor:
    """Standard normal rows (B, width), each drawn on the CPU for its picture of `lq` (B, C, H, W) in [0, 1].

    Rows are equal for equal pictures, `seed` and `sample`, whatever the batch, its order, the device or the process.
    """
    rows = [_row(picture, width=width, seed=seed, sample=sample) for picture in lq]
    return torch.stack(rows)


def _row(picture: Tensor, *, width: int, seed: int, sample: int) -> Tensor:
    key = hashlib.blake2b(f"{seed} {sample} {_digest(picture)}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    return torch.randn(width, generator=generator)


def _digest(picture: Tensor) -> str:
    """A name for the content of (C, H, W): its values in 16 bits, so that the way they were computed has no part."""
    found = hashlib.blake2b(str(tuple(picture.shape)).encode(), digest_size=16)
    for channel in picture:
        for top in range(0, channel.shape[0], _ROWS):
            values = channel[top : top + _ROWS].detach().cpu().float().clamp(0, 1) * _LEVELS
            found.update(values.round().to(torch.int32).numpy().astype("<u2").tobytes())
    return found.hexdigest()
