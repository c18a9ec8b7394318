"""The DIRformer in its inference form: folded for one prior, channels last, in strips of rows.

Whole maps that stay in memory: the features of the level that is worked on and, for the way up, of the levels above.
They are float32 in every case, since tens of blocks add to them. Everything else lives for one strip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.dirformer import DIRformer
from diffir_sr.archs.layers import Block, Down, Level, Up
from diffir_sr.inference.strips.blocks import FoldedBlock
from diffir_sr.inference.strips.memory import Plan
from diffir_sr.inference.strips.rows import Neighbours, Source, convolve, empty_map, rows_of, strips
from diffir_sr.inference.strips.tail import RADIUS, FoldedTail


class FoldedBody:
    """A DIRformer for one picture at a time, computed in `dtype` on the network's device."""

    def __init__(self, body: DIRformer, *, dtype: torch.dtype) -> None:
        self._body = body
        self._geometry = body.geometry
        self._dtype = dtype
        self._tail = FoldedTail(body.tail, dtype=dtype) if self._geometry.upsample > 1 else None

    def __call__(self, image: Tensor, prior: Tensor, *, plan: Plan) -> Tensor:
        """Image (1, C, H, W) of padded sides and prior (1, D) to (1, 3, H * scale, W * scale), float32 on the CPU."""
        run = _Run(prior, self._dtype, plan)
        x = self._features(image, run)
        scale, height, width = self._geometry.scale, *image.shape[-2:]
        made = torch.empty((1, 3, height * scale, width * scale))
        per_row = self._geometry.upsample if self._tail is not None else 1
        for start, stop, rows in self._image_rows(x, run):
            begin, end = start * per_row, stop * per_row
            if self._geometry.residual:
                rows = rows + _enlarged(image[:, :, begin // scale : end // scale], scale)
            made[:, :, begin:end] = rows
        return made

    def _features(self, image: Tensor, run: _Run) -> Tensor:
        body = self._body
        level1 = run.level(body.encoder_level1, self._embedded(image, run))
        level2 = run.level(body.encoder_level2, run.down(body.down1_2, level1))
        level3 = run.level(body.encoder_level3, run.down(body.down2_3, level2))
        x = run.level(body.latent, run.down(body.down3_4, level3))
        x = run.level(body.decoder_level3, run.joined(body.up4_3, x, level3, body.reduce_chan_level3))
        del level3
        x = run.level(body.decoder_level2, run.joined(body.up3_2, x, level2, body.reduce_chan_level2))
        del level2
        x = run.joined(body.up2_1, x, level1, None)
        del level1
        x = run.level(body.decoder_level1, x)
        return x if body.refinement is None else run.level(body.refinement, x)

    def _embedded(self, image: Tensor, run: _Run) -> Tensor:
        fold = self._geometry.body_unshuffle

        def folded(start: int, stop: int) -> Tensor:
            rows = image[:, :, start * fold : stop * fold]
            rows = F.pixel_unshuffle(rows, fold) if fold > 1 else rows
            return rows.to(self._dtype).contiguous(memory_format=torch.channels_last)

        size = (image.shape[2] // fold, image.shape[3] // fold)
        return run.convolved(self._body.patch_embed.proj, folded, size)

    def _image_rows(self, x: Tensor, run: _Run) -> Iterator[tuple[int, int, Tensor]]:
        height, rows = x.shape[2], run.plan.dense_rows(x.shape[3])
        seen = Neighbours(rows_of(x, self._dtype), height=height, radius=1 if self._tail is None else RADIUS)
        for start, stop in strips(height, rows):
            if self._tail is None:
                layer = self._body.output
                yield start, stop, convolve(seen.until(stop), *run.weights(layer), padding=(0, 1)).float()
            else:
                made = self._tail(seen.until(stop))
                if start == 0:
                    made[:, :, :4] = self._tail.top(x)
                if stop == height:
                    made[:, :, -4:] = self._tail.bottom(x)
                yield start, stop, made


class _Run:
    """One picture's way through the network."""

    def __init__(self, prior: Tensor, dtype: torch.dtype, plan: Plan) -> None:
        self._prior = prior
        self._dtype = dtype
        self.plan = plan

    def level(self, level: Level, x: Tensor) -> Tensor:
        rows = self.plan.strip_rows(x.shape[3])
        for block in level:
            FoldedBlock(cast(Block, block), self._prior, dtype=self._dtype).apply(x, rows=rows)
        return x

    def convolved(self, layer: nn.Conv2d, source: Source, size: tuple[int, int]) -> Tensor:
        height, width = size
        weight, bias = self.weights(layer)
        made = empty_map(len(weight), height, width, like=self._prior)
        seen = Neighbours(source, height=height)
        for start, stop in strips(height, self.plan.dense_rows(width)):
            made[:, :, start:stop] = convolve(seen.until(stop), weight, bias, padding=(0, 1))
        return made

    def down(self, layer: Down, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        weight, _ = self.weights(cast(nn.Conv2d, layer.body[0]))
        made = empty_map(4 * len(weight), height // 2, width // 2, like=x)
        seen = Neighbours(rows_of(x, self._dtype), height=height)
        for start, stop in strips(height, self.plan.dense_rows(width)):
            rows = convolve(seen.until(stop), weight, padding=(0, 1))
            made[:, :, start // 2 : stop // 2] = F.pixel_unshuffle(rows, 2)
        return made

    def joined(self, layer: Up, x: Tensor, skip: Tensor, reduce: nn.Conv2d | None) -> Tensor:
        height, width = x.shape[-2:]
        weight, _ = self.weights(cast(nn.Conv2d, layer.body[0]))
        wide = len(weight) // 4 + skip.shape[1]
        made = empty_map(wide if reduce is None else reduce.out_channels, 2 * height, 2 * width, like=x)
        seen = Neighbours(rows_of(x, self._dtype), height=height)
        for start, stop in strips(height, self.plan.dense_rows(2 * width)):
            rows = F.pixel_shuffle(convolve(seen.until(stop), weight, padding=(0, 1)), 2)
            rows = torch.cat([rows, skip[:, :, 2 * start : 2 * stop].to(self._dtype)], dim=1)
            made[:, :, 2 * start : 2 * stop] = rows if reduce is None else convolve(rows, *self.weights(reduce))
        return made

    def weights(self, layer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
        bias = None if layer.bias is None else layer.bias.to(self._dtype)
        return layer.weight.to(self._dtype), bias


def _enlarged(image: Tensor, scale: int) -> Tensor:
    return F.interpolate(image, scale_factor=scale, mode="nearest") if scale > 1 else image
