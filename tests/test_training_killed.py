"""Trainings that are killed end as undisturbed ones: every stage, way to compute a step, loader and number of ranks.

A few samples run with all tests; `DIFFIR_KILLS=all pytest tests/test_training_killed.py` runs the whole cross, in about
an hour of one core. `DIFFIR_KILLS_SEED` gives other moments.
"""

import os
import random
import signal
import socket
import sys
import time
import traceback
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from toy import ADAM, files_of, rows, train_options, train_stages, warm_up_law, write_options

from diffir_sr.cli import basicsr_main
from diffir_sr.models import restoration_model
from diffir_sr.training import loop

KINDS = {"s1": ("s1", {}), "s2": ("s2", {}), "warm-up": ("s2", warm_up_law(3)), "gan": ("gan", {})}
FUSED = dict(optim_g=dict(ADAM, fused=True))
FOREACH = dict(optim_g=dict(ADAM, foreach=True))
ALL = dict(autocast="float16", channels_last=True, accumulation=2, checkpointing=True, clip_grad_norm=0.01) | FUSED
WAYS = {
    "plain": dict(form="plain"),
    "fast": dict(form="fast"),
    "bfloat16": dict(autocast="bfloat16"),
    "float16": dict(autocast="float16"),
    "channels_last": dict(channels_last=True),
    "compile": dict(compile=True),
    "accumulation": dict(accumulation=2),
    "checkpointing": dict(checkpointing=True),
    "fused": FUSED,
    "foreach": FOREACH | dict(clip_grad_norm=0.01),
    "all": ALL,
    "all, compiled": ALL | dict(compile=True),
}
CROSS = [(kind, way, workers, ranks) for kind in KINDS for way in WAYS for workers in (0, 2) for ranks in (1, 2)]
SAMPLES = [("s1", "all", 0, 2), ("warm-up", "all", 0, 1), ("gan", "all", 2, 1)]
ASKED = CROSS if os.environ.get("DIFFIR_KILLS") == "all" else SAMPLES
KILLS = 3 if ASKED is CROSS else 1
SEED = os.environ.get("DIFFIR_KILLS_SEED", "0")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stage 1 and stage 2, trained for a moment, for others to start from."""
    return train_stages(tmp_path_factory.mktemp("killed"), dict(s1=1, s2=1))


def options_of(kind, way, workers, name):
    stage, law = KINDS[kind]
    change = WAYS[way] | law
    if kind == "gan" and "optim_g" in change:
        change = change | dict(optim_d=change["optim_g"])
    options = train_options(stage, name=name, iterations=6, **change)
    options["logger"] |= dict(print_freq=4, keep_states=2)  # states lie between log lines, and old ones are removed
    options["val"]["val_freq"] = 3
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    return options


def train_in_child(options, ranks, *, first=lambda rank: None):
    """A process per rank that does `first` and trains, forked, since importing takes longer; their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(f"{options['name']}.txt").unlink(missing_ok=True)
    command = ["train", "-opt", write_options(options, f"{options['name']}.yml"), "--auto_resume"]
    processes = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            processes.append(child)
            continue
        code = 99
        try:
            sys.stdout = sys.stderr = open(f"{options['name']}.txt", "a", buffering=1)  # noqa: SIM115
            # The mechanism without the minutes that a C++ compiler takes.
            torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")
            torch.amp.GradScaler.__init__.__defaults__ = ("cuda", 2.0**60, 2.0, 0.5, 3, True)
            first(rank)
            if ranks == 1:
                code = basicsr_main(command)
            else:
                torch.multiprocessing.set_start_method("fork", force=True)
                os.environ |= dict(RANK=f"{rank}", WORLD_SIZE=f"{ranks}", LOCAL_RANK=f"{rank}")
                os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
                code = basicsr_main([*command, "--launcher", "pytorch"])
        except BaseException:
            traceback.print_exc()
        finally:  # never back into pytest
            os._exit(code)
    return processes


def ended(processes, *, patience_s=120):
    """The exit codes of processes when they have ended; those that do not, where another failed, are killed."""
    codes, waited = {}, time.monotonic()
    while len(codes) < len(processes):
        for process in [one for one in processes if one not in codes]:
            number, status = os.waitpid(process, os.WNOHANG)
            if number:
                codes[process] = os.waitstatus_to_exitcode(status)
            elif any(codes.values()) and time.monotonic() - waited > patience_s:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[process] for process in processes]


def killed_after(seconds, options, ranks, draw):
    """Train, and kill one or all ranks then; whether that came before the end."""
    processes = train_in_child(options, ranks)
    time.sleep(seconds)
    victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
    for process in victims:
        os.kill(process, signal.SIGKILL)  # it may have ended, and is there until it is waited for
    time.sleep(draw.choice([0, 0.3]))
    for process in processes:  # as torchrun does with those that are left
        os.kill(process, signal.SIGKILL)
    return -signal.SIGKILL in ended(processes)


def tensors_of(name):
    """What all checkpoints of a run hold: networks and training states."""
    folder = Path("experiments", name)
    files = sorted([*folder.glob("models/*.pth"), *folder.glob("training_states/*")])
    return {
        file.name: torch.load(file, weights_only=True) if file.suffix in (".pth", ".state") else file.read_text()
        for file in files
        if not file.name.endswith("_options.json")
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def differing(name, other):
    mine, theirs = tensors_of(name), tensors_of(other)
    return sorted(mine.keys() ^ theirs.keys()) + [
        file for file in mine.keys() & theirs.keys() if not same(mine[file], theirs[file])
    ]


@pytest.mark.parametrize(("kind", "way", "workers", "ranks"), ASKED)
def test_a_run_that_is_killed_ends_as_an_undisturbed_one(stages, monkeypatch, kind, way, workers, ranks):
    monkeypatch.chdir(stages)
    name = f"{kind}_{way}_{workers}_{ranks}".replace(", ", "_")
    whole, parts = (options_of(kind, way, workers, f"{name}_{part}") for part in ("whole", "parts"))
    began = time.monotonic()
    assert ended(train_in_child(whole, ranks)) == [0] * ranks, Path(f"{whole['name']}.txt").read_text()
    lasts = time.monotonic() - began
    draw, kills = random.Random(f"{SEED} {name}"), 0
    while kills < KILLS and killed_after(draw.uniform(0.1, 1) * lasts, parts, ranks, draw):
        kills += 1
    assert ended(train_in_child(parts, ranks)) == [0] * ranks, Path(f"{parts['name']}.txt").read_text()
    for file in ("training.jsonl", "validation.jsonl"):
        assert rows(parts["name"], file) == rows(whole["name"], file)
    assert differing(whole["name"], parts["name"]) == []
    assert files_of(whole["name"]) == files_of(parts["name"])
    if WAYS[way].get("autocast") == "float16":
        log = "".join(file.read_text() for file in Path(f"experiments/{whole['name']}").glob("*.log"))
        assert "Left out a step whose gradients overflow in float16 (1 since the start)" in log


def test_a_state_is_there_when_every_rank_has_written_its_part(stages, monkeypatch):
    monkeypatch.chdir(stages)

    def first(rank):
        def late(*_):
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

        if rank == 1:
            restoration_model.save_scale = late

    options = options_of("s1", "float16", 0, "late")
    assert ended(train_in_child(options, 2, first=first)) == [1, -signal.SIGKILL]
    assert "lost the connection to another rank" in Path("late.txt").read_text()
    assert not list(Path("experiments/late/training_states").glob("*.state"))


def test_states_that_a_killed_run_had_yet_to_remove_are_removed_at_the_end(stages, monkeypatch):
    monkeypatch.chdir(stages)

    def first(_):
        def killed_at_the_last(opt):
            if Path(opt["path"]["training_states"], "6.state").exists():
                os.kill(os.getpid(), signal.SIGKILL)

        loop.prune = killed_at_the_last

    options = options_of("s1", "plain", 0, "pruned")
    assert ended(train_in_child(options, 1, first=first)) == [-signal.SIGKILL]
    states = Path("experiments/pruned/training_states")
    assert len(list(states.glob("*.state"))) == 3
    assert ended(train_in_child(options, 1)) == [0]
    assert sorted(file.name for file in states.glob("*.state")) == ["4.state", "6.state"]
