"""The prior (the paper's IPR): CPEN extracts it from images, the denoiser estimates it from noise.

Every LeakyReLU has slope 0.1. A prior is the output of one, so its negative values are scaled by a tenth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.layers import PRIOR_WIDTH
from diffir_sr.errors import OptionError


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.1, True)


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class _Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _activation(), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CPEN(nn.Module):
    """Compact prior extraction network: encodes images as 256 numbers.

    Stage 1 sees the degraded image and the ground truth, stage 2 only the degraded image. Each is first folded to the
    same size by pixel unshuffle (as in the published code; in the paper, after concatenation).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        n_encoder_res: int,
        unshuffle: int,
        gt_unshuffle: int = 4,
        prior_width: int = PRIOR_WIDTH,
        sees_lq: bool = True,
    ) -> None:
        """`sees_lq` False leaves the degraded image out (stage 1 with only the ground truth)."""
        super().__init__()
        if prior_width < 4 or prior_width % 4:
            raise OptionError(f"prior_width: expected a multiple of 4, got {prior_width}")
        self.unshuffle = unshuffle
        self.gt_unshuffle = gt_unshuffle
        self.sees_lq = sees_lq
        width = prior_width // 4
        self.E = nn.Sequential(
            _conv(in_channels, width),
            _activation(),
            *(_Residual(width) for _ in range(n_encoder_res)),
            _conv(width, 2 * width),
            _activation(),
            _conv(2 * width, 2 * width),
            _activation(),
            _conv(2 * width, prior_width),
            _activation(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.mlp = nn.Sequential(
            nn.Linear(prior_width, prior_width),
            _activation(),
            nn.Linear(prior_width, prior_width),
            _activation(),
        )

    def forward(self, lq: Tensor, gt: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and, in stage 1, (B, 3, H * scale, W * scale) to a prior (B, 256)."""
        x = F.pixel_unshuffle(lq, self.unshuffle) if self.unshuffle > 1 else lq
        if gt is not None:
            folded = F.pixel_unshuffle(gt, self.gt_unshuffle)
            x = torch.cat([x, folded], dim=1) if self.sees_lq else folded
        return self.mlp(self.E(x).flatten(1))


class _Dense(nn.Module):
    """Linear layer and activation; published as "ResMLP", although it has no residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resmlp = nn.Sequential(nn.Linear(width, width), _activation())

    def forward(self, x: Tensor) -> Tensor:
        return self.resmlp(x)


class PriorDenoiser(nn.Module):
    """Predicts the clean prior from a noisy one, the step and the condition: (B, 256) each, step (B,)."""

    def __init__(self, *, n_denoise_res: int, steps: int, prior_width: int = PRIOR_WIDTH) -> None:
        super().__init__()
        self.max_period = 10 * steps
        first = [nn.Linear(2 * prior_width + 1, prior_width), _activation()]
        self.resmlp = nn.Sequential(*first, *(_Dense(prior_width) for _ in range(n_denoise_res)))

    def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        # Published order: condition, step, noisy (the paper lists the noisy prior first).
        time = step.to(noisy.dtype)[:, None] / self.max_period
        return self.resmlp(torch.cat([condition, time, noisy], dim=1))
