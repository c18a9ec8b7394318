"""Make low-resolution images, and ground truth cropped to fit them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffir_sr.data.images import decode, encode_png, write_atomically
from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import run_all
from diffir_sr.prepare.matlab_resize import bicubic_resize

METHODS = ("bicubic", "area", "lanczos")


@dataclass(frozen=True)
class Shrink:
    """One image, where its small version goes, and where its cropped self goes (None: nowhere)."""

    file: Path
    output: Path
    cropped: Path | None
    scale: int
    method: str
    overwrite: bool


def plan(
    source: FolderSource, output: Path, *, scale: int, method: str, crop_gt: Path | None, overwrite: bool
) -> list[Shrink]:
    """What to make; raises InputError for an impossible scale or method, or images smaller than `scale`."""
    if scale < 2:
        raise InputError(f"--scale: expected 2 or more, got {scale}")
    if method not in METHODS:
        raise InputError(f"--method: unknown {method!r}; known: {', '.join(METHODS)}")
    small = [str(source.file(name)) for name in source.names if min(source.size(name)) < scale]
    if small:
        raise InputError(f"{len(small)} images are smaller than {scale} pixels: {', '.join(small[:10])}; remove them")
    return [
        Shrink(
            source.file(name),
            output / f"{name}.png",
            crop_gt / f"{name}.png" if crop_gt else None,
            scale,
            method,
            overwrite,
        )
        for name in source.names
    ]


def run(shrinks: list[Shrink], *, jobs: int) -> tuple[int, int]:
    """Make them; (written, kept) counts of images. What exists is kept unless asked to overwrite."""
    made = run_all(_shrink, shrinks, jobs=jobs, label="downscale")
    return sum(made), len(made) - sum(made)


def _shrink(shrink: Shrink) -> bool:
    targets = [path for path in (shrink.output, shrink.cropped) if path is not None]
    if not shrink.overwrite and all(path.exists() for path in targets):
        return False
    image = decode(shrink.file.read_bytes(), where=str(shrink.file))
    height, width = (side - side % shrink.scale for side in image.shape[:2])
    image = np.ascontiguousarray(image[:height, :width])
    if shrink.cropped is not None:
        write_atomically(encode_png(image), shrink.cropped)
    write_atomically(encode_png(smaller(image, scale=shrink.scale, method=shrink.method)), shrink.output)
    return True


def smaller(image: np.ndarray, *, scale: int, method: str = "bicubic") -> np.ndarray:
    """(H, W, C) to (H / scale, W / scale, C); 'bicubic' is MATLAB's, antialiased."""
    if method == "bicubic":
        return bicubic_resize(image, scale=1 / scale)
    size = (image.shape[1] // scale, image.shape[0] // scale)
    if method == "area":
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    return _lanczos(image, size)


def _lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Pillow's, since OpenCV's does not widen the kernel when shrinking and aliases.
    from PIL import Image

    if image.dtype != np.uint8:
        raise InputError("--method lanczos takes 8-bit images; use bicubic, or convert to 8 bits first")
    channels = [
        np.asarray(Image.fromarray(image[..., index]).resize(size, Image.Resampling.LANCZOS))
        for index in range(image.shape[2])
    ]
    return np.stack(channels, axis=2)
