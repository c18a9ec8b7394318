"""What the bytes of an image file say before they are decoded: whether all are there, how it is turned, its size."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_ORIENTATION = 0x0112  # of EXIF
_BITS, _PHOTOMETRIC, _PLANES, _EXTRA = 258, 262, 284, 338  # of TIFF
_HEAD_BYTES = 4096  # enough for everything in front of the pixels of most PNG files


# Opened by their classes and not by Image.open, which refuses every picture of more than 179 million pixels.
READERS: dict[str, tuple[type[ImageFile.ImageFile], tuple[bytes, ...]]] = {
    "png": (PngImageFile, (_PNG,)),
    "jpeg": (JpegImageFile, (b"\xff\xd8\xff",)),
    "webp": (WebPImageFile, (b"RIFF",)),
    "tiff": (TiffImageFile, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "bmp": (BmpImageFile, (b"BM",)),
}


@dataclass(frozen=True)
class Header:
    """Size in pixels as the image is read (turned upright), and channels without alpha: 1 or 3."""

    height: int
    width: int
    channels: int


def is_png(data: bytes) -> bool:
    return data.startswith(_PNG)


def is_complete(data: bytes) -> bool:
    """Whether the end of a PNG, JPEG or WebP file is there, as some OpenCV versions fill what is missing with grey.

    Other formats pass: their decoders complain. What follows the image (the film of a moving photo) is no fault.
    """
    if is_png(data):
        return any(name == b"IEND" for name in _png_chunks(data))
    if data.startswith(_JPEG):
        # Only the picture's own end marker counts, not that of a preview in the metadata before it.
        scan = data.find(b"\xff\xda", _end_of_jpeg_metadata(data))
        return scan >= 0 and data.find(b"\xff\xd9", scan) >= 0
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) >= 8 + struct.unpack_from("<I", data, 4)[0]
    return True


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Names of the chunks that lie wholly in `data`."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > len(data):
            return
        yield name
        if name == b"IEND":
            return


def _end_of_jpeg_metadata(data: bytes) -> int:
    """Where the application segments end: EXIF, colour profile, previews."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def orientation(data: bytes) -> int:
    """EXIF orientation of a PNG, JPEG or WebP file: 1 (upright) to 8. TIFF files are turned by their decoder."""
    if is_png(data):
        form, marked = "png", b"eXIf" in _png_chunks(data)
    elif data.startswith(_JPEG):
        form, marked = "jpeg", b"Exif\0\0" in data[: _end_of_jpeg_metadata(data)]
    else:
        form, marked = "webp", data[8:16] == b"WEBPVP8X" and bool(data[20] & 0x08)
    if not marked:
        return 1
    try:
        with READERS[form][0](io.BytesIO(data)) as image:
            return _known_turn(image)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1


def misread_tiff(data: bytes) -> str | None:
    """What of a 16-bit TIFF the decoder would take for something else, in words; None for all other files."""
    if not data.startswith((b"II*\0", b"MM\0*")):
        return None
    try:
        with TiffImageFile(io.BytesIO(data)) as image:
            tags = image.tag_v2
            if max(tags.get(_BITS, (1,))) != 16:
                return None
            if tags.get(_PLANES, 1) == 2 and len(tags[_BITS]) > 1:
                return "colour planes one after the other"
            if tags.get(_PHOTOMETRIC) == 0:
                return "white as its smallest value"
            return "colours multiplied by their transparency" if 1 in tags.get(_EXTRA, ()) else None
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return None  # the decoder will say what is wrong with it


def _known_turn(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def read_header(path: Path) -> Header | None:
    """The header of an image file, without decoding it; None where it cannot be understood."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return _plain_png_header(head) or _header_by_pillow(path)


def _plain_png_header(head: bytes) -> Header | None:
    """The header of a PNG file that has nothing before its pixels that could turn it, which is much faster."""
    pixels = head.find(b"IDAT")
    if not is_png(head) or pixels < 0 or b"eXIf" in head[:pixels]:
        return None
    width, height, _, kind = struct.unpack_from(">IIBB", head, 16)
    return Header(height, width, 1 if kind == 0 else 3)  # of the other kinds, OpenCV makes colours


def _header_by_pillow(path: Path) -> Header | None:
    try:
        with Image.open(path) as image:
            width, height = image.size
            channels = 1 if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;") else 3
            if image.format != "TIFF" and _known_turn(image) >= 5:
                width, height = height, width
    except (OSError, SyntaxError, ValueError, struct.error, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return Header(height, width, channels)
