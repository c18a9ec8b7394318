"""Networks beside the trained one (teacher, assessor, autoencoder, discriminator), and options of adversarial terms."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from basicsr.archs import build_network
from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from diffir_sr.checkpoints import fitting, read_weights
from diffir_sr.errors import OptionError
from diffir_sr.models.distributed import exchange
from diffir_sr.option_types import Built, Count, CountOrZero, Found, NotNegative, Number, Section, View

logger = logging.getLogger("basicsr")


@dataclass(frozen=True)
class Frozen:
    """One frozen helper: the option section `network_<name>`, its weights `path.pretrain_network_<name>`.

    `path.param_key_<name>` is the entry of the file, the averaged weights by default: BasicSR turns `param_key_g` to
    'params' when it resumes, which must not replace a helper in the middle of a training. `part` is the submodule
    that is kept, `arch` the class of network that it must be or derive from; `role` and `source` say in messages what
    it is for and which file it is.
    """

    name: str
    role: str
    source: str
    part: str = ""
    arch: str = ""

    @property
    def section(self) -> str:
        return f"network_{self.name}"

    def check(self, opt: Mapping[str, Any]) -> None:
        """Raise where the section or its weights are missing, or do not belong together."""
        self._weights(opt, self._built(opt))

    def load(self, opt: Mapping[str, Any], device: torch.device) -> nn.Module:
        """The network (or its part) with its weights, in evaluation mode and without gradients."""
        network = self._built(opt)
        network.load_state_dict(self._weights(opt, network))
        logger.info(f"Loaded {self.section} from {opt['path'][f'pretrain_{self.section}']}")
        kept = network.get_submodule(self.part) if self.part else network
        return kept.to(device).eval().requires_grad_(False)

    def _built(self, opt: Mapping[str, Any]) -> nn.Module:
        if self.section not in opt:
            raise OptionError(f"{self.section}: missing; {self.role}, described as it was trained")
        return build_network(opt[self.section])

    def _weights(self, opt: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
        where = f"path.pretrain_{self.section}"
        path = opt["path"].get(f"pretrain_{self.section}")
        if not path:
            raise OptionError(f"{where}: missing; {self.role} ({self.source})")
        weights = read_weights(path, key=opt["path"].get(f"param_key_{self.name}") or "params_ema")
        return fitting(network, weights, where=where, strict=True)


# The GAN part of a training as one object: a discriminator, its loss and its optimizer.


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

    def generator_loss(self, fake: Tensor, *, goes_on: bool = False) -> Tensor:
        """The generator's adversarial loss of restored images (B, 3, H, W); `goes_on` with a batch that has begun."""
        with frozen(self.net), _as_it_is(self.net, goes_on), exchange(self.net, False):
            return self.loss(self.net(fake), True, is_disc=False)

    def train_step(self, real: Tensor, fake: Tensor, *, parts: int = 1) -> dict[str, Tensor]:
        """One step on true and restored images; losses and mean logits to log, under their published names.

        Real and fake pass in two calls with a backward each, as published (spectral norm updates in each); each of
        them in `parts`, if asked for, with one update and one exchange between processes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        noted: dict[str, Tensor] = {}
        for name, images, is_real in (("real", real, True), ("fake", fake.detach(), False)):
            found = []
            for number, part in enumerate(images.chunk(parts)):
                with _as_it_is(self.net, number > 0), exchange(self.net, number == parts - 1):
                    logits = self.net(part)
                    loss = self.loss(logits, is_real, is_disc=True)
                    (loss if parts == 1 else loss / parts).backward()
                found.append((loss.detach(), logits.detach().mean()))
            losses, means = (one[0] if parts == 1 else torch.stack(one).mean() for one in zip(*found, strict=True))
            noted |= {f"l_d_{name}": losses, f"out_d_{name}": means}
        self.optimizer.step()
        return noted


@contextlib.contextmanager
def _as_it_is(net: nn.Module, holds: bool) -> Iterator[None]:
    """While open, spectral norms of `net` are not estimated further, if it `holds`: the network of the call before."""
    training = net.training
    net.train(training and not holds)
    try:
        yield
    finally:
        net.train(training)


class BuiltOnce(Section):
    """What every training here builds."""

    optim_g: Built = Field(description="Optimizer of network_g: a class of torch.optim and its arguments.")
    scheduler: Built = Field(description="Schedule of the learning rate.")


class Adversarial(Section):
    """Training against a discriminator, network_d."""

    optim_d: Built = Field(description="Optimizer of network_d.")
    gan_opt: Built = Field(description="Adversarial loss.")


class Alternating(Section):
    """How the steps of network_g and network_d follow each other."""

    net_d_iters: Count = Field(1, description="Discriminator steps per step of network_g.")
    net_d_init_iters: CountOrZero = Field(
        0, description="Initial iterations in which only the discriminator is trained."
    )


class SRGANTraining(BuiltOnce, Adversarial, Alternating):
    """What SRGANModel and ESRGANModel read beyond what every training reads."""


def discriminator_is_given(view: View, at: tuple[str, ...]) -> Found:
    """A training against a discriminator has one."""
    if view.is_train and view.has("train") and not view.has("network_d"):
        yield ("network_d",), f"missing: {view.model} trains against a discriminator"


def something_to_learn(view: View, at: tuple[str, ...]) -> Found:
    """A training compares images with the ground truth in some way."""
    losses = ("pixel_opt", "perceptual_opt")
    if view.is_train and view.has("train") and not any(view.has("train", loss) for loss in losses):
        yield ("train", "pixel_opt"), "missing: neither pixel_opt nor perceptual_opt is given; nothing is learnt"


def one_optimizer_and_fewer_schedulers(view: View, at: tuple[str, ...]) -> Found:
    """BasicSR's models build one optimizer and fewer schedulers than this package's."""
    if not view.is_train:
        return
    for optimizer in ("optim_g", "optim_d"):
        kind = view.get("train", optimizer, "type")
        if kind not in (None, "Adam"):
            yield ("train", optimizer, "type"), f"BasicSR's {view.model} knows Adam alone, found {kind!r}"
    if view.get("train", "scheduler", "type") == "CosineAnnealingRestartCyclicLR":
        kind = view.get("train", "scheduler", "type")
        yield ("train", "scheduler", "type"), f"BasicSR's {view.model} has no {kind}"


class PerceptualArguments(Section):
    """Arguments of PerceptualLoss."""

    layer_weights: dict[str, Number] = Field(
        min_length=1, description="Weight of each VGG layer, by name (conv5_4: before its activation)."
    )
    vgg_type: Literal["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"] = Field(
        description="VGG variant."
    )
    use_input_norm: bool = Field(description="Whether images are normalised as VGG expects.")
    range_norm: bool = Field(description="Whether images are in [-1, 1] instead of [0, 1].")
    perceptual_weight: NotNegative = Field(description="Factor on the loss; 0 disables it.")
    style_weight: NotNegative = Field(description="Factor on the style loss; 0 disables it.")
    criterion: Literal["l1", "fro"] = Field(description="l1 or fro (Frobenius norm).")


def layers_exist(view: View, at: tuple[str, ...]) -> Found:
    """The layers that are compared are layers of the VGG that is named."""
    kind = view.effective(*at, "vgg_type")
    plain = VGG_LAYERS[kind.replace("_bn", "")]
    known = plain if "_bn" not in kind else [*plain, *(name.replace("conv", "bn") for name in plain if "conv" in name)]
    for name in view.get(*at, "layer_weights"):
        if name not in known:
            yield (*at, "layer_weights", name), f"{kind} has no such layer; it has {', '.join(known)}"


class PerceptualOptions:
    """Stands for PerceptualLoss."""

    ARGUMENTS = PerceptualArguments
    RULES = (layers_exist,)


class SROptions:
    """Stands for SRModel."""

    STANDARD_LOOP = True
    OPTIONS = BuiltOnce
    RULES = (something_to_learn, one_optimizer_and_fewer_schedulers)


class SRGANOptions:
    """Stands for SRGANModel and ESRGANModel."""

    STANDARD_LOOP = True
    OPTIONS = SRGANTraining
    RULES = (discriminator_is_given, one_optimizer_and_fewer_schedulers)
