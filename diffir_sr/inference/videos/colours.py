"""Colours of videos: YCbCr to RGB for the network, and back to the colour description of the result.

Up to 8 bits, swscale converts, with errors of at most half a code value. From 9 bits on, it uses 255/219 for the
limited range of any depth (white becomes 0.4 % too dark) and loses codes of the full range, so there it only resamples
chroma, and the matrix is applied here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffir_sr.errors import InputError

UNSPECIFIED = 2  # of matrix, primaries and transfer, as in ITU-T H.273
LIMITED, FULL = 1, 2  # ffmpeg's numbers of ranges
TRANSFERS = {16: "PQ", 18: "HLG"}
_RGB, _BT709, _BT601 = 0, 1, 6
# Luma weights of red and blue by matrix number, ITU-T H.273 table 4.
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
_WEIGHTS |= {9: (0.2627, 0.0593)}
_NOT_CONVERTED = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "YDzDx", 12: "derived from its primaries"}
_NOT_CONVERTED |= {13: "derived from its primaries", 14: "ICtCp"}
_SWSCALE_NUMBERS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_DEPTHS = (9, 10, 12, 14, 16)  # of planar formats that ffmpeg has
# Bicubic chroma, full chroma input and output, exact rounding, no code paths that differ between processors.
_ACCURATE = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000


@dataclass(frozen=True)
class Colours:
    """Pixel format and colour description of frames: `matrix`, `primaries`, `transfer` are numbers of ITU-T H.273.

    `kind` is yuv, rgb or grey, `bits` the bits per sample, `chroma` the number of halvings of width and height for
    chroma, so (1, 1) is 4:2:0.
    """

    format: str
    kind: str
    bits: int
    chroma: tuple[int, int]
    alpha: bool
    matrix: int
    full: bool
    primaries: int
    transfer: int

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The type of restored values."""
        return np.uint8 if self.bits <= 8 else np.uint16


def colours_of(frame: Any, where: str) -> Colours:
    """The colour description of a decoded frame; an unspecified matrix is interpreted as players do (BT.601 for SD,
    otherwise BT.709).

    Raises InputError for unsupported colours.
    """
    kind, bits, chroma, alpha = _layout(frame.format)
    matrix = int(frame.colorspace)
    if kind == "yuv" and matrix in (UNSPECIFIED, 3, _RGB):
        matrix = _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
    if kind == "yuv" and matrix not in _WEIGHTS:
        name = _NOT_CONVERTED.get(matrix, f"matrix {matrix}")
        raise InputError(
            f"{where}: its colours are coded as {name}, which is not supported; convert it to BT.709 first"
        )
    full = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
    return Colours(
        frame.format.name,
        kind,
        bits,
        chroma,
        alpha,
        UNSPECIFIED if kind == "rgb" else matrix,
        full or kind == "rgb",
        int(frame.color_primaries),
        int(frame.color_trc),
    )


def _layout(form: Any) -> tuple[str, int, tuple[int, int], bool]:
    if form.has_palette:
        return "rgb", 8, (0, 0), False
    parts = form.components
    alpha = any(part.is_alpha for part in parts)
    bits = max(part.bits for part in parts)
    if form.is_rgb or form.is_bayer:
        return "rgb", bits, (0, 0), alpha
    if len(parts) - alpha == 1:
        return "grey", bits, (0, 0), alpha
    return "yuv", bits, (_halvings(form.chroma_width), _halvings(form.chroma_height)), alpha


def _halvings(chroma_size: Callable[[int], int]) -> int:
    return {64: 0, 32: 1, 16: 2}[chroma_size(64)]


def to_rgb(frame: Any, colours: Colours) -> np.ndarray:
    """A decoded frame as (H, W, 3) RGB, or (H, W, 1) grey, uint8 or, from 9 bits on, full-scale uint16."""
    if colours.bits <= 8:
        if colours.kind != "rgb":
            frame.colorspace, frame.color_range = colours.matrix, FULL if colours.full else LIMITED
        rgb = frame.reformat(format="gbrp", interpolation=_ACCURATE).to_ndarray()
        return np.ascontiguousarray(rgb[..., :1] if colours.kind == "grey" else rgb)
    depth = next(depth for depth in _DEPTHS if depth >= colours.bits)
    name = {"rgb": "gbrp", "grey": "gray", "yuv": "yuv444p"}[colours.kind]
    planes = _planes(_resampled(frame, f"{name}{depth}le"), np.dtype("<u2"))
    if colours.kind == "rgb":
        values = planes[[2, 0, 1]].astype(np.float32) / (2**depth - 1)
    else:
        values = _decoded(planes, replace(colours, bits=depth))
    return np.ascontiguousarray(np.rint(values.clip(0, 1) * 65535).astype(np.uint16).transpose(1, 2, 0))


def from_rgb(rgb: np.ndarray, colours: Colours) -> Any:
    """A new frame from (H, W, 3) RGB or (H, W, 1) grey values (uint8 or full-scale uint16) in the given colours."""
    import av

    rgb = np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb
    if colours.kind == "rgb" and colours.bits <= 8:
        return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=colours.format)
    if colours.bits <= 8:
        return av.VideoFrame.from_ndarray(rgb, "gbrp").reformat(
            format=colours.format,
            dst_colorspace=_SWSCALE_NUMBERS[colours.matrix],
            dst_color_range=FULL if colours.full else LIMITED,
            interpolation=_ACCURATE,
        )
    values = rgb.transpose(2, 0, 1).astype(np.float32) / np.float32(np.iinfo(rgb.dtype).max)
    if colours.kind == "rgb":
        planes, name = np.rint(values * (2**colours.bits - 1))[[1, 2, 0]], f"gbrp{colours.bits}le"
    else:
        planes, name = _encoded(values, colours), f"yuv444p{colours.bits}le"
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], name)
    for plane, samples in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // 2), "<u2")
        padded[: samples.shape[0], : samples.shape[1]] = samples
        plane.update(padded.tobytes())
    return _resampled(frame, colours.format)


def _resampled(frame: Any, form: str) -> Any:
    """Convert to another pixel format with the same colours: swscale gets the same matrix and range for both sides."""
    frame.colorspace, frame.color_range = _BT709, LIMITED
    return frame.reformat(format=form, interpolation=_ACCURATE)


def _planes(frame: Any, dtype: np.dtype[Any]) -> np.ndarray:
    height, width = frame.height, frame.width
    return np.stack(
        [
            np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)[:height, :width]
            for plane in frame.planes
        ]
    )


def _scales(colours: Colours) -> tuple[float, float, float, float]:
    """Zero and span of luma, zero and span of chroma, in code values; ITU-T H.273 section 8.3."""
    unit, largest = 2.0 ** (colours.bits - 8), 2.0**colours.bits - 1
    if colours.full:
        return 0.0, largest, 128 * unit, largest
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def _decoded(planes: np.ndarray, colours: Colours) -> np.ndarray:
    """RGB (3, H, W) from YCbCr code values, or (1, H, W) from grey ones; float32, not clipped."""
    zero, span, middle, reach = (np.float32(value) for value in _scales(colours))
    luma = (planes[0].astype(np.float32) - zero) / span
    if len(planes) == 1:
        return luma[None]
    blue_part, red_part = ((plane.astype(np.float32) - middle) / reach for plane in planes[1:3])
    of_red, of_blue = (np.float32(weight) for weight in _WEIGHTS[colours.matrix])
    red = luma + 2 * (1 - of_red) * red_part
    blue = luma + 2 * (1 - of_blue) * blue_part
    return np.stack([red, (luma - of_red * red - of_blue * blue) / (1 - of_red - of_blue), blue])


def _encoded(rgb: np.ndarray, colours: Colours) -> np.ndarray:
    """YCbCr code values (3, H, W) from RGB values in [0, 1]."""
    zero, span, middle, reach = (np.float32(value) for value in _scales(colours))
    of_red, of_blue = (np.float32(weight) for weight in _WEIGHTS[colours.matrix])
    red, green, blue = rgb
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    parts = ((blue - luma) / (2 * (1 - of_blue)), (red - luma) / (2 * (1 - of_red)))
    codes = np.stack([zero + span * luma, *(middle + reach * part for part in parts)])
    return np.rint(codes).clip(0, 2**colours.bits - 1)
