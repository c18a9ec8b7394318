"""The loss between two priors: how far stage 2's estimate is from what stage 1 saw with the ground truth."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.errors import OptionError
from diffir_sr.option_types import NotNegative, Positive, Section


class KDArguments(Section):
    """Arguments of the loss."""

    loss_weight: NotNegative = Field(description="Factor on the distance between the priors.")
    temperature: Positive = Field(description="Of the KL divergence, which is logged and not trained on.")
    criterion: Literal["l1", "l2", "kl"] = Field(
        description="Distance between the priors: l1 (published, best in the paper), l2 or kl."
    )


class KDLoss(nn.Module):
    """KL divergence and distance of priors (B, D), both weighted; training optimises the distance alone.

    `criterion` is the distance: l1 (published), l2 or kl.

    The paper's ablation found L1 better than L2 and KL (L_diff, section 4.4); the published code logs the KL
    term. It is KL(softmax(teacher / temperature) || softmax(estimate / temperature)), summed over D, mean over B.
    """

    ARGUMENTS = KDArguments

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.15, criterion: str = "l1") -> None:
        super().__init__()
        if criterion not in ("l1", "l2", "kl"):
            raise OptionError(f"KDLoss: criterion: expected l1, l2 or kl, got {criterion!r}")
        self.criterion = criterion
        self.loss_weight = loss_weight
        self.temperature = temperature

    def forward(self, teacher: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """(KL, distance) of stage 1's prior and stage 2's estimate; no gradient reaches the teacher, KL gives none."""
        teacher = teacher.detach()
        kl = self._divergence(teacher, estimate)
        distance = {"l1": F.l1_loss, "l2": F.mse_loss, "kl": self._divergence}[self.criterion]
        apart = distance(teacher, estimate) if self.criterion == "kl" else distance(estimate, teacher)
        return self.loss_weight * kl.detach(), self.loss_weight * apart

    def _divergence(self, teacher: Tensor, estimate: Tensor) -> Tensor:
        target = (teacher / self.temperature).log_softmax(dim=1)
        guess = (estimate / self.temperature).log_softmax(dim=1)
        return F.kl_div(guess, target, reduction="batchmean", log_target=True)
