"""Stage 1: restore with a prior that has seen the ground truth."""

from __future__ import annotations

from diffir_sr.models.restoration_model import Losses, RestorationModel


class DiffIRS1Model(RestorationModel):
    """Trains DiffIRS1 (body and CPEN_S1) on image losses; `test` needs the ground truth, as the network does."""

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        restored, _ = self.net_g(self.lq, self.target("l1"))
        return self.image_losses(restored), {}
