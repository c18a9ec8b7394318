"""Image files to pictures: what a file says of itself, what is refused and in which words."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from diffir_sr.data.encoded import READERS, orientation
from diffir_sr.data.images import decode, upright
from diffir_sr.errors import InputError
from diffir_sr.inference.picture import Picture

_GREY = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION, _EXIF_PART, _GPS_PART, _INTEROPERABILITY = 0x0112, 0x8769, 0x8825, 0xA005
_SIZES = (0xA002, 0xA003)


@dataclass(frozen=True)
class Facts:
    """What an image file says of itself before its pixels are decoded."""

    format: str
    height: int
    width: int
    mode: str  # in Pillow's words
    icc: bytes | None
    exif: bytes | None
    keyed: bool = False  # a grey value of a PNG stands for transparency


def facts(data: bytes, *, where: str) -> Facts:
    """Format, size and metadata; raises InputError for what cannot be restored as one RGB or grey picture."""
    form = next((name for name, (_, starts) in READERS.items() if data.startswith(starts)), None)
    if form is None or (form == "webp" and data[8:12] != b"WEBP"):
        if not data:
            raise InputError(f"{where}: the file is empty; copy it again or remove it")
        raise InputError(f"{where}: no PNG, JPEG, WebP, TIFF or BMP file; convert it to one, or leave it out")
    try:
        with READERS[form][0](io.BytesIO(data)) as image:
            _refuse_unusual(image, where)
            width, height = image.size
            if form != "tiff" and orientation(data) >= 5:
                width, height = height, width
            # Pillow would decode a whole PNG to look for EXIF behind its pixels.
            hidden = form == "png" and "exif" not in image.info
            exif = None if form == "tiff" or hidden else plain_exif(image)
            keyed = form == "png" and _is_grey(image.mode) and "transparency" in image.info
            return Facts(form, height, width, image.mode, image.info.get("icc_profile") or None, exif, keyed)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> InputError:
    return InputError(f"{where}: damaged or cut short, or no image ({error}); copy the file again or remove it")


def _refuse_unusual(image: Image.Image, where: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(
            f"{where}: animated or of several pages, {frames} pictures in one file, expected one; save the picture "
            "you mean alone, or give a video"
        )
    if image.mode in ("CMYK", "YCCK", "LAB", "HSV"):
        raise InputError(
            f"{where}: {image.mode} colours, made for print, have no one meaning as RGB; convert the picture to sRGB "
            "with its profile in an image editor"
        )


def plain_exif(image: Image.Image) -> bytes | None:
    """EXIF without what restoring makes untrue: the orientation, the size, the preview."""
    found = image.getexif()
    if not len(found):
        return None
    parts = (_EXIF_PART, _GPS_PART)  # their tags hold places in the file, which are others in the new one
    plain = Image.Exif()
    plain.update({tag: value for tag, value in found.items() if tag not in (_ORIENTATION, *parts)})
    untrue = (*_SIZES, _INTEROPERABILITY)
    kept = False
    for part in parts:
        values = {tag: value for tag, value in found.get_ifd(part).items() if tag not in untrue}
        if values:
            plain.get_ifd(part).update(values)
            kept = True
    return plain.tobytes() if len(plain) or kept else None


def read_picture(data: bytes, *, where: str, known: Facts | None = None) -> Picture:
    """The picture of an encoded file, upright; raises InputError that names `where`."""
    known = known or facts(data, where=where)
    pixels = decode(data, where=where)
    if known.format == "tiff" and known.mode in ("LA", "RGBA") and pixels.dtype == np.uint8:
        pixels = _by_pillow(data, where)  # OpenCV multiplies alpha of 8 bits into the colours, or drops it
    alpha = np.ascontiguousarray(pixels[..., -1]) if pixels.shape[2] in (2, 4) else None
    if known.keyed:
        alpha = _keyed_alpha(data, pixels, where)  # which OpenCV does not see
    # OpenCV makes colours of grey with alpha.
    colours = pixels[..., :1] if _is_grey(known.mode) or pixels.shape[2] < 3 else pixels[..., :3]
    return Picture(np.ascontiguousarray(colours), alpha, known.icc, known.exif, known.format)


def _is_grey(mode: str) -> bool:
    return mode in _GREY or mode.startswith("I;")


def _keyed_alpha(data: bytes, pixels: np.ndarray, where: str) -> np.ndarray:
    """Alpha (H, W) of a grey PNG in which one value stands for transparency."""
    try:
        with PngImageFile(io.BytesIO(data)) as image:
            key = image.info["transparency"]
            if pixels.dtype == np.uint16:
                return np.where(pixels[..., 0] == key, 0, 65535).astype(np.uint16)
            return upright(np.array(image.convert("LA"))[..., 1:], orientation(data))[..., 0]
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(where, error) from error


def _by_pillow(data: bytes, where: str) -> np.ndarray:
    try:
        with TiffImageFile(io.BytesIO(data)) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(where, error) from error
