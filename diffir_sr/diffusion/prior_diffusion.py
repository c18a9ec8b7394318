"""Diffusion of a prior: the forward jump to the last step and the deterministic walk back.

x_T = sqrt(abar) x_0 + sqrt(1 - abar) noise; then for t = T-1 .. 0: guess x_0, x_{t-1} = c1 x_0 + c2 x_t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from diffir_sr.diffusion.sampling import clean_from_eps, posterior_mean, q_sample
from diffir_sr.diffusion.schedule import scaled_linear_betas, schedule_constants
from diffir_sr.errors import InputError, OptionError

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
