"""Real-ESRGAN's datasets: ground truth alone, which the model degrades on its device, or a user's own pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from diffir_sr.data.arrays import random_corner, to_bytes, to_tensor, turned
from diffir_sr.data.draws import Draw, DrawnDataset, Mixture
from diffir_sr.data.kernels import KernelRanges, blur_kernel, final_kernel
from diffir_sr.data.paired_dataset import PairedDataset
from diffir_sr.data.pairs import Pair, PairedSources, lists_of, pair_listed
from diffir_sr.data.sources import LmdbSource, Picture, Source, check_backend, open_source, roots_of
from diffir_sr.errors import InputError
from diffir_sr.files.images import without_suffix

CROP_SIZE = 400  # of the published code: larger than a patch, so that borders of the degradation are cut off


class RealESRGANDataset(DrawnDataset):
    """Samples {gt, kernel1, kernel2, sinc_kernel, draw_seed, gt_path} under the published options.

    `gt` is float32 RGB (3, crop, crop) in [0, 1]: a random crop of 400 pixels, smaller images reflected at the bottom
    and the right. Kernels are float32 (21, 21). `draw_seed` (int64) seeds the degradation of this sample.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        check_backend(opt)
        roots = roots_of(opt, "dataroot_gt")
        lists = lists_of(opt, "meta_info", len(roots))
        self.sources = [open_source(root, meta_info=listed) for root, listed in zip(roots, lists, strict=True)]
        self.mixture = Mixture([len(source.names) for source in self.sources], opt.get("source_weights"))
        self.crop_size = int(opt.get("crop_pad_size") or CROP_SIZE)
        self.flips, self.turns = bool(opt.get("use_hflip")), bool(opt.get("use_rot"))
        self.kernels = [KernelRanges.from_options(opt, step=step) for step in (1, 2)]
        self.final_sinc_prob = float(opt.get("final_sinc_prob", 0.8))
        self.gives_bytes = False

    def give_bytes(self) -> None:
        """Give uint8 images where that loses nothing; the model makes them float."""
        self.gives_bytes = all(isinstance(source, LmdbSource) for source in self.sources)

    def _image(self, draw: int) -> tuple[Source, str]:
        place, index = self.mixture.locate(draw)
        return self.sources[place], self.sources[place].names[index]

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        number = draw.number if isinstance(draw, Draw) else draw
        source, name = self._image(number)
        rng = self.random(number)
        gt = (to_bytes if self.gives_bytes else to_tensor)(self._cut(source.view(name), rng))
        first, second = (blur_kernel(rng, ranges) for ranges in self.kernels)
        return {
            "gt": gt,
            "kernel1": torch.from_numpy(first),
            "kernel2": torch.from_numpy(second),
            "sinc_kernel": torch.from_numpy(final_kernel(rng, final_sinc_prob=self.final_sinc_prob)),
            "draw_seed": int(rng.integers(2**63)),
            "gt_path": source.location(name),
        }

    def _cut(self, image: Picture, rng: np.random.Generator) -> np.ndarray:
        size = self.crop_size
        below, beside = (max(0, size - side) for side in image.shape[:2])
        if below or beside:
            padded = cv2.copyMakeBorder(image[:], 0, below, 0, beside, cv2.BORDER_REFLECT_101)
            image = padded.reshape(*padded.shape[:2], -1)
        top, left = random_corner(rng, image, size)
        flip = self.flips and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.turns else 0
        return turned(image[top : top + size, left : left + size], flip=flip, turns=turns)


class RealESRGANPairedDataset(PairedDataset):
    """PairedDataset under the published name, for fine-tuning on own pairs: `meta_info` may list them.

    Its lines are `ground truth, degraded image`, each relative to its root.
    """

    def find_pairs(self, opt: Mapping[str, Any]) -> list[PairedSources]:
        if not opt.get("meta_info"):
            return super().find_pairs(opt)
        lists = lists_of(opt, "meta_info", 1)
        pairs = _listed_pairs(Path(os.path.expanduser(str(lists[0]))))
        lq, gt = (open_source(roots_of(opt, key)[0]) for key in ("dataroot_lq", "dataroot_gt"))
        return [pair_listed(pairs, lq, gt, scale=self.scale, gt_size=self.gt_size, crop_gt=not self.training)]


def _listed_pairs(listing: Path) -> list[Pair]:
    try:
        lines = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"meta_info {listing.absolute()}: cannot be read as a list of pairs ({error})") from error
    parts = [line.split(", ") for line in lines]
    wrong = next((line for line, part in zip(lines, parts, strict=True) if len(part) != 2), None)
    if wrong is not None or not lines:
        found = "no line" if wrong is None else repr(wrong)
        raise InputError(f"meta_info {listing.absolute()}: expected lines 'gt.png, lq.png', found {found}")
    return [Pair(lq=without_suffix(lq), gt=without_suffix(gt)) for gt, lq in parts]
