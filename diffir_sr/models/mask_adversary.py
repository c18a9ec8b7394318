"""The adversary of inpainting: it judges whole images and their features, and learns where the holes are."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diffir_sr.errors import OptionError
from diffir_sr.losses.hole_losses import FeatureMatchingLoss, MaskedGANLoss
from diffir_sr.models.adversary import frozen
from diffir_sr.models.ranks import average_gradients

Activations = Callable[[Tensor], list[Tensor]]


class MaskAdversary:
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

    def judge(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The generator's losses of restored images (B, 3, H, W): adversarial and, if asked for, of features."""
        with frozen(self.net):
            if self.matching is None:
                return {"l_g_gan": self.gan(self.net(fake))}
            activations = cast(Activations, self.net.activations)
            with torch.no_grad():
                *wanted, _ = activations(real)
            *features, logits = activations(fake)
        return {"l_g_gan": self.gan(logits), "l_feat": self.matching(features, wanted)}

    def learn(self, real: Tensor, fake: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """One step on true and restored images; losses and mean logits to log. Real and fake pass in two calls."""
        self.optimizer.zero_grad(set_to_none=True)
        real = real.detach().requires_grad_()
        of_real = self.net(real)
        of_fake = self.net(fake.detach())
        losses = {
            "l_d_real": self.gan.of_real(of_real),
            "l_d_fake": self.gan.of_fake(of_fake, mask),
            "l_d_r1": self.gan.penalty(of_real, real),
        }
        torch.stack(list(losses.values())).sum().backward()
        average_gradients(self.net)
        if self.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        noted = {name: loss.detach() for name, loss in losses.items()}
        return noted | {"out_d_real": of_real.detach().mean(), "out_d_fake": of_fake.detach().mean()}
