"""Stage 1 of inpainting: fill holes with a prior that has seen the whole image."""

from __future__ import annotations

from torch import Tensor, nn

from diffir_sr.errors import InputError
from diffir_sr.models.hole_model import HoleModel
from diffir_sr.models.restoration_model import Losses


class DiffIRInpaintS1Model(HoleModel):
    """Trains DiffIRS1 with `task: inpaint` against a discriminator; `test` needs whole images, as the network does."""

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self.output, _ = self.net_g(self.lq, self.target("l1"))
        return self.image_losses(self.output), {}

    def restored(self, net: nn.Module) -> Tensor:
        if self.gt is None:
            raise InputError(
                "stage 1 fills holes with the whole image at hand, and this dataset has none: give dataroot_gt, or "
                "test a stage-2 network (model_type: DiffIRInpaintS2Model)"
            )
        return self.pasted(net(self.lq, self.gt))
