"""BasicSR's own networks and models: the option files of `options/basicsr`, and its model classes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import ADAM, PSNR, write_options, write_pairs

from diffir_sr.cli import basicsr_main, main
from diffir_sr.options.recipes import recipes_folder

RECIPES = sorted(recipes_folder().glob("basicsr/train_*.yml"))
SHORT = ["train:total_iter=2", "val:val_freq=2", "datasets:train:batch_size_per_gpu=1", "datasets:train:gt_size=32"]
SHORT += ["logger:save_checkpoint_freq=2", "num_gpu=0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The places that the recipes name, with little in them."""
    folder = tmp_path_factory.mktemp("basicsr")
    pairs = write_pairs(folder / "pairs", size=64, count=2)
    train, heldout = folder / "datasets/quickstart/train", folder / "datasets/quickstart/heldout"
    train.mkdir(parents=True)
    heldout.mkdir()
    for name, old in (("HR_sub", "gt"), ("LR_x4_sub", "lq")):
        shutil.copytree(pairs / f"{old}.lmdb", train / f"{name}.lmdb")
    for name, old in (("HR", "gt"), ("LR_x4", "lq")):
        shutil.copytree(pairs / old, heldout / name)
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_all_commands_agree_on_its_result(world, monkeypatch, recipe, capsys):
    monkeypatch.chdir(world)
    name = recipe.stem.removeprefix("train_").removesuffix("_x4")
    assert basicsr_main(["train", "-opt", str(recipe), "--force_yml", *SHORT]) == 0
    experiment = world / f"experiments/basicsr_{name}_x4"
    validated = json.loads((experiment / "validation.jsonl").read_text().splitlines()[-1])

    test = recipe.with_name(f"test_{name}_x4.yml")
    assert basicsr_main(["test", "-opt", str(test), "--force_yml", "num_gpu=0"]) == 0
    weights = experiment / "models/net_g_latest.safetensors"
    lq, out = "datasets/quickstart/heldout/LR_x4", f"restored_{name}"
    assert main(["restore", lq, "-o", out, "-w", str(weights), "--device", "cpu"]) == 0
    capsys.readouterr()
    for folder in (out, f"results/basicsr_{name}_x4/visualization/heldout"):
        measured = world / "measured.json"
        gt = "datasets/quickstart/heldout/HR"
        assert main(["evaluate", folder, gt, "--preset", "sr", "--metrics", "psnr", "--json", str(measured)]) == 0
        mean = json.loads(measured.read_text())["mean"]["psnr"]
        assert mean == pytest.approx(validated["psnr"], abs=0.02)  # files are rounded to 8 bits, as validation does
    capsys.readouterr()
    assert main(["describe", str(weights), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["arch"] == name
    assert record["restores"]


def options(model, network, **more):
    pair = dict(type="PairedDataset", dataroot_gt="pairs/gt.lmdb", dataroot_lq="pairs/lq.lmdb")
    train = dict(
        optim_g=ADAM, scheduler=dict(type="MultiStepLR", milestones=[2], gamma=0.5), total_iter=4, ema_decay=0.9
    )
    train |= dict(pixel_opt=dict(type="L1Loss", loss_weight=1.0, reduction="mean"), warmup_iter=-1)
    found = dict(
        name=f"plain_{model}",
        model_type=model,
        scale=4,
        num_gpu=0,
        manual_seed=0,
        datasets=dict(
            train=dict(name="t", gt_size=32, batch_size_per_gpu=1, num_worker_per_gpu=0, **pair),
            val=dict(name="v", **pair),
        ),
        network_g=network,
        path={},
        train=train,
        val=dict(val_freq=4, save_img=False, metrics=dict(psnr=PSNR)),
        logger=dict(print_freq=1, save_checkpoint_freq=2, use_tb_logger=False),
    )
    found["datasets"]["train"] |= dict(use_hflip=True, use_rot=True, dataset_enlarge_ratio=4)
    for key, value in more.items():
        found[key] = found[key] | value if isinstance(found.get(key), dict) else value
    return found


ADVERSARY = dict(
    network_d=dict(type="UNetDiscriminatorSN", num_in_ch=3, num_feat=8, skip_connection=True),
    train=dict(
        optim_d=ADAM,
        gan_opt=dict(type="GANLoss", gan_type="vanilla", loss_weight=0.1),
        net_d_iters=1,
        net_d_init_iters=0,
    ),
)
SMALL_EDSR = dict(type="EDSR", num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, upscale=4)


@pytest.mark.parametrize(("model", "more"), [("SRModel", {}), ("SRGANModel", ADVERSARY), ("ESRGANModel", ADVERSARY)])
def test_basicsrs_own_models_keep_running_and_resume_to_the_same_weights(world, monkeypatch, model, more):
    monkeypatch.chdir(world)
    whole = options(model, SMALL_EDSR, **more)
    assert basicsr_main(["train", "-opt", write_options(whole, "whole.yml")]) == 0
    models = world / f"experiments/plain_{model}/models"
    expected = torch.load(models / "net_g_4.pth", weights_only=True)
    parted = whole | dict(name=f"parted_{model}", train=whole["train"] | dict(total_iter=2))
    assert basicsr_main(["train", "-opt", write_options(parted, "parted.yml")]) == 0
    parted["train"] |= dict(total_iter=4)
    assert basicsr_main(["train", "-opt", write_options(parted, "parted.yml"), "--auto_resume"]) == 0
    found = torch.load(world / f"experiments/parted_{model}/models/net_g_4.pth", weights_only=True)
    for name, tensor in expected["params"].items():
        assert torch.equal(tensor, found["params"][name]), name


def test_what_a_model_of_basicsr_saves_has_a_card_and_restores(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    weights = Path("experiments/plain_SRModel/models/net_g_latest.safetensors")
    if not weights.is_file():
        assert basicsr_main(["train", "-opt", write_options(options("SRModel", SMALL_EDSR), "whole.yml")]) == 0
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("black.png")
    assert main(["restore", "black.png", "-o", "out_plain", "-w", str(weights)]) == 0
    assert Image.open("out_plain/black.png").size == (64, 64)
    capsys.readouterr()
    assert main(["describe", str(weights), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["arguments"]["num_feat"] == 8
    assert record["card"]["iterations"] == 4
