"""Losses of images with holes (B, 1, H, W), 1 = missing: of known pixels, and an adversary that sees the holes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.option_types import Found, NotNegative, Section, View


def needs_holes(view: View, at: tuple[str, ...]) -> Found:
    """Losses that see the holes belong to the models that fill them."""
    if not view.declares("FILLS_HOLES"):
        fill = " and ".join(view.models_with("FILLS_HOLES"))
        yield (*at, "type"), f"{view.get(*at, 'type')} needs masks, which only {fill} have"


class MaskedL1Arguments(Section):
    """Arguments of MaskedL1Loss."""

    weight_known: NotNegative = Field(description="Factor on the difference at known pixels.")
    weight_missing: NotNegative = Field(description="Factor on the difference in holes.")


class MaskedGANArguments(Section):
    """Arguments of MaskedGANLoss."""

    loss_weight: NotNegative = Field(description="Factor on the generator's loss; the discriminator's is always 1.")
    gp_coef: NotNegative = Field(description="Factor on the penalty of the discriminator's slope at true images (R1).")
    mask_as_fake_target: bool = Field(description="Whether the discriminator learns that known pixels are true.")


class FeatureMatchingArguments(Section):
    """Arguments of FeatureMatchingLoss."""

    loss_weight: NotNegative = Field(description="Factor on the distance.")


class MaskedL1Loss(nn.Module):
    """Mean absolute difference of images (B, 3, H, W) over all pixels, known and missing ones weighted apart.

    The published recipe counts known pixels 10 and missing ones 0: what fills a hole is left to the other losses.
    """

    ARGUMENTS = MaskedL1Arguments
    RULES = (needs_holes,)

    def __init__(self, weight_known: float = 10.0, weight_missing: float = 0.0) -> None:
        super().__init__()
        self.weight_known = weight_known
        self.weight_missing = weight_missing

    def forward(self, restored: Tensor, gt: Tensor, mask: Tensor) -> Tensor:
        weight = self.weight_missing * mask + self.weight_known * (1 - mask)
        return (weight * (restored - gt).abs()).mean()


class MaskedGANLoss(nn.Module):
    """Non-saturating adversarial loss with R1, whose discriminator learns that known pixels of a fake are real.

    forward(logits) is the generator's loss, times `loss_weight`. The discriminator's has weight 1 and three parts:
    `real_loss`, `fake_loss` and `penalty`. As LaMa, which the published recipe takes it from.
    """

    ARGUMENTS = MaskedGANArguments
    RULES = (needs_holes,)
    SEES_HOLES = True

    def __init__(self, loss_weight: float = 10.0, gp_coef: float = 0.001, mask_as_fake_target: bool = True) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.gp_coef = gp_coef
        self.mask_as_fake_target = mask_as_fake_target

    def forward(self, logits: Tensor) -> Tensor:
        return self.loss_weight * F.softplus(-logits).mean()

    def real_loss(self, logits: Tensor) -> Tensor:
        """How far the logits of true images are from telling so."""
        return F.softplus(-logits).mean()

    def fake_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The same of restored images with `mask`, which is scaled to the logits by nearest neighbour."""
        if not self.mask_as_fake_target:
            return F.softplus(logits).mean()
        missing = F.interpolate(mask, size=logits.shape[-2:], mode="nearest")
        return (missing * F.softplus(logits) + (1 - missing) * F.softplus(-logits)).mean()

    def penalty(self, logits: Tensor, real: Tensor) -> Tensor:
        """`gp_coef` times R1 (Mescheder et al. 2018): squared norm of d(sum of logits)/d(real), mean over images.

        `real` must require a gradient; the result can be differentiated again.
        """
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return self.gp_coef * slope.square().flatten(1).sum(dim=1).mean()


class FeatureMatchingLoss(nn.Module):
    """Mean over a discriminator's layers of the mean squared difference of its activations for fake and real."""

    ARGUMENTS = FeatureMatchingArguments

    def __init__(self, loss_weight: float = 100.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """`fake` and `real`: the activations of each layer; the real ones get no gradient."""
        distances = [F.mse_loss(one, other.detach()) for one, other in zip(fake, real, strict=True)]
        return self.loss_weight * torch.stack(distances).mean()
