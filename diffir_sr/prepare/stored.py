"""Output files of jobs, new or existing, the forms in which images are stored, and the manifest of a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from diffir_sr.data.sources import Entry, Manifest, manifest_path, read_manifest, write_manifest
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import sweep, sync_all, write_atomically
from diffir_sr.files.images import decode, header, inspect, read_file
from diffir_sr.files.picture import as_bits, encode_png
from diffir_sr.files.processes import hold
from diffir_sr.version import __version__

_ADDS_ONLY = {"to_8bit"}  # parameters that allow more images without changing the others


@dataclass(frozen=True)
class StoredImage:
    """One output file of a job, and whether it is new or existed."""

    entry: Entry
    written: bool


@dataclass(frozen=True)
class StoredTarget:
    """The target of an image (`name` below `root`) and the relative path of its source."""

    root: Path
    name: str
    origin: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    def store(self, data: bytes, image: np.ndarray) -> StoredImage:
        """Write the encoded image `data` of an image (H, W, C) atomically."""
        write_atomically(data, self.path, sync=False)  # the job syncs all files at its end
        height, width, channels = image.shape
        return StoredImage(self._entry(data, (height, width, channels)), written=True)

    def store_png(self, image: np.ndarray, *, compress_level: int = 1) -> StoredImage:
        """Encode an image (H, W, C) as PNG and write it."""
        return self.store(encode_png(image, compress_level=compress_level), image)

    def keep(self) -> StoredImage:
        """The existing file; raises InputError if it is not an image."""
        data, found = read_file(self.path), header(self.path)
        return StoredImage(self._entry(data, (found.height, found.width, found.channels)), written=False)

    def _entry(self, data: bytes, size: tuple[int, int, int]) -> Entry:
        return Entry(self.name, self.origin, size, len(data), hashlib.sha256(data).hexdigest())


def relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


@dataclass
class PrepareJob:
    """A job that fills one output folder: prevents mixing of parameters, and ends with a manifest and a summary."""

    output: Path
    name: str
    parameters: Mapping[str, Any]  # everything that determines the files
    source: Path
    started: float = field(default_factory=time.perf_counter)
    _resumes: bool = False

    @property
    def _unfinished(self) -> Path:
        return self.output.with_name(f"{self.output.name}.unfinished.json")

    def check(self, *, overwrite: bool = False) -> None:
        """Raise InputError if `output` contains images made with other parameters, to prevent mixing."""
        now, before = self._note(), self._before()
        if overwrite:
            before = self._of_other_sources()  # these are not made by this job
        if before is not None and (difference := _difference(before, now)):
            remedy = "" if overwrite else ", or give --overwrite"
            raise InputError(
                f"{self.output.absolute()} contains images made with other parameters ({difference}); use another "
                f"folder, or delete it and its {self.output.name}.* files{remedy}"
            )

    def begin(self, *, overwrite: bool = False) -> None:
        """Raise the errors of `check`; otherwise record the running job. `underway` calls it and locks the folder."""
        self.check(overwrite=overwrite)
        if not self.output.exists():
            manifest_path(self.output).unlink(missing_ok=True)  # of a folder that was removed
        if self._unfinished.is_file():
            self._resumes = True
            sweep(self.output, below=True)
        for path in (manifest_path(self.output), self._unfinished):
            sweep(path.parent, of=path.name)
        write_atomically(json.dumps({**self._note(), "overwrite": overwrite}).encode(), self._unfinished)

    def _note(self) -> dict[str, Any]:
        return json.loads(json.dumps({"job": self.name, "parameters": dict(self.parameters)}))

    def _before(self) -> dict[str, Any] | None:
        """Job and parameters of the images in the folder."""
        if not self.output.exists():
            return None
        if self._unfinished.is_file():
            return self._stopped()
        found = self._listed()
        return {"job": found.job, "parameters": dict(found.parameters)} if found else None

    def _stopped(self) -> dict[str, Any]:
        """The record of an interrupted run; raises InputError if it cannot be read."""
        try:
            note = json.loads(read_file(self._unfinished))
            if not isinstance(note["job"], str) or not isinstance(note["parameters"], dict):
                raise TypeError("not the record of a job")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self._unfinished.absolute()}: an unreadable record of an interrupted job ({error}); remove it "
                f"and {self.output.name} next to it, and start again"
            ) from error
        return note

    def _of_other_sources(self) -> dict[str, Any] | None:
        found = self._listed()
        if found is None or found.source == self._source:
            return None
        return {"job": found.job, "parameters": dict(found.parameters)}

    @property
    def _source(self) -> str:
        return self.source.resolve().as_posix()

    def _listed(self) -> Manifest | None:
        """The manifest of the folder."""
        path = manifest_path(self.output)
        return read_manifest(path) if path.is_file() and self.output.exists() else None

    def finish(self, stored: Iterable[StoredImage], *, notes: Iterable[str] = (), what: str = "images") -> str:
        """Write the manifest and print the summary, which is returned.

        With --overwrite, earlier images that this job did not replace are removed, since they would count as results.
        """
        stored = list(stored)
        entries, before = [one.entry for one in stored], self._listed()
        if before is not None:
            self._remove_replaced(before, {entry.name for entry in entries})
        sync_all()  # files in the manifest must survive a power failure
        listing = write_manifest(self.output, self._manifest(entries, before))
        if self._resumes:  # workers of the killed run may still have been running when this one began
            sweep(self.output, below=True)
        self._unfinished.unlink(missing_ok=True)
        made = sum(one.written for one in stored)
        details = [
            f"{made} made, {len(stored) - made} kept",
            f"{sum(entry.bytes for entry in entries) / 2**20:.1f} MiB",
        ]
        details += [f"{time.perf_counter() - self.started:.1f} s", *notes]
        text = f"{self.output}: {len(stored)} {what} ({', '.join(details)}); listed in {listing}\n"
        sys.stdout.write(text)
        return text

    def _remove_replaced(self, before: Manifest, made: set[str]) -> None:
        if not _difference({"job": before.job, "parameters": before.parameters}, self._note()):
            return
        for entry in before.entries:
            if entry.name not in made:
                (self.output / entry.name).unlink(missing_ok=True)

    def _manifest(self, entries: list[Entry], before: Manifest | None) -> Manifest:
        """The entries of this run, and those of an earlier run from another source in the same folder."""
        source = self._source
        if before is not None and before.source != source:
            names = {entry.name for entry in entries}
            others = [entry for entry in before.entries if entry.name not in names]
            others = [entry for entry in others if (self.output / entry.name).is_file()]
            if others:
                source = " + ".join(dict.fromkeys([*before.source.split(" + "), source]))
                entries = [*entries, *others]
        return Manifest(self.name, self.parameters, source, __version__, entries)


@contextlib.contextmanager
def underway(*jobs: PrepareJob, overwrite: bool) -> Iterator[None]:
    """Begin jobs that run together, and lock their folders until the end."""
    with contextlib.ExitStack() as held:
        for job in jobs:
            held.enter_context(hold(job.output))
        for job in jobs:
            job.begin(overwrite=overwrite)
        yield


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between the parameters of two runs; empty if there are none."""
    if before["job"] != now["job"]:
        return f"by {before['job']!r}, not {now['job']!r}"
    if before.get("overwrite"):
        return "a run with --overwrite was interrupted"
    old, new = before["parameters"], now["parameters"]
    values = [(name, old.get(name), new.get(name)) for name in {**new, **old} if name not in _ADDS_ONLY]
    return "; ".join(f"{name} {was!r}, now {value!r}" for name, was, value in values if was != value)


# Stored images: 8 bits, grey or RGB.


@dataclass(frozen=True)
class Storable:
    """uint8 grey or RGB (H, W, C), and the bytes of the file if it is a PNG of exactly that (else None)."""

    image: np.ndarray
    png: bytes | None
    dropped_alpha: bool


def read_storable(file: Path, *, to_8bit: bool) -> Storable:
    """`storable` of a file."""
    return storable(read_file(file), where=str(file), to_8bit=to_8bit)


def storable(data: bytes, *, where: str, to_8bit: bool) -> Storable:
    """An upright image without alpha; raises InputError for 16 bits per channel unless rounding is allowed."""
    image = decode(data, where=where)
    known = inspect(data, where=where)
    whole = known.format == "png" and known.metadata.turn == 1
    if image.dtype != np.uint8:
        if not to_8bit:
            depth = "floats" if image.dtype.kind == "f" else "16 bits per channel"
            raise InputError(f"{where}: {depth}; give --to-8bit to round to 8, or convert it")
        image, whole = as_bits(image, np.uint8), False
    dropped = image.shape[2] in (2, 4)
    if dropped:
        image, whole = np.ascontiguousarray(image[..., :-1]), False
    return Storable(image, data if whole else None, dropped)


# MATLAB's antialiased bicubic `imresize`, used for the low-resolution images of DIV2K and most benchmarks.


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def resize_matrix(length: int, scale: float) -> csr_matrix:
    """The linear map of one axis, (ceil(length * scale), length), antialiased when downscaling, mirrored borders."""
    out = math.ceil(length * scale)
    stretch = min(scale, 1.0)  # a kernel as wide as an output pixel
    support = 4.0 / stretch
    taps = math.ceil(support) + 2
    centre = (np.arange(out) + 0.5) / scale - 0.5
    first = np.floor(centre - support / 2).astype(int)
    index = first[:, None] + np.arange(taps)
    weight = stretch * cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    # Mirrored with the border repeated: -1 is 0, -2 is 1; likewise at the other end.
    folded = np.mod(index, 2 * length)
    folded = np.where(folded < length, folded, 2 * length - 1 - folded)
    rows = np.repeat(np.arange(out), taps)
    return csr_matrix((weight.ravel(), (rows, folded.ravel())), shape=(out, length))


def bicubic_resize(image: np.ndarray, *, scale: float) -> np.ndarray:
    """Resize (H, W, C) uint8 or uint16 by `scale`, rounded and clipped, as MATLAB's imresize(image, scale).

    Sides become ceil(side * scale).
    """
    if image.ndim != 3 or not np.issubdtype(image.dtype, np.unsignedinteger):
        raise InputError(f"expected an integer image (height, width, channels), got {image.dtype} {image.shape}")
    height, width, channels = image.shape
    rows, columns = resize_matrix(height, scale), resize_matrix(width, scale)
    # Vertical axis first, as MATLAB does for equal scales.
    tall = rows @ image.reshape(height, width * channels).astype(np.float64)
    turned = tall.reshape(-1, width, channels).transpose(1, 0, 2).reshape(width, -1)
    wide = (columns @ turned).reshape(-1, len(tall), channels).transpose(1, 0, 2)
    return (wide + 0.5).clip(0, np.iinfo(image.dtype).max).astype(image.dtype)
