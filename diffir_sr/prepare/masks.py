"""Masks of a fixed evaluation set, and the corresponding square images."""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffir_sr.data.masks import evaluation_mask
from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically, write_report
from diffir_sr.files.images import decode, read_file
from diffir_sr.files.picture import as_bits, contact_sheet, encode_png
from diffir_sr.prepare.jobs import check_apart, run_all
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, read_storable, relative, underway

_BINS = tuple(range(0, 51, 10))  # per cent of the image that is missing


@dataclass(frozen=True)
class Cover:
    """One image: the mask to make for it and, if requested, its square version."""

    name: str
    file: Path | None
    output: StoredTarget
    square: StoredTarget | None
    kind: str
    size: int
    seed: int
    overwrite: bool


@dataclass(frozen=True)
class Made:
    """The result for one mask."""

    mask: StoredImage
    square: StoredImage | None
    share: float  # of the image that is missing


def plan_masks(
    source: FolderSource | None,
    output: Path,
    *,
    kind: str,
    size: int,
    seed: int,
    count: int | None = None,
    squares: Path | None = None,
    overwrite: bool = False,
) -> list[Cover]:
    """One mask per image of `source`, or `count` masks 000000, 000001, ..., determined by seed, kind and name."""
    if (source is None) == (count is None):
        raise InputError("masks: give either a folder of images or --count")
    if source is not None:
        check_apart(source.path, output, squares)
    names = source.names if source is not None else [f"{index:06d}" for index in range(count or 0)]
    covers = []
    for name in names:
        file = source.file(name) if source is not None else None
        origin = relative(file, source.path) if source is not None and file is not None else name
        mask = StoredTarget(output, f"{name}.png", origin)
        square = StoredTarget(squares, f"{name}.png", origin) if squares is not None else None
        covers.append(Cover(name, file, mask, square, kind, size, seed, overwrite))
    return covers


def make_masks(covers: Sequence[Cover], *, jobs: int) -> list[Made]:
    """Make masks (255 = missing) and squares; existing ones are kept unless `overwrite`."""
    return run_all(_cover, covers, jobs=jobs, label="masks")


def _cover(cover: Cover) -> Made:
    square = None
    if cover.square is not None:
        fresh = cover.overwrite or not cover.square.path.exists()
        square = cover.square.store_png(_square(cover)) if fresh else cover.square.keep()
    if cover.overwrite or not cover.output.path.exists():
        mask = evaluation_mask(cover.kind, size=cover.size, seed=cover.seed, name=cover.name)
        stored = cover.output.store_png(mask[..., None] * np.uint8(255), compress_level=9)
        return Made(stored, square, float(mask.mean()))
    mask = decode(read_file(cover.output.path), where=str(cover.output.path))
    if mask.shape != (cover.size, cover.size, 1):
        raise InputError(f"{cover.output.path}: exists as an image of shape {mask.shape}; remove it")
    return Made(cover.output.keep(), square, float((mask > 0).mean()))


def _square(cover: Cover) -> np.ndarray:
    """A random square of the image, like that of the published script, determined by (seed, name), resized."""
    assert cover.file is not None
    image = read_storable(cover.file, to_8bit=True).image
    height, width = image.shape[:2]
    side = min(height, width)
    rng = np.random.default_rng((cover.seed, zlib.crc32(f"square/{cover.name}".encode())))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    shrinks = side > cover.size
    resized = cv2.resize(square, (cover.size, cover.size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized.reshape(cover.size, cover.size, -1)


def coverage(made: Sequence[Made]) -> str:
    """Mean, minimum and maximum of the missing share, and the number of masks in each tenth."""
    shares = np.array([one.share for one in made]) * 100
    counts, _ = np.histogram(shares, bins=_BINS)
    tenths = ", ".join(
        f"{low}-{high} %: {count}" for low, high, count in zip(_BINS[:-1], _BINS[1:], counts, strict=True)
    )
    return f"missing {shares.mean():.1f} % on average ({shares.min():.1f} to {shares.max():.1f}); {tenths}"


def write_sums(made: Sequence[Made], output: Path) -> Path:
    """Write a list for `sha256sum -c` next to the output folder, to be run inside it; returns its path."""
    path = output.with_name(f"{output.name}.sha256")
    entries = sorted((one.mask.entry for one in made), key=lambda entry: entry.name)
    lines = (f"{entry.sha256}  {entry.name}\n" for entry in entries)
    write_report("".join(lines), path)
    return path


# `diffir prepare masks`.


_SHOWN = 24


def command(args: argparse.Namespace) -> int:
    """`diffir prepare masks`."""
    source = _images(args.input)
    if args.images_out is not None and source is None:
        raise InputError("--images-out: there are no images; give a folder of them instead of --count")
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
        raise InputError(f"{folder.absolute()} is {source.kind}; expected a folder of image files")
    return source


def _make(args: argparse.Namespace, source: FolderSource | None, *, kind: str, size: int) -> None:
    output = args.output / f"{kind}_{size}"
    squares = args.images_out / str(size) if args.images_out is not None else None
    covers = plan_masks(
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
    job = PrepareJob(output, "masks", {"kind": kind, "size": size, "seed": args.seed}, where)
    images = PrepareJob(squares, "squares", {"size": size, "seed": args.seed}, where) if squares is not None else None
    planned = [one for one in (job, images) if one is not None]
    for one in planned:
        one.check(overwrite=args.overwrite)
    if args.dry_run:
        also = f" and square images in {squares}" if squares else ""
        sys.stdout.write(f"would write {len(covers)} {kind} masks of {size} pixels to {output}{also}\n")
        return
    with underway(*planned, overwrite=args.overwrite):
        made = make_masks(covers, jobs=args.jobs)
        sums = write_sums(made, output)
        sheet = write_sheet([(cover.name, cover.output.path) for cover in covers], output)
        job.finish((one.mask for one in made), notes=[coverage(made), f"see {sheet} and {sums}"], what="masks")
        if images is not None:
            images.finish(one.square for one in made if one.square is not None)


def write_sheet(pictures: Sequence[tuple[str, Path]], output: Path) -> Path:
    """Write a page with the first images of a folder next to it; returns its path."""
    tiles = []
    for name, file in pictures[:_SHOWN]:
        image = decode(read_file(file), where=str(file))
        tiles.append((name, np.repeat(as_bits(image[::2, ::2, :1], np.uint8), 3, axis=2)))
    path = output.with_name(f"{output.name}.sheet.png")
    write_atomically(encode_png(contact_sheet(tiles, columns=8)), path)
    return path
