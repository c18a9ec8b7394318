"""GoPro (or a dataset of the same structure) for motion deblurring: patches of 512, and centre crops for validation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.data.sources import some
from diffir_sr.errors import InputError
from diffir_sr.files.images import header
from diffir_sr.prepare.jobs import (
    GOPRO_MIDDLE,
    GOPRO_OVERLAP,
    GOPRO_SIZE,
    folder,
    on_disk,
    run_all,
    say,
)
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, read_storable, relative, underway
from diffir_sr.prepare.subimages import starts

_BLURRED = ("input", "blur")  # folder names: of prepared datasets, and of the original dataset
_SHARP = ("target", "sharp")


@dataclass(frozen=True)
class FramePair:
    """A blurred image and its sharp partner; `name` is the base name of their crops.

    Both are below `root`; manifests contain paths relative to it.
    """

    name: str
    blurred: Path
    sharp: Path
    root: Path


@dataclass(frozen=True)
class Crops:
    """One image of a pair and its crops: target, top, left."""

    file: Path
    outputs: tuple[tuple[StoredTarget, int, int], ...]
    size: int | None  # None: the whole image
    overwrite: bool


def find_frames(split: Path) -> list[FramePair]:
    """The pairs of a split: folders input and target in it, or the original tree GOPR.../blur and sharp.

    Raises InputError if neither is found or partners are missing.
    """
    if not split.is_dir():
        raise InputError(f"no such folder: {split.absolute()}; expected the split of a deblurring dataset")
    pairs = [(split / low, split / high) for low, high in zip(_BLURRED, _SHARP, strict=True) if (split / low).is_dir()]
    scenes = sorted(path for path in split.iterdir() if (path / "blur").is_dir()) if not pairs else []
    sides = [(low, high, "") for low, high in pairs[:1]]
    sides += [(scene / "blur", scene / "sharp", f"{scene.name}-") for scene in scenes]
    found = [frame for low, high, prefix in sides for frame in _paired(low, high, prefix=prefix, root=split.parent)]
    if not found:
        raise InputError(
            f"{split.absolute()}: no pairs; expected folders input and target, or GOPR.../blur and GOPR.../sharp"
        )
    first: dict[str, Path] = {}
    twins = [frame for frame in found if first.setdefault(frame.name, frame.blurred) != frame.blurred]
    if twins:
        both = [f"{first[frame.name]} and {frame.blurred}" for frame in twins]
        raise InputError(f"{len(twins)} crops of {split.absolute()} would have the same names as others: {some(both)}")
    return found


def _paired(blurred: Path, sharp: Path, *, prefix: str, root: Path) -> list[FramePair]:
    lows, highs = folder(blurred), folder(sharp)
    alone = sorted(set(lows.names) ^ set(highs.names))
    if alone:
        raise InputError(
            f"{len(alone)} images of {blurred.absolute()} and {sharp.absolute()} have no partner: {some(alone)}; "
            "add or remove images"
        )
    return [
        FramePair(f"{prefix}{name}".replace("/", "-"), lows.file(name), highs.file(name), root) for name in lows.names
    ]


def plan_patches(
    frames: list[FramePair],
    output: Path,
    *,
    size: int = GOPRO_SIZE,
    overlap: int = GOPRO_OVERLAP,
    overwrite: bool = False,
) -> list[Crops]:
    """Overlapping patches `<name>-1.png`, ... of every pair, to input_crops and target_crops."""
    if size < 1 or not 0 <= overlap < size:
        raise InputError(f"--size must be 1 or more, --overlap less than it; got {size}, {overlap}")

    def places(height: int, width: int) -> list[tuple[str, int, int]]:
        corners = [
            (top, left)
            for top in starts(height, size=size, step=size - overlap, threshold=0)
            for left in starts(width, size=size, step=size - overlap, threshold=0)
        ]
        return [(f"-{number}", top, left) for number, (top, left) in enumerate(corners, start=1)]

    return _plan(frames, output, ("input_crops", "target_crops"), places, size=size, overwrite=overwrite)


def plan_middles(
    frames: list[FramePair], output: Path, *, size: int = GOPRO_MIDDLE, overwrite: bool = False
) -> list[Crops]:
    """The centre of every pair, to input_crops and target_crops."""

    def places(height: int, width: int) -> list[tuple[str, int, int]]:
        return [("", (height - size) // 2, (width - size) // 2)]

    return _plan(frames, output, ("input_crops", "target_crops"), places, size=size, overwrite=overwrite)


def plan_copies(frames: list[FramePair], output: Path, *, overwrite: bool = False) -> list[Crops]:
    """Whole images, to input and target, for testing."""
    return _plan(frames, output, ("input", "target"), lambda _, __: [("", 0, 0)], size=None, overwrite=overwrite)


def _plan(
    frames: list[FramePair],
    output: Path,
    folders: tuple[str, str],
    places: Callable[[int, int], list[tuple[str, int, int]]],
    *,
    size: int | None,
    overwrite: bool,
) -> list[Crops]:
    sizes = _equal_sizes(frames, at_least=size or 1)
    crops = []
    for frame in frames:
        for side, file in zip(folders, (frame.blurred, frame.sharp), strict=True):
            outputs = tuple(
                (StoredTarget(output / side, f"{frame.name}{ending}.png", relative(file, frame.root)), top, left)
                for ending, top, left in places(*sizes[frame.name])
            )
            crops.append(Crops(file, outputs, size, overwrite))
    return crops


def _equal_sizes(frames: list[FramePair], *, at_least: int) -> dict[str, tuple[int, int]]:
    """(height, width) by name; raises InputError, which lists partners of other sizes and images that are too small."""
    sizes, faults = {}, []
    for frame in frames:
        low, high = header(frame.blurred), header(frame.sharp)
        sizes[frame.name] = (high.height, high.width)
        if (low.height, low.width) != (high.height, high.width):
            faults.append(f"{frame.blurred}: {low.height}x{low.width}, its partner {high.height}x{high.width}")
        elif min(high.height, high.width) < at_least:
            faults.append(f"{frame.sharp}: {high.height}x{high.width}, smaller than {at_least}")
    if faults:
        raise InputError(f"{len(faults)} of {len(frames)} pairs cannot be cut: {some(faults)}; remove or replace them")
    return sizes


def cut_pairs(crops: list[Crops], *, jobs: int, label: str) -> list[tuple[StoredImage, ...]]:
    """Cut the crops; existing ones are kept unless `overwrite`."""
    return run_all(_cut, crops, jobs=jobs, label=label)


def _cut(crops: Crops) -> tuple[StoredImage, ...]:
    missing = {target for target, _, _ in crops.outputs if crops.overwrite or not target.path.exists()}
    if not missing:
        return tuple(target.keep() for target, _, _ in crops.outputs)
    image, done = read_storable(crops.file, to_8bit=False), []
    for target, top, left in crops.outputs:
        if target not in missing:
            done.append(target.keep())
        elif crops.size is None and image.png is not None:
            done.append(target.store(image.png, image.image))
        else:
            side = crops.size or max(image.image.shape)
            done.append(target.store_png(np.ascontiguousarray(image.image[top : top + side, left : left + side])))
    return tuple(done)


# `diffir prepare gopro`.


_SIDES = {"crops": ("input_crops", "target_crops"), "whole": ("input", "target")}


def command(args: argparse.Namespace) -> int:
    """`diffir prepare gopro`."""
    splits = {name: args.input / name for name in ("train", "test") if (args.input / name).is_dir()}
    if not splits:
        raise InputError(
            f"{args.input.absolute()}: contains no folder train or test; give the folder that contains them"
        )
    if args.output.resolve() == args.input.resolve() and args.whole_test:
        raise InputError(f"{args.output.absolute()}: whole test images would be copied onto themselves")
    frames = {name: find_frames(split) for name, split in splits.items()}
    plans: list[tuple[Path, str, str, dict[str, Any], list[Crops]]] = []
    if "train" in frames:
        cut = {"size": args.size, "overlap": args.overlap}
        crops = plan_patches(frames["train"], args.output / "train_crops", **cut, overwrite=args.overwrite)
        plans.append((args.output / "train_crops", "crops", "patches", cut, crops))
    if "test" in frames:
        crops = plan_middles(frames["test"], args.output / "val_crops", size=args.middle, overwrite=args.overwrite)
        plans.append((args.output / "val_crops", "crops", "middles", {"size": args.middle}, crops))
    if "test" in frames and args.whole_test:
        crops = plan_copies(frames["test"], args.output / "test", overwrite=args.overwrite)
        plans.append((args.output / "test", "whole", "whole", {}, crops))
    work = [
        ([PrepareJob(output / side, f"gopro {label}", parameters, args.input) for side in _SIDES[kind]], label, crops)
        for output, kind, label, parameters, crops in plans
    ]
    for jobs, _, _ in work:
        for job in jobs:
            job.check(overwrite=args.overwrite)
    for jobs, label, crops in work:
        if args.dry_run:
            _tell(label, crops, jobs[0].output.parent)
        else:
            _cut_and_store(args, jobs, label, crops)
    return 0


def _tell(label: str, crops: list[Crops], output: Path) -> None:
    count = sum(len(crop.outputs) for crop in crops)
    pixels = sum(len(crop.outputs) * crop.size**2 for crop in crops if crop.size)
    disk = on_disk(pixels, copied=[crop.file for crop in crops if not crop.size])
    say(f"would write {count // 2} pairs ({label}) under {output}, {disk}")


def _cut_and_store(args: argparse.Namespace, jobs: list[PrepareJob], label: str, crops: list[Crops]) -> None:
    with underway(*jobs, overwrite=args.overwrite):
        done = cut_pairs(crops, jobs=args.jobs, label=label)
        for number, job in enumerate(jobs):  # alternating blurred and sharp
            job.finish(one for stored in done[number::2] for one in stored)
