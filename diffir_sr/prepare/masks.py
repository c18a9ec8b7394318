"""Masks of a fixed evaluation set, and the square images that they belong to."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffir_sr.data.images import decode, encode_png, read_file, write_atomically
from diffir_sr.data.manifest import Entry
from diffir_sr.data.masks import evaluation_mask
from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import check_apart, run_all
from diffir_sr.prepare.storable import read_storable

KINDS = ("thin", "medium", "thick")
SIZES = (256, 512)
_BINS = tuple(range(0, 51, 10))  # per cent of the image that is missing


@dataclass(frozen=True)
class Cover:
    """One image: the mask to make for it and, if wanted, the square of it."""

    name: str
    origin: str
    file: Path | None
    output: Path
    square: Path | None
    kind: str
    size: int
    seed: int
    overwrite: bool


@dataclass(frozen=True)
class Made:
    """What became of one mask."""

    entry: Entry
    share: float  # of the image that is missing
    written: bool


def plan(
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
    """One mask per image of `source`, or `count` masks 000000, 000001, ...; a mask follows from seed, kind and name."""
    if (source is None) == (count is None):
        raise InputError("masks: give a folder of images or --count, one of the two")
    if source is not None:
        check_apart(source.path, output, squares)
    names = source.names if source is not None else [f"{index:06d}" for index in range(count or 0)]
    return [
        Cover(
            name,
            source.file(name).relative_to(source.path).as_posix() if source is not None else name,
            source.file(name) if source is not None else None,
            output / f"{name}.png",
            squares / f"{name}.png" if squares is not None else None,
            kind,
            size,
            seed,
            overwrite,
        )
        for name in names
    ]


def run(covers: Sequence[Cover], *, jobs: int) -> list[Made]:
    """Make masks (255 = missing) and squares; what exists is kept unless `overwrite`."""
    return run_all(_cover, covers, jobs=jobs, label="masks")


def _cover(cover: Cover) -> Made:
    if cover.square is not None and cover.file is not None and (cover.overwrite or not cover.square.exists()):
        write_atomically(encode_png(_square(cover)), cover.square)
    written = cover.overwrite or not cover.output.exists()
    if written:
        mask = evaluation_mask(cover.kind, size=cover.size, seed=cover.seed, name=cover.name)
        write_atomically(encode_png(mask[..., None] * np.uint8(255), compress_level=9), cover.output)
    data = read_file(cover.output)
    mask = decode(data, where=str(cover.output))
    if mask.shape != (cover.size, cover.size, 1):
        raise InputError(f"{cover.output}: a file of shape {mask.shape} is in the way; remove it or give --overwrite")
    entry = Entry(f"{cover.name}.png", cover.origin, mask.shape, len(data), hashlib.sha256(data).hexdigest())
    return Made(entry, float((mask > 0).mean()), written)


def _square(cover: Cover) -> np.ndarray:
    """A random square of the image as the published script cuts it, from (seed, name), resized."""
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
    """Mean, least and most of the missing share, and how many masks fall into each tenth."""
    shares = np.array([one.share for one in made]) * 100
    counts, _ = np.histogram(shares, bins=_BINS)
    tenths = ", ".join(
        f"{low}-{high} %: {count}" for low, high, count in zip(_BINS[:-1], _BINS[1:], counts, strict=True)
    )
    return f"missing {shares.mean():.1f} % on average ({shares.min():.1f} to {shares.max():.1f}); {tenths}"


def write_sums(made: Sequence[Made], output: Path) -> Path:
    """A list that `sha256sum -c` reads inside the output folder, beside it; gives its path."""
    path = output.with_name(f"{output.name}.sha256")
    lines = (f"{one.entry.sha256}  {one.entry.name}\n" for one in sorted(made, key=lambda one: one.entry.name))
    write_atomically("".join(lines).encode(), path)
    return path
