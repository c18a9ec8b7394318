"""Metadata of image files: EXIF, XMP, colour profiles, resolution, text; and the orientation.

Containers are parsed here and not by a decoder, so that odd metadata never prevents decoding, and all readers apply the
same orientation.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageCms

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
_EXIF_PART, _GPS_PART, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_SIZES = (0xA002, 0xA003)
_OF_IFD0 = (270, 271, 272, 305, 306, 315, 316, 33432)  # kept from a TIFF; its other tags describe the file
_COLOUR_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_XMP_IN_PNG = b"XML:com.adobe.xmp"
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_TURN_IN_XMP = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([0-9]+)")
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_LARGEST_TEXT = 2**24
_METRE = 0.0254  # metres per inch


@dataclass(frozen=True)
class Metadata:
    """Metadata of an image. `exif` is as found in the file until `plain` has cleaned it.

    `colour_chunks` and `text` are chunks of a PNG (name, data), `dpi` is (horizontal, vertical), `notes` are sentences
    about irregularities, `left_out` names metadata that is never kept.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    text: tuple[tuple[bytes, bytes], ...] = ()
    comment: bytes | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    turn: int | None = None  # EXIF orientation, 1 (upright) to 8; None: look for it in EXIF, then in XMP

    def plain(self) -> Metadata:
        """With `turn` determined, and without entries that restoring invalidates: orientation, sizes, previews.

        Unreadable parts are left out, with a note.
        """
        notes, exif, orientation = self.notes, None, None
        if self.exif:
            try:
                exif, orientation = _plain_exif(self.exif)
            except (
                Exception
            ):  # Pillow's parser raises all kinds of errors, and bad EXIF must not prevent reading the image
                notes = (*notes, "its EXIF is unreadable and left out")
        if orientation is None and self.xmp and (found := _TURN_IN_XMP.search(self.xmp)):
            orientation = int(found[2])
        orientation = orientation if self.turn is None else self.turn
        turn = orientation if orientation in range(1, 9) else 1
        xmp = _TURN_IN_XMP.sub(rb"\g<1>1", self.xmp) if self.xmp else None
        return replace(self, exif=exif, xmp=xmp, notes=notes, turn=turn)


def _plain_exif(data: bytes) -> tuple[bytes | None, int | None]:
    """EXIF without orientation, size, preview and file offsets; and its orientation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd tags, and leaves them out
        return _without_untrue(data if data.startswith(b"Exif\0\0") else b"Exif\0\0" + data)


def _without_untrue(data: bytes) -> tuple[bytes | None, int | None]:
    found = Image.Exif()
    found.load(data)
    orientation = found.get(ORIENTATION)
    plain = Image.Exif()
    parts = (_EXIF_PART, _GPS_PART)  # these tags are file offsets, which change in the new file
    plain.update({tag: value for tag, value in found.items() if tag not in (ORIENTATION, *parts)})
    kept = bool(len(plain))
    for part in parts:
        values = {tag: value for tag, value in found.get_ifd(part).items() if tag not in (*_SIZES, _INTEROPERABILITY)}
        if values:
            plain.get_ifd(part).update(values)
            kept = True
    return plain.tobytes() if kept else None, orientation if isinstance(orientation, int) else None


def upright_shape(height: int, width: int, turn: int) -> tuple[int, int]:
    """(height, width) after applying an EXIF orientation."""
    return (width, height) if turn >= 5 else (height, width)


# PNG


def png_chunks(data: bytes, *, start: int = len(PNG_SIGNATURE)) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the data of each chunk that lies completely in `data`, up to IEND."""
    at = start
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return
        yield name, at + 8, at + 8 + length
        if name == b"IEND":
            return
        at += 12 + length


def intact(data: bytes, start: int, end: int) -> bool:
    """Whether the checksum of a PNG chunk is correct."""
    return zlib.crc32(data[start - 4 : end]) == int.from_bytes(data[end : end + 4], "big")


def png_metadata(data: bytes) -> Metadata:
    """The metadata in the chunks of a PNG; damaged chunks are left out, with a note."""
    found: dict[str, Any] = {}
    lists: dict[str, list[Any]] = dict(colour_chunks=[], text=[], notes=[])
    for name, start, end in png_chunks(data):
        if name == b"IDAT" or not (name in _COLOUR_CHUNKS + _TEXT_CHUNKS or name in (b"eXIf", b"iCCP", b"pHYs")):
            continue
        if not intact(data, start, end):
            lists["notes"].append(f"its chunk {name.decode()} is damaged and left out")
            continue
        _note_chunk(name, data[start:end], found, lists)
    return replace(Metadata(**found), **{key: tuple(values) for key, values in lists.items()})


def _note_chunk(name: bytes, value: bytes, found: dict[str, Any], lists: dict[str, list[Any]]) -> None:
    keyword = value.split(b"\0", 1)[0]
    try:
        if name in _COLOUR_CHUNKS:
            lists["colour_chunks"].append((name, value))
        elif name == b"eXIf":
            found["exif"] = value
        elif name == b"iCCP":
            found["icc"] = _inflated(value[len(keyword) + 2 :])
        elif name == b"pHYs":
            across, down, unit = struct.unpack(">IIB", value)
            if unit == 1 and across and down:
                found["dpi"] = (across * _METRE, down * _METRE)
        elif keyword == _XMP_IN_PNG:
            found["xmp"] = _international_text(value)
        elif keyword in _RAW_EXIF:
            found.setdefault("exif", _raw_profile(name, value[len(keyword) + 1 :]))
        else:
            lists["text"].append((name, value))
    except (zlib.error, struct.error, ValueError, IndexError):
        lists["notes"].append(f"its chunk {name.decode()} is unreadable and left out")


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    found = stream.decompress(data, _LARGEST_TEXT)
    if not stream.eof:
        raise ValueError("truncated, or more than 16 MiB")
    return found


def _international_text(value: bytes) -> bytes:
    """The text of an iTXt chunk: keyword, compressed?, method, language, translated keyword, text."""
    keyword, rest = value.split(b"\0", 1)
    _, _, text = rest[2:].split(b"\0", 2)
    return _inflated(text) if rest[0] else text


def _raw_profile(name: bytes, value: bytes) -> bytes:
    """Bytes that ImageMagick stores as text: a name, a count, and hexadecimal digits."""
    text = _inflated(value[1:]) if name == b"zTXt" else value
    _, _, digits = text.strip().split(b"\n", 2)
    return bytes.fromhex(digits.decode("ascii"))


def with_png_chunks(data: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with additional chunks before its pixels."""
    after_header = 33  # signature 8, IHDR 25
    parts = (
        struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
        for name, value in chunks
    )
    return data[:after_header] + b"".join(parts) + data[after_header:]


def png_chunks_of(metadata: Metadata, *, icc: bytes | None) -> list[tuple[bytes, bytes]]:
    """The chunks for `metadata`, and for `icc` if the image may have it."""
    chunks = list(metadata.colour_chunks)
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if metadata.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(one / _METRE) for one in metadata.dpi), 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        chunks.append((b"iTXt", _XMP_IN_PNG + bytes(5) + metadata.xmp))
    return [*chunks, *metadata.text]


def text_names(metadata: Metadata) -> list[str]:
    """Keywords of the PNG text."""
    return [value.split(b"\0", 1)[0].decode("latin-1") for _, value in metadata.text]


# JPEG


@dataclass(frozen=True)
class JpegHeader:
    """Size as stored, number of components, and the metadata in the segments before the scan."""

    height: int
    width: int
    components: int
    bits: int
    metadata: Metadata


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG file; None if it has none or is truncated before it."""
    found: dict[str, Any] = {}
    profile: dict[int, bytes] = {}
    left_out: list[str] = []
    for marker, start, end in _jpeg_segments(data):
        value = data[start:end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(value) < 6:
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", value)
            if profile:
                found["icc"] = b"".join(profile[number] for number in sorted(profile))
            return JpegHeader(height, width, components, bits, Metadata(**found, left_out=tuple(left_out)))
        if marker == 0xE0 and value.startswith(b"JFIF\0") and len(value) >= 12:
            unit, across, down = struct.unpack_from(">BHH", value, 7)
            if unit in (1, 2) and across and down:
                found["dpi"] = (across * (2.54 if unit == 2 else 1), down * (2.54 if unit == 2 else 1))
        elif marker == 0xE1 and value.startswith(b"Exif\0"):
            found.setdefault("exif", b"Exif\0\0" + value[6:])
        elif marker == 0xE1 and value.startswith(_XMP_IN_JPEG):
            found.setdefault("xmp", value.removeprefix(_XMP_IN_JPEG))
        elif marker == 0xE2 and value.startswith(b"ICC_PROFILE\0"):
            profile[value[12]] = value[14:]
        elif marker == 0xED and value.startswith(b"Photoshop 3.0\0"):
            left_out.append("IPTC")
        elif marker == 0xFE:
            found.setdefault("comment", value)
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments before the first scan; any number of fill bytes may precede a marker."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while 0 <= at < len(data) and data[at] == 0xFF:
            at += 1
        if at < 0 or at + 3 > len(data):
            return
        marker = data[at]
        if marker in (0xD9, 0xDA):
            return
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1
            continue
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        yield marker, at + 3, at + 1 + length
        at += 1 + max(length, 2)


# WebP


@dataclass(frozen=True)
class WebpHeader:
    """Size as stored, whether there is alpha, number of frames, and metadata."""

    height: int
    width: int
    has_alpha: bool
    frames: int
    metadata: Metadata


def webp_header(data: bytes) -> WebpHeader | None:
    """The header of a WebP file; None if it has none."""
    size, alpha, frames, found = None, False, 0, {}
    for name, start, end in _riff_chunks(data):
        value = data[start:end]
        if name == b"VP8X" and len(value) >= 10:
            size = (int.from_bytes(value[7:10], "little") + 1, int.from_bytes(value[4:7], "little") + 1)
            alpha = bool(value[0] & 0x10)
        elif name == b"VP8 " and value[3:6] == b"\x9d\x01\x2a" and len(value) >= 10:
            width, height = struct.unpack_from("<HH", value, 6)
            size = size or (height & 0x3FFF, width & 0x3FFF)
        elif name == b"VP8L" and value[:1] == b"\x2f" and len(value) >= 5:
            bits = int.from_bytes(value[1:5], "little")
            if size is None:
                size, alpha = ((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1), bool(bits >> 28 & 1)
        elif name == b"ANMF":
            frames += 1
        elif name in (b"ICCP", b"EXIF", b"XMP "):
            found[{b"ICCP": "icc", b"EXIF": "exif", b"XMP ": "xmp"}[name]] = value
    return WebpHeader(*size, alpha, max(frames, 1), Metadata(**found)) if size else None


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, min(at + 8 + length, len(data))
        at += 8 + length + length % 2


# Others


def texts_of_exif(exif: bytes | None) -> tuple[dict[int, str], bool]:
    """The plain text tags of EXIF that also exist in TIFF, and whether EXIF contains nothing else."""
    if not exif:
        return {}, True
    found = Image.Exif()
    found.load(exif)
    texts = {tag: value for tag, value in found.items() if tag in _OF_IFD0 and isinstance(value, str)}
    return texts, len(texts) == len(found)


def tiff_exif(data: bytes) -> bytes | None:
    """The EXIF of a TIFF file: the tags of its first directory that describe the image, and those of cameras."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Image.Exif()
            found.load(b"Exif\0\0" + data)
        kept = Image.Exif()
        kept.update({tag: found[tag] for tag in _OF_IFD0 if tag in found and not str(found[tag]).startswith('{"shape')})
        for part in (_EXIF_PART, _GPS_PART):
            if part in found:
                kept.get_ifd(part).update(found.get_ifd(part))
        return kept.tobytes() if len(kept) or any(part in found for part in (_EXIF_PART, _GPS_PART)) else None
    except Exception:  # as in Metadata.plain
        return None


def pillow_metadata(info: dict[str | tuple[int, int], Any], exif: Image.Exif | None) -> Metadata:
    """The metadata of an opened PIL image: its `info`, and the result of `getexif()` if readable."""
    notes: tuple[str, ...] = ()
    raw = info.get("exif")
    if exif is not None and len(exif):
        try:
            raw = exif.tobytes()
        except Exception:  # as in Metadata.plain
            raw, notes = None, ("its EXIF is unreadable and left out",)
    for name in _RAW_EXIF:
        if raw is None and isinstance(text := info.get(name.decode()), str):
            with contextlib.suppress(ValueError):  # such as text of a PNG that is not EXIF after all
                raw = _raw_profile(b"tEXt", text.encode())
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    dpi = info.get("dpi") if info.get("jfif_unit") != 0 else None
    comment = info.get("comment")
    return Metadata(
        icc=info.get("icc_profile") or None,
        exif=raw if isinstance(raw, bytes) else None,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=(float(dpi[0]), float(dpi[1])) if isinstance(dpi, tuple) and len(dpi) == 2 else None,
        comment=comment.encode() if isinstance(comment, str) else comment,
        notes=notes,
    )


def cicp_of_boxes(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The cICP chunk equivalent to the colour box of an AVIF or HEIC file; none for sRGB and unknown ones."""
    at = data.find(b"colrnclx")
    if at < 0 or at + 15 > len(data):
        return ()
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    usual = primaries in (1, 2) and transfer in (1, 2, 6, 13)
    return () if usual else ((b"cICP", bytes([primaries, transfer, 0, 1])),)


def to_srgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """A CMYK image as RGB, and a sentence on how: with its profile, or without one by the plain formula."""
    if icc:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                name = ImageCms.getProfileDescription(source).strip()
                return converted, f"CMYK colours are converted to sRGB with the embedded profile ({name})"
        except (ImageCms.PyCMSError, OSError):
            pass
        return image.convert("RGB"), (
            "CMYK colours are converted to RGB by the plain formula, because the embedded profile cannot be used"
        )
    return image.convert("RGB"), "CMYK colours without a profile are converted to RGB by the plain formula"
