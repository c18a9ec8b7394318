"""What DiffIR's models say about their options: sections of `train`, rules, and what has no effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from diffir_sr.option_types import Built, Count, CountOrZero, Found, NotNegative, Section, View

PRIORS = ("lr_encoder", "gamma_encoder", "lr_decay_encoder")
BODY = ("lr_sr", "gamma_sr", "lr_decay_sr")


class Stage2Options(Section):
    """Stage 2 learns the prior of a stage-1 teacher."""

    kd_opt: Built | None = Field(
        None, description="Loss between the priors of stage 1 and stage 2; by default KDLoss as it is."
    )
    diffusion_training: Literal["joint", "separate"] = Field(
        "joint",
        description="joint (published, the paper's V3): all steps run and the image loss reaches the prior; separate "
        "(V2, worse in the paper): the diffusion learns single random steps, the body alone learns from the image.",
    )


class WarmUpOptions(Section):
    """The published warm-up of stage 2, in which the prior alone is learnt, and its learning rates."""

    encoder_iter: CountOrZero = Field(
        0, description="Iterations of stage 2 in which the prior alone is learnt; 0 is none."
    )
    lr_encoder: NotNegative | None = Field(None, description="Learning rate of these; has effect if encoder_iter > 0.")
    gamma_encoder: NotNegative | None = Field(
        None, description="Factor on lr_encoder every lr_decay_encoder iterations; has effect if encoder_iter > 0."
    )
    lr_decay_encoder: Count | None = Field(None, description="See gamma_encoder.")
    lr_sr: NotNegative | None = Field(None, description="Learning rate after these; has effect if encoder_iter > 0.")
    gamma_sr: NotNegative | None = Field(
        None, description="Factor on lr_sr every lr_decay_sr iterations; has effect if encoder_iter > 0."
    )
    lr_decay_sr: Count | None = Field(None, description="See gamma_sr.")


class InpaintOptions(Section):
    """Inpainting alone."""

    feature_matching_opt: Built | None = Field(
        None, description="Distance between what the discriminator's layers make of both images."
    )


def same_geometry(view: View, at: tuple[str, ...]) -> Found:
    """Teacher and student see the same task at the same scale."""
    if not view.has("network_S1") or not view.size_rule() or not view.size_rule("network_S1"):
        return
    tasks = {name: view.effective(name, "task") for name in ("network_g", "network_S1")}
    ours, theirs = view.size_rule(), view.size_rule("network_S1")
    if ours and theirs and (ours.scale != theirs.scale or tasks["network_g"] != tasks["network_S1"]):
        yield (
            ("network_S1",),
            f"teacher and student differ: task {tasks['network_S1']!r}, scale {theirs.scale} here, "
            f"task {tasks['network_g']!r}, scale {ours.scale} in network_g",
        )


def warm_up_is_complete(view: View, at: tuple[str, ...]) -> Found:
    """The warm-up has learning rates of its own, which must be given."""
    if not view.is_train or view.effective("train", "encoder_iter") == 0:
        return
    for key in (*(PRIORS if view.declares("WARMS_UP") else ()), *BODY):
        if not view.has("train", key):
            yield ("train", key), "missing: it rules the learning rate, because encoder_iter is above 0"


def adversary_has_a_start(view: View, at: tuple[str, ...]) -> Found:
    """The GAN stage starts from a trained stage 2, or resumes."""
    if view.is_train and not view.has("path", "resume_state") and not view.has("path", "pretrain_network_g"):
        yield (
            ("path", "pretrain_network_g"),
            "missing: the GAN stage needs a stage-2 start; give the weights of a DiffIRS2Model training",
        )


def starts_cold(view: View, at: tuple[str, ...]) -> Found:
    """Stage 2 may start from random weights, but the published one does not."""
    if view.is_train and not view.has("path", "pretrain_network_g") and not view.has("path", "resume_state"):
        yield (
            ("path", "pretrain_network_g"),
            "not given: stage 2 starts from random weights; the published recipe starts from stage 1's",
        )


def rates_have_effect(view: View, at: tuple[str, ...]) -> Found:
    """Published files carry learning rates of a warm-up that is none."""
    given = [key for key in view.get("train", default={}) if key in (*PRIORS, *BODY) and view.has("train", key)]
    warms_up = view.effective("train", "encoder_iter") > 0
    priors = [key for key in given if key in PRIORS]
    if warms_up and priors and not view.declares("WARMS_UP"):
        yield (
            ("train", priors[0]),
            f"has no effect{_others(priors)}: the GAN stage learns all parts from its start; there, encoder_iter above "
            "0 says only that lr_sr, gamma_sr and lr_decay_sr rule the learning rate of network_g",
        )
    if given and not warms_up:
        yield (
            ("train", given[0]),
            f"has no effect{_others(given)}: encoder_iter is 0, so train.scheduler rules the learning rate, as in the "
            "published super-resolution recipes",
        )


def shipped(name: str) -> Callable[[View], str | None]:
    """The recipe of a stage for super-resolution at the scale of a file; other tasks have theirs by data set."""

    def recipe(view: View) -> str | None:
        return f"{name}_x{view.scale()}" if view.effective("network_g", "task") == "sr" else None

    return recipe


def _others(given: list[str]) -> str:
    return f" (also {', '.join(given[1:])})" if given[1:] else ""


def fills_holes(view: View, at: tuple[str, ...]) -> Found:
    """Inpainting works on images with holes, with a network and an adversary that see them."""
    for name, kind in view.datasets():
        where = ("datasets", name)
        if view.declares("OPTIONS", *where) is not None and not view.declares("GIVES_HOLES", *where):
            yield (
                (*where, "type"),
                f"{view.model} fills holes, which the images of {kind} do not have; use type: InpaintDataset",
            )
    if not view.is_train:
        return
    if view.has("network_g") and view.effective("network_g", "task") != "inpaint":
        task = view.effective("network_g", "task")
        yield ("network_g", "task"), f"{view.model} fills holes: set task: inpaint, found {task!r}"
    if view.has("train", "gan_opt", "type") and not view.declares("SEES_HOLES", "train", "gan_opt"):
        kind = view.get("train", "gan_opt", "type")
        yield ("train", "gan_opt", "type"), f"{view.model} takes MaskedGANLoss, found {kind!r}"


def layers_can_be_compared(view: View, at: tuple[str, ...]) -> Found:
    """Feature matching needs a discriminator that shows what its layers make of an image."""
    if not view.is_train or not view.has("train", "feature_matching_opt"):
        return
    arch = view.kind("network_d")
    if arch is not None and not hasattr(arch, "activations"):
        yield (
            ("network_d", "type"),
            f"{view.get('network_d', 'type')} does not show its layers, which train.feature_matching_opt compares; "
            "choose NLayerDiscriminator, or remove feature_matching_opt",
        )
