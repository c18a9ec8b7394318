"""`diffir prepare masks`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.images import decode, read_file
from diffir_sr.files.machine import available_cpus
from diffir_sr.files.picture import as_bits, encode_png
from diffir_sr.prepare import masks
from diffir_sr.prepare.contact_sheet import contact_sheet
from diffir_sr.prepare.stored import Job, underway

_SHOWN = 24


def add_masks_parser(jobs: Any) -> None:
    """Add `diffir prepare masks`."""
    what = "make the masks of the published inpainting evaluation, one per image"
    parser = jobs.add_parser("masks", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, nargs="?", help="folder of images, which names the masks; or --count")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; each kind gets <kind>_<size> in it")
    parser.add_argument("--count", type=int, metavar="N", help="N masks 000000.png, ... that belong to no images")
    parser.add_argument("--kind", nargs="+", choices=masks.KINDS, default=list(masks.KINDS), help="default: all three")
    parser.add_argument("--size", nargs="+", type=int, choices=masks.SIZES, default=[256], help="side (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="a mask follows from seed, kind, size and name (default 0)")
    parser.add_argument(
        "--images-out", type=Path, metavar="DIR", help="also write square images of the same size to DIR/<size>"
    )
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="make again what exists (default: keep it)")
    parser.set_defaults(run=_masks)


def _masks(args: argparse.Namespace) -> int:
    source = _images(args.input)
    if args.images_out is not None and source is None:
        raise InputError("--images-out: there are no images; name a folder of them instead of --count")
    if args.count is not None and args.count < 1:
        raise InputError(f"--count: expected 1 or more, got {args.count}")
    if args.seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {args.seed}")
    for size in args.size:
        for kind in args.kind:
            _make(args, source, kind=kind, size=size)
    return 0


def _images(folder: Path | None) -> FolderSource | None:
    if folder is None:
        return None
    source = open_source(folder)
    if not isinstance(source, FolderSource):
        raise InputError(f"{folder.absolute()} is an LMDB; expected a folder of image files")
    return source


def _make(args: argparse.Namespace, source: FolderSource | None, *, kind: str, size: int) -> None:
    output = args.output / f"{kind}_{size}"
    squares = args.images_out / str(size) if args.images_out is not None else None
    covers = masks.plan(
        source,
        output,
        kind=kind,
        size=size,
        seed=args.seed,
        count=args.count,
        squares=squares,
        overwrite=args.overwrite,
    )
    where = source.path if source is not None else Path("names")
    job = Job(output, "masks", {"kind": kind, "size": size, "seed": args.seed}, where)
    images = Job(squares, "squares", {"size": size, "seed": args.seed}, where) if squares is not None else None
    planned = [one for one in (job, images) if one is not None]
    for one in planned:
        one.check(overwrite=args.overwrite)
    if args.dry_run:
        also = f" and square images in {squares}" if squares else ""
        sys.stdout.write(f"would write {len(covers)} {kind} masks of {size} pixels to {output}{also}\n")
        return
    with underway(*planned, overwrite=args.overwrite):
        made = masks.run(covers, jobs=args.jobs)
        sums = masks.write_sums(made, output)
        sheet = write_sheet([(cover.name, cover.output.path) for cover in covers], output)
        job.finish((one.mask for one in made), notes=[masks.coverage(made), f"see {sheet} and {sums}"], what="masks")
        if images is not None:
            images.finish(one.square for one in made if one.square is not None)


def write_sheet(pictures: Sequence[tuple[str, Path]], output: Path) -> Path:
    """The first pictures of a folder on one page beside it; gives its path."""
    tiles = []
    for name, file in pictures[:_SHOWN]:
        image = decode(read_file(file), where=str(file))
        tiles.append((name, np.repeat(as_bits(image[::2, ::2, :1], np.uint8), 3, axis=2)))
    path = output.with_name(f"{output.name}.sheet.png")
    write_atomically(encode_png(contact_sheet(tiles, columns=8)), path)
    return path
