"""Training of networks that find the noise in a picture: SR3 and DvSR, and what they share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffir_sr.archs.dvsr_arch import DvSRPredictor
from diffir_sr.diffusion.noise import Noise
from diffir_sr.diffusion.sampling import ScheduleFile, drawn_levels, noised_to, read_schedule
from diffir_sr.errors import OptionError
from diffir_sr.families.base import WalksInSteps
from diffir_sr.models.restoration_model import Losses, PlainModel, RestorationModel
from diffir_sr.models.validation import Restoring
from diffir_sr.option_types import Found, Number, Probability, Section, View, Whole


class NoiseOptions(Section):
    """Training to find the noise in pictures."""

    share_t: bool = Field(
        False,
        description="Whether a batch shares one step of the schedule, between whose levels samples are drawn.",
    )


def levels_fall_into_parts(view: View, at: tuple[str, ...]) -> Found:
    """A level that a whole batch shares is none that its parts draw."""
    if view.is_train and view.get("train", "share_t") and view.get("train", "accumulation", default=1) > 1:
        yield ("train", "accumulation"), "share_t draws one step for a whole batch, which parts do not have; choose one"


class SamplingOptions(Section):
    """How validation draws pictures; by default as network_g says."""

    steps: Annotated[Whole, Field(ge=1, le=100_000)] | None = Field(None, description="Steps of the sampler.")
    sampler: Literal["ddpm", "ddim"] | None = Field(None, description="Kind of the steps.")
    eta: Probability | None = Field(None, description="Share of ddpm's noise that steps of ddim add.")
    variance: Literal["fixed_small", "fixed_large"] | None = Field(
        None, description="Noise that steps of ddpm add, the posterior's or beta's."
    )
    schedule: str | None = Field(
        None, description="File of diffir search-schedule to sample as, but for what is said here."
    )
    samples: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(
        None, description="Samples of whose mean a picture is made; by default 1, or as schedule says."
    )


class SearchGrid(Section):
    """The grid of `diffir search-schedule`: every combination is measured."""

    steps: list[Annotated[Whole, Field(ge=1, le=10_000)]] = Field(
        [10, 20, 30, 50, 100], min_length=1, description="Numbers of steps."
    )
    schedules: list[Literal["linear", "quad", "warmup10", "warmup50", "const", "cosine", "trained"]] = Field(
        ["linear"], min_length=1, description="Schedules; trained visits evenly spaced steps of the training's."
    )
    linear_start: Annotated[Number, Field(gt=0, lt=1)] = Field(1e-6, description="First beta.")
    linear_end: list[Annotated[Number, Field(gt=0, lt=1)]] = Field(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9],
        min_length=1,
        description="Last betas; schedules that do not end in noise are skipped.",
    )
    samplers: list[Literal["ddpm", "ddim"]] = Field(["ddpm", "ddim"], min_length=1, description="Kinds of the steps.")
    variance: list[Literal["fixed_small", "fixed_large"]] = Field(
        ["fixed_small"], min_length=1, description="Noise that steps of ddpm add, the posterior's or beta's."
    )
    eta: list[Probability] = Field(
        [0.0, 0.5], min_length=1, description="Shares of ddpm's noise that steps of ddim add."
    )
    samples: list[Annotated[Whole, Field(ge=1, le=1000)]] = Field(
        [1, 2, 4, 8, 16], min_length=1, description="Numbers of samples of whose mean a picture is made."
    )
    objective: str | None = Field(
        None, description="Metric of val.metrics that chooses the schedule; by default the first whose low is better."
    )


class SearchOptions(Section):
    """What `diffir search-schedule` reads at the top of a file."""

    search: SearchGrid | None = Field(None, description="Grid of diffir search-schedule.")


class NoisePredictionModel(RestorationModel):
    """What trainings share whose loss compares noise with the noise that a network finds.

    `train.pixel_opt` is the distance between the two (L1Loss as published). Every sample of a batch has a noise level
    of its own, or with `train.share_t` one between two steps of the schedule that the batch shares, as published.
    Validation draws pictures as the network's `sampling` says, or with `val.steps`, `val.sampler`, `val.eta` and
    `val.variance`, or as the file `val.schedule` does.
    """

    OPTIONS: ClassVar[Any] = NoiseOptions
    RULES = (levels_fall_into_parts,)
    VAL_OPTIONS: ClassVar[Any] = SamplingOptions
    TOP_OPTIONS: ClassVar[Any] = SearchOptions

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        changes = SamplingOptions.of(opt.get("val")).model_dump()
        file, samples = changes.pop("schedule"), changes.pop("samples")
        found = ScheduleFile({}) if file is None else read_schedule(file)
        for net in (self.get_bare_model(self.net_g), self.net_g_ema):
            if isinstance(net, WalksInSteps):
                net.sampling = net.sampling.changed(**found.changes).changed(**changes)
        self.restoring = Restoring(self.device, samples=samples or found.samples)

    def init_training_settings(self) -> None:
        train, starts_anew = self.opt["train"], not self.opt["path"].get("pretrain_network_g")
        self.share_t = NoiseOptions.of(train).share_t
        if train.get("perceptual_opt"):
            raise OptionError(f"train.perceptual_opt: {type(self).__name__} compares noise, not pictures; leave it out")
        net = self.get_bare_model(self.net_g)
        if starts_anew and hasattr(net, "initialise"):
            with torch.random.fork_rng():  # the same on every rank
                torch.manual_seed(int(self.opt["manual_seed"]))
                net.initialise()
        super().init_training_settings()

    def levels_at(self, noise: Noise, count: int) -> Tensor:
        """Noise levels (B,) of an iteration's batch."""
        net: Any = self.get_bare_model(self.net_g)
        return drawn_levels(
            net.trained_schedule,
            noise.normal((count, 2), "level"),
            space=net.level_space,
            share_t=self.share_t,
        ).to(self.device)

    def noise_losses(self, found: Tensor, eps: Tensor) -> Losses:
        assert self.cri_pix is not None  # perceptual losses are refused, and one of the two there is
        return {"l_noise": self.cri_pix(found, eps)}


class SR3Model(NoisePredictionModel):
    """Trains SR3 to find the noise in the ground truth (or in the residual), given the degraded picture."""

    OPTIONS = ()

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        noise, net = self.noise_at(current_iter), self.get_bare_model(self.net_g)
        clean = net.diffused(self.lq, self.target("l1"))
        level = self.levels_at(noise, len(clean))
        eps = noise.normal(clean.shape, "eps").to(clean)
        noisy = noised_to(clean, eps, level, space=net.level_space)
        return self.noise_losses(self.run_network(self.lq, noisy, level), eps), {}


class DvSRModel(NoisePredictionModel):
    """Trains both networks of DvSR with the loss of the noise alone, which reaches the predictor through its input.

    The log also shows how far the first guess is from the truth (`first_guess`, mean absolute difference of values in
    [0, 1]): it falls, although no loss asks for it.
    """

    OPTIONS = ()

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        noise, truth = self.noise_at(current_iter), self.target("l1")
        level = self.levels_at(noise, len(truth))
        eps = noise.normal(truth.shape, "eps").to(truth)
        found, first = self.run_network(self.lq, truth, eps, level)
        missing = (first.detach() - (2 * truth - 1)).abs().mean() / 2
        return self.noise_losses(found, eps), {"first_guess": missing}


class DvSRRegressionModel(PlainModel):
    """Trains the predictor of DvSR alone on the pixels, as the paper's regression does with squared errors."""

    OPTIONS = ()

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        net = self.get_bare_model(self.net_g)
        if not isinstance(net, DvSRPredictor):
            raise OptionError(
                f"network_g.type: DvSRRegressionModel trains a DvSRPredictor, found {type(net).__name__}; PlainModel "
                "trains any network"
            )
