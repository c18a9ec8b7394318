"""Which degraded image belongs to which ground truth, and every fault of a paired set in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffir_sr.data.sources import Source, open_source, roots_of, some
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


def pair_listed(
    pairs: list[Pair], lq: Source, gt: Source, *, scale: int, gt_size: int | None, crop_gt: bool
) -> PairedSources:
    """Pairs that a list names; raises InputError for those that are absent or do not fit, as `find_pairs` does."""
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
    """The pairs of a dataset option section, whose roots may be lists: one entry for each pair of roots.

    Raises as `find_pairs` does.
    """
    lq, gt = roots_of(opt, "dataroot_lq"), roots_of(opt, "dataroot_gt")
    if len(lq) != len(gt):
        raise InputError(f"dataroot_lq names {len(lq)} places and dataroot_gt {len(gt)}; give as many of each")
    lists = lists_of(opt, "meta_info_file", len(gt))
    return [
        find_pairs(*roots, scale=scale, filename_tmpl=template, meta_info=listed, gt_size=gt_size, crop_gt=crop_gt)
        for *roots, listed in zip(lq, gt, lists, strict=True)
    ]


def lists_of(opt: Mapping[str, Any], key: str, count: int) -> list[str | None]:
    """The files that list images, one for each of `count` roots; None for those without."""
    given = opt.get(key)
    lists: list[str | None] = [None] * count if not given else [given] if isinstance(given, str) else list(given)
    if len(lists) != count:
        raise InputError(f"{key} names {len(lists)} lists for {count} roots; give one for each, ~ for none")
    return lists


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
