"""Make low-resolution images, and ground truth cropped to fit them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from diffir_sr.data.sources import FolderSource, some
from diffir_sr.errors import InputError
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.jobs import check_apart, run_all
from diffir_sr.prepare.matlab_resize import bicubic_resize
from diffir_sr.prepare.storable import read_storable
from diffir_sr.prepare.stored import Stored, Target, relative

METHODS = ("bicubic", "area", "lanczos")


@dataclass(frozen=True)
class Shrink:
    """One image, where its small version goes, and where its cropped self goes (None: nowhere)."""

    file: Path
    output: Target
    cropped: Target | None
    scale: int
    method: str
    overwrite: bool
    to_8bit: bool
    pixels: int  # of the image


@dataclass(frozen=True)
class Done:
    """What became of one image."""

    small: Stored
    cropped: Stored | None
    dropped_alpha: bool = False


def plan(
    source: FolderSource,
    output: Path,
    *,
    scale: int,
    method: str,
    crop_gt: Path | None,
    overwrite: bool,
    to_8bit: bool = False,
) -> list[Shrink]:
    """What to make; raises InputError for an impossible scale, method or folder, or images smaller than `scale`."""
    if scale < 2:
        raise InputError(f"--scale: expected 2 or more, got {scale}")
    if method not in METHODS:
        raise InputError(f"--method: unknown {method!r}; known: {', '.join(METHODS)}")
    check_apart(source.path, output, crop_gt)
    if crop_gt is not None and crop_gt.resolve() == output.resolve():
        raise InputError(f"--crop-gt and --output are the same folder, {output.absolute()}; choose two")
    sizes = source.sizes(source.names)
    small = [str(source.file(name)) for name in source.names if min(sizes[name]) < scale]
    if small:
        raise InputError(f"{len(small)} images are smaller than {scale} pixels: {some(small)}; remove them")
    return [
        Shrink(
            source.file(name),
            Target(output, f"{name}.png", relative(source.file(name), source.path)),
            Target(crop_gt, f"{name}.png", relative(source.file(name), source.path)) if crop_gt else None,
            scale,
            method,
            overwrite,
            to_8bit,
            sizes[name][0] * sizes[name][1],
        )
        for name in source.names
    ]


def run(shrinks: list[Shrink], *, jobs: int) -> list[Done]:
    """Make them. What exists is kept unless asked to overwrite."""
    return run_all(_shrink, shrinks, jobs=jobs, label="downscale")


def _shrink(shrink: Shrink) -> Done:
    targets = [target for target in (shrink.output, shrink.cropped) if target is not None]
    if not shrink.overwrite and all(target.path.exists() for target in targets):
        return Done(shrink.output.keep(), shrink.cropped.keep() if shrink.cropped else None)
    stored = read_storable(shrink.file, to_8bit=shrink.to_8bit)
    height, width = (side - side % shrink.scale for side in stored.image.shape[:2])
    image = np.ascontiguousarray(stored.image[:height, :width])
    cropped = None
    if shrink.cropped is not None:
        whole = stored.png if image.shape == stored.image.shape else None
        cropped = shrink.cropped.store(whole or encode_png(image), image)
    small = smaller(image, scale=shrink.scale, method=shrink.method)
    return Done(shrink.output.store_png(small), cropped, stored.dropped_alpha)


def smaller(image: np.ndarray, *, scale: int, method: str = "bicubic") -> np.ndarray:
    """(H, W, C) to (H / scale, W / scale, C); 'bicubic' is MATLAB's, antialiased."""
    if method == "bicubic":
        return bicubic_resize(image, scale=1 / scale)
    size = (image.shape[1] // scale, image.shape[0] // scale)
    if method == "area":
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    # Pillow's, since OpenCV's does not widen the kernel when shrinking and aliases.
    channels = [
        np.asarray(Image.fromarray(image[..., index]).resize(size, Image.Resampling.LANCZOS))
        for index in range(image.shape[2])
    ]
    return np.stack(channels, axis=2)
