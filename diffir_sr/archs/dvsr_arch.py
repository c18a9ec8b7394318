"""DvSR (Whang et al. 2022): deblurring by stochastic refinement of a first guess.

A predictor makes the first guess in one call; a smaller denoiser draws what the truth has beside it. Nothing in either
looks at the whole picture, so that patches train them for pictures of any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffir_sr.archs.geometry import check_image
from diffir_sr.archs.noise_level_unet_arch import PRESETS, NoiseLevelUNet
from diffir_sr.archs.sr3_arch import Drawing
from diffir_sr.diffusion.noise import Noise
from diffir_sr.diffusion.sampling import noised_to
from diffir_sr.diffusion.schedule import Schedule
from diffir_sr.errors import InputError


class Deblurring(nn.Module):
    """What DvSR and its regression share: the first guess, and the size rule.

    With `guess_from_input` the predictor adds to the blurred picture, from which a training then starts; otherwise it
    makes the whole picture, as the paper draws it.
    """

    conditions: frozenset[str] = frozenset()
    scale = 1

    def __init__(
        self, *, channels: int, channel_mults: Sequence[int], res_blocks: int, dropout: float, guess_from_input: bool
    ) -> None:
        super().__init__()
        self.init_predictor = NoiseLevelUNet(
            preset="dvsr",
            in_channel=3,
            inner_channel=channels,
            channel_mults=channel_mults,
            res_blocks=res_blocks,
            dropout=dropout,
            with_noise_level_emb=False,
        )
        self.guess_from_input = guess_from_input
        self.multiple_of = self.init_predictor.multiple_of

    def initialise(self) -> None:
        """Start values of a training from scratch: the guess is the input where it begins there, no noise is found.

        A denoiser that began with random answers would first of all move the guess so as to correct them.
        """
        for name, net in self.named_children():
            if isinstance(net, NoiseLevelUNet):
                net.initialise()
                if name == "denoiser" or self.guess_from_input:
                    for weight in net.final_conv.block[3].parameters():
                        nn.init.zeros_(weight)

    def predict_initial(self, blurred: Tensor) -> Tensor:
        """The first guess (B, 3, H, W) of `blurred`, both in [-1, 1]."""
        made = self.init_predictor(blurred)
        return blurred + made if self.guess_from_input else made

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for a picture that is smaller than a pixel of the deepest level."""
        if min(height, width) < self.multiple_of:
            raise InputError(
                f"{height}x{width} pixels are less than one pixel of the deepest level of this network; give a "
                f"picture of at least {self.multiple_of}x{self.multiple_of}"
            )


class DvSR(Deblurring, Drawing):
    """Restores by adding to a first guess what a walk from noise draws of the rest.

    The walk is over the residual, truth minus first guess, and sees the blurred picture; with `cond_on_init` also the
    first guess (which the paper names as future work). `beta_schedule` and `sampling` are those of `SR3`.

    `residual_std` (`Drawing`) is for short trainings. Without it (the paper's form) the denoiser has to learn the best
    linear estimate of the noise first, and its intermediate answers drive the first guess away from the truth: the
    guess is pulled to where it cancels their errors.
    """

    def __init__(
        self,
        *,
        predictor_channel: int = 64,
        denoiser_channel: int = 32,
        channel_mults: Sequence[int] = (1, 2, 3, 4),
        res_blocks: int = 3,
        dropout: float = 0.0,
        guess_from_input: bool = False,
        cond_on_init: bool = False,
        residual_std: float | None = None,
        level_scale: float | None = None,
        level_space: str | None = None,
        beta_schedule: Mapping[str, Any] | Sequence[float] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            channels=predictor_channel,
            channel_mults=channel_mults,
            res_blocks=res_blocks,
            dropout=dropout,
            guess_from_input=guess_from_input,
        )
        self.cond_on_init = cond_on_init
        self.denoiser = NoiseLevelUNet(
            preset="dvsr",
            in_channel=9 if cond_on_init else 6,
            inner_channel=denoiser_channel,
            channel_mults=channel_mults,
            res_blocks=res_blocks,
            dropout=dropout,
            level_scale=level_scale,
        )
        self.set_diffusion(
            residual_std=residual_std,
            beta_schedule=beta_schedule,
            sampling=sampling,
            level_space=level_space,
            default_space=PRESETS["dvsr"].level_space,
        )

    def forward(self, lq: Tensor, gt: Tensor, eps: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that is found in the residual under `eps`, and the first guess in [-1, 1], (B, 3, H, W) each.

        `lq` and `gt` are in [0, 1], levels (B,). The first guess gets its gradient by way of the noisy residual alone.
        """
        blurred = 2 * lq - 1
        first = self.predict_initial(blurred)
        noisy = noised_to((2 * gt - 1 - first) / self.unit, eps, level, space=self.level_space)
        return self._found(blurred, first, noisy, level), first

    def _found(self, blurred: Tensor, first: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        seen = [blurred, first, noisy] if self.cond_on_init else [blurred, noisy]
        return self.noise_of(self.denoiser(torch.cat(seen, dim=1), level), noisy, level)

    def first_guess(self, lq: Tensor) -> Tensor:
        """See `families.base.BeginsWithGuess`; in [-1, 1]."""
        check_image(lq, channels=3, name="lq")
        return self.predict_initial(2 * lq - 1).float()

    def restore(self, lq: Tensor, *, noise: Noise, first: Tensor | None = None) -> Tensor:
        """See `families.base.BeginsWithGuess`."""
        return self._restored(lq, noise, self.visited_schedule, self.first_guess(lq) if first is None else first)

    def restore_in_one_step(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """A picture of no use, for which as much memory is needed as for one of many steps."""
        return self._restored(lq, noise, self.visited_schedule.respaced(1), self.first_guess(lq))

    def _restored(self, lq: Tensor, noise: Noise, schedule: Schedule, first: Tensor) -> Tensor:
        check_image(lq, channels=3, name="lq")
        blurred, first = 2 * lq - 1, first.expand_as(lq)

        def predict(x: Tensor, level: Tensor) -> Tensor:
            return self._found(blurred, first, x, level)

        # The residual is bounded so that the picture stays within [-1, 1].
        bounds = ((-1 - first) / self.unit, (1 - first) / self.unit)
        rest = self.draw(predict, first, noise=noise, schedule=schedule, bounds=bounds)
        return (first + self.unit * rest + 1) / 2


class DvSRPredictor(Deblurring):
    """The predictor of `DvSR` alone, trained as a regression: what DvSR is compared with."""

    def __init__(
        self,
        *,
        predictor_channel: int = 64,
        channel_mults: Sequence[int] = (1, 2, 3, 4),
        res_blocks: int = 3,
        dropout: float = 0.0,
        guess_from_input: bool = False,
    ) -> None:
        super().__init__(
            channels=predictor_channel,
            channel_mults=channel_mults,
            res_blocks=res_blocks,
            dropout=dropout,
            guess_from_input=guess_from_input,
        )

    def forward(self, lq: Tensor) -> Tensor:
        """(B, 3, H, W) in about [0, 1] of `lq` in [0, 1]."""
        return (self.predict_initial(2 * lq - 1) + 1) / 2

    def restore(self, lq: Tensor, *, noise: Noise) -> Tensor:
        """See `families.base.Restores`; `noise` has no part in it."""
        return self(lq)
