"""Random blur kernels of the Real-ESRGAN degradation, drawn from a given generator (shapes are BasicSR's)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from basicsr.data.degradations import (
    bivariate_Gaussian,
    bivariate_generalized_Gaussian,
    bivariate_plateau,
    circular_lowpass_kernel,
)
from pydantic import Field

from diffir_sr.errors import OptionError
from diffir_sr.option_types import PositiveRange, Probability, Section, Shares

SIZES = tuple(range(7, 22, 2))  # odd, equally likely
FULL = SIZES[-1]  # every kernel is padded to this
Kernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KernelSize = Literal[7, 9, 11, 13, 15, 17, 19, 21]
KINDS: tuple[Kernel, ...] = get_args(Kernel)
_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # published chances


class KernelOptions(Section):
    """What kernels are drawn from; the defaults are the published values."""

    blur_kernel_size: KernelSize = Field(
        21, description="Largest side of the first kernel; odd sizes from 7 on are drawn."
    )
    kernel_list: list[Kernel] = Field(list(KINDS), description="Kinds of kernels of the first blur.")
    kernel_prob: Shares = Field(list(_SHARES), description="Chance of each kind.")
    sinc_prob: Probability = Field(0.1, description="Chance of a sinc filter instead.")
    blur_sigma: PositiveRange = Field([0.2, 3.0], description="Width of Gaussian kernels in pixels.")
    betag_range: PositiveRange = Field([0.5, 4.0], description="Shape of generalized Gaussian kernels.")
    betap_range: PositiveRange = Field([1.0, 2.0], description="Shape of plateau kernels.")
    blur_kernel_size2: KernelSize = Field(21, description="Largest side of the second kernel.")
    kernel_list2: list[Kernel] = Field(list(KINDS), description="Kinds of kernels of the second blur.")
    kernel_prob2: Shares = Field(list(_SHARES), description="Chance of each kind.")
    sinc_prob2: Probability = Field(0.1, description="Chance of a sinc filter instead.")
    blur_sigma2: PositiveRange = Field([0.2, 1.5], description="Width of Gaussian kernels in pixels.")
    betag_range2: PositiveRange = Field([0.5, 4.0], description="Shape of generalized Gaussian kernels.")
    betap_range2: PositiveRange = Field([1.0, 2.0], description="Shape of plateau kernels.")
    final_sinc_prob: Probability = Field(0.8, description="Chance of a sinc filter at the end.")


@dataclass(frozen=True)
class KernelRanges:
    """What the kernels of one degradation step are drawn from; fields named as the published options."""

    kernel_list: Sequence[str]
    kernel_prob: Sequence[float]
    sinc_prob: float
    blur_sigma: Sequence[float]
    betag_range: Sequence[float]
    betap_range: Sequence[float]
    blur_kernel_size: int  # the largest

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
        options = KernelOptions.of(opt)
        values: dict[str, Any] = {name: getattr(options, name + suffix) for name in cls.__dataclass_fields__}
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


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


def final_kernel(rng: np.random.Generator, *, final_sinc_prob: float) -> np.ndarray:
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
