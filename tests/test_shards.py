"""A folder restored in parts: each picture once, with the bytes of one run, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import NETWORK

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.cli import main
from diffir_sr.errors import InputError
from diffir_sr.files.picture import encode_png
from diffir_sr.inference.files import Shard, plan_jobs, shard_of
from diffir_sr.weights_files import write_card_file

COUNT = 9


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    write_card_file(DiffIRS2(task="sr", scale=2, **NETWORK).state_dict(), {}, tmp_path / "net.safetensors")
    source = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "in" / ("sub" if number % 2 else "") / f"p{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(source.integers(0, 256, (16, 24, 3), dtype=np.uint8)))
    return tmp_path


def restore(*words, out="out"):
    return main(["restore", "in", "-o", out, "-w", "net.safetensors", *words])


def files(out="out"):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in Path(out).rglob("*.png")}


def test_parts_are_a_function_of_the_name_and_cover_everything(folder):
    jobs = plan_jobs(["in"], "out")
    alone = plan_jobs(["in/p0.png"], "out")
    for count in (1, 2, 5):
        parts = [Shard(number, count) for number in range(1, count + 1)]
        assert all(sum(part.has(job) for part in parts) == 1 for job in jobs)
    assert [part.has(alone[0]) for part in parts] == [
        part.has(next(j for j in jobs if j.relative == "p0.png")) for part in parts
    ]
    whole = Shard(2, 3)
    assert [whole.has(job) for job in jobs] == [any(part.has(job) for part in whole.divided(4)) for job in jobs]
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(InputError, match="expected I/N"):
            shard_of(wrong)


def test_shards_merge_to_the_files_and_the_journal_of_one_run(folder, capsys):
    assert restore(out="one") == 0
    for number in (1, 2, 3):
        assert restore("--shard", f"{number}/3") == 0
    assert len(list(Path("out").glob("restored.*-of-3.jsonl"))) == 3
    assert files() == files("one")
    capsys.readouterr()
    assert restore("--merge") == 0
    assert f"{COUNT} results of 3 journals" in capsys.readouterr().out
    assert sorted(path.name for path in Path("out").glob("*.jsonl")) == ["restored.jsonl"]
    lines = [json.loads(line) for line in Path("out/restored.jsonl").read_text().splitlines()]
    assert sorted(line["output"] for line in lines) == sorted(files())
    assert restore() == 0  # nothing is left to do, in one run or in other parts
    assert restore("--shard", "2/2") == 0
    assert "0 restored" in capsys.readouterr().out


def test_what_is_missing_is_named_and_other_settings_are_not_mixed(folder, capsys):
    assert restore("--shard", "1/2") == 0
    assert restore("--merge") == 1
    done = len(files())
    assert capsys.readouterr().err.count("missing: ") == COUNT - done > 0
    assert restore("--shard", "2/2", "--seed", "1") == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.jsonl")}
    assert restore("--merge") == 1
    assert "different settings or weights" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("out").glob("*.jsonl")}


def test_devices_each_take_a_part_and_the_journals_are_merged(folder, capsys):
    assert restore(out="one") == 0
    assert restore("--devices", "cpu,cpu") == 0
    assert files() == files("one")
    assert [path.name for path in Path("out").glob("*.jsonl")] == ["restored.jsonl"]
    assert restore("--devices", "all", "--json", "x.json") == 1
    assert restore("--merge", "--shard", "1/2") == 1
    assert main(["restore", "in/p0.png", "-o", "a.png", "-w", "net.safetensors", "--shard", "1/2"]) == 1
    said = capsys.readouterr().err
    assert "leave --json out" in said
    assert "leave --shard out" in said
    assert "needs a folder" in said


def test_a_killed_shard_goes_on(folder):
    words = ["restore", "in", "-o", "out", "-w", "net.safetensors", "--shard", "1/1"]
    process = subprocess.Popen([sys.executable, "-m", "diffir_sr", *words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    journal = Path("out/restored.1-of-1.jsonl")
    until = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert restore("--shard", "1/1") == 0
    assert restore("--merge") == 0
    assert restore(out="one") == 0
    assert files() == files("one")
    assert not list(Path("out").rglob(".*partial*"))
