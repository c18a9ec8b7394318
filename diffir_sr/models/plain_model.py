"""Training of any network that makes a restored picture of a degraded one."""

from __future__ import annotations

from diffir_sr.models.restoration_model import Losses, RestorationModel


class PlainModel(RestorationModel):
    """Trains a network that is called as net(lq), such as those of BasicSR's registry, on pixel and perceptual losses.

    Validation, test and what is saved are those of every model of this package: the moving average is measured, and
    the saved file says which network it holds.
    """

    OPTIONS = ()

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        return self.image_losses(self.run_network(self.lq)), {}
