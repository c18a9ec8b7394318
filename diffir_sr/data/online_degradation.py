"""From a batch of ground truth and kernels to training pairs, on the device: degrade, cut, mix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffir_sr.data.degradation import Degradation, DegradationOptions, PairPool, ranges_from_options
from diffir_sr.errors import OptionError

_KERNELS = ("kernel1", "kernel2", "sinc_kernel")


class OnlineDegradation:
    """Makes pairs of batches of RealESRGANDataset as the top level of an option file says.

    `degradation_sharing: batch` (published): a batch shares its decisions and its place of the cut, and a pool of
    `queue_size` pairs mixes batches. `degradation_sharing: image`: every image has its own, a function of its draw
    alone, so that no pool is needed and neither batch size, ranks nor resuming change a pair.
    """

    def __init__(self, opt: Mapping[str, Any], *, scale: int, device: torch.device) -> None:
        first, second = ranges_from_options(opt)
        self.degradation = Degradation(scale=scale, first=first, second=second).to(device)
        options = DegradationOptions.of(opt)
        self.gt_size = options.gt_size
        if self.gt_size % scale:
            raise OptionError(f"gt_size {self.gt_size} is not a multiple of scale {scale}; choose one that is")
        self.by_image = options.degradation_sharing == "image"
        self.pool = None if self.by_image else PairPool(options.queue_size)

    @torch.no_grad()
    def pairs(
        self, gt: Tensor, kernels: Mapping[str, Tensor], seeds: Tensor, *, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Degraded patches (B, 3, gt_size / scale, ..) and their ground truth (B, 3, gt_size, gt_size).

        `start` is what is degraded, `gt` or its sharpened form; `kernels` are (B, 21, 21); `seeds` (B,) int64.
        """
        kernels = {name: kernels[name] for name in _KERNELS}
        if not self.by_image:
            rng = np.random.default_rng(seeds.tolist())
            lq = self.degradation(start, **kernels, rng=rng)
            assert self.pool is not None
            return self.pool.exchange(*self._cut(lq, gt, rng), rng=rng)
        made = []
        for index, seed in enumerate(seeds.tolist()):
            one, rng = slice(index, index + 1), np.random.default_rng(seed)
            own = {name: kernel[one] for name, kernel in kernels.items()}
            made.append(self._cut(self.degradation(start[one], **own, rng=rng), gt[one], rng))
        lq, patches = zip(*made, strict=True)
        return torch.cat(lq), torch.cat(patches)

    def _cut(self, lq: Tensor, gt: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        scale = self.degradation.scale
        low = self.gt_size // scale
        if min(lq.shape[-2:]) < low:
            raise OptionError(
                f"gt_size {self.gt_size} is larger than the squares that are degraded ({gt.shape[-1]} pixels); lower "
                "it, or raise crop_pad_size of the dataset"
            )
        top, left = (int(rng.integers(side - low + 1)) for side in lq.shape[-2:])
        high = gt[..., top * scale :, left * scale :][..., : self.gt_size, : self.gt_size]
        return lq[..., top : top + low, left : left + low].contiguous(), high.contiguous()
