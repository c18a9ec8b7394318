"""Model cards: written beside the .pth by a training, read by describe, and restored from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import SMALL, photo, write_network
from safetensors import safe_open
from toy import run_training, train_options, trained, write_pairs

from diffir_sr import load_restorer
from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.checkpoints import read_weights
from diffir_sr.cli import main
from diffir_sr.errors import CheckpointError
from diffir_sr.weights_files import read_card_file, write_card_file


def test_a_training_writes_safetensors_with_its_record(capsys):
    write_pairs("data", count=2, lmdb=False)
    options = train_options("s1", iterations=3) | dict(licence="CC0-1.0")
    options["datasets"]["train"]["dataset_enlarge_ratio"] = 4
    assert run_training(options) == 0
    folder = Path("experiments/toy_s1/models")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"net_g_{label}.{kind}" for label in ("2", "latest") for kind in ("pth", "safetensors")]
    tensors, card = read_card_file(folder / "net_g_latest.safetensors")
    saved = trained("s1")["params_ema"]
    assert tensors.keys() == saved.keys()
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)
    known = dict(stage=1, task="sr", scale=4, name="toy_s1", iterations=3, licence="CC0-1.0", weights="params_ema")
    assert known.items() <= card.items()
    assert card["data"]["dataroot_gt"].endswith("data/gt")
    assert card["metrics"]["val"]["iter"] == 3  # measured after it was saved
    assert 5 < card["metrics"]["val"]["psnr"] < 60
    capsys.readouterr()
    assert main(["describe", str(folder / "net_g_latest.safetensors")]) == 0
    output = capsys.readouterr().out
    for part in ("task: super-resolution x4", "stage: 1", "safetensors", "iterations: 3", "licence: CC0-1.0", "psnr"):
        assert part in output


def test_safetensors_and_pth_restore_alike():
    network = DiffIRS2(**SMALL)
    torch.save({"params": network.state_dict()}, "net.pth")
    write_card_file(network.state_dict(), {"name": "mine"}, "net.safetensors")
    picture = photo()
    assert np.array_equal(load_restorer("net.pth")(picture), load_restorer("net.safetensors")(picture))
    assert "name: mine" in load_restorer("net.safetensors").describe()


def test_every_published_layout_is_described(capsys):
    state = DiffIRS2(task="inpaint", **SMALL).state_dict()
    teacher = {f"generatorS1.{name}": value for name, value in DiffIRS1(task="inpaint").state_dict().items()}
    layouts = {
        "ema.pth": {"params_ema": state},
        "params.pth": {"params": state},
        "bare.pth": state,
        "parallel.pth": {f"module.{name}": value for name, value in state.items()},
        "lightning.ckpt": {
            "state_dict": {f"generator.{name}": value for name, value in state.items()} | teacher,
            "epoch": 3,
        },
    }
    for name, content in layouts.items():
        torch.save(content, name)
        assert read_weights(name).tensors.keys() == state.keys()
        assert main(["describe", name]) == 0
        output = capsys.readouterr().out
        assert "task: inpainting" in output
        assert "stage: 2" in output
        assert "training: not recorded" in output


def test_damaged_and_foreign_files_are_named(capsys):
    write_card_file({"a": torch.zeros(3)}, {}, "other.safetensors")
    assert main(["describe", "other.safetensors"]) == 1
    assert "its tensors (a, ...) belong to no known network" in capsys.readouterr().err
    data = Path("other.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match="cut.safetensors: not a readable safetensors file"):
        read_weights("cut.safetensors")
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_restorer("absent.safetensors")
    assert main(["restore", "x.png", "-o", "out", "-w", write_network()]) == 1


def test_other_programs_can_read_the_file():
    write_card_file(DiffIRS2(**SMALL).state_dict(), {"name": "mine"}, "net.safetensors")
    with safe_open("net.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "pt"
        assert "G.patch_embed.proj.weight" in file.keys()  # noqa: SIM118 - it is no mapping
