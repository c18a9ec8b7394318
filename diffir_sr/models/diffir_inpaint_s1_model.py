"""Stage 1 of inpainting: fill holes with a prior that has seen the whole image."""

from __future__ import annotations

from diffir_sr.models.hole_model import HoleModel
from diffir_sr.models.restoration_model import Losses


class DiffIRInpaintS1Model(HoleModel):
    """Trains DiffIRS1 with `task: inpaint` against a discriminator; `test` needs whole images, as the network does."""

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self.output, _ = self.net_g(self.lq, self.target("l1"))
        return self.image_losses(self.output), {}
