"""Training states: the newest whole one is found, checked against the model, compared with the options of today."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume
from torch import Tensor

from diffir_sr.checkpoints import read_weights
from diffir_sr.data.records import read_records
from diffir_sr.errors import CheckpointError
from diffir_sr.files.atomic import save_text
from diffir_sr.models.distributed import agreed
from diffir_sr.models.saving import last_measured
from diffir_sr.options.schema import LoggerOptions
from diffir_sr.weights_files import SUFFIX, as_plain_data, check_reachable, read_card_file, read_pickled

logger = logging.getLogger("basicsr")

_NEEDED = {"epoch": int, "iter": int, "optimizers": list, "schedulers": list}
_LIKE_WEIGHTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")  # moments, by their shape
_OTHER = "choose another .state file with path.resume_state"


@dataclass
class Resumption:
    """A state to go on from, with what the log should tell of it."""

    path: Path
    state: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def iteration(self) -> int:
        return int(self.state["iter"])


def find_state(opt: dict[str, Any]) -> Resumption | None:
    """The state that the options ask to go on from, whole and with its networks; None for a new training.

    With `auto_resume` it is the newest whole one, and each damaged one passed over is a warning. Sets the paths of the
    networks in `opt`, as BasicSR does. Raises CheckpointError for a damaged or foreign file, and if all are damaged.
    """
    path = opt["path"]
    files = _newest_first(Path(path["training_states"])) if opt["auto_resume"] else []
    if not opt["auto_resume"] and path.get("resume_state"):
        files = [Path(os.path.expanduser(path["resume_state"]))]
    warnings: list[str] = []
    for file in files:
        try:
            state = read_state(file)
            _check_networks(opt, int(state["iter"]))
        except CheckpointError as error:
            if not opt["auto_resume"]:
                raise
            warnings.append(f"{error}; passed over, the state before it is used")
            continue
        path["resume_state"] = str(file)
        _name_networks(opt, int(state["iter"]))
        return Resumption(file, state, warnings)
    if warnings:
        raise CheckpointError(
            f"{path['training_states']}: none of {len(files)} training states can be used; {warnings[0]}. Move the "
            "folder of the experiment away to train anew"
        )
    return None


def _newest_first(folder: Path) -> list[Path]:
    states = [file for file in folder.glob("*.state") if file.stem.isdigit()]
    return sorted(states, key=lambda file: int(file.stem), reverse=True)


def _check_networks(opt: Mapping[str, Any], iteration: int) -> None:
    """Raise CheckpointError unless the networks saved with a state can be read."""
    ignored = opt["path"].get("ignore_resume_networks") or []
    for name in opt:
        if name.startswith("network_") and name not in ignored:
            file = Path(opt["path"]["models"]) / f"net_{name.removeprefix('network_')}_{iteration}.pth"
            if name == "network_g" or file.is_file():  # a model need not save the others
                read_weights(file, key="params")


def read_state(path: Path) -> dict[str, Any]:
    """A training state with everything that resuming needs, on the CPU; CheckpointError says what is amiss."""
    place = path.resolve()
    if not path.exists():
        raise CheckpointError(f"path.resume_state: no such file: {place}; {_OTHER}")
    check_reachable(path)
    state = read_pickled(path, kind="training state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{place}: not a training state but a {type(state).__name__}; {_OTHER}")
    if not _NEEDED.keys() & state.keys():
        held = ", ".join(str(name) for name in list(state)[:4]) or "nothing"
        raise CheckpointError(
            f"{place}: not a training state, it holds {held}; weights belong to path.pretrain_network_g, and {_OTHER}"
        )
    for name, kind in _NEEDED.items():
        if name not in state:
            raise CheckpointError(f"{place}: the training state lacks {name!r}; {_OTHER}")
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise CheckpointError(
                f"{place}: {name} of the training state is {state[name]!r:.60}, expected {kind.__name__}; {_OTHER}"
            )
    if state["iter"] < 0:
        raise CheckpointError(f"{place}: iter of the training state is {state['iter']}, expected 0 or more; {_OTHER}")
    for index, optimizer in enumerate(state["optimizers"]):
        _check_optimizer(optimizer, f"{place}: optimizer {index + 1}")
    if not all(isinstance(scheduler, dict) for scheduler in state["schedulers"]):
        raise CheckpointError(f"{place}: a scheduler of the training state is damaged; {_OTHER}")
    return state


def _check_optimizer(optimizer: Any, where: str) -> None:
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    moments = optimizer.get("state") if isinstance(optimizer, dict) else None
    whole = isinstance(groups, list) and isinstance(moments, dict)
    if not whole or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups or []
    ):
        raise CheckpointError(f"{where} of the training state is damaged: no param_groups and state; {_OTHER}")
    for index, entries in (moments or {}).items():
        if not isinstance(entries, dict):
            raise CheckpointError(f"{where}: the moments of parameter {index} are damaged; {_OTHER}")
        for name, value in entries.items():
            if not isinstance(value, Tensor | int | float | None):
                raise CheckpointError(f"{where}: {name} of parameter {index} is a {type(value).__name__}; {_OTHER}")
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise CheckpointError(
                    f"{where}: {name} of parameter {index} holds values that are not finite; {_OTHER}"
                )


def check_fits(resumed: Resumption, model: Any, opt: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a state belongs to another stage, optimizer or scheduler than `model` has."""
    place, state = resumed.path.resolve(), resumed.state
    own = f"{opt['model_type']} of these options"
    for kind, mine in (("optimizers", model.optimizers), ("schedulers", model.schedulers)):
        if len(state[kind]) != len(mine):
            raise CheckpointError(
                f"{place}: a training state with {len(state[kind])} {kind}, and {own} needs {len(mine)}: it was "
                f"written by another stage; {_OTHER}"
            )
    for saved, optimizer in zip(state["optimizers"], model.optimizers, strict=True):
        _check_same_optimizer(saved, optimizer, f"{place}: the optimizer ({type(optimizer).__name__}) of {own}")
    for saved, scheduler in zip(state["schedulers"], model.schedulers, strict=True):
        differing = saved.keys() ^ scheduler.state_dict().keys()
        if differing:
            raise CheckpointError(
                f"{place}: was written with another scheduler than the {type(scheduler).__name__} of train.scheduler "
                f"(they differ in {', '.join(sorted(map(str, differing))[:4])}); restore the option; or {_OTHER}"
            )


def _check_same_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer, where: str) -> None:
    groups, own = saved["param_groups"], optimizer.state_dict()["param_groups"]
    sizes, own_sizes = ([len(group["params"]) for group in side] for side in (groups, own))
    if sizes != own_sizes:
        raise CheckpointError(
            f"{where} trains groups of {own_sizes} tensors, and the training state holds groups of {sizes}: it was "
            f"written by another stage or network; {_OTHER}"
        )
    differing = {name for mine, theirs in zip(own, groups, strict=True) for name in mine.keys() ^ theirs.keys()}
    differing -= {"initial_lr", "decoupled_weight_decay"}  # come and go with schedulers and versions of torch
    if differing:
        raise CheckpointError(
            f"{where} is another kind than the training state was written with (they differ in "
            f"{', '.join(sorted(differing)[:4])}); restore the option; or {_OTHER}"
        )
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    indices = [index for group in groups for index in group["params"]]
    known: set[str] = set()
    for index, weight in zip(indices, weights, strict=True):
        entries = saved["state"].get(index, {})
        known |= entries.keys()
        for name, value in entries.items():
            same = name in _LIKE_WEIGHTS or (isinstance(value, Tensor) and value.ndim == weight.ndim)
            if same and isinstance(value, Tensor) and value.shape != weight.shape:
                raise CheckpointError(
                    f"{where}: {name} of parameter {index} has the shape {tuple(value.shape)} in the state and its "
                    f"weights {tuple(weight.shape)}: another stage or network wrote it, or it is damaged; {_OTHER}"
                )
    for index in indices:
        absent = known - saved["state"].get(index, dict.fromkeys(known)).keys()
        if absent:
            raise CheckpointError(f"{where}: parameter {index} lacks {', '.join(sorted(absent))}; {_OTHER}")


# Which states stay.

_OF_A_STATE = re.compile(r"(\d+)(\.state|_options\.json|_(?:sums|scale)_\d+\.json|_pool_\d+\.pt)")
_OF_A_NETWORK = re.compile(r".+_(\d+)(\.pth|\.safetensors)")


def prune(opt: Mapping[str, Any]) -> None:
    """Remove the training states that `logger.keep_states` and `keep_states_every` do not keep; networks stay."""
    if opt["rank"] != 0:
        return
    options, folder = LoggerOptions.of(opt["logger"]), Path(opt["path"]["training_states"])
    found = [int(file.stem) for file in _newest_first(folder)]
    if options.keep_states is None or not found:
        return
    kept = set(found[: options.keep_states])
    kept |= {number for number in found if options.keep_states_every and number % options.keep_states_every == 0}
    for file, number in _numbered(folder, _OF_A_STATE):  # also what belongs to a state that a kill removed half
        if number < found[0] and number not in kept:
            file.unlink(missing_ok=True)


def last_good(opt: Mapping[str, Any], *, before: int) -> int:
    """The iteration of the newest state before one in which an alert began; failing that the oldest, or 0 for none."""
    found = [int(file.stem) for file in _newest_first(Path(opt["path"]["training_states"]))]
    return next((number for number in found if number < before), found[-1] if found else 0)


def remove_after(opt: Mapping[str, Any], iteration: int) -> None:
    """Remove the states and networks of later iterations, the newest first."""
    path = opt["path"]
    files = _numbered(Path(path["training_states"]), _OF_A_STATE) + _numbered(Path(path["models"]), _OF_A_NETWORK)
    for file, number in sorted(files, key=lambda one: (-one[1], one[0].suffix != ".state")):
        if number > iteration:
            file.unlink(missing_ok=True)
            logger.info(f"Removed {file.name}, which came after the last good state")


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, int]]:
    matches = [(file, pattern.fullmatch(file.name)) for file in sorted(folder.glob("*"))]
    return [(file, int(match[1])) for file, match in matches if match]


def reset_schedule(model: Any, opt: Mapping[str, Any], resumed: Resumption) -> None:
    """Put the optimizers' settings and the schedules of the options into a state, as they are at its iteration.

    What optimizers have learnt (moments, numbers of steps) stays.
    """
    for iteration in range(1, resumed.iteration + 1):
        model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
    resumed.state["schedulers"] = [scheduler.state_dict() for scheduler in model.schedulers]
    for saved, optimizer in zip(resumed.state["optimizers"], model.optimizers, strict=False):
        for group, own in zip(saved["param_groups"], optimizer.state_dict()["param_groups"], strict=False):
            group.update({name: value for name, value in own.items() if name != "params"})
    logger.info(f"The learning rates and their schedule are those of the options at iteration {resumed.iteration:,d}")


# The options beside a state, to tell what was changed since.

_LEFT_OUT = ("path", "rank", "auto_resume", "reset_schedule", "root_path", "name", "is_train", "dist")


def _options_file(state: Path) -> Path:
    return state.with_name(f"{state.stem}_options.json")


def save_options(opt: Mapping[str, Any], iteration: int) -> None:
    """Write the options of a run beside the training state of an iteration; rank 0 alone."""
    if opt["rank"] == 0:
        kept = {key: value for key, value in as_plain_data(dict(opt)).items() if key not in _LEFT_OUT}
        text = json.dumps(kept, indent=1) + "\n"
        target = _options_file(Path(opt["path"]["training_states"]) / f"{iteration}.state")
        save_text(text, target)


def changes(opt: Mapping[str, Any], resumed: Resumption) -> list[str]:
    """One line per option that differs from those the state was written with: both values, and which counts."""
    file = _options_file(resumed.path)
    try:
        before = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(before, dict):
        return []
    now = {key: value for key, value in as_plain_data(dict(opt)).items() if key not in _LEFT_OUT}
    then, today = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name}: {then.get(name, 'not given')} when the state was written, {today.get(name, 'not given')} now; "
        f"{_effect(name, reset=opt['reset_schedule'])}"
        for name in sorted(then.keys() | today.keys())
        if then.get(name, _flat) != today.get(name, _flat)
    ]


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _effect(name: str, *, reset: bool) -> str:
    if not reset and name.startswith("train.optim_"):
        return "without effect, the optimizer goes on with the values in the state (--reset-schedule takes these)"
    if not reset and name.startswith("train.scheduler"):
        return "without effect, the scheduler goes on with the values in the state (--reset-schedule takes these)"
    if name.startswith("datasets.train") or name in ("manual_seed", "world_size"):
        return "takes effect from here on; the order of the images differs from that of an unbroken run"
    return "takes effect from here on"


def _name_networks(opt: dict[str, Any], iteration: int) -> None:
    """Set the paths of the networks saved with a state, as BasicSR does; other networks keep path and entry.

    BasicSR turns every `param_key*` from params_ema into params, which would replace the averaged weights of a frozen
    helper in the middle of a training.
    """
    path = opt["path"]
    ignored = [name.removeprefix("network_") for name in path.get("ignore_resume_networks") or []]
    kept = {key: path[key] for key in (f"param_key_{name}" for name in ignored) if key in path}
    check_resume(opt, iteration)
    path |= kept


# What an interrupted run still owed when it ended: validations, model cards, the final networks.


def unmeasured(opt: dict[str, Any], evaluations: list[Any], iteration: int) -> list[Any]:
    """The loaders of those datasets for which validation.jsonl has no line of this iteration."""
    rows = read_records(Path(opt["path"]["log"]) / "validation.jsonl")
    known = {row.get("dataset") for row in rows if row.get("iter") == iteration}
    owed = agreed([loader.dataset.opt["name"] not in known for loader in evaluations])
    return [loader for loader, is_owed in zip(evaluations, owed, strict=True) if is_owed]


def make_up(model: Any, opt: dict[str, Any], evaluations: list[Any], writer: Any, *, done: int) -> None:
    """Validate what was due after the last saved iteration and is not recorded, and bring its model card up to date."""
    if not opt.get("val") or not done or done % opt["val"]["val_freq"]:
        return
    for loader in unmeasured(opt, evaluations, done):
        logger.info(f"Making up for the validation of {loader.dataset.opt['name']} after iteration {done:,d}")
        model.validation(loader, done, writer, opt["val"].get("save_img", False))
    if hasattr(model, "card_files"):
        model.card_files.refresh(model.evaluated_net)


def is_complete(opt: dict[str, Any], evaluations: list[Any], *, done: int) -> bool:
    """Whether a training at its last iteration has left nothing undone: final networks, validation, model card."""
    return agreed(_has_latest(opt, done) and _card_is_current(opt, done)) and not (
        opt.get("val") and unmeasured(opt, evaluations, done)
    )


def _has_latest(opt: dict[str, Any], done: int) -> bool:
    """Whether the networks of the last iteration were also saved as 'latest', after its training state was."""
    models = Path(opt["path"]["models"])
    state = Path(opt["path"]["training_states"]) / f"{done}.state"
    saved = [file for file in models.glob(f"*_{done}.*") if file.suffix in (".pth", ".safetensors")]
    latest = [file.with_name(file.name.replace(f"_{done}.", "_latest.")) for file in saved]
    begun = state.stat().st_mtime_ns if state.is_file() else 0
    return bool(latest) and all(file.is_file() and file.stat().st_mtime_ns >= begun for file in latest)


def _card_is_current(opt: dict[str, Any], done: int) -> bool:
    file = Path(opt["path"]["models"]) / f"net_g_{done}{SUFFIX}"
    if not opt.get("val") or done % opt["val"]["val_freq"] or not file.is_file():
        return True
    measured = last_measured(Path(opt["path"]["log"]) / "validation.jsonl")
    return read_card_file(file)[1].get("metrics") == measured
