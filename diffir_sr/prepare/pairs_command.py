"""`diffir prepare pairs`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError
from diffir_sr.prepare import pairs
from diffir_sr.prepare.parsing import add_overwrite, add_running, add_to_8bit, folder, on_disk, say
from diffir_sr.prepare.stored import Job


def add_pairs_parser(jobs: Any) -> None:
    """Add `diffir prepare pairs`."""
    what = "check pairs of your own and, with -o, make a clean copy of them"
    parser = jobs.add_parser("pairs", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("lq", type=Path, help="folder of degraded images, sub-folders included")
    parser.add_argument("gt", type=Path, help="folder of their ground truth")
    parser.add_argument(
        "-o", "--output", type=Path, help="write lq and gt under it, PNG, called alike (default: check)"
    )
    parser.add_argument("--scale", type=int, default=1, help="how many times larger the ground truth is (default 1)")
    parser.add_argument(
        "--template", default="{}", metavar="{}x4", help="name of a degraded image, {} being the ground truth's"
    )
    parser.add_argument("--crop-gt", action="store_true", help="cut ground truth to multiples of scale")
    parser.add_argument("--gt-size", type=int, default=0, help="also refuse ground truth smaller than such patches")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what does not fit (default: an error)")
    add_overwrite(parser)
    add_to_8bit(parser)
    add_running(parser, _pairs)


def _pairs(args: argparse.Namespace) -> int:
    lq, gt = folder(args.lq), folder(args.gt)
    report = pairs.check(lq, gt, scale=args.scale, template=args.template, crop_gt=args.crop_gt, gt_size=args.gt_size)
    for fault in report.faults:
        sys.stderr.write(f"{fault}\n")
    told = f"{len(report.good)} pairs at scale {args.scale}, {len(report.faults)} faults"
    if report.faults and not args.skip_bad:
        raise InputError(f"{told}; mend them, or give --skip-bad to leave them out")
    if not report.good:
        raise InputError(f"{told}; nothing is left")
    if args.output is None:
        return say(told)
    copies = pairs.plan(report, lq, gt, args.output, scale=args.scale, overwrite=args.overwrite, to_8bit=args.to_8bit)
    if args.dry_run:
        pixels = sum(pair.high[0] * pair.high[1] + pair.low[0] * pair.low[1] for pair in report.good)
        return say(f"{told}; would write {len(copies)} pairs under {args.output}, {on_disk(pixels)}")
    parameters = {"scale": args.scale, "template": args.template, "crop_gt": args.crop_gt, "to_8bit": args.to_8bit}
    jobs = [Job(args.output / side, "pairs", parameters, root) for side, root in (("lq", args.lq), ("gt", args.gt))]
    for job in jobs:
        job.begin(overwrite=args.overwrite)
    done = pairs.run(copies, jobs=args.jobs)
    for number, job in enumerate(jobs):
        job.finish(one[number] for one in done)
    return 0
