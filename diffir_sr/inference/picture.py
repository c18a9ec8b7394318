"""A picture in memory, and its bytes as PNG, JPEG, WebP, TIFF or BMP with the colour profile and EXIF it came with."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffir_sr.data.images import encode_png
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}
FORMATS |= {".bmp": "bmp"}
_LARGEST = {"jpeg": 65535, "webp": 16383}  # pixels per side that a format can hold
_HOLDS_EXIF = ("png", "jpeg", "webp")
_HOLDS_ALPHA = ("png", "webp", "tiff")  # readers take the fourth channel of a BMP for nothing
_LARGEST_JPEG_EXIF = 65533 - 6  # a segment's length counts itself; "Exif" and two zeros come before


@dataclass(frozen=True, eq=False)
class Picture:
    """Colours (H, W, 1 grey or 3 RGB) as uint8, uint16 or float in [0, 1], perhaps alpha (H, W) of the same type.

    It is upright; `icc` and `exif` are carried from and to files, `exif` without orientation.
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "png"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.colours.shape[0], self.colours.shape[1]

    @property
    def channels(self) -> np.ndarray:
        """(H, W, 1 to 4): colours and, where there is one, alpha."""
        return self.colours if self.alpha is None else np.dstack([self.colours, self.alpha])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self.channels
        return found if dtype is None else found.astype(dtype)

    def save(self, path: str | Path, *, quality: int = 95, overwrite: bool = False) -> None:
        """Write a file, whole or not at all; its suffix says the format. What exists stays unless `overwrite`."""
        path = Path(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists and stays as it is; choose another name or overwrite=True")
        write_atomically(encode(self, format_of(path), quality=quality), path)


def format_of(path: Path) -> str:
    """The format that a file name asks for; raises InputError for an unknown suffix."""
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise InputError(f"{path}: no known image format; end the name with one of {' '.join(FORMATS)}")
    return found


def not_held(picture: Picture, form: str) -> list[str]:
    """What of a picture its file in a format will lack, in words."""
    lost = []
    if picture.colours.dtype != np.uint8 and form not in ("png", "tiff"):
        lost.append("the second 8 of its 16 bits")
    if picture.icc and not _holds_profile(picture, form):
        lost.append("the colour profile")
    if picture.exif and not _holds_exif(picture.exif, form):
        lost.append("so much EXIF" if form in _HOLDS_EXIF else "EXIF")
    return lost


def _holds_profile(picture: Picture, form: str) -> bool:
    """Whether a file will be of the kind that the picture's profile is for."""
    if form == "bmp" or not picture.icc:
        return False
    grey_profile = picture.icc[16:20] == b"GRAY"
    becomes_colours = form == "webp" or picture.alpha is not None
    return not (grey_profile and becomes_colours)


def _holds_exif(exif: bytes, form: str) -> bool:
    return form in _HOLDS_EXIF and not (form == "jpeg" and len(exif.removeprefix(b"Exif\0\0")) > _LARGEST_JPEG_EXIF)


def encode(picture: Picture, form: str, *, quality: int = 95) -> bytes:
    """The file's bytes; `quality` 1 to 100 is for JPEG and WebP (100: without loss). Raises InputError where
    the format cannot hold the picture.
    """
    height, width = picture.size
    if max(height, width) > _LARGEST.get(form, 2**31):
        raise InputError(f"{form} holds at most {_LARGEST[form]} pixels per side, not {height}x{width}; choose png")
    if picture.alpha is not None and form not in _HOLDS_ALPHA:
        raise InputError(f"{form} cannot hold the transparency of this picture; choose png, webp or tiff")
    if form == "png":
        return _png(picture)
    if form == "tiff":
        return _tiff(picture)
    channels = as_bits(picture.channels, np.uint8)
    image = Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)
    if form == "webp" and image.mode in ("L", "LA"):
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    return _by_pillow(image, picture, form, quality)


def _by_pillow(image: Image.Image, picture: Picture, form: str, quality: int) -> bytes:
    carried: dict[str, Any] = {}
    if _holds_profile(picture, form):
        carried["icc_profile"] = picture.icc
    if picture.exif and _holds_exif(picture.exif, form):
        carried["exif"] = picture.exif
    how: dict[str, Any] = {"bmp": {}, "jpeg": {"quality": quality, "subsampling": 0}}.get(form) or {}
    if form == "webp":
        how = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
    file = io.BytesIO()
    image.save(file, form.upper(), **how, **carried)
    return file.getvalue()


def as_bits(values: np.ndarray, kind: Any) -> np.ndarray:
    """Values of any supported type as uint8 or uint16 (or unchanged), rounded."""
    if values.dtype == kind:
        return values
    largest = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
    share = values / largest[values.dtype] if values.dtype in largest else values
    return np.rint(np.clip(share, 0, 1) * largest[np.dtype(kind)]).astype(kind)


def _stored(picture: Picture) -> np.ndarray:
    """Channels as readers can take them: float becomes 16 bits, grey with alpha becomes colours with alpha."""
    found = picture.channels
    if found.shape[2] == 2:
        found = found[..., [0, 0, 0, 1]]
    return found if found.dtype in (np.uint8, np.uint16) else as_bits(found, np.uint16)


def _png(picture: Picture) -> bytes:
    data = encode_png(_stored(picture))
    extra = b""
    if picture.icc and _holds_profile(picture, "png"):
        extra += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc))
    if picture.exif:
        extra += _chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    after_header = 33  # signature 8, IHDR 25
    return data[:after_header] + extra + data[after_header:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(picture: Picture) -> bytes:
    """A little-endian TIFF 6.0 of one deflated strip: Pillow writes no 16-bit colours, OpenCV no colour profile."""
    channels = _stored(picture)
    height, width, count = channels.shape
    bits = 8 * channels.dtype.itemsize
    strip = zlib.compress(np.ascontiguousarray(channels.astype(channels.dtype.newbyteorder("<"))).tobytes(), 6)
    colour = count - (picture.alpha is not None)
    short, long, undefined = 3, 4, 7
    entries: list[tuple[int, int, int, bytes]] = [
        (256, long, 1, struct.pack("<I", width)),
        (257, long, 1, struct.pack("<I", height)),
        (258, short, count, struct.pack("<H", bits) * count),
        (259, short, 1, struct.pack("<H", 8)),  # deflate
        (262, short, 1, struct.pack("<H", 2 if colour == 3 else 1)),
        (273, long, 1, struct.pack("<I", 8)),  # the strip follows the header
        (277, short, 1, struct.pack("<H", count)),
        (278, long, 1, struct.pack("<I", height)),
        (279, long, 1, struct.pack("<I", len(strip))),
    ]
    if picture.alpha is not None:
        entries.append((338, short, 1, struct.pack("<H", 2)))  # alpha not multiplied into the colours
    icc = picture.icc if picture.icc and _holds_profile(picture, "tiff") else b""
    if icc:
        entries.append((34675, undefined, len(icc), icc))
    body = strip + b"\0" * (len(strip) % 2)
    directory = 8 + len(body)
    extra_at = directory + 2 + 12 * len(entries) + 4
    if extra_at + len(icc) >= 2**32:
        raise InputError(f"TIFF holds less than 4 GiB, and {height}x{width} is more; choose png")
    table, extra = b"", b""
    for tag, kind, number, value in entries:
        if len(value) > 4:
            value, extra = struct.pack("<I", extra_at + len(extra)), extra + value + b"\0" * (len(value) % 2)
        table += struct.pack("<HHI", tag, kind, number) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", directory)
    return head + body + struct.pack("<H", len(entries)) + table + b"\0\0\0\0" + extra
