"""The GAN part of a training as one object: a discriminator, its loss and its optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer


@contextlib.contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """While open, the parameters of `net` collect no gradient (gradients still pass through to its input)."""
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


class Discriminator:
    """A discriminator that judges restored images and learns from them; it never touches the generator.

    `loss(logits, target_is_real, is_disc=...)` is BasicSR's GANLoss: its weight counts for the generator only.
    """

    def __init__(self, net: nn.Module, *, loss: nn.Module, optimizer: Optimizer) -> None:
        self.net = net
        self.loss = loss
        self.optimizer = optimizer

    def generator_loss(self, fake: Tensor) -> Tensor:
        """The generator's adversarial loss of restored images (B, 3, H, W)."""
        with frozen(self.net):
            return self.loss(self.net(fake), True, is_disc=False)

    def train_step(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """One step on true and restored images; losses and mean logits to log, under their published names.

        Real and fake pass in two calls with a backward each, as published (spectral norm updates in each).
        """
        self.optimizer.zero_grad(set_to_none=True)
        noted: dict[str, Tensor] = {}
        for name, images, is_real in (("real", real, True), ("fake", fake.detach(), False)):
            logits = self.net(images)
            loss = self.loss(logits, is_real, is_disc=True)
            loss.backward()
            noted[f"l_d_{name}"] = loss.detach()
            noted[f"out_d_{name}"] = logits.detach().mean()
        self.optimizer.step()
        return noted
