"""`diffir prepare subimages | downscale | meta | lmdb`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.prepare import downscale, lmdb_build, meta_info, subimages
from diffir_sr.prepare.degrade_command import add_degrade_parser
from diffir_sr.prepare.jobs import default_jobs
from diffir_sr.prepare.masks_command import add_masks_parser

_SHOWN = 10


def add_prepare_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir prepare` and its jobs; each sets `run`, from parsed arguments to exit code."""
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
    cut.add_argument(
        "--drop-suffix",
        default="",
        metavar="x4",
        help="leave this out of names, so that squares of 0801x4 are named as those of their ground truth 0801",
    )
    _add_overwrite(cut)
    _add_to_8bit(cut)

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
    _add_to_8bit(shrink)

    meta = _add(jobs, "meta", _meta, "list the images of a folder: 'name (h,w,c)' per line")
    meta.add_argument("--overwrite", action="store_true", help="replace a list that exists (default: an error)")

    add_degrade_parser(jobs)
    add_masks_parser(jobs)

    build = _add(jobs, "lmdb", _lmdb, "put the images of a folder into one LMDB")
    build.add_argument("--pair-with", type=Path, metavar="GT", help="folder or LMDB that must hold the same names")
    build.add_argument("--scale", type=int, default=1, help="how many times larger the images of --pair-with are")
    build.add_argument("--compress-level", type=int, default=1, help="PNG compression, 0 to 9 (default 1)")
    build.add_argument(
        "--codec",
        choices=["png", "raw"],
        default="png",
        help="raw: bare pixels, larger and much faster to cut patches from, for PairedDataset alone (default png)",
    )
    _add_to_8bit(build)


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


def _add_to_8bit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to-8bit", action="store_true", help="round 16-bit images to 8 bits (default: an error)")


def _folder(path: Path) -> FolderSource:
    source = open_source(path)
    if not isinstance(source, FolderSource):
        raise InputError(f"{path.absolute()} is an LMDB; expected a folder of image files")
    return source


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0


def _examples(paths: list[Path]) -> str:
    """The first files of a plan, one per line."""
    lines = [f"\n  {path}" for path in paths[:_SHOWN]]
    return "".join(lines) + (f"\n  ... {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


class _Outcome(Protocol):
    @property
    def dropped_alpha(self) -> bool: ...


def _alpha_note(done: Sequence[_Outcome]) -> str:
    count = sum(one.dropped_alpha for one in done)
    return f", alpha dropped in {count}" if count else ""


def _subimages(args: argparse.Namespace) -> int:
    cuts = subimages.plan(
        _folder(args.input),
        args.output,
        size=args.size,
        step=args.step,
        threshold=args.threshold,
        compress_level=args.compress_level,
        drop_suffix=args.drop_suffix,
        to_8bit=args.to_8bit,
    )
    paths = [path for cut in cuts for path, _, _ in cut.outputs]
    count = len(paths)
    if args.dry_run:
        return _say(
            f"would cut {len(cuts)} images into {count} squares of {args.size} pixels under {args.output}:"
            f"{_examples(paths)}"
        )
    done = subimages.run(cuts, jobs=args.jobs, overwrite=args.overwrite)
    written = sum(one.written for one in done)
    return _say(
        f"{args.output}: {count} squares of {len(cuts)} images ({written} written, {count - written} kept)"
        f"{_alpha_note(done)}"
    )


def _downscale(args: argparse.Namespace) -> int:
    shrinks = downscale.plan(
        _folder(args.input),
        args.output,
        scale=args.scale,
        method=args.method,
        crop_gt=args.crop_gt,
        overwrite=args.overwrite,
        to_8bit=args.to_8bit,
    )
    what = f"{len(shrinks)} images, x1/{args.scale} {args.method}"
    if args.dry_run:
        also = f", cropped ground truth under {args.crop_gt}" if args.crop_gt else ""
        paths = _examples([shrink.output for shrink in shrinks])
        return _say(f"would write {what}, under {args.output}{also}:{paths}")
    done = downscale.run(shrinks, jobs=args.jobs)
    made = sum(one.written for one in done)
    return _say(f"{args.output}: {what} ({made} made, {len(done) - made} kept){_alpha_note(done)}")


def _meta(args: argparse.Namespace) -> int:
    source = _folder(args.input)
    meta_info.check_output(args.output, overwrite=args.overwrite)
    if args.dry_run:
        paths = _examples([source.file(name) for name in source.names])
        return _say(f"would list {len(source.names)} images in {args.output}:{paths}")
    return _say(f"{args.output}: {meta_info.write_meta(source, args.output, jobs=args.jobs)} images")


def _lmdb(args: argparse.Namespace) -> int:
    lmdb_build.check_output(args.output)
    source, raw = _folder(args.input), args.codec == "raw"
    entries = lmdb_build.plan(source, compress_level=args.compress_level, to_8bit=args.to_8bit, raw=raw)
    if raw:
        files, pixels = lmdb_build.disk_cost(source)
        _say(f"raw: {pixels / 2**20:.1f} MiB on disk; the files now take {files / 2**20:.1f} MiB")
    if args.pair_with:
        lmdb_build.check_partner(args.input, args.pair_with, scale=args.scale)
    if args.dry_run:
        paths = _examples([entry.file for entry in entries])
        return _say(f"would store {len(entries)} images in {args.output}:{paths}")
    total, dropped = lmdb_build.build(entries, args.output, jobs=args.jobs)
    notes = f", alpha dropped in {dropped}" if dropped else ""
    notes += f", paired with {args.pair_with}" if args.pair_with else ""
    return _say(f"{args.output}: {len(entries)} images, {total / 2**20:.1f} MiB{notes}")
