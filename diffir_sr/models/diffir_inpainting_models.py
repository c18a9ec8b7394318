"""DiffIR's stages for inpainting, trained against a discriminator that sees the holes."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from basicsr.losses import build_loss
from torch import Tensor, nn
from torch.optim import Optimizer

from diffir_sr.checkpoints import fit, read_weights
from diffir_sr.errors import InputError, OptionError
from diffir_sr.losses import (
    ADE20KPerceptualLoss,
    FeatureMatchingLoss,
    MaskedGANLoss,
    MaskedL1Loss,
    backbone_file,
)
from diffir_sr.models.auxiliary import Adversarial, discriminator_is_given, frozen
from diffir_sr.models.diffir_models import (
    InpaintOptions,
    Stage2Model,
    fills_holes,
    layers_can_be_compared,
    prior_spread,
    shipped,
    starts_cold,
)
from diffir_sr.models.distributed import average_gradients, broadcast_parameters
from diffir_sr.models.restoration_model import Losses, RestorationModel
from diffir_sr.options.schema import PathOptions

Activations = Callable[[Tensor], list[Tensor]]


class MaskDiscriminator:
    """A discriminator that judges restored images and learns from them; it never touches the generator.

    `net` is bare, never wrapped for several devices: its batch norms and R1 do not go with DistributedDataParallel,
    so gradients are averaged over the ranks here. `matching` needs a `net` with a method `activations`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        gan: MaskedGANLoss,
        matching: FeatureMatchingLoss | None,
        optimizer: Optimizer,
        clip_grad_norm: float | None,
    ) -> None:
        if matching is not None and not hasattr(net, "activations"):
            raise OptionError(
                f"network_d.type: feature_matching_opt compares what the layers of a discriminator make of images, and "
                f"{type(net).__name__} does not give it; choose NLayerDiscriminator, or remove feature_matching_opt"
            )
        self.net = net
        self.gan = gan
        self.matching = matching
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm

    def generator_loss(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The generator's losses of restored images (B, 3, H, W): adversarial and, if asked for, of features."""
        with frozen(self.net):
            if self.matching is None:
                return {"l_g_gan": self.gan(self.net(fake))}
            activations = cast(Activations, self.net.activations)
            with torch.no_grad():
                *wanted, _ = activations(real)
            *features, logits = activations(fake)
        return {"l_g_gan": self.gan(logits), "l_feat": self.matching(features, wanted)}

    def train_step(self, real: Tensor, fake: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """One step on true and restored images; losses and mean logits to log. Real and fake pass in two calls."""
        self.optimizer.zero_grad(set_to_none=True)
        real = real.detach().requires_grad_()
        real_logits = self.net(real)
        fake_logits = self.net(fake.detach())
        losses = {
            "l_d_real": self.gan.real_loss(real_logits),
            "l_d_fake": self.gan.fake_loss(fake_logits, mask),
            "l_d_r1": self.gan.penalty(real_logits, real),
        }
        torch.stack(list(losses.values())).sum().backward()
        average_gradients(self.net)
        if self.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        noted = {name: loss.detach() for name, loss in losses.items()}
        return noted | {"out_d_real": real_logits.detach().mean(), "out_d_fake": fake_logits.detach().mean()}


logger = logging.getLogger("basicsr")


class InpaintingOptions(Adversarial, InpaintOptions):
    """What inpainting reads beyond what every model reads."""


class InpaintModel(RestorationModel, ABC):
    """Trains a network that sees images with holes, (B, 4, H, W): RGB with zeros in the holes, then the mask.

    Batches are those of InpaintDataset. The generator has pixel, perceptual, adversarial and feature-matching losses
    of its raw output, as published; in what is validated and saved, known pixels are those of the input.
    """

    OPTIONS = InpaintingOptions
    WITHOUT_OPTIONS = ("mixing_augs",)
    RULES = (discriminator_is_given, fills_holes, layers_can_be_compared)
    FILLS_HOLES = True
    WHOLE_BATCHES = True

    @classmethod
    def check_weights(cls, opt: dict[str, Any]) -> None:
        super().check_weights(opt)
        perceptual = opt["train"].get("perceptual_opt") or {} if opt["is_train"] else {}
        if perceptual.get("type") == ADE20KPerceptualLoss.__name__:
            backbone_file(perceptual.get("weights_path"))

    def feed_data(self, data: dict[str, Any]) -> None:
        if "mask" not in data:
            raise InputError("inpainting needs masks, and this dataset gives none; use type: InpaintDataset")
        self.mask = data["mask"].to(self.device, non_blocking=True).float()  # datasets may give uint8
        self.gt = self._on_device(data["gt"]) if "gt" in data else None
        whole = self.gt if self.gt is not None else self._on_device(data["lq"])
        self.lq = torch.cat([whole * (1 - self.mask), self.mask], dim=1)

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        train, path = self.opt["train"], PathOptions.of(self.opt["path"])
        net = self.build_net("network_d")
        if path.pretrain_network_d:
            weights = read_weights(path.pretrain_network_d, key=path.param_key_d)
            strict = path.strict_load_d
            logger.info(f"Loaded {fit(net, weights, where='path.pretrain_network_d', strict=strict)}")
        broadcast_parameters(net)
        net.train()
        self.print_network(net)
        optimizer = self.optimizer_of(net.parameters(), "optim_d")
        matching = train.get("feature_matching_opt")
        self.adversary = MaskDiscriminator(
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
        return losses | self.adversary.generator_loss(gt, restored)

    def optimize_parameters(self, current_iter: int) -> None:
        losses, watched = self.find_gradients(current_iter)
        self.take_step(self.optimizer_at(current_iter))
        self.update_average()
        judged = self.adversary.train_step(self.target("gan"), self.output, self.mask)
        self.note(current_iter, losses | watched | judged)

    def save_others(self, current_iter: int) -> None:
        self.save_network(self.adversary.net, "net_d", current_iter)


class DiffIRInpaintS1Model(InpaintModel):
    """Trains DiffIRS1 with `task: inpaint` against a discriminator; `test` needs whole images, as the network does."""

    OPTIONS = ()
    NETWORK_G = "DiffIRS1"
    TITLE = "stage 1"
    prior_encoder = "E"
    RECIPE = shipped("train_DiffIRS1")

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self.output, prior = self.run_network(self.lq, self.target("l1"))
        return self.image_losses(self.output), self.colour_shift(self.output) | prior_spread(prior[-1])


class DiffIRInpaintS2Model(InpaintModel, Stage2Model):
    """Trains all of DiffIRS2 with `task: inpaint` at once, against a discriminator, from the body of stage 1."""

    OPTIONS = ()
    MADE_BY: ClassVar[Mapping[str, str]] = {
        "network_g": "DiffIRInpaintS1Model",
        "network_S1": "DiffIRInpaintS1Model",
    }
    WARNINGS = (starts_cold,)
    starts_from_stage_1 = True

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self.output, losses, watched = self.joint_losses(current_iter)
        return losses, watched
