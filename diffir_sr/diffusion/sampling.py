"""From noise to a sample: forward jumps, levels, reverse steps of DDPM and DDIM; of a prior; under guidance.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. All functions are pure; which noise a step adds is an argument.

Of a prior: x_T = sqrt(abar) x_0 + sqrt(1 - abar) noise; then for t = T-1 .. 0: guess x_0, x_{t-1} = c1 x_0 + c2 x_t.

Under guidance, in latents of AutoDIR: x = x_0 + sigma eps, sigma = sqrt((1 - abar) / abar).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from diffir_sr.diffusion.schedule import Schedule, scaled_linear_betas, schedule_constants, schedule_of
from diffir_sr.errors import InputError, OptionError

Number = float | Tensor
LevelSpace = Literal["gamma", "sqrt_gamma"]
Bounds = tuple[Number, Number]

# The steps. Coefficients are numbers, or tensors that broadcast.


def q_sample(x0: Tensor, eps: Tensor, *, signal: Number, spread: Number) -> Tensor:
    """A draw of q(x_t | x_0): `signal` is sqrt(abar_t), `spread` sqrt(1 - abar_t). Ho et al. 2020, eq. 4."""
    return signal * x0 + spread * eps


def clean_from_eps(x: Tensor, eps: Tensor, *, recip: Number, recip_minus: Number) -> Tensor:
    """x_0 of x_t and its noise: `recip` is 1 / sqrt(abar_t), `recip_minus` sqrt(1 / abar_t - 1)."""
    return recip * x - recip_minus * eps


def eps_from_clean(x: Tensor, x0: Tensor, *, signal: Number, spread: Number) -> Tensor:
    """The noise in x_t of which `x0` is left; coefficients as in `q_sample`."""
    return (x - signal * x0) / spread


def posterior_mean(x0: Tensor, x: Tensor, *, coef1: Number, coef2: Number) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0): Ho et al. 2020, eq. 7."""
    return coef1 * x0 + coef2 * x


@dataclass(frozen=True)
class Step:
    """The numbers of one reverse step from x_t to x_{t-1}; `kept` is abar_t, `before` is abar_{t-1}."""

    kept: float
    before: float

    @property
    def beta(self) -> float:
        return 1 - self.kept / self.before

    @property
    def is_last(self) -> bool:
        return self.before == 1

    @property
    def posterior_variance(self) -> float:
        """Of q(x_{t-1} | x_t, x_0): Ho et al. 2020, eq. 7."""
        return self.beta * (1 - self.before) / (1 - self.kept)

    def clean(self, x: Tensor, eps: Tensor) -> Tensor:
        """The guess of x_0 that a guess of the noise amounts to."""
        return clean_from_eps(x, eps, recip=1 / math.sqrt(self.kept), recip_minus=math.sqrt(1 / self.kept - 1))

    def ddpm(self, x: Tensor, x0: Tensor, noise: Tensor | None, *, variance: Variance) -> Tensor:
        """x_{t-1} by ancestral sampling; `noise` None gives the mean."""
        coef1 = math.sqrt(self.before) * self.beta / (1 - self.kept)
        coef2 = math.sqrt(self.kept / self.before) * (1 - self.before) / (1 - self.kept)
        mean = posterior_mean(x0, x, coef1=coef1, coef2=coef2)
        spread = math.sqrt(self.beta if variance == "fixed_large" else self.posterior_variance)
        return mean if noise is None else mean + spread * noise

    def ddim(self, x: Tensor, x0: Tensor, noise: Tensor | None, *, eta: float) -> Tensor:
        """x_{t-1} as Song et al. 2021, eq. 12; the noise is derived anew from `x0`, which may have been clamped."""
        eps = eps_from_clean(x, x0, signal=math.sqrt(self.kept), spread=math.sqrt(1 - self.kept))
        variance = eta**2 * self.posterior_variance
        mean = q_sample(x0, eps, signal=math.sqrt(self.before), spread=math.sqrt(max(0.0, 1 - self.before - variance)))
        return mean if noise is None or not eta else mean + math.sqrt(variance) * noise


# The walk


SamplerName = Literal["ddpm", "ddim"]
Variance = Literal["fixed_small", "fixed_large"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a sample is drawn: options under the names that option files and commands have for them.

    `steps` visits so many levels of the schedule (None: all). `sampler` ddpm adds noise of the posterior's variance
    (`variance` fixed_small) or of beta (fixed_large, as the SR3 paper); ddim adds `eta` times the former, 0 none.
    `clip` keeps each guess of the sample in its range. `beta_schedule` replaces the schedule of the training.
    """

    steps: int | None = None
    sampler: SamplerName = "ddpm"
    eta: float | None = None
    variance: Variance | None = None
    clip: bool = True
    beta_schedule: Mapping[str, Any] | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.sampler not in get_args(SamplerName):
            raise OptionError(f"sampler: expected one of {', '.join(get_args(SamplerName))}, found {self.sampler!r}")
        if self.steps is not None and (isinstance(self.steps, bool) or not isinstance(self.steps, int)):
            raise OptionError(f"steps: expected a whole number, found {self.steps!r}")
        if self.variance is not None and self.variance not in get_args(Variance):
            raise OptionError(f"variance: expected one of {', '.join(get_args(Variance))}, found {self.variance!r}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise OptionError(f"eta: expected 0 (no noise is added) to 1 (as much as ddpm), found {self.eta:g}")
        if self.eta is not None and self.sampler != "ddim":
            raise OptionError(f"eta: belongs to sampler ddim, found sampler {self.sampler}; leave one of them out")
        if self.variance is not None and self.sampler != "ddpm":
            raise OptionError(f"variance: belongs to sampler ddpm, found sampler {self.sampler}; give eta instead")

    def changed(self, **changes: Any) -> Sampling:
        """This with other values; None changes nothing, and another sampler forgets what belongs to the first."""
        given = {name: value for name, value in changes.items() if value is not None}
        if given.get("sampler", self.sampler) != self.sampler:
            given = {"eta": None, "variance": None} | given
        if "beta_schedule" in given and "steps" not in given:
            given["steps"] = None
        return replace(self, **given)

    def schedule(self, trained: Schedule) -> Schedule:
        """The levels that are visited; OptionError for one that cannot be sampled from."""
        whole = trained if self.beta_schedule is None else schedule_of(self.beta_schedule, where="sampling")
        whole = whole.check_ends_in_noise()
        return whole if self.steps is None else whole.respaced(self.steps)

    def step(self, step: Step, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """x_{t-1} by this sampler."""
        if self.sampler == "ddim":
            return step.ddim(x, x0, noise, eta=self.eta or 0.0)
        return step.ddpm(x, x0, noise, variance=self.variance or "fixed_small")

    @property
    def is_noisy(self) -> bool:
        """Whether steps add noise."""
        return self.sampler == "ddpm" or bool(self.eta)


def sampling_of(about: Mapping[str, Any] | None) -> Sampling:
    """`Sampling` of an option section; OptionError names an unknown option."""
    known = [field.name for field in fields(Sampling)]
    for name in about or {}:
        if name not in known:
            raise OptionError(f"sampling.{name}: unknown option; known options: {', '.join(known)}")
    return Sampling(**dict(about or {}))


@dataclass(frozen=True)
class ScheduleFile:
    """What a schedule file says: changes of a `Sampling`, and of how many samples the mean is taken."""

    changes: Mapping[str, Any]
    samples: int = 1


def read_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """A file such as `diffir search-schedule` writes: JSON with `sampling` (as in option files) and `samples`.

    Raises OptionError for a file that cannot be read, or whose schedule cannot be sampled from.
    """
    path = os.path.expanduser(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"is no JSON ({error})"
        raise OptionError(f"schedule {path}: {why}; name a file that diffir search-schedule wrote") from error
    found = content.get("sampling") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise OptionError(f"schedule {path}: expected an object with the key sampling, found {str(content)[:60]!r}")
    samples = content.get("samples", 1)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise OptionError(f"schedule {path}: samples: expected a whole number of 1 or more, found {samples!r}")
    try:
        sampling = sampling_of(found)
        if sampling.beta_schedule is not None:
            sampling.schedule(schedule_of(sampling.beta_schedule))
    except OptionError as error:
        raise OptionError(f"schedule {path}: {error}") from None
    return ScheduleFile(found, samples)


def walk(
    predict: Callable[[Tensor, float], Tensor],
    start: Tensor,
    *,
    schedule: Schedule,
    sampling: Sampling,
    noise: Callable[[int], Tensor],
    bounds: Bounds | None = None,
) -> Iterator[Tensor]:
    """x_{T-1} to x_0, each of the shape of `start` x_T (B, ...).

    `predict(x_t, abar_t)` guesses the noise in x_t; `noise(t)` is what the step from t = T .. 2 adds, standard normal.
    `bounds` are those of x_0, numbers or tensors, and apply if `sampling.clip`.
    """
    x, kept = start, schedule.kept.tolist()
    for t in range(schedule.steps, 0, -1):
        step = Step(kept[t], kept[t - 1])
        eps = predict(x, step.kept)
        # Drawn after the network was called: on an accelerator the CPU draws while the network computes.
        added = noise(t) if sampling.is_noisy and not step.is_last else None
        x0 = step.clean(x, eps)
        if bounds is not None and sampling.clip:
            low, high = cast("Any", bounds)
            x0 = torch.clamp(x0, low, high)
        x = sampling.step(step, x, x0, added)
        yield x


def sampled(steps: Iterator[Tensor]) -> Tensor:
    """The last of a walk, x_0; those before are not kept."""
    return deque(steps, maxlen=1).pop()


# Levels in training


def level_of(kept: Number, space: LevelSpace) -> Number:
    """The noise level that a network is given where abar is `kept`: itself (gamma) or its root (sqrt_gamma)."""
    if space == "gamma":
        return kept
    return kept.sqrt() if isinstance(kept, Tensor) else math.sqrt(kept)


def levels_between(schedule: Schedule, t: Tensor, share: Tensor, *, space: LevelSpace) -> Tensor:
    """Levels (B,), float32, at `share` (B,) in [0, 1] of the way from t - 1 to t (B,) in 1..T.

    Evenly in the level itself: in abar for gamma (SR3 paper), in its root for sqrt_gamma (WaveGrad, published code).
    """
    levels = cast(Tensor, level_of(schedule.kept, space))
    upper, lower = levels[t - 1], levels[t]
    return (upper + share.double() * (lower - upper)).float()


def drawn_levels(schedule: Schedule, draws: Tensor, *, space: LevelSpace, share_t: bool = False) -> Tensor:
    """Levels (B,) of a training batch out of standard normal `draws` (B, 2); `share_t` takes one t for all.

    One t per batch is what the published code does; t per sample makes the loss less noisy.
    """
    uniform = torch.special.ndtr(draws.double())
    first = uniform[:1, 0].expand(len(draws)) if share_t else uniform[:, 0]
    t = (first * schedule.steps).long().clamp(max=schedule.steps - 1) + 1
    return levels_between(schedule, t, uniform[:, 1], space=space)


def noised_to(x0: Tensor, eps: Tensor, level: Tensor, *, space: LevelSpace) -> Tensor:
    """`x0` (B, ...) under noise to the levels (B,), computed in float32 from the float32 level, as published."""
    signal = _signal_of(level, x0, space)
    return q_sample(x0, eps, signal=signal, spread=(1 - signal.square()).sqrt())


def spread_of(level: Tensor, x: Tensor, *, space: LevelSpace) -> Tensor:
    """sqrt(1 - abar) at the levels (B,), to multiply `x` (B, ...) with."""
    return (1 - _signal_of(level, x, space).square()).sqrt()


def _signal_of(level: Tensor, x: Tensor, space: LevelSpace) -> Tensor:
    level = level.reshape(-1, *[1] * (x.ndim - 1)).to(x)
    return level.sqrt() if space == "gamma" else level


# Constants by the names that steps have for them.
_NOISING = {"signal": "sqrt_alphas_cumprod", "spread": "sqrt_one_minus_alphas_cumprod"}
_UNNOISING = {"recip": "sqrt_recip_alphas_cumprod", "recip_minus": "sqrt_recipm1_alphas_cumprod"}
_WEIGHTS = {"coef1": "posterior_mean_coef1", "coef2": "posterior_mean_coef2"}


class PriorDiffusion(nn.Module):
    """The walk from noise to a prior under a condition network; its buffers are the published schedule.

    `model(noisy, step, condition)` guesses the clean prior (`prediction="x0"`, as published: the author found it
    slightly better) or the noise (`"eps"`, as the paper's text says). `condition(lq)` runs once per call.
    `variance_noise` adds the posterior's noise after each step; the paper found it harmful and leaves it out.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        condition: nn.Module,
        timesteps: int,
        linear_start: float,
        linear_end: float,
        prediction: str = "x0",
        variance_noise: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in ("x0", "eps"):
            raise OptionError(f"prediction: expected 'x0' or 'eps', got {prediction!r}")
        if timesteps < 1:
            raise OptionError(f"timesteps: expected 1 or more, got {timesteps}")
        self.model = model
        self.condition = condition
        self.steps = timesteps
        self.prediction = prediction
        self.variance_noise = variance_noise
        betas = scaled_linear_betas(timesteps, start=linear_start, end=linear_end)
        for name, values in schedule_constants(betas).items():
            self.register_buffer(name, values.float())

    def forward(self, lq: Tensor, prior: Tensor | None = None, *, noise: Tensor | None) -> Tensor | list[Tensor]:
        """Training: the priors (B, D) after each reverse step from the noised `prior`. Evaluation: the last one.

        `noise` (B, D) is standard normal. In training the walk starts at q(x_T | prior), in evaluation at `noise`.
        """
        if noise is None:
            raise InputError("the diffusion needs noise=: standard normal values of shape (batch, 256)")
        if not self.training:
            return self.sample(noise, self.condition(lq))[-1]
        if prior is None:
            raise InputError("training the diffusion needs the stage-1 prior; call .eval() to restore without it")
        return self.sample(self.q_sample(prior, noise), self.condition(lq))

    def q_sample(self, prior: Tensor, noise: Tensor) -> Tensor:
        """A draw of q(x_T | prior), (B, D): Ho et al. 2020, eq. 4."""
        return q_sample(prior, noise, **self._at(_NOISING, -1))

    def sample(self, noisy: Tensor, condition: Tensor) -> list[Tensor]:
        """Priors (B, D) after each step back from `noisy`, of which they are a function; never in half precision."""
        # The meta device, on which costs are counted, knows no autocast.
        plain = nullcontext() if noisy.is_meta else torch.autocast(noisy.device.type, enabled=False)
        with plain:
            return self._walk(noisy, condition.to(noisy.dtype))

    def _walk(self, noisy: Tensor, condition: Tensor) -> list[Tensor]:
        trajectory, added = [], self._step_noise(noisy) if self.variance_noise else None
        for t in reversed(range(self.steps)):
            clean = self._clean(noisy, t, self.model(noisy, noisy.new_full((len(noisy),), t), condition))
            noisy = posterior_mean(clean, noisy, **self._at(_WEIGHTS, t))
            if added is not None:
                noisy = noisy + cast(Tensor, self.posterior_variance)[t].sqrt() * added[:, t]
            trajectory.append(noisy)
        return trajectory

    def predict_x0(self, prior: Tensor, noise: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """The clean prior (B, D) that one call of the model finds in q(x_t | prior) at the steps t (B,), int64.

        What a classic diffusion is trained on; the joint training of DiffIR walks all steps instead.
        """
        noisy = q_sample(prior, noise, **self._at(_NOISING, step[:, None]))
        return self._clean(noisy, step[:, None], self.model(noisy, step.to(noisy.dtype), condition))

    def _step_noise(self, start: Tensor) -> Tensor:
        """Standard normal values (B, steps, D) that follow from each row of `start`, so that a seed still tells all."""
        rows = []
        for row in start.detach().float().cpu():
            key = int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=7).digest(), "little")
            rows.append(torch.randn(self.steps, len(row), generator=torch.Generator().manual_seed(key)))
        return torch.stack(rows).to(start)

    def _clean(self, noisy: Tensor, t: int | Tensor, guess: Tensor) -> Tensor:
        if self.prediction == "x0":
            return guess
        return clean_from_eps(noisy, guess, **self._at(_UNNOISING, t))

    def _at(self, names: Mapping[str, str], t: int | Tensor) -> dict[str, Tensor]:
        """Constants of the steps `t`, by argument name."""
        return {argument: cast(Tensor, getattr(self, name))[t] for argument, name in names.items()}


Prediction = Literal["eps", "v", "difference", "residual"]
Dropout = Literal["independent", "shared", "none"]
START, END, STEPS = 0.00085, 0.012, 1000  # of Stable Diffusion's schedule, linear in the root of beta
DEGRADED_SPREAD = 0.25  # of pictures in [-1, 1]


@dataclass(frozen=True)
class Sigmas:
    """The noise levels of a schedule of `steps`, as a network trained on them is told of them: t may be fractional."""

    start: float = START
    end: float = END
    steps: int = STEPS

    @cached_property
    def kept(self) -> np.ndarray:
        """abar at t = 0 .. steps - 1, rounded to float32, as checkpoints store it."""
        with torch.device("cpu"):
            betas = scaled_linear_betas(self.steps, start=self.start, end=self.end)
        return np.cumprod(1 - betas.numpy()).astype(np.float32)

    @cached_property
    def all(self) -> np.ndarray:
        """Sigmas at t = 0 .. steps - 1, rising, computed from those as published."""
        return np.sqrt((1 - self.kept) / self.kept)

    def visited(self, count: int) -> np.ndarray:
        """`count` sigmas from the largest down, evenly spaced in t and between whole t in their logarithm, then 0."""
        if not 1 <= count <= self.steps:
            raise OptionError(f"steps: expected 1 to {self.steps}, which the schedule has, found {count}")
        t = np.linspace(self.steps - 1, 0, count)
        return np.append(np.exp(np.interp(t, np.arange(self.steps), np.log(self.all, dtype=np.float64))), 0.0)

    def at(self, t: Tensor) -> Tensor:
        """Sigmas at t (B,), which may be fractional; interpolated in their logarithm."""
        places = t.detach().cpu().double().numpy()
        logarithms = np.log(self.all, dtype=np.float64)
        return torch.from_numpy(np.exp(np.interp(places, np.arange(self.steps), logarithms))).to(t.device)

    def t_of(self, sigma: float) -> float:
        """The t, not rounded, at which the schedule has this sigma."""
        return float(np.interp(math.log(sigma), np.log(self.all), np.arange(self.steps)))


def denoised(x: Tensor, sigma: float, found: Tensor, *, prediction: Prediction, degraded: Tensor) -> Tensor:
    """The guess of x_0 in `x` = x_0 + sigma eps that a network made by its answer `found` to x / sqrt(sigma^2 + 1).

    `degraded` are the degraded picture's latents, scaled as x_0, of which a difference is one.
    """
    if prediction == "eps":
        return x - sigma * found
    if prediction == "difference":
        return degraded + found
    if prediction == "residual":
        return combined(x, sigma, degraded) + found
    # v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022), abar = 1 / (1 + sigma^2).
    return (x / math.sqrt(sigma**2 + 1) - sigma * found) / math.sqrt(sigma**2 + 1)


def combined(x: Tensor, sigma: Number, degraded: Tensor) -> Tensor:
    """The best linear estimate of x_0 from `x` = x_0 + sigma eps and from a degraded x_0, weighted by their variances.

    It is nearly `degraded` where sigma is large and nearly `x` where it is small. `DEGRADED_SPREAD` is the assumed
    standard deviation of the error of `degraded`.
    """
    variance = sigma**2
    return (DEGRADED_SPREAD**2 * x + variance * degraded) / (DEGRADED_SPREAD**2 + variance)


def guided(both: Tensor, picture: Tensor, none: Tensor, *, text_scale: float, image_scale: float) -> Tensor:
    """Answers under text and picture, the picture alone, and neither, put together (Brooks et al. 2023, eq. 3)."""
    return none + text_scale * (both - picture) + image_scale * (picture - none)


def euler_ancestral(
    guess: Callable[[Tensor, float], Tensor],
    start: Tensor,
    sigmas: np.ndarray,
    *,
    noise: Callable[[int], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x before the step, guess of x_0) of each step, then (x_0, x_0), all of the shape of `start` (B, ...).

    `start` is standard normal noise; `guess(x, sigma)` guesses x_0; `noise(k)` is what step k = 0, 1, ... adds, but
    the last.
    """
    x = start * float(sigmas[0])
    for step, (here, there) in enumerate(zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False)):
        clean = guess(x, here)
        yield x, clean
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = math.sqrt(there**2 - up**2)
        x = x + (x - clean) / here * (down - here)
        if there > 0:
            x = x + noise(step) * up
    yield x, x


def dropped(draws: Tensor, *, how: Dropout = "independent", share: float = 0.10) -> tuple[Tensor, Tensor]:
    """Which samples of a training lose their text and which their picture: two boolean (B,), from uniform (B, 2).

    Each with probability `share`: independent, as the published training draws them, so that both go with its square;
    shared by one draw in which half of each overlap, as InstructPix2Pix; none loses neither.
    """
    if how == "none":
        kept = torch.zeros(len(draws), dtype=torch.bool, device=draws.device)
        return kept, kept.clone()
    text, picture = draws[:, 0], draws[:, 1] if how == "independent" else draws[:, 0]
    return text < share, (picture >= share / 2) & (picture < 1.5 * share)
