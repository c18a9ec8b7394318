"""The second-order degradation of Real-ESRGAN: from ground truth and kernels to the degraded image.

Blur, resize, noise and JPEG are applied twice, with a sinc filter before or after the last JPEG. All random choices
come from the given generator. Blur, JPEG and sharpening are BasicSR's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.data.degradations import (
    bivariate_Gaussian,
    bivariate_generalized_Gaussian,
    bivariate_plateau,
    circular_lowpass_kernel,
)
from basicsr.utils.diffjpeg import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.errors import InputError, OptionError
from diffir_sr.option_types import (
    PositiveRange,
    Probability,
    Qualities,
    Range,
    ResizeRange,
    ResizeShares,
    Section,
    Shares,
    Small,
)

_MODES = ("area", "bilinear", "bicubic")


class DegradationOptions(Section):
    """Degradation of images of a RealESRGANDataset; the defaults are the published values."""

    gt_size: Small = Field(256, description="Side in pixels of the patches cropped after degradation.")
    degradation_sharing: Literal["batch", "image"] = Field(
        "batch",
        description="batch (published): decisions are shared within a batch, and a pool mixes batches; image: each "
        "image has its own, independent of batch size, ranks and resuming.",
    )
    queue_size: Small = Field(
        180, description="Size of the pool of pairs with degradation_sharing: batch; a multiple of batch_size_per_gpu."
    )
    high_order_degradation: bool = Field(True, description="Whether images are degraded; false is an error.")
    resize_prob: ResizeShares = Field(
        [0.2, 0.7, 0.1], description="Probabilities of enlarging, shrinking, keeping; first resize."
    )
    resize_range: ResizeRange = Field([0.15, 1.5], description="Smallest and largest factor of the first resize.")
    gaussian_noise_prob: Probability = Field(0.5, description="Probability of Gaussian noise, otherwise Poisson.")
    noise_range: Range = Field(
        [1.0, 30.0], description="Standard deviation of the first Gaussian noise, relative to 255."
    )
    poisson_scale_range: Range = Field([0.05, 3.0], description="Strength of the first Poisson noise.")
    gray_noise_prob: Probability = Field(0.4, description="Probability that the first noise is grey.")
    jpeg_range: Qualities = Field([30.0, 95.0], description="Quality of the first JPEG compression.")
    second_blur_prob: Probability = Field(0.8, description="Probability of the second blur.")
    resize_prob2: ResizeShares = Field(
        [0.3, 0.4, 0.3], description="Probabilities of enlarging, shrinking, keeping; second resize."
    )
    resize_range2: ResizeRange = Field([0.3, 1.2], description="Smallest and largest factor of the second resize.")
    gaussian_noise_prob2: Probability = Field(0.5, description="Probability of Gaussian noise, otherwise Poisson.")
    noise_range2: Range = Field(
        [1.0, 25.0], description="Standard deviation of the second Gaussian noise, relative to 255."
    )
    poisson_scale_range2: Range = Field([0.05, 2.5], description="Strength of the second Poisson noise.")
    gray_noise_prob2: Probability = Field(0.4, description="Probability that the second noise is grey.")
    jpeg_range2: Qualities = Field([30.0, 95.0], description="Quality of the second JPEG compression.")


@dataclass(frozen=True)
class StepRanges:
    """Parameters of one of the two steps; fields are named like the published options."""

    blur_prob: float
    resize_prob: Sequence[float]  # up, down, keep
    resize_range: Sequence[float]
    gaussian_noise_prob: float  # otherwise Poisson noise
    noise_range: Sequence[float]  # standard deviation in grey levels
    poisson_scale_range: Sequence[float]
    gray_noise_prob: float
    jpeg_range: Sequence[float]  # quality


def ranges_from_options(opt: Mapping[str, Any]) -> tuple[StepRanges, StepRanges]:
    """Both steps from the top level of an option file, with published values as defaults."""
    options = DegradationOptions.of(opt)
    names = [name for name in StepRanges.__dataclass_fields__ if name != "blur_prob"]
    first, second = ({name: _settled(getattr(options, name + suffix)) for name in names} for suffix in ("", "2"))
    return StepRanges(blur_prob=1.0, **first), StepRanges(blur_prob=options.second_blur_prob, **second)


def _settled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FIRST, SECOND = ranges_from_options({})  # the published steps


class Degradation(nn.Module):
    """Degrades batches (B, 3, H, W) in [0, 1] to (B, 3, H / scale, W / scale), rounded to 8 bits.

    Decisions (which resize, which noise) are shared by a batch, strengths are drawn per image, as published.
    """

    def __init__(self, *, scale: int, first: StepRanges = FIRST, second: StepRanges = SECOND) -> None:
        super().__init__()
        self.scale = scale
        self.first, self.second = first, second
        self.jpeg = DiffJPEG(differentiable=False)

    @torch.no_grad()
    def forward(
        self, gt: Tensor, *, kernel1: Tensor, kernel2: Tensor, sinc_kernel: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """Kernels are (B, 21, 21); `rng` determines all random choices, with the same results on the CPU and a GPU."""
        height, width = gt.shape[-2:]
        if height % self.scale or width % self.scale:
            raise InputError(f"gt: sides must be multiples of scale {self.scale}, got {height}x{width}")
        small = (height // self.scale, width // self.scale)
        smallest = min(height, width) * min(1, *self.first.resize_range, 1 / self.scale)
        if smallest < FULL // 2 + 1:
            raise InputError(
                f"gt: {height}x{width} pixels become {smallest:.0f} when shrunk, too few for kernels of {FULL}; use "
                f"{int((FULL // 2 + 1) * min(height, width) / smallest) + 1} pixels or more (crop_pad_size)"
            )
        x = _blurred(gt, kernel1, self.first.blur_prob, rng)
        factor = _resize_factor(self.first, rng)
        x = F.interpolate(x, scale_factor=factor, mode=_mode(rng))
        x = self._jpeg(_noisy(x, self.first, rng), self.first, rng)
        x = _blurred(x, kernel2, self.second.blur_prob, rng)
        factor = _resize_factor(self.second, rng)
        x = F.interpolate(x, size=(int(small[0] * factor), int(small[1] * factor)), mode=_mode(rng))
        x = _noisy(x, self.second, rng)
        # Resizing between JPEG and sinc filter would distort lines, so the two stay together, in either order.
        if rng.random() < 0.5:
            x = _filtered(F.interpolate(x, size=small, mode=_mode(rng)), sinc_kernel)
            x = self._jpeg(x, self.second, rng)
        else:
            x = self._jpeg(x, self.second, rng)
            x = _filtered(F.interpolate(x, size=small, mode=_mode(rng)), sinc_kernel)
        return (x * 255).round().clamp(0, 255) * (1 / 255)  # like datasets and models convert bytes to floats

    def _jpeg(self, x: Tensor, step: StepRanges, rng: np.random.Generator) -> Tensor:
        quality = _per_image(x, rng.uniform(*step.jpeg_range, size=len(x)))
        # Values outside [0, 1] would give blocks of wrong colours.
        return self.jpeg(x.clamp(0, 1), quality=quality.flatten())


def _blurred(x: Tensor, kernel: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    return _filtered(x, kernel) if rng.random() < probability else x


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    return filter2D(x.contiguous(), kernel)  # it views the batch as channels


def _resize_factor(step: StepRanges, rng: np.random.Generator) -> float:
    up, down, keep = step.resize_prob
    choice = rng.choice(3, p=np.asarray([up, down, keep]) / (up + down + keep))
    low, high = step.resize_range
    return (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[choice]


def _mode(rng: np.random.Generator) -> str:
    return str(rng.choice(_MODES))


def _noisy(x: Tensor, step: StepRanges, rng: np.random.Generator) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(int(rng.integers(2**63)))
    grey = _per_image(x, rng.random(len(x)) < step.gray_noise_prob)
    if rng.random() < step.gaussian_noise_prob:
        sigma = _per_image(x, rng.uniform(*step.noise_range, size=len(x)))
        noise = gaussian_noise(x, sigma=sigma, grey=grey, generator=generator)
    else:
        scale = _per_image(x, rng.uniform(*step.poisson_scale_range, size=len(x)))
        noise = scale * poisson_noise(x, grey=grey, generator=generator)
    return (x + noise).clamp(0, 1)


def gaussian_noise(x: Tensor, *, sigma: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of `sigma` grey levels (B, 1, 1, 1); equal in the three channels if `grey` is 1."""
    coloured = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    shared = torch.randn(x[:, :1].shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.lerp(coloured, shared.expand_as(x), grey) * sigma / 255


def poisson_noise(x: Tensor, *, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Shot noise, with photon counts scaled by the number of distinct values in an image, as in BasicSR."""
    coloured = _shot_noise(x, generator)
    weights = x.new_tensor([0.2989, 0.587, 0.114])[:, None, None]
    shared = _shot_noise((x * weights).sum(1, keepdim=True), generator)
    return torch.lerp(coloured, shared.expand_as(x), grey)


def _shot_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    levels = (x * 255).round().clamp(0, 255)
    counts = [2 ** np.ceil(np.log2(len(image.unique()))) for image in levels]
    photons = _per_image(x, np.asarray(counts))
    value = levels / 255
    return torch.poisson(value * photons, generator=generator) / photons - value


def _per_image(x: Tensor, values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)


class PairPool:
    """Mixes pairs of many batches, because decisions are shared within a batch (Real-ESRGAN's training pair pool).

    Until it is full, batches pass unchanged and are copied; then each batch is exchanged for random pairs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lq: list[Tensor] = []
        self._gt: list[Tensor] = []

    def exchange(self, lq: Tensor, gt: Tensor, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Exchange pairs (B, ...) for the same number of pairs."""
        if self.size % len(lq):
            raise InputError(
                f"queue_size {self.size} is not a multiple of the batch size {len(lq)}; choose one that is"
            )
        if len(self._lq) < self.size:
            self._lq += list(lq.clone())
            self._gt += list(gt.clone())
            return lq, gt
        chosen = rng.choice(self.size, size=len(lq), replace=False)
        out = torch.stack([self._lq[i] for i in chosen]), torch.stack([self._gt[i] for i in chosen])
        for place, new_lq, new_gt in zip(chosen, lq.clone(), gt.clone(), strict=True):
            self._lq[place], self._gt[place] = new_lq, new_gt
        return out

    def state(self) -> dict[str, Tensor]:
        """All pairs, (n, 3, H, W), as bytes if that is lossless."""
        if not self._lq:
            return {}
        return {"lq": _as_bytes(torch.stack(self._lq)), "gt": _as_bytes(torch.stack(self._gt))}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the pairs from `state`."""
        self._lq, self._gt = (
            list(state[name].float() * (1 / 255) if state[name].dtype == torch.uint8 else state[name]) if state else []
            for name in ("lq", "gt")
        )


def _as_bytes(images: Tensor) -> Tensor:
    stored = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return stored if torch.equal(stored.float() * (1 / 255), images) else images


# Random blur kernels of the Real-ESRGAN degradation, from a given generator (with BasicSR's shapes).


SIZES = tuple(range(7, 22, 2))  # odd, equally likely
FULL = SIZES[-1]  # every kernel is padded to this
Kernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KernelSize = Literal[7, 9, 11, 13, 15, 17, 19, 21]
KINDS: tuple[Kernel, ...] = get_args(Kernel)
_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # published probabilities


class KernelOptions(Section):
    """Distribution of kernels; the defaults are the published values."""

    blur_kernel_size: KernelSize = Field(
        21, description="Largest size of the first kernel; odd sizes from 7 on are drawn."
    )
    kernel_list: list[Kernel] = Field(list(KINDS), description="Kinds of kernels of the first blur.")
    kernel_prob: Shares = Field(list(_SHARES), description="Probability of each kind.")
    sinc_prob: Probability = Field(0.1, description="Probability of a sinc filter instead.")
    blur_sigma: PositiveRange = Field([0.2, 3.0], description="Standard deviation of Gaussian kernels in pixels.")
    betag_range: PositiveRange = Field([0.5, 4.0], description="Shape of generalized Gaussian kernels.")
    betap_range: PositiveRange = Field([1.0, 2.0], description="Shape of plateau kernels.")
    blur_kernel_size2: KernelSize = Field(21, description="Largest size of the second kernel.")
    kernel_list2: list[Kernel] = Field(list(KINDS), description="Kinds of kernels of the second blur.")
    kernel_prob2: Shares = Field(list(_SHARES), description="Probability of each kind.")
    sinc_prob2: Probability = Field(0.1, description="Probability of a sinc filter instead.")
    blur_sigma2: PositiveRange = Field([0.2, 1.5], description="Standard deviation of Gaussian kernels in pixels.")
    betag_range2: PositiveRange = Field([0.5, 4.0], description="Shape of generalized Gaussian kernels.")
    betap_range2: PositiveRange = Field([1.0, 2.0], description="Shape of plateau kernels.")
    final_sinc_prob: Probability = Field(0.8, description="Probability of a final sinc filter.")


@dataclass(frozen=True)
class KernelRanges:
    """Distribution of the kernels of one degradation step; fields are named like the published options."""

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
        """The ranges of step 1 or 2 from a dataset option section, with published values as defaults."""
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
    """The kernel of the last filter, (21, 21): a sinc filter (ringing) with this probability, else an identity."""
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
    """Shape parameter: half of the kernels are flatter, half more peaked than a Gaussian (shape 1)."""
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])


def _padded(kernel: np.ndarray) -> np.ndarray:
    margin = (FULL - kernel.shape[0]) // 2
    kernel = np.pad(kernel, margin)
    return (kernel / kernel.sum()).astype(np.float32)


# From a batch of ground truth and kernels to training pairs, on the device: degrade, crop, mix.


_KERNELS = ("kernel1", "kernel2", "sinc_kernel")


class OnlineDegradation:
    """Makes training pairs from batches of RealESRGANDataset, according to the top level of an option file.

    `degradation_sharing: batch` (published): a batch shares its decisions and its crop position, and a pool of
    `queue_size` pairs mixes batches. `degradation_sharing: image`: every image has its own decisions, determined by its
    draw, so no pool is needed, and pairs do not depend on batch size, ranks or resuming.
    """

    def __init__(self, opt: Mapping[str, Any], *, scale: int, device: torch.device) -> None:
        first, second = ranges_from_options(opt)
        self.degradation = Degradation(scale=scale, first=first, second=second).to(device)
        options = DegradationOptions.of(opt)
        self.gt_size = options.gt_size
        if self.gt_size % scale:
            raise OptionError(f"gt_size {self.gt_size} is not a multiple of scale {scale}; choose one that is")
        self.by_image = options.degradation_sharing == "image"
        self.pool = None if self.by_image else PairPool(options.queue_size)

    @torch.no_grad()
    def pairs(
        self, gt: Tensor, kernels: Mapping[str, Tensor], seeds: Tensor, *, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Degraded patches (B, 3, gt_size / scale, ..) and their ground truth (B, 3, gt_size, gt_size).

        `start` is the image to degrade, `gt` or its sharpened form; `kernels` are (B, 21, 21); `seeds` (B,) int64.
        """
        kernels = {name: kernels[name] for name in _KERNELS}
        if not self.by_image:
            rng = np.random.default_rng(seeds.tolist())
            lq = self.degradation(start, **kernels, rng=rng)
            assert self.pool is not None
            return self.pool.exchange(*self._cut(lq, gt, rng), rng=rng)
        made = []
        for index, seed in enumerate(seeds.tolist()):
            one, rng = slice(index, index + 1), np.random.default_rng(seed)
            own = {name: kernel[one] for name, kernel in kernels.items()}
            made.append(self._cut(self.degradation(start[one], **own, rng=rng), gt[one], rng))
        lq, patches = zip(*made, strict=True)
        return torch.cat(lq), torch.cat(patches)

    def _cut(self, lq: Tensor, gt: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        scale = self.degradation.scale
        low = self.gt_size // scale
        if min(lq.shape[-2:]) < low:
            raise OptionError(
                f"gt_size {self.gt_size} is larger than the degraded squares ({gt.shape[-1]} pixels); lower "
                "it, or raise crop_pad_size of the dataset"
            )
        top, left = (int(rng.integers(side - low + 1)) for side in lq.shape[-2:])
        high = gt[..., top * scale :, left * scale :][..., : self.gt_size, : self.gt_size]
        return lq[..., top : top + low, left : left + low].contiguous(), high.contiguous()
