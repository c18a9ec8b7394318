"""Files that a job makes or finds made, in which forms they may be stored, and the manifest that tells of them."""

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

from diffir_sr.data.manifest import Entry, Manifest, manifest_path, read_manifest, write_manifest
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import sweep, sync_all, write_atomically
from diffir_sr.files.images import decode, header, inspect, read_file
from diffir_sr.files.picture import as_bits, encode_png
from diffir_sr.files.processes import hold
from diffir_sr.version import __version__

_ADDS_ONLY = {"to_8bit"}  # parameters that admit more images and change none of the others


@dataclass(frozen=True)
class StoredImage:
    """One file of a job's output, and whether it was written now or was there."""

    entry: Entry
    written: bool


@dataclass(frozen=True)
class StoredTarget:
    """Where an image goes (`name` below `root`) and the relative path of the image it is made of."""

    root: Path
    name: str
    origin: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    def store(self, data: bytes, image: np.ndarray) -> StoredImage:
        """Write the encoded form `data` of an image (H, W, C), whole or not at all."""
        write_atomically(data, self.path, sync=False)  # the job syncs all of them at its end
        height, width, channels = image.shape
        return StoredImage(self._entry(data, (height, width, channels)), written=True)

    def store_png(self, image: np.ndarray, *, compress_level: int = 1) -> StoredImage:
        """Encode an image (H, W, C) as PNG and write it."""
        return self.store(encode_png(image, compress_level=compress_level), image)

    def keep(self) -> StoredImage:
        """The file as it is there; raises InputError where it is no image."""
        data, found = read_file(self.path), header(self.path)
        return StoredImage(self._entry(data, (found.height, found.width, found.channels)), written=False)

    def _entry(self, data: bytes, size: tuple[int, int, int]) -> Entry:
        return Entry(self.name, self.origin, size, len(data), hashlib.sha256(data).hexdigest())


def relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


@dataclass
class PrepareJob:
    """A job that fills one output folder: refuses to mix parameters, ends with a manifest and a summary."""

    output: Path
    name: str
    parameters: Mapping[str, Any]  # everything that decides the bytes
    source: Path
    started: float = field(default_factory=time.perf_counter)
    _resumes: bool = False

    @property
    def _unfinished(self) -> Path:
        return self.output.with_name(f"{self.output.name}.unfinished.json")

    def check(self, *, overwrite: bool = False) -> None:
        """Raise InputError where images made otherwise lie in `output` and would be mixed with those of this job."""
        now, before = self._note(), self._before()
        if overwrite:
            before = self._of_other_sources()  # these are not made again
        if before is not None and (difference := _difference(before, now)):
            remedy = "" if overwrite else ", or give --overwrite"
            raise InputError(
                f"{self.output.absolute()} holds images made otherwise ({difference}); they would be mixed; choose "
                f"another folder, or remove it and the files beside it that are called after it{remedy}"
            )

    def begin(self, *, overwrite: bool = False) -> None:
        """Raise as `check` does; else note what is under way. `underway` does it, and keeps others away."""
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
        """Job and parameters of what is in the folder."""
        if not self.output.exists():
            return None
        if self._unfinished.is_file():
            return self._stopped()
        found = self._listed()
        return {"job": found.job, "parameters": dict(found.parameters)} if found else None

    def _stopped(self) -> dict[str, Any]:
        """What a run that stopped half way noted; raises InputError where that cannot be read."""
        try:
            note = json.loads(read_file(self._unfinished))
            if not isinstance(note["job"], str) or not isinstance(note["parameters"], dict):
                raise TypeError("not the note of a job")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self._unfinished.absolute()}: tells that a job stopped half way, but not which ({error}); remove it "
                f"and {self.output.name} beside it, and start again"
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
        """The manifest of what is in the folder."""
        path = manifest_path(self.output)
        return read_manifest(path) if path.is_file() and self.output.exists() else None

    def finish(self, stored: Iterable[StoredImage], *, notes: Iterable[str] = (), what: str = "images") -> str:
        """Write the manifest and print the summary; gives the summary.

        What --overwrite replaced and this job did not make anew is removed: it would be taken for a result.
        """
        stored = list(stored)
        entries, before = [one.entry for one in stored], self._listed()
        if before is not None:
            self._remove_replaced(before, {entry.name for entry in entries})
        sync_all()  # what the manifest lists is there, whatever happens to the machine
        listing = write_manifest(self.output, self._manifest(entries, before))
        if self._resumes:  # workers of the killed run may have lived on for a moment when this one began
            sweep(self.output, below=True)
        self._unfinished.unlink(missing_ok=True)
        made = sum(one.written for one in stored)
        told = [f"{made} made, {len(stored) - made} kept", f"{sum(entry.bytes for entry in entries) / 2**20:.1f} MiB"]
        told += [f"{time.perf_counter() - self.started:.1f} s", *notes]
        text = f"{self.output}: {len(stored)} {what} ({', '.join(told)}); listed in {listing}\n"
        sys.stdout.write(text)
        return text

    def _remove_replaced(self, before: Manifest, made: set[str]) -> None:
        if not _difference({"job": before.job, "parameters": before.parameters}, self._note()):
            return
        for entry in before.entries:
            if entry.name not in made:
                (self.output / entry.name).unlink(missing_ok=True)

    def _manifest(self, entries: list[Entry], before: Manifest | None) -> Manifest:
        """The entries of this run, and those that an earlier run from another source put into the same folder."""
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
    """Begin jobs that are done together; until the end no other process writes into their folders."""
    with contextlib.ExitStack() as held:
        for job in jobs:
            held.enter_context(hold(job.output))
        for job in jobs:
            job.begin(overwrite=overwrite)
        yield


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What would make images of one run unlike those of another; empty where nothing would."""
    if before["job"] != now["job"]:
        return f"by {before['job']!r}, not {now['job']!r}"
    if before.get("overwrite"):
        return "a run with --overwrite was stopped half way"
    old, new = before["parameters"], now["parameters"]
    values = [(name, old.get(name), new.get(name)) for name in {**new, **old} if name not in _ADDS_ONLY]
    return "; ".join(f"{name} {was!r}, now {value!r}" for name, was, value in values if was != value)


# Images as they are stored: 8 bits, grey or RGB.


@dataclass(frozen=True)
class Storable:
    """uint8 grey or RGB (H, W, C), and the file's own bytes where they are a PNG of exactly that (else None)."""

    image: np.ndarray
    png: bytes | None
    dropped_alpha: bool


def read_storable(file: Path, *, to_8bit: bool) -> Storable:
    """An image file without alpha, upright; raises InputError for 16 bits per channel unless they may be rounded."""
    data = read_file(file)
    image = decode(data, where=str(file))
    known = inspect(data, where=str(file))
    whole = known.format == "png" and known.metadata.turn == 1
    if image.dtype != np.uint8:
        if not to_8bit:
            depth = "floats" if image.dtype.kind == "f" else "16 bits per channel"
            raise InputError(f"{file}: {depth}; give --to-8bit to round to 8, or convert it")
        image, whole = as_bits(image, np.uint8), False
    dropped = image.shape[2] in (2, 4)
    if dropped:
        image, whole = np.ascontiguousarray(image[..., :-1]), False
    return Storable(image, data if whole else None, dropped)


# MATLAB's antialiased bicubic `imresize`, which made the low-resolution images of DIV2K and most benchmarks.


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def resize_matrix(length: int, scale: float) -> csr_matrix:
    """The linear map of one axis, (ceil(length * scale), length): antialiased when shrinking, mirrored borders."""
    out = math.ceil(length * scale)
    stretch = min(scale, 1.0)  # a kernel as wide as an output pixel
    support = 4.0 / stretch
    taps = math.ceil(support) + 2
    centre = (np.arange(out) + 0.5) / scale - 0.5
    first = np.floor(centre - support / 2).astype(int)
    index = first[:, None] + np.arange(taps)
    weight = stretch * cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    # Mirror with the border repeated: -1 is 0, -2 is 1; likewise at the far end.
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
    # Heights first, as MATLAB does for equal scales.
    tall = rows @ image.reshape(height, width * channels).astype(np.float64)
    turned = tall.reshape(-1, width, channels).transpose(1, 0, 2).reshape(width, -1)
    wide = (columns @ turned).reshape(-1, len(tall), channels).transpose(1, 0, 2)
    return (wide + 0.5).clip(0, np.iinfo(image.dtype).max).astype(image.dtype)
