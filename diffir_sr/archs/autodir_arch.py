"""AutoDIR (Jiang et al. 2024): classifies the degradation of a picture, removes it by latent diffusion, and repeats."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.autodir_assessor import (
    CATEGORIES,
    CLEAN,
    Assessor,
    View,
    cut,
    mixed,
    nearest_category,
    of_library,
    prompt_of,
)
from diffir_sr.archs.geometry import check_image
from diffir_sr.archs.nafnet_arch import NAFNetSCM
from diffir_sr.diffusion.noise import START, Noise
from diffir_sr.diffusion.sampling import Prediction, Sigmas, combined, denoised, euler_ancestral, guided
from diffir_sr.diffusion.schedule import STORED_CONSTANTS
from diffir_sr.errors import OptionError

logger = logging.getLogger("diffir_sr.inference")
UNET = {
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SCALE_FACTOR = 0.18215  # of Stable Diffusion's latents
_UNCORRECTED = {"low resolution": 0.0}  # as in the published loop


class ShuffledPixels(nn.Module):
    """Pixel unshuffle in place of an autoencoder: lossless, without parameters."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, 3 f^2, H / f, W / f) and standard deviation (zero) of the latents of pictures (B, 3, H, W)."""
        mean = F.pixel_unshuffle(image, self.factor)
        return mean, torch.zeros_like(mean)

    def decoded(self, latent: Tensor) -> Tensor:
        """Pictures of latents."""
        return F.pixel_shuffle(latent, self.factor)


class KLLatents(nn.Module):
    """Stable Diffusion's autoencoder, built by diffusers."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.net: Any = of_library("diffusers:AutoencoderKL")(**arguments)
        self.factor = 2 ** (len(arguments["block_out_channels"]) - 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, 4, H / 8, W / 8) of the latents of pictures (B, 3, H, W) in [-1, 1]."""
        found = self.net.encode(image).latent_dist
        return found.mean, found.std

    def decoded(self, latent: Tensor) -> Tensor:
        """Pictures of latents."""
        return self.net.decode(latent).sample


class Diffusion(nn.Module):
    """A U-Net on latents, conditioned on the latents of the degraded picture and on prompt states.

    `prediction` eps predicts the noise, as published; v a mixture of noise and picture; difference the clean latents
    minus the degraded ones. With residual, the network sees the best linear estimate from noisy and degraded latents
    (`sampling.combined`) in place of the noisy ones and predicts its error: at high noise it needs to ignore nothing,
    at low noise to copy nothing, so small networks learn fastest.
    """

    def __init__(
        self,
        *,
        unet: Mapping[str, Any] | None = None,
        autoencoder: Mapping[str, Any] | None = None,
        pixels: int | None = None,
        prediction: str = "eps",
        scale_factor: float | None = None,
        sigmas: Sigmas,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise OptionError(f"prediction: expected one of {', '.join(get_args(Prediction))}, found {prediction!r}")
        arguments = dict(UNET if unet is None else unet)
        self.unet: Any = of_library("diffusers:UNet2DConditionModel")(**arguments)
        self.latents = KLLatents(AUTOENCODER if autoencoder is None else autoencoder) if pixels is None else ShuffledPixels(pixels)  # fmt: skip  # noqa: E501
        self.scale_factor = (SCALE_FACTOR if pixels is None else 1.0) if scale_factor is None else scale_factor
        self.prediction: Prediction = cast("Prediction", prediction)
        self.channels = int(arguments["out_channels"])
        self.multiple_of = self.latents.factor * 2 ** (len(arguments["block_out_channels"]) - 1)
        self.sigmas = sigmas

    def target(self, image: Tensor, noise: Tensor) -> Tensor:
        """Latents of clean pictures (B, 3, H, W) in [-1, 1], sampled with standard normal `noise`."""
        mean, deviation = self.latents.moments(image)
        return self.scale_factor * (mean + deviation * noise)

    def condition(self, image: Tensor) -> Tensor:
        """Conditioning latents of degraded pictures (B, 3, H, W) in [-1, 1]: the mean, not scaled."""
        return self.latents.moments(image)[0]

    def pictures(self, latent: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in about [-1, 1] of restored latents."""
        return self.latents.decoded(latent / self.scale_factor)

    def forward(self, noisy: Tensor, condition: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Prediction for `noisy` latents (B, C, h, w) at t (B,), given conditioning latents and states (B, T, D)."""
        seen = self._combined(noisy, condition, t) if self.prediction == "residual" else noisy
        return self.unet(torch.cat([seen, condition], dim=1), t, encoder_hidden_states=context).sample

    def _combined(self, noisy: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        sigma = self.sigmas.at(t).to(noisy)[:, None, None, None]
        return combined(noisy * (sigma**2 + 1).sqrt(), sigma, self.scale_factor * condition)

    def q_sample(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`clean` latents with noise `eps` of integer t (B,)."""
        kept = self._kept(t, clean)
        return kept.sqrt() * clean + (1 - kept).sqrt() * eps

    def sought(self, clean: Tensor, eps: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The training target of the network."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "difference":
            return clean - self.scale_factor * condition
        if self.prediction == "residual":
            return clean - self._combined(self.q_sample(clean, eps, t), condition, t)
        kept = self._kept(t, clean)
        return kept.sqrt() * eps - (1 - kept).sqrt() * clean

    def cleaned(self, noisy: Tensor, found: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The estimate of the clean latents that a prediction at integer t (B,) implies."""
        if self.prediction == "difference":
            return self.scale_factor * condition + found
        if self.prediction == "residual":
            return self._combined(noisy, condition, t) + found
        kept = self._kept(t, noisy)
        if self.prediction == "eps":
            return (noisy - (1 - kept).sqrt() * found) / kept.sqrt()
        return kept.sqrt() * noisy - (1 - kept).sqrt() * found

    def _kept(self, t: Tensor, like: Tensor) -> Tensor:
        return torch.from_numpy(self.sigmas.kept)[t.cpu()].to(like)[:, None, None, None]


# The loop


Structure = float | Mapping[str, float]
Rounding = Literal["nearest", "floor"]


@dataclass(frozen=True)
class AutoDIRSettings:
    """Settings of inference, from option files and commands.

    `prompt` replaces the assessor and runs a single round; `degradations` are removed in the given order, without the
    assessor. `structure` is the weight of the correction: a number, or a number per category. `colour_fix` transfers
    the mean and standard deviation of each colour from the input of a round to its result. `view` is that of the
    assessor, by default as it was built. `clamp` clips pictures between rounds, and `rounding` floor truncates results
    to 8 bits; the published loop does not clip, and truncates.
    """

    prompt: str | None = None
    degradations: Sequence[str] | None = None
    max_rounds: int = 7
    steps: int = 100
    text_scale: float = 1.0
    image_scale: float = 1.0
    structure: Structure = field(default_factory=lambda: dict(_UNCORRECTED))
    colour_fix: bool = False
    view: View | None = None
    clamp: bool = False
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("view", self.view, get_args(View)),
            ("rounding", self.rounding, get_args(Rounding)),
        ):
            if value is not None and value not in known:
                raise OptionError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
        if self.max_rounds < 1:
            raise OptionError(f"max_rounds: expected 1 or more, found {self.max_rounds}")
        if self.prompt is not None and self.degradations is not None:
            raise OptionError("prompt and degradations: both say what to undo; leave one of them out")
        if self.degradations is not None:
            object.__setattr__(self, "degradations", tuple(nearest_category(name) for name in self.degradations))
        if isinstance(self.structure, Mapping):
            weights = {nearest_category(name): float(value) for name, value in self.structure.items()}
            object.__setattr__(self, "structure", weights)

    def weight(self, category: str | None, default: float) -> float:
        """The weight of the correction in a round."""
        if isinstance(self.structure, Mapping):
            return self.structure.get(category or "", default)
        return float(self.structure)

    def changed(self, **changes: Any) -> AutoDIRSettings:
        """A copy with other values; None keeps a value. Raises OptionError for unknown names."""
        known = [one.name for one in fields(AutoDIRSettings)]
        for name in changes:
            if name not in known:
                raise OptionError(f"{name}: AutoDIR has no such option; known options: {', '.join(known)}")
        given = {name: value for name, value in changes.items() if value is not None}
        if "prompt" in given:
            given.setdefault("degradations", None)
        if "degradations" in given and given["degradations"] is not None:
            given.setdefault("prompt", None)
        return replace(self, **given)


@dataclass(frozen=True)
class Round:
    """One round of the loop; pictures are (1, 3, H, W) in about [-1, 1], not clipped.

    `category` is None with a prompt of the user. The loop ends with a round of the category "no", whose `after` is its
    `before`.
    """

    number: int
    category: str | None
    prompt: str
    probabilities: Mapping[str, float]
    before: Tensor
    made: Tensor
    after: Tensor
    seconds: float = 0.0
    note: str = ""


class AutoDIR(nn.Module):
    """Assessor, latent diffusion and structure correction, repeated until no degradation is found.

    The default sizes are the published ones. `assessor`, `unet`, `autoencoder` and `correction` are the arguments of
    the parts; `pixels` (a factor) replaces the autoencoder by a pixel unshuffle. `restoring` holds the default settings
    of inference (`AutoDIRSettings`).
    """

    conditions: frozenset[str] = frozenset()
    scale = 1
    computed_tensors: ClassVar[frozenset[str]] = STORED_CONSTANTS

    def __init__(
        self,
        *,
        assessor: Mapping[str, Any] | None = None,
        unet: Mapping[str, Any] | None = None,
        autoencoder: Mapping[str, Any] | None = None,
        pixels: int | None = None,
        correction: Mapping[str, Any] | None = None,
        prediction: Prediction = "eps",
        scale_factor: float | None = None,
        restoring: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.sigmas = Sigmas()
        self.assessor = Assessor(**(assessor or {}))
        self.diffusion = Diffusion(
            unet=unet,
            autoencoder=autoencoder,
            pixels=pixels,
            prediction=prediction,
            scale_factor=scale_factor,
            sigmas=self.sigmas,
        )
        self.correction = NAFNetSCM(**(correction or {}))
        self.restore_settings = AutoDIRSettings().changed(**(restoring or {}))
        self._built_view = self.assessor.view
        self.multiple_of = self.diffusion.multiple_of
        self.watch: Callable[[Round], None] | None = None  # called with each round
        self.tile: tuple[int, int] | None = None  # side and overlap of the U-Net's tiles in pixels
        self.offload = False  # whether parts are moved to the accelerator only while they run

    def adjust(self, *, offload: bool | None = None, **changes: Any) -> None:
        """Change fields of `AutoDIRSettings`; None keeps a field. Raises OptionError for invalid values.

        `offload` keeps each part in the CPU's memory except while it runs; it does not change results.
        """
        self.offload = self.offload if offload is None else offload
        settings = self.restore_settings.changed(**changes)
        self.sigmas.visited(settings.steps)
        if settings.prompt is not None:
            shortened = cut(self.assessor.tokens(settings.prompt), settings.prompt)[1]
            if shortened:
                logger.warning("%s.", shortened)
        self.restore_settings = settings

    def settings(self) -> dict[str, Any]:
        """The settings that determine results, for their records."""
        return {one.name: getattr(self.restore_settings, one.name) for one in fields(AutoDIRSettings)}

    def forward(self, lq: Tensor) -> Tensor:
        """Probabilities (B, 8) of `CATEGORIES` for pictures (B, 3, H, W) in [0, 1]."""
        return self.assessor(lq)

    def restore(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """See `families.base.Restores`."""
        check_image(lq, channels=3, name="lq")
        self.assessor.view = self.restore_settings.view or self._built_view
        made = []
        for row in range(len(lq)):
            last = 2 * lq[row : row + 1].float() - 1
            for one in self.rounds(last, noise=_Row(noise, row, len(lq)) if len(lq) > 1 else noise):
                last = one.after
                if self.watch is not None:
                    self.watch(one)
            made.append(last)
        restored = (torch.cat(made) + 1) / 2
        return (restored.clamp(0, 1) * 255).floor() / 255 if self.restore_settings.rounding == "floor" else restored

    @contextmanager
    def _at_work(self, part: nn.Module, device: torch.device) -> Iterator[None]:
        """With offloading, move `part` to `device` for the duration of the context."""
        if not self.offload:
            yield
            return
        part.to(device)
        try:
            yield
        finally:
            part.to("cpu")

    def rounds(self, image: Tensor, *, noise: Noise) -> Iterator[Round]:
        """The rounds of one picture (1, 3, H, W) in [-1, 1]. Every round starts from the same noise, as published.

        A round whose result is not finite ends the loop, and its input is kept.
        """
        settings, left = self.restore_settings, list(CATEGORIES)
        planned = None if settings.degradations is None else list(settings.degradations)
        with self._at_work(self.assessor, image.device):
            states, embeddings = self.assessor.text([prompt_of(one) for one in CATEGORIES], mask_pads=True)
        for number in range(1, settings.max_rounds + 1):
            likely: dict[str, float] = {}
            if settings.prompt is not None:
                category, prompt = None, settings.prompt
                with self._at_work(self.assessor, image.device):
                    context = self.assessor.text([prompt], mask_pads=False)[0]
            elif planned is not None:
                category = planned.pop(0)
                prompt = prompt_of(category)
                context = states[[CATEGORIES.index(category)]]
            else:
                places = [CATEGORIES.index(one) for one in left]
                with self._at_work(self.assessor, image.device):
                    p = self.assessor.likelihoods((image + 1) / 2, embeddings[places])
                likely = dict(zip(left, p[0].tolist(), strict=True))
                category = max(likely, key=lambda name: likely[name])
                prompt = prompt_of(category)
                left.remove(category)
                context = mixed(p.to(states), states[places])
            if category == CLEAN:
                yield Round(number, category, prompt, likely, image, image, image)
                return
            made = self.undone(image, context, noise=noise)
            weight = settings.weight(category, self.correction.weight)
            after = made
            if weight:
                with self._at_work(self.correction, image.device):
                    after = self.correction(image, made, weight=weight)
            if settings.colour_fix:
                made, after = recoloured(made, image), recoloured(after, image)
            if not after.isfinite().all():
                note = f"round {number} ({prompt}) made values that are not finite; the picture before it is kept"
                logger.warning("%s.", note)
                yield Round(number, category, prompt, likely, image, made, image, note=note)
                return
            after = after.clamp(-1, 1) if settings.clamp else after
            yield Round(number, category, prompt, likely, image, made, after)
            image = after
            if planned == [] or settings.prompt is not None:
                return

    def undone(self, image: Tensor, context: Tensor, *, noise: Noise) -> Tensor:
        """The result of the diffusion for a picture (1, 3, H, W) in [-1, 1] and prompt states (1, T, D)."""
        latents, device = self.diffusion.latents, image.device
        with self._at_work(latents, device):
            condition = self.diffusion.condition(image)
        shape = (len(image), self.diffusion.channels, *condition.shape[-2:])
        guess = self.predict_clean(condition, context)
        steps = euler_ancestral(
            guess,
            noise.normal(shape).to(image),
            self.sigmas.visited(self.restore_settings.steps),
            noise=lambda step: noise.normal(shape, f"step {step}").to(image),
        )
        last = None
        with self._at_work(self.diffusion.unet, device):
            for last, _ in steps:  # noqa: B007 - the last one is the result
                pass
        assert last is not None
        with self._at_work(latents, device):
            return self.diffusion.pictures(last)

    def predict_clean(self, condition: Tensor, context: Tensor) -> Callable[[Tensor, float], Tensor]:
        """The function of x and sigma that estimates the clean latents, with the guidance of the settings."""
        settings, diffusion = self.restore_settings, self.diffusion
        plain = settings.text_scale == settings.image_scale == 1
        conditions, contexts = condition, context
        if not plain:  # three predictions in one call
            with self._at_work(self.assessor, condition.device):
                nothing = self.assessor.text([""], mask_pads=False)[0].expand_as(context)
            conditions = torch.cat([condition, condition, torch.zeros_like(condition)])
            contexts = torch.cat([context, nothing, nothing])

        def asked(x: Tensor, sigma: float) -> Tensor:
            seen = x / (sigma**2 + 1) ** 0.5
            t = x.new_full((len(conditions),), self.sigmas.t_of(sigma), dtype=torch.float32)
            found = self._in_tiles(seen.repeat(len(conditions) // len(x), 1, 1, 1), conditions, t, contexts).float()
            if not plain:
                found = guided(*found.chunk(3), text_scale=settings.text_scale, image_scale=settings.image_scale)
            degraded = diffusion.scale_factor * condition
            return denoised(x, sigma, found, prediction=diffusion.prediction, degraded=degraded)

        return asked

    def _in_tiles(self, x: Tensor, condition: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The U-Net's prediction; pictures larger than a tile are processed in overlapping tiles that are blended."""
        if self.tile is None:
            return self.diffusion(x, condition, t, context)
        factor = self.diffusion.latents.factor
        deepest = self.multiple_of // factor
        side, overlap = (max(deepest, length // factor // deepest * deepest) for length in self.tile)
        height, width = x.shape[-2:]
        if max(height, width) <= side:
            return self.diffusion(x, condition, t, context)
        made, weights = torch.zeros_like(x), x.new_zeros(1, 1, height, width)
        for top in _starts(height, side, overlap):
            for left in _starts(width, side, overlap):
                there = (..., slice(top, top + side), slice(left, left + side))
                part = self.diffusion(x[there], condition[there], t, context)
                weight = _rising(part.shape[-2], overlap).to(x)[:, None] * _rising(part.shape[-1], overlap).to(x)
                made[there] += part * weight
                weights[there] += weight
        return made / weights


class _Row:
    """The noise of one row of a batch."""

    def __init__(self, noise: Noise, row: int, count: int) -> None:
        self._noise, self._row, self._count = noise, row, count

    def normal(self, shape: Sequence[int], name: str = START) -> Tensor:
        return self._noise.normal((self._count, *shape[1:]), name)[self._row : self._row + 1]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    return [0] if length <= side else [*range(0, length - side, side - overlap), length - side]


def _rising(length: int, overlap: int) -> Tensor:
    """Weights that rise over the overlap from both ends, never zero."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=overlap) / overlap


def recoloured(image: Tensor, style: Tensor) -> Tensor:
    """`image` with the mean and deviation of each channel of `style`, both (B, 3, H, W) (adaptive instance norm).

    Variances are unbiased, plus 1e-5, as published.
    """

    def moments(one: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(one, dim=(2, 3), keepdim=True, correction=1)
        return mean, (variance + 1e-5).sqrt()

    (mean, deviation), (wanted, spread) = moments(image), moments(style)
    return (image - mean) / deviation * spread + wanted
