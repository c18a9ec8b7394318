"""BMP files of every header: OS/2 and Windows, 1 to 32 bits, any bit fields, run lengths.

None of the libraries used here reads all of them correctly: Pillow rejects unusual bit fields, OpenCV turns OS/2
palettes into grey, and both treat the fourth byte of 32 bits as alpha or ignore an alpha mask. Source: the structures
BITMAPCOREHEADER to BITMAPV5HEADER of the Windows API.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

_RGB, _RLE8, _RLE4, _FIELDS, _JPEG, _PNG, _ALPHA_FIELDS = range(7)
_CORE, _INFO, _V3 = 12, 40, 56
_USUAL_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
_METRE = 0.0254  # metres per inch


@dataclass(frozen=True)
class BmpHeader:
    """Everything before the pixels; `masks` are those of red, green, blue and alpha (0: none), for 16 and 32 bits."""

    height: int
    width: int
    bits: int
    compression: int
    bottom_up: bool
    pixels_at: int
    palette: np.ndarray | None  # (N, 3) uint8
    masks: tuple[int, int, int, int]
    dpi: tuple[float, float] | None

    @property
    def is_grey(self) -> bool:
        """Whether it can only contain grey."""
        return self.palette is not None and bool((self.palette == self.palette[:, :1]).all())


def bmp_header(data: bytes) -> BmpHeader:
    """The header of a BMP file; raises ValueError for an invalid one, struct.error for a truncated one."""
    pixels_at, size = struct.unpack_from("<II", data, 10)
    if size == _CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, used, dpi = _RGB, 0, None
    elif size >= 16:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        compression = struct.unpack_from("<I", data, 30)[0] if size >= 20 else _RGB
        used = struct.unpack_from("<I", data, 46)[0] if size >= 36 else 0
        across, down = struct.unpack_from("<ii", data, 38) if size >= 32 else (0, 0)
        dpi = (across * _METRE, down * _METRE) if across > 0 and down > 0 else None
    else:
        raise ValueError(f"a header of {size} bytes")
    if width <= 0 or height == 0 or (bits not in (1, 2, 4, 8, 16, 24, 32) and compression not in (_JPEG, _PNG)):
        raise ValueError(f"{height}x{width} of {bits} bits")
    if compression > _ALPHA_FIELDS or (size == 64 and compression in (_FIELDS, _JPEG)):  # OS/2: Huffman, RLE24
        raise ValueError(f"compression {compression} of a header of {size} bytes")
    masks_at = 14 + _INFO  # after the header of 40 bytes, inside longer ones
    masks, palette_at = (0, 0, 0, 0), 14 + size
    if compression in (_FIELDS, _ALPHA_FIELDS):
        count = 4 if size >= _V3 or compression == _ALPHA_FIELDS else 3
        red, green, blue, *alpha = struct.unpack_from(f"<{count}I", data, masks_at)
        masks = (red, green, blue, alpha[0] if alpha else 0)
        palette_at = max(palette_at, masks_at + 4 * count)
    elif bits in _USUAL_MASKS:
        masks = _USUAL_MASKS[bits]
    palette = None
    if bits <= 8 and compression not in (_JPEG, _PNG):
        palette = _palette(data, palette_at, pixels_at, entry=3 if size == _CORE else 4, used=used, bits=bits)
    return BmpHeader(abs(height), width, bits, compression, height > 0, pixels_at, palette, masks, dpi)


def _palette(data: bytes, at: int, pixels_at: int, *, entry: int, used: int, bits: int) -> np.ndarray:
    count = min(used or 2**bits, 2**bits, max(pixels_at - at, 0) // entry or 2**bits)
    values = np.frombuffer(data, np.uint8, count * entry, at).reshape(count, entry)
    full = np.zeros((2**bits, 3), np.uint8)  # an index beyond the palette is black
    full[:count] = values[:, 2::-1]
    return full


def embedded(data: bytes, header: BmpHeader) -> bytes | None:
    """The JPEG or PNG file embedded in some BMP files."""
    return data[header.pixels_at :] if header.compression in (_JPEG, _PNG) else None


def bmp_pixels(data: bytes, header: BmpHeader, *, lenient: bool = False) -> np.ndarray:
    """(H, W, 1, 3 or 4), uint8, or uint16 if a field has more than 8 bits; alpha only if there is a mask for it.

    Raises ValueError if rows are missing; `lenient` makes them black.
    """
    if header.compression in (_RLE8, _RLE4):
        with BmpImageFile(io.BytesIO(data)) as image:
            indices = np.asarray(image)
        return _coloured(header, indices)
    stride = (header.width * header.bits + 31) // 32 * 4
    needed = stride * header.height
    stored = data[header.pixels_at : header.pixels_at + needed]
    if len(stored) < needed:
        if not lenient:
            raise ValueError(f"only {len(stored)} of {needed} bytes of pixels exist")
        stored = stored.ljust(needed, b"\0")
    rows = np.frombuffer(stored, np.uint8).reshape(header.height, stride)
    if header.bottom_up:
        rows = rows[::-1]
    if header.bits <= 8:
        return _coloured(header, _unpacked(rows, header.bits)[:, : header.width])
    if header.bits == 24:
        return np.ascontiguousarray(rows[:, : 3 * header.width].reshape(header.height, header.width, 3)[..., ::-1])
    words = rows.view("<u2" if header.bits == 16 else "<u4")[:, : header.width].astype(np.uint32)
    return _fields(words, header.masks)


def _unpacked(rows: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return rows
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return ((rows[..., None] >> shifts) & (2**bits - 1)).reshape(rows.shape[0], -1)


def _coloured(header: BmpHeader, indices: np.ndarray) -> np.ndarray:
    assert header.palette is not None
    palette = header.palette[:, :1] if header.is_grey else header.palette
    return palette[indices]


def _fields(words: np.ndarray, masks: tuple[int, int, int, int]) -> np.ndarray:
    """Each field scaled so that its largest value is white."""
    used = [mask for mask in masks if mask]
    widest = max(mask.bit_count() for mask in used) if used else 0
    if not all(masks[:3]) or any(_has_gap(mask) for mask in used):
        raise ValueError("bit fields " + ", ".join(f"{mask:#x}" for mask in masks))
    kind, top = (np.uint8, 255) if widest <= 8 else (np.uint16, 65535)
    channels = []
    for mask in masks if masks[3] else masks[:3]:
        most = 2 ** mask.bit_count() - 1
        values = (words & np.uint32(mask)) >> np.uint32((mask & -mask).bit_length() - 1)
        channels.append(((values.astype(np.uint64) * top + most // 2) // most).astype(kind))
    return np.dstack(channels)


def _has_gap(mask: int) -> bool:
    low = mask & -mask
    return (mask // low) & (mask // low + 1) != 0
