"""A list of the images of a folder or LMDB in BasicSR's format: `name (h,w,c)` per line."""

from __future__ import annotations

from pathlib import Path

from diffir_sr.data.images import write_atomically
from diffir_sr.data.sources import FolderSource, Source
from diffir_sr.errors import InputError


def meta_lines(source: Source) -> list[str]:
    """One line per image: relative path with extension, and shape (3 channels, as training reads them)."""
    lines = []
    for name in source.names:
        height, width = source.size(name)
        shown = source.file(name).relative_to(source.path).as_posix() if isinstance(source, FolderSource) else name
        lines.append(f"{shown} ({height},{width},3)")
    return lines


def write_meta(source: Source, output: Path, *, overwrite: bool) -> int:
    """Write the list; the number of lines."""
    if output.exists() and not overwrite:
        raise InputError(f"{output.absolute()} exists; choose another name or give --overwrite")
    lines = meta_lines(source)
    write_atomically("".join(f"{line}\n" for line in lines).encode(), output)
    return len(lines)
