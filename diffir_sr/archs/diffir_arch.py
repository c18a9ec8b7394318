"""DiffIR's two stages and their prior; names, arguments and state-dict keys are the published ones.

Every LeakyReLU has slope 0.1. A prior is the output of one, so its negative values are scaled by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.dirformer import DIRformer
from diffir_sr.archs.geometry import (
    GT_UNSHUFFLE,
    RENAMED,
    Stage1Arguments,
    Stage2Arguments,
    TaskGeometry,
    check_image,
    check_multiple,
    geometry_exists,
    geometry_of,
    infer_task,
    pad_to_multiple,
    refinement_has_effect,
    settle_values,
    takes_old_names,
    with_mask,
)
from diffir_sr.archs.layers import PRIOR_WIDTH
from diffir_sr.diffusion.noise import Noise, picture_noise
from diffir_sr.diffusion.sampling import PriorDiffusion
from diffir_sr.diffusion.schedule import rescaled_end
from diffir_sr.errors import InputError, OptionError
from diffir_sr.option_types import SizeRule


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.1, True)


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class _Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _activation(), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CPEN(nn.Module):
    """Compact prior extraction network: encodes images as 256 numbers.

    Stage 1 sees the degraded image and the ground truth, stage 2 only the degraded image. Each is first folded to the
    same size by pixel unshuffle (as in the published code; in the paper, after concatenation).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        n_encoder_res: int,
        unshuffle: int,
        gt_unshuffle: int = 4,
        prior_width: int = PRIOR_WIDTH,
        sees_lq: bool = True,
    ) -> None:
        """`sees_lq` False leaves the degraded image out (stage 1 with only the ground truth)."""
        super().__init__()
        if prior_width < 4 or prior_width % 4:
            raise OptionError(f"prior_width: expected a multiple of 4, got {prior_width}")
        self.unshuffle = unshuffle
        self.gt_unshuffle = gt_unshuffle
        self.sees_lq = sees_lq
        width = prior_width // 4
        self.E = nn.Sequential(
            _conv(in_channels, width),
            _activation(),
            *(_Residual(width) for _ in range(n_encoder_res)),
            _conv(width, 2 * width),
            _activation(),
            _conv(2 * width, 2 * width),
            _activation(),
            _conv(2 * width, prior_width),
            _activation(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.mlp = nn.Sequential(
            nn.Linear(prior_width, prior_width),
            _activation(),
            nn.Linear(prior_width, prior_width),
            _activation(),
        )

    def forward(self, lq: Tensor, gt: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and, in stage 1, (B, 3, H * scale, W * scale) to a prior (B, 256)."""
        x = F.pixel_unshuffle(lq, self.unshuffle) if self.unshuffle > 1 else lq
        if gt is not None:
            folded = F.pixel_unshuffle(gt, self.gt_unshuffle)
            x = torch.cat([x, folded], dim=1) if self.sees_lq else folded
        return self.mlp(self.E(x).flatten(1))


class _Dense(nn.Module):
    """Linear layer and activation; published as "ResMLP", although it has no residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resmlp = nn.Sequential(nn.Linear(width, width), _activation())

    def forward(self, x: Tensor) -> Tensor:
        return self.resmlp(x)


class PriorDenoiser(nn.Module):
    """Predicts the clean prior from a noisy one, the step and the condition: (B, 256) each, step (B,)."""

    def __init__(self, *, n_denoise_res: int, steps: int, prior_width: int = PRIOR_WIDTH) -> None:
        super().__init__()
        self.max_period = 10 * steps
        first = [nn.Linear(2 * prior_width + 1, prior_width), _activation()]
        self.resmlp = nn.Sequential(*first, *(_Dense(prior_width) for _ in range(n_denoise_res)))

    def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        # Published order: condition, step, noisy (the paper lists the noisy prior first).
        time = step.to(noisy.dtype)[:, None] / self.max_period
        return self.resmlp(torch.cat([condition, time, noisy], dim=1))


_NORMS = {"BiasFree": False, "WithBias": True}


class _DiffIR(nn.Module):
    """Base of both stages: a body G, its geometry, and the padding that the geometry requires."""

    RENAMED = RENAMED
    RULES = (geometry_exists,)
    WARNINGS = (refinement_has_effect,)
    CORRECTIONS = (settle_values, infer_task)

    def __init__(
        self,
        *,
        inp_channels: int | None,
        out_channels: int,
        scale: int | None,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        ffn_expansion_factor: float,
        bias: bool,
        LayerNorm_type: str,  # noqa: N803 - published argument name
        task: str,
        prior_width: int,
    ) -> None:
        super().__init__()
        self.geometry = geometry_of(task, scale)
        self.scale = self.geometry.scale
        self.multiple_of = self.geometry.multiple_of
        self.prior_width = prior_width
        _check_body(dim, num_blocks, heads, LayerNorm_type, out_channels)
        _check_channels(inp_channels, self.geometry)
        self.G = DIRformer(
            geometry=self.geometry,
            dim=dim,
            num_blocks=num_blocks,
            # The published inpainting network accepts the option but ignores it.
            num_refinement_blocks=0 if task == "inpaint" else num_refinement_blocks,
            heads=heads,
            expansion=ffn_expansion_factor,
            bias=bias,
            norm_bias=_NORMS[LayerNorm_type],
            prior_width=prior_width,
        )

    @classmethod
    def size_rule_of(cls, argument: Callable[[str, Any], Any]) -> SizeRule:
        """The size rule of a network with the arguments `argument(name, default)`; OptionError if it does not exist."""
        geometry = geometry_of(argument("task", "sr"), argument("scale", None))
        return SizeRule(geometry.multiple_of, geometry.scale)

    @property
    def task(self) -> str:
        """The task: sr, deblur or inpaint."""
        return self.geometry.task

    @property
    def conditions(self) -> frozenset[str]:
        """Inputs of `restore` besides the degraded image."""
        return frozenset({"mask"} if self.geometry.channels == 4 else ())

    def restore_under(self, lq: Tensor, prior: Tensor) -> Tensor:
        """Run the body on `lq` (padded sides) with a prior; returns (B, 3, H * scale, W * scale)."""
        return self.G(lq, prior)

    def padded(self, lq: Tensor) -> Tensor:
        """`lq` padded at the right and bottom to sides that the network accepts."""
        return pad_to_multiple(lq, multiple_of=self.multiple_of)

    def cropped(self, image: Tensor, lq: Tensor) -> Tensor:
        """Undo `padded` on a restored image."""
        height, width = (side * self.scale for side in lq.shape[-2:])
        return image[..., :height, :width]


class DiffIRS1(_DiffIR):
    """Stage 1: the prior comes from the degraded image and its ground truth.

    forward(lq, gt): training gives (image, [prior]), evaluation the image. lq is (B, C, H, W) in [0, 1]; for
    inpainting C = 4, masked RGB then the mask (1 = missing). As official S1_arch.py:DiffIRS1. Ours: `prior_width`,
    and `prior_input`: lq_gt, both images (published), or gt alone.
    """

    ARGUMENTS = Stage1Arguments
    stage = 1

    @takes_old_names
    def __init__(
        self,
        *,
        n_encoder_res: int = 6,
        inp_channels: int | None = None,
        out_channels: int = 3,
        scale: int | None = None,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",  # noqa: N803 - published argument name
        task: str = "sr",
        prior_input: str = "lq_gt",
        prior_width: int = PRIOR_WIDTH,
    ) -> None:
        super().__init__(
            inp_channels=inp_channels,
            out_channels=out_channels,
            scale=scale,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            heads=heads,
            ffn_expansion_factor=ffn_expansion_factor,
            bias=bias,
            LayerNorm_type=LayerNorm_type,
            task=task,
            prior_width=prior_width,
        )
        if prior_input not in ("lq_gt", "gt"):
            raise OptionError(f"prior_input: expected 'lq_gt' or 'gt', got {prior_input!r}")
        sees_lq = prior_input == "lq_gt"
        self.E = CPEN(
            (self.geometry.prior_channels if sees_lq else 0) + 3 * GT_UNSHUFFLE**2,
            n_encoder_res=n_encoder_res,
            unshuffle=self.geometry.prior_unshuffle,
            gt_unshuffle=GT_UNSHUFFLE,
            prior_width=prior_width,
            sees_lq=sees_lq,
        )

    @property
    def conditions(self) -> frozenset[str]:
        return super().conditions | {"gt"}

    def restore(self, lq: Tensor, *, noise: Noise, gt: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `families.base.Restores`; the prior comes from the ground truth `gt`, so no noise is needed."""
        lq = with_mask(lq, mask)
        return self.restore_under(lq, self.E(lq, gt))

    def forward(self, lq: Tensor, gt: Tensor) -> Any:
        check_image(lq, channels=self.geometry.channels, name="lq")
        check_image(gt, channels=3, name="gt")
        height, width = (side * self.scale for side in lq.shape[-2:])
        if tuple(gt.shape[-2:]) != (height, width):
            raise InputError(f"gt: expected {height}x{width} (lq x {self.scale}), got {gt.shape[-2]}x{gt.shape[-1]}")
        if self.training:
            check_multiple(lq, multiple_of=self.multiple_of, name="lq")
            prior = self.E(lq, gt)
            return self.restore_under(lq, prior), [prior]
        whole = self.padded(lq)
        prior = self.E(whole, pad_to_multiple(gt, multiple_of=self.multiple_of * self.scale))
        return self.cropped(self.restore_under(whole, prior), lq)


class DiffIRS2(_DiffIR):
    """Stage 2: the prior is denoised from noise, with a condition computed from only the degraded image.

    forward(lq, prior, noise=...): training gives (image, priors after each reverse step) and needs the stage-1
    prior and noise (B, 256). Evaluation gives the image and needs only lq; by default, noise is determined by the
    image. As official S2_arch.py:DiffIRS2. The last six arguments are ours: `prediction` x0 (published) or eps (the
    paper's text); `use_diffusion` False takes the condition itself for the prior (the paper's V1, worse);
    `variance_noise` adds noise after each step (V4, worse); `rescale_schedule` ends the schedule in noise for any
    `timesteps` (the paper: large gains up to 3, none beyond 4); `prior_width`.
    """

    ARGUMENTS = Stage2Arguments
    stage = 2
    paper_row = "DiffIR_S2"  # in the paper's tables, evaluation/paper_tables.yml

    @takes_old_names
    def __init__(
        self,
        *,
        n_encoder_res: int = 6,
        inp_channels: int | None = None,
        out_channels: int = 3,
        scale: int | None = None,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",  # noqa: N803 - published argument name
        n_denoise_res: int = 1,
        linear_start: float = 0.1,
        linear_end: float = 0.99,
        timesteps: int = 4,
        task: str = "sr",
        prediction: str = "x0",
        use_diffusion: bool = True,
        variance_noise: bool = False,
        rescale_schedule: bool = False,
        prior_width: int = PRIOR_WIDTH,
    ) -> None:
        super().__init__(
            inp_channels=inp_channels,
            out_channels=out_channels,
            scale=scale,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            heads=heads,
            ffn_expansion_factor=ffn_expansion_factor,
            bias=bias,
            LayerNorm_type=LayerNorm_type,
            task=task,
            prior_width=prior_width,
        )
        self.condition = CPEN(
            self.geometry.prior_channels,
            n_encoder_res=n_encoder_res,
            unshuffle=self.geometry.prior_unshuffle,
            prior_width=prior_width,
        )
        self.use_diffusion = use_diffusion
        if not use_diffusion:
            return
        if rescale_schedule:
            linear_start, linear_end = rescaled_end(timesteps, start=linear_start)
        self.denoise = PriorDenoiser(n_denoise_res=n_denoise_res, steps=timesteps, prior_width=prior_width)
        # The same two objects again, since published checkpoints contain them under both names.
        self.diffusion = PriorDiffusion(
            model=self.denoise,
            condition=self.condition,
            timesteps=timesteps,
            linear_start=linear_start,
            linear_end=linear_end,
            prediction=prediction,
            variance_noise=variance_noise,
        )

    def forward(
        self,
        lq: Tensor,
        prior: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        return_prior: bool = False,
        step: Tensor | None = None,
    ) -> Any:
        """See the class. `return_prior` stops before the body: training then gives only the priors (warm-up).

        `step` (B,) trains the diffusion separately from the body (the paper's V2): returns (image, [estimate at that
        step]), and the image has no gradient to the estimator.
        """
        check_image(lq, channels=self.geometry.channels, name="lq")
        if self.training:
            check_multiple(lq, multiple_of=self.multiple_of, name="lq")
            if step is not None:
                return self._separate_step(lq, prior, noise, step)
            trajectory = self.diffusion(lq, prior, noise=noise) if self.use_diffusion else [self.condition(lq)]
            return trajectory if return_prior else (self.restore_under(lq, trajectory[-1]), trajectory)
        whole = self.padded(lq)
        estimated = self.encode(whole, noise=picture_noise(lq, width=self.prior_width) if noise is None else noise)
        return estimated if return_prior else self.cropped(self.restore_under(whole, estimated), lq)

    def restore(self, lq: Tensor, *, noise: Noise, mask: Tensor | None = None) -> Tensor:
        """See `families.base.Restores`: the prior is denoised from noise, then the body runs once."""
        lq = with_mask(lq, mask)
        return self.restore_under(lq, self.encode(lq, noise=noise.normal((len(lq), self.prior_width))))

    def encode(self, lq: Tensor, *, noise: Tensor) -> Tensor:
        """The prior (B, 256) of `lq` (padded sides), denoised from `noise` (B, 256)."""
        return self.denoise_prior(self.condition(lq), noise=noise)

    def denoise_prior(self, condition: Tensor, *, noise: Tensor) -> Tensor:
        """The prior (B, 256) for a condition (B, 256), denoised from `noise` (B, 256)."""
        if not self.use_diffusion:
            return condition
        return cast(Tensor, self.diffusion.sample(noise.to(condition), condition)[-1])

    def _separate_step(self, lq: Tensor, prior: Tensor | None, noise: Tensor | None, step: Tensor) -> Any:
        if prior is None or noise is None or not self.use_diffusion:
            raise InputError("training the diffusion separately needs a diffusion, the stage-1 prior and noise")
        condition = self.condition(lq)
        guess = self.diffusion.predict_x0(prior, noise, step, condition)
        with torch.no_grad():
            estimated = self.diffusion.sample(noise, condition)[-1]
        return self.restore_under(lq, estimated), [guess]


def _check_body(dim: int, num_blocks: Sequence[int], heads: Sequence[int], norm: str, out_channels: int) -> None:
    if norm not in _NORMS:
        raise OptionError(f"LayerNorm_type: expected one of {', '.join(_NORMS)}, got {norm!r}")
    if len(num_blocks) != 4 or len(heads) != 4:
        raise OptionError(f"num_blocks and heads: expected four numbers each, got {list(num_blocks)} and {list(heads)}")
    for level, count in enumerate(heads):
        if (dim * 2**level) % count:
            raise OptionError(f"heads[{level}]: {count} does not divide the {dim * 2**level} channels there")
    if out_channels != 3:
        raise OptionError(f"out_channels: DiffIR restores RGB images, expected 3, got {out_channels}")


def _check_channels(inp_channels: int | None, geometry: TaskGeometry) -> None:
    # Published super-resolution files always state 3, regardless of the pixel unshuffle.
    possible = {geometry.channels, geometry.channels * geometry.body_unshuffle**2}
    if inp_channels is not None and inp_channels not in possible:
        raise OptionError(
            f"inp_channels: task {geometry.task!r} takes {geometry.channels}-channel images, got {inp_channels}; "
            "leave the option out"
        )
