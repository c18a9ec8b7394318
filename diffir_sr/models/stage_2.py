"""What both phases of stage 2 share: the frozen teacher, the prior loss and the joint forward."""

from __future__ import annotations

from abc import ABC
from typing import Any

import numpy as np
import torch
from basicsr.losses import build_loss
from torch import Tensor, nn

from diffir_sr.errors import OptionError
from diffir_sr.models.frozen import Frozen
from diffir_sr.models.restoration_model import Losses, RestorationModel


class Stage2Model(RestorationModel, ABC):
    """Trains DiffIRS2 to reach the prior of a frozen stage-1 teacher from the degraded image alone."""

    frozen_networks = (
        Frozen(
            "S1",
            role="stage 2 learns from a stage-1 network",
            source="the net_g file that a DiffIRS1Model training wrote",
            part="E",  # the prior encoder; the body of stage 1 is not needed
        ),
    )

    def init_training_settings(self) -> None:
        train = self.opt["train"]
        self.encoder_iter = int(train.get("encoder_iter") or 0)
        self.trains_apart = train.get("diffusion_training", "joint") == "separate"
        self.cri_kd = build_loss(train.get("kd_opt") or {"type": "KDLoss"}).to(self.device)
        super().init_training_settings()

    @property
    def teacher(self) -> nn.Module:
        """The frozen prior encoder of stage 1."""
        return self.frozen["S1"]

    def teacher_prior(self) -> Tensor:
        """Stage 1's prior (B, 256) of the current batch."""
        with torch.no_grad():
            return self.teacher(self.lq, self.target("l1"))

    def start_noise(self, current_iter: int) -> Tensor:
        """Where the diffusion starts, (B, D)."""
        width = int(self.get_bare_model(self.net_g).prior_width)  # pyright: ignore[reportArgumentType]
        return self.noise_at(current_iter).normal((len(self.lq), width)).to(self.device)

    def prior_losses(self, teacher_prior: Tensor, walked: list[Tensor]) -> tuple[Losses, Losses]:
        """The distance of the last step's prior, optimised, and the KL term, watched (published log names)."""
        kl, distance = self.cri_kd(teacher_prior, walked[-1])
        last, name = len(walked) - 1, {"l2": "l_sq", "kl": "l_kl"}.get(getattr(self.cri_kd, "criterion", "l1"), "l_abs")
        return {f"{name}_{last}": distance}, {f"l_kd_{last}": kl}

    def joint_losses(self, current_iter: int) -> tuple[Tensor, Losses, Losses]:
        """Restored images, the losses of image and prior, and what is watched."""
        prior = self.teacher_prior()
        noise = self.start_noise(current_iter)
        if self.trains_apart:
            restored, walked = self.net_g(self.lq, prior, noise=noise, step=self._steps_at(current_iter))
        else:
            restored, walked = self.net_g(self.lq, prior, noise=noise)
        distances, watched = self.prior_losses(prior, walked)
        return restored, {**self.image_losses(restored), **distances}, watched

    def _steps_at(self, current_iter: int) -> Tensor:
        """A diffusion step for each image of the batch, all equally likely: a function of seed, iteration and rank."""
        steps = int(self.get_bare_model(self.net_g).get_submodule("diffusion").steps)  # pyright: ignore
        rng = np.random.default_rng((int(self.opt["manual_seed"]), current_iter, int(self.opt["rank"]), 1))
        return torch.from_numpy(rng.integers(steps, size=len(self.lq))).to(self.device)

    def law(self, name: str) -> dict[str, Any]:
        """lr, gamma and interval of the published manual rate `lr_<name>`; all three are needed."""
        train = self.opt["train"]
        keys = {"base": f"lr_{name}", "gamma": f"gamma_{name}", "every": f"lr_decay_{name}"}
        absent = [key for key in keys.values() if train.get(key) is None]
        if absent:
            raise OptionError(f"train: encoder_iter > 0 needs {', '.join(absent)}")
        values = {argument: train[key] for argument, key in keys.items()}
        return {**values, "every": int(values["every"])}
