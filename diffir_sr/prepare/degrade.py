"""Degraded versions of the images in a folder, to inspect training inputs or as a fixed validation set."""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffir_sr.data.arrays import to_tensor
from diffir_sr.data.degradation import (
    Degradation,
    KernelOptions,
    KernelRanges,
    StepRanges,
    blur_kernel,
    final_kernel,
    ranges_from_options,
)
from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.images import decode, read_file
from diffir_sr.files.picture import as_bits, centre, contact_sheet, encode_png, enlarged
from diffir_sr.options import load_options
from diffir_sr.prepare.jobs import DEGRADATION_KINDS, check_apart, run_all
from diffir_sr.prepare.kinds import degraded_by
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, relative, underway


@dataclass(frozen=True)
class DegradeRecipe:
    """All parameters that determine a degraded image, besides the image."""

    scale: int
    seed: int
    first: StepRanges
    second: StepRanges
    kernels: tuple[KernelRanges, KernelRanges]
    final_sinc_prob: float


def recipe(top: Mapping[str, Any], dataset: Mapping[str, Any], *, scale: int, seed: int) -> DegradeRecipe:
    """The degradation in an option file (top level and training dataset); published values by default."""
    if scale < 1:
        raise InputError(f"--scale: expected 1 or more, got {scale}")
    first, second = ranges_from_options(top)
    kernels = KernelRanges.from_options(dataset, step=1), KernelRanges.from_options(dataset, step=2)
    return DegradeRecipe(scale, seed, first, second, kernels, KernelOptions.of(dataset).final_sinc_prob)


@dataclass(frozen=True)
class DegradeTask:
    """One image to degrade."""

    name: str
    file: Path
    output: StoredTarget
    cropped: StoredTarget | None
    recipe: DegradeRecipe
    overwrite: bool


@dataclass(frozen=True)
class Degraded:
    """The result for one image."""

    lq: StoredImage
    cropped: StoredImage | None


def plan_degradations(
    source: FolderSource, output: Path, given: DegradeRecipe, *, crop_gt: Path | None = None, overwrite: bool = False
) -> list[DegradeTask]:
    """The images to degrade; results depend on the recipe and the name of the image, not on the order."""
    check_apart(source.path, output, crop_gt)
    tasks = []
    for name in source.names:
        file = source.file(name)
        lq, gt = (
            StoredTarget(root, f"{name}.png", relative(file, source.path)) if root else None
            for root in (output, crop_gt)
        )
        assert lq is not None
        tasks.append(DegradeTask(name, file, lq, gt, given, overwrite))
    return tasks


def degrade_all(tasks: Sequence[DegradeTask], *, jobs: int) -> list[Degraded]:
    """Degrade the images; existing results are kept unless `overwrite`."""
    return run_all(_degrade, tasks, jobs=jobs, label="degrade")


@lru_cache(maxsize=1)
def _degradation(given: DegradeRecipe) -> Degradation:
    torch.set_num_threads(1)  # the processes share the cores
    return Degradation(scale=given.scale, first=given.first, second=given.second)


def _degrade(task: DegradeTask) -> Degraded:
    given = task.recipe
    targets = [target for target in (task.output, task.cropped) if target is not None]
    if not task.overwrite and all(target.path.exists() for target in targets):
        return Degraded(task.output.keep(), task.cropped.keep() if task.cropped else None)
    image = decode(read_file(task.file), where=str(task.file))
    height, width = (side // given.scale * given.scale for side in image.shape[:2])
    gt = image[:height, :width]
    cropped = task.cropped.store_png(_eight_bit_rgb(gt)) if task.cropped else None
    return Degraded(task.output.store_png(degraded(gt, given, name=task.name)), cropped)


def degraded(gt: np.ndarray, given: DegradeRecipe, *, name: str) -> np.ndarray:
    """An image (H, W, C) degraded to uint8 RGB (H / scale, W / scale, 3): a function of recipe and name."""
    rng = np.random.default_rng((given.seed, zlib.crc32(f"degrade/{name}".encode())))
    first, second = (torch.from_numpy(blur_kernel(rng, ranges))[None] for ranges in given.kernels)
    last = torch.from_numpy(final_kernel(rng, final_sinc_prob=given.final_sinc_prob))[None]
    try:
        lq = _degradation(given)(to_tensor(gt)[None], kernel1=first, kernel2=second, sinc_kernel=last, rng=rng)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return (lq[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def _eight_bit_rgb(image: np.ndarray) -> np.ndarray:
    return (to_tensor(image).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


# `diffir prepare degrade`.


_SHOWN = 12
_TILE = 256


def command(args: argparse.Namespace) -> int:
    """`diffir prepare degrade`."""
    source = open_source(args.input)
    if not isinstance(source, FolderSource):
        raise InputError(f"{args.input.absolute()} is an LMDB; expected a folder of image files")
    if args.seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {args.seed}")
    if args.kind:
        return _by_kind(source, args)
    if args.combine or args.count != 1:
        raise InputError("--combine and --count require --kind; add it, or leave them out")
    given = _recipe(args)
    tasks = plan_degradations(source, args.output, given, crop_gt=args.crop_gt, overwrite=args.overwrite)
    job = PrepareJob(args.output, "degrade", asdict(given), source.path)
    crops = PrepareJob(args.crop_gt, "crop", {"scale": given.scale}, source.path) if args.crop_gt else None
    planned = [one for one in (job, crops) if one is not None]
    for one in planned:
        one.check(overwrite=args.overwrite)
    if args.dry_run:
        sys.stdout.write(f"would degrade {len(tasks)} images, x1/{given.scale}, seed {args.seed}, to {args.output}\n")
        return 0
    with underway(*planned, overwrite=args.overwrite):
        done = degrade_all(tasks, jobs=args.jobs)
        sheet = _write_sheet(tasks, args.output, given.scale)
        job.finish((one.lq for one in done), notes=[f"x1/{given.scale}", f"see {sheet}"])
        if crops is not None:
            crops.finish(one.cropped for one in done if one.cropped is not None)
    return 0


# Pairs by kind of degradation.


@dataclass(frozen=True)
class KindTask:
    """One image to degrade by kinds, one after the other; `name` determines the random draws."""

    name: str
    file: Path
    kinds: tuple[str, ...]
    degraded: StoredTarget
    truth: StoredTarget
    seed: int
    overwrite: bool


def plan_kinds(
    source: FolderSource,
    output: Path,
    kinds: Sequence[str],
    *,
    seed: int,
    combine: bool = False,
    count: int = 1,
    overwrite: bool = False,
) -> dict[str, list[KindTask]]:
    """The images to degrade, by the folder of `output` for input and target: a kind, or kinds joined by +."""
    if count < 1:
        raise InputError(f"--count: expected 1 or more, got {count}")
    check_apart(source.path, output)
    wanted = dict.fromkeys(DEGRADATION_KINDS if "all" in kinds else kinds)
    groups = [tuple(wanted)] if combine else [(kind,) for kind in wanted]
    tasks: dict[str, list[KindTask]] = {}
    for group in groups:
        folder = output / "+".join(group)
        tasks[folder.name] = [
            KindTask(called, source.file(name), group, *_pair_of(source, name, called, folder), seed, overwrite)
            for name in source.names
            for called in ([name] if count == 1 else [f"{name}_{number}" for number in range(count)])
        ]
    return tasks


def _pair_of(source: FolderSource, name: str, called: str, folder: Path) -> tuple[StoredTarget, StoredTarget]:
    origin = relative(source.file(name), source.path)
    lq, gt = (StoredTarget(folder / side, f"{called}.png", origin) for side in ("input", "target"))
    return lq, gt


def _degrade_by_kinds(task: KindTask) -> tuple[StoredImage, StoredImage]:
    if not task.overwrite and task.degraded.path.exists() and task.truth.path.exists():
        return task.degraded.keep(), task.truth.keep()
    torch.set_num_threads(1)
    image = _eight_bit_rgb(decode(read_file(task.file), where=str(task.file)))
    made = degraded_by(image, task.kinds, seed=task.seed, name=task.name)
    return task.degraded.store_png(made), task.truth.store_png(image)


def _by_kind(source: FolderSource, args: argparse.Namespace) -> int:
    """`diffir prepare degrade --kind`."""
    misplaced = [name for name in ("opt", "scale", "crop_gt") if getattr(args, name) is not None]
    if misplaced:
        raise InputError(f"--{misplaced[0].replace('_', '-')} does not belong to --kind, which keeps the size")
    tasks = plan_kinds(
        source, args.output, args.kind, seed=args.seed, combine=args.combine, count=args.count, overwrite=args.overwrite
    )
    jobs = {
        (folder, side): PrepareJob(
            args.output / folder / side,
            "degrade",
            {"kinds": folder.split("+"), "seed": args.seed, "count": args.count},
            source.path,
        )
        for folder in tasks
        for side in ("input", "target")
    }
    for job in jobs.values():
        job.check(overwrite=args.overwrite)
    if args.dry_run:
        counts = ", ".join(f"{len(some)} pairs to {args.output / folder}" for folder, some in tasks.items())
        sys.stdout.write(f"would write {counts}\n")
        return 0
    with underway(*jobs.values(), overwrite=args.overwrite):
        for folder, some in tasks.items():
            done = run_all(_degrade_by_kinds, some, jobs=args.jobs, label=folder)
            for number, side in enumerate(("input", "target")):
                jobs[folder, side].finish(pair[number] for pair in done)
    return 0


def _recipe(args: argparse.Namespace) -> DegradeRecipe:
    top: dict[str, Any] = load_options(args.opt, check_files=False).values if args.opt else {}
    dataset = (top.get("datasets") or {}).get("train") or {}
    if args.opt and str(dataset.get("type")).removesuffix("_basicsr") != "RealESRGANDataset":
        raise InputError(f"{args.opt}: datasets.train is a {dataset.get('type')}; only a RealESRGANDataset is degraded")
    return recipe(top, dataset, scale=args.scale or int(top.get("scale") or 4), seed=args.seed)


def _write_sheet(tasks: Sequence[DegradeTask], output: Path, scale: int) -> Path:
    """Write a page with the centres of the first images and of their degraded versions; returns its path."""
    tiles = []
    side = _TILE // scale * scale
    for task in tasks[:_SHOWN]:
        image = decode(read_file(task.file), where=str(task.file))
        lq = decode(read_file(task.output.path), where=str(task.output.path))
        gt = image[: lq.shape[0] * scale, : lq.shape[1] * scale]
        tiles.append((task.name, _colours(centre(gt, side))))
        tiles.append(("degraded", enlarged(_colours(centre(lq, side // scale)), scale)))
    path = output.with_name(f"{output.name}.sheet.png")
    write_atomically(encode_png(contact_sheet(tiles, columns=4)), path)
    return path


def _colours(image: np.ndarray) -> np.ndarray:
    image = as_bits(image, np.uint8)
    if image.shape[2] < 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])
