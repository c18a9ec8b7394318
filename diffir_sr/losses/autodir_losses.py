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


class CategoryArguments(Section):
    """Arguments of FidelityLoss and CategoryCrossEntropy."""

    loss_weight: NotNegative = Field(description="Factor on the loss.")


class FidelityLoss(nn.Module):
    """One minus the fidelity of probabilities (B, K) and labels (B, K), over K; AutoDIR's loss of the assessor.

    The 1e-8 under each root keeps gradients finite where a label is 0, and makes a perfect guess slightly negative.
    """

    ARGUMENTS: ClassVar[Any] = CategoryArguments

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return self.loss_weight * ((1 - _overlap(probabilities, labels)) / labels.shape[1]).mean()


class CategoryCrossEntropy(nn.Module):
    """Cross-entropy of probabilities (B, K) under labels (B, K)."""

    ARGUMENTS: ClassVar[Any] = CategoryArguments

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return -self.loss_weight * (labels * probabilities.clamp(min=1e-8).log()).sum(dim=1).mean()


def semantic_agnostic_loss(clean: Tensor, labels: Tensor) -> Tensor:
    """How likely the assessor finds the faults `labels` (B, K) of degraded pictures in their `clean` counterparts.

    `clean` are its probabilities (B, K) there: what it learns must be the fault, not what the picture shows.
    """
    return (_overlap(clean, labels) / labels.shape[1]).mean()


def _overlap(probabilities: Tensor, labels: Tensor) -> Tensor:
    return torch.sqrt(probabilities * labels + 1e-8).sum(dim=1)
