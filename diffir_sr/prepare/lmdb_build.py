"""Build an LMDB of PNG images that BasicSR reads as well as we do."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import lmdb
import numpy as np

from diffir_sr.data.images import decode, encode_png
from diffir_sr.data.pairs import find_pairs
from diffir_sr.data.sources import FolderSource, key_of
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import run_all

_PAGE = 4096
_CHUNK = 256  # images per transaction: what is lost and held in memory at most


@dataclass(frozen=True)
class Entry:
    """One image to store."""

    file: Path
    key: str
    compress_level: int
    to_8bit: bool


@dataclass(frozen=True)
class Encoded:
    """One image as it will be stored."""

    key: str
    data: bytes
    shape: tuple[int, int, int]
    dropped_alpha: bool


def plan(source: FolderSource, *, compress_level: int, to_8bit: bool) -> list[Entry]:
    """What to store, under which keys (relative paths without extension, escaped for BasicSR's parser)."""
    if not 0 <= compress_level <= 9:
        raise InputError(f"--compress-level: expected 0 to 9, got {compress_level}")
    return [Entry(source.file(name), key_of(name), compress_level, to_8bit) for name in source.names]


def check_partner(folder: Path, partner: Path, *, scale: int) -> None:
    """Raise InputError unless `partner` holds the same names, each image `scale` times as large."""
    find_pairs(folder, partner, scale=scale)


def build(entries: list[Entry], output: Path, *, jobs: int) -> tuple[int, int]:
    """Write the LMDB under a temporary name and rename it; (bytes of images, images whose alpha was dropped)."""
    if output.suffix != ".lmdb":
        raise InputError(f"{output}: the name of an LMDB must end in .lmdb, which is how it is recognised")
    if output.exists():
        raise InputError(f"{output.absolute()} exists; remove it or choose another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(output)
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    try:
        counts = _write(entries, partial, jobs=jobs)
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return counts


def _remove_leftovers(output: Path) -> None:
    """Folders of builds that were killed; a build that still runs keeps its own."""
    for leftover in output.parent.glob(f"{output.name}.partial-*"):
        number = leftover.name.rpartition("-")[2]
        if not (number.isdigit() and Path(f"/proc/{number}").exists()):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(entries: list[Entry], folder: Path, *, jobs: int) -> tuple[int, int]:
    environment = lmdb.open(str(folder), map_size=64 * _PAGE)
    lines, total, dropped = [], 0, 0
    for start in range(0, len(entries), _CHUNK):
        images = run_all(_encode, entries[start : start + _CHUNK], jobs=jobs, label=f"lmdb {folder.name.split('.')[0]}")
        _put(environment, images)
        for image in images:
            height, width, channels = image.shape
            lines.append(f"{image.key}.png ({height},{width},{channels}) {entries[start].compress_level}\n")
            total += len(image.data)
            dropped += image.dropped_alpha
    environment.sync(True)
    environment.close()
    (folder / "meta_info.txt").write_text("".join(lines))
    return total, dropped


def _put(environment: lmdb.Environment, images: list[Encoded]) -> None:
    """Store images in one transaction, growing the map by their real sizes first, and again if that was too little."""
    need = sum(len(image.data) + 2 * _PAGE for image in images)
    environment.set_mapsize(environment.info()["map_size"] + need)
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for image in images:
                    transaction.put(image.key.encode("ascii"), image.data)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _encode(entry: Entry) -> Encoded:
    data = entry.file.read_bytes()
    image = decode(data, where=str(entry.file))
    if image.dtype == np.uint16 and not entry.to_8bit:
        raise InputError(f"{entry.file}: 16 bits per channel; give --to-8bit to round to 8, or convert it")
    channels = image.shape[-1]
    alpha = channels in (2, 4)
    changed = image.dtype == np.uint16 or alpha
    if image.dtype == np.uint16:
        image = _rounded_to_8bit(image)
    height, width = image.shape[:2]
    if alpha:
        channels -= 1
        image = image[..., :channels]
    # A PNG is stored byte for byte; anything else is decoded once, here, and not at every reading.
    if changed or entry.file.suffix.lower() != ".png":
        data = encode_png(np.ascontiguousarray(image), compress_level=entry.compress_level)
    return Encoded(entry.key, data, (height, width, channels), alpha)


def _rounded_to_8bit(image: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=1 / 257).reshape(image.shape)
