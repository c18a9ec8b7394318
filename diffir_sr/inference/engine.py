"""Restoring pictures of any size with one network: the plain form of it, in one piece."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class Engine:
    """A DiffIRS2 network ready to restore: lq (B, C, H, W) float in [0, 1] on the CPU, any size, to its picture."""

    def __init__(
        self,
        network: Any,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tile_mode: str = "auto",
        memory_limit: int | None = None,
        strip: int | None = None,
        tile: int | None = None,
        overlap: int = 32,
        optimized: bool = True,
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        self.dtype = dtype

    def prior(self, lq: Tensor, *, noise: Tensor) -> Tensor:
        """The prior (B, 256) of `lq`."""
        with torch.inference_mode():
            return self.network.encode(self.network.padded(self._here(lq)), noise=noise)

    def restore(self, lq: Tensor, prior: Tensor) -> Tensor:
        """The restored pictures (B, 3, H * scale, W * scale), float32 on the CPU, not clipped."""
        with torch.inference_mode():
            here = self._here(lq)
            whole = self.network.restore(self.network.padded(here), prior.to(here))
            return cast(Tensor, self.network.cropped(whole, here)).float().cpu()

    def __call__(self, lq: Tensor, *, noise: Tensor) -> Tensor:
        return self.restore(lq, self.prior(lq, noise=noise))

    def _here(self, lq: Tensor) -> Tensor:
        return lq.to(self.device, self.dtype)
