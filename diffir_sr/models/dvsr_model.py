"""Training of DvSR: a first guess and the noise in what it misses, together; and the first guess alone."""

from __future__ import annotations

from typing import Any

from diffir_sr.archs.dvsr_arch import DvSRPredictor
from diffir_sr.errors import OptionError
from diffir_sr.models.restoration_model import Losses, PlainModel
from diffir_sr.models.sr3_model import NoisePredictionModel


class DvSRModel(NoisePredictionModel):
    """Trains both networks of DvSR with the loss of the noise alone, which reaches the predictor through its input.

    The log also shows how far the first guess is from the truth (`first_guess`, mean absolute difference of values in
    [0, 1]): it falls, although no loss asks for it.
    """

    OPTIONS = ()

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        noise, truth = self.noise_at(current_iter), self.target("l1")
        level = self.levels_at(noise, len(truth))
        eps = noise.normal(truth.shape, "eps").to(truth)
        found, first = self.run_network(self.lq, truth, eps, level)
        missing = (first.detach() - (2 * truth - 1)).abs().mean() / 2
        return self.noise_losses(found, eps), {"first_guess": missing}


class DvSRRegressionModel(PlainModel):
    """Trains the predictor of DvSR alone on the pixels, as the paper's regression does with squared errors."""

    OPTIONS = ()

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        net = self.get_bare_model(self.net_g)
        if not isinstance(net, DvSRPredictor):
            raise OptionError(
                f"network_g.type: DvSRRegressionModel trains a DvSRPredictor, found {type(net).__name__}; PlainModel "
                "trains any network"
            )
