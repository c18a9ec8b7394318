"""`diffir prepare pairs`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.prepare import pairs
from diffir_sr.prepare.meta_info import check_output
from diffir_sr.prepare.parsing import add_overwrite, add_running, add_to_8bit, on_disk, say
from diffir_sr.prepare.stored import Job, underway


def add_pairs_parser(jobs: Any) -> None:
    """Add `diffir prepare pairs`."""
    what = "check pairs of your own and, with -o, make a clean copy of them"
    parser = jobs.add_parser("pairs", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("lq", type=Path, help="folder (or, to check only, LMDB) of degraded images")
    parser.add_argument("gt", type=Path, help="that of their ground truth; it may be the same folder")
    parser.add_argument(
        "-o", "--output", type=Path, help="write lq and gt under it, PNG, called alike (default: check)"
    )
    parser.add_argument(
        "--folders",
        nargs=2,
        default=["lq", "gt"],
        metavar=("LQ", "GT"),
        help="what these two are called (default lq gt)",
    )
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="write lines 'gt, lq': meta_info of a RealESRGANPairedDataset"
    )
    parser.add_argument("--scale", type=int, default=1, help="how many times larger the ground truth is (default 1)")
    parser.add_argument(
        "--template", default="{}", metavar="{}x4", help="name of a degraded image, {} being what both names share"
    )
    parser.add_argument("--gt-template", default="{}", metavar="{}_HR", help="name of a ground truth, likewise")
    parser.add_argument("--crop-gt", action="store_true", help="cut ground truth to multiples of scale")
    parser.add_argument("--gt-size", type=int, default=0, help="also refuse ground truth smaller than such patches")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what does not fit (default: an error)")
    add_overwrite(parser)
    add_to_8bit(parser)
    add_running(parser, _pairs)


def _pairs(args: argparse.Namespace) -> int:
    lq, gt = open_source(args.lq), open_source(args.gt)
    report = pairs.check(
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
    told = f"{len(report.good)} pairs at scale {args.scale}, {len(report.faults)} faults"
    if report.faults and not args.skip_bad:
        raise InputError(f"{told}; mend them, or give --skip-bad to leave them out")
    if not report.good:
        raise InputError(f"{told}; nothing is left")
    if args.output is None and args.list is None:
        return say(told)
    if not isinstance(lq, FolderSource) or not isinstance(gt, FolderSource):
        raise InputError("pairs of LMDBs are checked only; name folders, or leave out --output and --list")
    if args.list is not None:
        _write_list(args, pairs.listed(report, lq, gt))
    if args.output is not None:
        _copy(args, report, lq, gt, told)
    return 0


def _write_list(args: argparse.Namespace, text: str) -> None:
    check_output(args.list, overwrite=args.overwrite)
    count = text.count("\n")
    if args.dry_run:
        say(f"would list {count} pairs in {args.list}")
        return
    write_report(text, args.list)
    say(f"{args.list}: {count} pairs")


def _copy(args: argparse.Namespace, report: pairs.Report, lq: FolderSource, gt: FolderSource, told: str) -> None:
    low, high = args.folders
    if (args.output / low).resolve() == (args.output / high).resolve():
        raise InputError(f"--folders: expected two names, got {low!r} twice")
    copies = pairs.plan(
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
    jobs = [Job(args.output / side, "pairs", parameters, root) for side, root in ((low, args.lq), (high, args.gt))]
    for job in jobs:
        job.check(overwrite=args.overwrite)
    if args.dry_run:
        pixels = sum(pair.high[0] * pair.high[1] + pair.low[0] * pair.low[1] for pair in report.good)
        say(f"{told}; would write {len(copies)} pairs under {args.output}, {on_disk(pixels)}")
        return
    with underway(*jobs, overwrite=args.overwrite):
        done = pairs.run(copies, jobs=args.jobs)
        for number, job in enumerate(jobs):
            job.finish(one[number] for one in done)
