"""The U-Net of SR3 and its relatives, for a picture under noise of a continuous level, and its convolutions on a CPU.

A 3x3 convolution of many channels is computed by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016), which
multiplies 36 times per 4x4 outputs and pair of channels instead of 144 times. Interpolation at 0, +-sqrt(1/2) and
+-sqrt(2) keeps its rounding errors at those of a direct convolution (Barabasz et al. 2020); the usual 0, +-1, +-2 would
make them five times as large.

One network, several layouts: what differs between them is a row of `PRESETS`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.geometry import check_image
from diffir_sr.diffusion.sampling import LevelSpace
from diffir_sr.errors import InputError, OptionError

_OUT, _IN = 4, 6  # sides of a tile behind and before the filter
# Where it is the faster way, as measured: channels of input and output, and tiles of a picture. Transformed filters
# take four times the memory; larger ones (75 MiB) stay as they are.
_CHANNELS, _TILES, _LARGEST = 128, 16, 2**19
_AT_ONCE = 2**21  # numbers in a band of transformed tiles, which then stays in the processor's cache


class Convolution(nn.Conv2d):
    """`nn.Conv2d` that chooses how it computes where nothing is trained; weights are kept channels-last."""

    def __init__(self, inside: int, outside: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inside, outside, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.to(memory_format=torch.channels_last)
        self._filters: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        may_choose = _may_choose(input, self.weight)
        if self.kernel_size == (1, 1):
            if self.stride != (1, 1):
                # Left to the convolution, the stride crashes the process in the backward pass of channels-last images
                # of fewer than 16 channels (torch 2.14 on a CPU).
                input = input[:, :, :: self.stride[0], :: self.stride[1]]
            if not may_choose:
                return F.conv2d(input, self.weight, self.bias)
            # A channels-last image is a matrix of pixels already.
            made = F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return made.permute(0, 3, 1, 2)
        if not may_choose:
            return super().forward(input)
        height, width = input.shape[-2:]
        tiles = len(input) * -(-height // _OUT) * -(-width // _OUT)
        is_plain = self.kernel_size == (3, 3) and self.stride == (1, 1)
        fits = min(self.in_channels, self.out_channels) >= _CHANNELS
        fits &= self.in_channels * self.out_channels <= _LARGEST
        if is_plain and fits and tiles >= _TILES:
            return winograd(input, self._transformed(), self.bias)
        if is_plain and tiles < _TILES and min(self.in_channels, self.out_channels) >= _CHANNELS:
            return as_product(input, self.weight, self.bias)
        return super().forward(input)

    def _transformed(self) -> Tensor:
        """The filters for `winograd`, computed when the weights have changed."""
        now = self.weight._version, self.weight.data_ptr()
        if self._filters is None or self._filters[0] != now:
            self._filters = now, transformed(self.weight)
        return self._filters[1]


def _may_choose(x: Tensor, weight: Tensor) -> bool:
    # Shapes without values (counting costs) are for the plain form, of which others know what it is.
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()  # has no version, so that changes would not be seen
    )


def as_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of a small picture as one matrix product; channels-last weights are that matrix already."""
    count, inside, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    step = padded.stride()
    seen = padded.as_strided((count, height, width, 3, 3, inside), (*step[:3], step[1], step[2], 1))
    made = F.linear(seen.reshape(-1, 9 * inside), weight.permute(0, 2, 3, 1).reshape(len(weight), -1), bias)
    return made.view(count, height, width, -1).permute(0, 3, 1, 2)


@cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transforms of the output (4, 6), of filters (6, 3) and of the input (6, 6), float64: Toom and Cook's way."""
    points = [0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2)]

    def powers(count: int) -> np.ndarray:
        return np.array([[point**k for k in range(count)] for point in points] + [[0.0] * (count - 1) + [1.0]])

    return powers(_OUT).T, powers(3), np.linalg.inv(powers(_IN)).T


def transformed(weight: Tensor) -> Tensor:
    """Filters (O, I, 3, 3) as `winograd` takes them, (36, I, O)."""
    _, filters, _ = _matrices()
    both = np.kron(filters, filters)
    flat = weight.detach().contiguous().numpy().astype(np.float64).reshape(-1, 9).T
    found = (both @ flat).astype(np.float32).reshape(_IN**2, *weight.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(found.transpose(0, 2, 1)))


@cache
def _two_dimensional() -> tuple[np.ndarray, np.ndarray]:
    """Of the output and of the input; arrays, as a tensor made while shapes alone are computed would have no values."""
    output, _, source = _matrices()
    return np.kron(output, output).astype(np.float32), np.kron(source, source).astype(np.float32)


def winograd(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of `x` (B, I, H, W) with zeros around it, (B, O, H, W) channels-last.

    `filters` are `transformed`.
    """
    output, source = map(torch.from_numpy, _two_dimensional())
    count, inside, height, width = x.shape
    outside = filters.shape[2]
    rows, columns = -(-height // _OUT), -(-width // _OUT)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, _OUT * columns - width + 1, 1, _OUT * rows - height + 1))
    step = padded.stride()
    made = x.new_empty((count, _OUT * rows, _OUT * columns, outside))
    band = max(1, _AT_ONCE // (_IN**2 * count * columns * max(inside, outside)))
    for top in range(0, rows, band):
        high = min(band, rows - top)
        shape = (_IN, _IN, count, high, columns, inside)
        strides = (step[1], step[2], step[0], _OUT * step[1], _OUT * step[2], 1)
        tiles = padded.as_strided(shape, strides, padded.storage_offset() + _OUT * top * step[1])
        seen = (source @ tiles.reshape(_IN**2, -1)).view(_IN**2, -1, inside)
        found = output @ torch.bmm(seen, filters).view(_IN**2, -1)
        part = found.view(_OUT, _OUT, count, high, columns, outside).permute(2, 3, 0, 4, 1, 5)
        target = made[:, _OUT * top : _OUT * (top + high)].unflatten(2, (columns, _OUT)).unflatten(1, (high, _OUT))
        target.copy_(part) if bias is None else torch.add(part, bias, out=target)
    return made[:, :height, :width].permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What the published layouts do differently."""

    normalised: bool = True  # GroupNorm before every activation
    attention: bool = True  # in the middle, and where `attn_res` puts it
    attention_bias: bool = False  # of its first projection
    moves_in_blocks: bool = False  # residual blocks change the resolution (BigGAN), not single convolutions
    strided: bool = False  # such blocks halve by a convolution of their own, not by averaging
    skip_rescale: float = 1.0  # factor on the sum of skip and block
    stem: int = 3  # kernel of the first convolution, pixels
    level_width: int = 1  # width of the embedded level that blocks are given, in base widths
    level_scale: float = 1.0  # factor on the level before its sinusoids
    level_space: LevelSpace = "gamma"  # what the level is: abar, or its square root
    zero_init: bool = True  # blocks start as the identity: their last convolution is zero


PRESETS = {
    # The public code and weights (Janspiry), which follow DDPM and WaveGrad.
    "janspiry": Preset(level_space="sqrt_gamma", zero_init=False),
    # Saharia et al. 2021: BigGAN blocks, skips scaled by 1/sqrt(2). What the paper leaves open was chosen so that the
    # numbers of weights come near to those that it states.
    "sr3_paper": Preset(
        attention_bias=True, moves_in_blocks=True, skip_rescale=math.sqrt(0.5), level_width=4, level_scale=5000.0
    ),
    # Whang et al. 2022: nothing looks at the whole picture, so that small patches train for large pictures.
    "dvsr": Preset(
        normalised=False, attention=False, moves_in_blocks=True, strided=True, stem=1, level_scale=5000.0
    ),
}  # fmt: skip


class LevelEmbedding(nn.Module):
    """Sines, then cosines (B, width) of noise levels (B,); frequencies fall from 1 to nearly 1e-4."""

    def __init__(self, width: int, *, scale: float) -> None:
        super().__init__()
        if width % 2:
            raise OptionError(f"inner_channel: expected an even number (half are sines of the level), found {width}")
        self.width, self.scale = width, scale

    def forward(self, level: Tensor) -> Tensor:
        half = self.width // 2
        steps = torch.arange(half, dtype=level.dtype, device=level.device) / half
        angle = self.scale * level[:, None] * torch.exp(-math.log(1e4) * steps)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Block(nn.Module):
    """Normalise, activate, then `between` (dropout, or a change of resolution), then a convolution."""

    def __init__(self, inside: int, outside: int, *, groups: int, between: nn.Module) -> None:
        super().__init__()
        norm = nn.GroupNorm(groups, inside) if groups else nn.Identity()
        self.block = nn.Sequential(norm, nn.SiLU(), between, Convolution(inside, outside, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class LevelShift(nn.Module):
    """Adds a linear function of the embedded level to every pixel."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(inside, outside))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x + self.noise_func(level)[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two convolutions under the noise level, beside a skip; `move` is "", "down" or "up" by two."""

    def __init__(
        self, inside: int, outside: int, *, preset: Preset, groups: int, dropout: float, level: int, move: str = ""
    ) -> None:
        super().__init__()
        self.rescale = preset.skip_rescale
        if level:
            self.noise_func = LevelShift(level, outside)
        self.block1 = Block(inside, outside, groups=groups, between=_inner_move(move, inside, preset))
        dropping = nn.Dropout(dropout) if dropout else nn.Identity()
        self.block2 = Block(outside, outside, groups=groups, between=dropping)
        if preset.zero_init:
            nn.init.zeros_(cast(nn.Conv2d, self.block2.block[3]).weight)
            nn.init.zeros_(cast(Tensor, cast(nn.Conv2d, self.block2.block[3]).bias))
        self.activated = preset.level_width > 1  # a wide embedding is activated once more before it is projected
        self.res_conv = _skip(move, inside, outside, preset)

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        inner = self.block1(x)
        if level is not None:
            inner = self.noise_func(inner, F.silu(level) if self.activated else level)
        made = self.block2(inner) + self.res_conv(x)
        return made if self.rescale == 1 else made * self.rescale


def _inner_move(move: str, channels: int, preset: Preset) -> nn.Module:
    if move == "down" and preset.strided:
        return nn.Sequential(Convolution(channels, channels, 3, stride=2), nn.SiLU())
    if move == "up" and preset.strided:
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.SiLU())
    return {"": nn.Identity, "down": lambda: nn.AvgPool2d(2), "up": lambda: nn.Upsample(scale_factor=2)}[move]()


def _skip(move: str, inside: int, outside: int, preset: Preset) -> nn.Module:
    if move == "down" and preset.strided:
        return Convolution(inside, outside, 1, stride=2)
    if move:
        return nn.Sequential(_inner_move(move, inside, PRESETS["sr3_paper"]), Convolution(inside, outside, 1))
    return Convolution(inside, outside, 1) if inside != outside else nn.Identity()


class Attention(nn.Module):
    """Every pixel looks at all others, in one head; added to its input."""

    def __init__(self, channels: int, *, groups: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = Convolution(channels, 3 * channels, 1, bias=bias)
        self.out = Convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(1, (3, -1)).flatten(3).transpose(2, 3)
        # (B, one head, pixels, C), in this order in memory: only then does memory grow with pixels, not their square.
        query, key, value = (part[:, None] for part in parts.contiguous().unbind(1))
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(seen[:, 0].transpose(1, 2).reshape(x.shape))


class Entry(nn.Module):
    """A residual block, and attention behind it where there is any."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.res_block = block
        if attention is not None:
            self.attn = attention

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        made = self.res_block(x, level)
        return self.attn(made) if hasattr(self, "attn") else made


class Downsample(nn.Module):
    """Halves by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles by repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class NoiseLevelUNet(nn.Module):
    """Maps (B, in_channel, H, W) and noise levels (B,) to (B, out_channel, H, W); sides divide by `multiple_of`.

    Arguments have the published names. `attn_res` lists the resolutions that have attention in a picture of
    `image_size`, for which the network is built; `with_noise_level_emb` False builds one without a level. With the
    preset janspiry its tensors have the names that published weights have behind `denoise_fn.`.
    """

    def __init__(
        self,
        *,
        preset: str = "janspiry",
        in_channel: int = 6,
        out_channel: int = 3,
        inner_channel: int = 64,
        norm_groups: int = 32,
        channel_mults: Sequence[int] = (1, 2, 4, 8, 8),
        attn_res: Sequence[int] = (16,),
        res_blocks: int = 2,
        dropout: float = 0.0,
        with_noise_level_emb: bool = True,
        image_size: int = 128,
        level_scale: float | None = None,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise OptionError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
        self.preset = PRESETS[preset]
        divide = self.preset.normalised and not self.preset.moves_in_blocks
        _check_sizes(inner_channel, norm_groups, channel_mults, res_blocks, divide=divide)
        self.in_channel = in_channel
        self._groups, self._dropout = norm_groups, dropout
        self._level = inner_channel * self.preset.level_width if with_noise_level_emb else 0
        self.multiple_of = 2 ** (len(channel_mults) - 1)
        if with_noise_level_emb:
            scale = self.preset.level_scale if level_scale is None else level_scale
            self.noise_level_mlp = nn.Sequential(
                LevelEmbedding(inner_channel, scale=scale),
                nn.Linear(inner_channel, 4 * inner_channel),
                nn.SiLU(),
                nn.Linear(4 * inner_channel, self._level),
            )
        widths = [inner_channel * multiplier for multiplier in channel_mults]
        attended = [self.preset.attention and image_size // 2**level in attn_res for level in range(len(widths))]
        stem = Convolution(in_channel, inner_channel, self.preset.stem)
        kept = [inner_channel]  # widths of what the way down leaves for the way up
        downs: list[nn.Module] = [stem]
        for level, width in enumerate(widths):
            for _ in range(res_blocks):
                downs.append(self._entry(kept[-1], width, attention=attended[level]))
                kept.append(width)
            if level < len(widths) - 1:
                downs.append(self._move("down", width))
                kept.append(width)
        self.downs = nn.ModuleList(downs)
        width = kept[-1]
        self.mid = nn.ModuleList(
            [self._entry(width, width, attention=self.preset.attention), self._entry(width, width, attention=False)]
        )
        ups: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            for _ in range(res_blocks + 1):
                ups.append(self._entry(width + kept.pop(), widths[level], attention=attended[level]))
                width = widths[level]
            if level:
                ups.append(self._move("up", width))
        self.ups = nn.ModuleList(ups)
        self.final_conv = Block(width, out_channel, groups=self._groups_of(width), between=nn.Identity())

    def _groups_of(self, *widths: int) -> int:
        """Groups of channels that are normalised together: as given, or in BigGAN's blocks what suits the widths."""
        if not self.preset.normalised:
            return 0
        if not self.preset.moves_in_blocks:
            return self._groups
        suiting = (n for n in range(1, self._groups + 1) if all(w % n == 0 and w >= 4 * n for w in widths))
        return max(suiting, default=1)

    def _block(self, inside: int, outside: int, move: str = "") -> ResidualBlock:
        return ResidualBlock(
            inside,
            outside,
            preset=self.preset,
            groups=self._groups_of(inside, outside),
            dropout=self._dropout,
            level=self._level,
            move=move,
        )

    def _entry(self, inside: int, outside: int, *, attention: bool) -> Entry:
        bias = self.preset.attention_bias
        found = Attention(outside, groups=self._groups_of(outside), bias=bias) if attention else None
        return Entry(self._block(inside, outside), found)

    def _move(self, move: str, width: int) -> nn.Module:
        if self.preset.moves_in_blocks:
            return self._block(width, width, move)
        return Downsample(width) if move == "down" else Upsample(width)

    def initialise(self) -> None:
        """Orthogonal weights and zero biases, with which the published code starts; slow for large networks."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if self.preset.zero_init and not module.weight.any():
                    continue
                with torch.no_grad():  # torch draws them in the default order of memory alone
                    module.weight.copy_(nn.init.orthogonal_(torch.empty(module.weight.shape)))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """`level` is (B,) or (B, 1), in the space of the preset; None for a network without one."""
        check_image(x, channels=self.in_channel, name="x")
        if x.shape[-1] % self.multiple_of or x.shape[-2] % self.multiple_of:
            raise InputError(
                f"x: expected sides that divide by {self.multiple_of}, which the deepest level needs, found "
                f"{x.shape[-2]}x{x.shape[-1]}; pad the picture"
            )
        if (level is None) == bool(self._level):
            wanted = "a noise level (B,)" if self._level else "no noise level"
            raise InputError(f"level: expected {wanted}, found {'none' if level is None else tuple(level.shape)}")
        embedded = None if level is None else self.noise_level_mlp(level.reshape(-1).to(x))
        # Convolutions keep the order in memory of what they are given; on a CPU this one is the faster.
        x = x.contiguous(memory_format=torch.channels_last)
        kept = []
        for part in self.downs:
            x = _applied(part, x, embedded)
            kept.append(x)
        for part in self.mid:
            x = _applied(part, x, embedded)
        for part in self.ups:
            x = _applied(part, torch.cat([x, kept.pop()], dim=1) if isinstance(part, Entry) else x, embedded)
        return self.final_conv(x)


_CHOSEN = ("in_channel", "out_channel", "with_noise_level_emb")  # by the network around it, not by its user


def takes_unet_arguments(*, but: Iterable[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a constructor that gives its keywords to a `NoiseLevelUNet`, whose arguments then count as its own by name.

    Whoever reads signatures (checks of option files, their reference) sees them, with annotations and defaults, `but`
    for those without a meaning there.
    """

    def marked(init: Callable[..., None]) -> Callable[..., None]:
        own, unet = inspect.signature(init), inspect.signature(NoiseLevelUNet.__init__)
        fixed = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [one for name, one in unet.parameters.items() if name not in (*own.parameters, *_CHOSEN, *but)]
        cast("Any", init).__signature__ = own.replace(parameters=[*fixed, *more])
        init.__annotations__ |= {one.name: one.annotation for one in more}
        return init

    return marked


def _applied(part: nn.Module, x: Tensor, level: Tensor | None) -> Tensor:
    return part(x, level) if isinstance(part, Entry | ResidualBlock) else part(x)


def _check_sizes(width: int, norm_groups: int, mults: Iterable[int], blocks: int, *, divide: bool) -> None:
    found = list(mults)
    if not found or min(found) < 1:
        raise OptionError(f"channel_mults: expected one number above 0 or more, found {found}")
    if blocks < 1:
        raise OptionError(f"res_blocks: expected 1 or more, found {blocks}")
    wrong = [width * multiplier for multiplier in found if divide and width * multiplier % norm_groups]
    if wrong:
        raise OptionError(
            f"norm_groups: {norm_groups} groups do not divide {wrong[0]} channels (inner_channel {width} times a "
            "number of channel_mults); choose another number of groups or of channels"
        )
