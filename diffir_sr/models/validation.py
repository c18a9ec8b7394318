"""Measuring a model on a dataset: images restored one by one, metrics, pictures, progress, over all ranks."""

from __future__ import annotations

import csv
import inspect
import io
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import imwrite, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from diffir_sr.data.sources import image_names
from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.errors import InputError
from diffir_sr.families.base import Engine
from diffir_sr.files.atomic import write_atomically
from diffir_sr.inference.plain import engine_for, restore_image, restore_samples
from diffir_sr.progress import progress_bar

logger = logging.getLogger("basicsr")


@dataclass
class Scores:
    """Metric values per image of one dataset, in the dataset's order."""

    names: list[str] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def mean(self, metric: str) -> float:
        return float(np.mean([row[metric] for row in self.values]))

    def write_csv(self, path: Path) -> None:
        """One row per image and a last row 'mean'."""
        metrics = list(self.values[0])
        file = io.StringIO(newline="")
        table = csv.writer(file)
        table.writerow(["image", *metrics])
        for name, row in zip(self.names, self.values, strict=True):
            table.writerow([name, *(f"{row[metric]:.6f}" for metric in metrics)])
        table.writerow(["mean", *(f"{self.mean(metric):.6f}" for metric in metrics)])
        write_atomically(file.getvalue().encode(), path)


def samples(
    dataset: Dataset[Any], *, rank: int, world_size: int, progress: bool, unreadable: list[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """(index, batch of one) of every image that is this rank's share; a bar with ETA on rank 0 if asked.

    What is wrong with an image that cannot be read goes to `unreadable`, where that is given, and the others go on.
    """
    count = len(dataset)  # pyright: ignore[reportArgumentType] - every dataset here has a length
    if not count:
        raise InputError("the validation dataset holds no images")
    indices = range(rank, count, world_size)
    shown = progress_bar(indices, unit="image", disable=not progress or rank > 0, leave=False)
    for index in shown:
        try:
            sample = dataset[index]
        except InputError as error:
            if unreadable is None:
                raise
            logger.error("%s", error)
            unreadable.append(str(error))
            continue
        yield index, default_collate([sample])


def result_names(dataset: Any) -> list[str]:
    """File names for the results of a dataset's images, or numbers where it does not tell its paths."""
    paths = getattr(dataset, "paths", None)
    if paths is None or len(paths) != len(dataset):
        return [f"{index:06d}" for index in range(len(dataset))]
    return image_names([path["lq_path"] if isinstance(path, dict) else str(path) for path in paths])


class Restoring:
    """Restores batches as `diffir restore` does; the engine is kept until the network's values change.

    An engine may hold values folded from the weights. Every in-place change of a weight raises its version.
    """

    def __init__(self, device: torch.device, *, samples: int = 1) -> None:
        """`samples`: of how many start noises the result is the mean."""
        self._device = device
        self._samples = samples
        self._engine: Engine | None = None
        self._of: tuple[nn.Module, tuple[int, ...]] | None = None

    def __call__(self, net: nn.Module, lq: Tensor, *, seed: int, **conditions: Tensor) -> Tensor:
        """`lq` (B, C, H, W) restored by `net` in evaluation mode; C = 4 has the mask of missing pixels last."""
        engine = self._engine_of(net)
        if self._samples == 1:
            return restore_image(engine, lq, noise=PictureNoise(lq, seed=seed), **conditions)
        return torch.cat([self._mean(engine, one, seed=seed) for one in lq.split(1)])

    def _mean(self, engine: Engine, lq: Tensor, *, seed: int) -> Tensor:
        noises = [PictureNoise(lq, seed=seed, sample=sample) for sample in range(self._samples)]
        return torch.stack([*restore_samples(engine, lq, noises=noises)]).mean(dim=0)

    def _engine_of(self, net: nn.Module) -> Engine:
        now = (net, tuple(tensor._version for tensor in net.state_dict(keep_vars=True).values()))
        if self._engine is None or self._of is None or self._of[0] is not net or self._of[1] != now[1]:
            self._engine, self._of = engine_for(net, device=self._device), now
        return self._engine


def measure(restored: Tensor, gt: Tensor | None, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Metric values of one image (1, 3, H, W); without `gt` those alone that look at the restored image (NIQE)."""
    data: dict[str, Any] = {"img": tensor2img([restored])} if metrics else {}
    if metrics and gt is not None:
        data["img2"] = tensor2img([gt])
    measured = {name: opt for name, opt in metrics.items() if gt is not None or not _compares(opt["type"])}
    return {name: float(calculate_metric(data, dict(opt))) for name, opt in measured.items()}


def _compares(metric: str) -> bool:
    return "img2" in inspect.signature(METRIC_REGISTRY.get(metric)).parameters


def write_image(restored: Tensor, path: Path) -> None:
    """Save (1, 3, H, W) in [0, 1] as an 8-bit image; values are clipped and rounded."""
    imwrite(tensor2img([restored]), str(path))


def joined(parts: list[dict[int, tuple[str, dict[str, float]]]]) -> Scores:
    """Scores by index, each part of them from another rank, in the dataset's order."""
    merged = dict(sorted(item for part in parts for item in part.items()))
    return Scores([name for name, _ in merged.values()], [row for _, row in merged.values()])


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start
