"""Sources of images with a common interface (folders, LMDBs, shards), and the manifests beside prepared ones.

A manifest lies beside the folder, since BasicSR treats every visible file in a folder as an image. It contains no
times, so a job that was interrupted and finished later leaves the same file.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, unquote

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import replacing
from diffir_sr.files.images import (
    SUFFIXES,
    decode,
    header,
    is_image_name,
    is_picture_not_read,
    read_file,
    without_suffix,
)
from diffir_sr.files.lmdb_file import LmdbFile
from diffir_sr.files.shards import Member, Shards, is_shards, sample_of

SUFFIX = ".manifest.jsonl"
_FORMAT = 1
Field = TypeVar("Field")


@dataclass(frozen=True, slots=True)  # there may be millions
class Entry:
    """One image: its relative path (or LMDB key), that of its source, (height, width, channels), bytes as stored."""

    name: str
    origin: str
    size: tuple[int, int, int]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The job that made a folder or LMDB, the parameters that determine its files, and its images sorted by name."""

    job: str
    parameters: Mapping[str, Any]
    source: str
    version: str
    entries: list[Entry]


def manifest_path(output: Path) -> Path:
    """The path of the manifest of an output folder or LMDB."""
    return output.with_name(output.name + SUFFIX)


def write_manifest(output: Path, manifest: Manifest) -> Path:
    """Write the manifest of `output` atomically; returns its path."""
    head = {
        "diffir_manifest": _FORMAT,
        "job": manifest.job,
        "parameters": dict(manifest.parameters),
        "source": manifest.source,
        "version": manifest.version,
        "count": len(manifest.entries),
    }
    path = manifest_path(output)
    with replacing(path) as partial, partial.open("wb") as file:
        for line in chain([head], map(_line, sorted(manifest.entries, key=lambda entry: entry.name))):
            file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode(errors="surrogateescape"))
    return path


def _line(entry: Entry) -> dict[str, Any]:
    stored = {"size": list(entry.size), "bytes": entry.bytes, "sha256": entry.sha256}
    return {"name": entry.name, "from": entry.origin, **stored}


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; raises InputError if it is not a manifest, truncated or empty."""
    try:
        lines = records_in(path)
        head, entries = next(lines, {}), [_entry(line) for line in lines]
        if head["diffir_manifest"] != _FORMAT or head["count"] != len(entries):
            raise ValueError(f"format {head['diffir_manifest']}, {len(entries)} of {head['count']} images")
        job, source, version = _typed(str, *(head[key] for key in ("job", "source", "version")))
        (parameters,) = _typed(dict, head["parameters"])
        found = Manifest(job, parameters, source, version, entries)
    except (OSError, UnicodeDecodeError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path.absolute()}: cannot be read as a manifest ({error}); run the 'diffir prepare' job again"
        ) from error
    if not found.entries:
        raise InputError(f"{path.absolute()}: lists 0 images; make it again with 'diffir prepare'")
    return found


def records_in(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object per line; raises OSError and ValueError.

    Names in it may contain separators of lines other than LF, and bytes that are not UTF-8.
    """
    with path.open("rb") as file:
        yield from (json.loads(line.decode(errors="surrogateescape")) for line in file if line.strip())


def _entry(line: Mapping[str, Any]) -> Entry:
    name, origin, digest = _typed(str, *(line[key] for key in ("name", "from", "sha256")))
    height, width, channels, count = _typed(int, *line["size"], line["bytes"])
    return Entry(name, origin, (height, width, channels), count, digest)


def _typed(kind: type[Field], *values: Any) -> list[Field]:
    """The values, if all are of a type; otherwise raises TypeError."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"expected a {kind.__name__}, found {str(value)[:40]!r}")
    return list(values)


# Lines of BasicSR's meta_info files: `name (h,w,c)` for folders, `key.png (h,w,c) level` inside an LMDB.


# Parsed from the end, since names may contain spaces and parentheses: `photo (1).png (480,480,3)`.
_LINE = re.compile(
    r"(?P<name>.+?)(?: +\((?P<height>\d+), ?(?P<width>\d+)(?:, ?(?P<channels>\d+))?\)(?: +(?P<codec>\d+|raw))?)? *"
)
_MOST_DIGITS = 9


class Listed(NamedTuple):
    """One line: a name as written, (height, width) if present, channels, and whether pixels are raw."""

    name: str
    size: tuple[int, int] | None
    channels: int = 3
    raw: bool = False


def read_meta(path: Path) -> list[Listed]:
    """The lines of a meta_info file, without empty ones; raises InputError if it cannot be read or is empty."""
    try:
        # Some editors on Windows write a byte order mark and carriage returns.
        lines = [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.absolute()}: cannot be read as a list of images ({error})") from error
    listed = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            listed.append(_parse(line, where=f"{path.absolute()}, line {number}"))
    if not listed:
        raise InputError(f"{path.absolute()}: lists 0 images; make it again with 'diffir prepare'")
    return listed


def candidates(name: str, root: Path) -> Iterator[str]:
    """Possible meanings of a name in a list: as written, without `./`, with Windows backslashes, an absolute path."""
    yield name
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        plain = posixpath.normpath(written)
        yield plain
        for below in (root.absolute(), root.resolve()):
            if plain.startswith(f"{below.as_posix()}/"):
                yield plain.removeprefix(f"{below.as_posix()}/")


def _parse(line: str, *, where: str) -> Listed:
    found = _LINE.fullmatch(line)
    if found is None or found["height"] is None:
        return Listed(line.strip(), None)
    if max(len(found[side] or "") for side in ("height", "width", "channels")) > _MOST_DIGITS:
        raise InputError(f"{where}: a size of more than {_MOST_DIGITS} digits; make the list again")
    size = int(found["height"]), int(found["width"])
    return Listed(found["name"].strip(), size, int(found["channels"] or 3), found["codec"] == "raw")


_SAFE = "/-_~+=@:!"  # besides letters and digits; '.', '%', ',', parentheses and spaces would break BasicSR's parser
_SHOWN = 10
_LISTS = (".txt", ".jsonl")


def key_of(relative: str) -> str:
    """The LMDB key of a relative path without extension: ASCII, no dots, no spaces; `name_of` is the inverse."""
    return quote(relative.replace(os.sep, "/"), safe=_SAFE, errors="surrogateescape").replace(".", "%2E")


def name_of(key: str) -> str:
    """The relative path (without extension) of a key."""
    return unquote(key, errors="surrogateescape")


def _check_names(names: Sequence[str], where: Path) -> None:
    """Raise InputError for names of stored images that are no paths below a folder, since results are named by them."""
    paths = ((name, PurePath(name)) for name in names)
    wrong = [repr(name) for name, path in paths if ".." in path.parts or path.anchor or "\0" in name or not name]
    if wrong:
        raise InputError(
            f"{where.resolve()}: {len(wrong)} names are not paths inside a folder: {some(wrong, shown=3)}; store these "
            "images again under other names"
        )


class Picture(Protocol):
    """An image that is not read yet: its shape (H, W, C), and any part of it as an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: Any, /) -> np.ndarray: ...


class ImageSource(ABC):
    """Named images. `names` are relative paths without extension, sorted; images are (H, W, C), see `decode`."""

    kind: ClassVar[str]  # with its article, for messages
    is_8bit: bool  # whether all images are known to have at most 8 bits per channel
    path: Path
    names: list[str]

    @abstractmethod
    def view(self, name: str) -> Picture:
        """The image, for reading parts of it: `[:]`, `[top:bottom]` or `[top:bottom, left:right]`.

        If possible, only that part is read. Both raise InputError, which names the file, if it is damaged.
        """

    def read(self, name: str) -> np.ndarray:
        """The whole image; raises the errors of `view`."""
        return self.view(name)[:]

    @abstractmethod
    def shape(self, name: str) -> tuple[int, int, int]:
        """(height, width, channels without alpha), without decoding; raises InputError if its header is unreadable."""

    def size(self, name: str) -> tuple[int, int]:
        """(height, width); raises the errors of `shape`."""
        return self.shape(name)[:2]

    @abstractmethod
    def location(self, name: str) -> str:
        """The file path, or the key inside the LMDB or shards, for `lq_path` and `gt_path`."""

    @abstractmethod
    def describe(self) -> str:
        """A short text: kind, path and number of images."""

    def sizes(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(height, width) of many images; raises one InputError, which lists all with unreadable headers."""
        found, faults = {}, []
        for name in names:
            try:
                found[name] = self.size(name)
            except InputError as error:
                faults.append(str(error))
        if faults:
            lines = "".join(f"\n  {fault}" for fault in faults)
            raise InputError(f"{len(faults)} of {len(names)} images of {self.path.resolve()} cannot be read:{lines}")
        return found

    def keep_listed(self, meta_info: Path) -> None:
        """Restrict `names` to those in a meta_info file, in its order; raises InputError for missing ones."""
        listed = [
            next((name for name in candidates(given, self.path) if name in self), given)
            for given in _listed_names(meta_info)
        ]
        absent = [name for name in listed if name not in self]
        if absent:
            raise InputError(
                f"{meta_info.absolute()} lists {len(listed)} images, {len(absent)} of them are not under "
                f"{self.path.resolve()}: {some(absent, shown=5)}; make a new list with 'diffir prepare meta', or leave "
                "meta_info_file out"
            )
        self.names = listed

    def __contains__(self, name: str) -> bool:
        return name in self._known

    @property
    def _known(self) -> frozenset[str]:
        if not hasattr(self, "_set"):
            self._set = frozenset(self.names)
        return self._set


def _listed_names(listing: Path) -> list[str]:
    if listing.suffix != ".jsonl":
        return [without_suffix(line.name) for line in read_meta(listing)]
    entries = read_manifest(listing).entries
    # Images of an LMDB are identified by key.
    return [without_suffix(entry.name) if is_image_name(entry.name) else name_of(entry.name) for entry in entries]


class FolderSource(ImageSource):
    """Image files under a folder, including sub-folders, without hidden ones."""

    kind = "a folder"
    is_8bit = False  # what the files contain is not known in advance

    def __init__(self, path: Path) -> None:
        self.path = path
        self._suffixes: dict[str, str] = {}  # rather than paths, of which a million would take half a gigabyte
        self.left_out: list[str] = []  # images of unsupported formats
        twins = []
        for relative in sorted(_image_files(path)):
            if not is_image_name(relative):
                self.left_out.append(relative)
                continue
            name = without_suffix(relative)
            suffix = sys.intern(relative[len(name) :])
            first = self._suffixes.setdefault(name, suffix)
            if first != suffix:
                twins.append(f"{name}{first} and {relative}")
        if twins:
            raise InputError(
                f"two images of {path.resolve()} have the same name without extension: {some(twins)}; rename or remove "
                "one"
            )
        if not self._suffixes:
            raise InputError(f"no images under {path.resolve()}; expected {' '.join(SUFFIXES)}; check the path")
        self.names = sorted(self._suffixes)

    def file(self, name: str) -> Path:
        return self.path / self.relative(name)

    def relative(self, name: str) -> str:
        """The path of an image below the folder."""
        return name + self._suffixes[name]

    def view(self, name: str) -> np.ndarray:
        file = self.file(name)
        return decode(read_file(file), where=str(file))

    def shape(self, name: str) -> tuple[int, int, int]:
        found = header(self.file(name))
        return found.height, found.width, found.channels

    def location(self, name: str) -> str:
        return str(self.file(name))

    def describe(self) -> str:
        left_out = f" (left out, not read: {some(self.left_out, shown=3)})" if self.left_out else ""
        return f"folder {self.path.resolve()}, {len(self.names)} images{left_out}"


def _image_files(folder: Path) -> Iterator[str]:
    """Relative posix paths of image files, including unsupported formats; each real folder once, linked or not."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")

    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            wanted = (name for name in files if is_image_name(name) or is_picture_not_read(name))
            yield from (Path(here, name).relative_to(folder).as_posix() for name in wanted)
        seen.add(real)


class BarePixels:
    """An image stored as raw pixels from byte `start` on: reading a part reads only its rows, without decoding."""

    def __init__(self, read_at: Callable[[int, int], bytes], start: int, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._read_at, self._start = read_at, start

    def __getitem__(self, part: slice | tuple[slice, slice], /) -> np.ndarray:
        """Read rows, or rows and columns; raises InputError if reading fails."""
        rows, columns = part if isinstance(part, tuple) else (part, slice(None))
        top, bottom, step = rows.indices(self.shape[0])
        if step != 1:
            return self[:][part]
        width = self.shape[1] * self.shape[2]
        data = self._read_at(self._start + top * width, max(0, bottom - top) * width)
        return np.array(np.frombuffer(data, np.uint8).reshape(-1, *self.shape[1:])[:, columns])


class LmdbSource(ImageSource):
    """8-bit images in an LMDB with BasicSR's meta_info.txt next to the data.

    Images are encoded (PNG) or raw pixels, of which parts can be read without decoding.
    """

    kind = "an LMDB"
    is_8bit = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = LmdbFile(path)
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._keys: dict[str, str] = {}
        self._raw: set[str] = set()
        meta = path / "meta_info.txt"
        if not meta.is_file():
            raise InputError(
                f"{path.resolve()}: this LMDB has no meta_info.txt, which lists its keys; build it again with: "
                f"diffir prepare lmdb FOLDER -o {path}"
            )
        for line in read_meta(meta):
            if line.size is None:
                raise InputError(f"{meta}: expected 'key.png (height,width,channels) level', found {line.name!r}")
            key = without_suffix(line.name)
            self._keys[name_of(key)] = key
            self._shapes[name_of(key)] = (*line.size, line.channels)
            if line.raw:
                self._raw.add(name_of(key))
        self.names = sorted(self._keys)
        _check_names(self.names, path)
        self._data.check()  # now rather than in the middle of a run

    @property
    def is_raw(self) -> bool:
        """Whether images are raw pixels, which BasicSR's own classes cannot read."""
        return bool(self._raw)

    def stores_raw(self, name: str) -> bool:
        """Whether an image is stored as raw pixels."""
        return name in self._raw

    def view(self, name: str) -> Picture:
        key, raw = self._keys[name], name in self._raw
        found = self._data.find(key.encode()) if raw else self._data.get(key.encode())
        if found is None:
            raise InputError(
                f"{self.path.resolve()}: meta_info.txt lists the key {key!r}, which is not in the data; "
                "build the LMDB again"
            )
        where = f"{self.path}[{key}]"
        if isinstance(found, bytes):
            return decode(found, where=where)
        shape = self._shapes[name]
        if found.size != math.prod(shape):
            raise InputError(
                f"{where}: {found.size} bytes, expected {math.prod(shape)} for {shape}; build the LMDB again"
            )
        return BarePixels(self._data.read_at, found.start, shape)

    def shape(self, name: str) -> tuple[int, int, int]:
        return self._shapes[name]

    def location(self, name: str) -> str:
        return self._keys[name]

    def describe(self) -> str:
        return f"LMDB {self.path.resolve()}, {len(self.names)} images"


class ShardSource(ImageSource):
    """Images in shards (.tar files, see `files.shards`), all of one field if their samples consist of several."""

    kind = "a folder of shards"

    def __init__(self, path: Path, *, field: str | None = None) -> None:
        self.path = path if field is None else path / field
        check_unstopped(path)
        self._shards = Shards(path)
        samples = [sample for sample in map(sample_of, self._shards.names) if sample is not None]
        fields = sorted({its_field for _, its_field in samples})
        found = some([one or "without a field" for one in fields], shown=5)
        if field is None and len(fields) > 1:
            ways = " or ".join(f"{path}/{one}" for one in fields[:3] if one)
            raise InputError(
                f"{path.absolute()}: its samples consist of several images ({found}); choose one, such as {ways}"
            )
        if fields == [""] and field is not None:
            raise InputError(
                f"{self.path.absolute()}: does not exist, and the shards of {path.absolute()} have one image per "
                f"sample; give {path}"
            )
        if field is not None and field not in fields:
            raise InputError(f"{path.absolute()}: no sample has an image {field!r}, only {found}")
        self._places: dict[str, int] = {}
        twins = []
        for place, (key, its_field) in enumerate(samples):
            if field is None or its_field == field:
                first = self._places.setdefault(name_of(key), place)
                if first != place:
                    twins.append(f"{self._shards.where(first)} and {self._shards.where(place)}")
        if twins:
            raise InputError(
                f"{len(twins)} images of {path.resolve()} have the same name: {some(twins, shown=3)}; rename or remove "
                "one of them, or move shards into folders of their own, which a list of roots mixes"
            )
        self.names = sorted(self._places)
        _check_names(self.names, path)
        self.is_8bit = self._shards.are_8bit(list(self._places.values()))

    @property
    def left_out(self) -> list[str]:
        """Images of unsupported formats."""
        return self._shards.left_out

    def view(self, name: str) -> Picture:
        place = self._places[name]
        member = self._shards.member(place)
        if member.is_raw:
            return BarePixels(partial(self._shards.read_at, place), member.pixels_from, member.shape)
        return decode(self._shards.read(place), where=self._shards.where(place))

    def stored(self, name: str) -> tuple[Path, Member]:
        """The shard of an image, and its place in it."""
        place = self._places[name]
        return self._shards.shard(place), self._shards.member(place)

    @property
    def bytes(self) -> int:
        """Bytes of the images as they are stored."""
        return self._shards.bytes_of(list(self._places.values()))

    def shape(self, name: str) -> tuple[int, int, int]:
        return self._shards.shape(self._places[name])

    def location(self, name: str) -> str:
        return key_in_shards(self._shards.names[self._places[name]])

    def describe(self) -> str:
        return f"shards {self.path.resolve()}, {len(self.names)} images in {len(self._shards.paths)} files"


def check_unstopped(folder: Path) -> None:
    """Raise InputError if the job that makes the shards of a folder is running, or was interrupted."""
    unfinished = folder.with_name(f"{folder.name}.unfinished.json")
    if unfinished.is_file():
        raise InputError(
            f"{folder.absolute()}: the job that makes these shards has not finished; wait, or run the same command "
            f"again, which continues (or remove {unfinished.name} to use what exists)"
        )


def key_in_shards(member: str) -> str:
    """The key of the sample of a member that is an image."""
    sample = sample_of(member)
    return sample[0] if sample else member


def is_lmdb(path: Path) -> bool:
    """Whether a path is an LMDB, by its suffix or because it contains a data file."""
    return path.suffix == ".lmdb" or (path / "data.mdb").is_file()


def shards_at(path: Path) -> tuple[Path, str | None] | None:
    """The folder of shards and the field of their samples that a path names (`shards/lq`); None if it names none."""
    if is_shards(path):
        return path, None
    return (path.parent, path.name) if not path.exists() and is_shards(path.parent) else None


def backend_of(root: str | Path) -> str:
    """The kind of a root as `io_backend.type` calls it: lmdb, webdataset or disk."""
    path = Path(os.path.expanduser(root))
    return "lmdb" if is_lmdb(path) else "webdataset" if shards_at(path) else "disk"


def open_source(path: str | Path, *, meta_info: str | Path | None = None) -> ImageSource:
    """The images at `path`, all or those listed in `meta_info`; raises InputError if there are none.

    `path` is a folder, an LMDB, a folder of shards or one of the images of their samples (`shards/lq`), a file that
    lists images of its own folder (`name` or `name (h,w,c)` per line), or the manifest of something prepared; the kind
    is detected from the path and its content.
    """
    try:
        return _opened(Path(os.path.expanduser(path)), meta_info)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be accessed ({error.strerror}); check its permissions") from error


def _opened(path: Path, meta_info: str | Path | None) -> ImageSource:
    if not path.exists() and not shards_at(path):
        raise InputError(f"no such folder or LMDB: {path.absolute()}; prepare it or correct the path")
    listed = None
    if path.exists() and not path.is_dir():
        if path.suffix == ".tar":
            raise InputError(f"{path.absolute()}: a single shard; give the folder of the shards, {path.parent}")
        if path.suffix not in _LISTS:
            raise InputError(
                f"{path.absolute()}: expected a folder of images, an LMDB folder, or a list of images "
                f"({' or '.join(_LISTS)}), found another file"
            )
        listed, path = path, _listed_folder(path)
    source = _of_folder(path)
    for meta in (listed, meta_info):
        if meta:
            meta = Path(os.path.expanduser(meta))
            if not meta.is_file():
                raise InputError(f"no such meta_info file: {meta.absolute()}; leave the option out, it is not needed")
            source.keep_listed(meta)
    return source


def _of_folder(path: Path) -> ImageSource:
    if is_lmdb(path):
        return LmdbSource(path)
    shards = shards_at(path)
    return ShardSource(shards[0], field=shards[1]) if shards else FolderSource(path)


def _listed_folder(listing: Path) -> Path:
    """The root of the images in a list: the folder of a text file, or the folder or LMDB of a manifest."""
    if listing.suffix == ".txt":
        return listing.parent
    folder = listing.with_name(listing.name.removesuffix(".jsonl").removesuffix(".manifest"))
    if not folder.is_dir():
        raise InputError(f"{listing.absolute()}: the manifest of {folder.name}, which no longer exists")
    return folder


def roots_of(opt: Mapping[str, Any], key: str) -> list[str]:
    """The folders or LMDBs under `key` in a dataset option section, at least one."""
    given = opt.get(key)
    roots = [given] if isinstance(given, (str, Path)) else list(given or [])
    if not roots or not all(roots):
        raise InputError(f"{key} is missing; give a folder of images, an LMDB or a folder of shards")
    return [str(root) for root in roots]


_BACKENDS = {"lmdb": "an LMDB", "webdataset": "a folder of shards", "disk": "a folder of image files"}


def check_backend(opt: Mapping[str, Any]) -> None:
    """Raise InputError if `io_backend.type` of a dataset contradicts the kind of its roots."""
    backend = (opt.get("io_backend") or {}).get("type")
    keys = [key for key in ("dataroot_lq", "dataroot_gt") if opt.get(key)]
    for root in (root for key in keys for root in roots_of(opt, key)):
        if backend in _BACKENDS and backend != (found := backend_of(root)):
            raise InputError(
                f"io_backend.type is {backend!r}, but {Path(root).absolute()} is {_BACKENDS[found]}; set it to "
                f"{found!r}"
            )


def some(examples: Sequence[str], *, shown: int = _SHOWN) -> str:
    """A few of many examples, and the number of the others."""
    more = f", ... ({len(examples) - shown} more)" if len(examples) > shown else ""
    return ", ".join(examples[:shown]) + more


def image_names(paths: list[str]) -> list[str]:
    """File names for results: the stem of each path or LMDB key, prefixed with its folders if stems repeat."""
    names = [without_suffix(path) if is_image_name(path) else name_of(path) for path in paths]
    stems = [Path(name).name for name in names]
    counts = Counter(stems)
    return [
        stem if counts[stem] == 1 else name.strip("/").replace("/", "_")
        for stem, name in zip(stems, names, strict=True)
    ]
