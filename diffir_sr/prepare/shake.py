"""Motion-blurred versions of sharp images, as from a camera that shakes during the exposure."""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffir_sr.data.sources import FolderSource, some
from diffir_sr.errors import InputError
from diffir_sr.files.images import header
from diffir_sr.prepare.jobs import check_apart, folder, run_all, say
from diffir_sr.prepare.stored import PrepareJob, StoredImage, StoredTarget, read_storable, relative, underway

_FRAMES_PER_PIXEL = 8  # of the path, enough to approximate a continuous exposure
_WOBBLE = 1.5  # change of the velocity during an exposure, in units of the initial velocity


@dataclass(frozen=True)
class ShakeRecipe:
    """Parameters of a blurred image, besides the image and its name: `length` of the camera path in pixels."""

    length: tuple[float, float]
    seed: int

    def __post_init__(self) -> None:
        low, high = self.length
        if not 0 <= low <= high <= 100:
            raise InputError(
                f"--length: expected two numbers of pixels, 0 to 100, the smaller first; got {low}, {high}"
            )
        if self.seed < 0:
            raise InputError(f"--seed: expected 0 or more, got {self.seed}")

    @property
    def margin(self) -> int:
        """Pixels at each side that depend on content outside the image; they are cropped."""
        return math.ceil(self.length[1]) + 1


@dataclass(frozen=True)
class ShakeTask:
    """One exposure of one image."""

    name: str
    file: Path
    blurred: StoredTarget
    sharp: StoredTarget
    recipe: ShakeRecipe
    overwrite: bool
    to_8bit: bool


def plan_shakes(
    source: FolderSource,
    output: Path,
    given: ShakeRecipe,
    *,
    count: int = 1,
    overwrite: bool = False,
    to_8bit: bool = False,
) -> list[ShakeTask]:
    """`count` exposures of every image, to input and target; several of one image are named <name>_0, <name>_1, ..."""
    if count < 1:
        raise InputError(f"--count: expected 1 or more, got {count}")
    check_apart(source.path, output)
    _check_sizes(source, at_least=2 * given.margin + 1)
    tasks = []
    for name in source.names:
        file = source.file(name)
        for number in range(count):
            called = f"{name}_{number}" if count > 1 else name
            origin = relative(file, source.path)
            blurred, sharp = (StoredTarget(output / side, f"{called}.png", origin) for side in ("input", "target"))
            tasks.append(ShakeTask(called, file, blurred, sharp, given, overwrite, to_8bit))
    return tasks


def shake_all(tasks: Sequence[ShakeTask], *, jobs: int) -> list[tuple[StoredImage, StoredImage]]:
    """Blur the images; existing pairs are kept unless `overwrite`."""
    return run_all(_shake, tasks, jobs=jobs, label="shake")


def camera_path(rng: np.random.Generator, *, length: float) -> np.ndarray:
    """Positions of the image in the frames of one exposure: (frames, 2) of x and y in pixels, mean 0.

    The velocity is a random walk, so the path is smooth with varying speed, like that of a hand. `length` is the length
    of the path. Mean 0 keeps the blurred image aligned with the sharp one.
    """
    frames = max(2, math.ceil(length * _FRAMES_PER_PIXEL))
    turn = rng.uniform(0, 2 * math.pi)
    kicks = rng.normal(0, _WOBBLE / math.sqrt(frames), (frames, 2))
    steps = np.array([math.cos(turn), math.sin(turn)]) + kicks.cumsum(axis=0)
    path = steps.cumsum(axis=0)
    travelled = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    path = path * (length / travelled)
    return path - path.mean(axis=0)


def exposure(image: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The mean of an 8-bit image (H, W, C) shifted to each position of a path (frames, 2), in linear light, as uint8.

    Sub-pixel shifts are interpolated linearly. The mean of the shifts is computed as one convolution.
    """
    light = linear(np.arange(256) / 255).astype(np.float32)[image]
    return (encoded(exposed(light, path)) * 255).round().astype(np.uint8)


def exposed(light: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The mean of float32 light (H, W, C) shifted to each position of a path (frames, 2), clipped to [0, 1]."""
    kernel = np.ascontiguousarray(_spread(path)[::-1, ::-1])  # filter2D correlates, so the kernel is flipped
    blurred = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return blurred.reshape(light.shape).clip(0, 1)


def _spread(path: np.ndarray) -> np.ndarray:
    """The share of the exposure at each integer shift, (side, side), sum 1; the centre is no shift."""
    reach = math.ceil(np.abs(path).max()) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float64)
    whole = np.floor(path).astype(int)
    part = path - whole
    for right in (0, 1):
        for below in (0, 1):
            weight = np.abs(1 - right - part[:, 0]) * np.abs(1 - below - part[:, 1])
            np.add.at(kernel, (whole[:, 1] + below + reach, whole[:, 0] + right + reach), weight)
    return (kernel / len(path)).astype(np.float32)


def linear(values: np.ndarray) -> np.ndarray:
    """Linear light from sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    """sRGB values from linear light in [0, 1]."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _check_sizes(source: FolderSource, *, at_least: int) -> None:
    sizes = {name: header(source.file(name)) for name in source.names}
    small = [
        f"{name}: {size.height}x{size.width}" for name, size in sizes.items() if min(size.height, size.width) < at_least
    ]
    if small:
        raise InputError(
            f"{len(small)} images of {source.path.absolute()} are smaller than {at_least} pixels: nothing would "
            f"be left: {some(small)}; remove them, or shorten --length"
        )


def _shake(task: ShakeTask) -> tuple[StoredImage, StoredImage]:
    if not task.overwrite and task.blurred.path.exists() and task.sharp.path.exists():
        return task.blurred.keep(), task.sharp.keep()
    image = read_storable(task.file, to_8bit=task.to_8bit).image
    rng = np.random.default_rng((task.recipe.seed, zlib.crc32(f"shake/{task.name}".encode())))
    path = camera_path(rng, length=rng.uniform(*task.recipe.length))
    margin = task.recipe.margin
    inside = (slice(margin, image.shape[0] - margin), slice(margin, image.shape[1] - margin))
    blurred, sharp = (np.ascontiguousarray(one[inside]) for one in (exposure(image, path), image))
    return task.blurred.store_png(blurred), task.sharp.store_png(sharp)


# `diffir prepare shake`.


def command(args: argparse.Namespace) -> int:
    """`diffir prepare shake`."""
    source = folder(args.input)
    given = ShakeRecipe((args.length[0], args.length[1]), args.seed)
    tasks = plan_shakes(source, args.output, given, count=args.count, overwrite=args.overwrite, to_8bit=args.to_8bit)
    parameters = {"length": list(given.length), "seed": given.seed, "count": args.count, "to_8bit": args.to_8bit}
    jobs = [PrepareJob(args.output / side, "shake", parameters, source.path) for side in ("input", "target")]
    for job in jobs:
        job.check(overwrite=args.overwrite)
    if args.dry_run:
        return say(f"would write {len(tasks)} pairs to {args.output}/input and {args.output}/target")
    with underway(*jobs, overwrite=args.overwrite):
        done = shake_all(tasks, jobs=args.jobs)
        for number, job in enumerate(jobs):
            job.finish(pair[number] for pair in done)
    return 0
