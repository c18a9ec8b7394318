"""Options of training against a discriminator, and what BasicSR's super-resolution models say of theirs."""

from __future__ import annotations

from pydantic import Field

from diffir_sr.option_types import Built, Count, CountOrZero, Found, Section, View


class BuiltOnce(Section):
    """What every training here builds."""

    optim_g: Built = Field(description="Optimizer of network_g: a class of torch.optim and its arguments.")
    scheduler: Built = Field(description="How the learning rate changes.")


class Adversarial(Section):
    """Training against a discriminator, network_d."""

    optim_d: Built = Field(description="Optimizer of network_d.")
    gan_opt: Built = Field(description="Adversarial loss.")


class Alternating(Section):
    """How the steps of network_g and network_d follow each other."""

    net_d_iters: Count = Field(1, description="Discriminator steps for each step of network_g.")
    net_d_init_iters: CountOrZero = Field(0, description="Iterations in which the discriminator trains alone.")


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
        kind = view.get("train", optimizer, "type", default="Adam")
        if kind != "Adam":
            yield ("train", optimizer, "type"), f"BasicSR's {view.model} knows Adam alone, found {kind!r}"
    if view.get("train", "scheduler", "type") == "CosineAnnealingRestartCyclicLR":
        kind = view.get("train", "scheduler", "type")
        yield ("train", "scheduler", "type"), f"BasicSR's {view.model} has no {kind}"


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
