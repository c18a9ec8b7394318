"""Which degraded image belongs to which ground truth, and every fault of a paired set in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffir_sr.data.basicsr_limits import check_basicsr_reads
from diffir_sr.data.sources import Source, check_backend, is_lmdb, open_source, some
from diffir_sr.errors import InputError


@dataclass(frozen=True)
class Pair:
    """Names of a degraded image and its ground truth, each in its own source."""

    lq: str
    gt: str


@dataclass(frozen=True)
class PairedSources:
    """Two sources and the pairs between them."""

    lq: Source
    gt: Source
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
    """Pair two folders or LMDBs by name without extension; raises InputError that lists what does not fit.

    `filename_tmpl` makes the degraded name of a ground-truth name ('{}x4'). `meta_info` restricts to the names
    it lists. `gt_size` demands at least that size in pixels. `crop_gt` allows a ground truth that is up to
    scale - 1 pixels larger (evaluation crops it).
    """
    if scale < 1:
        raise InputError(f"scale: expected 1 or more, got {scale}")
    sources = open_source(lq), open_source(gt, meta_info=meta_info)
    pairs = [Pair(degraded_name(name, filename_tmpl), name) for name in sources[1].names]
    _check_partners(pairs, *sources, template=filename_tmpl, whole=not meta_info)
    _check_sizes(pairs, *sources, scale=scale, gt_size=gt_size, crop_gt=crop_gt)
    return PairedSources(*sources, pairs)


def degraded_name(name: str, template: str) -> str:
    """The name of the degraded image that belongs to a ground truth; raises InputError for an unusable template."""
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
        f"filename_tmpl: {template!r} makes no name; it is the degraded name without extension, with {{}} for the "
        "ground truth's: {} or {}x4"
    )


def _check_partners(pairs: Sequence[Pair], lq: Source, gt: Source, *, template: str, whole: bool) -> None:
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
        f"the pairs of lq {lq.path.resolve()} and gt {gt.path.resolve()} are not complete: {'; '.join(parts)}; add or "
        f"remove images, or correct filename_tmpl (now {template!r})"
    )


def _check_sizes(
    pairs: Sequence[Pair], lq: Source, gt: Source, *, scale: int, gt_size: int | None, crop_gt: bool
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


def check_paired_options(opt: Mapping[str, Any]) -> None:
    """Raise InputError unless the data of a dataset option section can be used; other dataset types pass.

    Also guards BasicSR's own classes, whose messages name neither path nor remedy.
    """
    kind = opt.get("type")
    if kind in ("SingleDataset", "SingleImageDataset"):
        check_backend(opt)
        source = open_source(_root(opt, "dataroot_lq"), meta_info=opt.get("meta_info_file"))
        if kind == "SingleImageDataset":
            check_basicsr_reads([source], listed=bool(opt.get("meta_info_file")))
    elif kind in ("PairedDataset", "PairedImageDataset"):
        roots = _root(opt, "dataroot_lq"), _root(opt, "dataroot_gt")
        check_backend(opt)
        training = opt.get("phase") == "train"
        # From LMDBs, BasicSR's class takes every key as it is.
        plain = kind == "PairedImageDataset" and all(is_lmdb(Path(root).expanduser()) for root in roots)
        found = find_pairs(
            *roots,
            scale=int(opt.get("scale", 1)),
            filename_tmpl="{}" if plain else opt.get("filename_tmpl") or "{}",
            meta_info=None if plain else opt.get("meta_info_file"),
            gt_size=opt.get("gt_size") if training else None,
            crop_gt=not training,
        )
        if kind == "PairedImageDataset":
            names = [[pair.lq for pair in found.pairs], [pair.gt for pair in found.pairs]]
            check_basicsr_reads([found.lq, found.gt], listed=bool(opt.get("meta_info_file")), paired=names)


def _root(opt: Mapping[str, Any], key: str) -> str:
    root = opt.get(key)
    if not root:
        raise InputError(f"{key} is not given; name a folder of images or an LMDB")
    return root
