"""Lines of BasicSR's meta_info files: `name (h,w,c)` for folders, `key.png (h,w,c) level` inside an LMDB.

An LMDB of bare pixels, which BasicSR cannot read, has the word raw in place of the level.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from diffir_sr.errors import InputError

# From the end, since names may hold blanks and brackets: `photo (1).png (480,480,3)`.
_LINE = re.compile(
    r"(?P<name>.+?)(?: +\((?P<height>\d+), ?(?P<width>\d+)(?:, ?(?P<channels>\d+))?\)(?: +(?P<codec>\d+|raw))?)? *"
)


class Listed(NamedTuple):
    """One line: a name as written, (height, width) if the line tells it, channels, and whether pixels are bare."""

    name: str
    size: tuple[int, int] | None
    channels: int = 3
    raw: bool = False


def read_meta(path: Path) -> list[Listed]:
    """The lines of a meta_info file, without empty ones; raises InputError where it cannot be read or is empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.absolute()}: cannot be read as a list of images ({error})") from error
    listed = [_parse(line) for line in lines if line.strip()]
    if not listed:
        raise InputError(f"{path.absolute()}: lists 0 images; make it again with 'diffir prepare'")
    return listed


def _parse(line: str) -> Listed:
    found = _LINE.fullmatch(line)
    if found is None or found["height"] is None:
        return Listed(line.strip(), None)
    size = int(found["height"]), int(found["width"])
    return Listed(found["name"].strip(), size, int(found["channels"] or 3), found["codec"] == "raw")
