"""Image files to arrays and back. Arrays are RGB (or grey), (H, W, C), uint8 or uint16, unless said otherwise."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from diffir_sr.errors import InputError

# Here and now, in the process that later forks workers: parallelism is across processes, and a forked child that
# inherits OpenCV's thread pool hangs as soon as it touches the number of threads.
cv2.setNumThreads(0)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not Path(name).name.startswith(".")


def decode(data: bytes, *, where: str) -> np.ndarray:
    """An encoded image as stored: (H, W, C) with C of 1, 3 (RGB) or 4 (RGBA), uint8 or uint16.

    Raises InputError that names `where` for data that is damaged, cut short or no image.
    """
    if not data:
        raise InputError(f"{where}: the file is empty; copy it again or remove it")
    try:
        check_complete(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise InputError(f"{where}: damaged or cut short ({error}); copy the file again or remove it") from error
    if image is None:
        raise InputError(f"{where}: not an image that OpenCV can decode; convert it to PNG or remove it")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{where}: holds {image.dtype} values, expected 8 or 16 bits per channel; convert it to PNG")
    if image.ndim == 2:
        return image[..., None]
    order = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(image.shape[2])
    return image if order is None else cv2.cvtColor(image, order)


def check_complete(data: bytes) -> None:
    """Raise OSError where the data ends early: OpenCV fills what is missing with grey and says nothing."""
    if data.startswith(b"\x89PNG"):
        complete = b"IEND" in data[-64:]
    elif data.startswith(b"\xff\xd8"):
        complete = b"\xff\xd9" in data[-4096:]  # some cameras append notes after the end marker
    else:
        Image.open(io.BytesIO(data)).load()
        return
    if not complete:
        raise OSError("the end of the image is missing")


def as_rgb_float(image: np.ndarray) -> np.ndarray:
    """float32 RGB (H, W, 3) in [0, 1]; grey becomes three equal channels, alpha is dropped."""
    scale = np.float32(1 / (65535 if image.dtype == np.uint16 else 255))
    colours = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
    return colours.astype(np.float32) * scale


def size_in_header(path: Path) -> tuple[int, int]:
    """(height, width) of an image file without decoding it."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise InputError(f"{path}: not a readable image ({error}); copy the file again or remove it") from error
    return height, width


def encode_png(image: np.ndarray, *, compress_level: int = 1) -> bytes:
    """PNG bytes of an RGB, RGBA or grey array (H, W, C)."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[2])
    stored = image if order is None else cv2.cvtColor(image, order)
    done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])
    if not done:
        raise InputError(f"an array of shape {image.shape}, {image.dtype} cannot be stored as PNG")
    return data.tobytes()


def write_atomically(data: bytes, path: Path) -> None:
    """Write a whole file or none: to a temporary name beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
