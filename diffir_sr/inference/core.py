"""The one path from a degraded tensor to a restored one, which validation, test and `diffir restore` share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffir_sr.diffusion.noise import Noise
from diffir_sr.families.base import Engine


def restored_under(engine: Engine, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
    """The restored pictures (B, 3, H * scale, W * scale) of `lq` in [0, 1], float32 on the CPU.

    `lq` is (B, 3, H, W), or (B, 4, H, W) with the mask of missing pixels as its fourth channel; pixels that are not
    missing are then those of `lq`.
    """
    lq = lq.cpu()
    if lq.shape[1] != 4:
        return engine(lq, noise=noise, **conditions)
    colours, mask = lq[:, :3], lq[:, 3:]
    return torch.where(mask > 0.5, engine(colours, noise=noise, mask=mask, **conditions), colours)
