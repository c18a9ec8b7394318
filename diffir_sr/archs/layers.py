"""Building blocks of the DIRformer (DiffIR paper, section 3.1): attention and feed-forward modulated by a prior.

Shapes: features (B, C, H, W), prior (B, 256). Attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PRIOR_WIDTH = 256  # published width of the prior, the paper's 4 C' with C' = 64


class _Gain(nn.Module):
    """Holds the weights of a norm under the published key `body.*`."""

    def __init__(self, channels: int, *, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if with_bias else None


def in_full(x: Tensor) -> Tensor:
    """x, in float32 if it is in half precision: statistics over many values need precision and range."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel; biased variance, eps 1e-5.

    The published BiasFree variant divides by the centred deviation but does not subtract the mean.
    """

    def __init__(self, channels: int, *, with_bias: bool) -> None:
        super().__init__()
        self.body = _Gain(channels, with_bias=with_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = in_full(x)
        gain, shift = self.body.weight, self.body.bias
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        scale = torch.rsqrt(variance + 1e-5)
        if shift is None:
            return x * scale * gain[:, None, None]
        return (x - mean) * scale * gain[:, None, None] + shift[:, None, None]


def _modulation(channels: int, prior_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(prior_width, 2 * channels, bias=False))


def modulate(x: Tensor, weights: Tensor) -> Tensor:
    """Scale and shift each channel: x * k1 + k2 with [k1, k2] = weights (B, 2C); no "1 +" (paper, eq. 2)."""
    gain, shift = weights[:, :, None, None].chunk(2, dim=1)
    return x * gain + shift


class ChannelAttention(nn.Module):
    """DMTA, dynamic multi-head transposed attention: channels attend to channels, over all pixels at once."""

    def __init__(self, channels: int, *, heads: int, bias: bool, prior_width: int = PRIOR_WIDTH) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.kernel = _modulation(channels, prior_width)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv_dwconv(self.qkv(modulate(x, self.kernel(prior))))
        # (B, 3, heads, channels per head, pixels)
        q, k, v = qkv.reshape(batch, 3, self.heads, channels // self.heads, height * width).unbind(1)
        # Published rule: the learnt temperature multiplies, it does not divide.
        q, k = (F.normalize(in_full(one), dim=-1) for one in (q, k))
        logits = in_full(q @ k.transpose(-2, -1)) * self.temperature
        mixed = logits.softmax(dim=-1) @ v
        return self.project_out(mixed.reshape(batch, channels, height, width))


class GatedFeedForward(nn.Module):
    """DGFN, dynamic gated feed-forward network: GELU(a) * b with a, b from a depth-wise convolution."""

    def __init__(self, channels: int, *, expansion: float, bias: bool, prior_width: int = PRIOR_WIDTH) -> None:
        super().__init__()
        hidden = int(channels * expansion)  # truncated, as published
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.kernel = _modulation(channels, prior_width)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(modulate(x, self.kernel(prior)))).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each normalised before and added after."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        expansion: float,
        bias: bool,
        norm_bias: bool,
        prior_width: int = PRIOR_WIDTH,
    ) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, with_bias=norm_bias)
        self.attn = ChannelAttention(channels, heads=heads, bias=bias, prior_width=prior_width)
        self.norm2 = ChannelNorm(channels, with_bias=norm_bias)
        self.ffn = GatedFeedForward(channels, expansion=expansion, bias=bias, prior_width=prior_width)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), prior)
        return x + self.ffn(self.norm2(x), prior)


class Level(nn.ModuleList):
    """Blocks applied in order, all modulated by the same prior; a ModuleList keeps the published key names.

    With `checkpointing`, training stores only the input of each block and recomputes the block in the backward pass.
    """

    checkpointing = False

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self:
            if again:
                x = cast(Tensor, checkpoint(block, x, prior, use_reentrant=False, preserve_rng_state=False))
            else:
                x = block(x, prior)
        return x


class Down(nn.Module):
    """Halve the size and double the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Up(nn.Module):
    """Double the size and halve the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
