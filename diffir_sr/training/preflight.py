"""A training as it will be, before it starts: options, data, weights that an earlier stage has yet to write, disk."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from torch import Tensor, nn

from diffir_sr.compat import forget_log
from diffir_sr.errors import InputError
from diffir_sr.options import load_options
from diffir_sr.training.run import RunArguments, check_data, check_weights, complete_options

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
