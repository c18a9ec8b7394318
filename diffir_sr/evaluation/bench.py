"""Benchmarks: quality and cost of networks and simple methods on test sets, compared with the values of the paper."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from basicsr.data import build_dataset
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.metrics import SetDistance, inception_features
from diffir_sr.models.validation import measure
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.training.cost import multiplications
from diffir_sr.training.run import RunArguments, check_data, check_metrics, complete_options
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights.registry import choose

_TABLES = Path(__file__).with_name("paper_tables.yml")


@dataclass(frozen=True)
class Picture:
    """One image of a set: `lq` (1, C, H, W), for inpainting with the mask last; `gt` (1, 3, H * scale, W * scale)."""

    name: str
    lq: Tensor
    gt: Tensor


@dataclass
class Benchmark:
    """The sets of an option file with the metrics to measure."""

    name: str
    path: Path
    scale: int
    takes_mask: bool
    metrics: dict[str, dict[str, Any]]
    datasets: dict[str, Any]
    weights: Path | None = None  # those named in the file, if they exist
    options: dict[str, Any] = field(default_factory=dict)  # the whole file

    def pictures(self, name: str) -> Iterator[Picture]:
        """The images of one set, in order; raises InputError for a set without ground truth."""
        dataset = self.datasets[name]
        for index in range(len(dataset)):
            item = dataset[index]
            if "gt" not in item:
                raise InputError(f"{name}: has no ground truth to measure against; give dataroot_gt")
            gt = item["gt"][None]
            if self.takes_mask:
                mask = item["mask"][None]
                lq = torch.cat([gt * (1 - mask), mask], dim=1)
            else:
                lq = item["lq"][None]
            yield Picture(Path(item["lq_path"]).name, lq, gt)


@dataclass
class SetResult:
    """Result of one method on one set. `values` are means over images and distances of sets."""

    values: dict[str, float]
    images: dict[str, dict[str, float]]
    seconds: float  # of restoring, per image
    memory: int | None  # peak bytes added by restoring, if the system reports them


@dataclass
class BenchResult:
    """All results of a benchmark; `sets` has the count and the checksum of the pixels of each set."""

    benchmark: Benchmark
    methods: list[Method]
    device: torch.device
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: dict[tuple[str, str], SetResult] = field(default_factory=dict)  # by method and set
    notes: list[str] = field(default_factory=list)


def open_benchmark(path: str, *, overrides: tuple[str, ...] = ()) -> Benchmark:
    """The benchmark of an option file such as options/bench/test_Set14.yml, from this folder or the package.

    Raises OptionError or InputError if the file or its data cannot be used.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        file = recipes_folder() / f"{path.removeprefix('options/').removesuffix('.yml')}.yml"
        file = file if file.is_file() else Path(path)
    opt = load_options(file, is_train=False, overrides=overrides, check_files=False).values
    metrics = (opt.get("val") or {}).get("metrics") or {}
    if not metrics:
        raise OptionError(f"{path}: val.metrics is empty; add the metrics to measure")
    opt["manual_seed"] = opt.get("manual_seed") or 0
    opt = complete_options(
        opt, RunArguments(launcher="none", auto_resume=False, debug=False, root=Path.cwd()), is_train=False
    )
    opt["datasets"] = {key: one for key, one in opt["datasets"].items() if one["phase"] in ("test", "val")}
    check_data(opt)
    check_metrics(metrics)
    weights = (opt.get("path") or {}).get("pretrain_network_g")
    datasets = {section["name"]: build_dataset(section) for section in opt["datasets"].values()}
    if len(datasets) < len(opt["datasets"]):
        raise OptionError(f"{path}: two datasets have the same name; rename one")
    if not datasets or not all(len(dataset) for dataset in datasets.values()):
        raise InputError(f"{path}: a set without images; correct datasets")
    scale, task = opt.get("scale") or 1, opt["network_g"].get("task")
    named = Path(weights) if weights and Path(weights).is_file() else None
    return Benchmark(
        opt["name"],
        file,
        1 if task in ("deblur", "inpaint") else scale,
        task == "inpaint",
        metrics,
        datasets,
        named,
        opt,
    )


def run_benchmark(
    benchmark: Benchmark, methods: list[Method], *, device: torch.device, limit: int | None
) -> BenchResult:
    """Measure every method on every set, with at most `limit` images of each, showing a progress bar."""
    result = BenchResult(benchmark, methods, device)
    distances = _distances(benchmark, result)
    for name in benchmark.datasets:
        count = min(len(benchmark.datasets[name]), limit or sys.maxsize)
        result.sets[name] = {
            "images": count,
            "of": len(benchmark.datasets[name]),
            "sha256": checksum(benchmark, name, count),
        }
        for method in methods:
            pictures = (picture for _, picture in zip(range(count), benchmark.pictures(name), strict=False))
            shown = tqdm(
                pictures,
                total=count,
                unit="image",
                desc=f"{name}, {method.name}",
                leave=False,
                disable=not sys.stderr.isatty(),
            )
            result.found[method.name, name] = _measured(method, shown, benchmark.metrics, distances, device)
    return result


def _measured(
    method: Method, pictures: Any, metrics: Mapping[str, Mapping[str, Any]], distances: Any, device: torch.device
) -> SetResult:
    images, seconds, highest = {}, 0.0, 0
    sets = {name: SetDistance(features) for name, features in distances.items()}
    memory = PeakMemory(device)
    for picture in pictures:
        memory.start()
        started = time.perf_counter()
        made = method.restore(picture.lq).clamp(0, 1)
        seconds += time.perf_counter() - started
        highest = max(highest, memory.added() or 0)
        if picture.lq.shape[1] == 4:
            made = torch.where(picture.lq[:, 3:] > 0.5, made, picture.gt)
        if made.shape != picture.gt.shape:
            sizes = " and ".join("x".join(str(side) for side in one.shape[-2:]) for one in (made, picture.gt))
            raise InputError(
                f"{picture.name}: the result of {method.name} and the ground truth differ in size: {sizes}"
            )
        images[picture.name] = measure(made, picture.gt, metrics)
        for distance in sets.values():
            rounded = [(image * 255).round() / 255 for image in (made, picture.gt)]
            distance.update(rounded[0], real=False)
            distance.update(rounded[1], real=True)
    values = {metric: float(np.mean([row[metric] for row in images.values()])) for metric in metrics}
    values |= {name: distance.compute() for name, distance in sets.items() if len(images) > 1}
    return SetResult(values, images, seconds / len(images), highest or None)


def _distances(benchmark: Benchmark, result: BenchResult) -> dict[str, Any]:
    """Features for the distances in the paper's table of these sets, or a note if their weights are missing."""
    if not any("fid" in table.columns for table in paper_tables() if set(table.sets) & set(benchmark.datasets)):
        return {}
    try:
        return {"fid": inception_features()}
    except CheckpointError as error:
        result.notes.append(f"FID, which is in the paper's table, is not measured: {str(error).splitlines()[0]}")
        return {}


def checksum(benchmark: Benchmark, name: str, count: int) -> str:
    """sha256 of the pixels of degraded images and ground truth, independent of the files that store them."""
    digest = hashlib.sha256()
    for _, picture in zip(range(count), benchmark.pictures(name), strict=False):
        for image in (picture.lq, picture.gt):
            digest.update(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())
    return digest.hexdigest()


class PeakMemory:
    """Peak memory added between `start` and `added`; None if the system does not report it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        _trim()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self._before = _status("VmRSS")
        except OSError:
            self._before = -1

    def added(self) -> int | None:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return None if self._before < 0 else max(0, _status("VmHWM") - self._before)


def _trim() -> None:
    """Return freed memory to the system, since reusing it would not be noticed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not in every C library
        ctypes.CDLL(None).malloc_trim(0)


def _status(line: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(one for one in text.splitlines() if one.startswith(line)).split()[1]) * 1024


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper: values by row, set and metric."""

    title: str
    source: str
    columns: tuple[str, ...]
    sets: tuple[str, ...]
    rows: dict[str, dict[str, dict[str, float]]]


def paper_tables() -> list[PaperTable]:
    """The tables of the paper."""
    content = yaml.safe_load(_TABLES.read_text(encoding="utf-8"))
    return [_table(**one) for one in content.values()]


def _table(
    title: str, source: str, columns: list[str], sets: list[str], rows: dict[str, list[list[float | None]]]
) -> PaperTable:
    named = {
        row: {
            name: {metric: value for metric, value in zip(columns, values, strict=True) if value is not None}
            for name, values in zip(sets, cells, strict=True)
        }
        for row, cells in rows.items()
    }
    return PaperTable(title, source, tuple(columns), tuple(sets), named)


def paper_rows(name: str) -> dict[str, dict[str, float]]:
    """The rows of the table with the set `name`, with their values on it; {} if no table has it."""
    tables = [table for table in paper_tables() if name in table.sets]
    return {row: cells[name] for table in tables for row, cells in table.rows.items() if cells[name]}


# Methods of a benchmark: networks, and simple methods without weights.


_RADIUS = 3  # radius of OpenCV's inpainting in pixels


@dataclass
class Method:
    """One row: `restore` maps (1, C, H, W) in [0, 1], for inpainting with the mask of missing pixels last, to RGB.

    `paper` is its row in the paper's tables. `macs` counts multiply-accumulate operations for an input of COUNTED_SIDE
    pixels; `uncounted` is the reason if they cannot be counted.
    """

    name: str
    restore: Callable[[Tensor], Tensor]
    scale: int
    takes_mask: bool = False
    paper: str = ""
    sha256: str = ""
    parameters: int = 0
    macs: float | None = None
    uncounted: str = ""
    about: str = ""

    @property
    def is_network(self) -> bool:
        return bool(self.sha256)


def simple_methods(*, scale: int, takes_mask: bool) -> list[Method]:
    """Baselines: interpolation, OpenCV's inpainting, or the degraded image itself."""
    if takes_mask:
        kinds = {"OpenCV Telea": cv2.INPAINT_TELEA, "OpenCV Navier-Stokes": cv2.INPAINT_NS}
        return [Method(name, _inpainting(kind), 1, takes_mask=True) for name, kind in kinds.items()]
    if scale == 1:
        return [Method("input as it is", lambda lq: lq, 1)]
    return [
        Method("nearest", lambda lq: lq.repeat_interleave(scale, 2).repeat_interleave(scale, 3), scale),
        Method("bicubic (MATLAB's)", _on_bytes(lambda image: bicubic_resize(image, scale=scale)), scale),
        Method("Lanczos", _on_bytes(lambda image: _lanczos(image, scale)), scale),
    ]


def _on_bytes(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """Adapt a function of uint8 arrays (H, W, 3) to tensors (1, 3, H, W) in [0, 1]."""

    def restore(lq: Tensor) -> Tensor:
        image = np.ascontiguousarray((lq[0, :3] * 255).round().byte().permute(1, 2, 0).numpy())
        return torch.from_numpy(make(image)).permute(2, 0, 1)[None].float() / 255

    return restore


def _lanczos(image: np.ndarray, scale: int) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.LANCZOS))


def _inpainting(kind: int) -> Callable[[Tensor], Tensor]:
    def restore(lq: Tensor) -> Tensor:
        hole = (lq[0, 3] > 0.5).byte().numpy()
        return _on_bytes(lambda image: cv2.inpaint(image, hole, _RADIUS, kind))(lq)

    return restore


def network_method(
    weights: str | os.PathLike[str] | None, model: str | None, *, seed: int, device: str, scale: int, takes_mask: bool
) -> Method:
    """The network of a file or a model as a method; raises InputError if it does not suit these images."""
    chosen = choose(weights, model, masked=takes_mask, dashes="--")
    restorer = load_restorer(chosen.path, seed=seed, device=device)
    name = chosen.entry.name if chosen.entry else Path(chosen.path).name
    if restorer.takes_mask != takes_mask or restorer.scale != scale:
        wanted = "images with masks" if takes_mask else f"images without masks, scale {scale}"
        has = "takes masks" if restorer.takes_mask else f"takes no masks, scale {restorer.scale}"
        raise InputError(f"{name}: this benchmark has {wanted}, but the network {has}; choose another model")
    network = restorer.network
    paper = chosen.entry.paper if chosen.entry else vars(type(network)).get("paper_row", "")
    macs, why = multiplications(network)
    return Method(
        name,
        lambda lq: restorer.run(lq, restorer.start(lq)),
        scale,
        takes_mask,
        paper=paper,
        sha256=sha256_of(Path(os.path.expanduser(chosen.path))),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        uncounted=why,
        about=restorer.describe().splitlines()[0].partition(": ")[2],
    )
