"""What a training shows while it runs: one line with its rate, and curves for TensorBoard, W&B and trackio."""

from __future__ import annotations

import datetime
import importlib
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from basicsr.utils import mkdir_and_rename

from diffir_sr.errors import OptionError
from diffir_sr.files.atomic import save_text
from diffir_sr.options.schema import LoggerOptions

logger = logging.getLogger("basicsr")

_TIMING = ("epoch", "iter", "lrs", "time", "data_time")
_IN_RECORDS_ALONE = ("shift_", "prior_", "grad_norm_prior")  # watched by alerts; too many for a line


class ProgressLine:
    """Writes the log line of an iteration: rate, time left, time spent waiting for data, memory, losses."""

    def __init__(self, opt: Mapping[str, Any], *, done: int) -> None:
        self._name, self._total = opt["name"], int(opt["train"]["total_iter"])
        self._on_gpu = bool(opt["num_gpu"]) and torch.cuda.is_available()
        self.start(done)

    def start(self, done: int) -> None:
        """Count the time left from now, after `done` iterations."""
        self._done, self._started = done, time.perf_counter()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """`row` is a line of training.jsonl."""
        iteration = int(row["iter"])
        rates = ",".join(f"{rate:.3e}" for rate in row["lrs"])
        losses = " ".join(
            f"{name}: {value:.4e}"
            for name, value in row.items()
            if name not in _TIMING and not name.startswith(_IN_RECORDS_ALONE)
        )
        logger.info(
            f"[{self._name[:5]}..][epoch:{row['epoch']:3d}, iter:{iteration:8,d}, lr:({rates},)] "
            f"[eta: {self._eta(iteration)}, time (data): {row['time']:.3f} ({row['data_time']:.3f}), "
            f"memory: {self._memory() / 1e9:.1f} GB] {losses}"
        )

    def _eta(self, iteration: int) -> str:
        if iteration <= self._done:
            return "unknown"
        each = (time.perf_counter() - self._started) / (iteration - self._done)
        return str(datetime.timedelta(seconds=round(each * (self._total - iteration))))

    def _memory(self) -> int:
        """Bytes: the peak of the accelerator's tensors, or on a CPU what the process holds now."""
        return torch.cuda.max_memory_allocated() if self._on_gpu else psutil.Process().memory_info().rss


class Service(Protocol):
    """Where curves go."""

    def add(self, values: Mapping[str, float], iteration: int) -> None:
        """Take values of an iteration."""

    def close(self) -> None:
        """Send what is left."""


class Curves:
    """Curves of losses and metrics for every service that `logger` names; models give metrics with `add_scalar`."""

    def __init__(self, services: list[Service]) -> None:
        self._services = services

    def add_row(self, row: Mapping[str, Any]) -> None:
        """A line of training.jsonl."""
        values = {name: value for name, value in row.items() if name not in _TIMING}
        named = {f"losses/{name}" if name.startswith("l_") else name: value for name, value in values.items()}
        rates = {f"lr/{index}": rate for index, rate in enumerate(row["lrs"])}
        self._add(named | rates | {"time": row["time"], "data_time": row["data_time"]}, int(row["iter"]))

    def add_scalar(self, name: str, value: float, iteration: int) -> None:
        """One value, as TensorBoard's writer takes it."""
        self._add({name: value}, iteration)

    def close(self) -> None:
        """Send what is left."""
        for service in self._services:
            service.close()

    def _add(self, values: Mapping[str, float], iteration: int) -> None:
        for service in self._services:
            service.add(values, iteration)


def open_curves(opt: Mapping[str, Any], *, new: bool, done: int) -> Curves | None:
    """The services that `logger` names, going on after iteration `done`; None if it names none. Rank 0 alone."""
    options = LoggerOptions.of(opt["logger"])
    if opt["rank"] != 0 or "debug" in opt["name"]:
        return None
    services: list[Service] = []
    if options.use_tb_logger:
        folder = Path(opt["root_path"]) / "tb_logger" / opt["name"]
        if new:
            mkdir_and_rename(str(folder))
        services.append(_TensorBoard(folder, done=done))
    if options.wandb and options.wandb.project:
        services.append(_Wandb(opt, options.wandb.project, resume_id=options.wandb.resume_id, new=new))
    if options.trackio and options.trackio.project:
        services.append(_Trackio(opt, options.trackio.project, new=new))
    return Curves(services) if services else None


def _installed(name: str, *, option: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0] if not name.startswith("torch") else "tensorboard"
        raise OptionError(
            f"{option}: needs the package {package}, which cannot be imported ({error}); pip install {package}"
        ) from error


class _TensorBoard:
    def __init__(self, folder: Path, *, done: int) -> None:
        module = _installed("torch.utils.tensorboard", option="logger.use_tb_logger")
        # What a killed run wrote beyond the state that it goes on from is hidden.
        self._writer = module.SummaryWriter(log_dir=str(folder), purge_step=done + 1)

    def add(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases; a run that is resumed goes on in the same curves, by the id that its folder keeps."""

    def __init__(self, opt: Mapping[str, Any], project: str, *, resume_id: str | None, new: bool) -> None:
        self._module = _installed("wandb", option="logger.wandb")
        kept = Path(opt["path"]["log"]) / "wandb_id.txt"
        known = resume_id or (kept.read_text().strip() if kept.is_file() and not new else "")
        name = known or secrets.token_hex(4)
        save_text(f"{name}\n", kept)
        self._module.init(
            project=project, id=name, name=opt["name"], resume="allow", config=dict(opt), dir=opt["path"]["log"]
        )
        # Iterations come again after a rollback, which W&B's own counter would refuse.
        self._module.define_metric("iteration")
        self._module.define_metric("*", step_metric="iteration")
        logger.info(f"Curves go to W&B, project {project}, run {name}")

    def add(self, values: Mapping[str, float], iteration: int) -> None:
        self._module.log({**values, "iteration": iteration})

    def close(self) -> None:
        self._module.finish()


class _Trackio:
    """trackio: curves in a local file, shown by `trackio show`."""

    def __init__(self, opt: Mapping[str, Any], project: str, *, new: bool) -> None:
        self._module = _installed("trackio", option="logger.trackio")
        # A new training of a name that is there gets a run of its own.
        self._module.init(project=project, name=opt["name"], resume="never" if new else "allow", config=dict(opt))

    def add(self, values: Mapping[str, float], iteration: int) -> None:
        self._module.log(dict(values), step=iteration)

    def close(self) -> None:
        self._module.finish()
