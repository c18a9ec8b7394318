"""Real-world super-resolution and deblurring through `basicsr train`: data made on the device, growing patches."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from basicsr.utils.img_process_util import USMSharp
from toy import run_training, train_options, trained, warm_up_law, write_pairs

from diffir_sr.data.draws import DrawSampler
from diffir_sr.data.realesrgan_dataset import RealESRGANDataset
from diffir_sr.files.picture import encode_png
from diffir_sr.models.batches import BatchPreparation

REAL = dict(type="RealESRGANDataset", dataroot_gt="data/gt", crop_pad_size=80, use_hflip=True, use_rot=False)
REAL |= dict(batch_size_per_gpu=2, num_worker_per_gpu=0, dataset_enlarge_ratio=3, name="train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sharp, blurred and small photographs, and a stage 1 of each task trained for two iterations."""
    root = tmp_path_factory.mktemp("tasks")
    before = os.getcwd()
    os.chdir(root)
    try:
        write_pairs("data", size=96, lmdb=False)
        for path in Path("data/gt").iterdir():
            blurred = np.ascontiguousarray(skimage.data.astronaut()[:96, :96])
            Path("data/blurred").mkdir(exist_ok=True)
            Path("data/blurred", path.name).write_bytes(encode_png(blurred))
        assert run_training(real("s1", iterations=2)) == 0
        assert run_training(deblur("s1", iterations=2)) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def real(stage, *, name=None, top=None, **change):
    options = train_options(stage, name=name or f"real_{stage}", **change)
    options["datasets"]["train"] = dict(REAL)
    options |= dict(gt_size=32, queue_size=4, **(top or {}))
    options["path"] = {key: str(value).replace("toy_", "real_") for key, value in options["path"].items()}
    options["path"].pop("strict_load_g", None)
    if stage == "gan":
        options["path"]["pretrain_network_g"] = "experiments/real_s2/models/net_g_latest.pth"
    return options


def deblur(stage, *, name=None, **change):
    options = train_options(stage, name=name or f"blur_{stage}", **change)
    pair = dict(type="DeblurPairedDataset", dataroot_gt="data/gt", dataroot_lq="data/blurred")
    growing = dict(gt_size=48, geometric_augs=True, iters=[2, 3, 3], gt_sizes=[16, 32, 48], mini_batch_sizes=[4, 2, 1])
    loader = dict(batch_size_per_gpu=4, num_worker_per_gpu=0, dataset_enlarge_ratio=3)
    options["datasets"] = dict(train=dict(name="train", **pair, **growing, **loader), val=dict(name="val", **pair))
    options["scale"] = 1
    options["path"] = {key: str(value).replace("toy_", "blur_") for key, value in options["path"].items()}
    options["path"].pop("strict_load_g", None)
    for network in ("network_g", "network_S1"):
        if network in options:
            options[network] = {**options[network], "task": "deblur"}
    return options


def log_of(name):
    return [json.loads(line) for line in Path(f"experiments/{name}/training.jsonl").read_text().splitlines()]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# Real-world


@pytest.mark.parametrize("by", ["batch", "image"])
@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_a_resumed_real_world_training_equals_an_unbroken_one(inside, stage, by):
    law = warm_up_law(3) if stage == "s2" else {}
    whole = real(stage, name=f"whole_{stage}_{by}", iterations=6, top=dict(degradation_sharing=by), **law)
    assert run_training(whole) == 0
    halves = real(stage, name=f"halves_{stage}_{by}", iterations=4, top=dict(degradation_sharing=by), **law)
    assert run_training(halves) == 0
    pools = sorted(path.name for path in Path(f"experiments/{halves['name']}/training_states").glob("*pool*"))
    assert pools == (["2_pool_0.pt", "4_pool_0.pt"] if by == "batch" else [])
    halves["train"]["total_iter"] = 6
    assert run_training(halves, "--auto_resume") == 0
    assert same(trained(stage, whole["name"])["params"], trained(stage, halves["name"])["params"])
    assert same(trained(stage, whole["name"])["params_ema"], trained(stage, halves["name"])["params_ema"])


def test_the_gan_phase_trains_on_real_world_data(inside):
    assert run_training(real("s2", iterations=2)) == 0
    assert run_training(real("gan", iterations=2, top=dict(l1_gt_usm=True, percep_gt_usm=True, gan_gt_usm=False))) == 0
    assert {"l_pix", "l_abs_3", "l_g_gan", "l_d_real"} <= log_of("real_gan")[-1].keys()


def pairs_of(opt_change, *, batch=4, rank=0, world_size=1):
    """lq and gt of one pass, and the paths, as a training with these options sees them."""
    top = dict(gt_size=32, queue_size=4, scale=4, manual_seed=0, rank=rank, train={}, **opt_change)
    opt = dict(top, datasets=dict(train=REAL), path=dict(training_states="."))
    dataset = RealESRGANDataset({**REAL, "phase": "train", "seed": 0})
    sampler = DrawSampler(dataset, ratio=2, rank=rank, world_size=world_size, seed=0)
    making, made = BatchPreparation(opt, torch.device("cpu")), []
    for data in torch.utils.data.DataLoader(dataset, batch_size=batch, sampler=sampler):
        lq, gt = making.prepare(data, data["gt"])
        made += zip(lq, gt, data["gt"], strict=True)
    return made


def test_degrading_by_image_depends_neither_on_batches_nor_on_ranks(inside):
    by_image = dict(degradation_sharing="image")
    fours, ones = pairs_of(by_image), pairs_of(by_image, batch=1)
    assert all(
        torch.equal(a, b) for one, other in zip(fours, ones, strict=True) for a, b in zip(one, other, strict=True)
    )
    shared = [pairs_of(by_image, rank=rank, world_size=2, batch=2) for rank in range(2)]
    both = [pair for two in zip(*shared, strict=True) for pair in two]
    assert all(
        torch.equal(a, b) for one, other in zip(fours, both, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert fours[0][0].shape == (3, 8, 8)
    assert fours[0][1].shape == (3, 32, 32)


def test_degrading_by_batch_shares_its_decisions_and_mixes_batches(inside):
    made = pairs_of(dict(degradation_sharing="batch"), batch=2)
    cuts = [patch_place(gt, whole) for _, gt, whole in made[:4]]  # the pool only fills
    assert cuts[0] == cuts[1]
    assert cuts[2] == cuts[3]
    assert cuts[0] != cuts[2]
    later = [patch_place(gt, whole) for _, gt, whole in made[4:]]
    assert None in later  # from the pool: a patch of another image


def patch_place(patch, whole):
    size = patch.shape[-1]
    for top in range(whole.shape[-2] - size + 1):
        for left in range(whole.shape[-1] - size + 1):
            if torch.equal(whole[:, top : top + size, left : left + size], patch):
                return top, left
    return None


@pytest.mark.parametrize(
    ("flags", "sharp"),
    [
        ({}, set()),
        (dict(gt_usm=True), {"l1", "percep", "gan"}),
        (dict(l1_gt_usm=True, percep_gt_usm=True, gan_gt_usm=False), {"l1", "percep"}),
        (dict(gan_gt_usm=True), {"gan"}),
    ],
)
def test_each_loss_has_the_target_that_the_flags_say(flags, sharp):
    opt = dict(train={}, datasets=dict(train={}), path=dict(training_states="."), rank=0, manual_seed=0, **flags)
    making = BatchPreparation(opt, torch.device("cpu"))
    gt = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = USMSharp()(gt)
    for role in ("l1", "percep", "gan"):
        assert torch.equal(making.target(gt, role), expected if role in sharp else gt)


# Deblurring


def test_growing_patches_resume_exactly(inside):
    for name, first in (("blur_whole", 7), ("blur_halves", 4)):
        options = deblur("s1", name=name, iterations=first)
        assert run_training(options) == 0
    options["train"]["total_iter"] = 7
    assert run_training(options, "--auto_resume") == 0
    assert same(trained("s1", "blur_whole")["params"], trained("s1", "blur_halves")["params"])


def test_the_log_shows_the_phases(inside):
    text = next(Path("experiments/blur_s1").glob("train_*.log")).read_text()
    assert "From iteration 1: batch 4 of 16-pixel patches" in text
    assert "From iteration 6: batch 1 of 48-pixel patches" in text


def test_stage_2_deblurs_with_a_warm_up(inside):
    assert run_training(deblur("s2", iterations=4, **warm_up_law(2))) == 0
    assert [set(row) >= {"l_pix"} for row in log_of("blur_s2")] == [False, True, True, True]


def test_mixing_blends_whole_pairs_and_half_of_the_time_none():
    mixing = dict(mixup=True, mixup_beta=1.2, use_identity=True)
    opt = dict(train=dict(mixing_augs=mixing), datasets=dict(train={}), path=dict(training_states="."), rank=0)
    making = BatchPreparation(dict(opt, manual_seed=0), torch.device("cpu"))
    lq = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    unmixed, weights = 0, []
    for iteration in range(1, 401):
        low, high = making.mixed(lq, 2 * lq, iteration)
        assert torch.allclose(high, 2 * low)
        again, _ = making.mixed(lq, 2 * lq, iteration)
        assert torch.equal(low, again)
        unmixed += torch.equal(low, lq)
        if not torch.equal(low, lq):
            other = next(index for index in (1, 2, 0))
            weights.append(float((low[0] - lq[other]).abs().mean()))
    assert 160 < unmixed < 300  # a half, and permutations that move nothing
    assert np.std(weights) > 0.01
