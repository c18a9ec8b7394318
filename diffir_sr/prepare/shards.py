"""Storing images in shards, plain .tar files that WebDataset and others read, and indexing shards that others made."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.data.sources import (
    Entry,
    FolderSource,
    LmdbSource,
    check_unstopped,
    key_in_shards,
    key_of,
    open_source,
    some,
)
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import replacing, sweep
from diffir_sr.files.images import inspect, read_file
from diffir_sr.files.lmdb_file import LmdbFile
from diffir_sr.files.picture import encode_png
from diffir_sr.files.processes import hold
from diffir_sr.files.shards import (
    INDEX,
    RAW,
    Member,
    describe,
    index_path,
    raw_bytes,
    read_index,
    scan,
    shards_of,
    write_index,
)
from diffir_sr.prepare.jobs import check_apart, examples, run_all, say, stream
from diffir_sr.prepare.lmdb_build import check_partner
from diffir_sr.prepare.stored import PrepareJob, StoredImage, storable, underway

_BLOCK = tarfile.BLOCKSIZE
_UNITS = ["", "k", "m", "g", "t"]
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)  # there may be millions
class Wanted:
    """One image to store: `origin` is the relative path of a file in the folder `root`, or a key of the LMDB `root`.

    `shape` is given if the pixels of the LMDB are raw.
    """

    root: Path
    key: str
    origin: str
    codec: str
    compress_level: int
    to_8bit: bool
    is_file: bool
    shape: tuple[int, int, int] | None = None

    @property
    def where(self) -> str:
        return str(self.root / self.origin) if self.is_file else f"{self.root}[{self.origin}]"


@dataclass(frozen=True)
class Encoded:
    """One image as it is stored; its member has no place yet."""

    member: Member
    data: bytes
    dropped_alpha: bool


def bytes_of(text: str) -> int:
    """Bytes of a size such as 1GB, 500MB or 2GiB; raises InputError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"--shard-size: expected a size such as 1GB or 500MB, got {text!r}")
    scale = (1024 if found["binary"] else 1000) ** _UNITS.index(found["unit"].lower())
    size = int(float(found["number"]) * scale)
    if size < _BLOCK:
        raise InputError(f"--shard-size: {text} is less than one image needs; give 1GB, for example")
    return size


def plan(source: FolderSource | LmdbSource, *, codec: str, compress_level: int, to_8bit: bool) -> list[Wanted]:
    """What to store, in the order of names. Keys are escaped so that they contain no dots."""
    if not 0 <= compress_level <= 9:
        raise InputError(f"--compress-level: expected 0 to 9, got {compress_level}")
    made = []
    for name in source.names:
        key = key_of(name)
        if isinstance(source, FolderSource):
            made.append(Wanted(source.path, key, source.relative(name), codec, compress_level, to_8bit, True))
        else:
            shape = source.shape(name) if source.stores_raw(name) else None
            made.append(Wanted(source.path, key, source.location(name), codec, compress_level, to_8bit, False, shape))
    return made


def encode(wanted: Wanted) -> Encoded:
    """The image as it is stored, after decoding it once; raises InputError if it is damaged."""
    where = wanted.where
    if wanted.is_file:
        data = read_file(wanted.root / wanted.origin)
    else:
        found = LmdbFile(wanted.root).get(wanted.origin.encode())
        if found is None:
            raise InputError(f"{where}: the data does not contain this key; build the LMDB again")
        data = found
    dropped = False
    if wanted.shape is not None:
        image = np.frombuffer(data, np.uint8).reshape(wanted.shape)
        if wanted.codec == "png":
            data, suffix = encode_png(image, compress_level=wanted.compress_level), ".png"
        else:
            data, suffix = raw_bytes(image), RAW
    elif wanted.codec == "keep":
        suffix = Path(wanted.origin).suffix.lower() if wanted.is_file else f".{inspect(data, where=where).format}"
    else:
        stored = storable(data, where=where, to_8bit=wanted.to_8bit)
        dropped = stored.dropped_alpha
        if wanted.codec == "raw":
            data, suffix = raw_bytes(stored.image), RAW
        else:
            data, suffix = stored.png or encode_png(stored.image, compress_level=wanted.compress_level), ".png"
    shape, is_8bit = describe(data, where=where, name=suffix, check=wanted.codec == "keep")
    digest = hashlib.sha256(data).hexdigest()
    member = Member(wanted.key + suffix, 0, len(data), shape, is_8bit, digest, wanted.origin)
    return Encoded(member, data, dropped)


class ShardWriter:
    """Writes shards `00000.tar`, ... of at most `limit` bytes, unless one image is larger, each with its index.

    A shard gets its name when it is complete, then its index; what was interrupted leaves nothing.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.members: list[Member] = []  # of the shards that exist, then of those that are written
        self.dropped_alpha = 0
        self.count = 0

    def take_existing(self, origins: Mapping[str, str]) -> None:
        """Count the images of existing shards as done, and index a shard whose index was not written any more.

        `origins` maps the key of every image to the path that it was made from.
        """
        while (shard := self._path()).is_file():
            if not index_path(shard).is_file():
                found = scan(shard)[0]
                write_index(shard, [one._replace(origin=origins.get(key_in_shards(one.name), "")) for one in found])
            self.members += read_index(shard).members
            self.count += 1

    def _path(self) -> Path:
        return self.folder / f"{self.count:05d}.tar"

    def write(self, images: Iterator[Encoded]) -> None:
        """Write images to new shards, in their order; raises the errors of the images, and OSError."""
        following = next(images, None)
        while following is not None:
            shard, members = self._path(), []
            with replacing(shard) as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
                while following is not None and (not members or self._fits(tar, following)):
                    members.append(_add(tar, following))
                    self.dropped_alpha += following.dropped_alpha
                    following = next(images, None)
            write_index(shard, members)
            self.members += members
            self.count += 1

    def _fits(self, tar: tarfile.TarFile, image: Encoded) -> bool:
        ends = tar.offset + _padded(image.member.size) + 3 * _BLOCK  # a header, and two blocks at the end
        return -(-ends // tarfile.RECORDSIZE) * tarfile.RECORDSIZE <= self.limit


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _add(tar: tarfile.TarFile, image: Encoded) -> Member:
    """Append an image, without times and users, so that equal images make equal shards; returns it with its place."""
    info = tarfile.TarInfo(image.member.name)
    info.size, info.mode = image.member.size, 0o644
    tar.addfile(info, io.BytesIO(image.data))
    return image.member._replace(start=tar.offset - _padded(image.member.size))


def _entry(member: Member) -> Entry:
    return Entry(key_in_shards(member.name), member.origin or member.name, member.shape, member.size, member.sha256)


def command(args: argparse.Namespace) -> int:
    """`diffir prepare shards`."""
    limit = bytes_of(args.shard_size)
    source = open_source(args.input)
    if not isinstance(source, (FolderSource, LmdbSource)):
        raise InputError(
            f"{args.input.absolute()} is {source.kind}; to index shards that exist: diffir prepare index {args.input}"
        )
    check_apart(args.input, args.output)
    if args.output.suffix == ".lmdb":
        raise InputError(f"{args.output}: a name that ends in .lmdb is taken for an LMDB; choose another one")
    wanted = plan(source, codec=args.codec, compress_level=args.compress_level, to_8bit=args.to_8bit)
    if args.pair_with:
        check_partner(args.input, args.pair_with, scale=args.scale)
    # With the source: an image of the same name in another folder is another image, and shards cannot replace one.
    parameters = {
        "source": args.input.resolve().as_posix(), "shard_size": limit, "codec": args.codec,
        "compress_level": args.compress_level, "to_8bit": args.to_8bit,
    }  # fmt: skip
    job = PrepareJob(args.output, "shards", parameters, args.input)
    job.check(overwrite=args.overwrite)
    if args.dry_run:
        paths = examples([Path(one.origin) for one in wanted])
        return say(f"would store {len(wanted)} images in shards of {args.shard_size} in {args.output}:{paths}")
    with underway(job, overwrite=args.overwrite):
        args.output.mkdir(parents=True, exist_ok=True)
        sweep(args.output)
        _check_content(args.output, overwrite=args.overwrite)
        writer = ShardWriter(args.output, limit=limit)
        writer.take_existing({one.key: one.origin for one in wanted})
        kept = len(writer.members)
        done = {key_in_shards(member.name) for member in writer.members}
        images = stream(encode, [one for one in wanted if one.key not in done], jobs=args.jobs, label="shards")
        with contextlib.closing(images):
            try:
                writer.write(images)
            except OSError as error:
                raise InputError(
                    f"{args.output.absolute()}: cannot be written ({error.strerror or error}); make room and start "
                    "again, which continues"
                ) from error
        entries = [StoredImage(_entry(one), number >= kept) for number, one in enumerate(writer.members)]
        notes = [f"{writer.count} shards"]
        notes += [f"alpha dropped in {writer.dropped_alpha}"] if writer.dropped_alpha else []
        notes += [f"paired with {args.pair_with}"] if args.pair_with else []
        job.finish(entries, notes=notes)
    return 0


def _check_content(folder: Path, *, overwrite: bool) -> None:
    """Raise InputError for files that this job did not make; with `overwrite`, remove earlier shards."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    own = re.compile(r"\d{5,}\.tar(" + re.escape(INDEX) + ")?")
    if foreign := [name for name in names if not own.fullmatch(name)]:
        raise InputError(f"{folder.absolute()} contains other files ({some(foreign, shown=3)}); use another folder")
    for name in names if overwrite else ():
        (folder / name).unlink()


def index_command(args: argparse.Namespace) -> int:
    """`diffir prepare index`."""
    if not args.input.is_dir():
        raise InputError(f"no such folder of shards: {args.input.absolute()}; correct the path")
    check_unstopped(args.input)
    shards = shards_of(args.input)
    wanted = [shard for shard in shards if args.overwrite or not _is_current(shard)]
    if args.dry_run:
        return say(f"would index {len(wanted)} of {len(shards)} shards of {args.input}:{examples(wanted)}")
    with hold(args.input):
        sweep(args.input)
        counts = run_all(_index, wanted, jobs=args.jobs, label="index")
    kept = len(shards) - len(wanted)
    return say(f"{args.input}: {sum(counts)} images in {len(wanted)} shards indexed, {kept} shards were indexed before")


def _is_current(shard: Path) -> bool:
    try:
        read_index(shard)
    except InputError:
        return False
    return True


def _index(shard: Path) -> int:
    members, left_out = scan(shard)
    write_index(shard, members, left_out=left_out)
    return len(members)
