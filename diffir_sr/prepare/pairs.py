"""Pairs of one's own: what is wrong with them, and a clean copy of those that are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.data.pairs import degraded_name
from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import check_apart, run_all
from diffir_sr.prepare.storable import read_storable
from diffir_sr.prepare.stored import Stored, Target, relative


@dataclass(frozen=True)
class Good:
    """A pair that fits: ground truth of `high`, degraded image of `low`, each (height, width)."""

    gt: str
    lq: str
    high: tuple[int, int]
    low: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """The pairs that fit, and a sentence for each image that does not."""

    good: list[Good]
    faults: list[str]


def check(
    lq: FolderSource, gt: FolderSource, *, scale: int, template: str = "{}", crop_gt: bool = False, gt_size: int = 0
) -> Report:
    """Pair two folders by name; `crop_gt` lets a ground truth be up to scale - 1 pixels larger than it should."""
    if scale < 1:
        raise InputError(f"--scale: expected 1 or more, got {scale}")
    names = {name: degraded_name(name, template) for name in gt.names}
    faults = [f"{gt.file(name)}: no degraded image {low}" for name, low in names.items() if low not in lq]
    wanted = set(names.values())
    faults += [f"{lq.file(name)}: no ground truth for it" for name in lq.names if name not in wanted]
    good = []
    for name, low in names.items():
        if low not in lq:
            continue
        try:
            pair = Good(name, low, gt.size(name), lq.size(low))
        except InputError as error:
            faults.append(str(error))
            continue
        fault = _misfit(pair, scale=scale, crop_gt=crop_gt, gt_size=gt_size)
        if fault:
            faults.append(f"{gt.file(name)}: {fault}")
        else:
            good.append(pair)
    return Report(good, faults)


def _misfit(pair: Good, *, scale: int, crop_gt: bool, gt_size: int) -> str:
    spare = [high - scale * low for high, low in zip(pair.high, pair.low, strict=True)]
    if any(extra < 0 or extra >= (scale if crop_gt else 1) for extra in spare):
        high, low = (f"{size[0]}x{size[1]}" for size in (pair.high, pair.low))
        crop = " (--crop-gt would cut the rest off)" if all(0 <= extra < scale for extra in spare) else ""
        return f"{high}, expected {scale * pair.low[0]}x{scale * pair.low[1]} for its degraded image of {low}{crop}"
    if min(pair.high) < gt_size:
        return f"{pair.high[0]}x{pair.high[1]}, smaller than the patches of {gt_size}"
    return ""


@dataclass(frozen=True)
class Copy:
    """One pair to copy; the ground truth is cut to `high`."""

    files: tuple[Path, Path]
    targets: tuple[Target, Target]
    high: tuple[int, int]
    overwrite: bool
    to_8bit: bool


def plan(
    report: Report,
    lq: FolderSource,
    gt: FolderSource,
    output: Path,
    *,
    scale: int,
    overwrite: bool = False,
    to_8bit: bool = False,
) -> list[Copy]:
    """Copies of the good pairs as <output>/lq/<name>.png and <output>/gt/<name>.png, called as the ground truth is."""
    check_apart(lq.path, output)
    check_apart(gt.path, output)
    return [
        Copy(
            (lq.file(pair.lq), gt.file(pair.gt)),
            (
                Target(output / "lq", f"{pair.gt}.png", relative(lq.file(pair.lq), lq.path)),
                Target(output / "gt", f"{pair.gt}.png", relative(gt.file(pair.gt), gt.path)),
            ),
            (scale * pair.low[0], scale * pair.low[1]),
            overwrite,
            to_8bit,
        )
        for pair in report.good
    ]


def run(copies: Sequence[Copy], *, jobs: int) -> list[tuple[Stored, Stored]]:
    """Copy, as 8-bit PNG without alpha, upright; what exists is kept unless asked to overwrite."""
    return run_all(_copy, copies, jobs=jobs, label="pairs")


def _copy(copy: Copy) -> tuple[Stored, Stored]:
    done = []
    for file, target, crops in zip(copy.files, copy.targets, (False, True), strict=True):
        if not copy.overwrite and target.path.exists():
            done.append(target.keep())
            continue
        stored = read_storable(file, to_8bit=copy.to_8bit)
        image = stored.image[: copy.high[0], : copy.high[1]] if crops else stored.image
        if stored.png is not None and image.shape == stored.image.shape:
            done.append(target.store(stored.png, image))
        else:
            done.append(target.store_png(np.ascontiguousarray(image)))
    return done[0], done[1]
