"""Pairs of degraded images and ground truth: matching, reporting all problems in one message, and datasets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from pydantic import Field
from torch.utils.data import Dataset

from diffir_sr.data.arrays import random_corner, to_bytes, to_tensor, turned
from diffir_sr.data.draws import Draw, DrawnDataset, Mixture, curriculum_from_options
from diffir_sr.data.sources import ImageSource, Picture, check_backend, open_source, roots_of, some
from diffir_sr.errors import InputError
from diffir_sr.option_types import Count, Found, Roots, Section, Small, View


@dataclass(frozen=True)
class Pair:
    """Names of a degraded image and its ground truth, each in its own source."""

    lq: str
    gt: str


@dataclass(frozen=True)
class PairedSources:
    """Two sources and the pairs between them."""

    lq: ImageSource
    gt: ImageSource
    pairs: list[Pair]


def find_pairs(
    lq: str | Path,
    gt: str | Path,
    *,
    scale: int,
    filename_tmpl: str = "{}",
    meta_info: str | Path | None = None,
    gt_size: int | None = None,
    crop_gt: bool = False,
) -> PairedSources:
    """Match two folders, LMDBs or shards by name without extension; raises InputError, which lists all problems.

    `filename_tmpl` maps a ground-truth name to the degraded name ('{}x4'). `meta_info` restricts the names. `gt_size`
    is the required minimum size in pixels. `crop_gt` allows a ground truth that is up to scale - 1 pixels larger
    (evaluation crops it).
    """
    if scale < 1:
        raise InputError(f"scale: expected 1 or more, got {scale}")
    sources = open_source(lq), open_source(gt, meta_info=meta_info)
    pairs = [Pair(degraded_name(name, filename_tmpl), name) for name in sources[1].names]
    _check_partners(pairs, *sources, template=filename_tmpl, whole=not meta_info)
    _check_sizes(pairs, *sources, scale=scale, gt_size=gt_size, crop_gt=crop_gt)
    return PairedSources(*sources, pairs)


def pair_listed(
    pairs: list[Pair], lq: ImageSource, gt: ImageSource, *, scale: int, gt_size: int | None, crop_gt: bool
) -> PairedSources:
    """The pairs in a list; raises InputError like `find_pairs` for missing and invalid ones."""
    absent = [pair.gt for pair in pairs if pair.gt not in gt] + [pair.lq for pair in pairs if pair.lq not in lq]
    if absent:
        raise InputError(
            f"{len(absent)} listed images are not under gt {gt.path.resolve()} and lq {lq.path.resolve()}: "
            f"{some(absent)}; correct the list or the roots"
        )
    _check_sizes(pairs, lq, gt, scale=scale, gt_size=gt_size, crop_gt=crop_gt)
    return PairedSources(lq, gt, pairs)


def find_all_pairs(
    opt: Mapping[str, Any], *, scale: int, gt_size: int | None, crop_gt: bool, template: str = "{}"
) -> list[PairedSources]:
    """The pairs of a dataset option section, whose roots may be lists: one entry per pair of roots.

    Raises the errors of `find_pairs`.
    """
    lq, gt = roots_of(opt, "dataroot_lq"), roots_of(opt, "dataroot_gt")
    if len(lq) != len(gt):
        raise InputError(f"dataroot_lq has {len(lq)} entries, but dataroot_gt has {len(gt)}; give the same number")
    lists = lists_of(opt, "meta_info_file", len(gt))
    return [
        find_pairs(*roots, scale=scale, filename_tmpl=template, meta_info=listed, gt_size=gt_size, crop_gt=crop_gt)
        for *roots, listed in zip(lq, gt, lists, strict=True)
    ]


def lists_of(opt: Mapping[str, Any], key: str, count: int) -> list[str | None]:
    """The files that list images, one per root; None for roots without a list."""
    given = opt.get(key)
    lists: list[str | None] = [None] * count if not given else [given] if isinstance(given, str) else list(given)
    if len(lists) != count:
        raise InputError(f"{key} has {len(lists)} lists for {count} roots; give one per root, ~ for none")
    return lists


def degraded_name(name: str, template: str) -> str:
    """The name of the degraded image of a ground truth; raises InputError for an invalid template."""
    folder, _, stem = name.rpartition("/")
    try:
        made, other = template.format(stem), template.format(f"{stem}_")
    except (IndexError, KeyError, ValueError, AttributeError) as error:
        raise _bad_template(template) from error
    if made == other:
        raise _bad_template(template)
    return (f"{folder}/" if folder else "") + made


def _bad_template(template: str) -> InputError:
    return InputError(
        f"filename_tmpl: {template!r} is invalid; expected the degraded name without extension, with {{}} for the "
        "name of the ground truth: {} or {}x4"
    )


def _check_partners(pairs: Sequence[Pair], lq: ImageSource, gt: ImageSource, *, template: str, whole: bool) -> None:
    alone = [pair for pair in pairs if pair.lq not in lq]
    wanted = {pair.lq for pair in pairs}
    spare = [name for name in lq.names if name not in wanted] if whole else []
    if not alone and not spare:
        return
    parts = []
    if alone:
        examples = [f"{pair.gt} (expected {pair.lq})" for pair in alone]
        parts.append(f"{len(alone)} of {len(pairs)} ground-truth images have no partner: {some(examples)}")
    if spare:
        parts.append(f"{len(spare)} degraded images have no ground truth: {some(spare)}")
    raise InputError(
        f"the pairs of lq {lq.path.resolve()} and gt {gt.path.resolve()} are incomplete: {'; '.join(parts)}; add or "
        f"remove images, or correct filename_tmpl (now {template!r})"
    )


def _check_sizes(
    pairs: Sequence[Pair], lq: ImageSource, gt: ImageSource, *, scale: int, gt_size: int | None, crop_gt: bool
) -> None:
    lq_sizes, gt_sizes = lq.sizes([pair.lq for pair in pairs]), gt.sizes([pair.gt for pair in pairs])
    wrong, small = [], []
    for pair in pairs:
        (low, wide), (high, broad) = lq_sizes[pair.lq], gt_sizes[pair.gt]
        spare = (high - low * scale, broad - wide * scale)
        if any(extra < 0 or extra >= (scale if crop_gt else 1) for extra in spare):
            wrong.append(f"{pair.gt}: lq {low}x{wide}, gt {high}x{broad}, expected {low * scale}x{wide * scale}")
        if gt_size and min(high, broad) < gt_size:
            small.append(f"{pair.gt}: {high}x{broad}")
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(pairs)} ground-truth images are not {scale} times their lq (height x width; gt "
            f"{gt.path.resolve()}, lq {lq.path.resolve()}): {some(wrong)}; make the pairs with "
            f"'diffir prepare downscale --scale {scale} --crop-gt', or correct scale"
        )
    if small:
        raise InputError(
            f"{len(small)} of {len(pairs)} images under {gt.path.resolve()} are smaller than the training patch, "
            f"gt_size {gt_size}: {some(small)}; lower gt_size or remove them"
        )


# Datasets of degraded images and their ground truth, or of degraded images alone.


class PairedOptions(Section):
    """Degraded images and their ground truth, from folders, LMDBs or shards."""

    dataroot_gt: Roots = Field(description="Folder, LMDB, shards or list of the ground truth; several roots are mixed.")
    dataroot_lq: Roots = Field(description="Folder, LMDB, shards or list of the degraded images, in the same order.")
    meta_info_file: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    filename_tmpl: str = Field(
        "{}", description="Name of a degraded image, with {} for the name of the ground truth, such as {}x4."
    )
    gt_size: Small | None = Field(None, description="Side of training patches in pixels; required in datasets.train.")
    mini_batch_sizes: list[Small] | None = Field(
        None, description="Progressive training: batch size per GPU of each phase."
    )
    iters: list[Count] | None = Field(None, description="Progressive training: iterations of each phase.")
    gt_sizes: list[Small] | None = Field(None, description="Progressive training: patch size of each phase.")


class FlipOptions(PairedOptions):
    """Degraded images and their ground truth, from folders, LMDBs or shards."""

    use_hflip: bool = Field(False, description="Whether training patches are randomly mirrored.")
    use_rot: bool = Field(
        False, description="Whether training patches are randomly rotated by multiples of 90 degrees."
    )


class DeblurOptions(PairedOptions):
    """Blurred and sharp images of equal size, with patches that grow during training."""

    geometric_augs: bool = Field(False, description="Whether patches are randomly mirrored and rotated.")


class SingleOptions(Section):
    """Degraded images without ground truth; for testing."""

    dataroot_lq: str = Field(description="Folder, LMDB or shards of the images.")


def growing_patches_agree(view: View, at: tuple[str, ...]) -> Found:
    """Progressive training needs all of its lists."""
    lists = ("mini_batch_sizes", "iters", "gt_sizes")
    if any(view.has(*at, key) for key in lists):
        counts = {key: len(view.get(*at, key, default=[])) for key in lists}
        if len(set(counts.values())) > 1:
            lengths = ", ".join(f"{key} has {count}" for key, count in counts.items())
            yield at, f"these lists must have the same length: {lengths}"


logger = logging.getLogger("basicsr")


class PairedDataset(DrawnDataset):
    """Samples {lq, gt, lq_path, gt_path}: float32 RGB (3, H, W) in [0, 1], from folders, LMDBs or shards.

    Training: an aligned random crop of `gt_size` with flips (`use_hflip`) and rotations by 90 degrees (`use_rot`); the
    pair is the draw number modulo the length. Several roots are mixed by `source_weights`. Otherwise whole images, with
    the ground truth cropped to scale times the degraded image. Options are those of BasicSR's PairedImageDataset.
    """

    OPTIONS: ClassVar[Any] = FlipOptions
    RULES = (growing_patches_agree,)
    NEEDED_IN_TRAINING: ClassVar[tuple[str, ...]] = ("gt_size",)
    NEEDS_SCALE: ClassVar[bool] = True

    pads = False  # whether images smaller than a patch are padded

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        check_backend(opt)
        self.scale = int(opt.get("scale") or 1)
        self.training = opt.get("phase") == "train"
        self.gt_size = int(opt["gt_size"]) if self.training else None
        self.curriculum = curriculum_from_options(opt) if self.training else None
        self.flips, self.turns = bool(opt.get("use_hflip")), bool(opt.get("use_rot"))
        self.sources = self.find_pairs(opt)
        self.mixture = Mixture(
            [len(source.pairs) for source in self.sources], opt.get("source_weights") if self.training else None
        )
        sizes = [phase.gt_size for phase in self.curriculum.phases] if self.curriculum else []
        for size in filter(None, (self.gt_size, *sizes)):
            if size % self.scale:
                raise InputError(f"gt_size {size} is not a multiple of scale {self.scale}; choose one that is")
        self.gives_bytes = False

    def find_pairs(self, opt: Mapping[str, Any]) -> list[PairedSources]:
        """The pairs of each root; raises InputError, which lists all problems."""
        return find_all_pairs(
            opt,
            scale=self.scale,
            template=opt.get("filename_tmpl") or "{}",
            gt_size=None if self.pads else self.gt_size,
            crop_gt=not self.training,
        )

    @property
    def paths(self) -> list[dict[str, str]]:
        """The paths of the pairs, as in BasicSR's datasets."""
        return [
            {"lq_path": source.lq.location(pair.lq), "gt_path": source.gt.location(pair.gt)}
            for source, pair in map(self._pair, range(len(self)))
        ]

    def give_bytes(self) -> None:
        """Return uint8 tensors if that is lossless, a quarter of the data to copy; the model converts them to float."""
        self.gives_bytes = all(side.is_8bit for source in self.sources for side in (source.lq, source.gt))

    def __len__(self) -> int:
        return len(self.mixture)

    def _pair(self, draw: int) -> tuple[PairedSources, Pair]:
        place, index = self.mixture.locate(draw)
        return self.sources[place], self.sources[place].pairs[index]

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        number, size = draw if isinstance(draw, Draw) else (draw, None)
        source, pair = self._pair(number)
        whole = source.lq.view(pair.lq), source.gt.view(pair.gt)
        self._check_shapes(source, pair, *whole)
        if self.gt_size is not None:
            lq, gt = self._patch(*whole, size or self.gt_size, self.random(number))
        else:
            lq = whole[0][:]
            gt = whole[1][: lq.shape[0] * self.scale, : lq.shape[1] * self.scale]
        store = to_bytes if self.gives_bytes else to_tensor
        return {
            "lq": store(lq),
            "gt": store(gt),
            "lq_path": source.lq.location(pair.lq),
            "gt_path": source.gt.location(pair.gt),
        }

    def _check_shapes(self, source: PairedSources, pair: Pair, lq: Picture, gt: Picture) -> None:
        """Check sizes again, since files may change after the first check, and the list of an LMDB may be wrong."""
        spare = [high - low * self.scale for high, low in zip(gt.shape[:2], lq.shape[:2], strict=True)]
        allowed = 1 if self.training else self.scale
        small = self.gt_size is not None and not self.pads and min(gt.shape[:2]) < self.gt_size
        if small or not all(0 <= extra < allowed for extra in spare):
            raise InputError(
                f"{source.gt.location(pair.gt)} is {gt.shape[0]}x{gt.shape[1]} and {source.lq.location(pair.lq)} "
                f"{lq.shape[0]}x{lq.shape[1]}, which does not fit scale {self.scale} and gt_size {self.gt_size}; "
                "sizes have changed since the start, was the dataset modified? Build it again"
            )

    def _patch(self, lq: Picture, gt: Picture, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        low = size // self.scale
        if self.pads:
            lq, gt = _at_least(lq, low), _at_least(gt, size)
        top, left = random_corner(rng, lq, low)
        flip = self.flips and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.turns else 0
        cut = lq[top : top + low, left : left + low]
        top, left = top * self.scale, left * self.scale
        gt_cut = gt[top : top + size, left : left + size]
        return turned(cut, flip=flip, turns=turns), turned(gt_cut, flip=flip, turns=turns)


def _at_least(image: Picture, size: int) -> Picture:
    """Pad by reflection at the bottom and the right to at least `size` pixels, as in the published deblurring code."""
    below, beside = (max(0, size - side) for side in image.shape[:2])
    if not below and not beside:
        return image
    padded = cv2.copyMakeBorder(image[:], 0, below, 0, beside, cv2.BORDER_REFLECT)
    return padded.reshape(*padded.shape[:2], -1)  # OpenCV drops the axis of a single channel


class DeblurPairedDataset(PairedDataset):
    """PairedDataset under the published name: scale 1, `geometric_augs` for one of the eight symmetries of a square.

    Images smaller than a patch are padded by reflection at the bottom and the right. `iters`, `gt_sizes`,
    `mini_batch_sizes`: progressive training. The published code reads `batch_size_per_gpu` patches of `gt_size` and
    crops smaller ones from some of them; here only the required pixels are read.
    """

    OPTIONS = DeblurOptions
    WITHOUT_OPTIONS = ("use_hflip", "use_rot")
    NEEDS_SCALE = False

    pads = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        geometric = bool(opt.get("geometric_augs"))
        super().__init__({**opt, "scale": 1, "use_hflip": geometric, "use_rot": geometric})


class SingleDataset(Dataset[dict[str, Any]]):
    """Samples {lq, lq_path}: float32 RGB (3, H, W) in [0, 1], from the folder, LMDB or shards `dataroot_lq`."""

    OPTIONS = SingleOptions

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Raise InputError unless the data of a section can be used."""
        cls(opt)

    def __init__(self, opt: Mapping[str, Any]) -> None:
        check_backend(opt)
        self.opt = opt
        self.lq = open_source(roots_of(opt, "dataroot_lq")[0], meta_info=opt.get("meta_info_file"))
        self._reported = False  # whether the loss of alpha or depth has been reported

    @property
    def paths(self) -> list[str]:
        return [self.lq.location(name) for name in self.lq.names]

    def __len__(self) -> int:
        return len(self.lq.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.lq.names[index]
        image = self.lq.read(name)
        lost = ["its transparency"] * (image.shape[2] in (2, 4)) + ["more than 8 bits"] * (image.dtype != np.uint8)
        if lost and not self._reported:
            self._reported = True
            logger.warning(
                "%s: results are 8-bit RGB and lose %s (unlike those of 'diffir restore'); reported once",
                self.lq.location(name),
                " and ".join(lost),
            )
        return {"lq": to_tensor(image), "lq_path": self.lq.location(name)}
