"""Which degraded image belongs to which ground truth, and every fault of a paired set in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffir_sr.data.sources import Source, is_lmdb, open_source
from diffir_sr.errors import InputError

_SHOWN = 10


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
    sources = open_source(lq), open_source(gt)
    names = _listed(meta_info, sources[1]) if meta_info else sources[1].names
    pairs = [Pair(_degraded_name(name, filename_tmpl), name) for name in names]
    _check_partners(pairs, *sources, template=filename_tmpl, whole=meta_info is None)
    _check_sizes(pairs, *sources, scale=scale, gt_size=gt_size, crop_gt=crop_gt)
    return PairedSources(*sources, pairs)


def _degraded_name(name: str, template: str) -> str:
    folder, _, stem = name.rpartition("/")
    return (f"{folder}/" if folder else "") + template.format(stem)


def _listed(meta_info: str | Path, gt: Source) -> list[str]:
    path = Path(meta_info).expanduser()
    if not path.is_file():
        raise InputError(f"no such meta_info file: {path.absolute()}; leave the option out, it is not needed")
    lines = [line.split(" (")[0].strip() for line in path.read_text().splitlines() if line.strip()]
    names = [str(Path(line).with_suffix("")) if line.lower().endswith(_suffixes()) else line for line in lines]
    absent = [name for name in names if name not in gt]
    if absent:
        raise InputError(
            f"{path.absolute()} names {len(names)} images, {len(absent)} of them are not under {gt.path.resolve()}: "
            f"{_some(absent[:5], len(absent))}; make a new list with 'diffir prepare meta', or leave meta_info_file out"
        )
    if not names:
        raise InputError(f"{path.absolute()}: lists 0 images")
    return names


def _suffixes() -> tuple[str, ...]:
    from diffir_sr.data.images import SUFFIXES

    return SUFFIXES


def _check_partners(pairs: Sequence[Pair], lq: Source, gt: Source, *, template: str, whole: bool) -> None:
    alone = [pair for pair in pairs if pair.lq not in lq]
    wanted = {pair.lq for pair in pairs}
    spare = [name for name in lq.names if name not in wanted] if whole else []
    if not alone and not spare:
        return
    parts = []
    if alone:
        examples = [f"{pair.gt} (expected {pair.lq})" for pair in alone[:_SHOWN]]
        parts.append(f"{len(alone)} of {len(pairs)} ground-truth images have no partner: {_some(examples, len(alone))}")
    if spare:
        parts.append(f"{len(spare)} degraded images have no ground truth: {_some(spare[:_SHOWN], len(spare))}")
    raise InputError(
        f"the pairs of lq {lq.path.resolve()} and gt {gt.path.resolve()} are not complete: {'; '.join(parts)}; add or "
        f"remove images, or correct filename_tmpl (now {template!r})"
    )


def _check_sizes(
    pairs: Sequence[Pair], lq: Source, gt: Source, *, scale: int, gt_size: int | None, crop_gt: bool
) -> None:
    wrong, small = [], []
    for pair in pairs:
        (low, wide), (high, broad) = lq.size(pair.lq), gt.size(pair.gt)
        spare = (high - low * scale, broad - wide * scale)
        if any(extra < 0 or extra >= (scale if crop_gt else 1) for extra in spare):
            wrong.append(f"{pair.gt}: lq {low}x{wide}, gt {high}x{broad}, expected {low * scale}x{wide * scale}")
        if gt_size and min(high, broad) < gt_size:
            small.append(f"{pair.gt}: {high}x{broad}")
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(pairs)} ground-truth images are not {scale} times their lq (height x width; gt "
            f"{gt.path.resolve()}, lq {lq.path.resolve()}): {_some(wrong[:_SHOWN], len(wrong))}; make the pairs with "
            f"'diffir prepare downscale --scale {scale} --crop-gt', or correct scale"
        )
    if small:
        raise InputError(
            f"{len(small)} of {len(pairs)} images under {gt.path.resolve()} are smaller than the training patch, "
            f"gt_size {gt_size}: {_some(small[:_SHOWN], len(small))}; lower gt_size or remove them"
        )


def _some(examples: Sequence[str], count: int) -> str:
    more = f", ... ({count - len(examples)} more)" if count > len(examples) else ""
    return ", ".join(examples) + more


def check_paired_options(opt: Mapping[str, Any]) -> None:
    """Raise InputError unless the data of a dataset option section can be used; other dataset types pass.

    Also guards BasicSR's own classes, whose messages name neither path nor remedy.
    """
    kind, roots = opt.get("type"), (opt.get("dataroot_lq"), opt.get("dataroot_gt"))
    if kind in ("SingleDataset", "SingleImageDataset"):
        _check_backend(opt, roots[:1])
        open_source(_root(opt, "dataroot_lq"))
    elif kind in ("PairedDataset", "PairedImageDataset"):
        _check_backend(opt, roots)
        training = opt.get("phase") == "train"
        find_pairs(
            _root(opt, "dataroot_lq"),
            _root(opt, "dataroot_gt"),
            scale=int(opt.get("scale", 1)),
            filename_tmpl="{}" if _is_lmdb_pair(roots) else opt.get("filename_tmpl", "{}"),
            meta_info=None if _is_lmdb_pair(roots) else opt.get("meta_info_file"),
            gt_size=opt.get("gt_size") if training else None,
            crop_gt=not training,
        )


def _is_lmdb_pair(roots: Sequence[Any]) -> bool:
    return all(root is not None and is_lmdb(Path(root).expanduser()) for root in roots)


def _root(opt: Mapping[str, Any], key: str) -> str:
    root = opt.get(key)
    if not root:
        raise InputError(f"{key} is not given; name a folder of images or an LMDB")
    return root


def _check_backend(opt: Mapping[str, Any], roots: Sequence[Any]) -> None:
    backend = (opt.get("io_backend") or {}).get("type")
    for root in roots:
        if backend is None or root is None:
            continue
        found = "lmdb" if is_lmdb(Path(root).expanduser()) else "disk"
        if backend in ("lmdb", "disk") and backend != found:
            meant = "an LMDB" if found == "lmdb" else "a folder of image files"
            raise InputError(
                f"io_backend.type is {backend!r}, but {Path(root).absolute()} is {meant}; set it to {found!r}"
            )
