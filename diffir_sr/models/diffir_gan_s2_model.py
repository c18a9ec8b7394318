"""The GAN phase of stage 2: perceptual and adversarial losses on top of the joint ones."""

from __future__ import annotations

import logging

from basicsr.losses import build_loss
from torch.optim import Optimizer

from diffir_sr.checkpoints import fit, read_weights
from diffir_sr.errors import OptionError
from diffir_sr.models.adversary import Adversary
from diffir_sr.models.restoration_model import Losses
from diffir_sr.models.schedulers import decayed
from diffir_sr.models.stage_2 import Stage2Model

logger = logging.getLogger("basicsr")


class DiffIRGANS2Model(Stage2Model):
    """Trains all of DiffIRS2 with pixel, prior, perceptual and GAN losses, from a trained stage 2.

    With `encoder_iter` > 0 (published real-world recipes, where it does nothing else here) the generator's rate is
    lr_sr * gamma_sr^(i // lr_decay_sr); otherwise the scheduler's.
    """

    def init_training_settings(self) -> None:
        if not self.opt["path"].get("pretrain_network_g"):
            raise OptionError(
                "path.pretrain_network_g: the GAN phase starts from a trained stage 2 (the net_g file that a "
                "DiffIRS2Model training wrote), and none is given; GAN losses from scratch diverge"
            )
        train = self.opt["train"]
        self.net_d_iters = int(train.get("net_d_iters") or 1)
        self.net_d_init_iters = int(train.get("net_d_init_iters") or 0)
        super().init_training_settings()
        self._law = self.law("sr") if self.encoder_iter else None

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        net = self.build_net("network_d")
        path = self.opt["path"].get("pretrain_network_d")
        if path:
            weights = read_weights(path, key=self.opt["path"].get("param_key_d", "params"))
            strict = self.opt["path"].get("strict_load_d", True)
            logger.info(f"Loaded {fit(net, weights, where='path.pretrain_network_d', strict=strict)}")
        net = self.model_to_device(net)
        net.train()
        self.print_network(net)
        loss = build_loss(self.opt["train"]["gan_opt"]).to(self.device)
        optimizer = self.optimizer_of(net.parameters(), "optim_d")
        self.adversary = Adversary(net, loss=loss, optimizer=optimizer)
        self.optimizers.append(optimizer)

    def scheduled(self) -> list[Optimizer]:
        return [self.adversary.optimizer] if self.encoder_iter else self.optimizers

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        super().update_learning_rate(current_iter, warmup_iter=warmup_iter)
        if self._law:
            self._set_lr([[decayed(**self._law, iteration=current_iter)]])

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self.output, losses, watched = self.joint_losses(current_iter)
        losses["l_g_gan"] = self.adversary.judge(self.output)
        return losses, watched

    def optimize_parameters(self, current_iter: int) -> None:
        self.lq, self.gt = self.pairs.mixed(self.lq, self.gt, current_iter)
        losses, watched = self.compute_losses(current_iter)
        if current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters:
            self.take_step(self.optimizer_g, losses)
            self.update_average()
        judged = self.adversary.learn(self.target("gan"), self.output)
        self.note(current_iter, losses | watched | judged)

    def save_others(self, current_iter: int) -> None:
        self.save_network(self.adversary.net, "net_d", current_iter)
