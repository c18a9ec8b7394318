"""Random blur kernels of the Real-ESRGAN degradation, drawn from a given generator (shapes are BasicSR's)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from basicsr.data.degradations import (
    bivariate_Gaussian,
    bivariate_generalized_Gaussian,
    bivariate_plateau,
    circular_lowpass_kernel,
)

from diffir_sr.errors import OptionError

SIZES = tuple(range(7, 22, 2))  # odd, equally likely
FULL = SIZES[-1]  # every kernel is padded to this
KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@dataclass(frozen=True)
class KernelRanges:
    """What the kernels of one degradation step are drawn from; fields named as the published options."""

    kernel_list: Sequence[str] = KINDS
    kernel_prob: Sequence[float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    blur_sigma: Sequence[float] = (0.2, 3.0)
    betag_range: Sequence[float] = (0.5, 4.0)
    betap_range: Sequence[float] = (1.0, 2.0)
    blur_kernel_size: int = FULL  # the largest

    def __post_init__(self) -> None:
        if self.blur_kernel_size not in SIZES:
            raise OptionError(f"blur_kernel_size: expected one of {SIZES}, got {self.blur_kernel_size}")
        unknown = set(self.kernel_list) - set(KINDS)
        if unknown:
            raise OptionError(f"kernel_list: unknown {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
        if len(self.kernel_list) != len(self.kernel_prob) or not math.isclose(sum(self.kernel_prob), 1, abs_tol=1e-6):
            raise OptionError(
                f"kernel_prob: expected {len(self.kernel_list)} probabilities that add up to 1, one per kernel of "
                f"kernel_list; got {list(self.kernel_prob)}"
            )

    @classmethod
    def from_options(cls, opt: Mapping[str, Any], *, step: int) -> KernelRanges:
        """The ranges of step 1 or 2 of a dataset option section; what is absent has the published value."""
        suffix = "2" if step == 2 else ""
        names = cls.__dataclass_fields__
        given: dict[str, Any] = {"blur_sigma": (0.2, 1.5)} if step == 2 else {}
        given |= {name: opt[name + suffix] for name in names if opt.get(name + suffix) is not None}
        for name, value in given.items():
            given[name] = tuple(value) if isinstance(value, list) else value
        return cls(**given)


def blur_kernel(rng: np.random.Generator, ranges: KernelRanges) -> np.ndarray:
    """A kernel of a blur step, (21, 21), sum 1: a sinc filter with `sinc_prob`, else one of `kernel_list`."""
    size = int(rng.choice([size for size in SIZES if size <= ranges.blur_kernel_size]))
    if rng.random() < ranges.sinc_prob:
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        kernel = circular_lowpass_kernel(rng.uniform(lowest, math.pi), size, pad_to=0)
    else:
        kind = str(rng.choice(list(ranges.kernel_list), p=np.asarray(ranges.kernel_prob) / sum(ranges.kernel_prob)))
        kernel = _gaussian_like(rng, kind, size, ranges)
    return _padded(kernel)


def final_kernel(rng: np.random.Generator, *, final_sinc_prob: float = 0.8) -> np.ndarray:
    """The kernel of the last filter, (21, 21): a sinc filter (ringing) with that probability, else a pulse."""
    if rng.random() < final_sinc_prob:
        size = int(rng.choice(SIZES))
        return _padded(circular_lowpass_kernel(rng.uniform(math.pi / 3, math.pi), size, pad_to=0))
    pulse = np.zeros((FULL, FULL), np.float32)
    pulse[FULL // 2, FULL // 2] = 1
    return pulse


def _gaussian_like(rng: np.random.Generator, kind: str, size: int, ranges: KernelRanges) -> np.ndarray:
    isotropic = not kind.endswith("aniso")
    wide = _between(rng, ranges.blur_sigma)
    tall = wide if isotropic else _between(rng, ranges.blur_sigma)
    turn = 0.0 if isotropic else rng.uniform(-math.pi, math.pi)
    if kind.startswith("generalized"):
        beta = _shape(rng, ranges.betag_range)
        return bivariate_generalized_Gaussian(size, wide, tall, turn, beta, isotropic=isotropic)
    if kind.startswith("plateau"):
        return bivariate_plateau(size, wide, tall, turn, _shape(rng, ranges.betap_range), isotropic=isotropic)
    return bivariate_Gaussian(size, wide, tall, turn, isotropic=isotropic)


def _between(rng: np.random.Generator, limits: Sequence[float]) -> float:
    return rng.uniform(limits[0], limits[1])


def _shape(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """Half of the kernels are flatter, half more peaked than a Gaussian (shape 1)."""
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])


def _padded(kernel: np.ndarray) -> np.ndarray:
    margin = (FULL - kernel.shape[0]) // 2
    kernel = np.pad(kernel, margin)
    return (kernel / kernel.sum()).astype(np.float32)
