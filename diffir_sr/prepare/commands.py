"""The parsers of `diffir prepare JOB`; the modules of a job are imported when it runs."""

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
    """Add `diffir prepare` and its jobs; each sets `run`, from parsed arguments to an exit code."""
    parser = commands.add_parser("prepare", help="prepare training and test data")
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    cut = add_job(
        jobs,
        "subimages",
        "cut images into overlapping squares <name>_s001.png ...",
    )
    cut.add_argument("--size", type=int, default=480, help="side of a square in pixels (default 480)")
    cut.add_argument("--step", type=int, default=240, help="distance between squares in pixels (default 240)")
    cut.add_argument(
        "--threshold",
        type=int,
        default=0,
        help="add a last, flush square if more pixels than this remain (default 0)",
    )
    cut.add_argument("--compress-level", type=int, default=3, help="PNG compression, 0 to 9 (default 3)")
    cut.add_argument(
        "--drop-suffix",
        default="",
        metavar="x4",
        help="remove this suffix from names, so that squares of 0801x4 are named like those of the ground truth 0801",
    )
    cut.add_argument(
        "--small",
        choices=["error", "skip", "keep"],
        default="error",
        help="images smaller than a square: an error (default), skipped, or kept whole along the short side",
    )
    add_overwrite(cut)
    add_to_8bit(cut)

    shrink = add_job(jobs, "downscale", "make low-resolution images")
    shrink.add_argument("--scale", type=int, required=True, help="factor of downscaling")
    shrink.add_argument(
        "--method",
        choices=RESIZE_METHODS,
        default="bicubic",
        help="bicubic is MATLAB's, antialiased (default)",
    )
    shrink.add_argument(
        "--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, to this folder"
    )
    add_overwrite(shrink)
    add_to_8bit(shrink)

    meta = add_job(
        jobs,
        "meta",
        module="meta_info",
        what="list the images of a folder: 'name (h,w,c)' per line",
        source="folder, LMDB or shards of images",
    )
    meta.add_argument("--overwrite", action="store_true", help="replace an existing list (default: an error)")

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

    build = add_job(jobs, "lmdb", module="lmdb_build", what="store the images of a folder in an LMDB")
    build.add_argument("--pair-with", type=Path, metavar="GT", help="folder or LMDB that must contain the same names")
    build.add_argument("--scale", type=int, default=1, help="size of the images of --pair-with relative to these")
    build.add_argument("--compress-level", type=int, default=1, help="PNG compression, 0 to 9 (default 1)")
    build.add_argument(
        "--codec",
        choices=["png", "raw"],
        default="png",
        help="raw: uncompressed, larger but much faster for reading patches, only for PairedDataset (default png)",
    )
    add_to_8bit(build)
    _add_shards_parsers(jobs)


def _add_shards_parsers(jobs: Any) -> None:
    """Add `diffir prepare shards` and `diffir prepare index`."""
    build = add_job(
        jobs,
        "shards",
        "store the images of a folder or an LMDB in shards: .tar files as WebDataset reads them, with an index",
        source="folder or LMDB of images",
    )
    build.add_argument("--shard-size", default="1GB", metavar="SIZE", help="largest size of a file (default 1GB)")
    build.add_argument(
        "--codec",
        choices=["keep", "png", "raw"],
        default="keep",
        help="keep: files as they are (default); png: 8 bits, other formats are converted; raw: uncompressed .npy, "
        "larger but much faster for reading patches",
    )
    build.add_argument("--compress-level", type=int, default=1, help="PNG compression, 0 to 9 (default 1)")
    build.add_argument("--pair-with", type=Path, metavar="GT", help="folder, LMDB or shards with the same names")
    build.add_argument("--scale", type=int, default=1, help="size of the images of --pair-with relative to these")
    add_overwrite(build)
    add_to_8bit(build)

    what = "index shards (.tar files) that others made, so that single images can be read"
    index = jobs.add_parser("index", help=what, description=what[0].upper() + what[1:] + ".")
    index.add_argument("input", type=Path, help="folder of .tar files; each gets NAME.tar.index.jsonl beside it")
    index.add_argument(
        "--overwrite", action="store_true", help="index all again (default: those without a valid index)"
    )
    index.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    index.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    index.set_defaults(run=deferred("diffir_sr.prepare.shards:index_command"))


def _add_degrade_parser(jobs: Any) -> None:
    """Add `diffir prepare degrade`."""
    what = "degrade images as real-world training does (blur, resize, noise, JPEG, twice), or by a kind of degradation"
    parser = jobs.add_parser("degrade", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help="folder of images, including sub-folders")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--opt", metavar="FILE", help="training option file with the degradation (default: the published one)"
    )
    parser.add_argument("--scale", type=int, help="factor of downscaling (default: that of --opt, or 4)")
    parser.add_argument("--seed", type=int, default=0, help="results depend only on this seed and the name (default 0)")
    parser.add_argument(
        "--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, to this folder"
    )
    parser.add_argument(
        "--kind",
        nargs="+",
        choices=[*DEGRADATION_KINDS, "all"],
        metavar="KIND",
        help=f"instead, for each of these kinds pairs KIND/input, KIND/target: {', '.join(DEGRADATION_KINDS)}, or all",
    )
    parser.add_argument("--combine", action="store_true", help="--kind: one image with all of them, in this order")
    parser.add_argument("--count", type=int, default=1, help="--kind: degraded versions per image (default 1)")
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results (default: keep them)")
    parser.set_defaults(run=deferred("diffir_sr.prepare.degrade:command"))


def _add_gopro_parser(jobs: Any) -> None:
    """Add `diffir prepare gopro`."""
    what = "cut a deblurring dataset into training patches and validation crops"
    source = "folder with train and test, each with input and target, or the original GoPro tree"
    parser = add_job(jobs, "gopro", what, source=source)
    parser.add_argument("--size", type=int, default=GOPRO_SIZE, help="side of a patch (default 512)")
    parser.add_argument("--overlap", type=int, default=GOPRO_OVERLAP, help="overlap of patches in pixels (default 256)")
    parser.add_argument(
        "--middle", type=int, default=GOPRO_MIDDLE, help="side of the centre crops of test images (default 256)"
    )
    parser.add_argument(
        "--whole-test", action="store_true", help="also copy whole test images to test/input and test/target"
    )
    add_overwrite(parser)


def _add_masks_parser(jobs: Any) -> None:
    """Add `diffir prepare masks`."""
    what = "make the masks of the published inpainting evaluation, one per image"
    parser = jobs.add_parser("masks", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, nargs="?", help="folder of images to make masks for; or use --count")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; each kind gets <kind>_<size> in it")
    parser.add_argument("--count", type=int, metavar="N", help="make N masks 000000.png, ... independent of images")
    parser.add_argument("--kind", nargs="+", choices=MASK_KINDS, default=list(MASK_KINDS), help="default: all three")
    parser.add_argument("--size", nargs="+", type=int, choices=MASK_SIZES, default=[256], help="side (default 256)")
    parser.add_argument(
        "--seed", type=int, default=0, help="masks depend only on this seed, kind, size and name (default 0)"
    )
    parser.add_argument(
        "--images-out", type=Path, metavar="DIR", help="also write square images of the same size to DIR/<size>"
    )
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results (default: keep them)")
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
        help="relative sizes of <name>T0.png, T1, ... (default 0.75 0.5 1/3)",
    )
    parser.add_argument(
        "--shortest",
        type=int,
        default=SHORTEST,
        metavar="PIXELS",
        help="shortest side of an additional version in pixels; 0: none (default 400)",
    )
    parser.add_argument("--with-original", action="store_true", help="also copy the original images")
    add_overwrite(parser)
    add_to_8bit(parser)


def _add_pairs_parser(jobs: Any) -> None:
    """Add `diffir prepare pairs`."""
    what = "check your own pairs and, with -o, make a clean copy of them"
    parser = jobs.add_parser("pairs", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("lq", type=Path, help="folder of degraded images (for checking only, also an LMDB)")
    parser.add_argument("gt", type=Path, help="folder of the ground truth, which may be the same")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="write folders lq and gt with equally named PNG files to it (default: only check)",
    )
    parser.add_argument(
        "--folders",
        nargs=2,
        default=["lq", "gt"],
        metavar=("LQ", "GT"),
        help="names of these two folders (default lq gt)",
    )
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="write lines 'gt, lq': meta_info of a RealESRGANPairedDataset"
    )
    parser.add_argument(
        "--scale", type=int, default=1, help="size of the ground truth relative to the degraded image (default 1)"
    )
    parser.add_argument(
        "--template",
        default="{}",
        metavar="{}x4",
        help="name of a degraded image, with {} for the common part of both names",
    )
    parser.add_argument("--gt-template", default="{}", metavar="{}_HR", help="name of a ground truth, likewise")
    parser.add_argument("--crop-gt", action="store_true", help="crop ground truth to multiples of scale")
    parser.add_argument(
        "--gt-size", type=int, default=0, help="also report ground truth smaller than patches of this size"
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip invalid pairs (default: an error)")
    add_overwrite(parser)
    add_to_8bit(parser)
    add_running(parser, "pairs")


def _add_shake_parser(jobs: Any) -> None:
    """Add `diffir prepare shake`."""
    what = "blur images like a shaking camera (frames along a random path, averaged in linear light)"
    parser = add_job(jobs, "shake", what)
    parser.add_argument(
        "--length",
        nargs=2,
        type=float,
        default=[4.0, 12.0],
        metavar=("MIN", "MAX"),
        help="length of the camera path in pixels (default 4 12); borders of MAX + 1 are cropped",
    )
    parser.add_argument("--count", type=int, default=1, help="exposures per image (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="paths depend only on this seed and the name (default 0)")
    add_overwrite(parser)
    add_to_8bit(parser)
