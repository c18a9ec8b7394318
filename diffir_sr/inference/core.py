"""The one path from a degraded tensor to a restored one, which validation, test and `diffir restore` share."""

from __future__ import annotations

import torch
from torch import Tensor

from diffir_sr.archs.layers import PRIOR_WIDTH
from diffir_sr.diffusion.noise import picture_noise
from diffir_sr.inference.engine import Engine


def restored(engine: Engine, lq: Tensor, *, seed: int = 0, sample: int = 0) -> Tensor:
    """The restored pictures (B, 3, H * scale, W * scale) of `lq` (B, C, H, W) in [0, 1], float32 on the CPU.

    Start noise follows from each picture, `seed` and `sample`. Where `lq` has a mask as its fourth channel, pixels
    that are not missing are those of `lq`.
    """
    noise = picture_noise(lq, width=engine.network.prior_width, seed=seed, sample=sample)
    return restored_under(engine, lq, noise=noise)


def start(lq: Tensor, *, seed: int = 0, sample: int = 0, width: int = PRIOR_WIDTH) -> Tensor:
    """Start noise (B, width) for the pictures `lq`."""
    return picture_noise(lq, width=width, seed=seed, sample=sample)


def restored_under(engine: Engine, lq: Tensor, *, noise: Tensor) -> Tensor:
    """As `restored`, under given start noise (B, 256)."""
    lq = lq.cpu()
    made = engine(lq, noise=noise)
    return torch.where(lq[:, 3:] > 0.5, made, lq[:, :3]) if lq.shape[1] == 4 else made
