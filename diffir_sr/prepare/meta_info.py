"""A list of the images of a folder in BasicSR's format: `name (h,w,c)` per line."""

from __future__ import annotations

from pathlib import Path

from diffir_sr.data.images import header, write_atomically
from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import run_all


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise InputError where the list cannot be written: something else is there."""
    if output.is_dir():
        raise InputError(f"{output.absolute()} is a folder; name a file, such as {output}/meta_info.txt")
    if output.exists() and not overwrite:
        raise InputError(f"{output.absolute()} exists; choose another name or give --overwrite")


def write_meta(source: FolderSource, output: Path, *, jobs: int) -> int:
    """Write relative path with extension and shape (channels without alpha) of every image; the number of lines."""
    shapes = run_all(_shape, [source.file(name) for name in source.names], jobs=jobs, label="meta")
    names = [source.file(name).relative_to(source.path).as_posix() for name in source.names]
    lines = [f"{name} {shape}\n" for name, shape in zip(names, shapes, strict=True)]
    write_atomically("".join(sorted(lines)).encode(), output)
    return len(lines)


def _shape(file: Path) -> str:
    found = header(file)
    return f"({found.height},{found.width},{found.channels})"
