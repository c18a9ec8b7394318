"""`basicsr train`: one loop for every BasicSR model, by iterations, that can be stopped and resumed at any point."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.utils import AvgTimer, set_random_seed
from basicsr.utils.options import dict2str
from torch.utils.data import DataLoader

from diffir_sr.data.draws import DrawSampler, GrowingBatchSampler
from diffir_sr.data.records import append_record, forget_after, unwritable
from diffir_sr.errors import InputError
from diffir_sr.failures import out_of_memory
from diffir_sr.files.atomic import sweep
from diffir_sr.files.processes import hold
from diffir_sr.models.distributed import agreed, control_group, gathered, lost_a_rank
from diffir_sr.models.saving import CardFiles
from diffir_sr.options import LoadedOptions
from diffir_sr.options.schema import AlertOptions
from diffir_sr.training.monitoring import (
    Alarmed,
    Alert,
    Course,
    Curves,
    ProgressLine,
    Watch,
    broken_part,
    course_from,
    culprit,
    ended_by,
    open_curves,
    record_rollback,
    restore_rates,
    scaled_rates,
    too_soon,
)
from diffir_sr.training.report import check_report_possible, report_at_the_end
from diffir_sr.training.run import (
    RunArguments,
    check_data,
    check_weights,
    complete_options,
    evaluation_loaders,
    start_log,
    training_loader,
)
from diffir_sr.training.states import (
    Resumption,
    changes,
    check_fits,
    find_state,
    is_complete,
    last_good,
    make_up,
    prune,
    remove_after,
    reset_schedule,
    save_options,
    unmeasured,
)

logger = logging.getLogger("basicsr")


class Interrupted(Exception):  # noqa: N818 - a wish of the user, not an error
    """SIGINT or SIGTERM arrived; the state was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def train(loaded: LoadedOptions, arguments: RunArguments) -> None:
    """Train what an option file describes; raises Interrupted after saving when asked to stop."""
    opt = complete_options(loaded.values, arguments, is_train=True)
    check_data(opt)
    reports = opt["rank"] == 0 and opt["logger"].get("report")
    if reports:
        check_report_possible()
    torch.backends.cudnn.benchmark = True
    try:
        with hold(Path(opt["path"]["experiments_root"])) if opt["rank"] == 0 else contextlib.nullcontext():
            _train(opt, loaded)
            if reports:
                report_at_the_end(Path(opt["path"]["log"]))
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise _too_little_memory(error, opt) from error
        if not opt["dist"] or not lost_a_rank(error):
            raise
        why = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(
            f"lost the connection to another rank ({why}); the rank that ended first says why: go on from the last "
            "checkpoint with --auto_resume"
        ) from error
    except OSError as error:
        if not _is_about(error, opt):
            raise
        raise unwritable(error.filename or opt["path"]["log"], error) from error


def _too_little_memory(error: BaseException, opt: dict[str, Any]) -> InputError:
    first = (str(error).splitlines() or [""])[0][:160]
    return InputError(
        f"out of memory in the training {opt['name']}{f' ({first})' if first else ''}; lower "
        "datasets.train.batch_size_per_gpu or gt_size, or keep less at a time with train.accumulation or "
        "train.checkpointing (`diffir plan` foresees what a step takes); then go on from the last checkpoint with "
        "--auto_resume"
    )


def _is_about(error: OSError, opt: dict[str, Any]) -> bool:
    """Whether the system refused to write into the folder of the run: full, read-only, out of quota."""
    inside = not error.filename or str(error.filename).startswith(opt["root_path"])
    return inside and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def _train(opt: dict[str, Any], loaded: LoadedOptions) -> None:
    home = Path(opt["path"]["experiments_root"])
    removed = sweep(home, below=True) if opt["rank"] == 0 else []
    paths = copy.deepcopy(opt["path"])
    resumed = find_state(opt)
    _check_shared(resumed)
    check_weights(opt)
    start_log(opt, verb="train", option_file=Path(loaded.path), new=resumed is None)
    for warning in (*loaded.warnings, *(resumed.warnings if resumed else ())):
        logger.warning(warning)
    for file in removed:
        logger.info(f"Removed {file}, which a killed run left half written")
    logger.info(dict2str(opt))
    done, total = resumed.iteration if resumed else 0, int(opt["train"]["total_iter"])
    evaluations = evaluation_loaders(opt, ("val",))
    if done > total:  # it was shortened, perhaps because the networks are good enough
        past = f"train.total_iter is {total:,d}, and {home.name} is at iteration {done:,d}"
        if is_complete(opt, evaluations, done=done):
            logger.info(f"{past}: nothing to do")
            return
        logger.info(f"{past}: its networks become the final ones")
    if resumed:
        for change in changes(opt, resumed):
            logger.warning(f"Changed option {change}")
        if done == total and is_complete(opt, evaluations, done=done):
            logger.info(f"All {total:,d} iterations of {home.name} are done: nothing to do")
            return
        if opt["reset_schedule"] and opt["rank"] == 0:
            restore_rates(opt, done=done)
    is_new = resumed is None
    while (alert := _attempt(opt, resumed, evaluations, is_new=is_new)) is not None:
        gc.collect()  # the networks that went wrong make room for those that begin again
        resumed, is_new = _go_back(opt, alert, paths), False


def _check_shared(resumed: Resumption | None) -> None:
    """Raise InputError on every rank unless all found the same state."""
    found = gathered((socket.gethostname(), resumed.iteration if resumed else 0))
    other = next((rank for rank, (_, done) in enumerate(found) if done != found[0][1]), None)
    if other is not None:
        (first, done), (host, differing) = found[0], found[other]
        raise InputError(
            f"rank 0 on {first} goes on after iteration {done}, rank {other} on {host} after {differing}: "
            "all nodes need the same folder; start in one that they share"
        )


def _attempt(
    opt: dict[str, Any], resumed: Resumption | None, evaluations: list[DataLoader[Any]], *, is_new: bool
) -> Alert | None:
    """Train from a state to the end; the alert that leads back from there, if one does."""
    done = resumed.iteration if resumed else 0
    course = agreed(course_from(opt, done))
    loader, sampler = training_loader(opt, order=course.rollbacks)
    _describe(opt, loader, sampler)
    if course.lr_factor != 1:
        logger.info(f"Learning rates are {course.lr_factor:g} times those of the schedule, after an alert")
    model = build_model(opt)
    if opt["rank"] == 0:
        for name in ("training.jsonl", "validation.jsonl"):
            forget_after(Path(opt["path"]["log"]) / name, done)
    watch, curves = Watch(opt), open_curves(opt, new=is_new, done=done)
    try:
        if resumed:
            _resume(model, opt, resumed)
            make_up(model, opt, evaluations, curves, done=done)
            _judge_validation(watch, opt, done)
        last = _iterate_watched(model, opt, loader, sampler, evaluations, curves, watch, done=done, course=course)
        prune(opt)  # which a kill after the last state has left out
        logger.info("Saving the final networks as 'latest'")
        _save(model, opt, epoch=-1, iteration=-1, done=last)
        if opt.get("val") and last % opt["val"]["val_freq"]:
            for evaluation in unmeasured(opt, evaluations, last):
                model.validation(evaluation, last, curves, opt["val"].get("save_img", False))
    except Alarmed as alarmed:
        return alarmed.alert
    finally:
        if curves:
            curves.close()
    return None


def _resume(model: Any, opt: dict[str, Any], resumed: Resumption) -> None:
    if opt["reset_schedule"]:
        reset_schedule(model, opt, resumed)
    check_fits(resumed, model, opt)
    model.resume_training(resumed.state)
    logger.info(f"Resuming after iteration {resumed.iteration:,d}")


def _go_back(opt: dict[str, Any], alert: Alert, paths: dict[str, Any]) -> Resumption | None:
    """The last good state, None for the start of the training; raises InputError where the run must end instead.

    First what came after that state is removed, then the rollback is recorded: a run killed between the two comes to
    the same alert again.
    """
    good = agreed(last_good(opt, before=alert.since))
    why = agreed(too_soon(opt, alert))
    if opt["rank"] == 0:
        remove_after(opt, good)
    agreed(None)  # the others look at the folder when it is done
    if why:
        raise ended_by(alert, why=why, state=f"{good}.state" if good else "the start of the training")
    opt["path"].clear()
    opt["path"].update(copy.deepcopy(paths))
    if good:
        opt["auto_resume"] = True
    resumed = find_state(opt)
    done = resumed.iteration if resumed else 0
    set_random_seed(opt["manual_seed"] + opt["rank"])
    where = _traced(opt, resumed, alert) if alert.kind == "not finite" else None
    if where:
        alert = replace(alert, message=f"{alert.message}; {where}")
    if opt["rank"] == 0:
        course = record_rollback(opt, alert, done=done)
        logger.warning(
            f"Alert after iteration {alert.iteration:,d}: {alert.message}. Going back to "
            f"{f'the state of iteration {done:,d}' if done else 'the start'}, with {course.lr_factor:g} times the "
            "learning rates of the schedule and another order of the images"
        )
    agreed(None)
    set_random_seed(opt["manual_seed"] + opt["rank"])
    return resumed


def _traced(opt: dict[str, Any], resumed: Resumption | None, alert: Alert) -> str | None:
    """Where a value that is not finite arose, by computing the iterations since the last good state again."""
    done = resumed.iteration if resumed else 0
    if alert.iteration - done > AlertOptions.of(opt["train"].get("alerts")).replay:
        return None
    logger.info(f"Computing iterations {done + 1:,d} to {alert.iteration:,d} again to find where it began")
    course = agreed(course_from(opt, done))
    loader, sampler = training_loader(opt, order=course.rollbacks)
    model = build_model(opt)
    if resumed:  # optimizers train on the tensors of a state itself, which is needed again
        _resume(model, opt, replace(resumed, state=copy.deepcopy(resumed.state)))

    def batches() -> Iterator[tuple[int, Any]]:
        for iteration, (_, batch) in enumerate(_batches(loader, sampler, opt, done=done), start=done + 1):
            if iteration > alert.iteration:
                return
            model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
            yield iteration, batch

    def step(iteration: int) -> None:
        with scaled_rates(model.optimizers, course.lr_factor):
            model.optimize_parameters(iteration)

    return next((where for where in gathered(culprit(model, step, batches())) if where), None)


def _save(model: Any, opt: dict[str, Any], *, epoch: int, iteration: int, done: int) -> None:
    """Save as the model does; models of BasicSR get a file with a model card, too, as ours write it themselves."""
    model.save(epoch, iteration)
    network = getattr(model, "net_g_ema", None) or getattr(model, "net_g", None)
    if getattr(model, "card_files", None) is None and isinstance(network, torch.nn.Module):
        cards = CardFiles(opt)
        cards.iteration = done
        cards.save(model.get_bare_model(network), iteration, averaged=hasattr(model, "net_g_ema"))


def _iterate_watched(model: Any, opt: dict[str, Any], *parts: Any, done: int, course: Course) -> int:
    """`_iterate`, with the death of a process that loads data as one sentence."""
    try:
        return _iterate(model, opt, *parts, done=done, course=course)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _loader_died(error) from error
    except (ConnectionError, EOFError) as error:  # it died with a batch half handed over; torch's own word comes later
        try:
            time.sleep(1)
        except RuntimeError as later:
            raise _loader_died(later) from later
        raise _loader_died(error) from error


def _loader_died(error: Exception) -> InputError:
    why = str(error).splitlines()[0].strip().rstrip(".") if str(error) else type(error).__name__
    return InputError(
        f"a process that loads data ended ({why}), often for want of memory: lower "
        "datasets.train.num_worker_per_gpu, then go on from the last checkpoint with --auto_resume"
    )


def _describe(opt: dict[str, Any], loader: DataLoader[Any], sampler: DrawSampler | GrowingBatchSampler) -> None:
    total, ranks = opt["train"]["total_iter"], opt["world_size"]
    if isinstance(sampler, GrowingBatchSampler):
        for phase in sampler.curriculum.phases:
            logger.info(
                f"From iteration {phase.first:,d}: batch {phase.batch * sampler.devices * ranks} of "
                f"{phase.gt_size}-pixel patches"
            )
        patches = sampler.curriculum.drawn_before(total + 1) * sampler.devices * ranks
        logger.info(f"{total:,d} iterations, {patches:,d} patches in all")
        return
    batch = (loader.batch_size or 1) * ranks
    logger.info(
        f"{total:,d} iterations with batch {batch}, {len(loader):,d} iterations per epoch, "
        f"{total * batch:,d} patches in all"
    )


def _iterate(
    model: Any,
    opt: dict[str, Any],
    loader: DataLoader[Any],
    sampler: DrawSampler | GrowingBatchSampler,
    evaluations: list[DataLoader[Any]],
    curves: Curves | None,
    watch: Watch,
    *,
    done: int,
    course: Course,
) -> int:
    total, every, save_every = (
        int(opt["train"]["total_iter"]),
        int(opt["logger"]["print_freq"]),
        int(opt["logger"]["save_checkpoint_freq"]),
    )
    show = ProgressLine(opt, done=done)
    data_timer, step_timer = AvgTimer(), AvgTimer()
    started = time.perf_counter()
    with _Stop() as stop:
        for iteration, (epoch, batch) in enumerate(_batches(loader, sampler, opt, done=done), start=done + 1):
            if iteration > total:
                break
            data_timer.record()
            model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
            model.feed_data(batch)
            with scaled_rates(model.optimizers, course.lr_factor):
                model.optimize_parameters(iteration)
            step_timer.record()
            if iteration == done + 1:
                logger.info(f"First iteration done after {time.perf_counter() - started:.1f} s")
                show.start(iteration)
            if iteration % every == 0:
                rates = [rate * course.lr_factor for rate in model.get_current_learning_rate()]
                timing = {"time": step_timer.get_avg_time(), "data_time": data_timer.get_avg_time()}
                row = {"epoch": epoch, "iter": iteration, "lrs": rates, **timing, **model.get_current_log()}
                _log(opt, watch, show, curves, row)
            stopping = stop.agreed(opt)
            if iteration % save_every == 0 or iteration == total or stopping:
                broken = next((part for part in gathered(broken_part(model)) if part), None)
                if stopping and broken:
                    logger.warning(f"Stopped after iteration {iteration:,d}; nothing was saved: {broken} is not finite")
                    raise Interrupted(stopping)
                if broken:
                    raise Alarmed(Alert("not finite", f"{broken} is not finite", iteration, iteration - every))
            if iteration % save_every == 0 or stopping:
                logger.info("Saving networks and training state")
                save_options(opt, iteration)  # first: a state never lies there without them
                _save(model, opt, epoch=epoch, iteration=iteration, done=iteration)
                prune(opt)
            if stopping:
                logger.warning(f"Stopped after iteration {iteration:,d}; go on with --auto_resume")
                raise Interrupted(stopping)
            if opt.get("val") and iteration % opt["val"]["val_freq"] == 0:
                for evaluation in evaluations:
                    model.validation(evaluation, iteration, curves, opt["val"].get("save_img", False))
                _judge_validation(watch, opt, iteration)
            data_timer.start()
            step_timer.start()
    return total


def _batches(
    loader: DataLoader[Any], sampler: DrawSampler | GrowingBatchSampler, opt: dict[str, Any], *, done: int
) -> Iterator[tuple[int, Any]]:
    """(epoch, batch) without end, from the batch after the `done`-th."""
    if isinstance(sampler, GrowingBatchSampler):
        sampler.start_after(done)
        batches = _ahead(loader) if opt["num_gpu"] > 0 else loader
        yield from ((sampler.epoch_of(iteration), batch) for iteration, batch in enumerate(batches, start=done + 1))
        return
    per_epoch = sampler.per_rank // (loader.batch_size or 1)
    epoch, offset = divmod(done, per_epoch)
    on_gpu = opt["num_gpu"] > 0
    while True:
        sampler.start_at(epoch, skip=offset * (loader.batch_size or 1))
        yield from ((epoch, batch) for batch in (_ahead(loader) if on_gpu else loader))
        epoch, offset = epoch + 1, 0


def _ahead(loader: DataLoader[Any]) -> Iterator[Any]:
    """Batches with their copy to the device begun one batch early."""
    device = torch.device("cuda", torch.cuda.current_device())
    stream = torch.cuda.Stream()
    waiting: Any = None
    for batch in loader:
        with torch.cuda.stream(stream):
            moved = {
                key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
                for key, value in batch.items()
            }
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream().wait_stream(stream)
        for value in moved.values():
            if torch.is_tensor(value):  # its memory may not be reused while the step still reads it
                value.record_stream(torch.cuda.current_stream())
        waiting = moved
    if waiting is not None:
        yield waiting


def _log(opt: dict[str, Any], watch: Watch, show: ProgressLine, curves: Curves | None, row: dict[str, Any]) -> None:
    """Judge and record the values since the last line; raises Alarmed on all ranks."""
    alert = watch.logged(row) if opt["rank"] == 0 else None
    if opt["rank"] == 0 and (alert is None or alert.kind != "not finite"):
        append_record(Path(opt["path"]["log"]) / "training.jsonl", row)
    show(row)
    if curves:
        curves.add_row(row)
    alert = agreed(alert)
    if alert:
        raise Alarmed(alert)


def _judge_validation(watch: Watch, opt: dict[str, Any], iteration: int) -> None:
    alert = agreed(watch.validated(iteration) if opt["rank"] == 0 else None)
    if alert:
        raise Alarmed(alert)


class _Stop:
    """Notes SIGINT and SIGTERM instead of dying in the middle of a step; a second one dies at once."""

    def __init__(self) -> None:
        self.number = 0
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._kept[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number:
            sys.exit(128 + number)
        self.number = number

    def agreed(self, opt: dict[str, Any]) -> int:
        """The signal that any rank got, so that all stop after the same iteration; 0 if none."""
        if not opt["dist"]:
            return self.number
        noted = torch.tensor(self.number)  # on the CPU, whatever the model is on: no device is waited for
        torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX, group=control_group())
        return int(noted.item())


# `basicsr test`: restore and measure every dataset of an option file.


def test(loaded: LoadedOptions, arguments: RunArguments) -> None:
    """Write restored images and metrics under results/<name>; ground truth is needed for metrics alone."""
    opt = complete_options(loaded.values, arguments, is_train=False)
    check_data(opt)
    check_weights(opt)
    torch.backends.cudnn.benchmark = True
    start_log(opt, verb="test", option_file=Path(loaded.path), new=True)
    for warning in loaded.warnings:
        logger.warning(warning)
    logger.info(dict2str(opt))
    # Published test files name their datasets val_1, val_2 as well as test_1, test_2.
    loaders = evaluation_loaders(opt, ("test", "val"))
    model = build_model(opt)
    save = (opt.get("val") or {}).get("save_img", True)
    faults = []
    for loader in loaders:
        try:
            model.validation(loader, current_iter=opt["name"], tb_logger=None, save_img=save)
        except InputError as error:  # of this dataset; the others are restored and measured all the same
            faults.append(str(error))
    logger.info(f"Results are in {opt['path']['results_root']}")
    if faults:
        raise InputError("\n".join(faults))
