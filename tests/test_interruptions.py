"""Runs that are killed, stopped, out of space or without loaders: what they owe is made up, what is saved stays."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import files_of, killed_at, rows, run_training, train_options, warm_up_law, write_options, write_pairs

from diffir_sr.data import records as record
from diffir_sr.files.atomic import sweep
from diffir_sr.models.restoration_model import RestorationModel
from diffir_sr.training import loop

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _data():
    write_pairs("data", lmdb=False)


def options(name, **changes):
    made = train_options("s1", name=name, iterations=changes.pop("iterations", 6))
    made["val"]["val_freq"] = changes.pop("val_freq", 2)
    made["logger"]["save_checkpoint_freq"] = changes.pop("save_checkpoint_freq", made["logger"]["save_checkpoint_freq"])
    made["datasets"]["val_2"] = dict(made["datasets"]["val"], name="second")
    made["datasets"]["train"] |= changes
    return made


@pytest.mark.parametrize("val_freq", [2, 4])
def test_runs_killed_at_random_writings_end_as_an_undisturbed_one(val_freq):
    assert run_training(options("whole", val_freq=val_freq)) == 0
    draw, kills = random.Random(val_freq), 0
    while kills < 12 and killed_at(
        draw.randint(8, 26), lambda: run_training(options("part1", val_freq=val_freq), "--auto_resume")
    ):
        kills += 1
    assert kills > 3
    assert run_training(options("part1", val_freq=val_freq), "--auto_resume") == 0
    for file in ("training.jsonl", "validation.jsonl"):
        assert rows("part1", file) == rows("whole", file), file
    whole, part = files_of("whole"), files_of("part1")
    assert whole.keys() == part.keys() == {f"net_g_{label}.safetensors" for label in (2, 4, 6, "latest")}
    for name in whole:
        assert whole[name] == part[name], name
    assert not list(Path("experiments").rglob("*.partial*"))


@pytest.mark.parametrize(("stage", "change"), [("s2", warm_up_law(3)), ("gan", {})])
def test_later_stages_with_loaders_killed_at_random_writings_end_as_undisturbed(stage, change):
    for earlier in ("s1", "s2"):
        assert run_training(train_options(earlier, iterations=1)) == 0

    def made(name):
        options = train_options(stage, name=name, iterations=6, **change)
        options["datasets"]["train"]["num_worker_per_gpu"] = 2
        return options

    assert run_training(made("whole")) == 0
    draw, kills = random.Random(1), 0
    while kills < 4 and killed_at(draw.randint(12, 30), lambda: run_training(made("part1"), "--auto_resume")):
        kills += 1
    assert kills > 1
    assert run_training(made("part1"), "--auto_resume") == 0
    for file in ("training.jsonl", "validation.jsonl"):
        assert rows("part1", file) == rows("whole", file), file
    assert files_of("part1") == files_of("whole")
    weights = [
        torch.load(f"experiments/{name}/models/net_g_latest.pth", weights_only=True) for name in ("part1", "whole")
    ]
    for key in weights[0]:
        assert all(torch.equal(weights[0][key][name], weights[1][key][name]) for name in weights[1][key])


def test_the_best_value_so_far_outlives_an_interruption():
    assert run_training(options("whole", iterations=2)) == 0
    file = Path("experiments/whole/validation.jsonl")
    file.write_text(file.read_text().replace('"psnr": 2', '"psnr": 9'))
    assert run_training(options("whole", iterations=4), "--auto_resume") == 0
    log = max(Path("experiments/whole").glob("*.log"), key=lambda one: one.stat().st_mtime_ns).read_text()
    assert re.search(r"Best: 9\d\.\d{4} @ 2 iter", log)


def test_validation_that_ctrl_c_forestalled_is_made_up(monkeypatch):
    assert run_training(options("whole")) == 0
    stopping = options("part1")
    note = RestorationModel.note

    def interrupt(self, current_iter, values):
        note(self, current_iter, values)
        if current_iter == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(RestorationModel, "note", interrupt)
        assert run_training(stopping) == 128 + signal.SIGINT
    assert [row["iter"] for row in rows("part1", "validation.jsonl")] == [2, 2]
    assert run_training(options("part1"), "--auto_resume") == 0
    assert rows("part1", "validation.jsonl") == rows("whole", "validation.jsonl")
    assert files_of("part1") == files_of("whole")


def test_runs_begun_in_the_same_second_keep_each_other():
    for _ in range(3):
        assert run_training(options("again", iterations=1)) == 0
    assert len(list(Path("experiments").glob("again_archived_*/training.jsonl"))) == 2


def test_means_of_the_log_span_an_interruption():
    for name, totals in (("whole", (6,)), ("part1", (2, 4, 6))):
        made = options(name)
        made["logger"]["print_freq"] = 3
        for total in totals:
            made["train"]["total_iter"] = total
            assert run_training(made, "--auto_resume") == 0
    assert [row["iter"] for row in rows("whole", "training.jsonl")] == [3, 6]
    assert rows("part1", "training.jsonl") == rows("whole", "training.jsonl")


def test_only_what_dead_processes_left_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        (tmp_path / f".net_g_2.pth.partial-{number}").touch()
    (tmp_path / ".notes.partial-x").touch()
    assert sweep(tmp_path) == [tmp_path / f".net_g_2.pth.partial-{dead.pid}"]
    assert len(list(tmp_path.glob(".*.partial-*"))) == 2


def run_apart(*, file_limit=None, **changes):
    """A training in a process of its own: its exit code and all it printed."""
    write_options(options("apart", **changes), "apart.yml")
    words = [sys.executable, "-m", "diffir_sr", "basicsr", "train", "-opt", "apart.yml", "--auto_resume"]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def limit():
        if file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.Popen(
        words, env=environment, preexec_fn=limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_disk_that_takes_no_more_is_one_sentence_and_the_last_state_stays():
    run_training(options("apart", iterations=2))
    models = Path("experiments/apart/models")
    before = (models / "net_g_2.pth").read_bytes()
    process = run_apart(file_limit=60_000)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert re.search(r"cannot save .*net_g_4\.pth: File too large; free space", output), output
    assert "Traceback" not in output
    assert "enforce fail" not in output
    assert (models / "net_g_2.pth").read_bytes() == before
    assert not list(Path("experiments").rglob("*.partial*"))
    assert run_training(options("apart"), "--auto_resume") == 0


def test_a_disk_without_room_for_the_log_is_one_sentence():
    process = run_apart(file_limit=6_500, iterations=100_000, val_freq=100_000, save_checkpoint_freq=100_000)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert re.search(r"cannot write the log .*File too large; its lines go to the terminal alone", output), output
    assert re.search(r"cannot write .*training\.jsonl: File too large; free space", output), output
    assert "Traceback" not in output


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_too_little_memory_is_one_sentence_that_says_what_to_lower(monkeypatch, capsys, error):
    def full(self, iteration):
        if iteration == 3:
            raise error

    monkeypatch.setattr("diffir_sr.models.diffir_models.DiffIRS1Model.optimize_parameters", full)
    assert run_training(train_options("s1")) == 1
    said = capsys.readouterr().err
    assert "out of memory in the training toy_s1" in said
    assert "lower datasets.train.batch_size_per_gpu or gt_size" in said
    assert Path("experiments/toy_s1/training_states/2.state").is_file()


def test_a_record_that_cannot_be_written_is_one_sentence(monkeypatch, capsys):
    def full(self, mode="r", *arguments, **options):
        if self.name == "training.jsonl" and mode == "a":
            raise OSError(28, "No space left on device")
        return opened(self, mode, *arguments, **options)

    opened = record.Path.open
    monkeypatch.setattr(record.Path, "open", full)
    assert run_training(options("full")) == 1
    log = next(Path("experiments/full").glob("*.log")).read_text()
    assert re.search(r"cannot write .*training\.jsonl: No space left on device; free space", log)


def test_a_folder_that_may_not_be_written_is_one_sentence(monkeypatch, capsys):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "makedirs", refuse)
    assert run_training(options("locked")) == 1
    assert re.fullmatch(r"error: cannot write .*locked.*: Permission denied; free space.*\n", capsys.readouterr().err)


def test_the_death_of_a_loader_is_one_sentence_and_the_last_state_stays():
    process = run_apart(iterations=100_000, val_freq=100_000, num_worker_per_gpu=1)
    states = Path("experiments/apart/training_states")
    deadline = time.time() + 90
    while not list(states.glob("*.state")) and time.time() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert re.search(r"a process that loads data ended .*--auto_resume", output), output
    assert "Traceback" not in output
    last = max(int(file.stem) for file in states.glob("*.state"))
    assert run_training(options("apart", iterations=last + 1), "--auto_resume") == 0


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_loader_that_dies_while_it_hands_over_a_batch_is_one_sentence(monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(loop, "_iterate", broken)
    assert run_training(options("handed")) == 1
    log = next(Path("experiments/handed").glob("*.log")).read_text()
    assert re.search(r"a process that loads data ended \((.*Connection reset.*|EOFError)\)", log)
    assert "Traceback" not in log
