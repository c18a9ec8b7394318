"""Cutting large images into overlapping squares, so that training reads only as much of a file as it needs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.data.sources import FolderSource, some
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import alpha_note, check_apart, examples, folder, on_disk, run_all, say
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, read_storable, relative, underway


@dataclass(frozen=True)
class Cut:
    """One image and the squares to cut out of it."""

    file: Path
    outputs: tuple[tuple[StoredTarget, int, int], ...]  # target, top, left
    size: int
    compress_level: int
    to_8bit: bool


@dataclass(frozen=True)
class CutImage:
    """The squares of one image."""

    squares: tuple[StoredImage, ...]
    dropped_alpha: bool = False


def starts(length: int, *, size: int, step: int, threshold: int) -> list[int]:
    """Starts of squares along one axis, as in BasicSR's script: every `step`, and one flush with the end if more than
    `threshold` pixels remain."""
    places = list(range(0, length - size + 1, step))
    if length - (places[-1] + size) > threshold:
        places.append(length - size)
    return places


def plan_crops(
    source: FolderSource,
    output: Path,
    *,
    size: int,
    step: int,
    threshold: int,
    compress_level: int,
    drop_suffix: str = "",
    to_8bit: bool = False,
    small: str = "error",
) -> list[Cut]:
    """The plan: files `<name>_s001.png` and so on. Images smaller than a square, in height or width, are skipped, kept
    whole, or reported in one InputError (`small` is skip, keep or error).

    `drop_suffix` is removed from names, so that squares of 0801x4 are named like those of the ground truth.
    """
    if size < 1 or step < 1 or threshold < 0:
        raise InputError(f"size and step must be 1 or more, threshold 0 or more; got {size}, {step}, {threshold}")
    if not 0 <= compress_level <= 9:
        raise InputError(f"--compress-level: expected 0 to 9, got {compress_level}")
    check_apart(source.path, output)
    stems = _stems(source, drop_suffix)
    sizes = source.sizes(source.names)
    little = [name for name, (high, wide) in sizes.items() if min(high, wide) < size]
    if little and small == "error":
        sized = [f"{source.file(name)}: {sizes[name][0]}x{sizes[name][1]}" for name in little]
        raise InputError(
            f"{len(little)} images are smaller than a {size}-pixel square: {some(sized)}; lower --size, or give "
            "--small skip or keep"
        )
    if small == "skip":
        sizes = {name: size for name, size in sizes.items() if name not in set(little)}
        if not sizes:
            raise InputError(f"all images under {source.path.absolute()} are smaller than {size} pixels; lower --size")
    cuts = []
    for name, (height, width) in sizes.items():
        corners = [
            (top, left)
            for top in starts(max(height, size), size=size, step=step, threshold=threshold)
            for left in starts(max(width, size), size=size, step=step, threshold=threshold)
        ]
        outputs = tuple(
            (
                StoredTarget(output, f"{stems[name]}_s{number:03d}.png", relative(source.file(name), source.path)),
                top,
                left,
            )
            for number, (top, left) in enumerate(corners, start=1)
        )
        cuts.append(Cut(source.file(name), outputs, size, compress_level, to_8bit))
    return cuts


def _stems(source: FolderSource, drop_suffix: str) -> dict[str, str]:
    """Base names of squares by image name; raises InputError if two images would give the same squares."""
    stems = {name: name.removesuffix(drop_suffix) or name for name in source.names}
    first: dict[str, str] = {}
    twins = [f"{first[stem]} and {name}" for name, stem in stems.items() if first.setdefault(stem, name) != name]
    if twins:
        raise InputError(
            f"without {drop_suffix!r}, images under {source.path.resolve()} have the same name: {some(twins)}"
        )
    return stems


def cut_all(cuts: list[Cut], *, jobs: int, overwrite: bool) -> list[CutImage]:
    """Cut the squares. Existing ones are kept unless `overwrite`."""
    return run_all(_cut_all if overwrite else _cut_missing, cuts, jobs=jobs, label="sub-images")


def _cut_missing(cut: Cut) -> CutImage:
    return _cut(cut, {target for target, _, _ in cut.outputs if not target.path.exists()})


def _cut_all(cut: Cut) -> CutImage:
    return _cut(cut, {target for target, _, _ in cut.outputs})


def _cut(cut: Cut, missing: set[StoredTarget]) -> CutImage:
    if not missing:
        return CutImage(tuple(target.keep() for target, _, _ in cut.outputs))
    stored, squares = read_storable(cut.file, to_8bit=cut.to_8bit), []
    for target, top, left in cut.outputs:
        if target in missing:
            square = np.ascontiguousarray(stored.image[top : top + cut.size, left : left + cut.size])
            squares.append(target.store_png(square, compress_level=cut.compress_level))
        else:
            squares.append(target.keep())
    return CutImage(tuple(squares), stored.dropped_alpha)


def command(args: argparse.Namespace) -> int:
    """`diffir prepare subimages`."""
    cuts = plan_crops(
        folder(args.input),
        args.output,
        size=args.size,
        step=args.step,
        threshold=args.threshold,
        compress_level=args.compress_level,
        drop_suffix=args.drop_suffix,
        to_8bit=args.to_8bit,
        small=args.small,
    )
    paths = [target.path for cut in cuts for target, _, _ in cut.outputs]
    count = len(paths)
    names = ("size", "step", "threshold", "compress_level", "drop_suffix", "to_8bit", "small")
    job = PrepareJob(args.output, "subimages", {name: getattr(args, name) for name in names}, args.input)
    if args.dry_run:
        job.check(overwrite=args.overwrite)
        return say(
            f"would cut {len(cuts)} images into {count} squares of {args.size} pixels under {args.output}, "
            f"{on_disk(count * args.size**2)}:{examples(paths)}"
        )
    with underway(job, overwrite=args.overwrite):
        done = cut_all(cuts, jobs=args.jobs, overwrite=args.overwrite)
        notes = [f"of {len(cuts)} images", *alpha_note(done)]
        job.finish((square for one in done for square in one.squares), notes=notes, what="squares")
    return 0
