"""A small convolutional network for super-resolution."""

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input; keeps the shape (B, num_feat, H, W)."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


@ARCH_REGISTRY.register()
class TinyResidualSR(nn.Module):
    """Adds learnt detail to the bilinear enlargement: (B, 3, H, W) -> (B, 3, scale * H, scale * W).

    The arguments of the constructor are the keys under `network_g` in the option file; their annotations are
    checked there.
    """

    def __init__(self, *, num_feat: int = 32, num_block: int = 4, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.tail = nn.Sequential(nn.Conv2d(num_feat, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lq: Tensor) -> Tensor:
        enlarged = F.interpolate(lq, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return enlarged + self.tail(self.body(self.head(lq)))
