"""Reading image files: one reader, with the same rules, for restoring, training, measuring, preparing and checking.

The format is detected from the content, not from the name. Grey stays grey, palettes and colour keys become colours and
alpha, CMYK becomes sRGB through its profile, 1 to 8 bits become uint8 and more uint16, floats are in [0, 1]. Images are
rotated upright according to EXIF, otherwise XMP. Errors and warnings of a decoder are errors, unless damage is
accepted.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files import decoders
from diffir_sr.files.decoders import DamagedError, Format, Header, UnsupportedError, format_of
from diffir_sr.files.metadata import PNG_SIGNATURE, Metadata, jpeg_header, png_chunks, upright_shape
from diffir_sr.files.picture import Picture
from diffir_sr.files.processes import free_memory
from diffir_sr.parsing import ACCEPT_DAMAGED

# At import, before any worker is forked: parallelism is across processes, and a forked child that inherits OpenCV's
# thread pool hangs as soon as it changes the number of threads.
cv2.setNumThreads(0)

logger = logging.getLogger("diffir_sr.files")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff")
SUFFIXES += (".gif", ".avif", ".heic", ".heif", ".hif")
# Unsupported image formats; in a folder they are counted and listed.
NOT_READ = (".jp2", ".j2k", ".jxl", ".jxr", ".exr", ".hdr", ".psd", ".xcf", ".svg", ".tga", ".ico", ".dds", ".ppm")
NOT_READ += (".pgm", ".pbm", ".pnm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".fits")
_KNOWN_CONTENT = {
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000", b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"%PDF": "PDF", b"<svg": "SVG", b"<!DOCTYPE": "HTML",
    b"<html": "HTML", b"version https://git-lfs": "a Git LFS pointer, whose file was not fetched",
}  # fmt: skip
_HEAD_BYTES = 4096  # enough for everything before the pixels of most PNG files
_TAIL_BYTES = 2**15  # contains the header of at least one pixel chunk as written by libpng
_JPEG_HEAD = 2**17
_TURNING_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_LARGE = 2**28  # bytes of pixels above which free memory is checked first


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not os.path.basename(name).startswith(".")


def is_picture_not_read(name: str) -> bool:
    """Whether a file is, by its name, an image of an unsupported format, which listings leave out."""
    return name.lower().endswith(NOT_READ) and not os.path.basename(name).startswith(".")


def without_suffix(name: str) -> str:
    """A name or relative path without its image suffix; other dots are kept."""
    return name[: name.rindex(".")] if name.lower().endswith(SUFFIXES) else name


def read_file(path: Path) -> bytes:
    """All bytes of a file; raises InputError, which names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


@dataclass(frozen=True)
class Facts:
    """Properties of an image file before decoding: upright size, channels without alpha (1 or 3), metadata."""

    format: str
    height: int
    width: int
    channels: int
    metadata: Metadata
    decoder: Format
    header: Header


def inspect(data: bytes, *, where: str) -> Facts:
    """Format, size and metadata; raises InputError, which names `where`, if it is not a single image."""
    if not data:
        raise InputError(f"{where}: the file is empty; copy it again or remove it")
    form = format_of(data)
    if form is None:
        raise InputError(
            f"{where}: {_described(data)}, expected PNG, JPEG, WebP, TIFF or BMP; convert it, or leave it out"
        )
    with _faults(where):
        header = form.header(data)
    if header.frames > 1:
        raise InputError(
            f"{where}: animated or with several pages, {header.frames} images in one file, expected one; save the "
            "image separately, or give a video"
        )
    metadata = header.metadata.plain()
    height, width = upright_shape(header.height, header.width, metadata.turn or 1)
    return Facts(form.name, height, width, header.channels, metadata, form, header)


def _described(data: bytes) -> str:
    start = data[:256].lstrip()
    known = next((name for begin, name in _KNOWN_CONTENT.items() if start.startswith(begin)), None)
    return f"contains {known}" if known else "damaged or truncated, or not an image"


def read_picture(data: bytes, *, where: str, known: Facts | None = None) -> Picture:
    """The upright image in an encoded file, with notes about conversions.

    Raises InputError, which names `where`, for data that is damaged, truncated, not an image, or too large for memory.
    """
    known = known or inspect(data, where=where)
    pixels = _pixels(data, known, where=where)
    channels = upright(pixels.channels, known.metadata.turn or 1)
    has_alpha = channels.shape[2] in (2, 4)
    metadata = known.metadata
    icc = None if pixels.is_srgb else metadata.icc
    return Picture(
        np.ascontiguousarray(channels[..., :-1]) if has_alpha else channels,
        np.ascontiguousarray(channels[..., -1]) if has_alpha else None,
        icc,
        metadata.exif,
        known.format,
        replace(metadata, icc=None, exif=None, turn=1, notes=()),
        (*metadata.notes, *pixels.notes),
    )


def decode(data: bytes, *, where: str) -> np.ndarray:
    """Only the values: (H, W, C), upright, with C of 1, 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    uint8, uint16, or float32 in [0, 1]. Raises the errors of `read_picture`; logs each kind of conversion once.
    """
    image, notes = decode_with_notes(data, where=where)
    for note in notes:
        _report_once(note, where)
    return image


def decode_with_notes(data: bytes, *, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """`decode`, and sentences about conversions."""
    known = inspect(data, where=where)
    pixels = _pixels(data, known, where=where)
    return upright(pixels.channels, known.metadata.turn or 1), pixels.notes


def _report_once(note: str, where: str) -> None:
    if not _is_reported(note.split("(")[0]):
        logger.warning("%s: %s.", where, note)


@cache
def _reported() -> set[str]:
    return set()


def _is_reported(note: str) -> bool:
    known_before = note in _reported()
    _reported().add(note)
    return known_before


def _pixels(data: bytes, known: Facts, *, where: str) -> decoders.Pixels:
    header = known.header
    needed = header.height * header.width * 8
    if needed > _LARGE and needed > (free := free_memory()):
        raise InputError(
            f"{where}: its {known.height}x{known.width} pixels need about {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free; split it into parts"
        )
    try:
        with _faults(where):
            pixels = known.decoder.pixels(data, header, False)
            _check_size(pixels, header)
    except InputError as error:
        if not (accepts_damage() and isinstance(error.__cause__, DamagedError)):
            raise
        with _faults(where):
            pixels = known.decoder.pixels(data, header, True)
            _check_size(pixels, header)
        note = f"is damaged ({error.__cause__}), which was accepted"
        return replace(pixels, notes=(*pixels.notes, note))
    return pixels


def _check_size(pixels: decoders.Pixels, header: Header) -> None:
    if pixels.channels.shape[:2] != (header.height, header.width):
        found = "x".join(map(str, pixels.channels.shape[:2]))
        raise DamagedError(f"its header says {header.height}x{header.width}, its pixels are {found}")


def accepts_damage() -> bool:
    """Whether this process accepts partially decoded damaged files."""
    return os.environ.get(ACCEPT_DAMAGED, "0") not in ("", "0")


@contextlib.contextmanager
def _faults(where: str) -> Iterator[None]:
    """Convert errors of decoders to InputError, which names the file; damage has `DamagedError` as its cause."""
    try:
        yield
    except InputError:
        raise
    except UnsupportedError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # decoders raise all kinds of errors for corrupted bytes
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise InputError(
                f"{where}: out of memory while decoding; free memory, or split the image into parts"
            ) from error
        cause = error if isinstance(error, DamagedError) else DamagedError(_in_words(error))
        raise InputError(
            f"{where}: damaged or truncated, or not an image ({cause}); copy the file again or remove it"
        ) from cause


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def upright(image: np.ndarray, turn: int) -> np.ndarray:
    """(H, W, C) rotated and mirrored according to its EXIF orientation, 1 (unchanged) to 8."""
    if turn >= 5:
        image = image.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        image = image[::-1]
    if turn in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


@dataclass(frozen=True)
class Size:
    """Size of an image as it is read (upright), and its channels without alpha: 1 or 3."""

    height: int
    width: int
    channels: int


def header(path: Path) -> Size:
    """Size and channels of an image file, without decoding it; raises InputError like `inspect`."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if found := _plain_png(head, file):
                return found
            if head.startswith(b"\xff\xd8\xff"):
                head += file.read(_JPEG_HEAD)
                if (jpeg := jpeg_header(head)) is not None:
                    shape = upright_shape(jpeg.height, jpeg.width, jpeg.metadata.plain().turn or 1)
                    return Size(*shape, 1 if jpeg.components == 1 else 3)
            file.seek(0)
            if (form := format_of(head)) is not None and form.name == "tiff":
                with _faults(str(path)):
                    tiff = decoders.tiff_header(file)
                return Size(*upright_shape(tiff.height, tiff.width, tiff.metadata.plain().turn or 1), tiff.channels)
            known = inspect(file.read(), where=str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    return Size(known.height, known.width, known.channels)


def _plain_png(head: bytes, file: BinaryIO) -> Size | None:
    """The size of a PNG without orientation, from its head and tail only; None for all others."""
    if not head.startswith(PNG_SIGNATURE) or len(head) < 33 or head[12:16] != b"IHDR":
        return None
    names = [name for name, _, _ in png_chunks(head)]
    pixels = head.find(b"IDAT")
    if pixels < 0 or any(name in names or name in head[:pixels] for name in (*_TURNING_CHUNKS, b"acTL")):
        return None
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    tail = file.read()  # the orientation may be stored after the pixels
    if b"IDAT" not in tail or any(name in tail for name in _TURNING_CHUNKS):
        return None
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    return Size(height, width, 1 if head[25] in (0, 4) else 3)
