"""From checked options to a run: distributed start, seeds, folders, log, loaders; and checks before it starts."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import basicsr
import cv2
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataloader, build_dataset, worker_init_fn
from basicsr.models import build_model
from basicsr.utils import get_root_logger, get_time_str, make_exp_dirs, set_random_seed
from basicsr.utils.dist_util import get_dist_info, init_dist
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffir_sr.compat import forget_log
from diffir_sr.data.checks import check_dataset_options
from diffir_sr.data.draws import DrawSampler, GrowingBatchSampler
from diffir_sr.data.transport import SharedBatches
from diffir_sr.devices import accelerator_count
from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import save_text
from diffir_sr.metrics import check_metrics
from diffir_sr.models.distributed import lost_a_rank
from diffir_sr.options import load_options
from diffir_sr.version import __version__
from diffir_sr.weights_files import as_plain_data

logger = logging.getLogger("basicsr")


# What each launcher tells a process by its environment.
_LAUNCHERS = {
    "pytorch": (
        ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        "run: torchrun --nproc_per_node=N -m diffir_sr basicsr train -opt FILE --launcher pytorch",
    ),
    "slurm": (
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"),
        "run it with srun, or take --launcher pytorch (torchrun) or none",
    ),
}
_COUNTS = ("RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS")


@dataclass(frozen=True)
class RunArguments:
    """What the command line adds to an option file."""

    launcher: str = "none"
    auto_resume: bool = False
    debug: bool = False
    reset_schedule: bool = False
    root: Path = Path()


def complete_options(opt: dict[str, Any], arguments: RunArguments, *, is_train: bool) -> dict[str, Any]:
    """`opt` with everything BasicSR's classes expect beside it: ranks, seed, phases, absolute run folders.

    Starts torch.distributed when a launcher is named.
    """
    opt["dist"] = arguments.launcher != "none"
    if opt["dist"]:
        _start_distributed(arguments.launcher, opt.get("dist_params") or {})
    opt["rank"], opt["world_size"] = get_dist_info()
    if opt.get("manual_seed") is None:
        if opt["dist"]:
            raise OptionError("manual_seed: several processes need one given seed, found none")
        opt["manual_seed"] = random.randint(1, 10000)
    set_random_seed(opt["manual_seed"] + opt["rank"])
    opt["auto_resume"], opt["is_train"] = arguments.auto_resume, is_train
    opt["reset_schedule"] = arguments.reset_schedule
    if opt.get("num_gpu", "auto") == "auto":
        opt["num_gpu"] = accelerator_count()
    elif opt["num_gpu"] > accelerator_count():
        raise OptionError(
            f"num_gpu: {opt['num_gpu']} asked for, this machine has {accelerator_count()} accelerators; use auto or 0"
        )
    if arguments.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        dataset.setdefault("name", phase)
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
        dataset.setdefault("seed", opt["manual_seed"])
        for key in ("dataroot_gt", "dataroot_lq", "dataroot_mask"):
            if dataset.get(key):
                dataset[key] = _expanded(dataset[key])
    _name_folders(opt, arguments.root.resolve(), is_train=is_train)
    if is_train and arguments.debug:
        opt["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 8}
        if opt.get("val"):
            opt["val"]["val_freq"] = 8
    return opt


def _expanded(root: Any) -> Any:
    if isinstance(root, list):
        return [_expanded(one) for one in root]
    return os.path.expanduser(root) if isinstance(root, str) else root


def _start_distributed(launcher: str, parameters: dict[str, Any]) -> None:
    needed, remedy = _LAUNCHERS[launcher]
    absent = [name for name in needed if not os.environ.get(name)]
    if absent:
        raise OptionError(
            f"--launcher {launcher}: this process was not started by {'Slurm' if launcher == 'slurm' else 'torchrun'} "
            f"(no {', '.join(absent)} in the environment); {remedy}"
        )
    for name in needed:
        if name in _COUNTS and not os.environ[name].isdigit():
            raise OptionError(f"--launcher {launcher}: {name} in the environment is {os.environ[name]!r}, no number")
    if launcher == "slurm" and not torch.cuda.is_available():
        raise OptionError(
            "--launcher slurm: needs a CUDA device on each node, found none here; without one use torchrun and "
            "--launcher pytorch"
        )
    try:
        init_dist(launcher, **(parameters if launcher == "slurm" else {}))
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        rank, count = (os.environ[name] for name in needed[:2])
        why = str(error).splitlines()[0].strip().rstrip(".")
        raise InputError(
            f"--launcher {launcher}: rank {rank} did not meet all {count} ranks ({why}); check that every node runs "
            "the command, with the same number of nodes and an address that all can reach"
        ) from error
    local = os.environ.get("LOCAL_RANK", "")
    if torch.cuda.is_available() and local.isdigit():  # nodes may differ in how many devices they have
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def _name_folders(opt: dict[str, Any], root: Path, *, is_train: bool) -> None:
    opt["root_path"] = str(root)
    path = opt.setdefault("path", {})
    home = root / ("experiments" if is_train else "results") / opt["name"]
    path["experiments_root" if is_train else "results_root"] = str(home)
    path["log"] = str(home)
    path["visualization"] = str(home / "visualization")
    if is_train:
        path["models"] = str(home / "models")
        path["training_states"] = str(home / "training_states")


def check_data(opt: dict[str, Any]) -> None:
    """Raise InputError for data that cannot be trained or tested on, before anything is written or built."""
    for phase, dataset in opt["datasets"].items():
        try:
            check_dataset_options(dataset)
        except InputError as error:
            raise InputError(f"datasets.{phase}: {error}") from error


def check_weights(opt: dict[str, Any]) -> None:
    """Raise CheckpointError for weights that do not fit, likewise, and for those that metrics lack.

    Models that cannot tell find out when loading.
    """
    check = getattr(MODEL_REGISTRY.get(opt["model_type"]), "check_weights", None)
    if check is not None:
        check(opt)
    check_metrics((opt.get("val") or {}).get("metrics") or {})


def start_log(opt: dict[str, Any], *, verb: str, option_file: Path, new: bool) -> None:
    """Make the run's folders (an older run of the same name is renamed, never deleted), log file and option copy."""
    if new:
        # An older run of this name is renamed by the second, and one renamed in this same second would be in the way.
        while opt["rank"] == 0 and Path(f"{opt['path']['log']}_archived_{get_time_str()}").exists():
            time.sleep(0.05)
        make_exp_dirs(opt)
    if opt["dist"]:
        torch.distributed.barrier()
    forget_log()
    log_file = Path(opt["path"]["log"]) / f"{verb}_{opt['name']}_{get_time_str()}.log"
    get_root_logger(log_level=logging.INFO, log_file=str(log_file))
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_say_unwritable, handler)  # pyright: ignore[reportAttributeAccessIssue]
    if opt["rank"] == 0:
        _copy_options(opt, option_file, Path(opt["path"]["log"]))
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    logger.info(
        f"diffir_sr {__version__}, basicsr {basicsr.__version__} ({Path(basicsr.__file__).parent}), "
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"devices: {', '.join(devices) or 'CPU'}, {_threads()}, ranks: {opt['world_size']}"
    )


def _threads() -> str:
    """How many threads compute and how they wait for each other; neither follows what else the machine does."""
    waiting = os.environ.get("OMP_WAIT_POLICY", "as the OpenMP runtime lets them")
    return f"threads: {torch.get_num_threads()} (waiting: {waiting})"


def _say_unwritable(handler: logging.FileHandler, _: logging.LogRecord) -> None:
    """One sentence on the terminal in place of a traceback for each line that the log cannot take."""
    error = sys.exc_info()[1]
    if not getattr(handler, "is_unwritable", False):
        why = getattr(error, "strerror", None) or error
        sys.stderr.write(f"cannot write the log {handler.baseFilename}: {why}; its lines go to the terminal alone\n")
    handler.is_unwritable = True  # pyright: ignore[reportAttributeAccessIssue] - kept with what it is about


def _copy_options(opt: dict[str, Any], option_file: Path, folder: Path) -> None:
    """Keep the file as it was written, and beside it what it meant in the end."""
    save_text(option_file.read_text(encoding="utf-8"), folder / option_file.name)
    used = yaml.safe_dump(as_plain_data(opt), sort_keys=False, allow_unicode=True)
    save_text(used, folder / "options_used.yml")


def start_worker(number: int, *, then: Callable[[int], Any] | None = None) -> None:
    """Give a process that loads data one thread: workers are there to share the cores, and threads would fight."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if then is not None:
        then(number)


def training_loader(
    opt: dict[str, Any], *, order: int = 0
) -> tuple[DataLoader[Any], DrawSampler | GrowingBatchSampler]:
    """The loader of `datasets.train` and the sampler inside it; each `order` shuffles the images in another way."""
    section = opt["datasets"]["train"]
    dataset = build_dataset(section)
    if getattr(MODEL_REGISTRY.get(opt["model_type"]), "takes_bytes", False) and hasattr(dataset, "give_bytes"):
        dataset.give_bytes()
    sampler = DrawSampler(
        dataset,
        ratio=section.get("dataset_enlarge_ratio", 1),
        rank=opt["rank"],
        world_size=opt["world_size"],
        seed=opt["manual_seed"] + 2**32 * order,
    )
    if getattr(dataset, "curriculum", None) is not None:
        return _growing_loader(dataset, sampler, opt)
    loader = build_dataloader(
        dataset, section, num_gpu=opt["num_gpu"], dist=opt["dist"], sampler=sampler, seed=opt["manual_seed"]
    )
    loader.worker_init_fn = partial(start_worker, then=loader.worker_init_fn)
    loader.collate_fn = SharedBatches()
    if len(loader) == 0:
        raise InputError(
            f"datasets.train: {len(dataset)} images x dataset_enlarge_ratio {section.get('dataset_enlarge_ratio', 1)} "
            f"are fewer than one batch of {loader.batch_size}; raise dataset_enlarge_ratio or lower batch_size_per_gpu"
        )
    return loader, sampler


def _growing_loader(
    dataset: Any, draws: DrawSampler, opt: dict[str, Any]
) -> tuple[DataLoader[Any], GrowingBatchSampler]:
    """The loader of a progressive training; BasicSR's cannot take batches of changing size."""
    section = opt["datasets"]["train"]
    devices = 1 if opt["dist"] else max(1, opt["num_gpu"])
    sampler = GrowingBatchSampler(draws, dataset.curriculum, devices=devices)
    workers = int(section.get("num_worker_per_gpu") or 0) * devices
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        worker_init_fn=partial(
            start_worker,
            then=partial(worker_init_fn, num_workers=workers, rank=opt["rank"], seed=opt["manual_seed"]),
        ),
        collate_fn=SharedBatches(),
        pin_memory=bool(section.get("pin_memory")),
    )
    return loader, sampler


def evaluation_loaders(opt: dict[str, Any], phases: tuple[str, ...]) -> list[DataLoader[Any]]:
    """One loader per dataset whose section name starts with one of `phases`, in the file's order."""
    loaders = []
    for section in opt["datasets"].values():
        if section["phase"] in phases:
            dataset = build_dataset(section)
            logger.info(f"{section['name']}: {len(dataset)} images")
            loaders.append(build_dataloader(dataset, section, num_gpu=opt["num_gpu"], dist=opt["dist"]))
    return loaders


WEIGHTS = "pretrain_network_"  # how keys of `path` begin that name weights


def prospective_options(
    file: Path, overrides: Iterable[str] = (), *, is_train: bool = True, coming: Collection[str] = ()
) -> dict[str, Any]:
    """The options that a run would have, with files and data checked; `coming` as for `load_options`."""
    loaded = load_options(file, is_train, overrides, coming=coming)
    opt = complete_options(copy.deepcopy(loaded.values), RunArguments(root=Path.cwd()), is_train=is_train)
    check_data(opt)
    return opt


def write_stand_in(section: Mapping[str, Any], file: Path) -> None:
    """Write fresh weights of the network that an option section describes, as a training writes them."""
    with torch.random.fork_rng(), quiet():
        tensors = build_network(copy.deepcopy(dict(section))).state_dict()
    torch.save({"params": tensors, "params_ema": tensors}, file)


def check_model(opt: dict[str, Any]) -> Any:
    """Build the model that a run would have, with all of its networks, losses and optimizers; gives it."""
    with torch.random.fork_rng(), quiet():
        check_weights(opt)
        return build_model(opt)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of BasicSR, whose log belongs to the run that is still to come."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        forget_log()


# Networks and optimizers of a model, and what they take on the disk.


def networks_of(model: Any) -> dict[str, nn.Module]:
    """The networks that a model holds, by the names of their option sections; the moving average is network_g_ema."""
    held = vars(model)
    found = {f"network_{name.removeprefix('net_')}": value for name, value in held.items() if name.startswith("net_")}
    for value in held.values():
        if isinstance(value, dict):  # frozen helpers
            found |= {f"network_{name}": one for name, one in value.items()}
        elif hasattr(value, "net"):  # the GAN part
            found["network_d"] = value.net
    return {name: net for name, net in found.items() if isinstance(net, nn.Module)}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def moments_of(optimizer: torch.optim.Optimizer) -> int:
    """Tensors of a weight's size that an optimizer keeps for each weight: 2 for Adam, 0 for plain SGD."""
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.zeros(3)
    accepted = inspect.signature(type(optimizer)).parameters
    twin = type(optimizer)([weight], **{key: one for key, one in optimizer.defaults.items() if key in accepted})
    twin.step()
    return sum(isinstance(one, Tensor) and one.shape == weight.shape for one in twin.state[weight].values())


def checkpoint_bytes(model: Any) -> dict[str, int]:
    """What one checkpoint of a model takes on the disk: `weights` (its networks) and `state` (its optimizers)."""
    networks, weights = networks_of(model), 0
    for name, net in networks.items():
        if name == "network_g":
            size, copies = bytes_of(net.state_dict().values()), 3 if "network_g_ema" in networks else 2
            weights += copies * size  # params, params_ema and the file with a card
        elif name != "network_g_ema" and any(weight.requires_grad for weight in net.parameters()):
            weights += bytes_of(net.state_dict().values())
    state = 0
    for optimizer in model.optimizers:
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        state += moments_of(optimizer) * bytes_of(trained)
    return {"weights": weights, "state": state}


def disk_bytes(opt: Mapping[str, Any], model: Any) -> int:
    """What a training writes to the disk in all: its checkpoints, the last one twice, as 'latest', too."""
    one, count = checkpoint_bytes(model), checkpoints_of(opt)
    logger = opt["logger"]
    kept = min(count, int(logger.get("keep_states") or count))
    kept += int(opt["train"]["total_iter"]) // every if (every := logger.get("keep_states_every")) else 0
    return (count + 1) * one["weights"] + min(count, kept) * one["state"]


def checkpoints_of(opt: Mapping[str, Any]) -> int:
    """How many checkpoints a training keeps beside 'latest'."""
    return int(opt["train"]["total_iter"]) // int(opt["logger"]["save_checkpoint_freq"])


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder lies or will lie on."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    try:
        return shutil.disk_usage(there).free
    except OSError as error:
        raise InputError(f"{there}: the free space of its disk cannot be found out ({error.strerror})") from error


def expanded(path: str) -> Path:
    """A path of an option file."""
    return Path(os.path.expanduser(path))
