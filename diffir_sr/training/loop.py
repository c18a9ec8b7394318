"""`basicsr train`: one loop for every BasicSR model, by iterations, that can be stopped and resumed at any point."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.train import init_tb_loggers
from basicsr.utils import AvgTimer, MessageLogger, mkdir_and_rename
from basicsr.utils.options import dict2str
from torch.utils.data import DataLoader

from diffir_sr.data.records import append_record, forget_after, unwritable
from diffir_sr.devices import default_device
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import sweep
from diffir_sr.files.processes import hold
from diffir_sr.models.saving import CardFiles
from diffir_sr.options import LoadedOptions
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
from diffir_sr.training.sampler import DrawSampler, GrowingBatchSampler
from diffir_sr.training.states import (
    changes,
    check_fits,
    find_state,
    is_complete,
    make_up,
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
    except OSError as error:
        if not _is_about(error, opt):
            raise
        raise unwritable(error.filename or opt["path"]["log"], error) from error


def _is_about(error: OSError, opt: dict[str, Any]) -> bool:
    """Whether the system refused to write into the folder of the run: full, read-only, out of quota."""
    inside = not error.filename or str(error.filename).startswith(opt["root_path"])
    return inside and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def _train(opt: dict[str, Any], loaded: LoadedOptions) -> None:
    home = Path(opt["path"]["experiments_root"])
    removed = sweep(home, below=True) if opt["rank"] == 0 else []
    resumed = find_state(opt)
    check_weights(opt)
    start_log(opt, verb="train", option_file=Path(loaded.path), new=resumed is None)
    for warning in (*loaded.warnings, *(resumed.warnings if resumed else ())):
        logger.warning(warning)
    for file in removed:
        logger.info(f"Removed {file}, which a killed run left half written")
    logger.info(dict2str(opt))
    done, total = resumed.iteration if resumed else 0, int(opt["train"]["total_iter"])
    if done > total:
        logger.info(f"train.total_iter is {total:,d}, and {home.name} is at iteration {done:,d}: nothing to do")
        return
    evaluations = evaluation_loaders(opt, ("val",))
    if resumed:
        for change in changes(opt, resumed):
            logger.warning(f"Changed option {change}")
        if done == total and is_complete(opt, evaluations, done=done):
            logger.info(f"All {total:,d} iterations of {home.name} are done: nothing to do")
            return
    writer = _tensorboard(opt, new=resumed is None)
    loader, sampler = training_loader(opt)
    _describe(opt, loader, sampler)
    model = build_model(opt)
    if resumed:
        check_fits(resumed, model, opt)
        model.resume_training(resumed.state)
        logger.info(f"Resuming after iteration {done:,d}")
        if opt["rank"] == 0:
            for name in ("training.jsonl", "validation.jsonl"):
                forget_after(Path(opt["path"]["log"]) / name, done)
        make_up(model, opt, evaluations, writer, done=done)
    last = _iterate_watched(model, opt, loader, sampler, evaluations, writer, done=done)
    logger.info("Saving the final networks as 'latest'")
    _save(model, opt, epoch=-1, iteration=-1, done=last)
    if opt.get("val") and last % opt["val"]["val_freq"]:
        for evaluation in unmeasured(opt, evaluations, last):
            model.validation(evaluation, last, writer, opt["val"].get("save_img", False))
    if writer:
        writer.close()


def _save(model: Any, opt: dict[str, Any], *, epoch: int, iteration: int, done: int) -> None:
    """Save as the model does; models of BasicSR get a file with a model card, too, as ours write it themselves."""
    model.save(epoch, iteration)
    network = getattr(model, "net_g_ema", None) or getattr(model, "net_g", None)
    if getattr(model, "card_files", None) is None and isinstance(network, torch.nn.Module):
        cards = CardFiles(opt)
        cards.iteration = done
        cards.save(model.get_bare_model(network), iteration, averaged=hasattr(model, "net_g_ema"))


def _iterate_watched(model: Any, opt: dict[str, Any], *parts: Any, done: int) -> int:
    """`_iterate`, with the death of a process that loads data as one sentence."""
    try:
        return _iterate(model, opt, *parts, done=done)
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


def _tensorboard(opt: dict[str, Any], *, new: bool) -> Any:
    opt["logger"].setdefault("use_tb_logger", False)
    if opt["rank"] != 0:
        return None
    if new and opt["logger"]["use_tb_logger"] and "debug" not in opt["name"]:
        mkdir_and_rename(os.path.join(opt["root_path"], "tb_logger", opt["name"]))
    return init_tb_loggers(opt)


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
    writer: Any,
    *,
    done: int,
) -> int:
    total, every, save_every = (
        int(opt["train"]["total_iter"]),
        int(opt["logger"]["print_freq"]),
        int(opt["logger"]["save_checkpoint_freq"]),
    )
    report = MessageLogger(opt, done, writer)
    data_timer, step_timer = AvgTimer(), AvgTimer()
    started = time.perf_counter()
    with _Stop() as stop:
        for iteration, (epoch, batch) in enumerate(_batches(loader, sampler, opt, done=done), start=done + 1):
            if iteration > total:
                break
            data_timer.record()
            model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            step_timer.record()
            if iteration == done + 1:
                logger.info(f"First iteration done after {time.perf_counter() - started:.1f} s")
                report.reset_start_time()
            if iteration % every == 0:
                _log(model, opt, report, epoch, iteration, step_timer, data_timer)
            stopping = stop.agreed(opt)
            if iteration % save_every == 0 or stopping:
                logger.info("Saving networks and training state")
                save_options(opt, iteration)  # first: a state never lies there without them
                _save(model, opt, epoch=epoch, iteration=iteration, done=iteration)
            if stopping:
                logger.warning(f"Stopped after iteration {iteration:,d}; go on with --auto_resume")
                raise Interrupted(stopping)
            if opt.get("val") and iteration % opt["val"]["val_freq"] == 0:
                for evaluation in evaluations:
                    model.validation(evaluation, iteration, writer, opt["val"].get("save_img", False))
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


def _log(
    model: Any,
    opt: dict[str, Any],
    report: MessageLogger,
    epoch: int,
    iteration: int,
    step_timer: AvgTimer,
    data_timer: AvgTimer,
) -> None:
    values = {
        "epoch": epoch,
        "iter": iteration,
        "lrs": model.get_current_learning_rate(),
        "time": step_timer.get_avg_time(),
        "data_time": data_timer.get_avg_time(),
        **model.get_current_log(),
    }
    if opt["rank"] == 0:
        append_record(Path(opt["path"]["log"]) / "training.jsonl", values)
    report(values)


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
        device = default_device() if opt["num_gpu"] else "cpu"
        noted = torch.tensor(self.number, device=device)
        torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
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
