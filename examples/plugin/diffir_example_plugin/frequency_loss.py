"""A loss on the spectra of images."""

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


@LOSS_REGISTRY.register()
class FrequencyL1Loss(nn.Module):
    """Mean absolute difference between the Fourier coefficients of two batches of images, (B, C, H, W) each.

    Stands in the option file under `train`, for instance as `pixel_opt`; all keys but `type` come here.
    """

    def __init__(self, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, restored: Tensor, gt: Tensor) -> Tensor:
        # float32: half precision has no Fourier transform on the CPU, and overflows in sums over an image.
        spectra = (torch.fft.rfft2(image.float(), norm="ortho") for image in (restored, gt))
        difference = torch.view_as_real(next(spectra) - next(spectra))
        return self.loss_weight * difference.abs().mean()
