"""Degraded versions of the images in a folder, by the degradations of an option file or by name.

A model is a function of a photograph (H, W, 3), float32 in [0, 1] as sRGB stores it, and a generator. Rain, raindrops
and haze are synthetic: streaks and drops are drawn, and a smooth field stands for the depth that a photograph lacks.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
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
from diffir_sr.prepare.shake import camera_path, encoded, exposed, linear
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, relative, underway

Model = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise of 10 to 50 of 255, or shot and read noise of a sensor; half of either is equal in all colours."""
    values = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.25:
        values = np.repeat(values[..., :1], 3, axis=2)
    if rng.random() < 0.5:
        return image + rng.uniform(10, 50) / 255 * values
    light = linear(image)
    shot, read = np.exp(rng.uniform(np.log(3e-3), np.log(3e-2))), rng.uniform(5e-3, 2e-2)
    return encoded(np.clip(light + np.sqrt(shot * light + read**2) * values, 0, 1))


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus (a disc of 2 to 5 pixels radius) or moved (a path of 8 to 20 pixels), in linear light."""
    light = linear(image).astype(np.float32)
    if rng.random() < 0.5:
        return encoded(exposed(light, camera_path(rng, length=rng.uniform(8, 20))))
    radius = rng.uniform(2, 5)
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    kernel = (disc / disc.sum()).astype(np.float32)
    return encoded(cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101).clip(0, 1))


def rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three layers of bright streaks, up to 30 degrees from upright, under a thin grey veil."""
    height, width = image.shape[:2]
    angle = rng.uniform(-30, 30)
    streaks = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(1, 4)):
        length, thick = rng.uniform(10, 36), rng.uniform(0.5, 1.2)
        seeds = (rng.random((height, width)) < rng.uniform(0.002, 0.008)).astype(np.float32)
        seeds *= rng.uniform(0.4, 1, seeds.shape).astype(np.float32)
        layer = cv2.filter2D(seeds, -1, _streak(length, thick, angle + rng.uniform(-4, 4)), borderType=cv2.BORDER_WRAP)
        streaks = np.maximum(streaks, layer)
    streaks = np.clip(streaks * rng.uniform(0.4, 0.9), 0, 1)[..., None]
    veil = rng.uniform(0, 0.15)
    wet = image * (1 - veil) + 0.7 * veil
    return wet + streaks * (rng.uniform(0.8, 1) - wet)


def _streak(length: float, thick: float, angle: float) -> np.ndarray:
    """A line of a kernel, `angle` degrees from upright, its largest value 1, thinner towards its ends."""
    reach = math.ceil(length / 2) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    turn = math.radians(angle)
    along, across = x * math.sin(turn) + y * math.cos(turn), x * math.cos(turn) - y * math.sin(turn)
    inside = np.clip(1 - np.abs(along) / (length / 2), 0, 1) ** 0.5
    return (inside * np.exp(-((across / thick) ** 2))).astype(np.float32)


def underexposure(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 to 4.5 stops less light, with a sensor's noise of what is left."""
    light = linear(image) * 2 ** -rng.uniform(2, 4.5)
    spread = np.sqrt(rng.uniform(0, 2e-4) * light + rng.uniform(0, 1e-3) ** 2)
    return encoded(np.clip(light + spread * rng.standard_normal(image.shape, np.float32), 0, 1))


def haze(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """I = J t + A (1 - t) with t = exp(-beta d), A almost grey; for the depth d stand a slope and smooth patches."""
    height, width = image.shape[:2]
    slope = np.linspace(1, rng.uniform(0, 0.5), height, dtype=np.float32)[:, None]  # the far is above, as a rule
    patches = cv2.resize(rng.random((4, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    depth = np.clip(0.65 * slope + 0.35 * patches, 0.05, 1)[..., None]
    through = np.exp(-rng.uniform(0.8, 2.2) * depth)
    air = np.clip(rng.uniform(0.7, 1) + rng.uniform(-0.03, 0.03, 3), 0, 1)
    return image * through + air * (1 - through)


def low_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Made 3 to 8 times smaller (antialiased), stored in 8 bits, and enlarged again by bicubic interpolation."""
    height, width = image.shape[:2]
    factor = rng.uniform(3, 8)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    small = np.rint(np.clip(cv2.resize(image, size, interpolation=cv2.INTER_AREA), 0, 1) * 255) / 255
    return cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def raindrop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drops on the lens: each shows its surroundings blurred and upside down, with a dark rim and a bright reflection.

    The rim and the reflection are what makes a drop visible in front of an even wall or sky.
    """
    height, width = image.shape[:2]
    soft = cv2.GaussianBlur(image, (0, 0), 2.5)
    light = 0.25 + 0.75 * float(np.quantile(image, 0.98))  # what the drops reflect
    made = image.copy()
    drops = max(3, round(height * width / 65536 * rng.uniform(10, 24)))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(drops):
        radius = np.exp(rng.uniform(np.log(6), np.log(22)))
        top, left = rng.uniform(0, height), rng.uniform(0, width)
        tall, bent = rng.uniform(0.9, 1.5), rng.uniform(-0.3, 0.3)
        reach = int(radius * tall * 1.6) + 2
        there = (
            slice(max(0, int(top) - reach), max(0, min(height, int(top) + reach))),
            slice(max(0, int(left) - reach), max(0, min(width, int(left) + reach))),
        )
        down, side = (y[there] - top) / tall, x[there] - left
        distance = np.hypot(down, side + bent * down) / radius
        alpha = np.clip((1 - distance) * radius / 2.5, 0, 1)[..., None]
        # A drop is a strong lens: it shows a wide part of the scene, turned around.
        from_y, from_x = np.clip(top - 3 * down, 0, height - 1), np.clip(left - 3 * side, 0, width - 1)
        seen = cv2.remap(soft, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_LINEAR)
        shade = 1 + 0.35 * down / radius * np.clip(distance, 0, 1) - 0.45 * np.clip(distance, 0, 1) ** 6
        spot = np.exp(-(((down / radius + 0.4) / 0.22) ** 2) - ((side / radius + 0.3) / 0.16) ** 2)[..., None]
        shown = seen * shade[..., None] * (1 - 0.7 * spot) + 0.7 * light * spot
        made[there] = made[there] * (1 - alpha) + np.clip(shown, 0, 1) * alpha
    return made


MODELS: dict[str, Model] = dict(
    zip(DEGRADATION_KINDS, (noise, blur, rain, underexposure, haze, low_resolution, raindrop), strict=True)
)


def degraded_by(image: np.ndarray, kinds: Sequence[str], *, seed: int, name: str) -> np.ndarray:
    """An 8-bit image (H, W, C) degraded by each of `kinds` in turn, uint8 RGB: a function of seed, kinds and name."""
    colours = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    values = colours.astype(np.float32) / 255
    for kind in kinds:
        rng = np.random.default_rng((seed, zlib.crc32(f"{kind}/{name}".encode())))
        values = np.clip(MODELS[kind](values, rng), 0, 1).astype(np.float32)
    return np.rint(values * 255).astype(np.uint8)


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
        raise InputError(f"{args.input.absolute()} is {source.kind}; expected a folder of image files")
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
