"""`diffir recipe`: stages of training and tests in order, each with the weights of those before it, resumable."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml
from basicsr.utils import get_time_str
from basicsr.utils.registry import MODEL_REGISTRY
from pydantic import Field

from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.families import declaring
from diffir_sr.files.atomic import save_text
from diffir_sr.files.processes import LEADER, hold, is_running
from diffir_sr.option_types import Section
from diffir_sr.options import load_options
from diffir_sr.options.check import Report, fail_on_problems, find
from diffir_sr.options.check import check_model as check_schema
from diffir_sr.options.source import apply_overrides, read_source
from diffir_sr.training.run import (
    WEIGHTS,
    check_model,
    disk_bytes,
    free_bytes,
    prospective_options,
    write_stand_in,
)
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights_files import as_plain_data


class StageEntry(Section):
    """One stage of a recipe file: `train` or `test` names its option file."""

    train: str | None = Field(None, description="Option file of a training, relative to the recipe.")
    test: str | None = Field(None, description="Option file of a test, relative to the recipe.")
    name: str | None = Field(None, min_length=1, description="How messages call the stage; by default its file's name.")
    options: dict[str, Any] = Field({}, description="Options in place of the file's.")
    weights: dict[str, str] = Field(
        {},
        description="Which earlier stage (by name) gives the weights of which network, such as {network_g: S1}, "
        "beside those that the stage's model takes by itself.",
    )


class RecipeFile(Section):
    """What a recipe file says."""

    name: str = Field(min_length=1, description="Name of the recipe; its record is experiments/<name>.recipe.json.")
    options: dict[str, Any] = Field({}, description="Options of every training, in place of those of the files.")
    stages: list[StageEntry] = Field(min_length=1, description="What is run, in order.")


@dataclass(frozen=True)
class Stage:
    """One run of a recipe. `handed` has, for keys of `path`, the stage whose last weights are given."""

    name: str
    verb: str  # train or test
    file: Path
    overrides: tuple[str, ...]
    run: str  # `name` of its options, which is that of its folder
    model_type: str
    handed: dict[str, Stage] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path("experiments" if self.verb == "train" else "results") / self.run

    def weights(self, key: str) -> Path:
        """What this stage writes last of a network that another takes under `key` of its `path`."""
        own = "net_d" if key == f"{WEIGHTS}d" else "net_g"
        return self.folder / "models" / f"{own}_latest.pth"

    def words(self, *, resume: bool = False) -> list[str]:
        """The command of the stage."""
        words = ["basicsr", self.verb, "-opt", str(self.file)]
        words += ["--auto_resume"] if resume else []
        return words + (["--force_yml", *self.overrides] if self.overrides else [])


@dataclass(frozen=True)
class Recipe:
    """A recipe file, read and put together."""

    name: str
    file: Path
    stages: tuple[Stage, ...]

    @property
    def record(self) -> Path:
        return Path("experiments") / f"{self.name}.recipe.json"


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with `overrides` (section:key=value) for all of its trainings; raises OptionError for what is wrong.

    A training takes the weights of the nearest earlier one of the model type that makes them: for DiffIR, S2 those of
    S1 and the GAN phase those of S2. `path.pretrain_network_g: ~` in its options declines.
    """
    source = read_source(path)
    report = Report()
    check_schema(RecipeFile, source.values, (), report)
    fail_on_problems(report, source.places, file=str(path))
    content = RecipeFile.model_validate(source.values)
    stages: list[Stage] = []
    for number, entry in enumerate(content.stages, start=1):
        where = f"{path}: stages[{number - 1}]"
        if (entry.train is None) == (entry.test is None):
            raise OptionError(f"{where}: expected one of train and test, each the name of an option file")
        stages.append(_stage(entry, content, stages, overrides, where=where, folder=path.parent))
    for number, stage in enumerate(stages):
        for earlier in stages[:number]:
            if stage.name == earlier.name or stage.folder == earlier.folder:
                same = f"the name {stage.name!r}" if stage.name == earlier.name else f"the folder {stage.folder}"
                raise OptionError(f"{path}: stages[{number}]: {same} is that of an earlier stage; give it another name")
    return Recipe(content.name, path, tuple(stages))


def _stage(
    entry: StageEntry,
    content: RecipeFile,
    earlier: Sequence[Stage],
    overrides: Sequence[str],
    *,
    where: str,
    folder: Path,
) -> Stage:
    verb = "train" if entry.train is not None else "test"
    file = Path(os.path.normpath(folder / str(entry.train or entry.test)))
    if not file.is_file():
        raise OptionError(f"{where}: no such option file: {file.absolute()}")
    shared = [*_entries(content.options), *overrides] if verb == "train" else []
    own = [*_entries(entry.options), *shared] if verb == "test" else [*shared, *_entries(entry.options)]
    source = read_source(file)
    apply_overrides(source, own)
    path = source.values.get("path") if isinstance(source.values.get("path"), dict) else {}
    model_type, run = str(source.values.get("model_type")), str(source.values.get("name") or file.stem)
    handed = _handed(entry, earlier, verb=verb, model_type=model_type, where=where)
    taken: dict[str, Stage] = {}
    for key, giver in handed.items():
        given = (path or {}).get(key, "")
        if given is None:  # declined
            continue
        taken[key] = giver
        if given != str(giver.weights(key)):
            own.append(f"path:{key}={giver.weights(key)}")
    return Stage(entry.name or file.stem, verb, file, tuple(own), run, model_type, taken)


def _handed(entry: StageEntry, earlier: Sequence[Stage], *, verb: str, model_type: str, where: str) -> dict[str, Stage]:
    """The stage that gives each network's weights, by key of `path`."""
    trainings = [stage for stage in earlier if stage.verb == "train"]
    declared = declaring(find(MODEL_REGISTRY, model_type))
    made_by = {"network_g": model_type} if verb == "test" else (getattr(declared, "MADE_BY", None) or {})
    found: dict[str, Stage] = {}
    for network, maker in made_by.items():
        givers = [stage for stage in trainings if stage.model_type == maker]
        if givers:
            found[f"pretrain_{network}"] = givers[-1]
    for network, name in entry.weights.items():
        givers = [stage for stage in trainings if stage.name == name]
        if not givers:
            known = ", ".join(stage.name for stage in trainings) or "none"
            raise OptionError(f"{where}: weights: no earlier training is called {name!r}; there are: {known}")
        found[f"pretrain_{network}"] = givers[0]
    return found


def _entries(options: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Nested options as --force_yml entries."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _entries(value, f"{above}{name}:")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=2**20, allow_unicode=True)
            yield f"{above}{name}={text.removesuffix('...' + chr(10)).strip()}"


# Before the first stage starts.


def check_recipe(recipe: Recipe) -> None:
    """Check options, files, data, networks and disk of every stage; raises one OptionError that tells all faults.

    Weights that an earlier stage will write are stood in for by fresh ones of its network.
    """
    faults, needed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for stage in recipe.stages:
            try:
                needed += _checked(stage, Path(folder))
            except (OptionError, InputError, CheckpointError) as error:
                faults.append(f"stage {stage.name}: {error}")
    free = free_bytes(Path("experiments"))
    if needed > free:
        faults.append(
            f"the checkpoints of all stages take {needed / 2**30:.1f} GiB, and {Path.cwd()} has {free / 2**30:.1f} GiB "
            "free: free space, or save less often (logger.save_checkpoint_freq)"
        )
    if faults:
        raise OptionError(f"{recipe.file}: nothing was started, since it could not be finished:\n" + "\n".join(faults))


def _checked(stage: Stage, folder: Path) -> int:
    """Check one stage; gives the bytes that it will write of checkpoints that are not there yet."""
    is_train = stage.verb == "train"
    opt = prospective_options(stage.file, stage.overrides, is_train=is_train, coming=stage.handed)
    for key, giver in stage.handed.items():
        file = folder / f"{giver.name.replace(os.sep, '_')}_{key}.pth"
        section = "network_d" if key == f"{WEIGHTS}d" else "network_g"
        if not file.exists():
            made = load_options(giver.file, True, giver.overrides, check_files=False).values
            write_stand_in(made[section], file)
        opt["path"][key] = str(file)
    try:
        model = check_model(opt)
    except CheckpointError as error:
        message = str(error)
        for key, giver in stage.handed.items():
            stands = str((folder / f"{giver.name.replace(os.sep, '_')}_{key}.pth").resolve())
            message = message.replace(stands, f"{giver.weights(key)} (of stage {giver.name})")
        raise CheckpointError(message) from error
    there = sum(file.stat().st_size for file in stage.folder.rglob("*") if file.is_file()) if is_train else 0
    return max(0, disk_bytes(opt, model) - there) if is_train else 0


# The chain.


def run_recipe(recipe: Recipe, *, restart: str | None = None, adopt: bool = False, processes: int = 1) -> int:
    """Run every stage that is not done; gives the exit code of the one that failed, else 0.

    Trainings run in so many `processes` of torchrun, or without it. `restart` names the stage from which all is done
    anew (earlier folders are renamed, not removed); `adopt` goes on with trainings of these names that this recipe did
    not begin. Raises OptionError for an unknown stage and InputError for such trainings without either.
    """
    names = [stage.name for stage in recipe.stages]
    if restart is not None and restart not in names:
        raise OptionError(f"{recipe.file}: --restart: no stage is called {restart!r}; there are: {', '.join(names)}")
    with hold(recipe.record):
        record = _read_record(recipe)
        _end_left_behind(record)
        if restart is not None:
            for stage in recipe.stages[names.index(restart) :]:
                _put_away(stage, record)
            _write_record(recipe, record)
        for number, stage in enumerate(recipe.stages, start=1):
            label = f"[{number}/{len(names)}] {stage.name}"
            code = _run_stage(recipe, stage, record, adopt=adopt, processes=processes, label=label)
            if code:
                sys.stderr.write(
                    f"error: stage {stage.name} of {recipe.file} ended with exit code {code}; what it said stands "
                    f"above{_log_of(stage)}; the same command goes on from there\n"
                )
                return code
    return 0


def is_interrupted(recipe: Recipe) -> bool:
    """Whether the recipe was begun with these very options, and has stages left to do."""
    record = _read_record(recipe)
    begun = [stage for stage in recipe.stages if stage.name in record]
    same = all(record[stage.name].get("options") == _options(stage) for stage in begun)
    return bool(begun) and same and not all(record.get(name, {}).get("done") for name in _names(recipe))


def _names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in recipe.stages]


def _run_stage(recipe: Recipe, stage: Stage, record: dict[str, Any], *, adopt: bool, processes: int, label: str) -> int:
    options, inputs = _options(stage), _inputs(stage)
    known = record.get(stage.name)
    if known is None and stage.verb == "train" and _has_states(stage) and not adopt:
        raise InputError(
            f"{stage.folder}: there is a training of this name that the recipe {recipe.name} did not begin; --adopt "
            f"goes on with it, --restart {shlex.quote(stage.name)} renames it and trains anew"
        )
    if known is not None and stage.verb == "train" and known["inputs"] != inputs and not adopt:
        changed = ", ".join(
            str(stage.handed[key].weights(key)) for key in inputs if known["inputs"].get(key) != inputs[key]
        )
        raise InputError(
            f"{stage.folder}: the weights that stage {stage.name} began with have changed since ({changed}); --restart "
            f"{shlex.quote(stage.name)} trains it and all after it anew, --adopt goes on with it as it is"
        )
    if (
        known
        and known["done"]
        and known["done"] == _outputs(stage)
        and (known["options"], known["inputs"]) == (options, inputs)
    ):
        _say(f"{label}: done before")
        return 0
    resume = stage.verb == "train" and (known is not None or adopt) and stage.folder.is_dir()
    if stage.verb == "train" and not resume:
        _put_away(stage, record)
    entry = record[stage.name] = {"options": options, "inputs": inputs, "done": None}
    _write_record(recipe, record)  # before anything of the stage is there
    words = stage.words(resume=resume)
    _say(f"{label}\n$ {shlex.join(words)}")
    code = _run(words, processes=processes, started=partial(_note_process, recipe, record, entry))
    entry["process"] = None
    if not code:
        entry["done"] = _outputs(stage)
    _write_record(recipe, record)
    return code


def _options(stage: Stage) -> str:
    """What decides what a stage does."""
    made = load_options(stage.file, stage.verb == "train", stage.overrides, check_files=False)
    return json.dumps(as_plain_data(made.values), sort_keys=True)


def _inputs(stage: Stage) -> dict[str, str]:
    """Checksums of the weights that a stage is handed."""
    return {key: sha256_of(giver.weights(key)) for key, giver in stage.handed.items()}


def _outputs(stage: Stage) -> str:
    """What a finished stage leaves: the checksum of its last weights; of a test, that its folder is there."""
    last = stage.weights(f"{WEIGHTS}g")
    if stage.verb == "test":
        return "results" if stage.folder.is_dir() else ""
    return sha256_of(last) if last.is_file() else ""


def _has_states(stage: Stage) -> bool:
    return any(stage.folder.glob("training_states/*.state")) or any(stage.folder.glob("models/*"))


def _put_away(stage: Stage, record: dict[str, Any]) -> None:
    """Rename the folder of an earlier run, as `basicsr train` does, and forget it."""
    record.pop(stage.name, None)
    if stage.folder.exists() and stage.verb == "train":
        while (target := stage.folder.with_name(f"{stage.folder.name}_archived_{get_time_str()}")).exists():
            time.sleep(0.05)
        stage.folder.rename(target)


def _log_of(stage: Stage) -> str:
    logs = sorted(stage.folder.glob(f"{stage.verb}_*.log"))
    return f" and in {logs[-1]}" if logs else ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# What was begun and done, in experiments/<name>.recipe.json.


def _read_record(recipe: Recipe) -> dict[str, Any]:
    if not recipe.record.is_file():
        return {}
    try:
        content = json.loads(recipe.record.read_text(encoding="utf-8"))
        return {str(name): dict(entry) for name, entry in content["stages"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{recipe.record}: not the record of a recipe ({type(error).__name__}); remove it, then go on with --adopt"
        ) from error


def _write_record(recipe: Recipe, record: Mapping[str, Any]) -> None:
    recipe.record.parent.mkdir(parents=True, exist_ok=True)
    save_text(json.dumps({"stages": record}, indent=1) + "\n", recipe.record)


def _note_process(
    recipe: Recipe, record: Mapping[str, Any], entry: dict[str, Any], process: psutil.Process, follows: bool
) -> None:
    entry["process"] = {"pid": process.pid, "begun": process.create_time(), "follows": follows}
    _write_record(recipe, record)


def _end_left_behind(record: Mapping[str, Any]) -> None:
    """Wait for the stage of a recipe that was killed: without its leader it saves and ends."""
    for name, entry in record.items():
        noted = entry.get("process")
        if not noted or not is_running(noted["pid"]):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(noted["pid"])
            if abs(process.create_time() - noted["begun"]) < 2:  # else another one that has its number
                _say(f"Waiting for process {process.pid}, which a killed recipe left: it saves stage {name} and ends")
                if not noted["follows"]:
                    process.terminate()
                process.wait()


def _run(words: Sequence[str], *, processes: int, started: Callable[[psutil.Process, bool], None]) -> int:
    """Run a command of this package in a process of its own; gives its exit code, 128 + signal if it was killed.

    SIGINT and SIGTERM are passed on: a training saves and ends, at a second one without saving. If this process is
    killed, the stage is told so by the system (Linux, without torchrun), and likewise saves and ends.
    """
    environment, program = dict(os.environ), [sys.executable, "-m", "diffir_sr"]
    alone = processes == 1 or words[1] != "train"
    if alone:
        environment[LEADER] = str(os.getpid())
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        program, words = [*torchrun, "-m", "diffir_sr"], [*words, "--launcher", "pytorch"]
    # In a session of its own, for which the terminal has no Ctrl-C: it would arrive twice.
    process = subprocess.Popen([*program, *words], env=environment, start_new_session=True)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    kept = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already; its exit code says how
            started(psutil.Process(process.pid), alone and sys.platform.startswith("linux"))
        code = process.wait()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.terminate()
            process.wait()
    return 128 - code if code < 0 else code
