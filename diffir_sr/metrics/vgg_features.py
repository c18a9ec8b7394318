"""VGG16's five stages as features of an image, with a choice of what halves the size between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.errors import CheckpointError

CHANNELS = (64, 128, 256, 512, 512)
# Places of each stage's convolutions in torchvision's `features`.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class VGGStages(nn.Module):
    """Outputs of the last ReLU of each stage: (N, 64, H, W), (N, 128, H/2, W/2), ... (N, 512, H/16, W/16).

    Takes RGB in [0, 1], which it normalises as ImageNet is. `tensors` are as `load_backbone` gives them. With
    `with_image` the image itself, not normalised, comes first.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, pool: Callable[[Tensor], Tensor] | None = None, with_image: bool = False
    ) -> None:
        super().__init__()
        names = [f"features.{place}.{kind}" for stage in _STAGES for place in stage for kind in ("weight", "bias")]
        absent = [name for name in names if name not in tensors]
        if absent:
            raise CheckpointError(f"these are not the weights of VGG16: {absent[0]} is missing")
        for name in names:
            self.register_buffer(name.replace(".", "_"), tensors[name], persistent=False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.pool = pool or (lambda x: F.max_pool2d(x, 2))
        self.with_image = with_image

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        outputs = [image] if self.with_image else []
        for stage in _STAGES:
            if stage[0]:
                x = self.pool(x)
            for place in stage:
                weight, bias = (self.get_buffer(f"features_{place}_{kind}") for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            outputs.append(x)
        return outputs
