"""Masks for inpainting: missing pixels are white in a mask, or have a given colour in the image."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from diffir_sr.data.masks import mask_values
from diffir_sr.errors import InputError
from diffir_sr.files.decoders import pillow_channels
from diffir_sr.files.images import decode, is_image_name, read_file, without_suffix
from diffir_sr.files.picture import Picture

_NEARLY_ALL = 0.95  # share of an image above which a mask is probably a mistake
_MASK_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "F", "I;16", "P")
_OF_LAMA = re.compile(r"_mask\d*$")  # image1.png has the masks image1_mask.png, image1_mask000.png, ...


@dataclass(frozen=True)
class Mask:
    """Missing pixels (H, W), bool, and notes about how they were determined."""

    missing: np.ndarray
    notes: tuple[str, ...] = ()


def mask_for(picture: Picture, given: Any, *, where: str) -> Mask:
    """The mask of an image from a path, PIL image, array, or the name of a colour ('#ff00ff', 'white').

    Values from half of the full range on are missing; the range is [0, 1] for float masks and for integer masks with
    only the values 0 and 1. Raises InputError for a mask of another size or with invalid values.
    """
    if isinstance(given, str) and not Path(os.path.expanduser(given)).exists():
        return _by_colour(picture, given, where)
    if isinstance(given, str | os.PathLike):
        values, name = decode(read_file(Path(os.path.expanduser(given))), where=os.fspath(given)), os.fspath(given)
    else:
        values, name = _values(given), "mask"
    return _checked(values, picture, name, where)


def _values(given: Any) -> np.ndarray:
    if isinstance(given, Image.Image):
        return pillow_channels(given if given.mode in _MASK_MODES else given.convert("RGB"))
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "bfu" or given.ndim not in (2, 3):
        kind = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise InputError(
            f"expected a mask as a path, a PIL image or an array (H, W) of bool, uint8 or float, got {kind}"
        )
    return given


def _checked(values: np.ndarray, picture: Picture, name: str, where: str) -> Mask:
    height, width = picture.size
    if values.shape[:2] != (height, width):
        raise InputError(
            f"{where}: its mask {name} is {values.shape[0]}x{values.shape[1]}, expected {height}x{width} like the "
            "image; make the mask from this image"
        )
    channels = values.reshape(height, width, -1)
    if not 1 <= channels.shape[2] <= 4:
        raise InputError(f"{where}: its mask {name} has the shape {values.shape}; expected (H, W)")
    colours, is_alpha = mask_values(channels)
    low, high = float(colours.min()), float(colours.max())
    if values.dtype.kind == "f" and not (low >= -1e-3 and high <= 1 + 1e-3):  # so that NaN is refused, too
        raise InputError(
            f"{where}: its mask {name} has float values from {low:g} to {high:g}, expected [0, 1]; scale "
            "it, or give bool or uint8"
        )
    top = np.iinfo(values.dtype).max if values.dtype.kind == "u" and high > 1 else 1
    share = colours.mean(axis=2) / top
    notes = (f"{name}: its colours are uniform, so its alpha is used as the mask",) if is_alpha else ()
    between = float(((share > 0) & (share < 1)).mean())
    if between:
        notes = (
            *notes,
            f"{name}: {between:.1%} of the mask is grey; pixels from 50 % on count as missing",
        )
    return _told(share >= 0.5, notes, name, f"{name}: the mask is black: no pixel is missing")


def _by_colour(picture: Picture, colour: str, where: str) -> Mask:
    try:
        wanted = ImageColor.getrgb(colour)[:3]
    except ValueError as error:
        raise InputError(
            f"{where}: mask {colour!r} is neither a file nor a colour; give a path, or a colour such as '#ff00ff'"
        ) from error
    if picture.colours.dtype.kind == "f":
        same = np.rint(picture.colours * 255) == wanted
    else:
        same = picture.colours == np.array(wanted) * (np.iinfo(picture.colours.dtype).max // 255)
    return _told(same.all(axis=2), (), where, f"{where}: no pixel has exactly the colour {colour}, so none is missing")


def _told(missing: np.ndarray, notes: tuple[str, ...], name: str, when_none: str) -> Mask:
    if missing.mean() >= _NEARLY_ALL:
        covers = "everything" if missing.all() else f"{missing.mean():.1%} of the image"
        notes = (
            *notes,
            f"{name}: the mask covers {covers}, which leaves little information; white marks missing pixels",
        )
    return Mask(missing, notes if missing.any() else (*notes, when_none))


def find_mask(given: str, relative: str, source: Path | None = None) -> str:
    """The mask for one image: the file or colour given as `--mask`, or the file of the same name in that folder.

    `relative` is the path of the image relative to its input folder, `source` its own path, which is never its mask. A
    mask may have another image suffix, in upper or lower case, or `_mask`, `_mask000`, ... after its name; the first
    one is used. Raises InputError if the folder has none.
    """
    folder = Path(os.path.expanduser(given))
    if not folder.is_dir():
        return given
    stem = without_suffix(relative)
    parent = (folder / stem).parent
    beside = _images_by_stem(parent, parent.stat().st_mtime_ns if parent.is_dir() else 0)
    own = None if source is None else source.resolve()
    name = Path(stem).name
    numbered = sorted(other for other in beside if other.startswith(name) and _OF_LAMA.fullmatch(other[len(name) :]))
    for candidate in dict.fromkeys((f"{name}_mask", *numbered, name)):
        for file in beside.get(candidate, ()):
            if file.resolve() != own:
                return str(file)
    raise InputError(f"{relative}: no mask of this name in {folder.resolve()}; expected {stem}.png or {stem}_mask.png")


@lru_cache(maxsize=4)
def _images_by_stem(folder: Path, changed: int) -> dict[str, list[Path]]:
    """The images of a folder by name without suffix; `changed`, its modification time, invalidates the cache."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_image_name(file.name):
            found.setdefault(without_suffix(file.name), []).append(file)
    return found


def is_mask_of_another(relative: str, stems: Collection[str]) -> bool:
    """Whether an image is, by its name, the mask of one of `stems` (relative paths without suffix)."""
    stem = without_suffix(relative)
    found = _OF_LAMA.search(stem)
    return found is not None and stem[: found.start()] in stems
