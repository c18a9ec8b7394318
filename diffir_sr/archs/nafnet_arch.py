"""NAFNet (Chen et al. 2022), restoration without activation functions, and the structure correction of AutoDIR.

Shapes: features (B, C, H, W). Attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.archs.geometry import check_image
from diffir_sr.diffusion.noise import Noise
from diffir_sr.errors import OptionError
from diffir_sr.option_types import Blocks, Number, Section, Small

_WINDOW = 1.5  # side of the local means over that of the training patches, as in the released test configurations
_Counts = Annotated[list[Blocks], Field(min_length=1, max_length=12)]


class NAFNetArguments(Section):
    """Arguments of NAFNet."""

    width: Small = Field(description="Channels of the first level; every level has twice those of the one before.")
    middle_blk_num: Blocks = Field(description="Blocks on the deepest level.")
    enc_blk_nums: _Counts = Field(description="Blocks on each level on the way down.")
    dec_blk_nums: _Counts = Field(description="Blocks on each level on the way up, as many levels as down.")
    train_size: Small | None = Field(
        description="Side of the training patches: outside of training channels are then weighted by means over 1.5 "
        "times this window around each pixel (TLC) instead of by means over the whole picture.",
    )


class NAFNetSCMArguments(NAFNetArguments):
    """Arguments of NAFNetSCM."""

    weight: Number = Field(description="Factor on the correction, which is added to the restored picture.")


class ChannelsFirstNorm(nn.Module):
    """Layer norm over the channels of each pixel; biased variance, eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance + 1e-6) * self.weight[:, None, None] + self.bias[:, None, None]


class ChannelMeans(nn.Module):
    """Means of each channel: (B, C, 1, 1) over the whole picture, or (B, C, H, W) in a window around each pixel.

    `window` (pixels of this level) counts outside of training alone. Windows that would reach over an edge are moved
    inside, all as far as the first that fits (Chu et al. 2022, "Improving image restoration by revisiting global
    information aggregation").
    """

    def __init__(self) -> None:
        super().__init__()
        self.window: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.training or self.window is None or (self.window >= height and self.window >= width):
            return x.mean(dim=(2, 3), keepdim=True)
        means = _running_means(_running_means(x, self.window, dim=2), self.window, dim=3)
        spare = [whole - made for whole, made in zip((width, height), means.shape[:1:-1], strict=True)]
        sides = [side for extra in spare for side in (extra // 2, (extra + 1) // 2)]
        return F.pad(means, sides, mode="replicate")


def _running_means(x: Tensor, window: int, *, dim: int) -> Tensor:
    """Means over `window` neighbours along `dim`, which becomes as short as there are whole windows."""
    window = min(window, x.shape[dim])
    # Sums of what differs from the mean stay small, so that float32 is enough for pictures of any size.
    mean = x.mean(dim=dim, keepdim=True)
    sums = F.pad((x - mean).cumsum(dim=dim), (0, 0, 1, 0) if dim == 2 else (1, 0))
    count = x.shape[dim] - window + 1
    return (sums.narrow(dim, window, count) - sums.narrow(dim, 0, count)) / window + mean


def _gated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Depth-wise convolution with channel attention, then a feed-forward; both gated by products, both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        twice = 2 * channels
        # In the order of the published files.
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, twice, 1)
        self.conv2 = nn.Conv2d(twice, twice, 3, padding=1, groups=twice)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(ChannelMeans(), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, twice, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = ChannelsFirstNorm(channels)
        self.norm2 = ChannelsFirstNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed = _gated(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(mixed * self.sca(mixed)) * self.beta
        return x + self.conv5(_gated(self.conv4(self.norm2(x)))) * self.gamma


class _NAFBody(nn.Module):
    """What both networks compute before the picture is added: (B, 3, H, W) of `image` (B, C, H, W), any size."""

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        middle_blk_num: int,
        enc_blk_nums: Sequence[int],
        dec_blk_nums: Sequence[int],
        train_size: int | None,
    ) -> None:
        super().__init__()
        if len(enc_blk_nums) != len(dec_blk_nums):
            raise OptionError(
                f"dec_blk_nums: expected as many levels as enc_blk_nums has ({len(enc_blk_nums)}), found "
                f"{len(dec_blk_nums)}"
            )
        self._depth = len(enc_blk_nums)
        self.intro = nn.Conv2d(channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, 3, 3, padding=1)
        widths = [width * 2**level for level in range(self._depth + 1)]
        self.encoders = nn.ModuleList(map(_blocks, widths, enc_blk_nums))
        self.decoders = nn.ModuleList(map(_blocks, reversed(widths[:-1]), dec_blk_nums))
        self.middle_blks = _blocks(widths[-1], middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below, 2 * below, 1, bias=False), nn.PixelShuffle(2))
            for below in reversed(widths[1:])
        )
        self.downs = nn.ModuleList(nn.Conv2d(above, 2 * above, 2, 2) for above in widths[:-1])
        self.train_size = train_size

    @property
    def train_size(self) -> int | None:
        """Side of the training patches in pixels where means are local outside of training, else None."""
        return self._train_size

    @train_size.setter
    def train_size(self, size: int | None) -> None:
        self._train_size = size
        for level, blocks in self._levels():
            for module in blocks.modules():
                if isinstance(module, ChannelMeans):
                    module.window = None if size is None else max(1, int(_WINDOW * size) // 2**level)

    def _levels(self) -> list[tuple[int, nn.Module]]:
        down = list(enumerate(self.encoders))
        up = [(self._depth - 1 - index, blocks) for index, blocks in enumerate(self.decoders)]
        return [*down, (self._depth, self.middle_blks), *up]

    def body(self, image: Tensor) -> Tensor:
        # Zeros, which the means and norms see, as published.
        height, width = image.shape[-2:]
        multiple = 2**self._depth
        x = self.intro(F.pad(image, (0, -width % multiple, 0, -height % multiple)))
        skips = []
        for blocks, down in zip(self.encoders, self.downs, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for blocks, up in zip(self.decoders, self.ups, strict=True):
            x = blocks(up(x) + skips.pop())
        return self.ending(x)[..., :height, :width]


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))


class NAFNet(_NAFBody):
    """Restores by one call: the correction of a picture in [0, 1], added to it. Arguments under their published names.

    Sides of any length are padded inside. Means over the whole picture make its parts depend on each other, so that
    tiles differ from the whole; `train_size` makes them local outside of training, which also fits pictures larger
    than the training patches better.
    """

    ARGUMENTS: ClassVar[Any] = NAFNetArguments
    conditions: frozenset[str] = frozenset()
    scale = 1
    multiple_of = 1

    def __init__(
        self,
        *,
        width: int = 32,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (1, 1, 1, 28),
        dec_blk_nums: Sequence[int] = (1, 1, 1, 1),
        train_size: int | None = None,
    ) -> None:
        super().__init__(
            3,
            width=width,
            middle_blk_num=middle_blk_num,
            enc_blk_nums=enc_blk_nums,
            dec_blk_nums=dec_blk_nums,
            train_size=train_size,
        )

    def forward(self, lq: Tensor) -> Tensor:
        """(B, 3, H, W) of `lq` (B, 3, H, W) in [0, 1]."""
        check_image(lq, channels=3, name="lq")
        return self.body(lq) + lq

    def restore(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """See `families.base.Restores`; `noise` has no part in it."""
        return self(lq)


class NAFNetSCM(_NAFBody):
    """AutoDIR's structure correction: gives back to a restored picture the structure of the degraded one.

    `weight` scales the correction, 0 leaves the restored picture as it is. Not a restorer by itself.
    """

    ARGUMENTS: ClassVar[Any] = NAFNetSCMArguments

    def __init__(
        self,
        *,
        width: int = 64,
        middle_blk_num: int = 12,
        enc_blk_nums: Sequence[int] = (2, 2, 4, 8),
        dec_blk_nums: Sequence[int] = (2, 2, 2, 2),
        train_size: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(
            6,
            width=width,
            middle_blk_num=middle_blk_num,
            enc_blk_nums=enc_blk_nums,
            dec_blk_nums=dec_blk_nums,
            train_size=train_size,
        )
        self.weight = weight

    def forward(self, lq: Tensor, restored: Tensor, *, weight: float | None = None) -> Tensor:
        """`restored` corrected by what `lq` shows, all (B, 3, H, W) in about [-1, 1], not clipped."""
        for image, name in ((lq, "lq"), (restored, "restored")):
            check_image(image, channels=3, name=name)
        return (self.weight if weight is None else weight) * self.body(torch.cat([lq, restored], dim=1)) + restored
