"""The loss between two priors: how far stage 2's estimate is from what stage 1 saw with the ground truth."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class KDLoss(nn.Module):
    """KL divergence and L1 distance of priors (B, D), both weighted; training optimises the L1 term alone.

    The paper's ablation found L1 better than L2 and KL (L_diff, section 4.4); the published code logs the KL
    term. It is KL(softmax(teacher / temperature) || softmax(estimate / temperature)), summed over D, mean over B.
    """

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.15) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.temperature = temperature

    def forward(self, teacher: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """(KL, L1) of stage 1's prior and stage 2's estimate; the teacher gets no gradient, KL gives none."""
        teacher = teacher.detach()
        l1 = F.l1_loss(estimate, teacher)
        target = (teacher / self.temperature).log_softmax(dim=1)
        guess = (estimate.detach() / self.temperature).log_softmax(dim=1)
        kl = F.kl_div(guess, target, reduction="batchmean", log_target=True)
        return self.loss_weight * kl, self.loss_weight * l1
