"""Stage 2 of inpainting: estimate the prior by diffusion from the image with holes, jointly with filling them."""

from __future__ import annotations

from diffir_sr.models.hole_model import HoleModel
from diffir_sr.models.restoration_model import Losses
from diffir_sr.models.stage_2 import Stage2Model


class DiffIRInpaintS2Model(HoleModel, Stage2Model):
    """Trains all of DiffIRS2 with `task: inpaint` at once, against a discriminator, from the body of stage 1."""

    starts_from_stage_1 = True

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self.output, losses, watched = self.joint_losses(current_iter)
        return losses, watched
