"""The parsers of `diffir prepare JOB`; what a job needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffir_sr.files.processes import available_cpus
from diffir_sr.parsing import deferred
from diffir_sr.prepare.jobs import (
    DEGRADATION_KINDS,
    FACTORS,
    GOPRO_MIDDLE,
    GOPRO_OVERLAP,
    GOPRO_SIZE,
    MASK_KINDS,
    MASK_SIZES,
    RESIZE_METHODS,
    SHORTEST,
    add_job,
    add_overwrite,
    add_running,
    add_to_8bit,
)


def add_prepare_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir prepare` and its jobs; each sets `run`, from parsed arguments to exit code."""
    parser = commands.add_parser("prepare", help="make training and test data")
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    cut = add_job(
        jobs,
        "subimages",
        "cut images into overlapping squares <name>_s001.png ...",
    )
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

    shrink = add_job(jobs, "downscale", "make low-resolution images")
    shrink.add_argument("--scale", type=int, required=True, help="how many times smaller")
    shrink.add_argument(
        "--method",
        choices=RESIZE_METHODS,
        default="bicubic",
        help="bicubic is MATLAB's, antialiased (default)",
    )
    shrink.add_argument("--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, here")
    add_overwrite(shrink)
    add_to_8bit(shrink)

    meta = add_job(
        jobs,
        "meta",
        module="meta_info",
        what="list the images of a folder: 'name (h,w,c)' per line",
        source="folder or LMDB of images",
    )
    meta.add_argument("--overwrite", action="store_true", help="replace a list that exists (default: an error)")

    own = (
        _add_multiscale_parser,
        _add_pairs_parser,
        _add_gopro_parser,
        _add_shake_parser,
        _add_degrade_parser,
        _add_masks_parser,
    )
    for add in own:
        add(jobs)

    build = add_job(jobs, "lmdb", module="lmdb_build", what="put the images of a folder into one LMDB")
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


def _add_degrade_parser(jobs: Any) -> None:
    """Add `diffir prepare degrade`."""
    what = "degrade images as real-world training does (blur, resize, noise, JPEG, twice), or by one kind of fault"
    parser = jobs.add_parser("degrade", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help="folder of images, sub-folders included")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--opt", metavar="FILE", help="training option file that says how (default: as published)")
    parser.add_argument("--scale", type=int, help="how many times smaller (default: that of --opt, or 4)")
    parser.add_argument("--seed", type=int, default=0, help="a result follows from seed and name (default 0)")
    parser.add_argument("--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, here")
    parser.add_argument(
        "--kind",
        nargs="+",
        choices=[*DEGRADATION_KINDS, "all"],
        metavar="KIND",
        help=f"instead, for each of these kinds pairs KIND/input, KIND/target: {', '.join(DEGRADATION_KINDS)}, or all",
    )
    parser.add_argument("--combine", action="store_true", help="--kind: one picture with all of them, in this order")
    parser.add_argument("--count", type=int, default=1, help="--kind: degraded pictures of each image (default 1)")
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="make again what exists (default: keep it)")
    parser.set_defaults(run=deferred("diffir_sr.prepare.degrade:command"))


def _add_gopro_parser(jobs: Any) -> None:
    """Add `diffir prepare gopro`."""
    what = "cut a deblurring set into training patches and validation crops"
    source = "folder with train and test, each with input and target, or the original GoPro tree"
    parser = add_job(jobs, "gopro", what, source=source)
    parser.add_argument("--size", type=int, default=GOPRO_SIZE, help="side of a patch (default 512)")
    parser.add_argument("--overlap", type=int, default=GOPRO_OVERLAP, help="pixels that neighbours share (default 256)")
    parser.add_argument(
        "--middle", type=int, default=GOPRO_MIDDLE, help="side of the middles of test images (default 256)"
    )
    parser.add_argument(
        "--whole-test", action="store_true", help="also copy whole test images to test/input and test/target"
    )
    add_overwrite(parser)


def _add_masks_parser(jobs: Any) -> None:
    """Add `diffir prepare masks`."""
    what = "make the masks of the published inpainting evaluation, one per image"
    parser = jobs.add_parser("masks", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, nargs="?", help="folder of images, which names the masks; or --count")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; each kind gets <kind>_<size> in it")
    parser.add_argument("--count", type=int, metavar="N", help="N masks 000000.png, ... that belong to no images")
    parser.add_argument("--kind", nargs="+", choices=MASK_KINDS, default=list(MASK_KINDS), help="default: all three")
    parser.add_argument("--size", nargs="+", type=int, choices=MASK_SIZES, default=[256], help="side (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="a mask follows from seed, kind, size and name (default 0)")
    parser.add_argument(
        "--images-out", type=Path, metavar="DIR", help="also write square images of the same size to DIR/<size>"
    )
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="make again what exists (default: keep it)")
    parser.set_defaults(run=deferred("diffir_sr.prepare.masks:command"))


def _add_multiscale_parser(jobs: Any) -> None:
    """Add `diffir prepare multiscale`."""
    parser = add_job(
        jobs,
        "multiscale",
        "make smaller versions of sharp images, for real-world training",
    )
    parser.add_argument(
        "--factors",
        nargs="*",
        type=float,
        default=list(FACTORS),
        metavar="F",
        help="sizes <name>T0.png, T1, ... relative to the image (default 0.75 0.5 1/3)",
    )
    parser.add_argument(
        "--shortest",
        type=int,
        default=SHORTEST,
        metavar="PIXELS",
        help="a last version with a shortest side of so many pixels; 0: none (default 400)",
    )
    parser.add_argument("--with-original", action="store_true", help="put the images themselves beside their versions")
    add_overwrite(parser)
    add_to_8bit(parser)


def _add_pairs_parser(jobs: Any) -> None:
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
    add_running(parser, "pairs")


def _add_shake_parser(jobs: Any) -> None:
    """Add `diffir prepare shake`."""
    what = "blur images as a shaking camera does (frames along a random path, averaged in linear light)"
    parser = add_job(jobs, "shake", what)
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
