"""Latent diffusion as AutoDIR samples it: sigmas, two scales of guidance, ancestral Euler steps; conditions dropped.

x = x_0 + sigma eps, sigma = sqrt((1 - abar) / abar). All functions are pure; which noise a step adds is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffir_sr.diffusion.schedule import scaled_linear_betas
from diffir_sr.errors import OptionError

Prediction = Literal["eps", "v", "difference"]
Dropout = Literal["independent", "shared", "none"]
START, END, STEPS = 0.00085, 0.012, 1000  # of Stable Diffusion's schedule, linear in the root of beta


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
    # v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022), abar = 1 / (1 + sigma^2).
    return (x / math.sqrt(sigma**2 + 1) - sigma * found) / math.sqrt(sigma**2 + 1)


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
