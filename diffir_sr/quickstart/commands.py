"""`diffir quickstart`: runs the commands of the tutorial one after the other, printing each before it runs."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import DiffIRError
from diffir_sr.quickstart.tasks import (
    HELD_OUT,
    HELD_OUT_DATA,
    QUICKSTARTS,
    TRAIN_DATA,
    TRAINING,
    recipes_of,
    write_photographs,
)

if TYPE_CHECKING:
    from diffir_sr.training.recipe import Recipe


def add_quickstart_parser(commands: Any) -> None:
    """Add `diffir quickstart`."""
    parser = commands.add_parser(
        "quickstart",
        help="train a small DiffIR on real photographs, from data to results",
        description="Restores a photograph with a shipped model, then prepares photographs, trains the stages of one "
        "task (and, for sr, a GAN phase), tests, and writes pictures and a table to results/quickstart/ (other tasks: "
        "results/quickstart_TASK/). Takes some minutes on two CPU cores.",
    )
    parser.add_argument("--task", choices=[*QUICKSTARTS, _AUTODIR], default="sr", help="what to restore (default sr)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, patches and noise (default 0)")
    parser.set_defaults(run=_quickstart)


_AUTODIR = "autodir"  # whose stages, measures and pictures differ from those of the other tasks


def _quickstart(args: argparse.Namespace) -> int:
    if args.task == _AUTODIR:
        return _quickstart_autodir(args)
    from diffir_sr.quickstart.report import check_metrics, show_shipped_model, write_report

    started = time.perf_counter()
    task = QUICKSTARTS[args.task]
    check_metrics(task)
    write_photographs(TRAINING, folder=TRAIN_DATA / "photos")
    write_photographs(HELD_OUT, folder=HELD_OUT_DATA / "photos")
    sys.stdout.write(
        f"\n{show_shipped_model(task)}\nPicture: {task.results}/shipped.jpg. Now training a model from scratch.\n"
    )
    for command in data_commands(task.name):
        if not _already_there(command):
            _run(command)
    code = _train(_recipe(args.seed, task.recipes))
    if code:
        return code
    minutes = (time.perf_counter() - started) / 60
    summary = write_report(
        task, how=f"`diffir quickstart --task {task.name} --seed {args.seed}`, {minutes:.1f} minutes"
    )
    sys.stdout.write(f"\n{summary}\nPictures, curves and table: {task.results}/ ({minutes:.1f} minutes in total)\n")
    return 0


def _quickstart_autodir(args: argparse.Namespace) -> int:
    from diffir_sr.quickstart.autodir import DATA_COMMANDS, RESULTS, write_autodir_report

    started = time.perf_counter()
    write_photographs(TRAINING, folder=TRAIN_DATA / "photos")
    write_photographs(HELD_OUT, folder=HELD_OUT_DATA / "photos")
    for command in DATA_COMMANDS:
        _run(command)
    code = _train(_recipe(args.seed, recipes_of(_AUTODIR)))
    if code:
        return code
    tables = write_autodir_report()
    minutes = (time.perf_counter() - started) / 60
    sys.stdout.write(f"\n{tables}\nTables and traces: {RESULTS}/ ({minutes:.1f} minutes in total)\n")
    return 0


def _train(recipe: Recipe) -> int:
    """Run a recipe; one that was stopped goes on, and what an earlier one has finished is kept under another name."""
    from diffir_sr.training.recipe import check_recipe, is_interrupted, run_recipe

    check_recipe(recipe)
    return run_recipe(recipe, restart=None if is_interrupted(recipe) else recipe.stages[0].name)


def data_commands(task: str = "sr") -> list[str]:
    """The commands that prepare training and test data of a task from two folders of photographs."""
    recipes = shlex.quote(str(QUICKSTARTS[task].recipes))
    return [command.format(recipes=recipes) for command in QUICKSTARTS[task].data]


def stage_commands(seed: int, task: str = "sr") -> list[str]:
    """The commands that train the stages of a task and test each on the held-out photographs."""
    return [shlex.join(stage.words()) for stage in _recipe(seed, recipes_of(task)).stages]


def _recipe(seed: int, folder: Path) -> Recipe:
    from diffir_sr.training.recipe import read_recipe

    return read_recipe(folder / "recipe.yml", [f"manual_seed={seed}"] if seed else [])


def _already_there(command: str) -> bool:
    """Whether the LMDB of this command exists from an earlier quick start, and is reused."""
    words = shlex.split(command)
    return words[:3] == ["diffir", "prepare", "lmdb"] and Path(words[words.index("-o") + 1]).exists()


def _run(command: str) -> None:
    sys.stdout.write(f"\n$ {command}\n")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "diffir_sr", *shlex.split(command)[1:]], check=False)
    if done.returncode:
        raise _StepError(f"this step of the quick start ended with exit code {done.returncode}: {command}")


class _StepError(DiffIRError):
    """A command of the quick start failed; it has printed the reason."""
