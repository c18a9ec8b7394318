"""`diffir prepare JOB`: the list of jobs; subimages, downscale, meta and lmdb themselves."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffir_sr.data.sources import open_source
from diffir_sr.prepare import downscale, lmdb_build, meta_info, subimages
from diffir_sr.prepare.degrade_command import add_degrade_parser
from diffir_sr.prepare.gopro_command import add_gopro_parser
from diffir_sr.prepare.masks_command import add_masks_parser
from diffir_sr.prepare.multiscale_command import add_multiscale_parser
from diffir_sr.prepare.pairs_command import add_pairs_parser
from diffir_sr.prepare.parsing import add_job, add_overwrite, add_to_8bit, examples, folder, on_disk, say
from diffir_sr.prepare.shake_command import add_shake_parser
from diffir_sr.prepare.stored import Job, underway


def add_prepare_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir prepare` and its jobs; each sets `run`, from parsed arguments to exit code."""
    parser = commands.add_parser("prepare", help="make training and test data")
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    cut = add_job(jobs, "subimages", _subimages, "cut images into overlapping squares <name>_s001.png ...")
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
    cut.add_argument(
        "--small",
        choices=["error", "skip", "keep"],
        default="error",
        help="images smaller than a square: an error (default), left out, or kept whole in the direction that is short",
    )
    add_overwrite(cut)
    add_to_8bit(cut)

    shrink = add_job(jobs, "downscale", _downscale, "make low-resolution images")
    shrink.add_argument("--scale", type=int, required=True, help="how many times smaller")
    shrink.add_argument(
        "--method",
        choices=downscale.METHODS,
        default="bicubic",
        help="bicubic is MATLAB's, antialiased (default)",
    )
    shrink.add_argument("--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, here")
    add_overwrite(shrink)
    add_to_8bit(shrink)

    meta = add_job(
        jobs, "meta", _meta, "list the images of a folder: 'name (h,w,c)' per line", source="folder or LMDB of images"
    )
    meta.add_argument("--overwrite", action="store_true", help="replace a list that exists (default: an error)")

    own = (
        add_multiscale_parser,
        add_pairs_parser,
        add_gopro_parser,
        add_shake_parser,
        add_degrade_parser,
        add_masks_parser,
    )
    for add in own:
        add(jobs)

    build = add_job(jobs, "lmdb", _lmdb, "put the images of a folder into one LMDB")
    build.add_argument("--pair-with", type=Path, metavar="GT", help="folder or LMDB that must hold the same names")
    build.add_argument("--scale", type=int, default=1, help="how many times larger the images of --pair-with are")
    build.add_argument("--compress-level", type=int, default=1, help="PNG compression, 0 to 9 (default 1)")
    build.add_argument(
        "--codec",
        choices=["png", "raw"],
        default="png",
        help="raw: bare pixels, larger and much faster to cut patches from, for PairedDataset alone (default png)",
    )
    add_to_8bit(build)


def _alpha_note(done: Sequence[subimages.Done] | Sequence[downscale.Done]) -> list[str]:
    count = sum(one.dropped_alpha for one in done)
    return [f"alpha dropped in {count}"] if count else []


def _subimages(args: argparse.Namespace) -> int:
    cuts = subimages.plan(
        folder(args.input),
        args.output,
        size=args.size,
        step=args.step,
        threshold=args.threshold,
        compress_level=args.compress_level,
        drop_suffix=args.drop_suffix,
        to_8bit=args.to_8bit,
        small=args.small,
    )
    paths = [target.path for cut in cuts for target, _, _ in cut.outputs]
    count = len(paths)
    names = ("size", "step", "threshold", "compress_level", "drop_suffix", "to_8bit", "small")
    job = Job(args.output, "subimages", {name: getattr(args, name) for name in names}, args.input)
    if args.dry_run:
        job.check(overwrite=args.overwrite)
        return say(
            f"would cut {len(cuts)} images into {count} squares of {args.size} pixels under {args.output}, "
            f"{on_disk(count * args.size**2)}:{examples(paths)}"
        )
    with underway(job, overwrite=args.overwrite):
        done = subimages.run(cuts, jobs=args.jobs, overwrite=args.overwrite)
        notes = [f"of {len(cuts)} images", *_alpha_note(done)]
        job.finish((square for one in done for square in one.squares), notes=notes, what="squares")
    return 0


def _downscale(args: argparse.Namespace) -> int:
    shrinks = downscale.plan(
        folder(args.input),
        args.output,
        scale=args.scale,
        method=args.method,
        crop_gt=args.crop_gt,
        overwrite=args.overwrite,
        to_8bit=args.to_8bit,
    )
    what = f"{len(shrinks)} images, x1/{args.scale} {args.method}"
    given = {"scale": args.scale, "to_8bit": args.to_8bit}
    job = Job(args.output, "downscale", {**given, "method": args.method}, args.input)
    crops = Job(args.crop_gt, "crop", given, args.input) if args.crop_gt else None
    planned = [one for one in (job, crops) if one is not None]
    for one in planned:
        one.check(overwrite=args.overwrite)
    if args.dry_run:
        also = f", cropped ground truth under {args.crop_gt}" if args.crop_gt else ""
        pixels = sum(shrink.pixels for shrink in shrinks)
        disk = on_disk(pixels / args.scale**2 + (pixels if args.crop_gt else 0))
        paths = examples([shrink.output.path for shrink in shrinks])
        return say(f"would write {what}, under {args.output}{also}, {disk}:{paths}")
    with underway(*planned, overwrite=args.overwrite):
        done = downscale.run(shrinks, jobs=args.jobs)
        job.finish((one.small for one in done), notes=[f"x1/{args.scale} {args.method}", *_alpha_note(done)])
        if crops is not None:
            crops.finish(one.cropped for one in done if one.cropped is not None)
    return 0


def _meta(args: argparse.Namespace) -> int:
    source = open_source(args.input)
    meta_info.check_output(args.output, overwrite=args.overwrite)
    if args.dry_run:
        paths = examples([Path(source.location(name)) for name in source.names])
        return say(f"would list {len(source.names)} images in {args.output}:{paths}")
    return say(f"{args.output}: {meta_info.write_meta(source, args.output, jobs=args.jobs)} images")


def _lmdb(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    lmdb_build.check_output(args.output)
    source, raw = folder(args.input), args.codec == "raw"
    wanted = lmdb_build.plan(source, compress_level=args.compress_level, to_8bit=args.to_8bit, raw=raw)
    files, pixels = lmdb_build.disk_cost(source) if raw or args.dry_run else (0, 0)
    if raw:
        say(f"raw: {pixels / 2**20:.1f} MiB on disk; the files now take {files / 2**20:.1f} MiB")
    if args.pair_with:
        lmdb_build.check_partner(args.input, args.pair_with, scale=args.scale)
    if args.dry_run:
        paths = examples([one.file for one in wanted])
        size = f"{(pixels if raw else files) / 2**20:.1f} MiB"
        return say(f"would store {len(wanted)} images in {args.output}, {size} (other formats than PNG more):{paths}")
    parameters = {"codec": args.codec, "compress_level": args.compress_level, "to_8bit": args.to_8bit}
    built = lmdb_build.build(wanted, args.output, jobs=args.jobs, source=args.input, parameters=parameters)
    told = [f"{built.bytes / 2**20:.1f} MiB", f"{time.perf_counter() - started:.1f} s"]
    told += [f"alpha dropped in {built.dropped_alpha}"] if built.dropped_alpha else []
    told += [f"paired with {args.pair_with}"] if args.pair_with else []
    return say(f"{args.output}: {built.count} images ({', '.join(told)}); listed in {built.listing}")
