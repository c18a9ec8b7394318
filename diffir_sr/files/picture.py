"""A picture in memory, its encoding as an image file with the metadata of its source, and contact sheets."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.metadata import Metadata, png_chunks_of, text_names, texts_of_exif, with_png_chunks

# Output formats by suffix.
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg", ".webp": "webp"}
FORMATS |= {".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp", ".dib": "bmp"}
_LARGEST = {"jpeg": 65535, "webp": 16383}  # limits of formats, in pixels per side
_HOLDS_EXIF = _HOLDS_XMP = ("png", "jpeg", "webp")
_HOLDS_DPI = ("png", "jpeg", "tiff", "bmp")
_HOLDS_ALPHA = ("png", "webp", "tiff")  # readers ignore the fourth channel of a BMP
_LARGEST_JPEG_EXIF = 65533 - 6  # the length of a segment includes itself; "Exif" and two zeros come first
_LARGEST_JPEG_XMP = 65533 - 29
_XMP_TAG = 700  # of TIFF


@dataclass(frozen=True, eq=False)
class Picture:
    """Colours (H, W, 1 grey or 3 RGB) as uint8, uint16 or float in [0, 1], optionally with alpha (H, W) of that type.

    It is upright; `icc`, `exif` and `metadata` (which contains neither of the two) are kept from and for files, without
    orientation. `notes` are sentences about conversions on reading.
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "png"
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.colours.shape[0], self.colours.shape[1]

    @property
    def channels(self) -> np.ndarray:
        """(H, W, 1 to 4): colours and, if present, alpha."""
        return self.colours if self.alpha is None else np.dstack([self.colours, self.alpha])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self.channels
        return found if dtype is None else found.astype(dtype)

    def save(self, path: str | Path, *, quality: int = 95, overwrite: bool = False) -> None:
        """Write a file atomically, in the format of its suffix. An existing file is an error unless `overwrite`."""
        path = Path(os.path.expanduser(path))
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists and is not overwritten; choose another name or overwrite=True")
        write_atomically(encode(self, format_of(path), quality=quality), path)


def format_of(path: Path) -> str:
    """The format of a file name; raises InputError for an unknown suffix."""
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise InputError(f"{path}: unknown image format; use one of the suffixes {' '.join(FORMATS)}")
    return found


def not_held(picture: Picture, form: str) -> list[str]:
    """Names of the properties of a picture that will be lost in a file of the format."""
    lost, metadata = [], picture.metadata
    if picture.colours.dtype == np.uint16 and form not in ("png", "tiff"):
        lost.append("the lower 8 of its 16 bits")
    if picture.colours.dtype.kind == "f" and form != "tiff":
        lost.append(f"more than {16 if form == 'png' else 8} bits of its floats")
    if picture.icc and not _holds_profile(picture, form):
        lost.append("the colour profile")
    if picture.exif and not _holds_exif(picture.exif, form) and not (form == "tiff" and texts_of_exif(picture.exif)[1]):
        lost.append("EXIF of this size" if form in _HOLDS_EXIF else "EXIF")
    if metadata.colour_chunks and form != "png":
        lost.append(f"its colour space ({', '.join(name.decode() for name, _ in metadata.colour_chunks)})")
    if metadata.xmp and not _holds_xmp(metadata.xmp, form):
        lost.append("XMP of this size" if form == "jpeg" else "XMP")
    if metadata.dpi and form not in _HOLDS_DPI:
        lost.append("dpi")
    if metadata.text and form != "png":
        lost.append(f"its text ({', '.join(text_names(metadata))})")
    if metadata.comment and form != "jpeg":
        lost.append("its comment")
    return lost


def _holds_profile(picture: Picture, form: str) -> bool:
    """Whether a file will have the kind of colours that the profile of the picture is for."""
    if form == "bmp" or not picture.icc:
        return False
    is_grey = picture.colours.shape[2] == 1 and form != "webp"
    kind = picture.icc[16:20]
    return (kind != b"GRAY" or is_grey) and not (kind == b"RGB " and is_grey and form == "png")


def _holds_exif(exif: bytes, form: str) -> bool:
    return form in _HOLDS_EXIF and not (form == "jpeg" and len(exif.removeprefix(b"Exif\0\0")) > _LARGEST_JPEG_EXIF)


def _holds_xmp(xmp: bytes, form: str) -> bool:
    return form in (*_HOLDS_XMP, "tiff") and not (form == "jpeg" and len(xmp) > _LARGEST_JPEG_XMP)


def encode(picture: Picture, form: str, *, quality: int = 95) -> bytes:
    """The encoded file; `quality` 1 to 100 is for JPEG and WebP (100: lossless).

    Raises InputError if the format cannot represent the picture.
    """
    height, width = picture.size
    if max(height, width) > _LARGEST.get(form, 2**31):
        raise InputError(f"{form} allows at most {_LARGEST[form]} pixels per side, not {height}x{width}; choose png")
    if picture.alpha is not None and form not in _HOLDS_ALPHA:
        raise InputError(f"{form} does not support the transparency of this image; choose png, webp or tiff")
    if form == "png":
        icc = picture.icc if _holds_profile(picture, form) else None
        metadata = replace(picture.metadata, exif=picture.exif)
        return with_png_chunks(encode_png(_integers(picture.channels)), png_chunks_of(metadata, icc=icc))
    if form == "tiff":
        return _tiff(picture)
    return _by_pillow(picture, form, quality)


def encode_png(image: np.ndarray, *, compress_level: int = 1) -> bytes:
    """PNG bytes of an array (H, W, C), uint8 or uint16: grey, grey with alpha, RGB or RGBA."""
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or image.dtype not in (np.uint8, np.uint16) or not image.size:
        raise InputError(f"an array of shape {image.shape}, {image.dtype} cannot be stored as PNG")
    plain = image[..., 0] if image.shape[2] == 1 else image
    usual = np.array(plain, order="C")  # with standard strides, also if a side has one pixel
    return bytes(imagecodecs.png_encode(usual, level=compress_level))


def as_bits(values: np.ndarray, kind: Any) -> np.ndarray:
    """Values of any supported type as uint8 or uint16 (or unchanged), rounded."""
    if values.dtype == kind:
        return values
    largest = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
    share = values / largest[values.dtype] if values.dtype in largest else values
    return np.rint(np.clip(share, 0, 1) * largest[np.dtype(kind)]).astype(kind)


def _integers(values: np.ndarray) -> np.ndarray:
    return values if values.dtype in (np.uint8, np.uint16) else as_bits(values, np.uint16)


def _by_pillow(picture: Picture, form: str, quality: int) -> bytes:
    channels = as_bits(picture.channels, np.uint8)
    image = Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)
    if form == "webp" and image.mode in ("L", "LA"):
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    how: dict[str, Any] = {"bmp": {}, "jpeg": {"quality": quality, "subsampling": 0}}.get(form) or {}
    if form == "webp":
        how = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
    metadata = picture.metadata
    if _holds_profile(picture, form):
        how["icc_profile"] = picture.icc
    if picture.exif and _holds_exif(picture.exif, form):
        how["exif"] = picture.exif
    if metadata.xmp and _holds_xmp(metadata.xmp, form):
        how["xmp"] = metadata.xmp
    if metadata.dpi and form in _HOLDS_DPI:
        how["dpi"] = metadata.dpi
    if metadata.comment and form == "jpeg":
        how["comment"] = metadata.comment
    file = io.BytesIO()
    image.save(file, form.upper(), **how)
    return file.getvalue()


def _tiff(picture: Picture) -> bytes:
    import tifffile

    channels = picture.channels
    if channels.dtype.kind == "f":
        channels = channels.astype(np.float32)
    metadata, how = picture.metadata, {}
    if picture.icc and _holds_profile(picture, "tiff"):
        how["iccprofile"] = picture.icc
    if metadata.dpi:
        how |= dict(resolution=metadata.dpi, resolutionunit="INCH")
    texts = texts_of_exif(picture.exif)[0]
    tags: list[tuple[int, int, int, str | bytes, bool]] = [(tag, 2, 0, text, True) for tag, text in texts.items()]
    if metadata.xmp:
        tags.append((_XMP_TAG, 1, len(metadata.xmp), metadata.xmp, True))
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        channels[..., 0] if channels.shape[2] == 1 else channels,
        photometric="rgb" if picture.colours.shape[2] == 3 else "minisblack",
        planarconfig="contig" if channels.shape[2] > 1 else None,
        extrasamples=["unassalpha"] if picture.alpha is not None else None,
        compression="zlib",
        predictor=channels.dtype.kind == "u",
        metadata=None,
        software=False,
        extratags=tags,
        **how,
    )
    return file.getvalue()


_GAP = 6
_LABEL = 18
_LETTERS = 0.4
_PAPER = 190  # unlike masks, neither black nor white


def contact_sheet(tiles: Sequence[tuple[str, np.ndarray]], *, columns: int) -> np.ndarray:
    """Labelled images (H, W, 3) uint8 in rows of `columns`; each cell is as large as the largest tile."""
    height = max(tile.shape[0] for _, tile in tiles) + _LABEL
    width = max(tile.shape[1] for _, tile in tiles)
    rows = math.ceil(len(tiles) / columns)
    page = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _PAPER, np.uint8)
    for index, (label, tile) in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        page[top + _LABEL : top + _LABEL + tile.shape[0], left : left + tile.shape[1]] = tile
        room = int(width / (18 * _LETTERS))
        shown = label if len(label) <= room else f"{label[: room - 2]}.."
        place = (left, top + _LABEL - 5)
        cv2.putText(page, shown, place, cv2.FONT_HERSHEY_SIMPLEX, _LETTERS, (0, 0, 0), 1, cv2.LINE_AA)
    return page


def centre(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image, at most `size` pixels per side."""
    top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge by pixel repetition, without smoothing."""
    return np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
