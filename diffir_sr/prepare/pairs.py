"""Checking the user's own pairs, and making a clean copy of the valid ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.data.pairs import degraded_name
from diffir_sr.data.sources import FolderSource, ImageSource, open_source, some
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.prepare.jobs import check_apart, on_disk, run_all, say
from diffir_sr.prepare.meta_info import check_output
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, read_storable, relative, underway

_MARK = "\0"  # occurs in no file name


@dataclass(frozen=True)
class Good:
    """A valid pair with the common name `name`; `high` and `low` are (height, width) of ground truth and LQ."""

    name: str
    gt: str
    lq: str
    high: tuple[int, int]
    low: tuple[int, int]


@dataclass(frozen=True)
class PairReport:
    """The valid pairs, and a sentence for each problem."""

    good: list[Good]
    faults: list[str]


def check(
    lq: ImageSource,
    gt: ImageSource,
    *,
    scale: int,
    template: str = "{}",
    gt_template: str = "{}",
    crop_gt: bool = False,
    gt_size: int = 0,
) -> PairReport:
    """Pair two folders or LMDBs, or the two kinds of images in one folder, by the part of names that {} stands for.

    `crop_gt` allows a ground truth to be up to scale - 1 pixels too large.
    """
    if scale < 1:
        raise InputError(f"--scale: expected 1 or more, got {scale}")
    lows, highs = _named(lq, template), _named(gt, gt_template)
    if lq.path.resolve() == gt.path.resolve():
        lows, highs = _told_apart(lows, highs, template, gt_template)
        known = {*lows.values(), *highs.values()}
        faults = [f"{where(lq, name)}: neither {template} nor {gt_template}" for name in lq.names if name not in known]
    else:
        faults = _misnamed(lq, lows, template) + _misnamed(gt, highs, gt_template)
    faults += [
        f"{where(gt, high)}: no degraded image {degraded_name(name, template)}"
        for name, high in highs.items()
        if name not in lows
    ]
    faults += [f"{where(lq, low)}: no ground truth for it" for name, low in lows.items() if name not in highs]
    good = []
    for name in (name for name in highs if name in lows):
        try:
            pair = Good(name, highs[name], lows[name], gt.size(highs[name]), lq.size(lows[name]))
        except InputError as error:
            faults.append(str(error))
            continue
        fault = _misfit(pair, scale=scale, crop_gt=crop_gt, gt_size=gt_size)
        if fault:
            faults.append(f"{where(gt, pair.gt)}: {fault}")
        else:
            good.append(pair)
    return PairReport(good, faults)


def _named(source: ImageSource, template: str) -> dict[str, str]:
    """Names of images by the part that {} stands for; names that do not match the template are left out."""
    before, _, behind = degraded_name(_MARK, template).partition(_MARK)
    found = {}
    for name in source.names:
        folder, _, stem = name.rpartition("/")
        inner = stem[len(before) : len(stem) - len(behind)]
        if inner and stem == before + inner + behind:
            found[f"{folder}/{inner}" if folder else inner] = name
    return found


def _told_apart(
    lows: dict[str, str], highs: dict[str, str], template: str, gt_template: str
) -> tuple[dict[str, str], dict[str, str]]:
    """In one folder, names that match the longer template do not count for the other one, which may be just {}."""
    if template == gt_template:
        raise InputError("lq and gt are the same folder; give --template and --gt-template to distinguish their images")
    if len(template) > len(gt_template):
        taken = set(lows.values())
        return lows, {name: high for name, high in highs.items() if high not in taken}
    taken = set(highs.values())
    return {name: low for name, low in lows.items() if low not in taken}, highs


def _misnamed(source: ImageSource, named: dict[str, str], template: str) -> list[str]:
    known = set(named.values())
    return [f"{where(source, name)}: does not match {template}" for name in source.names if name not in known]


def where(source: ImageSource, name: str) -> str:
    """The file of an image, or the LMDB or folder of shards and its key."""
    place = source.location(name)
    return place if isinstance(source, FolderSource) else f"{source.path}[{place}]"


def listed(report: PairReport, lq: FolderSource, gt: FolderSource) -> str:
    """Lines `ground truth, degraded image`, for the option `meta_info` of RealESRGANPairedDataset."""
    pairs = [(relative(gt.file(pair.gt), gt.path), relative(lq.file(pair.lq), lq.path)) for pair in report.good]
    bad = [name for pair in pairs for name in pair if ", " in name]
    if bad:
        raise InputError(
            f"{len(bad)} names contain a comma and a space, which separate the names in a list: {some(bad)}"
        )
    return "".join(f"{high}, {low}\n" for high, low in pairs)


def _misfit(pair: Good, *, scale: int, crop_gt: bool, gt_size: int) -> str:
    spare = [high - scale * low for high, low in zip(pair.high, pair.low, strict=True)]
    if any(extra < 0 or extra >= (scale if crop_gt else 1) for extra in spare):
        high, low = (f"{size[0]}x{size[1]}" for size in (pair.high, pair.low))
        crop = " (--crop-gt would crop it)" if all(0 <= extra < scale for extra in spare) else ""
        return f"{high}, expected {scale * pair.low[0]}x{scale * pair.low[1]} for its degraded image of {low}{crop}"
    if min(pair.high) < gt_size:
        return f"{pair.high[0]}x{pair.high[1]}, smaller than the patches of {gt_size}"
    return ""


@dataclass(frozen=True)
class Copy:
    """One pair to copy; the ground truth is cropped to `high`."""

    files: tuple[Path, Path]
    targets: tuple[StoredTarget, StoredTarget]
    high: tuple[int, int]
    overwrite: bool
    to_8bit: bool


def plan_copies(
    report: PairReport,
    lq: FolderSource,
    gt: FolderSource,
    output: Path,
    *,
    scale: int,
    folders: tuple[str, str] = ("lq", "gt"),
    overwrite: bool = False,
    to_8bit: bool = False,
) -> list[Copy]:
    """Copies of the valid pairs as <name>.png in two folders under `output`."""
    check_apart(lq.path, output)
    check_apart(gt.path, output)
    return [
        Copy(
            (lq.file(pair.lq), gt.file(pair.gt)),
            (
                StoredTarget(output / folders[0], f"{pair.name}.png", relative(lq.file(pair.lq), lq.path)),
                StoredTarget(output / folders[1], f"{pair.name}.png", relative(gt.file(pair.gt), gt.path)),
            ),
            (scale * pair.low[0], scale * pair.low[1]),
            overwrite,
            to_8bit,
        )
        for pair in report.good
    ]


def copy_pairs(copies: Sequence[Copy], *, jobs: int) -> list[tuple[StoredImage, StoredImage]]:
    """Copy as upright 8-bit PNG without alpha; existing files are kept unless `overwrite`."""
    return run_all(_copy, copies, jobs=jobs, label="pairs")


def _copy(copy: Copy) -> tuple[StoredImage, StoredImage]:
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


# `diffir prepare pairs`.


def command(args: argparse.Namespace) -> int:
    """`diffir prepare pairs`."""
    lq, gt = open_source(args.lq), open_source(args.gt)
    report = check(
        lq,
        gt,
        scale=args.scale,
        template=args.template,
        gt_template=args.gt_template,
        crop_gt=args.crop_gt,
        gt_size=args.gt_size,
    )
    for fault in report.faults:
        sys.stderr.write(f"{fault}\n")
    summary = f"{len(report.good)} pairs at scale {args.scale}, {len(report.faults)} faults"
    if report.faults and not args.skip_bad:
        raise InputError(f"{summary}; fix them, or give --skip-bad to leave them out")
    if not report.good:
        raise InputError(f"{summary}; nothing is left")
    if args.output is None and args.list is None:
        return say(summary)
    if not isinstance(lq, FolderSource) or not isinstance(gt, FolderSource):
        raise InputError(
            "pairs of LMDBs and shards can only be checked; give folders, or leave out --output and --list"
        )
    if args.list is not None:
        _write_list(args, listed(report, lq, gt))
    if args.output is not None:
        _copy_pairs(args, report, lq, gt, summary)
    return 0


def _write_list(args: argparse.Namespace, text: str) -> None:
    check_output(args.list, overwrite=args.overwrite)
    count = text.count("\n")
    if args.dry_run:
        say(f"would list {count} pairs in {args.list}")
        return
    write_report(text, args.list)
    say(f"{args.list}: {count} pairs")


def _copy_pairs(args: argparse.Namespace, report: PairReport, lq: FolderSource, gt: FolderSource, summary: str) -> None:
    low, high = args.folders
    if (args.output / low).resolve() == (args.output / high).resolve():
        raise InputError(f"--folders: expected two names, got {low!r} twice")
    copies = plan_copies(
        report,
        lq,
        gt,
        args.output,
        scale=args.scale,
        folders=(low, high),
        overwrite=args.overwrite,
        to_8bit=args.to_8bit,
    )
    names = ("scale", "template", "gt_template", "crop_gt", "to_8bit")
    parameters = {name: getattr(args, name) for name in names}
    jobs = [
        PrepareJob(args.output / side, "pairs", parameters, root) for side, root in ((low, args.lq), (high, args.gt))
    ]
    for job in jobs:
        job.check(overwrite=args.overwrite)
    if args.dry_run:
        pixels = sum(pair.high[0] * pair.high[1] + pair.low[0] * pair.low[1] for pair in report.good)
        say(f"{summary}; would write {len(copies)} pairs under {args.output}, {on_disk(pixels)}")
        return
    with underway(*jobs, overwrite=args.overwrite):
        done = copy_pairs(copies, jobs=args.jobs)
        for number, job in enumerate(jobs):
            job.finish(one[number] for one in done)
