"""Image files to pictures: what a file says of itself, what is refused and in which words."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from diffir_sr.data.images import decode
from diffir_sr.errors import InputError
from diffir_sr.inference.picture import Picture

# Opened by their classes and not by Image.open, which refuses every picture of more than 179 million pixels.
_READERS: dict[str, tuple[type[ImageFile.ImageFile], tuple[bytes, ...]]] = {
    "png": (PngImageFile, (b"\x89PNG\r\n\x1a\n",)),
    "jpeg": (JpegImageFile, (b"\xff\xd8\xff",)),
    "webp": (WebPImageFile, (b"RIFF",)),
    "tiff": (TiffImageFile, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "bmp": (BmpImageFile, (b"BM",)),
}
_GREY = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION, _EXIF_PART, _SIZES = 0x0112, 0x8769, (0xA002, 0xA003)


@dataclass(frozen=True)
class Facts:
    """What an image file says of itself before its pixels are decoded."""

    format: str
    height: int
    width: int
    grey: bool
    icc: bytes | None
    exif: bytes | None


def facts(data: bytes, *, where: str) -> Facts:
    """Format, size and metadata; raises InputError for what cannot be restored as one RGB or grey picture."""
    form = next((name for name, (_, starts) in _READERS.items() if data.startswith(starts)), None)
    if form is None or (form == "webp" and data[8:12] != b"WEBP"):
        if not data:
            raise InputError(f"{where}: the file is empty; copy it again or remove it")
        raise InputError(f"{where}: no PNG, JPEG, WebP, TIFF or BMP file; convert it to one, or leave it out")
    try:
        with _READERS[form][0](io.BytesIO(data)) as image:
            _refuse_unusual(image, where)
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            if turned:
                width, height = height, width
            grey = image.mode in _GREY or image.mode.startswith("I;")
            exif = _exif(image) if form != "tiff" else None
            return Facts(form, height, width, grey, image.info.get("icc_profile") or None, exif)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError) as error:
        raise InputError(
            f"{where}: damaged or cut short, or no image ({error}); copy the file again or remove it"
        ) from error


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


def _exif(image: Image.Image) -> bytes | None:
    """EXIF without what restoring makes untrue: the orientation, the size, the preview."""
    found = image.getexif()
    if not len(found):
        return None
    plain = Image.Exif()
    plain.update({tag: value for tag, value in found.items() if tag not in (_ORIENTATION, _EXIF_PART)})
    inner = {tag: value for tag, value in found.get_ifd(_EXIF_PART).items() if tag not in _SIZES}
    if inner:
        plain.get_ifd(_EXIF_PART).update(inner)
    return plain.tobytes() if len(plain) or inner else None


def read_picture(data: bytes, *, where: str, known: Facts | None = None) -> Picture:
    """The picture of an encoded file, upright; raises InputError that names `where`."""
    known = known or facts(data, where=where)
    pixels = decode(data, where=where)
    # OpenCV makes colours of grey with alpha.
    alpha = np.ascontiguousarray(pixels[..., -1]) if pixels.shape[2] in (2, 4) else None
    colours = pixels[..., :1] if known.grey or pixels.shape[2] < 3 else pixels[..., :3]
    return Picture(np.ascontiguousarray(colours), alpha, known.icc, known.exif, known.format)
