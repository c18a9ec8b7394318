"""`diffir plan`: what a training will take of time, memory and disk, and what is missing, before it starts."""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from torch.utils.data import default_collate

from diffir_sr.data.draws import curriculum_from_options
from diffir_sr.data.sources import ShardSource, shards_at
from diffir_sr.devices import default_device
from diffir_sr.errors import DiffIRError
from diffir_sr.families.base import WalksInSteps
from diffir_sr.files.processes import available_cpus, free_memory
from diffir_sr.options import load_options
from diffir_sr.options.check import OptionProblems
from diffir_sr.options.source import read_source
from diffir_sr.training.cost import copied_batch, multiplications, peak_of_step, process_peak
from diffir_sr.training.recipe import read_recipe
from diffir_sr.training.run import (
    WEIGHTS,
    RunArguments,
    checkpoint_bytes,
    checkpoints_of,
    complete_options,
    disk_bytes,
    expanded,
    free_bytes,
    moments_of,
    networks_of,
    quiet,
    training_loader,
    write_stand_in,
)

_LONG_S = 20.0  # a step that takes longer is measured once
_ROOTS = ("dataroot_gt", "dataroot_lq", "dataroot_mask")


@dataclass
class TrainingPlan:
    """What is foreseen of one training. Bytes, seconds and hours; None where `notes` say why there is no number."""

    name: str
    file: str
    device: str
    iterations: int
    batch: int
    patch: int
    parameters: dict[str, int] = field(default_factory=dict)
    macs: float | None = None
    memory: int | None = None
    memory_free: int = 0
    step_seconds: float | None = None
    data_seconds: float | None = None
    validation_seconds: float | None = None
    hours: float | None = None
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    disk: int | None = None
    disk_free: int = 0
    data_bytes: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    schedule: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_file(file: Path, overrides: Sequence[str] = ()) -> Iterator[TrainingPlan]:
    """The plan of an option file, or of each training of a recipe."""
    if "stages" not in read_source(file).values:
        yield plan_training(file, overrides)
        return
    for stage in read_recipe(file, overrides).stages:
        if stage.verb == "train":
            yield plan_training(stage.file, stage.overrides, coming=tuple(stage.handed))


def plan_training(file: Path, overrides: Sequence[str] = (), *, coming: Sequence[str] = ()) -> TrainingPlan:
    """The plan of one option file on this machine; raises OptionError where the file itself is wrong.

    Files that are missing are listed, and weights among them stood in for; `coming` ones an earlier stage writes.
    """
    loaded = load_options(file, True, overrides, check_files=False)
    missing: list[str] = []
    try:
        load_options(file, True, overrides, coming=coming)
    except OptionProblems as error:
        missing = [str(finding) for finding in error.findings]
    opt = complete_options(loaded.values, RunArguments(root=Path.cwd()), is_train=True)
    opt["logger"]["print_freq"] = 2**62  # a log line reads values, which shapes have not
    section, train = opt["datasets"]["train"], opt["train"]
    curriculum = curriculum_from_options(section)
    largest = max(curriculum.phases, key=lambda one: one.batch * one.gt_size**2) if curriculum else None
    devices = max(1, opt["num_gpu"])
    batch = (largest.batch if largest else int(section["batch_size_per_gpu"])) * devices
    patch = largest.gt_size if largest else int(section.get("gt_size") or opt.get("gt_size") or 256)
    device = default_device() if opt["num_gpu"] else torch.device("cpu")
    plan = TrainingPlan(str(opt["name"]), str(file), _device_name(device), int(train["total_iter"]), batch, patch)
    plan.missing, plan.warnings = missing, list(loaded.warnings)
    plan.schedule, warnings = _schedule(opt)
    plan.warnings += warnings
    plan.disk_free = free_bytes(Path("experiments"))
    plan.data_bytes = _data_bytes(opt)
    with tempfile.TemporaryDirectory() as folder:
        _stand_in(opt, Path(folder))
        base = _base()
        plan.memory_free = _free(device) + (base if device.type == "cpu" else 0)
        try:
            _foresee(plan, opt, device, base)
        except DiffIRError as error:
            plan.notes.append(f"memory, time and disk cannot be foreseen: {str(error).splitlines()[0]}")
    return plan


def _foresee(plan: TrainingPlan, opt: dict[str, Any], device: torch.device, base: int) -> None:
    with quiet(), torch.random.fork_rng():
        model = build_model(opt)
    networks = networks_of(model)
    plan.parameters = {name: sum(one.numel() for one in net.parameters()) for name, net in networks.items()}
    plan.parameters.pop("network_g_ema", None)
    plan.checkpoints, plan.disk = checkpoints_of(opt), disk_bytes(opt, model)
    plan.checkpoint_bytes = sum(checkpoint_bytes(model).values())
    if plan.disk > plan.disk_free:
        plan.warnings.append("the checkpoints will not fit on the disk; save less often (logger.save_checkpoint_freq)")
    batch, plan.data_seconds = _batch(plan, opt)
    # On shapes: a network in its training form, then all of a step.
    net: Any = model.get_bare_model(model.net_g)
    net.eval()
    plan.macs, why = multiplications(net, one_step=True)
    net.train()
    if isinstance(net, WalksInSteps):
        plan.notes.append("multiply-adds are those of one step of restoring")
    if plan.macs is None:
        plan.notes.append(f"multiplications cannot be counted ({why})")
    with quiet():
        model.feed_data(batch)
        try:
            tensors = peak_of_step(model, plan.iterations, moments=moments_of)
            plan.memory = process_peak(tensors, base, device)
        except Exception as error:  # whatever a model does that needs values, not shapes
            first = str(error).splitlines()[0] if str(error) else ""
            plan.notes.append(f"memory cannot be foreseen on shapes ({type(error).__name__}: {first})")
    del model, net, networks
    _trim()
    count = _fitting(plan, base)
    if count:
        _measure(plan, opt, batch, count, device)
    else:
        plan.warnings.append(
            f"too little memory: a step takes {_gib(plan.memory)}, {_gib(plan.memory_free)} are free; lower "
            "batch_size_per_gpu or gt_size, or set train.checkpointing"
        )
        plan.notes.append("no step was measured, since not even one sample fits")


def _fitting(plan: TrainingPlan, base: int) -> int:
    """How many samples of the batch a step that is measured may have; all, where the memory is unknown."""
    if plan.memory is None:
        return plan.batch
    count = plan.batch
    while count and base + (plan.memory - base) * count / plan.batch > 0.9 * plan.memory_free:
        count //= 2
    if 0 < count < plan.batch:
        plan.warnings.append(
            f"too little memory: a step takes {_gib(plan.memory)}, {_gib(plan.memory_free)} are free; lower "
            "batch_size_per_gpu or gt_size, or set train.checkpointing"
        )
        plan.notes.append(f"the step was measured with {count} of {plan.batch} samples")
    return count


def _measure(plan: TrainingPlan, opt: dict[str, Any], batch: dict[str, Any], count: int, device: torch.device) -> None:
    """Time real steps, and the restoring of one picture of each validation set."""
    with quiet(), torch.random.fork_rng():
        model = build_model(opt)
        part = copied_batch(batch, count)
        seconds: list[float] = []
        for _ in range(4):
            started = time.perf_counter()
            model.feed_data(part)
            model.optimize_parameters(plan.iterations)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            if seconds[-1] > _LONG_S:
                break
        step = statistics.median(seconds[1:] or seconds)  # the first one warms up
        plan.step_seconds = step * plan.batch / count
        plan.validation_seconds = _validation_seconds(plan, opt, model)
    workers = int(opt["datasets"]["train"].get("num_worker_per_gpu") or 0)
    data = plan.data_seconds or 0.0
    each = max(plan.step_seconds, data) if workers else plan.step_seconds + data
    if workers and data > plan.step_seconds:
        plan.warnings.append(
            f"loading is the bottleneck: {data:.2f} s a batch with {workers} workers, a step takes "
            f"{plan.step_seconds:.2f} s; raise num_worker_per_gpu or store images as raw LMDB"
        )
    plan.hours = (each * _weighted_iterations(plan, opt) + (plan.validation_seconds or 0.0)) / 3600


def _weighted_iterations(plan: TrainingPlan, opt: Mapping[str, Any]) -> float:
    """Iterations, those of a progressive training by the pixels of their batches over those of the largest."""
    curriculum = curriculum_from_options(opt["datasets"]["train"])
    if curriculum is None:
        return plan.iterations
    largest = max(one.batch * one.gt_size**2 for one in curriculum.phases)
    total = 0.0
    for phase in curriculum.phases:
        last = min(plan.iterations, phase.last or plan.iterations)
        total += max(0, last - phase.first + 1) * phase.batch * phase.gt_size**2 / largest
    return total


def _validation_seconds(plan: TrainingPlan, opt: Mapping[str, Any], model: Any) -> float | None:
    """Seconds of all validations of a run, by the time of one picture of each set."""
    val = opt.get("val")
    sections = [section for section in opt["datasets"].values() if section["phase"] == "val"]
    if not val or not sections:
        return 0.0
    if isinstance(model.get_bare_model(model.net_g), WalksInSteps):
        plan.notes.append("hours are without validations, since this network restores in many steps")
        return None
    total = 0.0
    for section in sections:
        try:
            dataset: Any = build_dataset(section)
            sample = default_collate([dataset[len(dataset) // 2]])
        except (DiffIRError, OSError, ValueError) as error:
            plan.notes.append(f"hours are without validations on {section['name']} ({str(error).splitlines()[0]})")
            continue
        started = time.perf_counter()
        model.feed_data(sample)
        model.test()
        total += (time.perf_counter() - started) * len(dataset)
    return total * (plan.iterations // int(val["val_freq"]))


def _batch(plan: TrainingPlan, opt: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The largest batch of the training and the seconds that loading one takes; of random values without data."""
    loaded: list[Any] = []
    seconds: float | None = None
    try:
        loader, _ = training_loader(opt)
        batches = iter(loader)
        loaded.append(next(batches))  # starts the workers
        started = time.perf_counter()
        loaded += islice(batches, 3)
        seconds = (time.perf_counter() - started) / max(1, len(loaded) - 1) if len(loaded) > 1 else None
        del batches
    except (DiffIRError, OSError, ValueError, RuntimeError, KeyError) as error:
        plan.notes.append(f"no data was loaded ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
    if loaded and curriculum_from_options(opt["datasets"]["train"]) is None:
        return loaded[-1], seconds
    side = plan.patch // int(opt.get("scale") or 1)
    made = {
        "gt": torch.rand(plan.batch, 3, plan.patch, plan.patch),
        "lq": torch.rand(plan.batch, 3, side, side),
        "mask": (torch.rand(plan.batch, 1, plan.patch, plan.patch) > 0.7).float(),
    }
    return made, seconds


def _stand_in(opt: dict[str, Any], folder: Path) -> None:
    """Fresh weights in the place of those that are not there yet."""
    for key, path in list(opt["path"].items()):
        section = key.removeprefix("pretrain_")
        if key.startswith(WEIGHTS) and path and not expanded(path).is_file() and opt.get(section):
            write_stand_in(opt[section], folder / f"{section}.pth")
            opt["path"][key] = str(folder / f"{section}.pth")


def _schedule(opt: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The schedule in words, and what of it does not go with `total_iter`."""
    train, total = opt["train"], int(opt["train"]["total_iter"])
    summary, warnings = [], []
    for name in [key for key in train if key.startswith("optim_")]:
        summary.append(f"{name}: {train[name].get('type')}, learning rate {train[name].get('lr')}")
    scheduler = train.get("scheduler") or {}
    if milestones := scheduler.get("milestones"):
        summary.append(
            f"times {scheduler.get('gamma', 0.1)} at {', '.join(f'{at:,d}' for at in scheduler['milestones'])}"
        )
        late = [at for at in milestones if at > total]
        if late:
            late_text = ", ".join(f"{at:,d}" for at in late)
            warnings.append(f"train.scheduler: milestones {late_text} lie beyond total_iter {total:,d}, never reached")
    if scheduler.get("periods"):
        length = sum(scheduler["periods"])
        summary.append(f"{scheduler['type']}: periods {', '.join(f'{one:,d}' for one in scheduler['periods'])}")
        if length != total:
            effect = "ends before its end" if length > total else "goes on at the last rate"
            warnings.append(
                f"train.scheduler: its periods are {length:,d} iterations, total_iter {total:,d}: training {effect}"
            )
    if (train.get("warmup_iter") or -1) > 0:
        summary.append(f"warm-up over {train['warmup_iter']:,d}")
    for where, key, loss in (
        ("logger", "save_checkpoint_freq", "a run that is killed loses everything"),
        ("val", "val_freq", "nothing is measured before the end"),
    ):
        every = (opt.get(where) or {}).get(key)
        if every and every > total:
            warnings.append(f"{where}.{key}: {every:,d} is more than total_iter {total:,d}: {loss}")
    return summary, warnings


def _data_bytes(opt: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the data that is there, by path."""
    found: dict[str, int] = {}
    for section in opt["datasets"].values():
        for root in _ROOTS:
            named = section.get(root)
            for path in named if isinstance(named, list) else [named]:
                if not isinstance(path, str):
                    continue
                shards = shards_at(expanded(path))
                if shards and shards[1] is not None:  # one of the images of each sample
                    with suppress(DiffIRError):  # a note says why no data was loaded
                        found[path] = ShardSource(shards[0], field=shards[1]).bytes
                elif expanded(path).exists():
                    files = expanded(path).rglob("*") if expanded(path).is_dir() else [expanded(path)]
                    found[path] = sum(one.stat().st_size for one in files if one.is_file())
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{device.type.upper()}, {torch.get_num_threads()} threads of {available_cpus()} cores"


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_memory()


@cache
def _base() -> int:
    """Bytes that this process has with all that a training imports, before the first network."""
    _trim()
    return psutil.Process().memory_info().rss


def _trim() -> None:
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def _gib(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / 2**30:.2f} GiB"


def as_text(plan: TrainingPlan) -> str:
    """A plan for people."""
    lines = [f"{plan.name} ({plan.file})"]
    networks = ", ".join(f"{name} {count:,d}" for name, count in plan.parameters.items())
    macs = "" if plan.macs is None else f"{plan.macs / 1e12:.3g} T for 256 x 256 pixels of input"
    rows = [
        ("device", plan.device),
        ("parameters", networks),
        ("multiply-adds", macs),
        ("batch", f"{plan.batch} patches of {plan.patch} pixels, {plan.iterations:,d} iterations"),
        ("memory", "" if plan.memory is None else f"{_gib(plan.memory)} at most, {_gib(plan.memory_free)} free"),
        ("step", "" if plan.step_seconds is None else f"{plan.step_seconds:.3f} s measured"),
        ("loading", "" if plan.data_seconds is None else f"{plan.data_seconds:.3f} s a batch measured"),
        ("validation", "" if not plan.validation_seconds else f"{plan.validation_seconds / 3600:.2f} hours in all"),
        ("time", "" if plan.hours is None else f"{plan.hours:.2f} hours"),
        (
            "disk",
            ""
            if plan.disk is None
            else f"{_gib(plan.disk)} for {plan.checkpoints:,d} checkpoints of {_gib(plan.checkpoint_bytes)}, "
            f"{_gib(plan.disk_free)} free",
        ),
        ("data", ", ".join(f"{path} {_gib(size)}" for path, size in plan.data_bytes.items())),
        ("schedule", "; ".join(plan.schedule)),
    ]
    lines += [f"  {label:<14}{value}" for label, value in rows if value]
    lines += [f"  missing: {one}" for one in plan.missing]
    lines += [f"  warning: {one}" for one in plan.warnings]
    lines += [f"  note: {one}" for one in plan.notes]
    return "\n".join(lines) + "\n"
