"""Real-ESRGAN's datasets: only ground truth, which the model degrades on its device, or the user's own pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from pydantic import Field

from diffir_sr.data.arrays import random_corner, to_bytes, to_tensor, turned
from diffir_sr.data.degradation import KINDS, DegradationOptions, KernelOptions, KernelRanges, blur_kernel, final_kernel
from diffir_sr.data.draws import Draw, DrawnDataset, Mixture
from diffir_sr.data.pairs import Pair, PairedDataset, PairedSources, lists_of, pair_listed
from diffir_sr.data.sources import ImageSource, Picture, candidates, check_backend, open_source, roots_of
from diffir_sr.errors import InputError
from diffir_sr.files.images import without_suffix
from diffir_sr.option_types import Found, Roots, Section, Small, View


class RealPairedOptions(Section):
    """Your own pairs of real images, for fine-tuning; scale 1 or more, like PairedDataset."""

    meta_info: str | None = Field(None, description="List of pairs, `gt.png, lq.png` per line; by default by name.")


class RealESRGANOptions(KernelOptions):
    """Ground truth with random blur kernels; the model degrades it according to the top-level options."""

    dataroot_gt: Roots = Field(description="Folder, LMDB, shards or list of the ground truth; several roots are mixed.")
    meta_info: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    use_hflip: bool = Field(False, description="Whether images are randomly mirrored.")
    use_rot: bool = Field(False, description="Whether images are randomly rotated by multiples of 90 degrees.")
    gt_size: Small | None = Field(None, description="No effect here; see the top-level gt_size.")
    # Published: larger than a patch, so that border effects of the degradation are cropped.
    crop_pad_size: Small = Field(400, description="Side in pixels of the squares that are degraded before cropping.")


def kernels_have_chances(view: View, at: tuple[str, ...]) -> Found:
    """Every kind of kernel has a probability."""
    for ending in ("", "2"):
        kinds, chances = view.get(*at, f"kernel_list{ending}"), view.get(*at, f"kernel_prob{ending}")
        kinds, chances = (len(KINDS) if given is None else len(given) for given in (kinds, chances))
        if kinds != chances:
            yield (
                (*at, f"kernel_prob{ending}"),
                f"{chances} probabilities for {kinds} kinds in kernel_list{ending}; give one per kind",
            )


def patches_fit(view: View, at: tuple[str, ...]) -> Found:
    """Patches are cropped after the degradation, according to the top level."""
    if view.is_train and at[-1] == "train" and (fault := view.patch_fault(view.effective("gt_size"))):
        yield ("gt_size",), fault


def pool_suits_batches(view: View, at: tuple[str, ...]) -> Found:
    """The pool of pairs contains a whole number of batches."""
    if at[-1] == "train" and view.effective("degradation_sharing") == "batch":
        batch, pool = view.get(*at, "batch_size_per_gpu", default=1), view.effective("queue_size")
        if pool % batch:
            yield ("queue_size",), f"{pool} is not a multiple of {'.'.join(at)}.batch_size_per_gpu, which is {batch}"


def degradation_is_on(view: View, at: tuple[str, ...]) -> Found:
    """A dataset without degraded images needs the model to make them."""
    if not view.effective("high_order_degradation"):
        yield ("high_order_degradation",), "a RealESRGANDataset has no degraded images of its own; remove this option"


class RealESRGANDataset(DrawnDataset):
    """Samples {gt, kernel1, kernel2, sinc_kernel, draw_seed, gt_path} under the published options.

    `gt` is float32 RGB (3, crop, crop) in [0, 1]: a random crop of 400 pixels; smaller images are padded by reflection
    at the bottom and the right. Kernels are float32 (21, 21). `draw_seed` (int64) seeds the degradation of this sample.
    """

    OPTIONS = RealESRGANOptions
    TOP_OPTIONS = DegradationOptions
    RENAMED: ClassVar[Mapping[str, str]] = {"degrade_by": "degradation_sharing"}
    RULES = (kernels_have_chances, patches_fit, pool_suits_batches, degradation_is_on)

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        check_backend(opt)
        options = RealESRGANOptions.of(opt)
        roots = roots_of(opt, "dataroot_gt")
        lists = lists_of(opt, "meta_info", len(roots))
        self.sources = [open_source(root, meta_info=listed) for root, listed in zip(roots, lists, strict=True)]
        self.mixture = Mixture([len(source.names) for source in self.sources], opt.get("source_weights"))
        self.crop_size = options.crop_pad_size
        self.flips, self.turns = options.use_hflip, options.use_rot
        self.kernels = [KernelRanges.from_options(opt, step=step) for step in (1, 2)]
        self.final_sinc_prob = options.final_sinc_prob
        self.gives_bytes = False

    def give_bytes(self) -> None:
        """Return uint8 images if that is lossless; the model converts them to float."""
        self.gives_bytes = all(source.is_8bit for source in self.sources)

    def _image(self, draw: int) -> tuple[ImageSource, str]:
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
    """PairedDataset under the published name, for fine-tuning on the user's pairs, which `meta_info` may list.

    Its lines are `ground truth, degraded image`, each relative to its root.
    """

    OPTIONS = RealPairedOptions
    NEEDS_SCALE = False

    def find_pairs(self, opt: Mapping[str, Any]) -> list[PairedSources]:
        if not opt.get("meta_info"):
            return super().find_pairs(opt)
        lists = lists_of(opt, "meta_info", 1)
        lq, gt = (open_source(roots_of(opt, key)[0]) for key in ("dataroot_lq", "dataroot_gt"))
        pairs = _listed_pairs(Path(os.path.expanduser(str(lists[0]))), lq, gt)
        return [pair_listed(pairs, lq, gt, scale=self.scale, gt_size=self.gt_size, crop_gt=not self.training)]


def _listed_pairs(listing: Path, lq: ImageSource, gt: ImageSource) -> list[Pair]:
    """The pairs of a list, with names as in the two sources, regardless of how an editor or system wrote them."""
    try:
        lines = [line.strip() for line in listing.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"meta_info {listing.absolute()}: cannot be read as a list of pairs ({error})") from error
    parts = [line.split(", ") for line in lines]
    wrong = next((line for line, part in zip(lines, parts, strict=True) if len(part) != 2), None)
    if wrong is not None or not lines:
        found = "no line" if wrong is None else repr(wrong)
        raise InputError(f"meta_info {listing.absolute()}: expected lines 'gt.png, lq.png', found {found}")
    return [Pair(lq=_named(low, lq), gt=_named(high, gt)) for high, low in parts]


def _named(written: str, source: ImageSource) -> str:
    names = (without_suffix(name) for name in candidates(written, source.path))
    return next((name for name in names if name in source), without_suffix(written))
