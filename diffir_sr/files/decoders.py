"""One decoder per image format, all to the same arrays: (H, W, C), uint8, uint16 or float32, before orientation.

C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha). White is the largest value of the type, or 1 for floats.
Every error of a decoder, and every warning that can be obtained from it, is `DamagedError`: OpenCV and Pillow hide
those of libjpeg.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile

from diffir_sr.files import bmp
from diffir_sr.files.metadata import (
    PNG_SIGNATURE,
    Metadata,
    cicp_of_boxes,
    intact,
    jpeg_header,
    pillow_metadata,
    png_chunks,
    png_metadata,
    tiff_exif,
    to_srgb,
    webp_header,
)

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its messages about odd tags are not for users

_AV1_DEEP, _AV1_TWELVE = 0x40, 0x20


class DamagedError(Exception):
    """The bytes violate their format; the text says how."""


class UnsupportedError(Exception):
    """A file that may be valid, but is not supported; `str` says what it is and what to do."""


@dataclass(frozen=True)
class Header:
    """Size as stored, channels without alpha (1 or 3), images in the file, metadata, and data for the decoder."""

    height: int
    width: int
    channels: int
    metadata: Metadata = Metadata()
    frames: int = 1
    state: Any = None


@dataclass(frozen=True)
class Pixels:
    """Decoded values, notes about conversions, and whether the profile has been applied already."""

    channels: np.ndarray
    notes: tuple[str, ...] = ()
    is_srgb: bool = False


@dataclass(frozen=True)
class Format:
    """How files of one format begin, and how they are read; `lenient` decoders return what can still be decoded."""

    name: str
    matches: Callable[[bytes], bool]
    header: Callable[[bytes], Header]
    pixels: Callable[[bytes, Header, bool], Pixels]


# PNG


def _png_header(data: bytes) -> Header:
    head = next(png_chunks(data), None)
    if head is None or head[0] != b"IHDR" or head[2] - head[1] != 13 or not intact(data, *head[1:]):
        raise DamagedError("its header is damaged")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    kind, frames = data[25], 1
    for name, start, _ in png_chunks(data):
        if name == b"acTL":
            frames = int.from_bytes(data[start : start + 4], "big")
        if name == b"IDAT":
            break
    return Header(height, width, 1 if kind in (0, 4) else 3, png_metadata(data), frames)


def _png(data: bytes, header: Header, lenient: bool) -> Pixels:
    if lenient:
        return Pixels(_by_pillow(PngImageFile, data))
    needed, name = [PNG_SIGNATURE], b""
    for name, start, end in png_chunks(data):
        if name in (b"PLTE", b"tRNS", b"IEND") and not intact(data, start, end):
            raise DamagedError(f"its chunk {name.decode()} is damaged")
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            needed.append(data[start - 8 : end + 4])
    if name != b"IEND":
        raise DamagedError("the end of the image is missing")
    data = b"".join(needed)  # libpng would print messages about odd other chunks on standard error
    if data[28]:  # interlaced: imagecodecs' libpng prints a warning on standard error
        return Pixels(_interlaced_png(data))
    return Pixels(_with_channels(imagecodecs.png_decode(data)))


def _interlaced_png(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise DamagedError("its pixels are damaged")
    kind, depth, found = data[25], data[24], _with_channels(found)
    if kind == 4:
        return np.ascontiguousarray(found[..., [0, 3]])  # OpenCV converts grey with alpha to colours
    if kind == 0:
        for name, start, end in png_chunks(data):
            if name == b"tRNS" and end - start >= 2:  # which OpenCV ignores in grey files
                most = np.iinfo(found.dtype).max
                key = int.from_bytes(data[start : start + 2], "big") * (most // (2**depth - 1))
                return np.dstack([found, np.where(found == key, 0, most).astype(found.dtype)])
        return found
    return np.ascontiguousarray(found[..., [2, 1, 0, 3][: found.shape[2]]])


def _with_channels(image: np.ndarray) -> np.ndarray:
    return image[..., None] if image.ndim == 2 else image


def _by_pillow(kind: type[ImageFile.ImageFile], data: bytes) -> np.ndarray:
    """Decode with Pillow, which fills missing parts."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with kind(io.BytesIO(data)) as image:
            return pillow_channels(image)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def pillow_channels(image: Image.Image) -> np.ndarray:
    """The values of a PIL image, (H, W, C); palettes become colours, bits grey, colour keys alpha.

    Raises UnsupportedError for modes that are not clearly grey or RGB; CMYK is not handled here.
    """
    if image.mode == "1":
        image = image.convert("L")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        if image.mode == "I":
            if values.size and not (values.min() >= 0 and values.max() <= 65535):
                raise UnsupportedError(f"mode I with values from {values.min()} to {values.max()}; expected 0 to 65535")
            values = values.astype(np.uint16)
        key = image.info.get("transparency")
        values = values.astype(values.dtype.newbyteorder("="))[..., None]
        if isinstance(key, int) and values.dtype == np.uint16:
            return np.dstack([values, np.where(values == key, 0, 65535).astype(np.uint16)])
        return values
    if "transparency" in image.info and image.mode in ("P", "L", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode in ("P", "PA", "RGBX", "La", "RGBa"):
        target = {"P": image.palette.mode if image.palette else "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
        image = image.convert(target.get(image.mode, "RGB"))
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedError(f"mode {image.mode} is not supported; convert it to RGB, as in image.convert('RGB')")
    return _with_channels(np.array(image))


# JPEG


def _jpeg_header(data: bytes) -> Header:
    found = jpeg_header(data)
    if found is None or not found.height or not found.width:
        raise DamagedError("its header is missing or damaged")
    return Header(found.height, found.width, 1 if found.components == 1 else 3, found.metadata, state=found)


def _jpeg(data: bytes, header: Header, lenient: bool) -> Pixels:
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:  # more than 8 bits, lossless, or rare subsampling: not supported by TurboJPEG
        return _rare_jpeg(data, header.state.bits)
    space = {1: "GRAY", 4: "CMYK"}.get(header.state.components, "RGB")
    found = simplejpeg.decode_jpeg(data, colorspace=space, strict=not lenient)
    if space != "CMYK":
        return Pixels(found)
    return _from_cmyk(255 - found, header.metadata.icc)  # all programs store CMYK in JPEG inverted, as Adobe does


def _rare_jpeg(data: bytes, bits: int) -> Pixels:
    found = _with_channels(imagecodecs.jpeg_decode(data))
    if found.shape[2] not in (1, 3):
        raise UnsupportedError(f"a JPEG of {found.shape[2]} components of {bits} bits; convert it to PNG")
    return Pixels(scaled(found, bits))


def _from_cmyk(values: np.ndarray, icc: bytes | None) -> Pixels:
    image, note = to_srgb(Image.fromarray(np.ascontiguousarray(values), "CMYK"), icc)
    return Pixels(np.array(image), (note,), is_srgb=True)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values of `bits` bits, scaled so that the largest is white: uint8, or uint16 above 8 bits."""
    kind, top = (np.uint8, 255) if bits <= 8 else (np.uint16, 65535)
    most = 2**bits - 1
    if most == top:
        return values.astype(kind, copy=False)
    return ((values.astype(np.uint64) * top + most // 2) // most).astype(kind)


# WebP


def _webp_header(data: bytes) -> Header:
    found = webp_header(data)
    if found is None:
        raise DamagedError("its header is missing or damaged")
    return Header(found.height, found.width, 3, found.metadata, found.frames)


def _webp(data: bytes, header: Header, lenient: bool) -> Pixels:
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise DamagedError("the end of the image is missing")
    return Pixels(imagecodecs.webp_decode(data))


# TIFF


def _tiff_header(data: bytes) -> Header:
    return tiff_header(io.BytesIO(data), exif=tiff_exif(data))


def tiff_header(file: BinaryIO, *, exif: bytes | None = None) -> Header:
    """The header of an opened TIFF file; only the directories are read."""
    import tifffile

    with tifffile.TiffFile(file) as opened:
        pages: list[Any] = [page.aspage() for page in opened.pages]
    for page in pages:
        numbers = (page.imagelength, page.imagewidth, page.subfiletype, page.photometric)
        if not all(isinstance(number, int) for number in numbers):  # tuples if the count is not 1
            raise DamagedError("a size or kind in its directory is not a single number")
    whole = [page for page in pages if not page.subfiletype & 1] or pages
    if not whole:
        raise DamagedError("it contains no image")
    page, others = whole[0], [one for one in pages if one is not whole[0]]
    others = [one for one in others if not _is_preview(one, page)]
    left_out = len(pages) - 1 - len(others)
    metadata = Metadata(
        icc=_tag(page, 34675),
        exif=exif,
        xmp=_tag(page, 700),
        dpi=_tiff_dpi(_tag(page, 282), _tag(page, 283), _tag(page, 296)),
        left_out=("IPTC",) if _tag(page, 33723) is not None or _tag(page, 34377) is not None else (),
        notes=(f"{left_out} smaller page{'s' * (left_out > 1)} (a preview) left out",) if left_out else (),
        turn=turn if isinstance(turn := _tag(page, 274), int) else None,
    )
    channels = 3 if page.photometric in (2, 3, 5, 6) else 1
    return Header(page.imagelength, page.imagewidth, channels, metadata, 1 + len(others), page)


def _is_preview(page: Any, of: Any) -> bool:
    smaller = page.imagelength < of.imagelength and page.imagewidth < of.imagewidth
    return bool(page.subfiletype & 5) or smaller  # bits 0 and 2: reduced, a mask of transparency


def _tag(page: Any, code: int) -> Any:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _tiff_dpi(across: Any, down: Any, unit: Any) -> tuple[float, float] | None:
    try:
        found = across[0] / across[1], down[0] / down[1]
    except (TypeError, ZeroDivisionError, IndexError):
        return None
    if unit not in (None, 2, 3) or min(found) <= 0:
        return None
    return (found[0] * 2.54, found[1] * 2.54) if unit == 3 else found


def _tiff(data: bytes, header: Header, lenient: bool) -> Pixels:
    page = header.state
    page.parent.filehandle.open()
    try:
        if not lenient:
            _check_segments(page)
        _refuse_rare(page)
        values = _segments(page) if lenient else page.asarray()
    finally:
        page.parent.filehandle.close()
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, -1)
    return _meaning(values, page, header.metadata.icc)


def _check_segments(page: Any) -> None:
    """Raise DamagedError for strips that are missing or that libjpeg warns about, which tifffile tolerates."""
    wanted, offsets, counts = int(np.prod(page.chunked)), page.dataoffsets, page.databytecounts
    if len(offsets) < wanted or len(counts) < wanted or 0 in counts[:wanted]:
        raise DamagedError("some of its strips or tiles are missing")
    if page.compression != 7:
        return
    for offset, count in zip(offsets, counts, strict=True):
        page.parent.filehandle.seek(offset)
        strip = page.parent.filehandle.read(count)
        whole = page.jpegtables[:-2] + strip[2:] if page.jpegtables else strip
        try:
            simplejpeg.decode_jpeg(whole)
        except ValueError as error:
            if "orrupt" in str(error) or "remature" in str(error):
                raise DamagedError(str(error)) from error


def _refuse_rare(page: Any) -> None:
    photometric = {4: "a mask", 8: "CIELAB colours", 9: "ICCLAB colours", 10: "ITULAB colours"}
    photometric |= {32803: "raw data of a camera", 34892: "raw data of a camera", 32844: "LogL", 32845: "LogLuv"}
    if page.photometric in photometric:
        raise UnsupportedError(f"contains {photometric[page.photometric]}, expected grey or RGB; convert it to PNG")
    if page.photometric == 6 and page.compression not in (6, 7):
        raise UnsupportedError(
            "contains YCbCr colours without JPEG compression, expected grey or RGB; convert it to PNG"
        )
    if page.imagedepth != 1:
        raise UnsupportedError(
            f"contains a volume of {page.imagedepth} layers, expected one image; save the layer separately"
        )
    if page.sampleformat not in (1, 3, 4) or (page.sampleformat != 3 and page.bitspersample > 16):
        kind = {2: "signed", 5: "complex", 6: "complex"}.get(page.sampleformat, "unsigned")
        raise UnsupportedError(
            f"contains {kind} values of {page.bitspersample} bits ({page.dtype}), expected 8 or 16 bits unsigned, or "
            "floats in [0, 1]; convert it"
        )


def _segments(page: Any) -> np.ndarray:
    """The page, with strips or tiles that cannot be decoded in black."""
    out = np.zeros(page.shaped[1:] if page.planarconfig == 1 else page.shaped, page.dtype)
    out = out.reshape(page.shaped)
    for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        page.parent.filehandle.seek(offset)
        try:
            found, place, shape = page.decode(page.parent.filehandle.read(count), index, jpegtables=page.jpegtables)
        except (ValueError, RuntimeError, TypeError):
            continue
        if found is not None:
            plane, depth, row, column, _ = place
            part = out[plane, depth, row : row + shape[1], column : column + shape[2]]
            part[...] = found[0, : part.shape[0], : part.shape[1]]
    return out.reshape(page.shape)


def _meaning(values: np.ndarray, page: Any, icc: bytes | None) -> Pixels:
    """Stored samples (H, W, C) as grey or RGB, with alpha if there is any."""
    notes: list[str] = []
    values, colour, rest, note = _as_colours(values, page, icc)
    notes += [note] if note else []
    if colour.dtype.kind == "f":
        colour, rest = _unit_floats(colour, notes), [np.clip(one, 0, 1) for one in _floats(rest)]
    kinds = [int(one) for one in page.extrasamples] or [2] * len(rest)
    alpha = next(((one, kind) for one, kind in zip(rest, kinds, strict=False) if kind in (1, 2)), None)
    left_out = len(rest) - (alpha is not None)
    if left_out:
        notes.append(f"{left_out} channels that are neither colour nor alpha are left out")
    if alpha is None:
        return Pixels(np.ascontiguousarray(colour), tuple(notes), is_srgb=page.photometric == 5)
    if alpha[1] == 1:
        notes.append("its colours were premultiplied by alpha, and are divided by it")
        colour = _unmultiplied(colour, alpha[0])
    return Pixels(np.dstack([colour, alpha[0]]), tuple(notes), is_srgb=page.photometric == 5)


def _as_colours(
    values: np.ndarray, page: Any, icc: bytes | None
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], str]:
    """(all values, colours, further channels, a note), scaled to the full range of their type."""
    bits = page.bitspersample
    if page.photometric == 3:
        palette = np.asarray(page.colormap).T
        eight = bool((palette % 257 == 0).all() or (palette % 256 == 0).all())
        table = (palette // (257 if (palette % 257 == 0).all() else 256)).astype(np.uint8) if eight else palette
        return values, table[values[..., 0]], list(np.moveaxis(values[..., 1:], -1, 0)), ""
    if values.dtype == bool or (values.dtype.kind == "u" and isinstance(bits, int) and bits not in (8, 16)):
        values = scaled(values.astype(np.uint16), bits if isinstance(bits, int) else 8)
    count = {5: 4, 2: 3, 6: 3}.get(int(page.photometric), 1)
    if values.shape[2] < count:
        raise DamagedError(f"{values.shape[2]} channels for colours of {count}")
    colour, rest = values[..., :count], [values[..., at] for at in range(count, values.shape[2])]
    if page.photometric == 0:
        colour = (1 if colour.dtype.kind == "f" else np.iinfo(colour.dtype).max) - colour
    if page.photometric != 5:
        return values, colour, rest, ""
    if colour.dtype == np.uint16:
        colour = ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)
        rest = [((one.astype(np.uint32) + 128) // 257).astype(np.uint8) for one in rest]
    found = _from_cmyk(colour, icc)
    return values, found.channels, rest, found.notes[0]


def _floats(found: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [one.astype(np.float32) for one in found]


def _unit_floats(values: np.ndarray, notes: list[str]) -> np.ndarray:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN
        raise UnsupportedError(
            f"contains {values.dtype} values from {low:g} to {high:g}, expected [0, 1]; scale them, or save it "
            "with 8 or 16 bits"
        )
    notes.append(f"its {values.dtype} values are used as they are, in [0, 1]")
    return np.clip(values, 0, 1).astype(np.float32)


def _unmultiplied(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    top = 1.0 if colour.dtype.kind == "f" else float(np.iinfo(colour.dtype).max)
    share = np.where(alpha > 0, alpha, top).astype(np.float64)[..., None] / top
    found = np.clip(colour / share, 0, top)
    return (np.rint(found) if colour.dtype.kind == "u" else found).astype(colour.dtype)


# BMP


def _bmp_header(data: bytes) -> Header:
    found = bmp.bmp_header(data)
    inner = bmp.embedded(data, found)
    if inner is not None:
        form = format_of(inner)
        if form is None:
            raise DamagedError("the file inside it is missing")
        return replace(form.header(inner), state=(form, inner, form.header(inner)))
    return Header(found.height, found.width, 1 if found.is_grey else 3, Metadata(dpi=found.dpi), state=found)


def _bmp(data: bytes, header: Header, lenient: bool) -> Pixels:
    if isinstance(header.state, tuple):
        form, inner, its_header = header.state
        return form.pixels(inner, its_header, lenient)
    return Pixels(bmp.bmp_pixels(data, header.state, lenient=lenient))


# GIF, AVIF, HEIC


def _gif_header(data: bytes) -> Header:
    with GifImageFile(io.BytesIO(data)) as image:
        found = pillow_metadata(image.info, None)
        frames = int(getattr(image, "n_frames", 1))
        return Header(image.height, image.width, 1 if image.mode == "L" else 3, found, frames)


def _gif(data: bytes, header: Header, lenient: bool) -> Pixels:
    if lenient:
        return Pixels(_by_pillow(GifImageFile, data))
    with GifImageFile(io.BytesIO(data)) as image:
        image.load()
        return Pixels(pillow_channels(image))


def _avif_header(data: bytes) -> Header:
    from PIL.AvifImagePlugin import AvifImageFile

    with AvifImageFile(io.BytesIO(data)) as image:
        metadata = replace(pillow_metadata(image.info, image.getexif()), colour_chunks=cicp_of_boxes(data))
        return Header(image.height, image.width, 3, metadata, int(getattr(image, "n_frames", 1)))


def _avif(data: bytes, header: Header, lenient: bool) -> Pixels:
    found = _with_channels(imagecodecs.avif_decode(data))
    if found.shape[2] < 3:  # the same for every version of the decoder: images of these formats have colours
        found = found[..., [0, 0, 0, 1][: 3 + (found.shape[2] == 2)]]
    at = data.find(b"av1C")
    deep = data[at + 6] if at >= 0 else 0
    bits = (12 if deep & _AV1_TWELVE else 10) if deep & _AV1_DEEP else 8
    return Pixels(scaled(found, bits if found.dtype == np.uint16 else 8))


def _heif(data: bytes) -> Any:
    try:
        import pillow_heif
    except ImportError as error:
        raise UnsupportedError("HEIC needs pillow-heif; install it with: pip install 'diffir_sr[heif]'") from error
    return pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)


def _heif_header(data: bytes) -> Header:
    found = _heif(data)
    image = found[found.primary_index]
    metadata = replace(pillow_metadata(image.info, None), colour_chunks=cicp_of_boxes(data), turn=1)
    notes = (f"{len(found) - 1} further images in the file are left out",) if len(found) > 1 else ()
    width, height = image.size
    return Header(height, width, 1 if image.mode.startswith("L") else 3, replace(metadata, notes=notes), state=image)


def _heic(data: bytes, header: Header, lenient: bool) -> Pixels:
    image = header.state
    found = _with_channels(np.array(image))
    return Pixels(scaled(found, image.info.get("bit_depth", 8) if found.dtype == np.uint16 else 8))


def _brand(data: bytes) -> bytes:
    return data[8:12] if data[4:8] == b"ftyp" else b""


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def _is_avif(data: bytes) -> bool:
    return _brand(data) in (b"avif", b"avis") or (_brand(data) in (b"mif1", b"msf1") and b"avif" in data[16:64])


FORMATS = (
    Format("png", lambda data: data.startswith(PNG_SIGNATURE), _png_header, _png),
    Format("jpeg", lambda data: data.startswith(b"\xff\xd8\xff"), _jpeg_header, _jpeg),
    Format("webp", lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp_header, _webp),
    Format("tiff", lambda data: data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff_header, _tiff),
    Format("bmp", lambda data: data.startswith(b"BM"), _bmp_header, _bmp),
    Format("gif", lambda data: data[:6] in (b"GIF87a", b"GIF89a"), _gif_header, _gif),
    Format("avif", _is_avif, _avif_header, _avif),
    Format("heic", lambda data: _brand(data) in _HEIC_BRANDS, _heif_header, _heic),
)


def format_of_content(path: Path) -> Format | None:
    """The format according to the first bytes of a file, not its name; None for others and for unreadable files."""
    try:
        with path.open("rb") as file:
            return format_of(file.read(64))
    except OSError:
        return None


def format_of(data: bytes) -> Format | None:
    """The format according to the first bytes of a file, not its name."""
    return next((form for form in FORMATS if form.matches(data)), None)
