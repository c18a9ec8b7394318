"""`diffir prepare subimages | downscale | meta | lmdb`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.prepare import downscale, lmdb_build, meta_info, subimages
from diffir_sr.prepare.jobs import default_jobs


def add_prepare_parser(commands: Any) -> None:
    """Add `diffir prepare` and its jobs."""
    parser = commands.add_parser("prepare", help="make training and test data")
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    cut = _add(jobs, "subimages", _subimages, "cut images into overlapping squares <name>_s001.png ...")
    cut.add_argument("--size", type=int, default=480, help="side of a square in pixels (default 480)")
    cut.add_argument("--step", type=int, default=240, help="pixels from one square to the next (default 240)")
    cut.add_argument(
        "--threshold",
        type=int,
        default=0,
        help="a rest of more pixels than this gets a last, flush square (default 0)",
    )
    cut.add_argument("--compress-level", type=int, default=3, help="PNG compression, 0 to 9 (default 3)")
    _add_overwrite(cut)

    shrink = _add(jobs, "downscale", _downscale, "make low-resolution images")
    shrink.add_argument("--scale", type=int, required=True, help="how many times smaller")
    shrink.add_argument(
        "--method",
        choices=downscale.METHODS,
        default="bicubic",
        help="bicubic is MATLAB's, antialiased (default)",
    )
    shrink.add_argument("--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, here")
    _add_overwrite(shrink)

    meta = _add(jobs, "meta", _meta, "list the images of a folder: 'name (h,w,c)' per line")
    _add_overwrite(meta)

    build = _add(jobs, "lmdb", _lmdb, "put the images of a folder into one LMDB")
    build.add_argument("--pair-with", type=Path, metavar="GT", help="folder or LMDB that must hold the same names")
    build.add_argument("--scale", type=int, default=1, help="how many times larger the images of --pair-with are")
    build.add_argument("--compress-level", type=int, default=1, help="PNG compression, 0 to 9 (default 1)")
    build.add_argument("--to-8bit", action="store_true", help="round 16-bit images to 8 bits")


def _add(jobs: Any, name: str, run: Any, what: str) -> argparse.ArgumentParser:
    parser = jobs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help="folder of images, sub-folders included")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.set_defaults(run=run)
    return parser


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="make again what exists (default: keep it)")


def _folder(path: Path) -> FolderSource:
    source = open_source(path)
    if not isinstance(source, FolderSource):
        raise InputError(f"{path.absolute()} is an LMDB; expected a folder of image files")
    return source


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0


def _subimages(args: argparse.Namespace) -> int:
    cuts = subimages.plan(
        _folder(args.input),
        args.output,
        size=args.size,
        step=args.step,
        threshold=args.threshold,
        compress_level=args.compress_level,
    )
    count = sum(len(cut.outputs) for cut in cuts)
    if args.dry_run:
        return _say(f"would cut {len(cuts)} images into {count} squares of {args.size} pixels under {args.output}")
    written, kept = subimages.run(cuts, jobs=args.jobs, overwrite=args.overwrite)
    return _say(f"{args.output}: {count} squares of {len(cuts)} images ({written} written, {kept} kept)")


def _downscale(args: argparse.Namespace) -> int:
    shrinks = downscale.plan(
        _folder(args.input),
        args.output,
        scale=args.scale,
        method=args.method,
        crop_gt=args.crop_gt,
        overwrite=args.overwrite,
    )
    if args.dry_run:
        also = f", cropped ground truth under {args.crop_gt}" if args.crop_gt else ""
        return _say(f"would write {len(shrinks)} images, x1/{args.scale} {args.method}, under {args.output}{also}")
    written, kept = downscale.run(shrinks, jobs=args.jobs)
    return _say(f"{args.output}: {len(shrinks)} images, x1/{args.scale} {args.method} ({written} made, {kept} kept)")


def _meta(args: argparse.Namespace) -> int:
    source = open_source(args.input)
    if args.dry_run:
        return _say(f"would list {len(source.names)} images in {args.output}")
    return _say(f"{args.output}: {meta_info.write_meta(source, args.output, overwrite=args.overwrite)} images")


def _lmdb(args: argparse.Namespace) -> int:
    source = _folder(args.input)
    entries = lmdb_build.plan(source, compress_level=args.compress_level, to_8bit=args.to_8bit)
    if args.pair_with:
        lmdb_build.check_partner(args.input, args.pair_with, scale=args.scale)
    if args.dry_run:
        return _say(f"would store {len(entries)} images in {args.output}")
    total, dropped = lmdb_build.build(entries, args.output, jobs=args.jobs)
    notes = f", alpha dropped in {dropped}" if dropped else ""
    notes += f", paired with {args.pair_with}" if args.pair_with else ""
    return _say(f"{args.output}: {len(entries)} images, {total / 2**20:.1f} MiB{notes}")
