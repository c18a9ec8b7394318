"""Shards: plain .tar files of images, named as WebDataset names them, with an index that gives access to any image.

A member `KEY.EXT` is the image of a sample, `KEY.FIELD.EXT` (`000001.lq.png`, `000001.gt.png`) one of several; the key
ends at the first dot of the file name. EXT is that of an image, or .npy for raw pixels: uint8, (H, W) or (H, W, C).
Other members, such as captions, are left out.

Beside `NAME.tar` lies its index, `NAME.tar.index.jsonl`: a header, then place, size, bits and sha256 of every image.
Each shard has its own, so that shards can be added, copied and indexed independently. Images are read at their place,
without reading the rest of the shard, and compared with the sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.images import SUFFIXES, decode, inspect, is_picture_not_read

INDEX = ".index.jsonl"
RAW = ".npy"
_FORMAT = 1
_BLOCK = tarfile.BLOCKSIZE
_MOST_OPEN = 64  # files per reader and process
_PACKED = (".tar.gz", ".tgz", ".tar.zst")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SHOWN = 5
DIFFERS = "its sha256 differs from that in the index, so the shard is damaged, or was replaced after it was indexed"
_EIGHT_BITS = ("jpeg", "webp", "bmp", "gif")


class Member(NamedTuple):
    """One image: its name in the shard, first byte, bytes, (H, W, C), whether it has at most 8 bits, sha256, origin.

    C is 1 or 3 (without alpha), for raw pixels the number that is stored. `origin` is the path that it was made from,
    if known.
    """

    name: str
    start: int
    size: int
    shape: tuple[int, int, int]
    is_8bit: bool
    sha256: str
    origin: str = ""

    @property
    def is_raw(self) -> bool:
        return self.name.endswith(RAW)

    @property
    def pixels_from(self) -> int:
        """The first byte of raw pixels, which end with the member."""
        return self.start + self.size - math.prod(self.shape)


def sample_of(name: str) -> tuple[str, str] | None:
    """(key, field) of the name of a member, "" for the only field of a sample; None if it is not that of an image."""
    plain = posixpath.normpath(name)
    folder, _, base = plain.rpartition("/")
    key, _, rest = base.partition(".")
    field, _, suffix = rest.rpartition(".")
    if any(part.startswith(".") and part != ".." for part in plain.split("/")):
        return None  # hidden, such as the ._ files of macOS
    return (posixpath.join(folder, key), field) if f".{suffix.lower()}" in (*SUFFIXES, RAW) else None


def index_path(shard: Path) -> Path:
    """The path of the index of a shard."""
    return shard.with_name(shard.name + INDEX)


def is_shards(path: Path) -> bool:
    """Whether a path is a folder of .tar files: one with an index, or one without images under it.

    Archives from which a folder of images was unpacked often stay beside the images; they have no index.
    """
    try:
        names = [name.lower() for name in os.listdir(path) if not name.startswith(".")]
    except (NotADirectoryError, FileNotFoundError):
        return False
    if any(name.endswith(f".tar{INDEX}") for name in names):
        return True
    return any(name.endswith((".tar", *_PACKED)) for name in names) and not _has_images(path)


def _has_images(folder: Path) -> bool:
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        seen.add(real)
        if any(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in files):
            return True
    return False


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder by name; raises InputError for none, compressed ones, or images beside them."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    wrong = [name for name in names if name.lower().endswith(_PACKED)]
    if wrong:
        raise InputError(
            f"{folder.absolute()}: {_some(wrong)} compressed, which allows no access to single images; decompress "
            "to .tar files"
        )
    beside = [name for name in names if name.lower().endswith(SUFFIXES)]
    if beside:
        raise InputError(
            f"{folder.absolute()}: {len(beside)} images beside the shards ({_some(beside)}); move them or the shards "
            "to a folder of their own"
        )
    found = [folder / name for name in names if name.lower().endswith(".tar")]
    if not found:
        raise InputError(f"{folder.absolute()}: its shards are missing, only their indexes exist; copy the .tar files")
    return found


# Making an index.


def describe(data: bytes, *, where: str, name: str, check: bool = False) -> tuple[tuple[int, int, int], bool]:
    """Shape, and whether there are at most 8 bits, of the content of a member; with `check`, it is also decoded.

    Raises InputError, which names `where`, if it is not an image.
    """
    if name.endswith(RAW):
        return raw_shape(data, where=where), True
    known = inspect(data, where=where)
    if check:
        decode(data, where=where)
    is_8bit = known.format in _EIGHT_BITS or (known.format == "png" and data[24] <= 8)
    return (known.height, known.width, known.channels), is_8bit


def raw_shape(data: bytes, *, where: str) -> tuple[int, int, int]:
    """(H, W, C) of raw pixels in the format of NumPy; raises InputError for anything but uint8 pixels."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, kind = read(file)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise InputError(f"{where}: damaged, or not an array of NumPy ({error}); make the shard again") from error
    full = (*shape, 1) if len(shape) == 2 else shape
    if kind != np.uint8 or is_fortran or len(full) != 3 or not 1 <= full[2] <= 4 or min(full) < 1:
        order = " in Fortran's order" if is_fortran else ""
        raise InputError(
            f"{where}: {kind} {shape}{order}, expected pixels: uint8 (height, width, channels); make the shard again"
        )
    if len(data) - file.tell() != math.prod(full):
        raise InputError(f"{where}: {len(data)} bytes, expected {file.tell() + math.prod(full)} for {shape}")
    return full


def raw_bytes(image: np.ndarray) -> bytes:
    """An image (H, W, C) as raw pixels in the format of NumPy."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def scan(shard: Path) -> tuple[list[Member], list[str]]:
    """The images of a shard, and the names of images of unsupported formats, read from its first byte to its last.

    Raises InputError, which names what is damaged: the shard, or up to five of its members.
    """
    members: list[Member] = []
    left_out: list[str] = []
    faults: list[str] = []
    try:
        with open(shard, "rb") as file:
            head = file.read(8)
            for begin, name in _COMPRESSED.items():
                if head.startswith(begin):
                    raise InputError(f"{shard.absolute()}: compressed ({name}); decompress it to a plain .tar file")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for entry in tar:
                    tar.members.clear()  # type: ignore[attr-defined] - a kilobyte for each
                    if is_picture_not_read(entry.name):
                        left_out.append(entry.name)
                    if sample_of(entry.name) is None or entry.isdir():
                        continue
                    where = f"{shard}[{entry.name}]"
                    stored = tar.extractfile(entry) if entry.isreg() and not entry.issparse() else None
                    if stored is None:
                        faults.append(f"{where}: a link or a sparse file; make the shard with plain files")
                        continue
                    data = stored.read()
                    try:
                        shape, is_8bit = describe(data, where=where, name=entry.name)
                    except InputError as error:
                        faults.append(str(error))
                        continue
                    digest = hashlib.sha256(data).hexdigest()
                    members.append(Member(entry.name, entry.offset_data, len(data), shape, is_8bit, digest))
                # tarfile takes a damaged header for the end.
                file.seek(tar.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError(f"byte {tar.offset:,d} is neither the header of a member nor the end")
    except tarfile.TarError as error:
        raise InputError(f"{shard.absolute()}: damaged or truncated ({error}); copy the shard again") from error
    except OSError as error:
        raise InputError(f"{shard.absolute()}: cannot be read ({error.strerror or error}); check the disk") from error
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults[:_SHOWN])
        raise InputError(f"{shard.absolute()}: {len(faults)} members cannot be used:{lines}")
    if not members:
        raise InputError(f"{shard.absolute()}: contains no images; remove it from the folder")
    return members, left_out


def write_index(shard: Path, members: Iterable[Member], *, left_out: Iterable[str] = ()) -> None:
    """Write the index of a complete shard atomically."""
    lines: list[dict[str, Any]] = [
        {
            "name": one.name,
            "start": one.start,
            "bytes": one.size,
            "shape": list(one.shape),
            "is_8bit": one.is_8bit,
            "sha256": one.sha256,
            **({"from": one.origin} if one.origin else {}),
        }
        for one in members
    ]
    head = {"diffir_shard": _FORMAT, "bytes": shard.stat().st_size, "count": len(lines), "left_out": list(left_out)}
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (head, *lines))
    write_atomically(text.encode(errors="surrogateescape"), index_path(shard))


# Reading.


class Index(NamedTuple):
    """The index of a shard: its images, bytes of the shard, and names of images of unsupported formats."""

    members: list[Member]
    bytes: int
    left_out: list[str]


def read_index(shard: Path) -> Index:
    """The index of a shard; raises InputError if it cannot be read or is of another shard."""
    path = index_path(shard)
    again = f"make it again with: diffir prepare index {shard.parent}"
    try:
        lines = path.read_bytes().decode(errors="surrogateescape").rstrip("\n").split("\n")
        head, *rows = json.loads(f"[{','.join(lines)}]")
        if head["diffir_shard"] != _FORMAT or head["count"] != len(rows):
            raise ValueError(f"format {head['diffir_shard']}, {len(rows)} of {head['count']} images")
        size, left_out = int(head["bytes"]), list(map(str, head["left_out"]))
        members = [_member(row, limit=size) for row in rows]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path.absolute()}: cannot be read as the index of a shard ({error}); {again}") from error
    _check_shard(shard, members, size)
    return Index(members, size, left_out)


def _member(row: dict[str, Any], *, limit: int) -> Member:
    high, wide, channels = (int(side) for side in row["shape"])
    made = Member(
        str(row["name"]), int(row["start"]), int(row["bytes"]), (high, wide, channels), row["is_8bit"] is True,
        str(row["sha256"]), str(row.get("from", "")),
    )  # fmt: skip
    if sample_of(made.name) is None or not 1 <= min(made.shape) <= max(made.shape) < 2**31:
        raise ValueError(f"{made.name!r} of {made.shape} is not an image")
    if not _BLOCK <= made.start <= made.start + made.size <= limit or (made.is_raw and made.pixels_from < made.start):
        raise ValueError(f"{made.name!r} lies outside the shard or is too small")
    if len(bytes.fromhex(made.sha256)) != 32:
        raise ValueError(f"{made.name!r} has the sha256 {made.sha256[:20]!r}")
    return made


def _check_shard(shard: Path, members: list[Member], size: int) -> None:
    """Raise InputError unless a shard has the size in its index and the last member where the index says."""
    folder = shard.parent
    with reading(shard), open(shard, "rb", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if found == size:
            file.seek(members[-1].start - _BLOCK if members else 0)
        head = file.read(_BLOCK)
    if found < size:
        raise InputError(
            f"{shard.absolute()}: truncated, or replaced after it was indexed: {found:,d} bytes, its index says "
            f"{size:,d}; copy it again, or index it with: diffir prepare index {folder}"
        )
    try:
        header = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        header = None
    is_last = bool(members) and header is not None and header.size == members[-1].size
    if found != size or not is_last:
        raise InputError(
            f"{shard.absolute()}: changed after it was indexed; index it again with: diffir prepare index {folder}"
        )


class Shards:
    """The images of a folder of shards; files are opened when needed, at most 64 at a time in each process.

    Picklable, and safe for threads and forked processes, which share no position in a file. Raises InputError if
    shards lack an index, differ from it, or are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = shards_of(folder)
        _check_complete(folder, self.paths)
        self.names: list[str] = []  # of the members, in the order of the shards
        self.left_out: list[str] = []
        columns = []  # arrays rather than objects, of which a million would take half a gigabyte
        for number, path in enumerate(self.paths):
            index = read_index(path)
            self.names += (member.name for member in index.members)
            self.left_out += (f"{path.name}[{name}]" for name in index.left_out)
            columns.append(_columns(number, index.members))
        self._spans, self._shapes, self._digests = map(np.concatenate, zip(*columns, strict=True))
        self._open: dict[Path, IO[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def shard(self, place: int) -> Path:
        """The shard of an image."""
        return self.paths[self._spans[place, 0]]

    def member(self, place: int) -> Member:
        """An image by its place in `names`."""
        _, start, size = self._spans[place].tolist()
        high, wide, channels, is_8bit = self._shapes[place].tolist()
        digest = self._digests[place].tobytes().hex()
        return Member(self.names[place], start, size, (high, wide, channels), bool(is_8bit), digest)

    def shape(self, place: int) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        high, wide, channels = self._shapes[place, :3].tolist()
        return high, wide, channels

    def are_8bit(self, places: Sequence[int]) -> bool:
        """Whether images have at most 8 bits per channel."""
        return bool(self._shapes[places, 3].all())

    def bytes_of(self, places: Sequence[int]) -> int:
        """Bytes of images as they are stored."""
        return int(self._spans[places, 2].sum())

    def where(self, place: int) -> str:
        """The shard and name of an image, for messages."""
        return f"{self.shard(place)}[{self.names[place]}]"

    def read(self, place: int) -> bytes:
        """The bytes of an image; raises InputError if they cannot be read or differ from the index."""
        member = self.member(place)
        data = self.read_at(place, member.start, member.size)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise InputError(
                f"{self.where(place)}: {DIFFERS}; copy it again, or index it again with: diffir prepare index "
                f"{self.folder} --overwrite"
            )
        return data

    def read_at(self, place: int, start: int, size: int) -> bytes:
        """Bytes of the shard of an image."""
        path = self.shard(place)
        with reading(path):
            file = self._open.get(path)
            if file is None:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed when it is dropped and no thread reads
                self._open[path] = file
                with contextlib.suppress(RuntimeError):  # another thread changed it, which drops files as well
                    while len(self._open) > _MOST_OPEN:
                        self._open.pop(next(iter(self._open)), None)
            return read_span(file, path, start, size)


def _columns(number: int, members: list[Member]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 3) number of the shard, first byte and bytes; (N, 4) shape and whether 8 bits; (N, 32) digests."""
    spans = np.array([(number, one.start, one.size) for one in members], np.int64).reshape(-1, 3)
    shapes = np.array([(*one.shape, one.is_8bit) for one in members], np.int32).reshape(-1, 4)
    digests = np.frombuffer(b"".join(bytes.fromhex(one.sha256) for one in members), np.uint8)
    return spans, shapes, digests.reshape(-1, 32)


def _check_complete(folder: Path, paths: list[Path]) -> None:
    """Raise InputError for shards without an index, and indexes without a shard."""
    names = set(os.listdir(folder))
    without = [path.name for path in paths if index_path(path).name not in names]
    if without:
        raise InputError(
            f"{folder.absolute()}: {len(without)} of {len(paths)} shards have no index ({_some(without)}); make it "
            f"with: diffir prepare index {folder}"
        )
    known = {index_path(path).name for path in paths}
    alone = sorted(name.removesuffix(INDEX) for name in names - known if name.endswith(f".tar{INDEX}"))
    alone = [name for name in alone if not name.startswith(".")]
    if alone:
        raise InputError(
            f"{folder.absolute()}: {len(alone)} shards are missing ({_some(alone)}), only their indexes exist; copy "
            "them again, or remove their indexes to do without them"
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert errors of the system to InputError, which names the shard."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path.absolute()}: cannot be read ({error.strerror or error}); check permissions and the disk"
        ) from error


def read_span(file: IO[bytes], path: Path, start: int, size: int) -> bytes:
    """Bytes of an open shard; raises InputError if it is too short."""
    parts: list[bytes] = []
    while size > 0:
        if hasattr(os, "pread"):
            part = os.pread(file.fileno(), size, start)
        else:  # Windows: one position per open file
            with open(path, "rb", buffering=0) as own:
                own.seek(start)
                part = own.read(size)
        if not part:
            raise InputError(f"{path.absolute()}: truncated at byte {start:,d}; copy it again")
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _some(names: list[str]) -> str:
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
