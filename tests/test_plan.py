"""`diffir plan`: cost as counted and measured, and what is missing."""

import json
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from toy import train_options, write_options, write_pairs

from diffir_sr.cli import main
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.training.cost import multiplications


def test_the_papers_network_has_the_papers_multiplications():
    options = load_options(recipes_folder() / "train_DiffIRS2_x4.yml", check_files=False).values["network_g"]
    count, why = multiplications(build_network(options).eval())
    assert not why
    assert count / 1e12 == pytest.approx(0.72, abs=0.005)


def test_a_convolution_is_counted_by_hand():
    class Three(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x):
            return self.layer(x)

    assert multiplications(Three()) == (256 * 256 * 3 * 5 * 9, "")


def test_a_plan_tells_cost_and_what_is_missing(capsys):
    write_pairs("data", lmdb=False)
    options = train_options("s2", iterations=4)
    write_options(options, "s2.yml")
    assert main(["plan", "-opt", "s2.yml", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["name"] == "toy_s2"
    assert [line.split(": ")[1] for line in told["missing"]] == ["path.pretrain_network_S1", "path.pretrain_network_g"]
    assert told["parameters"]["network_g"] == sum(
        one.numel() for one in build_network(options["network_g"]).parameters()
    )
    assert told["checkpoints"] == 2
    assert told["disk"] > 2 * told["checkpoint_bytes"]
    assert 0 < told["step_seconds"] < 60
    assert told["hours"] * 3600 > 4 * told["step_seconds"]
    assert told["data_seconds"] > 0
    assert told["validation_seconds"] > 0
    assert set(told["data_bytes"]) == {"data/gt", "data/lq"}
    assert told["notes"] == []
    assert not Path("experiments").exists()
    assert main(["plan", "-opt", "s2.yml"]) == 0
    assert "missing: s2.yml:" in capsys.readouterr().out


def test_the_stages_of_a_recipe_are_planned_with_what_they_hand_on(capsys):
    write_pairs("data", lmdb=False)
    for stage in ("s1", "s2"):
        write_options(train_options(stage), f"{stage}.yml")
    Path("chain.yml").write_text("name: chain\nstages:\n  - {train: s1.yml}\n  - {train: s2.yml}\n")
    assert main(["plan", "-opt", "chain.yml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == ["toy_s1", "toy_s2"]
    assert [one["missing"] for one in told] == [[], []]
