"""`diffir prepare shake`."""

from __future__ import annotations

import argparse
from typing import Any

from diffir_sr.prepare import shake
from diffir_sr.prepare.parsing import add_job, add_overwrite, add_to_8bit, folder, say
from diffir_sr.prepare.stored import Job, underway


def add_shake_parser(jobs: Any) -> None:
    """Add `diffir prepare shake`."""
    what = "blur images as a shaking camera does (frames along a random path, averaged in linear light)"
    parser = add_job(jobs, "shake", _shake, what)
    parser.add_argument(
        "--length",
        nargs=2,
        type=float,
        default=[4.0, 12.0],
        metavar=("MIN", "MAX"),
        help="pixels that the camera travels during an exposure (default 4 12); borders of MAX + 1 are cut off",
    )
    parser.add_argument("--count", type=int, default=1, help="exposures of each image (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="a path follows from seed and name (default 0)")
    add_overwrite(parser)
    add_to_8bit(parser)


def _shake(args: argparse.Namespace) -> int:
    source = folder(args.input)
    given = shake.Recipe((args.length[0], args.length[1]), args.seed)
    tasks = shake.plan(source, args.output, given, count=args.count, overwrite=args.overwrite, to_8bit=args.to_8bit)
    parameters = {"length": list(given.length), "seed": given.seed, "count": args.count, "to_8bit": args.to_8bit}
    jobs = [Job(args.output / side, "shake", parameters, source.path) for side in ("input", "target")]
    for job in jobs:
        job.check(overwrite=args.overwrite)
    if args.dry_run:
        return say(f"would write {len(tasks)} pairs to {args.output}/input and {args.output}/target")
    with underway(*jobs, overwrite=args.overwrite):
        done = shake.run(tasks, jobs=args.jobs)
        for number, job in enumerate(jobs):
            job.finish(pair[number] for pair in done)
    return 0
