"""DiffIR's engine: restores images of any size exactly, in strips of rows, or in tiles with a shared prior."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.archs.geometry import check_image, with_mask
from diffir_sr.diffusion.noise import Noise
from diffir_sr.errors import InputError, OptionError
from diffir_sr.failures import out_of_memory
from diffir_sr.inference.plain import OVERLAP, TILE, available, check_memory, check_tiles, in_tiles
from diffir_sr.inference.strips.body import FoldedBody, Planner, StripPlan, condition

TileMode = Literal["exact", "prior"]
logger = logging.getLogger("diffir_sr.inference")


class StripEngine:
    """Runs a stage-2 network on lq (B, C, H, W) in [0, 1] on the CPU, of any size.

    `tile_mode` 'exact' processes strips of rows and gives the result of the whole image, within the free memory or
    `memory_limit` (bytes, beyond weights and input). 'prior' restores tiles of `tile` pixels with an overlap of
    `overlap`, all with the prior of the whole image: less memory, a different result. `strip` sets the rows of a strip
    (of the uppermost features). `optimized` False runs the network as it is trained, in one piece. The network is moved
    to `device`. The engine has no state about images, so threads may share it.
    """

    def __init__(
        self,
        network: DiffIRS2,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tile_mode: TileMode = "exact",
        memory_limit: int | None = None,
        strip: int | None = None,
        tile: int = TILE,
        overlap: int = OVERLAP,
        optimized: bool = True,
    ) -> None:
        _check(tile_mode, strip=strip, tile=tile, overlap=overlap, memory_limit=memory_limit)
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.dtype = dtype
        self.tile_mode = tile_mode
        self.optimized = optimized
        self._limit = memory_limit
        self._strip = strip
        self._tile = tile
        self._overlap = overlap
        self._planner = Planner(network.G, dtype=dtype, device=self.device)
        self._body = FoldedBody(network.G, dtype=dtype) if optimized else None

    @torch.inference_mode()
    def prior(self, lq: Tensor, *, noise: Tensor) -> Tensor:
        """The prior (B, D) of `lq`, float32 on the device, denoised from `noise` (B, D)."""
        network = self.network
        check_image(lq, channels=network.geometry.channels, name="lq")
        if not self.optimized:
            return self._plainly(lambda image: network.encode(image, noise=noise.to(image)), lq).float()
        conditions = [
            self._planned(one, lambda image, plan: condition(network.condition, image, plan=plan, dtype=self.dtype))
            for one in lq.split(1)
        ]
        pairs = zip(conditions, noise.split(1), strict=True)
        return torch.cat([network.denoise_prior(one, noise=of.to(one)) for one, of in pairs])

    @torch.inference_mode()
    def restore(self, lq: Tensor, prior: Tensor) -> Tensor:
        """The restored images (B, 3, H * scale, W * scale), float32 on the CPU, not clipped."""
        check_image(lq, channels=self.network.geometry.channels, name="lq")
        if self.tile_mode == "exact":
            return self._restored(lq, prior)
        made = in_tiles(
            lambda part, _: self._restored(part, prior),
            self.network.padded(lq),  # so that border tiles are padded like the whole image
            tile=self._tile,
            overlap=self._overlap,
            scale=self.network.scale,
        )
        return self.network.cropped(made, lq)

    def __call__(self, lq: Tensor, *, noise: Noise, mask: Tensor | None = None) -> Tensor:
        """The restored images with the priors denoised from `noise`; see `families.base.Engine`."""
        lq = with_mask(lq, mask)
        return self.restore(lq, self.prior(lq, noise=noise.normal((len(lq), self.network.prior_width))))

    def plan(self, height: int, width: int) -> StripPlan:
        """The plan for an image of this size (or its largest tile); raises InputError if it cannot be restored."""
        if self.tile_mode == "prior":
            height, width = min(height, self._tile), min(width, self._tile)
        multiple = self.network.multiple_of
        high, wide = (-(-side // multiple) * multiple for side in (height, width))
        if self._strip is not None:
            return self._planner.plan(high, wide, rows=self._strip)
        limit = available(self.device) if self._limit is None else self._limit
        plan = self._planner.best(high, wide, limit=limit)
        if plan.bytes > limit:
            raise InputError(
                f"{height}x{width} pixels need about {_amount(plan.bytes)} even in the narrowest strips, "
                f"{_amount(limit)} are allowed; {self._advice()}"
            )
        return plan

    def _advice(self) -> str:
        tiles = "tiles (--tile-mode tiles)" if self.tile_mode == "exact" else f"tiles smaller than {self._tile} pixels"
        return f"use {tiles}, allow or free more memory, or split the image"

    def _restored(self, lq: Tensor, prior: Tensor) -> Tensor:
        if self._body is None:
            made = self._plainly(lambda image: self.network.restore_under(image, prior.to(image)), lq)
            return self.network.cropped(made, lq).float().cpu()
        body, prior = self._body, prior.to(self.device, torch.float32)
        made = [
            self._planned(one, lambda image, plan, of=of: body(image, of, plan=plan))
            for one, of in zip(lq.split(1), prior.expand(len(lq), -1).split(1), strict=True)
        ]
        return self.network.cropped(torch.cat(made) if len(made) > 1 else made[0], lq)

    def _plainly(self, run: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
        image = self.network.padded(lq.to(self.device))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return run(image)

    def _planned(self, lq: Tensor, run: Callable[[Tensor, StripPlan], Tensor]) -> Tensor:
        image = self.network.padded(lq.to(self.device, torch.float32))
        plan = self.plan(*lq.shape[-2:])
        while True:
            try:
                return run(image, plan)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if plan.is_smallest:
                    height, width = lq.shape[-2:]
                    raise InputError(
                        f"out of memory: {height}x{width} pixels do not fit even in {plan}; {self._advice()}"
                    ) from error
            plan = self._planner.narrower(image.shape[-2], image.shape[-1], plan)
            logger.warning("Out of memory; restarting the image in %s.", plan)


def _amount(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _check(tile_mode: str, *, strip: int | None, tile: int, overlap: int, memory_limit: int | None) -> None:
    if tile_mode not in get_args(TileMode):
        raise OptionError(f"tile mode: expected one of {', '.join(get_args(TileMode))}, got {tile_mode!r}")
    if strip is not None and strip < 1:
        raise OptionError(f"strip: expected 1 row or more, got {strip}")
    if tile_mode == "prior":
        check_tiles(tile, overlap)
    check_memory(memory_limit)
