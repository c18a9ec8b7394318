"""DiffIR's models for super-resolution and deblurring, with their options and rules: stage 1, stage 2, GAN phase."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from basicsr.losses import build_loss
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.optim import Optimizer

from diffir_sr.checkpoints import fit, read_weights
from diffir_sr.errors import OptionError
from diffir_sr.models.auxiliary import Adversarial, Alternating, Discriminator, Frozen, discriminator_is_given
from diffir_sr.models.optimization import step_decay_rate
from diffir_sr.models.restoration_model import Losses, RestorationModel, has_batch_norm
from diffir_sr.option_types import Built, Count, CountOrZero, Found, NotNegative, Section, View
from diffir_sr.options.schema import PathOptions

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


def prior_spread(prior: Tensor) -> Losses:
    """How far the priors (B, D) of a batch differ: their variance over pictures by their mean square, 0 to 1.

    0 is a dead prior, the same for every picture. Nothing for a batch of one picture.
    """
    if len(prior) < 2:
        return {}
    prior = prior.detach().float()
    return {"prior_spread": prior.var(0, correction=0).mean() / prior.square().mean().clamp(min=1e-30)}


class Stage2Model(RestorationModel, ABC):
    """Trains DiffIRS2 to reach the prior of a frozen stage-1 teacher from the degraded image alone."""

    OPTIONS = Stage2Options
    RULES = (same_geometry,)
    NETWORK_G = "DiffIRS2"
    TITLE = "stage 2"
    MADE_BY: ClassVar[Mapping[str, str]] = {"network_g": "DiffIRS1Model", "network_S1": "DiffIRS1Model"}
    RECIPE = shipped("train_DiffIRS2")
    prior_encoder = "condition"
    frozen_networks = (
        Frozen(
            "S1",
            role="stage 2 learns from a stage-1 network",
            source="the net_g file that a DiffIRS1Model training wrote",
            part="E",  # the prior encoder; the body of stage 1 is not needed
            arch="DiffIRS1",
        ),
    )

    def init_training_settings(self) -> None:
        options = Stage2Options.of(self.opt["train"])
        self.trains_apart = options.diffusion_training == "separate"
        self.cri_kd = build_loss(self.opt["train"].get("kd_opt") or {"type": "KDLoss"}).to(self.device)
        super().init_training_settings()

    @property
    def teacher(self) -> nn.Module:
        """The frozen prior encoder of stage 1."""
        return self.frozen["S1"]

    def teacher_prior(self) -> Tensor:
        """Stage 1's prior (B, 256) of the current batch."""
        with torch.no_grad():
            return self.teacher(self.lq, self.target("l1"))

    def start_noise(self, current_iter: int) -> Tensor:
        """Where the diffusion starts, (B, D)."""
        width = int(self.get_bare_model(self.net_g).prior_width)  # pyright: ignore[reportArgumentType]
        return self.noise_at(current_iter).normal((len(self.lq), width)).to(self.device)

    def prior_losses(self, teacher_prior: Tensor, trajectory: list[Tensor]) -> tuple[Losses, Losses]:
        """The distance of the last step's prior, optimised, and the KL term, watched (published log names)."""
        kl, distance = self.cri_kd(teacher_prior, trajectory[-1])
        last, name = (
            len(trajectory) - 1,
            {"l2": "l_sq", "kl": "l_kl"}.get(getattr(self.cri_kd, "criterion", "l1"), "l_abs"),
        )
        found = {"prior_cosine": cosine_similarity(teacher_prior, trajectory[-1].detach()).mean()}
        return {f"{name}_{last}": distance}, {f"l_kd_{last}": kl, **found, **prior_spread(trajectory[-1])}

    def joint_losses(self, current_iter: int) -> tuple[Tensor, Losses, Losses]:
        """Restored images, the losses of image and prior, and what is watched."""
        prior = self.teacher_prior()
        noise = self.start_noise(current_iter)
        if self.trains_apart:
            restored, trajectory = self.run_network(self.lq, prior, noise=noise, step=self._steps_at(current_iter))
        else:
            restored, trajectory = self.run_network(self.lq, prior, noise=noise)
        distances, watched = self.prior_losses(prior, trajectory)
        return restored, {**self.image_losses(restored), **distances}, watched | self.colour_shift(restored)

    def _steps_at(self, current_iter: int) -> Tensor:
        """A diffusion step for each image of the batch, all equally likely: a function of seed, iteration and rank."""
        steps = int(self.get_bare_model(self.net_g).get_submodule("diffusion").steps)  # pyright: ignore
        rng = np.random.default_rng((int(self.opt["manual_seed"]), current_iter, int(self.opt["rank"]), 1))
        return self.rows_of(torch.from_numpy(rng.integers(steps, size=self.batch_size))).to(self.device)

    def law(self, name: str) -> dict[str, Any]:
        """lr, gamma and interval of the published manual rate `lr_<name>`; all three are needed."""
        train = self.opt["train"]
        keys = {"base": f"lr_{name}", "gamma": f"gamma_{name}", "every": f"lr_decay_{name}"}
        absent = [key for key in keys.values() if train.get(key) is None]
        if absent:
            raise OptionError(f"train: encoder_iter > 0 needs {', '.join(absent)}")
        values = {argument: train[key] for argument, key in keys.items()}
        return {**values, "every": int(values["every"])}


class DiffIRS1Model(RestorationModel):
    """Trains DiffIRS1 (body and CPEN_S1) on image losses; `test` needs the ground truth, as the network does."""

    OPTIONS = ()
    NETWORK_G = "DiffIRS1"
    TITLE = "stage 1"
    prior_encoder = "E"
    RECIPE = shipped("train_DiffIRS1")

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        restored, prior = self.run_network(self.lq, self.target("l1"))
        return self.image_losses(restored), self.colour_shift(restored) | prior_spread(prior[-1])


class DiffIRS2Model(Stage2Model):
    """Trains DiffIRS2; for the first `encoder_iter` iterations its condition and denoiser alone, on the prior loss.

    With `encoder_iter` 0 the scheduler sets the rate (published super-resolution). Otherwise the published law:
    lr_encoder * gamma_encoder^(i // lr_decay_encoder) while warming up, then
    lr_sr * gamma_sr^((i - encoder_iter) // lr_decay_sr).
    """

    OPTIONS = WarmUpOptions
    RULES = (warm_up_is_complete,)
    WARNINGS = (rates_have_effect, starts_cold)
    WARMS_UP = True
    starts_from_stage_1 = True

    def init_training_settings(self) -> None:
        self.encoder_iter = WarmUpOptions.of(self.opt["train"]).encoder_iter
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
                [step_decay_rate(**restoration, iteration=current_iter - self.encoder_iter)],
                [step_decay_rate(**encoder, iteration=current_iter)],
            ]
        )

    def get_current_learning_rate(self) -> list[float]:
        now = self.optimizer_e if self._warming_up else self.optimizer_g
        return [group["lr"] for group in now.param_groups]

    def optimizer_at(self, current_iter: int) -> Optimizer:
        return self.optimizer_e if self._warming_up else self.optimizer_g

    def optimize_parameters(self, current_iter: int) -> None:
        self._enter_phase(warming_up=current_iter < self.encoder_iter)  # before processes say when they exchange
        super().optimize_parameters(current_iter)

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        self._enter_phase(warming_up=current_iter < self.encoder_iter)
        if not self._warming_up:
            _, losses, watched = self.joint_losses(current_iter)
            return losses, watched
        prior = self.teacher_prior()
        # Through the wrapped forward, never a sub-module: else several devices would not share their gradients.
        trajectory = self.run_network(self.lq, prior, noise=self.start_noise(current_iter), return_prior=True)
        return self.prior_losses(prior, trajectory)

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


logger = logging.getLogger("basicsr")


class GANStageOptions(Adversarial, Alternating, WarmUpOptions):
    """What the GAN stage reads beyond stage 2."""


class DiffIRGANS2Model(Stage2Model):
    """Trains all of DiffIRS2 with pixel, prior, perceptual and GAN losses, from a trained stage 2.

    With `encoder_iter` > 0 (published real-world recipes, where it does nothing else here) the generator's rate is
    lr_sr * gamma_sr^(i // lr_decay_sr); otherwise the scheduler's.
    """

    OPTIONS = GANStageOptions
    RULES = (discriminator_is_given, adversary_has_a_start, warm_up_is_complete)
    WARNINGS = (rates_have_effect,)
    TITLE = "the GAN stage"
    MADE_BY: ClassVar[Mapping[str, str]] = {"network_g": "DiffIRS2Model", "network_S1": "DiffIRS1Model"}
    RECIPE = shipped("train_DiffIRS2_GAN")

    def init_training_settings(self) -> None:
        if not self.opt["path"].get("pretrain_network_g"):
            raise OptionError(
                "path.pretrain_network_g: the GAN phase starts from a trained stage 2 (the net_g file that a "
                "DiffIRS2Model training wrote), and none is given; GAN losses from scratch diverge"
            )
        options = GANStageOptions.of(self.opt["train"])
        self.encoder_iter = options.encoder_iter
        self.net_d_iters, self.net_d_init_iters = options.net_d_iters, options.net_d_init_iters
        super().init_training_settings()
        self._law = self.law("sr") if self.encoder_iter else None

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        net = self.build_net("network_d")
        path = PathOptions.of(self.opt["path"])
        if path.pretrain_network_d:
            weights = read_weights(path.pretrain_network_d, key=path.param_key_d)
            strict = path.strict_load_d
            logger.info(f"Loaded {fit(net, weights, where='path.pretrain_network_d', strict=strict)}")
        net = self.model_to_device(net)
        net.train()
        self.print_network(net)
        loss = build_loss(self.opt["train"]["gan_opt"]).to(self.device)
        optimizer = self.optimizer_of(net.parameters(), "optim_d")
        self.adversary = Discriminator(net, loss=loss, optimizer=optimizer)
        self._restored: list[Tensor] = []  # by the parts of the batch, for the discriminator
        if self.acceleration.accumulation > 1 and has_batch_norm(net):
            raise OptionError(
                f"train.accumulation: {type(self.get_bare_model(net)).__name__} computes statistics of whole batches, "
                "which parts do not have; leave it out, or choose UNetDiscriminatorSN"
            )
        self.optimizers.append(optimizer)

    def scheduled(self) -> list[Optimizer]:
        return [self.adversary.optimizer] if self.encoder_iter else self.optimizers

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        super().update_learning_rate(current_iter, warmup_iter=warmup_iter)
        if self._law:
            self._set_lr([[step_decay_rate(**self._law, iteration=current_iter)]])

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        restored, losses, watched = self.joint_losses(current_iter)
        losses["l_g_gan"] = self.adversary.generator_loss(restored, goes_on=bool(self._restored))
        self._restored.append(restored.detach())
        return losses, watched

    def optimize_parameters(self, current_iter: int) -> None:
        self.lq, self.gt = self.batches.mixed(self.lq, self.gt, current_iter)
        self._restored = []
        learns = current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters
        losses, watched = self.find_gradients(current_iter, learns=learns)
        if learns:
            self.take_step(self.optimizer_g)
            self.update_average()
        restored = torch.cat(self._restored)
        judged = self.adversary.train_step(self.target("gan"), restored, parts=self.acceleration.accumulation)
        self.note(current_iter, losses | watched | judged)

    def save_others(self, current_iter: int) -> None:
        self.save_network(self.adversary.net, "net_d", current_iter)
