"""Image files to arrays and back. Arrays are RGB (or grey), (H, W, C), uint8 or uint16, unless said otherwise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from diffir_sr.data.encoded import Header, is_complete, misread_tiff, orientation, read_header
from diffir_sr.errors import InputError

# Here and now, in the process that later forks workers: parallelism is across processes, and a forked child that
# inherits OpenCV's thread pool hangs as soon as it touches the number of threads.
cv2.setNumThreads(0)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not Path(name).name.startswith(".")


def without_suffix(name: str) -> str:
    """A name or relative path without its image suffix; other dots stay."""
    return name[: name.rindex(".")] if name.lower().endswith(SUFFIXES) else name


def decode(data: bytes, *, where: str) -> np.ndarray:
    """An encoded image, upright: (H, W, C) with C of 1, 3 (RGB) or 4 (RGBA), uint8 or uint16.

    It is turned as its EXIF orientation says, as BasicSR's reader does. Raises InputError that names `where` for
    data that is damaged, cut short or no image.
    """
    if not data:
        raise InputError(f"{where}: the file is empty; copy it again or remove it")
    if not is_complete(data):
        raise _damaged(where, "the end of the image is missing")
    if misread := misread_tiff(data):
        raise InputError(
            f"{where}: 16-bit TIFF with {misread}, which would be read wrongly; save it as PNG, or as a TIFF with "
            "interleaved RGB and plain transparency"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _damaged(where, str(error).strip()) from error
    if image is None:
        kind = "; or a rare kind of TIFF, such as half-precision or small tiles" if data[:2] in (b"II", b"MM") else ""
        raise _damaged(where, f"OpenCV cannot decode it{kind}")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{where}: holds {image.dtype} values, expected 8 or 16 bits per channel; convert it to PNG")
    if image.ndim == 2:
        image = image[..., None]
    order = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(image.shape[2])
    return upright(image if order is None else cv2.cvtColor(image, order), orientation(data))


def _damaged(where: str, why: str) -> InputError:
    return InputError(f"{where}: damaged or cut short, or no image ({why}); copy the file again or remove it")


def upright(image: np.ndarray, turn: int) -> np.ndarray:
    """(H, W, C) as it is meant to be seen, from its EXIF orientation, 1 (as it is) to 8."""
    if turn >= 5:
        image = image.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        image = image[::-1]
    if turn in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def as_rgb_float(image: np.ndarray) -> np.ndarray:
    """float32 RGB (H, W, 3) in [0, 1]; grey becomes three equal channels, alpha is dropped."""
    scale = np.float32(1 / (65535 if image.dtype == np.uint16 else 255))
    colours = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
    return colours.astype(np.float32) * scale


def header(path: Path) -> Header:
    """Size and channels of an image file, from its header alone where that can be understood."""
    try:
        found = read_header(path)
        if found is not None:
            return found
        height, width, channels = decode(path.read_bytes(), where=str(path)).shape
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    return Header(height, width, 1 if channels == 1 else 3)


def read_file(path: Path) -> bytes:
    """All bytes of a file; raises InputError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def encode_png(image: np.ndarray, *, compress_level: int = 1) -> bytes:
    """PNG bytes of an RGB, RGBA or grey array (H, W, C)."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[2])
    stored = image if order is None else cv2.cvtColor(image, order)
    done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])
    if not done:
        raise InputError(f"an array of shape {image.shape}, {image.dtype} cannot be stored as PNG")
    return data.tobytes()
