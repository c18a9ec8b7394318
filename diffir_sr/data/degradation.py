"""The second-order degradation of Real-ESRGAN as one object: ground truth and kernels in, degraded image out.

Twice blur, resize, noise and JPEG, then a sinc filter before or after the last JPEG. Every random choice comes from the
generator given. Blur, JPEG and sharpening are BasicSR's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.utils.diffjpeg import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.data.kernels import FULL
from diffir_sr.errors import InputError
from diffir_sr.option_types import Probability, Qualities, Range, ResizeRange, ResizeShares, Section, Small

_MODES = ("area", "bilinear", "bicubic")


class DegradationOptions(Section):
    """How images of a RealESRGANDataset are degraded; the defaults are the published values."""

    gt_size: Small = Field(256, description="Side in pixels of the patches cut after degradation.")
    degradation_sharing: Literal["batch", "image"] = Field(
        "batch",
        description="batch (published): decisions are shared by a batch and a pool mixes batches; image: each image "
        "has its own, which neither batch size, ranks nor resuming change.",
    )
    queue_size: Small = Field(
        180, description="Pairs in the pool of degradation_sharing: batch; a multiple of batch_size_per_gpu."
    )
    high_order_degradation: bool = Field(True, description="Whether images are degraded; false is refused.")
    resize_prob: ResizeShares = Field([0.2, 0.7, 0.1], description="Chances to enlarge, shrink, keep; first resize.")
    resize_range: ResizeRange = Field([0.15, 1.5], description="Smallest and largest factor of the first resize.")
    gaussian_noise_prob: Probability = Field(0.5, description="Chance of Gaussian noise, else Poisson.")
    noise_range: Range = Field([1.0, 30.0], description="Sigma of the first Gaussian noise, of 255.")
    poisson_scale_range: Range = Field([0.05, 3.0], description="Strength of the first Poisson noise.")
    gray_noise_prob: Probability = Field(0.4, description="Chance that the first noise has no colour.")
    jpeg_range: Qualities = Field([30.0, 95.0], description="Quality of the first JPEG compression.")
    second_blur_prob: Probability = Field(0.8, description="Chance of the second blur.")
    resize_prob2: ResizeShares = Field([0.3, 0.4, 0.3], description="Chances to enlarge, shrink, keep; second resize.")
    resize_range2: ResizeRange = Field([0.3, 1.2], description="Smallest and largest factor of the second resize.")
    gaussian_noise_prob2: Probability = Field(0.5, description="Chance of Gaussian noise, else Poisson.")
    noise_range2: Range = Field([1.0, 25.0], description="Sigma of the second Gaussian noise, of 255.")
    poisson_scale_range2: Range = Field([0.05, 2.5], description="Strength of the second Poisson noise.")
    gray_noise_prob2: Probability = Field(0.4, description="Chance that the second noise has no colour.")
    jpeg_range2: Qualities = Field([30.0, 95.0], description="Quality of the second JPEG compression.")


@dataclass(frozen=True)
class StepRanges:
    """What one of the two steps is drawn from; fields named as the published options."""

    blur_prob: float
    resize_prob: Sequence[float]  # up, down, keep
    resize_range: Sequence[float]
    gaussian_noise_prob: float  # otherwise Poisson noise
    noise_range: Sequence[float]  # standard deviation in grey levels
    poisson_scale_range: Sequence[float]
    gray_noise_prob: float
    jpeg_range: Sequence[float]  # quality


def ranges_from_options(opt: Mapping[str, Any]) -> tuple[StepRanges, StepRanges]:
    """Both steps as the top level of an option file gives them; what is absent has the published value."""
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
        """Kernels are (B, 21, 21); `rng` decides everything, on the CPU and on a GPU alike."""
        height, width = gt.shape[-2:]
        if height % self.scale or width % self.scale:
            raise InputError(f"gt: sides must be multiples of scale {self.scale}, got {height}x{width}")
        small = (height // self.scale, width // self.scale)
        smallest = min(height, width) * min(1, *self.first.resize_range, 1 / self.scale)
        if smallest < FULL // 2 + 1:
            raise InputError(
                f"gt: {height}x{width} pixels become {smallest:.0f} when shrunk, too few for kernels of {FULL}; take "
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
        # Resizing between JPEG and sinc filter would twist lines: the two stay together, in either order.
        if rng.random() < 0.5:
            x = _filtered(F.interpolate(x, size=small, mode=_mode(rng)), sinc_kernel)
            x = self._jpeg(x, self.second, rng)
        else:
            x = self._jpeg(x, self.second, rng)
            x = _filtered(F.interpolate(x, size=small, mode=_mode(rng)), sinc_kernel)
        return (x * 255).round().clamp(0, 255) * (1 / 255)  # as datasets and models make floats of bytes

    def _jpeg(self, x: Tensor, step: StepRanges, rng: np.random.Generator) -> Tensor:
        quality = _per_image(x, rng.uniform(*step.jpeg_range, size=len(x)))
        # Values outside [0, 1] would leave blocks of wrong colour.
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
    """Noise of `sigma` grey levels (B, 1, 1, 1); equal in the three channels where `grey` is 1."""
    coloured = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    shared = torch.randn(x[:, :1].shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.lerp(coloured, shared.expand_as(x), grey) * sigma / 255


def poisson_noise(x: Tensor, *, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Shot noise: photon counts scaled by how many distinct values an image has, as BasicSR scales them."""
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
    """Mixes pairs of many batches, since one batch shares its decisions (Real-ESRGAN's training pair pool).

    Until it is full a batch passes through unchanged and a copy is kept; then each batch is exchanged for random pairs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lq: list[Tensor] = []
        self._gt: list[Tensor] = []

    def exchange(self, lq: Tensor, gt: Tensor, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pairs (B, ...) in, as many pairs out."""
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
        """All pairs, (n, 3, H, W); as bytes where that loses nothing."""
        if not self._lq:
            return {}
        return {"lq": _as_bytes(torch.stack(self._lq)), "gt": _as_bytes(torch.stack(self._gt))}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the pairs that `state` gave."""
        self._lq, self._gt = (
            list(state[name].float() * (1 / 255) if state[name].dtype == torch.uint8 else state[name]) if state else []
            for name in ("lq", "gt")
        )


def _as_bytes(images: Tensor) -> Tensor:
    stored = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return stored if torch.equal(stored.float() * (1 / 255), images) else images
