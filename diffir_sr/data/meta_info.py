"""Lines of BasicSR's meta_info files: `name (h,w,c)` for folders, `key.png (h,w,c) level` inside an LMDB.

An LMDB of bare pixels, which BasicSR cannot read, has the word raw in place of the level.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffir_sr.errors import InputError

# From the end, since names may hold blanks and brackets: `photo (1).png (480,480,3)`.
_LINE = re.compile(
    r"(?P<name>.+?)(?: +\((?P<height>\d+), ?(?P<width>\d+)(?:, ?(?P<channels>\d+))?\)(?: +(?P<codec>\d+|raw))?)? *"
)
_MOST_DIGITS = 9


class Listed(NamedTuple):
    """One line: a name as written, (height, width) if the line tells it, channels, and whether pixels are bare."""

    name: str
    size: tuple[int, int] | None
    channels: int = 3
    raw: bool = False


def read_meta(path: Path) -> list[Listed]:
    """The lines of a meta_info file, without empty ones; raises InputError where it cannot be read or is empty."""
    try:
        # A mark at the beginning and carriage returns are how some editors on Windows store text.
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
    """What a name in a list may mean: as it stands; without `./`; with the slashes of Windows; an absolute path."""
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
