"""Building an LMDB of PNG images, which BasicSR can read too, or of raw pixels, which can be read in parts."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from diffir_sr.data.pairs import find_pairs
from diffir_sr.data.sources import Entry, FolderSource, Manifest, key_of, manifest_path, some, write_manifest
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import replacing, sweep
from diffir_sr.files.picture import encode_png
from diffir_sr.files.processes import hold
from diffir_sr.prepare.jobs import examples, folder, say, stream
from diffir_sr.prepare.stored import read_storable
from diffir_sr.version import __version__

_PAGE = 4096
_LONGEST_KEY = 511  # bytes, LMDB's own limit
_CHUNK = 256  # images per transaction, which bounds the memory


@dataclass(frozen=True)
class Wanted:
    """One image to store; `origin` is its path relative to the input folder."""

    file: Path
    origin: str
    key: str
    compress_level: int
    to_8bit: bool
    raw: bool


@dataclass(frozen=True)
class Encoded:
    """One encoded image; `line` is its line in meta_info.txt."""

    entry: Entry
    data: bytes
    line: str
    dropped_alpha: bool


@dataclass(frozen=True)
class Built:
    """The result: number of images, their bytes, how many lost their alpha, and the path of the manifest."""

    count: int
    bytes: int
    dropped_alpha: int
    listing: Path


def check_output(output: Path) -> None:
    """Raise InputError if the name is taken or BasicSR would not recognise it as an LMDB."""
    if output.suffix != ".lmdb":
        raise InputError(f"{output}: the name of an LMDB must end in .lmdb, which is how it is recognised")
    if output.exists():
        raise InputError(f"{output.absolute()} exists; remove it or choose another name")


def plan_entries(source: FolderSource, *, compress_level: int, to_8bit: bool, raw: bool = False) -> list[Wanted]:
    """What to store, under which keys (relative paths without extension, escaped for BasicSR's parser)."""
    if not 0 <= compress_level <= 9:
        raise InputError(f"--compress-level: expected 0 to 9, got {compress_level}")
    entries = [
        Wanted(
            source.file(name),
            source.relative(name),
            key_of(name),
            compress_level,
            to_8bit,
            raw,
        )
        for name in source.names
    ]
    long = [str(entry.file) for entry in entries if len(entry.key) > _LONGEST_KEY]
    if long:
        raise InputError(
            f"{len(long)} images have names too long for an LMDB, which takes keys of {_LONGEST_KEY} bytes (other than "
            f"English letters and digits count three or more): {some(long)}; shorten names or folders"
        )
    return entries


def disk_cost(source: FolderSource) -> tuple[int, int]:
    """Bytes of the files, and of their pixels as 8-bit RGB."""
    sizes = source.sizes(source.names)
    return sum(source.file(name).stat().st_size for name in source.names), sum(3 * h * w for h, w in sizes.values())


def check_partner(folder: Path, partner: Path, *, scale: int) -> None:
    """Raise InputError unless `partner` has the same names, with each image `scale` times as large."""
    find_pairs(folder, partner, scale=scale)


def build(entries: list[Wanted], output: Path, *, jobs: int, source: Path, parameters: Mapping[str, Any]) -> Built:
    """Write the LMDB under a temporary name and its manifest, then rename it, so that an LMDB is always complete."""
    with hold(output):
        check_output(output)
        for name in (output.name, manifest_path(output).name):
            sweep(output.parent, of=name)
        with replacing(output) as partial:
            images = stream(_encode, entries, jobs=jobs, label=f"lmdb {output.stem}")
            try:
                with contextlib.closing(images):
                    held, dropped = _write(images, partial)
            except lmdb.Error as error:  # reports system errors only as text
                why = str(error).removeprefix(f"{partial}: ")
                raise InputError(
                    f"{output.absolute()}: cannot be written ({why}); make room and start again"
                ) from error
            manifest = Manifest("lmdb", parameters, source.resolve().as_posix(), __version__, held)
            listing = write_manifest(output, manifest)
    return Built(len(held), sum(entry.bytes for entry in held), dropped, listing)


def _write(images: Iterator[Encoded], folder: Path) -> tuple[list[Entry], int]:
    lines, entries, dropped = [], [], 0
    with contextlib.closing(lmdb.open(str(folder), map_size=64 * _PAGE)) as environment:
        while chunk := list(islice(images, _CHUNK)):
            _put(environment, chunk)
            lines += [image.line for image in chunk]
            entries += [image.entry for image in chunk]
            dropped += sum(image.dropped_alpha for image in chunk)
        environment.sync(True)
    (folder / "meta_info.txt").write_text("".join(lines), encoding="ascii")
    return entries, dropped


def _put(environment: lmdb.Environment, images: Iterable[Encoded]) -> None:
    """Store images in one transaction; the map first grows by their sizes, and again if that was not enough."""
    need = sum(len(image.data) + 2 * _PAGE for image in images)
    environment.set_mapsize(environment.info()["map_size"] + need)
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for image in images:
                    transaction.put(image.entry.name.encode("ascii"), image.data)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _encode(entry: Wanted) -> Encoded:
    stored = read_storable(entry.file, to_8bit=entry.to_8bit)
    height, width, channels = stored.image.shape
    if entry.raw:
        data, codec = stored.image.tobytes(), "raw"
    else:
        # PNG files are stored byte for byte; others are decoded once here instead of at every read.
        data, codec = stored.png or encode_png(stored.image, compress_level=entry.compress_level), entry.compress_level
    line = f"{entry.key}.png ({height},{width},{channels}) {codec}\n"
    size = (height, width, channels)
    held = Entry(entry.key, entry.origin, size, len(data), hashlib.sha256(data).hexdigest())
    return Encoded(held, data, line, stored.dropped_alpha)


def command(args: argparse.Namespace) -> int:
    """`diffir prepare lmdb`."""
    started = time.perf_counter()
    check_output(args.output)
    source, raw = folder(args.input), args.codec == "raw"
    wanted = plan_entries(source, compress_level=args.compress_level, to_8bit=args.to_8bit, raw=raw)
    files, pixels = disk_cost(source) if raw or args.dry_run else (0, 0)
    if raw:
        say(f"raw: {pixels / 2**20:.1f} MiB on disk; the files now take {files / 2**20:.1f} MiB")
    if args.pair_with:
        check_partner(args.input, args.pair_with, scale=args.scale)
    if args.dry_run:
        paths = examples([one.file for one in wanted])
        size = f"{(pixels if raw else files) / 2**20:.1f} MiB"
        return say(f"would store {len(wanted)} images in {args.output}, {size} (other formats than PNG more):{paths}")
    parameters = {"codec": args.codec, "compress_level": args.compress_level, "to_8bit": args.to_8bit}
    built = build(wanted, args.output, jobs=args.jobs, source=args.input, parameters=parameters)
    details = [f"{built.bytes / 2**20:.1f} MiB", f"{time.perf_counter() - started:.1f} s"]
    details += [f"alpha dropped in {built.dropped_alpha}"] if built.dropped_alpha else []
    details += [f"paired with {args.pair_with}"] if args.pair_with else []
    return say(f"{args.output}: {built.count} images ({', '.join(details)}); listed in {built.listing}")
