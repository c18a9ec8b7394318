"""Supported inputs (path, Picture, PIL image, array), their masks, and results of the same kind as the input."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from diffir_sr.data.masks import mask_values
from diffir_sr.errors import InputError
from diffir_sr.files.decoders import UnsupportedError, pillow_channels
from diffir_sr.files.images import decode, inspect, is_image_name, read_file, read_picture, upright, without_suffix
from diffir_sr.files.metadata import pillow_metadata, to_srgb
from diffir_sr.files.picture import Picture, as_bits

ConvertBack = Callable[[Picture], Any]


def load_input(image: Any, *, check: Callable[[int, int, str], None]) -> tuple[Picture, ConvertBack, str]:
    """The picture, a function that converts a result back to the same kind, and a name for messages.

    `check(height, width, where)` may reject a size before pixels are decoded. Raises InputError for unsupported inputs.
    """
    if isinstance(image, str | os.PathLike):
        where = os.fspath(image)
        return from_bytes(read_file(Path(where)), where=where, check=check), lambda result: result, where
    if isinstance(image, Picture):
        found, back, where = image, _same, "picture"
    elif isinstance(image, Image.Image):
        where = getattr(image, "filename", "") or "PIL image"
        found, back = _from_pil(image, where), _to_pil
    elif isinstance(image, np.ndarray):
        found, back, where = _from_array(image), _to_array(image), "array"
    else:
        raise InputError(
            f"expected a path, a PIL image, a NumPy array, or a list of them, got {type(image).__name__}; "
            "convert torch tensors with .numpy(), channels last"
        )
    check(*found.size, where)
    return found, back, where


def from_bytes(data: bytes, *, where: str, check: Callable[[int, int, str], None]) -> Picture:
    """The picture in an encoded file; `check` may reject it before decoding."""
    known = inspect(data, where=where)
    check(known.height, known.width, where)
    return read_picture(data, where=where, known=known)


def is_batch(image: Any) -> bool:
    """Whether `image` is several pictures: a list, a tuple, or an array (N, H, W, C)."""
    return isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)


def _same(picture: Picture) -> Picture:
    return picture


def _from_array(image: np.ndarray) -> Picture:
    shape = image.shape
    if not (image.ndim == 2 or (image.ndim == 3 and 1 <= shape[2] <= 4)) or 0 in shape:
        raise InputError(
            f"expected an array (H, W), (H, W, 1 to 4) or a batch (N, H, W, C) that is not empty, got {shape}"
        )
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN
            raise InputError(
                f"expected float values in [0, 1], found {low:g} to {high:g}; scale them, or give uint8 or uint16"
            )
        image = np.clip(image, 0, 1)
    elif image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"expected an array of uint8, uint16 or float, got {image.dtype}")
    channels = image[..., None] if image.ndim == 2 else image
    has_alpha = channels.shape[2] in (2, 4)
    colours = channels[..., :-1] if has_alpha else channels
    return Picture(np.ascontiguousarray(colours), np.ascontiguousarray(channels[..., -1]) if has_alpha else None)


def _to_array(given: np.ndarray) -> ConvertBack:
    def back(result: Picture) -> np.ndarray:
        channels = result.channels
        return channels[..., 0] if given.ndim == 2 else channels

    return back


def _from_pil(image: Image.Image, where: str) -> Picture:
    if getattr(image, "n_frames", 1) > 1 and getattr(image, "is_animated", True) and image.format != "MPO":
        raise InputError(f"{where}: {image.n_frames} frames, expected one; select a frame")  # type: ignore[attr-defined]
    image.load()  # also reads metadata after the pixels
    try:
        exif = image.getexif()
    except Exception:  # Pillow's parser raises all kinds of errors, and bad EXIF must not prevent restoring
        exif = None
    metadata = pillow_metadata(image.info, exif).plain()
    notes, icc = metadata.notes, metadata.icc
    if image.mode == "CMYK":
        image, note = to_srgb(image, icc)
        notes, icc = (*notes, note), None
    try:
        found = _from_array(upright(pillow_channels(image), metadata.turn or 1))
    except UnsupportedError as error:
        raise InputError(f"{where}: {error}") from error
    return replace(
        found, icc=icc, exif=metadata.exif, metadata=replace(metadata, icc=None, exif=None, notes=()), notes=notes
    )


def _to_pil(result: Picture) -> Image.Image:
    channels = result.channels.squeeze(2) if result.channels.shape[2] == 1 else result.channels
    if channels.ndim == 3 and channels.dtype != np.uint8:  # Pillow has no such modes
        channels = as_bits(channels, np.uint8)
    image = Image.fromarray(channels.astype(np.float32) if channels.dtype.kind == "f" else channels)
    carried = {"icc_profile": result.icc, "exif": result.exif, "xmp": result.metadata.xmp, "dpi": result.metadata.dpi}
    image.info |= {name: value for name, value in carried.items() if value}
    return image


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
