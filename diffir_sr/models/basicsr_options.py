"""Options of training against a discriminator, and what BasicSR's super-resolution models say of theirs."""

from __future__ import annotations

from typing import Literal

from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from pydantic import Field

from diffir_sr.option_types import Built, Count, CountOrZero, Found, NotNegative, Number, Section, View


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
