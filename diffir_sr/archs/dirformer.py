"""DIRformer: the U-shaped transformer that restores an image guided by a prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.geometry import TaskGeometry
from diffir_sr.archs.layers import PRIOR_WIDTH, Block, Down, Level, Up
from diffir_sr.archs.training_form import level_in_training, tail_in_training


class _PatchEmbed(nn.Module):
    """3x3 convolution from image to features, under the published key `patch_embed.proj`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _tail(channels: int) -> nn.Sequential:
    """x4 upsampling: two convolutions with pixel shuffle, then one to the image."""

    def double() -> list[nn.Module]:
        return [nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2)]

    return nn.Sequential(nn.Sequential(*double(), *double()), nn.Conv2d(channels, 3, 3, padding=1))


class DIRformer(nn.Module):
    """The body of DiffIR: image (B, C, H, W) and prior (B, 256) to image (B, 3, H * scale, W * scale).

    H and W must be multiples of `geometry.multiple_of`. Values are not clipped.
    """

    def __init__(
        self,
        *,
        geometry: TaskGeometry,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        expansion: float,
        bias: bool,
        norm_bias: bool,
        prior_width: int = PRIOR_WIDTH,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.fast_training = False  # train in the form of `training_form.py`, equal to rounding

        def level(width: int, depth: int, head_count: int) -> Level:
            def block() -> Block:
                return Block(
                    dim * width,
                    heads=head_count,
                    expansion=expansion,
                    bias=bias,
                    norm_bias=norm_bias,
                    prior_width=prior_width,
                )

            return Level([block() for _ in range(depth)])

        self.patch_embed = _PatchEmbed(geometry.channels * geometry.body_unshuffle**2, dim)
        self.encoder_level1 = level(1, num_blocks[0], heads[0])
        self.down1_2 = Down(dim)
        self.encoder_level2 = level(2, num_blocks[1], heads[1])
        self.down2_3 = Down(2 * dim)
        self.encoder_level3 = level(4, num_blocks[2], heads[2])
        self.down3_4 = Down(4 * dim)
        self.latent = level(8, num_blocks[3], heads[3])
        self.up4_3 = Up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(4, num_blocks[2], heads[2])
        self.up3_2 = Up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(2, num_blocks[1], heads[1])
        self.up2_1 = Up(2 * dim)
        # Level 1 keeps the 2C channels of its concatenation (no 1x1 convolution, as published), with heads[0].
        self.decoder_level1 = level(2, num_blocks[0], heads[0])
        if num_refinement_blocks:
            self.refinement = level(2, num_refinement_blocks, heads[0])
        else:
            self.refinement = None
        if geometry.upsample > 1:
            self.tail = _tail(2 * dim)
        else:
            self.output = nn.Conv2d(2 * dim, 3, 3, padding=1, bias=bias)

    def forward(self, image: Tensor, prior: Tensor) -> Tensor:
        fold = self.geometry.body_unshuffle
        fast = self.fast_training and self.training
        level = level_in_training if fast else Level.forward
        if fast:
            image = image.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(F.pixel_unshuffle(image, fold) if fold > 1 else image)
        level1 = level(self.encoder_level1, x, prior)
        level2 = level(self.encoder_level2, self.down1_2(level1), prior)
        level3 = level(self.encoder_level3, self.down2_3(level2), prior)
        x = level(self.latent, self.down3_4(level3), prior)
        x = self.reduce_chan_level3(torch.cat([self.up4_3(x), level3], 1))
        x = self.reduce_chan_level2(torch.cat([self.up3_2(level(self.decoder_level3, x, prior)), level2], 1))
        x = torch.cat([self.up2_1(level(self.decoder_level2, x, prior)), level1], 1)
        x = level(self.decoder_level1, x, prior)
        if self.refinement is not None:
            x = level(self.refinement, x, prior)
        if self.geometry.upsample == 1:
            x = self.output(x)
        elif fast:
            x = tail_in_training(self.tail, x)
        else:
            x = self.tail(x)
        return x + self._enlarged(image) if self.geometry.residual else x

    def _enlarged(self, image: Tensor) -> Tensor:
        scale = self.geometry.scale
        return F.interpolate(image, scale_factor=scale, mode="nearest") if scale > 1 else image
