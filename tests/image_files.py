"""Image files made bit by bit, with the values that a right decoder gives: PNG of every kind, BMP of every header."""

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
PNG_KINDS = [
    *((GREY, depth) for depth in (1, 2, 4, 8, 16)),
    *((PALETTE, depth) for depth in (1, 2, 4, 8)),
    *((kind, depth) for kind in (RGB, GREY_ALPHA, RGBA) for depth in (8, 16)),
]
# Where the seven passes of interlacing begin, and how far apart their pixels are: x, y, dx, dy (PNG, section 8.1).
_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples, kind, depth, *, interlaced=False, filters=(0, 1, 2, 3, 4), before=b"", pieces=1):
    """A PNG file of `samples` (H, W, C) as they are stored; `before` are whole chunks that come before the pixels."""
    height, width = samples.shape[:2]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced)))
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in _PASSES] if interlaced else [samples]
    data = zlib.compress(b"".join(_filtered(part, depth, filters) for part in parts if part.size))
    cuts = [len(data) * piece // pieces for piece in range(pieces + 1)]
    body = b"".join(chunk(b"IDAT", data[start:end]) for start, end in zip(cuts, cuts[1:], strict=False))
    return b"\x89PNG\r\n\x1a\n" + head + before + body + chunk(b"IEND")


def _rows(samples, depth):
    """The bytes of each row, samples packed from the highest bit on."""
    flat = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        return flat.astype(">u2").view(np.uint8).reshape(flat.shape[0], -1)
    if depth == 8:
        return flat.astype(np.uint8)
    bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(flat.shape[0], -1).astype(np.uint8), axis=1)


def _filtered(samples, depth, filters):
    rows = _rows(samples, depth).astype(int)
    step = max(1, samples.shape[2] * depth // 8)
    out, above = b"", np.zeros(rows.shape[1], int)
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row])[: len(row)]
        corner = np.concatenate([np.zeros(step, int), above])[: len(row)]
        kind = filters[number % len(filters)]
        guess = [0 * row, left, above, (left + above) // 2, _paeth(left, above, corner)][kind]
        out += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def _paeth(left, above, corner):
    near = left + above - corner
    far = [np.abs(near - one) for one in (left, above, corner)]
    return np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner))


def png_case(kind, depth, *, size=(9, 11), keyed=False, **how):
    """(file, colours, alpha or None) of a random PNG; `keyed` gives it a tRNS chunk."""
    rng = np.random.default_rng((kind, depth, *size))
    samples = rng.integers(0, 2**depth, (*size, SAMPLES[kind]))
    before, top = how.pop("before", b""), 2**depth - 1
    wide = np.uint16 if depth == 16 else np.uint8
    most = np.iinfo(wide).max
    if kind == PALETTE:
        palette = rng.integers(0, 256, (2**depth, 3))
        before += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        opacity = np.full(2**depth, 255)
        if keyed:
            opacity[: 2**depth // 2] = rng.integers(0, 255, 2**depth // 2)
            before += chunk(b"tRNS", opacity[: 2**depth // 2].astype(np.uint8).tobytes())
        index = samples[..., 0]
        alpha = opacity[index].astype(np.uint8) if keyed else None
        return png(samples, kind, depth, before=before, **how), palette[index].astype(np.uint8), alpha
    colours = samples[..., : 1 if kind in (GREY, GREY_ALPHA) else 3]
    alpha = (samples[..., -1] * (most // top)).astype(wide) if kind in (GREY_ALPHA, RGBA) else None
    if keyed:
        key = colours[size[0] // 2, size[1] // 2]
        before += chunk(b"tRNS", key.astype(">u2").tobytes())
        alpha = np.where((colours == key).all(axis=2), 0, most).astype(wide)
    return png(samples, kind, depth, before=before, **how), (colours * (most // top)).astype(wide), alpha


def bmp(pixels, *, bits, header=40, palette=None, masks=None, compression=None, top_down=False, gap=0):
    """A BMP file; `pixels` (H, W) are indices or whole words, or (H, W, 3) for 24 bits in the order blue, green, red.

    `header` is its size (12: OS/2), `masks` stand behind a header of 40 bytes or inside longer ones.
    """
    height, width = pixels.shape[:2]
    rows = pixels if top_down else pixels[::-1]
    if bits == 24:
        packed = rows.astype(np.uint8).reshape(height, -1)
    elif bits > 8:
        packed = rows.astype("<u2" if bits == 16 else "<u4").view(np.uint8).reshape(height, -1)
    else:
        packed = _rows(rows[..., None], bits)
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    entries = b"" if palette is None else bytes(b for color in palette for b in (*color[::-1], 0)[: 3 + (header > 12)])
    how = compression if compression is not None else (0 if masks is None else 3 if len(masks) == 3 else 6)
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        count = 0 if palette is None else len(palette)
        head = struct.pack("<IiiHH", header, width, -height if top_down else height, 1, bits)
        head += struct.pack("<IIiiII", how, packed.size, 2835, 2835, count, 0)
        mask_bytes = struct.pack(f"<{len(masks)}I", *masks) if masks else b""
        head = (head + mask_bytes).ljust(header, b"\0") if header > 40 else head + mask_bytes
    at = 14 + len(head) + len(entries) + gap
    return struct.pack("<2sIHHI", b"BM", at + packed.size, 0, 0, at) + head + entries + bytes(gap) + packed.tobytes()
