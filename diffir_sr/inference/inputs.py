"""Supported inputs (path, Picture, PIL image, array; one or several), and converting results back to the same kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffir_sr.errors import InputError
from diffir_sr.files.decoders import UnsupportedError, pillow_channels
from diffir_sr.files.images import inspect, read_file, read_picture, upright
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
