"""The numbers of a diffusion over few steps: pure functions, float64, no state."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear_betas(steps: int, *, start: float, end: float) -> Tensor:
    """Betas evenly spaced in their square root, (steps,), float64.

    Latent diffusion's "linear" schedule, which the published code uses; the paper's text says linear.
    """
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


# What is left of the prior in the published start of the walk: the last cumulative product for four steps.
PUBLISHED_SIGNAL = 0.0025980376


def retuned_end(steps: int, *, start: float, signal: float = PUBLISHED_SIGNAL) -> tuple[float, float]:
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
