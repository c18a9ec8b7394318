"""The images under a root, in a form that worker processes can read, and problems of the root itself."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.data.sources import (
    FolderSource,
    ShardSource,
    is_lmdb,
    name_of,
    open_source,
    read_meta,
    records_in,
    shards_at,
)
from diffir_sr.doctor.findings import Finding
from diffir_sr.errors import InputError
from diffir_sr.files.images import decode_with_notes, read_file, without_suffix
from diffir_sr.files.lmdb_file import LmdbFile
from diffir_sr.files.shards import RAW, read_span, reading

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", RAW)


@dataclass(frozen=True)
class StoredImage:
    """One image: a file, a key of an LMDB or a member of a shard, with its size in the list of the LMDB or the index.

    `raw` is the shape of raw pixels, `span` the first byte and the bytes of a member.
    """

    name: str
    path: Path
    key: str | None = None
    listed: tuple[int, int] | None = None
    raw: tuple[int, int, int] | None = None
    sha256: str | None = None  # according to the manifest or the index of the shard
    span: tuple[int, int] | None = None
    is_absent: bool = False  # listed in the LMDB's meta_info.txt, but not in its data

    @property
    def where(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}[{self.key}]"

    @property
    def is_lossless(self) -> bool:
        """Whether the image is stored without loss, by its name; an LMDB stores PNG or raw pixels."""
        name = self.path.name if self.key is None else self.key
        return (self.key is not None and self.span is None) or name.lower().endswith(_LOSSLESS)

    def read(self) -> bytes:
        """The bytes as they are stored; raises InputError."""
        if self.key is None:
            return read_file(self.path)
        if self.span is not None:
            with reading(self.path), open(self.path, "rb", buffering=0) as file:
                return read_span(file, self.path, *self.span)
        data = LmdbFile(self.path).get(self.key.encode())
        if data is None:
            raise InputError(f"{self.where}: the data does not contain this key; build the LMDB again")
        return data

    def pixels(self, data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
        """(H, W, C) from the stored bytes, and what was decoded; raises InputError if they are not an image."""
        if self.raw is None:
            return decode_with_notes(data, where=self.where)
        if self.span is not None:  # behind the header of NumPy
            data = data[-math.prod(self.raw) :]
        if len(data) != math.prod(self.raw):
            raise InputError(f"{self.where}: {len(data)} bytes, expected {math.prod(self.raw)} for {self.raw}")
        return np.frombuffer(data, np.uint8).reshape(self.raw), ()


@dataclass
class Storage:
    """The images under one root, by name, and the problems found before decoding."""

    root: Path
    images: dict[str, StoredImage] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def open_storage(root: str, *, dataset: str) -> Storage:
    """List the images under a root; never raises, since problems are findings."""
    path = Path(os.path.expanduser(root))
    storage = Storage(path)
    try:
        list_images = _of_lmdb if path.is_dir() and is_lmdb(path) else _of_shards if shards_at(path) else _of_folder
        images = list_images(storage, dataset)
    except InputError as error:
        storage.findings.append(Finding("source", root, str(error), dataset))
        return storage
    storage.images = images
    _compare_with_manifest(storage, dataset)
    return storage


def _of_folder(storage: Storage, dataset: str) -> dict[str, StoredImage]:
    path = storage.root
    source = open_source(path)
    if not isinstance(source, FolderSource):
        raise InputError(f"{path}: expected a folder of images")
    for relative in source.left_out:
        storage.findings.append(Finding("left out", str(path / relative), "of an unsupported kind", dataset))
    return {name: StoredImage(name, source.file(name)) for name in source.names}


def _of_shards(storage: Storage, dataset: str) -> dict[str, StoredImage]:
    source = open_source(storage.root)
    if not isinstance(source, ShardSource):
        raise InputError(f"{storage.root}: expected a folder of shards")
    for where in source.left_out:
        storage.findings.append(Finding("left out", f"{storage.root}/{where}", "of an unsupported kind", dataset))
    images = {}
    for name in source.names:
        shard, member = source.stored(name)
        images[name] = StoredImage(
            name,
            shard,
            member.name,
            listed=member.shape[:2],
            raw=member.shape if member.is_raw else None,
            sha256=member.sha256,
            span=(member.start, member.size),
        )
    return images


def _of_lmdb(storage: Storage, dataset: str) -> dict[str, StoredImage]:
    path = storage.root
    open_source(path)  # raises a specific message if the LMDB has no usable list
    images, listed = {}, set()
    for line in read_meta(path / "meta_info.txt"):
        key = without_suffix(line.name)
        shape = (*line.size, line.channels) if line.raw and line.size else None
        images[name_of(key)] = StoredImage(name_of(key), path, key, line.size, shape)
        listed.add(key)
    held = {key.decode(errors="replace") for key in LmdbFile(path).all_keys()}
    for key in listed - held:
        images[name_of(key)] = replace(images[name_of(key)], is_absent=True)
    for key in sorted(held - listed):
        storage.findings.append(
            Finding(
                "lmdb", f"{path}[{key}]", "in the data, but not listed in meta_info.txt, so it is never read", dataset
            )
        )
    return images


def _compare_with_manifest(storage: Storage, dataset: str) -> None:
    path = storage.root.with_name(f"{storage.root.name}.manifest.jsonl")
    if not path.is_file():
        return
    try:
        entries = _read_manifest(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        storage.findings.append(Finding("manifest", str(path), f"cannot be read ({error})", dataset))
        return
    made = {_name_in(storage, without_suffix(entry["name"])): entry for entry in entries}
    for name in sorted(made.keys() - storage.images.keys()):
        storage.findings.append(Finding("manifest", str(path), f"{name}: in the manifest, but missing", dataset))
    for name in sorted(storage.images.keys() - made.keys()):
        where = storage.images[name].where
        storage.findings.append(Finding("manifest", where, f"not in {path.name}: added later", dataset))
    for name in made.keys() & storage.images.keys():
        if storage.images[name].sha256 is not None:  # of its shard's index, with which it is also read
            continue
        storage.images[name] = replace(storage.images[name], sha256=str(made[name]["sha256"]))


def _name_in(storage: Storage, written: str) -> str:
    """The name in a manifest: of a file, or of a key of an LMDB."""
    return written if written in storage.images else name_of(written)


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    lines = list(records_in(path))
    if not lines or "diffir_manifest" not in lines[0]:
        raise ValueError("the first line is not the header of a manifest")
    return [line for line in lines[1:] if "name" in line and "sha256" in line]
