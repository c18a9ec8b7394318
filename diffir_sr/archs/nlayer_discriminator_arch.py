"""The patch discriminator of the published inpainting recipe (pix2pix-HD's, as LaMa uses it)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from diffir_sr.option_types import Section, Small, Whole


class NLayerArguments(Section):
    """Arguments of the discriminator."""

    input_nc: Small = Field(description="Channels of the images that it sees.")
    ndf: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        description="Channels of its first layer; they double up to 512."
    )
    n_layers: Annotated[Whole, Field(ge=1, le=16)] = Field(description="Layers that halve the size.")


_WIDEST = 512


class NLayerDiscriminator(nn.Module):
    """Says of overlapping patches of images (B, 3, H, W) whether they are real: logits (B, 1, about H/16, about W/16).

    4x4 convolutions with padding 2, of stride 2 in the first `n_layers`; their width starts at `ndf` and doubles up to
    512. Sides come from that with `n_layers` 4. Batch norm is used in training mode alone. Keys as published.
    """

    ARGUMENTS = NLayerArguments

    def __init__(self, *, input_nc: int = 3, ndf: int = 64, n_layers: int = 4) -> None:
        super().__init__()
        widths = [min(ndf * 2**level, max(ndf, _WIDEST)) for level in range(n_layers + 1)]
        blocks = [nn.Sequential(_conv(input_nc, ndf, stride=2), _activation())]
        for level, (into, out) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < n_layers else 1
            blocks.append(nn.Sequential(_conv(into, out, stride=stride), nn.BatchNorm2d(out), _activation()))
        blocks.append(nn.Sequential(_conv(widths[-1], 1, stride=1)))
        for index, block in enumerate(blocks):
            self.add_module(f"model{index}", block)

    def activations(self, image: Tensor) -> list[Tensor]:
        """What every layer makes of `image`; the last ones are the logits."""
        made: list[Tensor] = []
        for block in self.children():
            image = block(image)
            made.append(image)
        return made

    def forward(self, image: Tensor) -> Tensor:
        return self.activations(image)[-1]


def _conv(into: int, out: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel_size=4, stride=stride, padding=2)


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2, True)
