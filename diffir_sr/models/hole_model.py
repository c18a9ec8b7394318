"""What both stages of inpainting share: images with holes, and an adversary that sees the holes."""

from __future__ import annotations

import logging
from abc import ABC
from typing import Any, cast

import torch
from basicsr.losses import build_loss
from torch import Tensor

from diffir_sr.checkpoints import fit, read_weights
from diffir_sr.errors import InputError
from diffir_sr.losses.ade20k_loss import ADE20KPerceptualLoss, backbone_file
from diffir_sr.losses.hole_losses import FeatureMatchingLoss, MaskedGANLoss, MaskedL1Loss
from diffir_sr.models.mask_adversary import MaskAdversary
from diffir_sr.models.ranks import start_equal
from diffir_sr.models.restoration_model import Losses, RestorationModel

logger = logging.getLogger("basicsr")


class HoleModel(RestorationModel, ABC):
    """Trains a network that sees images with holes, (B, 4, H, W): RGB with zeros in the holes, then the mask.

    Batches are those of InpaintDataset. The generator has pixel, perceptual, adversarial and feature-matching losses
    of its raw output, as published; in what is validated and saved, known pixels are those of the input.
    """

    @classmethod
    def check_weights(cls, opt: dict[str, Any]) -> None:
        super().check_weights(opt)
        perceptual = opt["train"].get("perceptual_opt") or {} if opt["is_train"] else {}
        if perceptual.get("type") == ADE20KPerceptualLoss.__name__:
            backbone_file(perceptual.get("weights_path"))

    def feed_data(self, data: dict[str, Any]) -> None:
        if "mask" not in data:
            raise InputError("inpainting needs masks, and this dataset gives none; use type: InpaintDataset")
        self.mask = data["mask"].to(self.device, non_blocking=True)
        self.gt = self._on_device(data["gt"]) if "gt" in data else None
        whole = self.gt if self.gt is not None else self._on_device(data["lq"])
        self.lq = torch.cat([whole * (1 - self.mask), self.mask], dim=1)

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        train, path = self.opt["train"], self.opt["path"]
        net = self.build_net("network_d")
        if path.get("pretrain_network_d"):
            weights = read_weights(path["pretrain_network_d"], key=path.get("param_key_d", "params"))
            strict = path.get("strict_load_d", True)
            logger.info(f"Loaded {fit(net, weights, where='path.pretrain_network_d', strict=strict)}")
        start_equal(net)
        net.train()
        self.print_network(net)
        optimizer = self.optimizer_of(net.parameters(), "optim_d")
        matching = train.get("feature_matching_opt")
        self.adversary = MaskAdversary(
            net,
            gan=cast(MaskedGANLoss, build_loss(train["gan_opt"])),
            matching=cast(FeatureMatchingLoss, build_loss(matching)) if matching else None,
            optimizer=optimizer,
            clip_grad_norm=train.get("clip_grad_norm"),
        )
        self.optimizers.append(optimizer)

    def image_losses(self, restored: Tensor) -> Losses:
        losses: Losses = {}
        gt = self.target("l1")
        if self.cri_pix is not None:
            masked = isinstance(self.cri_pix, MaskedL1Loss)
            losses["l_pix"] = self.cri_pix(restored, gt, self.mask) if masked else self.cri_pix(restored, gt)
        if self.cri_perceptual is not None:
            perceptual, style = self.cri_perceptual(restored, gt)
            named = {"l_percep": perceptual, "l_style": style}
            losses |= {name: loss for name, loss in named.items() if loss is not None}
        return losses | self.adversary.judge(gt, restored)

    def optimize_parameters(self, current_iter: int) -> None:
        losses, watched = self.compute_losses(current_iter)
        self.take_step(self.optimizer_at(current_iter), losses)
        self.update_average()
        judged = self.adversary.learn(self.target("gan"), self.output, self.mask)
        self.note(current_iter, losses | watched | judged)

    def save_others(self, current_iter: int) -> None:
        self.save_network(self.adversary.net, "net_d", current_iter)

    def pasted(self, restored: Tensor) -> Tensor:
        """Restored images with the known pixels of the input."""
        return torch.where(self.mask > 0.5, restored, self.lq[:, :3])
