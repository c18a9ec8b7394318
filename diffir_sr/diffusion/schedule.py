"""The numbers of a diffusion: noise schedules and what follows from them, as pure functions, float64, no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffir_sr.errors import OptionError


def scaled_linear_betas(steps: int, *, start: float, end: float) -> Tensor:
    """Betas evenly spaced in their square root, (steps,), float64.

    Latent diffusion's "linear" schedule, which the published code uses; the paper's text says linear.
    """
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


# What is left of the prior in the published start of the walk: the last cumulative product for four steps.
PUBLISHED_SIGNAL = 0.0025980376


def rescaled_end(steps: int, *, start: float, signal: float = PUBLISHED_SIGNAL) -> tuple[float, float]:
    """(start, end) of a schedule of `steps` whose last cumulative product is `signal`: x_T is noise for any number.

    The paper re-tunes so for its ablation over T. The start is kept where it can be; one step has one beta alone.
    """
    if steps == 1:
        return 1 - signal, 1 - signal

    def left(first: float, last: float) -> float:
        return float(torch.cumprod(1 - scaled_linear_betas(steps, start=first, end=last), 0)[-1])

    if left(start, start) < signal:  # so many steps that even a constant schedule ends earlier
        start = 0.0
    low, high = start, 1.0
    for _ in range(60):  # the product falls with the end: bisection to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if left(start, middle) > signal else (low, middle)
    return start, (low + high) / 2


def posterior_weights(betas: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of x0 and of x_t in the mean of q(x_{t-1} | x_t, x0): Ho et al. 2020, eq. 7."""
    kept = torch.cumprod(1 - betas, 0)
    before = _shifted(kept)
    return betas * before.sqrt() / (1 - kept), (1 - before) * (1 - betas).sqrt() / (1 - kept)


def posterior_variance(betas: Tensor) -> Tensor:
    """Variance of q(x_{t-1} | x_t, x0): Ho et al. 2020, eq. 7. DiffIR's reverse process leaves it out."""
    kept = torch.cumprod(1 - betas, 0)
    return betas * (1 - _shifted(kept)) / (1 - kept)


def schedule_constants(betas: Tensor) -> dict[str, Tensor]:
    """The twelve constants that a published checkpoint stores, by their stored names, float64, (steps,) each."""
    kept = torch.cumprod(1 - betas, 0)
    variance = posterior_variance(betas)
    coef1, coef2 = posterior_weights(betas)
    return {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": _shifted(kept),
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_variance": variance,
        # The first variance is zero; its logarithm is cut at log(1e-20), as published.
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": coef1,
        "posterior_mean_coef2": coef2,
    }


def _shifted(kept: Tensor) -> Tensor:
    return torch.cat([kept.new_ones(1), kept[:-1]])


STORED_CONSTANTS = frozenset(schedule_constants(torch.full((1,), 0.5, dtype=torch.float64)))


# Schedules by name


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _quad(steps: int, start: float, end: float) -> Tensor:
    return scaled_linear_betas(steps, start=start, end=end)


def _warm_up(share: float) -> Callable[[int, float, float], Tensor]:
    def betas(steps: int, start: float, end: float) -> Tensor:
        rising = int(steps * share)
        return torch.cat([_linear(rising, start, end), _const(steps - rising, start, end)])

    return betas


def _const(steps: int, start: float, end: float) -> Tensor:
    return torch.full((steps,), end, dtype=torch.float64)


def _jsd(steps: int, start: float, end: float) -> Tensor:
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Nichol and Dhariwal 2021, eq. 17, with s = 0.008 and betas up to 0.999."""
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
    kept = angle.cos().square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "quad": _quad,
    "warmup10": _warm_up(0.1),
    "warmup50": _warm_up(0.5),
    "const": _const,
    "jsd": _jsd,
    "cosine": _cosine,
}
_WITHOUT_RANGE = ("jsd", "cosine")  # what takes neither linear_start nor linear_end
_KEYS = ("schedule", "n_timestep", "linear_start", "linear_end", "betas")
MOST_SIGNAL = 0.05  # of the squared signal that may be left where sampling starts from noise alone


def named_betas(name: str, steps: int, *, start: float = 0.0, end: float = 0.0) -> Tensor:
    """Betas (steps,), float64, of a schedule that published option files know by name.

    linear, quad (linear in the square root), warmup10 and warmup50 (a rise over a tenth or half of the steps, then
    constant), const (`end`), jsd (1/T ... 1) and cosine; the last two take neither `start` nor `end`.
    """
    if name not in _BETAS:
        raise OptionError(f"schedule: expected one of {', '.join(_BETAS)}, found {name!r}")
    with torch.device("cpu"):  # numbers, also where networks are built without any
        return _BETAS[name](steps, start, end)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A forward diffusion by its betas (T,), float64; `kept[t]` is abar_t for t = 0 (no noise) to T."""

    betas: Tensor
    kept: Tensor = field(init=False)
    """Shares of the squared signal, (T + 1,): abar_0 = 1 to abar_T."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", torch.cat([self.betas.new_ones(1), torch.cumprod(1 - self.betas, 0)]))

    @property
    def steps(self) -> int:
        return len(self.betas)

    def respaced(self, steps: int) -> Schedule:
        """The schedule that visits `steps` evenly spaced levels of this one, its last level among them."""
        if not 1 <= steps <= self.steps:
            raise OptionError(f"steps: expected 1 to {self.steps}, which the schedule has, found {steps}")
        if steps == self.steps:
            return self
        visited = self.kept[torch.linspace(0, self.steps, steps + 1, dtype=torch.float64, device="cpu").round().long()]
        return Schedule(1 - visited[1:] / visited[:-1])

    def check_ends_in_noise(self) -> Schedule:
        """This schedule; OptionError where x_T is not noise, so that sampling cannot start there."""
        left = float(self.kept[-1])
        if left > MOST_SIGNAL:
            raise OptionError(
                f"beta_schedule: after its {self.steps} steps {left:.2g} of the squared signal is left, at most "
                f"{MOST_SIGNAL:g} may be where sampling starts from noise; take more steps or larger betas"
            )
        if left <= 0:
            raise OptionError(
                "beta_schedule: its last beta is 1 and leaves no signal at all, which a network that predicts noise "
                "cannot undo; end it lower (at 0.999, as cosine does)"
            )
        return self


def schedule_of(about: Mapping[str, Any] | Sequence[float], *, where: str = "beta_schedule") -> Schedule:
    """The schedule that options describe: published keys (schedule, n_timestep, linear_start, linear_end), or betas.

    Raises OptionError for unknown keys and numbers that cannot be.
    """
    if not isinstance(about, Mapping):
        return _listed(about, where)
    unknown = [key for key in about if key not in _KEYS]
    if unknown:
        raise OptionError(f"{where}.{unknown[0]}: unknown option; known options: {', '.join(_KEYS)}")
    if "betas" in about:
        others = [key for key in about if key != "betas"]
        if others:
            raise OptionError(f"{where}.{others[0]}: the betas are listed already; leave one of them out")
        return _listed(about["betas"], where)
    name = str(about.get("schedule", "linear"))
    steps = about.get("n_timestep")
    if isinstance(steps, bool) or not isinstance(steps, int | float) or steps < 1 or steps != int(steps):
        raise OptionError(f"{where}.n_timestep: expected a whole number of 1 or more, found {steps!r}")
    wanted = [] if name in _WITHOUT_RANGE else ["linear_end"] if name == "const" else ["linear_start", "linear_end"]
    ends = {key: _beta(about.get(key), f"{where}.{key}") for key in wanted}
    betas = named_betas(name, int(steps), start=ends.get("linear_start", 0.0), end=ends.get("linear_end", 0.0))
    return Schedule(betas)


def _listed(values: Any, where: str) -> Schedule:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise OptionError(f"{where}.betas: expected a list of numbers above 0 and up to 1, found {values!r}")
    betas = [_beta(value, f"{where}.betas") for value in values]
    return Schedule(torch.tensor(betas, dtype=torch.float64, device="cpu"))


def _beta(value: Any, where: str) -> float:
    try:
        number = float(value)  # also "1e-6", which YAML takes for a word
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number <= 1:
        raise OptionError(f"{where}: expected a number above 0 and up to 1, found {value!r}")
    return number
