"""Making low-resolution images, and ground truth cropped to match them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from diffir_sr.data.sources import FolderSource, some
from diffir_sr.errors import InputError
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.jobs import RESIZE_METHODS, alpha_note, check_apart, examples, folder, on_disk, run_all, say
from diffir_sr.prepare.stored import (
    PrepareJob,
    StoredImage,
    StoredTarget,
    bicubic_resize,
    read_storable,
    relative,
    underway,
)


@dataclass(frozen=True)
class Shrink:
    """One image, the targets of its downscaled version and of its cropped original (None: not written)."""

    file: Path
    output: StoredTarget
    cropped: StoredTarget | None
    scale: int
    method: str
    overwrite: bool
    to_8bit: bool
    pixels: int  # of the image


@dataclass(frozen=True)
class ShrunkImage:
    """The result for one image."""

    small: StoredImage
    cropped: StoredImage | None
    dropped_alpha: bool = False


def plan_shrinks(
    source: FolderSource,
    output: Path,
    *,
    scale: int,
    method: str,
    crop_gt: Path | None,
    overwrite: bool,
    to_8bit: bool = False,
) -> list[Shrink]:
    """The plan; raises InputError for an invalid scale, method or folder, or images smaller than `scale`."""
    if scale < 2:
        raise InputError(f"--scale: expected 2 or more, got {scale}")
    if method not in RESIZE_METHODS:
        raise InputError(f"--method: unknown {method!r}; known: {', '.join(RESIZE_METHODS)}")
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
            StoredTarget(output, f"{name}.png", relative(source.file(name), source.path)),
            StoredTarget(crop_gt, f"{name}.png", relative(source.file(name), source.path)) if crop_gt else None,
            scale,
            method,
            overwrite,
            to_8bit,
            sizes[name][0] * sizes[name][1],
        )
        for name in source.names
    ]


def shrink_all(shrinks: list[Shrink], *, jobs: int) -> list[ShrunkImage]:
    """Run the plan. Existing results are kept unless `overwrite`."""
    return run_all(_shrink, shrinks, jobs=jobs, label="downscale")


def _shrink(shrink: Shrink) -> ShrunkImage:
    targets = [target for target in (shrink.output, shrink.cropped) if target is not None]
    if not shrink.overwrite and all(target.path.exists() for target in targets):
        return ShrunkImage(shrink.output.keep(), shrink.cropped.keep() if shrink.cropped else None)
    stored = read_storable(shrink.file, to_8bit=shrink.to_8bit)
    height, width = (side - side % shrink.scale for side in stored.image.shape[:2])
    image = np.ascontiguousarray(stored.image[:height, :width])
    cropped = None
    if shrink.cropped is not None:
        whole = stored.png if image.shape == stored.image.shape else None
        cropped = shrink.cropped.store(whole or encode_png(image), image)
    small = smaller(image, scale=shrink.scale, method=shrink.method)
    return ShrunkImage(shrink.output.store_png(small), cropped, stored.dropped_alpha)


def smaller(image: np.ndarray, *, scale: int, method: str = "bicubic") -> np.ndarray:
    """(H, W, C) to (H / scale, W / scale, C); 'bicubic' is MATLAB's, antialiased."""
    if method == "bicubic":
        return bicubic_resize(image, scale=1 / scale)
    size = (image.shape[1] // scale, image.shape[0] // scale)
    if method == "area":
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    # Pillow's, since OpenCV's does not widen the kernel when downscaling, which causes aliasing.
    channels = [
        np.asarray(Image.fromarray(image[..., index]).resize(size, Image.Resampling.LANCZOS))
        for index in range(image.shape[2])
    ]
    return np.stack(channels, axis=2)


def command(args: argparse.Namespace) -> int:
    """`diffir prepare downscale`."""
    shrinks = plan_shrinks(
        folder(args.input),
        args.output,
        scale=args.scale,
        method=args.method,
        crop_gt=args.crop_gt,
        overwrite=args.overwrite,
        to_8bit=args.to_8bit,
    )
    what = f"{len(shrinks)} images, x1/{args.scale} {args.method}"
    given = {"scale": args.scale, "to_8bit": args.to_8bit}
    job = PrepareJob(args.output, "downscale", {**given, "method": args.method}, args.input)
    crops = PrepareJob(args.crop_gt, "crop", given, args.input) if args.crop_gt else None
    planned = [one for one in (job, crops) if one is not None]
    for one in planned:
        one.check(overwrite=args.overwrite)
    if args.dry_run:
        also = f", cropped ground truth under {args.crop_gt}" if args.crop_gt else ""
        pixels = sum(shrink.pixels for shrink in shrinks)
        disk = on_disk(pixels / args.scale**2 + (pixels if args.crop_gt else 0))
        paths = examples([shrink.output.path for shrink in shrinks])
        return say(f"would write {what}, under {args.output}{also}, {disk}:{paths}")
    with underway(*planned, overwrite=args.overwrite):
        done = shrink_all(shrinks, jobs=args.jobs)
        job.finish((one.small for one in done), notes=[f"x1/{args.scale} {args.method}", *alpha_note(done)])
        if crops is not None:
            crops.finish(one.cropped for one in done if one.cropped is not None)
    return 0
