"""Downscaled versions of sharp images for real-world training (as in Real-ESRGAN)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import (
    FACTORS,
    SHORTEST,
    check_apart,
    examples,
    folder,
    on_disk,
    run_all,
    say,
)
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, read_storable, relative, underway


@dataclass(frozen=True)
class Version:
    """One size of an image, (height, width), and its target; None is the original image."""

    target: StoredTarget
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Shrink:
    """One image and the versions to make of it."""

    file: Path
    versions: tuple[Version, ...]
    overwrite: bool
    to_8bit: bool


@dataclass(frozen=True)
class MadeVersions:
    """The versions of one image."""

    versions: tuple[StoredImage, ...]
    dropped_alpha: bool = False


def sizes_of(height: int, width: int, *, factors: tuple[float, ...], shortest: int) -> list[tuple[int, int] | None]:
    """(height, width) of T0, T1, ...: each factor, truncated as published, then the shortest side at `shortest`.

    None if the image would not become smaller, or nothing would be left of it.
    """
    made: list[tuple[int, int] | None] = [(int(height * factor), int(width * factor)) for factor in factors]
    if shortest:
        # Written as published: the order of the operations decides how the longer side is truncated.
        fitted = (
            (int(shortest * (height / width)), shortest)
            if width < height
            else (shortest, int(shortest * (width / height)))
        )
        made.append(fitted if shortest < min(height, width) else None)
    return [size if size is not None and min(size) > 0 else None for size in made]


def plan_versions(
    source: FolderSource,
    output: Path,
    *,
    factors: tuple[float, ...] = FACTORS,
    shortest: int = SHORTEST,
    with_original: bool = False,
    overwrite: bool = False,
    to_8bit: bool = False,
) -> list[Shrink]:
    """The plan: <name>T0.png for the first factor and so on, <name>.png for the original image if requested."""
    if not factors and not shortest:
        raise InputError("multiscale: no factor and no --shortest, so there is nothing to make")
    if any(not 0 < factor < 1 for factor in factors) or shortest < 0:
        raise InputError(
            f"multiscale: factors must be between 0 and 1, --shortest 0 or more; got {factors}, {shortest}"
        )
    check_apart(source.path, output)
    shrinks = []
    for name, (height, width) in source.sizes(source.names).items():
        origin = relative(source.file(name), source.path)
        versions = [Version(StoredTarget(output, f"{name}.png", origin), None)] if with_original else []
        for number, size in enumerate(sizes_of(height, width, factors=factors, shortest=shortest)):
            if size is not None:
                versions.append(Version(StoredTarget(output, f"{name}T{number}.png", origin), size))
        shrinks.append(Shrink(source.file(name), tuple(versions), overwrite, to_8bit))
    if not any(shrink.versions for shrink in shrinks):
        raise InputError(f"all images under {source.path.absolute()} are too small for a smaller version")
    _refuse_equal_names(shrinks, output)
    return shrinks


def _refuse_equal_names(shrinks: list[Shrink], output: Path) -> None:
    seen: dict[str, str] = {}
    for shrink in shrinks:
        for version in shrink.versions:
            first = seen.setdefault(version.target.name, version.target.origin)
            if first != version.target.origin:
                raise InputError(
                    f"{first} and {version.target.origin} would both be written to {output / version.target.name}; "
                    "rename one"
                )


def make_versions(shrinks: list[Shrink], *, jobs: int) -> list[MadeVersions]:
    """Run the plan; existing results are kept unless `overwrite`."""
    return run_all(_shrink, shrinks, jobs=jobs, label="multiscale")


def _shrink(shrink: Shrink) -> MadeVersions:
    missing = {version for version in shrink.versions if shrink.overwrite or not version.target.path.exists()}
    if not missing:
        return MadeVersions(tuple(version.target.keep() for version in shrink.versions))
    stored = read_storable(shrink.file, to_8bit=shrink.to_8bit)
    done = []
    for version in shrink.versions:
        if version not in missing:
            done.append(version.target.keep())
        elif version.size is None and stored.png is not None:
            done.append(version.target.store(stored.png, stored.image))
        else:
            done.append(version.target.store_png(_resized(stored.image, version.size)))
    return MadeVersions(tuple(done), stored.dropped_alpha)


def _resized(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Pillow's Lanczos, which the published script uses."""
    if size is None:
        return image
    plain = image[..., 0] if image.shape[2] == 1 else image
    made = np.asarray(Image.fromarray(plain).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return made.reshape(*size, -1)


# `diffir prepare multiscale`.


def command(args: argparse.Namespace) -> int:
    """`diffir prepare multiscale`."""
    shrinks = plan_versions(
        folder(args.input),
        args.output,
        factors=tuple(args.factors),
        shortest=args.shortest,
        with_original=args.with_original,
        overwrite=args.overwrite,
        to_8bit=args.to_8bit,
    )
    versions = [version for shrink in shrinks for version in shrink.versions]
    names = ("factors", "shortest", "with_original", "to_8bit")
    job = PrepareJob(args.output, "multiscale", {name: getattr(args, name) for name in names}, args.input)
    if args.dry_run:
        job.check(overwrite=args.overwrite)
        pixels = sum(version.size[0] * version.size[1] for version in versions if version.size)
        disk = on_disk(pixels, copied=[shrink.file for shrink in shrinks] if args.with_original else [])
        return say(
            f"would write {len(versions)} images, made of {len(shrinks)}, under {args.output}, {disk}:"
            f"{examples([version.target.path for version in versions])}"
        )
    with underway(job, overwrite=args.overwrite):
        done = make_versions(shrinks, jobs=args.jobs)
        small = sum(len(shrink.versions) < len(args.factors) + bool(args.shortest) for shrink in shrinks)
        notes = [f"of {len(shrinks)}"] + ([f"{small} too small for all sizes"] if small else [])
        job.finish((version for one in done for version in one.versions), notes=notes)
    return 0
