"""Inpainting through `basicsr train` and `basicsr test`: both stages, resuming, known pixels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.models import build_model
from options_cases import changed
from toy import ADAM, S1, S2, run_training, train_options, trained, working_in, write_options, write_pairs

from diffir_sr.cli import basicsr_main, main
from diffir_sr.errors import OptionError
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.losses import DilatedResNet50
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.training.run import RunArguments, complete_options

REPO = Path(__file__).resolve().parents[1]
MODELS = {"s1": "DiffIRInpaintS1Model", "s2": "DiffIRInpaintS2Model"}
MASKS = dict(irregular_kwargs=dict(max_width=10, max_len=20), box_kwargs=dict(margin=2, bbox_min_size=6))


def options_of(stage, *, name=None, **train):
    options = train_options(stage, name=name or f"holes_{stage}", **train)
    images = dict(type="InpaintDataset", dataroot_gt="data/gt")
    patches = dict(gt_size=32, mask_gen=MASKS, batch_size_per_gpu=2, num_worker_per_gpu=0, dataset_enlarge_ratio=3)
    options["datasets"] = dict(
        train=dict(name="train", **images, **patches), val=dict(name="val", dataroot_mask="data/masks", **images)
    )
    options |= dict(model_type=MODELS[stage], scale=1)
    body = {key: value for key, value in (S2 if stage == "s2" else S1).items() if key != "num_refinement_blocks"}
    options["network_g"] = body | dict(task="inpaint")
    options["network_d"] = dict(type="NLayerDiscriminator", ndf=8, n_layers=2)
    section = options["train"]
    section |= dict(ema_decay=0, clip_grad_norm=1, optim_d=ADAM)
    section |= dict(pixel_opt=dict(type="MaskedL1Loss"), gan_opt=dict(type="MaskedGANLoss"))
    section |= dict(feature_matching_opt=dict(type="FeatureMatchingLoss"))
    section.pop("encoder_iter", None)
    train.pop("iterations", None)
    options["train"] = section | train
    options["path"] = {}
    if stage == "s2":
        options["network_S1"] = {**S1, "task": "inpaint", "num_refinement_blocks": 0}
        start = "experiments/holes_s1/models/net_g_latest.pth"
        options["path"] = dict(pretrain_network_S1=start, pretrain_network_g=start, strict_load_g=False)
    return options


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("holes")
    with working_in(folder):
        write_pairs("data", lmdb=False)
        Path("data/masks").mkdir()
        for index, path in enumerate(sorted(Path("data/gt").iterdir())):
            mask = np.zeros((64, 64, 1), np.uint8)
            mask[8 * index : 8 * index + 20, 20:50] = 255
            Path("data/masks", path.name).write_bytes(encode_png(mask))
        for stage in ("s1", "s2"):
            assert run_training(options_of(stage)) == 0
    return folder


@pytest.fixture
def inside(stages, monkeypatch):
    monkeypatch.chdir(stages)
    return stages


def model_of(options):
    """The model of a training, with one batch fed."""
    opt = complete_options(load_options(write_options(options)).values, RunArguments(root=Path.cwd()), is_train=True)
    model = build_model(opt)
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    model.feed_data(dict(gt=torch.rand(2, 3, 32, 32, generator=generator), mask=mask))
    return model


@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_each_stage_trains_with_all_its_losses(inside, stage):
    log = [json.loads(line) for line in Path(f"experiments/holes_{stage}/training.jsonl").read_text().splitlines()]
    expected = {"l_pix", "l_g_gan", "l_feat", "l_d_real", "l_d_fake", "l_d_r1"}
    assert expected | ({"l_abs_3"} if stage == "s2" else set()) <= log[-1].keys()
    validation = json.loads(Path(f"experiments/holes_{stage}/validation.jsonl").read_text().splitlines()[-1])
    assert validation["psnr"] > 5


@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_each_loss_reaches_the_generator_and_together_every_weight(inside, stage):
    model = model_of(options_of(stage, name="one"))
    losses, _ = model.compute_losses(1)
    weights = [weight for weight in model.net_g.parameters() if weight.requires_grad]
    body = next(weight for name, weight in model.net_g.named_parameters() if name.startswith("G.latent"))
    for name, loss in losses.items():
        target = body if not name.startswith("l_abs") else model.net_g.get_parameter("condition.mlp.0.weight")
        (slope,) = torch.autograd.grad(loss, target, retain_graph=True)
        assert slope.norm() > 0, name
    found = torch.autograd.grad(sum(losses.values()), weights)
    assert all(slope.norm() > 0 for slope in found)


def test_the_network_sees_zeros_in_the_holes_and_the_mask(inside):
    model = model_of(options_of("s1", name="one"))
    assert model.lq.shape == (2, 4, 32, 32)
    assert model.lq[:, :3, 8:24, 8:24].abs().sum() == 0
    assert torch.equal(model.lq[:, :3, :8], model.gt[:, :, :8])
    assert torch.equal(model.lq[:, 3:], model.mask)


@pytest.mark.parametrize(("stage", "change"), [("s1", {}), ("s2", dict(ema_decay=0.9))])
def test_a_resumed_training_equals_an_unbroken_one(inside, stage, change):
    assert run_training(options_of(stage, name=f"whole_{stage}", iterations=6, **change)) == 0
    halves = options_of(stage, name=f"halves_{stage}", iterations=4, **change)
    assert run_training(halves) == 0
    halves["train"]["total_iter"] = 6
    assert run_training(halves, "--auto_resume") == 0
    for net in ("net_g", "net_d"):
        whole, resumed = (
            torch.load(f"experiments/{run}_{stage}/models/{net}_latest.pth", weights_only=True)
            for run in ("whole", "halves")
        )
        assert whole.keys() == {"params"} | ({"params_ema"} if change and net == "net_g" else set())
        for kind in whole:
            assert all(torch.equal(whole[kind][key], resumed[kind][key]) for key in whole[kind])


def test_stage_2_starts_from_the_body_of_stage_1(inside):
    model = model_of(options_of("s2", name="one"))
    first = trained("s1", "holes_s1")["params"]
    assert all(
        torch.equal(value, first[key]) for key, value in model.net_g.state_dict().items() if key.startswith("G.")
    )
    assert not any(weight.requires_grad for weight in model.teacher.parameters())


@pytest.mark.parametrize("role", ["dataroot_gt", "dataroot_lq"])
def test_known_pixels_are_not_touched_and_no_ground_truth_is_needed(inside, role):
    options = options_of("s2", name=f"fill_{role}")
    test = dict(name="fill", type="InpaintDataset", dataroot_mask="data/masks", **{role: "data/gt"})
    options["datasets"] = dict(test=test)
    options["path"] = dict(pretrain_network_g="experiments/holes_s2/models/net_g_latest.pth")
    options.pop("train")
    options["val"] = dict(save_img=True, metrics=options["val"]["metrics"])
    assert basicsr_main(["test", "-opt", write_options(options)]) == 0
    for path in sorted(Path("data/gt").iterdir()):
        made, given, mask = (
            decode(Path(file).read_bytes(), where=str(file))
            for file in (
                f"results/fill_{role}/visualization/fill/{path.stem}_fill_{role}.png",
                path,
                f"data/masks/{path.name}",
            )
        )
        known = mask[..., 0] == 0
        assert np.array_equal(made[known], given[known])
        assert not np.array_equal(made[~known], given[~known])
    assert Path(f"results/fill_{role}/fill.csv").exists() == (role == "dataroot_gt")


def test_the_restore_command_fills_the_same_pixels(inside):
    options = options_of("s2", name="again")
    options["datasets"] = dict(
        test=dict(name="fill", type="InpaintDataset", dataroot_mask="data/masks", dataroot_lq="data/gt")
    )
    weights = "experiments/holes_s2/models/net_g_latest.pth"
    options["path"] = dict(pretrain_network_g=weights)
    options.pop("train")
    options["val"] = dict(save_img=True)
    assert basicsr_main(["test", "-opt", write_options(options)]) == 0
    assert main(["restore", "data/gt", "-o", "filled", "--weights", weights, "--mask", "data/masks"]) == 0
    for path in sorted(Path("data/gt").iterdir()):
        ours = decode(Path("filled", path.name).read_bytes(), where=path.name)
        theirs = Path(f"results/again/visualization/fill/{path.stem}_again.png")
        assert np.array_equal(ours, decode(theirs.read_bytes(), where=str(theirs)))


def test_the_wide_perceptual_loss_trains_on_given_weights(inside):
    torch.manual_seed(0)
    torch.save(DilatedResNet50().state_dict(), "ade20k.pth")
    wide = dict(type="ADE20KPerceptualLoss", perceptual_weight=30.0, weights_path="ade20k.pth")
    model = model_of(options_of("s1", name="one", perceptual_opt=wide))
    losses, _ = model.compute_losses(1)
    (slope,) = torch.autograd.grad(losses["l_percep"], model.net_g.get_parameter("G.output.weight"))
    assert slope.norm() > 0


def test_a_missing_backbone_is_reported_before_anything_is_made(inside, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    wide = dict(type="ADE20KPerceptualLoss")
    assert run_training(options_of("s1", name="without", perceptual_opt=wide)) == 1
    output = capsys.readouterr()
    assert "weights ade20k_resnet50 not found" in output.err + output.out
    assert not Path("experiments/without").exists()
    assert run_training(options_of("s1", name="without", perceptual_opt=wide | dict(weights_path="no.pth"))) == 1
    assert "train.perceptual_opt.weights_path: no such file: no.pth" in capsys.readouterr().err
    assert not Path("experiments/without").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(gan_opt=dict(type="GANLoss", gan_type="vanilla")), "DiffIRInpaintS1Model takes MaskedGANLoss"),
        (dict(optim_d=None), "train.optim_d: missing: Optimizer of network_d"),
    ],
)
def test_losses_that_do_not_see_holes_are_refused(inside, capsys, change, message):
    assert run_training(options_of("s1", name="wrong", **change)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"network_d": dict(type="UNetDiscriminatorSN", num_in_ch=3)}, "network_d.type", "choose NLayerDiscriminator"),
        (
            {"datasets.train.type": "PairedDataset", "datasets.train.dataroot_lq": "data/gt"},
            "datasets.train.type",
            "use",
        ),
        ({"model_type": "DiffIRS1Model", "train.pixel_opt.type": "L1Loss"}, "datasets.val.type", "change model_type"),
    ],
)
def test_what_does_not_belong_to_inpainting_is_refused(inside, change, key, message):
    options = changed(options_of("s1"), change)
    for section in ("mask_gen",) if "PairedDataset" in str(change) else ():
        options["datasets"]["train"].pop(section)
    if "model_type" in change:
        options["train"].pop("gan_opt")
    with pytest.raises(OptionError) as refused:
        load_options(write_options(options))
    line = next(line for line in str(refused.value).splitlines() if f" {key}: " in line)
    assert message in line


def test_a_test_of_holes_with_another_model_is_refused(inside):
    options = options_of("s2")
    options["datasets"] = dict(test=dict(name="t", type="InpaintDataset", dataroot_gt="data/gt"))
    options.pop("train")
    with pytest.raises(OptionError, match="datasets.test.type: its images have masks"):
        load_options(write_options(options | dict(model_type="DiffIRS2Model")), is_train=False, check_files=False)


def test_options_that_inpainting_does_not_read_are_reported(inside):
    dead = dict(net_d_iters=2, net_d_init_iters=5, encoder_iter=7, lr_sr=1e-4, mixing_augs=dict(mixup=True))
    options = options_of("s2", **dead)
    options["path"].pop("pretrain_network_g")
    message = {warning.split(": ")[1]: warning for warning in load_options(write_options(options)).warnings}
    assert "stage 2 starts from random weights" in message.pop("path.pretrain_network_g")
    assert all(" does not read it (only " in warning for warning in message.values())
    also = [re.search(r"\(also ([^)]*)\)", warning) for warning in message.values()]
    named = {key.removeprefix("train.") for key in message} | {key for one in also if one for key in one[1].split(", ")}
    assert named == set(dead)


@pytest.mark.parametrize("stage", ["train_celebahqS1", "train_place256_bigLdataS2"])
def test_the_alternative_perceptual_loss_is_chosen_in_one_word(stage):
    recipe = recipes_folder() / "inpaint" / f"{stage}.yml"
    Path("mine.yml").write_text(f"base: [{recipe}, {recipe.with_name('vgg.yml')}]\nname: mine\n")
    published, mine = (load_options(path, check_files=False).values for path in (recipe, "mine.yml"))
    assert published["train"]["perceptual_opt"] == dict(type="ADE20KPerceptualLoss", perceptual_weight=30.0)
    assert mine["train"]["perceptual_opt"]["vgg_type"] == "vgg16"
    differing = {key for key in published["train"] if published["train"][key] != mine["train"][key]}
    assert differing == {"perceptual_opt"}


@pytest.mark.slow
def test_two_processes_keep_equal_networks(inside):
    """Different data on each rank, one generator and one discriminator."""
    options = options_of("s2", name="ranks", iterations=3)
    write_options(options, "ranks.yml")
    Path("ranks.py").write_text(
        "import sys, torch, diffir_sr\n"
        "from diffir_sr.models.diffir_inpainting_models import InpaintModel\n"
        "step = InpaintModel.optimize_parameters\n"
        "def gathered(tensors):\n"
        "    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])\n"
        "    both = [torch.zeros_like(flat) for _ in range(2)]\n"
        "    torch.distributed.all_gather(both, flat)\n"
        "    return (both[0] - both[1]).abs().max().item()\n"
        "def watched(self, iteration):\n"
        "    step(self, iteration)\n"
        "    gaps = [gathered(net.parameters()) for net in (self.net_g, self.adversary.net)]\n"
        "    gaps.append(gathered([self.gt]))\n"
        "    if self.opt['rank'] == 0:\n"
        "        print('GAPS', iteration, *gaps, flush=True)\n"
        "InpaintModel.optimize_parameters = watched\n"
        "from diffir_sr.cli import basicsr_main\n"
        "sys.exit(basicsr_main(['train', '-opt', 'ranks.yml', '--launcher', 'pytorch', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "ranks.py"]
    around = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([*command, "--local-rank=0"], env=around, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    gaps = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("GAPS")]
    assert [int(row[0]) for row in gaps] == [1, 2, 3]
    assert all(float(row[1]) == 0 and float(row[2]) == 0 and float(row[3]) > 0 for row in gaps), gaps
