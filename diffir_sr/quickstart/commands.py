"""`diffir quickstart`: runs the tutorial's commands one after the other, each shown before it runs."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from diffir_sr.errors import DiffIRError, InputError
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.quickstart.photographs import HELD_OUT, TRAINING, write_photographs

DATA = Path("datasets/quickstart")
RESULTS = Path("results/quickstart")
STAGES = ("S1", "S2", "S2_GAN")


def add_quickstart_parser(commands: Any) -> None:
    """Add `diffir quickstart`."""
    parser = commands.add_parser(
        "quickstart",
        help="train a small DiffIR on real photographs, from data to pictures",
        description="Prepares photographs, trains stage 1, stage 2 and a GAN phase, tests, and writes pictures and a "
        "table to results/quickstart/. About eight minutes on two CPU cores.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, patches and noise (default 0)")
    parser.set_defaults(run=_quickstart)


def _quickstart(args: argparse.Namespace) -> int:
    from diffir_sr.quickstart.report import write_report

    started = time.perf_counter()
    write_photographs(TRAINING, folder=DATA / "train/photos")
    write_photographs(HELD_OUT, folder=DATA / "heldout/photos")
    for command in (*data_commands(), *stage_commands(args.seed)):
        if _already_there(command):
            continue
        _run(command)
    summary = write_report(RESULTS, data=DATA, stages=STAGES)
    minutes = (time.perf_counter() - started) / 60
    sys.stdout.write(f"\n{summary}\nPictures, curves and table: {RESULTS}/ ({minutes:.1f} minutes in all)\n")
    return 0


def data_commands() -> list[str]:
    """The commands that turn two folders of photographs into LMDB pairs and held-out pairs."""
    train, heldout = DATA / "train", DATA / "heldout"
    return [
        f"diffir prepare downscale {train}/photos -o {train}/LR_x4 --scale 4 --crop-gt {train}/HR",
        f"diffir prepare subimages {train}/HR -o {train}/HR_sub --size 240 --step 120",
        f"diffir prepare subimages {train}/LR_x4 -o {train}/LR_x4_sub --size 60 --step 30",
        f"diffir prepare lmdb {train}/HR_sub -o {train}/HR_sub.lmdb",
        f"diffir prepare lmdb {train}/LR_x4_sub -o {train}/LR_x4_sub.lmdb --pair-with {train}/HR_sub.lmdb --scale 4",
        f"diffir prepare downscale {heldout}/photos -o {heldout}/LR_x4 --scale 4 --crop-gt {heldout}/HR",
        "diffir weights vgg16",
    ]


def stage_commands(seed: int) -> list[str]:
    """The commands that train the three stages and test each on the held-out photographs."""
    recipes = _recipes()
    extra = f" --force_yml manual_seed={seed}" if seed else ""
    trainings = [f"basicsr train -opt {recipes}/train_{stage}.yml{extra}" for stage in STAGES]
    tests = [f"basicsr test -opt {recipes}/test_{stage}.yml" for stage in STAGES]
    return trainings + tests


def _recipes() -> Path:
    folder = recipes_folder() / "quickstart"
    here = Path("options/quickstart")
    return here if here.is_dir() and here.resolve() == folder.resolve() else folder


def _already_there(command: str) -> bool:
    """LMDBs and converted weights of an earlier quick start are used again."""
    words = shlex.split(command)
    if words[:3] == ["diffir", "prepare", "lmdb"]:
        return Path(words[words.index("-o") + 1]).exists()
    return words == ["diffir", "weights", "vgg16"] and Path("experiments/pretrained_models/vgg16-features.pth").exists()


def _run(command: str) -> None:
    sys.stdout.write(f"\n$ {command}\n")
    sys.stdout.flush()
    words = shlex.split(command)
    program = [sys.executable, "-m", "diffir_sr"]
    done = subprocess.run(program + (words if words[0] == "basicsr" else words[1:]), check=False)
    if done.returncode:
        raise _StepError(f"this step of the quick start ended with exit code {done.returncode}: {command}")


class _StepError(DiffIRError):
    """A command of the quick start failed; it has said why itself."""


def restored_path(stage: str, name: str) -> Path:
    """Where `basicsr test` puts a held-out photograph restored by a stage."""
    path = Path(f"results/quickstart_{stage}/visualization/heldout/{name}_{stage}.png")
    if not path.is_file():
        raise InputError(f"no restored picture at {path.absolute()}; did the test of {stage} run?")
    return path
