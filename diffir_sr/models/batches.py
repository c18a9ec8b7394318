"""What happens to a training batch on the device: degradation, mixing, sharpened targets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from basicsr.utils.img_process_util import USMSharp
from pydantic import Field
from torch import Tensor

from diffir_sr.data.degradation import OnlineDegradation
from diffir_sr.errors import OptionError
from diffir_sr.files.atomic import save_atomically
from diffir_sr.option_types import Positive, Section

logger = logging.getLogger("basicsr")
Role = Literal["l1", "percep", "gan"]
_ROLES: tuple[Role, ...] = ("l1", "percep", "gan")
_KERNELS = ("kernel1", "kernel2", "sinc_kernel")


class MixingAugs(Section):
    """Mixup of the images in a batch, as in the published deblurring recipe."""

    mixup: bool = Field(False, description="Whether images are mixed.")
    mixup_beta: Positive = Field(1.2, description="Both parameters of the Beta distribution of the mixing weight.")
    use_identity: bool = Field(True, description="Whether half of the batches stay unmixed.")


class SharpenedTargets(Section):
    """Which targets are sharpened (unsharp masking); at the top level of a file."""

    gt_usm: bool = Field(False, description="Whether the ground truth is sharpened.")
    l1_gt_usm: bool = Field(False, description="Whether the target of the pixel loss is sharpened.")
    percep_gt_usm: bool = Field(False, description="Whether the target of the perceptual loss is sharpened.")
    gan_gt_usm: bool = Field(False, description="Whether the discriminator's real images are sharpened.")


class BatchPreparation:
    """Makes training pairs of ground truth where the data has none, mixes pairs, and gives the targets of the losses.

    `gt_usm` sharpens the target (unsharp masking) of all losses; `l1_gt_usm`, `percep_gt_usm` and `gan_gt_usm` that of
    one. As published, the prior of stage 1 sees the target of the pixel loss, and degradation starts from it.
    """

    def __init__(self, opt: dict[str, Any], device: torch.device) -> None:
        self.device = device
        sharp = SharpenedTargets.of(opt)
        self._roles = {role for role in _ROLES if sharp.gt_usm or getattr(sharp, f"{role}_gt_usm")}
        self._usm = USMSharp().to(device) if self._roles else None
        self._last: tuple[Tensor, Tensor] | None = None  # a ground truth and its sharpened form
        self.degradation: OnlineDegradation | None = None
        if str(opt["datasets"]["train"].get("type")).removesuffix("_basicsr") == "RealESRGANDataset":
            self.degradation = OnlineDegradation(opt, scale=int(opt.get("scale") or 1), device=device)
        mixing = MixingAugs.of(opt["train"].get("mixing_augs"))
        self._beta = mixing.mixup_beta if mixing.mixup else None
        self._often = 0.5 if mixing.use_identity else 1.0
        self._seed = int(opt["manual_seed"])
        self.folder, self.rank = Path(opt["path"]["training_states"]), int(opt["rank"])

    def prepare(self, data: dict[str, Any], gt: Tensor) -> tuple[Tensor, Tensor]:
        """lq and gt patches of a batch of RealESRGANDataset, whose `gt` is on the device."""
        if self.degradation is None or "draw_seed" not in data:
            raise OptionError(
                "datasets.train: the batch has blur kernels and no seeds; use type: RealESRGANDataset, without suffix"
            )
        kernels = {name: data[name].to(self.device, non_blocking=True) for name in _KERNELS}
        start = self.target(gt, "l1")
        return self.degradation.pairs(gt, kernels, data["draw_seed"].cpu(), start=start)

    @torch.no_grad()
    def target(self, gt: Tensor, role: Role) -> Tensor:
        """`gt` (B, 3, H, W), or its sharpened form where the options ask for it."""
        if self._usm is None or role not in self._roles:
            return gt
        if self._last is None or self._last[0] is not gt:
            self._last = gt, self._usm(gt)
        return self._last[1]

    def mixed(self, lq: Tensor, gt: Tensor | None, current_iter: int) -> tuple[Tensor, Tensor | None]:
        """Each pair blended with another of its batch (`mixing_augs.mixup`), weights from Beta(mixup_beta, mixup_beta).

        With `use_identity` half of the iterations stay unmixed, as published. A function of seed, iteration and rank.
        """
        if self._beta is None or gt is None:
            return lq, gt
        rng = np.random.default_rng((self._seed, current_iter, self.rank))
        if rng.random() >= self._often:
            return lq, gt
        weight, other = float(rng.beta(self._beta, self._beta)), torch.from_numpy(rng.permutation(len(lq)))
        other = other.to(lq.device)
        return weight * lq + (1 - weight) * lq[other], weight * gt + (1 - weight) * gt[other]

    # The pool of pairs lies beside the training states, one file per process, so that resuming changes nothing.

    def _file(self, iteration: int) -> Path:
        return self.folder / f"{iteration}_pool_{self.rank}.pt"

    def save(self, iteration: int) -> None:
        """Write the pool of an iteration; it goes when its training state goes."""
        if self.degradation is None or self.degradation.pool is None or iteration < 0:
            return
        save_atomically(self.degradation.pool.state(), self._file(iteration))

    def load(self, iteration: int) -> None:
        """Go on with the pool of an iteration; without its file the pool fills anew, which a warning says."""
        if self.degradation is None or self.degradation.pool is None:
            return
        file = self._file(iteration)
        if file.is_file():
            self.degradation.pool.restore(torch.load(file, weights_only=True, map_location=self.device))
        else:
            logger.warning(f"{file}: not found, the pool of pairs fills anew; the run differs from an unbroken one")
