"""Monitoring a training: its log line and curves, and alerts that stop it or return it to an earlier state.

Every decision is a function of the records of a run (training.jsonl, validation.jsonl, alerts.jsonl), which rank 0
writes: a resumed run decides as an unbroken one.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import logging
import math
import secrets
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from basicsr.utils import mkdir_and_rename
from torch import Tensor, nn

from diffir_sr.data.records import append_record, read_records
from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import save_text
from diffir_sr.options.schema import AlertOptions, LoggerOptions

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


logger = logging.getLogger("basicsr")

_WINDOW = 50  # log lines that a z-score looks back on
_HISTORY = 20  # of them that it needs at least
_LEAST_DEVIATION = 0.1  # standard deviation that a loss has at least, as a share of its mean
_NOT_LOSSES = ("epoch", "iter", "lrs", "time", "data_time")


@dataclass(frozen=True)
class Alert:
    """What is wrong, told after iteration `iteration`, and since which one: states of earlier iterations are good.

    Losses are those before the step of their iteration, so a state is good once the next log line is: a leap in the
    mean of iterations 101 to 200 may come from step 100, and of states with it.
    """

    kind: str
    message: str
    iteration: int
    since: int


class Alarmed(Exception):  # noqa: N818 - a decision, not an error
    """The training cannot go on from here."""

    def __init__(self, alert: Alert) -> None:
        super().__init__(alert.message)
        self.alert = alert


class Watch:
    """Judges what rank 0 has recorded of a run; `None` is no objection."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.options = AlertOptions.of(opt["train"].get("alerts"))
        self._log = Path(opt["path"]["log"])
        self._every = int(opt["logger"]["print_freq"])
        self._psnr = [
            name
            for name, metric in ((opt.get("val") or {}).get("metrics") or {}).items()
            if "psnr" in str(metric.get("type")).lower()
        ]
        self._rows: list[dict[str, Any]] | None = None
        self._warned: set[str] = set()

    def logged(self, row: Mapping[str, Any]) -> Alert | None:
        """Judge a new line of training.jsonl, which is to be recorded before."""
        if self._rows is None:
            self._rows = [one for one in read_records(self._log / "training.jsonl") if one["iter"] < row["iter"]]
        before, self._rows = self._rows, [*self._rows, dict(row)][-max(_WINDOW, self.options.patience) :]
        iteration = int(row["iter"])
        broken = [name for name, value in _values(row).items() if not math.isfinite(value)]
        if broken:
            return Alert("not finite", f"{', '.join(broken)} is not finite", iteration, iteration - self._every)
        if iteration <= self.options.start:
            return None
        late = [one for one in [*before, row] if one["iter"] > self.options.start]
        return self._heeded(self._leap(before, row) or self._lasting(late))

    def validated(self, iteration: int) -> Alert | None:
        """Judge the lines that validation.jsonl has of an iteration."""
        limit, rows = self.options.psnr_drop, read_records(self._log / "validation.jsonl")
        if limit is None or iteration <= self.options.start:
            return None
        for row in rows:
            for name in self._psnr:
                earlier = [
                    one
                    for one in rows
                    if one["iter"] < iteration and one["dataset"] == row["dataset"] and math.isfinite(one.get(name, 0))
                ]
                if row["iter"] != iteration or name not in row or not earlier:
                    continue
                best, last = max(one.get(name, 0) for one in earlier), max(one["iter"] for one in earlier)
                if not row[name] >= best - limit:
                    message = f"{name} of {row['dataset']} fell to {row[name]:.2f} dB from {best:.2f} dB"
                    return self._heeded(Alert("PSNR collapse", message, iteration, last + 1))
        return None

    def _heeded(self, alert: Alert | None) -> Alert | None:
        """An alert that has consequences; one that only warns goes into the log, once for each kind."""
        if alert is None or self.options.action != "warn":
            return alert
        if alert.kind not in self._warned:
            logger.warning(f"Alert after iteration {alert.iteration:,d}: {alert.message}")
        self._warned.add(alert.kind)
        return None

    def _leap(self, before: list[dict[str, Any]], row: Mapping[str, Any]) -> Alert | None:
        iteration, now = int(row["iter"]), _values(row)
        alike = [_values(one) for one in _trailing(before, lambda one: _values(one).keys() == now.keys())][-_WINDOW:]
        if len(alike) < _HISTORY:  # where a phase begins, other losses are summed up: gradients have another size
            return None
        for name, value in now.items():
            limit = self.options.grad_zscore if name == "grad_norm" else self.options.loss_zscore
            if limit is None or not (name == "grad_norm" or name.startswith("l_")):
                continue
            history = [one[name] for one in alike]
            mean = statistics.fmean(history)
            deviation = max(statistics.pstdev(history), _LEAST_DEVIATION * abs(mean))
            if mean > 0 and value > mean + limit * deviation:
                message = (
                    f"{name} leapt to {value:.4g} from a mean of {mean:.4g} (z-score {(value - mean) / deviation:.1f})"
                )
                return Alert("leap", message, iteration, iteration - self._every)
        return None

    def _lasting(self, rows: list[dict[str, Any]]) -> Alert | None:
        """What is wrong only if it stays so for `patience` lines."""
        for kind, (is_wrong, what) in self._conditions().items():
            found = list(_trailing(rows, lambda row: is_wrong(_values(row))))  # noqa: B023 - used at once
            if len(found) >= self.options.patience:
                message = f"{kind} for {len(found)} log lines: {what(_values(rows[-1]))}"
                return Alert(kind, message, int(rows[-1]["iter"]), int(found[0]["iter"]) - self._every)
        return None

    def _conditions(self) -> dict[str, tuple[Callable[[dict[str, float]], bool], Callable[[dict[str, float]], str]]]:
        limits = self.options
        judged, shift = ("l_d_real", "l_d_fake"), ("shift_r", "shift_g", "shift_b")

        def has_won(now: dict[str, float]) -> bool:
            limit = limits.discriminator_loss
            return limit is not None and now.keys() >= set(judged) and 0 <= sum(now[name] for name in judged) < limit

        def has_shifted(now: dict[str, float]) -> bool:
            limit = limits.colour_shift
            return limit is not None and any(abs(now.get(name, 0)) > limit for name in shift)

        def is_dead(now: dict[str, float]) -> bool:
            limit = limits.prior_spread
            return limit is not None and (now.get("prior_spread", 1) < limit or now.get("grad_norm_prior", 1) == 0)

        def is_apart(now: dict[str, float]) -> bool:
            return limits.prior_cosine is not None and now.get("prior_cosine", 1) < limits.prior_cosine

        def values_of(*names: str) -> Callable[[dict[str, float]], str]:
            return lambda now: ", ".join(f"{name} {now[name]:.3g}" for name in names if name in now)

        return {
            "discriminator win": (has_won, values_of(*judged)),
            "colour shift": (has_shifted, values_of(*shift)),
            "dead prior": (is_dead, values_of("prior_spread", "grad_norm_prior")),
            "prior mismatch": (is_apart, values_of("prior_cosine")),
        }


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in _NOT_LOSSES}


def _trailing(rows: list[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The rows at the end for all of which something holds."""
    first = next((index + 1 for index in reversed(range(len(rows))) if not holds(rows[index])), 0)
    return rows[first:]


# What a state may not hold.


def broken_part(model: Any) -> str | None:
    """What of a model is not finite (weights, averages, moments, sums of losses), or None; waits for the device."""
    for label, net in networks_of(model).items():
        for place, module in net.named_modules():
            own = dict(module.named_parameters(recurse=False))
            # Statistics of a layer count, tables without weights do not: a schedule may hold an infinity.
            for name, tensor in {**own, **(dict(module.named_buffers(recurse=False)) if own else {})}.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    return f"{place}.{name}".lstrip(".") + f" of {label}"
    for index, optimizer in enumerate(model.optimizers):
        for entries in optimizer.state.values():
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                    return f"{name} of optimizer {index + 1}"
    for name, (total, _) in getattr(model, "_sums", {}).items():
        if not math.isfinite(float(total)):
            return name
    return None


def networks_of(model: Any) -> dict[str, nn.Module]:
    """Every network and loss that a model holds, by the name of its attribute; frozen helpers, too."""
    found: dict[str, nn.Module] = {}
    for name, value in vars(model).items():
        if isinstance(value, nn.Module):
            found[name] = model.get_bare_model(value)
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": one for key, one in value.items() if isinstance(one, nn.Module)}
        elif hasattr(value, "__dict__"):
            found |= {f"{name}.{key}": one for key, one in vars(value).items() if isinstance(one, nn.Module)}
    return found


# Rollbacks and their record, alerts.jsonl.


@dataclass(frozen=True)
class Course:
    """How a training goes on after its rollbacks: how many there were, and the factor on its learning rates."""

    rollbacks: int = 0
    lr_factor: float = 1.0


def _record(opt: Mapping[str, Any]) -> Path:
    return Path(opt["path"]["log"]) / "alerts.jsonl"


def course_from(opt: Mapping[str, Any], done: int) -> Course:
    """What holds for a training that goes on after iteration `done`."""
    rows = [row for row in read_records(_record(opt)) if row.get("from", math.inf) <= done]
    return Course(int(rows[-1]["rollbacks"]), float(rows[-1]["lr_factor"])) if rows else Course()


def record_rollback(opt: Mapping[str, Any], alert: Alert, *, done: int) -> Course:
    """Write down that `alert` led back to the state of iteration `done`, 0 for the start; rank 0 alone."""
    before, options = course_from(opt, done), AlertOptions.of(opt["train"].get("alerts"))
    course = Course(before.rollbacks + 1, before.lr_factor * options.lr_factor)
    row = {"iter": alert.iteration, "from": done, "alert": alert.kind, "message": alert.message, **asdict(course)}
    append_record(_record(opt), row)
    return course


def restore_rates(opt: Mapping[str, Any], *, done: int) -> None:
    """Write down that from iteration `done` on the rates are those of the options again; rank 0 alone."""
    course = course_from(opt, done)
    if course.lr_factor != 1:
        row = {"iter": done, "from": done, "alert": "none", "message": "--reset-schedule"}
        append_record(_record(opt), {**row, "rollbacks": course.rollbacks, "lr_factor": 1.0})


def too_soon(opt: Mapping[str, Any], alert: Alert) -> str | None:
    """Why an alert may not lead to another rollback, or None."""
    options = AlertOptions.of(opt["train"].get("alerts"))
    if options.action != "rollback":
        return f"train.alerts.action is {options.action}"
    last = [row for row in read_records(_record(opt)) if row.get("alert") != "none"]
    if last and alert.iteration < int(last[-1]["iter"]) + options.min_interval:
        return f"again within {options.min_interval:,d} iterations of the alert after iteration {last[-1]['iter']:,d}"
    return None


def ended_by(alert: Alert, *, why: str, state: str) -> InputError:
    """The error that ends a run which an alert does not let go on."""
    return InputError(
        f"iteration {alert.iteration}: {alert.message}; the training has diverged ({why}). The last good state is "
        f"{state}: go on from it with --auto_resume and a lower learning rate, train.clip_grad_norm or other data"
    )


@contextlib.contextmanager
def scaled_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> Iterator[None]:
    """While open, every learning rate is `factor` times what schedulers and states know of, which stays as it is."""
    if factor == 1:
        yield
        return
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    kept = [group["lr"] for group in groups]
    for group, rate in zip(groups, kept, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(groups, kept, strict=True):
            group["lr"] = rate


# Where a value that is not finite arose: the iterations since the last good state are computed again, with hooks.


class _BrokenGradient(Exception):  # noqa: N818 - caught where the hook is set
    """A gradient is not finite, and the weights are still those before the step."""


def culprit(model: Any, step: Callable[[int], None], iterations: Iterable[tuple[int, Any]]) -> str | None:
    """The iteration, loss and module in which a gradient first was not finite, or None if none is.

    `iterations` gives (iteration, batch) from a good state on and `step(iteration)` trains on the batch that was fed.
    No step is taken with a broken gradient; its iteration is computed again with hooks on every module.
    """
    handles = [optimizer.register_step_pre_hook(_refuse_broken_gradient) for optimizer in model.optimizers]
    try:
        for iteration, batch in iterations:
            model.feed_data(batch)
            fed = {name: vars(model)[name] for name in ("lq", "gt") if name in vars(model)}
            try:
                step(iteration)
            except _BrokenGradient:
                vars(model).update(fed)
                return f"it began in iteration {iteration:,d}, in {_place(model, lambda: step(iteration))}"  # noqa: B023
    finally:
        for handle in handles:
            handle.remove()
    return None


def _refuse_broken_gradient(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not all(weight.grad.isfinite().all() for weight in weights if weight.grad is not None):
        raise _BrokenGradient


def _place(model: Any, step: Callable[[], None]) -> str:
    """The module whose output, or else whose gradient, is not finite in a step, and the losses that are not."""
    networks = networks_of(model)
    names = {
        module: f"{label}.{name}" if name else label
        for label, net in networks.items()
        for name, module in net.named_modules()
    }
    calls: list[nn.Module] = []
    broken: list[str] = []

    def look(module: nn.Module, given: Any, made: Any) -> None:
        calls.append(module)
        if not broken and not _finite(made):
            whole = names[module].rpartition(".")[0] or names[module]
            broken.append(names[module] if _finite(given) else f"{whole} (before its part {names[module]})")

    losses: dict[str, Tensor] = {}
    compute = getattr(model, "compute_losses", None)

    def noted(iteration: int) -> Any:
        assert compute is not None
        optimised, watched = compute(iteration)
        losses.update(optimised)
        return optimised, watched

    parts: list[Any] = list(names)
    plain = [(part, part.fast_training) for part in parts if hasattr(part, "fast_training")]
    handles = [module.register_forward_hook(look) for module in names]
    for part, _ in plain:  # the fast form computes several modules in one
        part.fast_training = False
    if compute is not None:
        model.compute_losses = noted
    try:
        with contextlib.suppress(_BrokenGradient):
            step()
    finally:
        for part, fast in plain:
            part.fast_training = fast
        for handle in handles:
            handle.remove()
        vars(model).pop("compute_losses", None)
    bad = [name for name, loss in losses.items() if not _finite(loss)]
    in_loss = f" (loss: {', '.join(bad)})" if bad else ""
    if broken:
        return f"the output of {broken[0]}{in_loss}"
    hit = [
        names[module] for module in calls if any(_broken_grad(weight) for weight in module.parameters(recurse=False))
    ]
    return f"the gradient of {hit[-1] if hit else 'a weight'}{in_loss}"


def _broken_grad(weight: nn.Parameter) -> bool:
    return weight.grad is not None and not bool(weight.grad.isfinite().all())


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(_finite(one) for one in value.values())
    return all(_finite(one) for one in value) if isinstance(value, list | tuple) else True
