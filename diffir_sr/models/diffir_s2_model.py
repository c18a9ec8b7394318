"""Stage 2: estimate the prior by diffusion, jointly with the restoration (or alone, for a warm-up)."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from diffir_sr.models.restoration_model import Losses
from diffir_sr.models.schedulers import decayed
from diffir_sr.models.stage_2 import Stage2Model


class DiffIRS2Model(Stage2Model):
    """Trains DiffIRS2; for the first `encoder_iter` iterations its condition and denoiser alone, on the prior loss.

    With `encoder_iter` 0 the scheduler sets the rate (published super-resolution). Otherwise the published law:
    lr_encoder * gamma_encoder^(i // lr_decay_encoder) while warming up, then
    lr_sr * gamma_sr^((i - encoder_iter) // lr_decay_sr).
    """

    starts_from_stage_1 = True

    def init_training_settings(self) -> None:
        super().init_training_settings()
        self._warming_up = False
        if self.encoder_iter:
            self._laws = self.law("encoder"), self.law("sr")

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        if self.encoder_iter:
            estimators = _estimators(self.get_bare_model(self.net_g))
            weights = [weight for part in estimators for weight in part.parameters()]
            self.optimizer_e = self.optimizer_of(weights, "optim_g")
            self.optimizers.append(self.optimizer_e)

    def scheduled(self) -> list[Optimizer]:
        return [] if self.encoder_iter else self.optimizers

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        super().update_learning_rate(current_iter, warmup_iter=warmup_iter)
        if not self.encoder_iter:
            return
        encoder, restoration = self._laws
        self._set_lr(
            [
                [decayed(**restoration, iteration=current_iter - self.encoder_iter)],
                [decayed(**encoder, iteration=current_iter)],
            ]
        )

    def get_current_learning_rate(self) -> list[float]:
        now = self.optimizer_e if self._warming_up else self.optimizer_g
        return [group["lr"] for group in now.param_groups]

    def optimizer_at(self, current_iter: int) -> Optimizer:
        return self.optimizer_e if self._warming_up else self.optimizer_g

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self._enter_phase(warming_up=current_iter < self.encoder_iter)
        if not self._warming_up:
            _, losses, watched = self.joint_losses(current_iter)
            return losses, watched
        prior = self.teacher_prior()
        # Through the wrapped forward, never a sub-module: else several devices would not share their gradients.
        walked = self.net_g(self.lq, prior, noise=self.start_noise(current_iter), prior_only=True)
        return self.prior_losses(prior, walked)

    def _enter_phase(self, *, warming_up: bool) -> None:
        """Freeze or free the body, and wrap again so that DDP waits for exactly the gradients of this phase."""
        if warming_up == self._warming_up:
            return
        bare = self.get_bare_model(self.net_g)
        bare.get_submodule("G").requires_grad_(not warming_up)
        self.net_g = self.model_to_device(bare)
        self.net_g.train()
        self._warming_up = warming_up


def _estimators(net: nn.Module) -> list[nn.Module]:
    return [net.get_submodule("condition"), net.get_submodule("denoise")]
