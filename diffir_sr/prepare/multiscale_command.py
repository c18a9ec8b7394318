"""`diffir prepare multiscale`."""

from __future__ import annotations

import argparse
from typing import Any

from diffir_sr.prepare import multiscale
from diffir_sr.prepare.parsing import add_job, add_overwrite, add_to_8bit, examples, folder, on_disk, say
from diffir_sr.prepare.stored import Job, underway


def add_multiscale_parser(jobs: Any) -> None:
    """Add `diffir prepare multiscale`."""
    parser = add_job(jobs, "multiscale", _multiscale, "make smaller versions of sharp images, for real-world training")
    parser.add_argument(
        "--factors",
        nargs="*",
        type=float,
        default=list(multiscale.FACTORS),
        metavar="F",
        help="sizes <name>T0.png, T1, ... relative to the image (default 0.75 0.5 1/3)",
    )
    parser.add_argument(
        "--shortest",
        type=int,
        default=multiscale.SHORTEST,
        metavar="PIXELS",
        help="a last version with a shortest side of so many pixels; 0: none (default 400)",
    )
    parser.add_argument("--with-original", action="store_true", help="put the images themselves beside their versions")
    add_overwrite(parser)
    add_to_8bit(parser)


def _multiscale(args: argparse.Namespace) -> int:
    shrinks = multiscale.plan(
        folder(args.input),
        args.output,
        factors=tuple(args.factors),
        shortest=args.shortest,
        with_original=args.with_original,
        overwrite=args.overwrite,
        to_8bit=args.to_8bit,
    )
    versions = [version for shrink in shrinks for version in shrink.versions]
    names = ("factors", "shortest", "with_original", "to_8bit")
    job = Job(args.output, "multiscale", {name: getattr(args, name) for name in names}, args.input)
    if args.dry_run:
        job.check(overwrite=args.overwrite)
        pixels = sum(version.size[0] * version.size[1] for version in versions if version.size)
        disk = on_disk(pixels, copied=[shrink.file for shrink in shrinks] if args.with_original else [])
        return say(
            f"would write {len(versions)} images, made of {len(shrinks)}, under {args.output}, {disk}:"
            f"{examples([version.target.path for version in versions])}"
        )
    with underway(job, overwrite=args.overwrite):
        done = multiscale.run(shrinks, jobs=args.jobs)
        small = sum(len(shrink.versions) < len(args.factors) + bool(args.shortest) for shrink in shrinks)
        notes = [f"of {len(shrinks)}"] + ([f"{small} too small for all sizes"] if small else [])
        job.finish((version for one in done for version in one.versions), notes=notes)
    return 0
