"""Losses of AutoDIR and of the NAFNet that corrects its pictures."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.option_types import NotNegative, Section


class PSNRArguments(Section):
    """Arguments of PSNRLoss."""

    loss_weight: NotNegative = Field(description="Factor on the loss.")
    reduction: Literal["mean"] = Field(description="How images are put together; mean is all there is.")


class PSNRLoss(nn.Module):
    """The negative PSNR of images (B, C, H, W) in [0, 1], dB: each image's own, then their mean (NAFNet's loss)."""

    ARGUMENTS: ClassVar[Any] = PSNRArguments

    def __init__(self, loss_weight: float = 1.0, reduction: Literal["mean"] = "mean") -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        squares = (pred - target).square().mean(dim=(1, 2, 3))
        return self.loss_weight * 10 / math.log(10) * torch.log(squares + 1e-8).mean()
