"""Files that a job makes or finds made, and the manifest and the summary that tell of them."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.data.encoded import read_header
from diffir_sr.data.images import decode, encode_png, read_file, write_atomically
from diffir_sr.data.manifest import Entry, Manifest, manifest_path, read_manifest, write_manifest
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import remove_leftovers
from diffir_sr.version import __version__


@dataclass(frozen=True)
class Stored:
    """One file of a job's output, and whether it was written now or was there."""

    entry: Entry
    written: bool


@dataclass(frozen=True)
class Target:
    """Where an image goes (`name` below `root`) and the relative path of the image it is made of."""

    root: Path
    name: str
    origin: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    def store(self, data: bytes, image: np.ndarray) -> Stored:
        """Write the encoded form `data` of an image (H, W, C), whole or not at all."""
        write_atomically(data, self.path)
        height, width, channels = image.shape
        return Stored(self._entry(data, (height, width, channels)), written=True)

    def store_png(self, image: np.ndarray, *, compress_level: int = 1) -> Stored:
        """Encode an image (H, W, C) as PNG and write it."""
        return self.store(encode_png(image, compress_level=compress_level), image)

    def keep(self) -> Stored:
        """The file as it is there; raises InputError where it is no image."""
        data = read_file(self.path)
        header = read_header(self.path)
        if header is None:
            height, width, channels = decode(data, where=str(self.path)).shape
        else:
            height, width, channels = header.height, header.width, header.channels
        return Stored(self._entry(data, (height, width, channels)), written=False)

    def _entry(self, data: bytes, size: tuple[int, int, int]) -> Entry:
        return Entry(self.name, self.origin, size, len(data), hashlib.sha256(data).hexdigest())


def relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


@dataclass
class Job:
    """A job that fills one output folder: refuses to mix parameters, ends with a manifest and a summary."""

    output: Path
    name: str
    parameters: Mapping[str, Any]  # everything that decides the bytes
    source: Path
    started: float = field(default_factory=time.perf_counter)

    @property
    def _unfinished(self) -> Path:
        return self.output.with_name(f"{self.output.name}.unfinished.json")

    def begin(self, *, overwrite: bool = False) -> None:
        """Raise InputError where `output` holds images made with other parameters; else note what is under way."""
        now = json.loads(json.dumps({"job": self.name, "parameters": dict(self.parameters)}))
        if not overwrite:
            before = self._before()
            if before is not None and before != now:
                raise InputError(
                    f"{self.output.absolute()} holds images made otherwise ({_difference(before, now)}); they would be "
                    f"mixed; choose another folder, or remove it and the files beside it that are called after it, or "
                    "give --overwrite"
                )
        if self._unfinished.is_file():
            remove_leftovers(self.output)
        write_atomically(json.dumps(now).encode(), self._unfinished)

    def _before(self) -> dict[str, Any] | None:
        """Job and parameters of what is in the folder."""
        if self._unfinished.is_file():
            return json.loads(self._unfinished.read_text())
        if not manifest_path(self.output).is_file() or not self.output.exists():
            return None
        found = read_manifest(manifest_path(self.output))
        return {"job": found.job, "parameters": dict(found.parameters)}

    def finish(self, stored: Iterable[Stored], *, notes: Iterable[str] = (), what: str = "images") -> str:
        """Write the manifest and print the summary; gives the summary."""
        stored = list(stored)
        entries = [one.entry for one in stored]
        listing = write_manifest(self.output, self._manifest(entries))
        self._unfinished.unlink(missing_ok=True)
        made = sum(one.written for one in stored)
        told = [f"{made} made, {len(stored) - made} kept", f"{sum(entry.bytes for entry in entries) / 2**20:.1f} MiB"]
        told += [f"{time.perf_counter() - self.started:.1f} s", *notes]
        text = f"{self.output}: {len(stored)} {what} ({', '.join(told)}); listed in {listing}\n"
        sys.stdout.write(text)
        return text

    def _manifest(self, entries: list[Entry]) -> Manifest:
        """The entries of this run, and those that an earlier run from another source put into the same folder."""
        source, path = self.source.resolve().as_posix(), manifest_path(self.output)
        if path.is_file():
            before = read_manifest(path)
            names = {entry.name for entry in entries}
            others = [entry for entry in before.entries if entry.name not in names]
            others = [entry for entry in others if before.source != source and (self.output / entry.name).is_file()]
            if others:
                source = " + ".join(dict.fromkeys([*before.source.split(" + "), source]))
                entries = [*entries, *others]
        return Manifest(self.name, self.parameters, source, __version__, entries)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if before["job"] != now["job"]:
        return f"by {before['job']!r}, not {now['job']!r}"
    pairs = ((name, before["parameters"].get(name), now["parameters"].get(name)) for name in now["parameters"])
    return "; ".join(f"{name} {old!r}, now {new!r}" for name, old, new in pairs if old != new) or "fewer parameters"
