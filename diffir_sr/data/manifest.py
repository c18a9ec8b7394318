"""Manifests of preparation jobs: one JSON line per image, in a file next to the folder or LMDB.

It is not inside the folder, since BasicSR treats every visible file in a folder as an image. It contains no times, so a
job that was interrupted and finished later leaves the same file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically

SUFFIX = ".manifest.jsonl"
_FORMAT = 1
Value = TypeVar("Value")


@dataclass(frozen=True)
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
    lines = [head, *map(_line, sorted(manifest.entries, key=lambda entry: entry.name))]
    path = manifest_path(output)
    write_atomically("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode(), path)
    return path


def _line(entry: Entry) -> dict[str, Any]:
    stored = {"size": list(entry.size), "bytes": entry.bytes, "sha256": entry.sha256}
    return {"name": entry.name, "from": entry.origin, **stored}


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; raises InputError if it is not a manifest, truncated or empty."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        head, entries = lines[0], [_entry(line) for line in lines[1:]]
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


def _entry(line: Mapping[str, Any]) -> Entry:
    name, origin, digest = _typed(str, *(line[key] for key in ("name", "from", "sha256")))
    height, width, channels, count = _typed(int, *line["size"], line["bytes"])
    return Entry(name, origin, (height, width, channels), count, digest)


def _typed(kind: type[Value], *values: Any) -> list[Value]:
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
