"""SR3 (Saharia et al. 2021): super-resolution by iterative refinement, and the regression that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.geometry import check_image
from diffir_sr.archs.noise_level_unet_arch import NoiseLevelUNet, takes_unet_arguments
from diffir_sr.diffusion.noise import Noise
from diffir_sr.diffusion.sampling import (
    Bounds,
    LevelSpace,
    Sampling,
    level_of,
    sampled,
    sampling_of,
    spread_of,
    walk,
)
from diffir_sr.diffusion.schedule import STORED_CONSTANTS, Schedule, schedule_of
from diffir_sr.errors import InputError, OptionError

CondResize = Literal["bicubic", "pil"]
# The schedule of the public trainings.
PUBLISHED_SCHEDULE = {"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 0.01}


class Upscaling(nn.Module):
    """What networks share that see the degraded picture enlarged to the size of the result.

    `cond_resize` is how it is enlarged: bicubic (a = -0.5), or pil, the same rounded to 8 bits after each direction,
    as Pillow does it, with which the public weights were trained.
    """

    conditions: frozenset[str] = frozenset()
    computed_tensors: ClassVar[frozenset[str]] = STORED_CONSTANTS  # in files, perhaps, and never loaded

    def __init__(self, *, scale: int, cond_resize: str, deepest: int) -> None:
        super().__init__()
        if scale < 1:
            raise OptionError(f"scale: expected 1 or more, found {scale}")
        if cond_resize not in get_args(CondResize):
            raise OptionError(f"cond_resize: expected one of {', '.join(get_args(CondResize))}, found {cond_resize!r}")
        self.scale = scale
        self._rounded = cond_resize == "pil"
        self._deepest = deepest  # pixels of the result in one of the deepest level
        self.multiple_of = deepest // math.gcd(deepest, scale)

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for a degraded picture whose result is smaller than a pixel of the deepest level."""
        if min(height, width) * self.scale < self._deepest:
            least = -(-self._deepest // self.scale)
            raise InputError(
                f"{height}x{width} pixels are less than one pixel of the deepest level of this network; give a "
                f"picture of at least {least}x{least}"
            )

    def upscaled(self, lq: Tensor) -> Tensor:
        """`lq` (B, 3, H, W) in [0, 1] as (B, 3, H * scale, W * scale) in [-1, 1]."""
        check_image(lq, channels=3, name="lq")
        height, width = (side * self.scale for side in lq.shape[-2:])
        if self.scale == 1:
            large = lq
        elif self._rounded:
            large = _round_to_bytes(_bicubic(lq, lq.shape[-2], width))
            large = _round_to_bytes(_bicubic(large, height, width))
        else:
            large = _bicubic(lq, height, width).clamp(0, 1)
        return 2 * large.float() - 1


def _bicubic(image: Tensor, height: int, width: int) -> Tensor:
    # With antialias the kernel has a = -0.5, which is Pillow's; without, a = -0.75. Enlarging, nothing else differs.
    return F.interpolate(image.float(), size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def _round_to_bytes(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


class Drawing(nn.Module):
    """What networks share that draw pictures by walking from noise (`families.base.WalksInSteps`).

    `residual_std`, where a network has it, is the standard deviation that residuals are expected to have in [-1, 1].
    The residual is divided by it, so that most levels of a schedule say something about it, and the network answers
    what the best linear estimate of the noise misses, sqrt(1 - abar) x_t for a residual of variance 1. Short trainings
    would otherwise go into that estimate.
    """

    def set_diffusion(
        self,
        *,
        residual_std: float | None = None,
        beta_schedule: Mapping[str, Any] | Sequence[float] | None,
        sampling: Mapping[str, Any] | None,
        level_space: str | None,
        default_space: LevelSpace,
    ) -> None:
        """Take the options of a constructor; raises OptionError for what cannot be."""
        if residual_std is not None and not residual_std > 0:
            raise OptionError(f"residual_std: expected a number above 0, found {residual_std:g}")
        self.residual_std = residual_std
        self.level_space: LevelSpace = space_of(level_space, default_space)
        self.trained_schedule = schedule_of(PUBLISHED_SCHEDULE if beta_schedule is None else beta_schedule)
        self._sampling = sampling_of(sampling)
        self.visited_schedule = self._sampling.schedule(self.trained_schedule)

    @property
    def sampling(self) -> Sampling:
        """How pictures are drawn; setting it raises OptionError for steps or a schedule that cannot be."""
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self.visited_schedule = sampling.schedule(self.trained_schedule)
        self._sampling = sampling

    @property
    def unit(self) -> float:
        """Of what is diffused, in values of [-1, 1]."""
        return 1.0 if self.residual_std is None else self.residual_std

    def noise_of(self, answer: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """The noise in `noisy` (B, C, H, W) of levels (B,), of the network's answer."""
        return answer if self.residual_std is None else answer + spread_of(level, noisy, space=self.level_space) * noisy

    def draw(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        like: Tensor,
        *,
        noise: Noise,
        schedule: Schedule,
        bounds: Bounds,
    ) -> Tensor:
        """x_0 of the shape of `like` (B, C, H, W); `predict(x, level (B,))` guesses the noise in x."""
        shape = like.shape

        def at_level(x: Tensor, kept: float) -> Tensor:
            return predict(x, x.new_full((len(x),), float(level_of(kept, self.level_space)))).float()

        return sampled(
            walk(
                at_level,
                noise.normal(shape).to(like),
                schedule=schedule,
                sampling=self._sampling,
                noise=lambda step: noise.normal(shape, f"step {step}").to(like),
                bounds=bounds,
            )
        )


class SR3(Upscaling, Drawing):
    """Restores by walking from noise of the result's size to a picture, under the enlarged degraded picture.

    The U-Net's arguments are those of `NoiseLevelUNet`, as published. `beta_schedule` is that of the training;
    `sampling` says how pictures are drawn unless somebody asks otherwise (`diffusion.sampling.Sampling`). With
    `residual_std` (`Drawing`) the walk is over what the enlarged picture lacks, as in SRDiff (Li et al. 2021), and not
    over the picture as published.
    """

    @takes_unet_arguments()
    def __init__(
        self,
        *,
        scale: int = 8,
        residual_std: float | None = None,
        level_space: str | None = None,
        beta_schedule: Mapping[str, Any] | Sequence[float] | None = None,
        sampling: Mapping[str, Any] | None = None,
        cond_resize: str = "bicubic",
        **unet_arguments: Any,
    ) -> None:
        unet = NoiseLevelUNet(**unet_arguments)
        super().__init__(scale=scale, cond_resize=cond_resize, deepest=unet.multiple_of)
        self.denoise_fn = unet
        self.set_diffusion(
            residual_std=residual_std,
            beta_schedule=beta_schedule,
            sampling=sampling,
            level_space=level_space,
            default_space=unet.preset.level_space,
        )

    def initialise(self) -> None:
        """Start values of a training from scratch."""
        self.denoise_fn.initialise()

    def forward(self, lq: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """The noise in `noisy` (B, 3, H * scale, W * scale) of levels (B,), given `lq` (B, 3, H, W) in [0, 1]."""
        return self._found(self.upscaled(lq), noisy, level)

    def diffused(self, lq: Tensor, gt: Tensor) -> Tensor:
        """What the walk is over, for a truth `gt` (B, 3, H * scale, W * scale) in [0, 1] of `lq` (B, 3, H, W)."""
        truth = 2 * gt - 1
        return truth if self.residual_std is None else (truth - self.upscaled(lq)) / self.unit

    def _found(self, seen: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        return self.noise_of(self.denoise_fn(torch.cat([seen, noisy], dim=1), level), noisy, level)

    def restore(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """See `families.base.Restores`."""
        return self._restored(lq, noise, self.visited_schedule)

    def restore_in_one_step(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """A picture of no use, for which as much memory is needed as for one of many steps."""
        return self._restored(lq, noise, self.visited_schedule.respaced(1))

    def _restored(self, lq: Tensor, noise: Noise, schedule: Schedule) -> Tensor:
        seen = self.upscaled(lq)

        def predict(x: Tensor, level: Tensor) -> Tensor:
            return self._found(seen, x, level)

        if self.residual_std is None:
            return (self.draw(predict, seen, noise=noise, schedule=schedule, bounds=(-1.0, 1.0)) + 1) / 2
        # The residual is bounded so that the picture stays within [-1, 1].
        bounds = ((-1 - seen) / self.unit, (1 - seen) / self.unit)
        return (seen + self.unit * self.draw(predict, seen, noise=noise, schedule=schedule, bounds=bounds) + 1) / 2


class SR3Regression(Upscaling):
    """The network of `SR3` without noise and level: one call that gives the picture, trained by squared errors."""

    @takes_unet_arguments(but=("level_scale",))
    def __init__(self, *, scale: int = 8, cond_resize: str = "bicubic", **unet_arguments: Any) -> None:
        unet = NoiseLevelUNet(in_channel=3, with_noise_level_emb=False, **unet_arguments)
        super().__init__(scale=scale, cond_resize=cond_resize, deepest=unet.multiple_of)
        self.regress_fn = unet

    def forward(self, lq: Tensor) -> Tensor:
        """(B, 3, H * scale, W * scale) in about [0, 1] of `lq` (B, 3, H, W) in [0, 1]."""
        return (self.regress_fn(self.upscaled(lq)) + 1) / 2

    def restore(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """See `families.base.Restores`; `noise` has no part in it."""
        return self(lq)


def space_of(given: str | None, default: LevelSpace) -> LevelSpace:
    """The space of noise levels that an option names; OptionError for none that there is."""
    if given is None:
        return default
    found = next((space for space in get_args(LevelSpace) if space == given), None)
    if found is None:
        raise OptionError(f"level_space: expected one of {', '.join(get_args(LevelSpace))}, found {given!r}")
    return found
