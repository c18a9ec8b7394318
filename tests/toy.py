"""A toy world for training tests: photographs cut small, networks of a few thousand numbers, option files."""

import faulthandler
import json
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import skimage.data
import torch
import yaml

from diffir_sr.cli import basicsr_main, main
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.downscale import smaller

NETWORK = dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 2, 4, 8], n_encoder_res=1)
NETWORK |= dict(ffn_expansion_factor=2.0, LayerNorm_type="BiasFree")
S1 = dict(type="DiffIRS1", **NETWORK)
S2 = dict(type="DiffIRS2", timesteps=4, n_denoise_res=1, linear_start=0.1, linear_end=0.99, **NETWORK)
ADAM = dict(type="Adam", lr=2e-4, betas=[0.9, 0.99])
PSNR = dict(type="calculate_psnr", crop_border=4, test_y_channel=True)
TIMING = {"time", "data_time"}
MODELS = {"s1": "DiffIRS1Model", "s2": "DiffIRS2Model", "gan": "DiffIRGANS2Model"}


def write_pairs(folder, *, scale=4, size=64, count=4, lmdb=True):
    """Pairs from a real photograph: folder/gt, folder/lq, and both as LMDB."""
    folder = Path(folder)
    photo = skimage.data.astronaut()
    for index in range(count):
        top, left = 100 * (index // 4) + 7 * index, 60 * (index % 4)
        gt = np.ascontiguousarray(photo[top : top + size, left : left + size])
        for name, image in (("gt", gt), ("lq", smaller(gt, scale=scale))):
            path = folder / name / f"p{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))
    if lmdb:
        for name in ("gt", "lq"):
            assert main(["prepare", "lmdb", str(folder / name), "-o", str(folder / f"{name}.lmdb"), "--jobs", "1"]) == 0
    return folder


def train_options(stage, *, data="data", name=None, iterations=4, **train):
    """Options of a toy training; `train` replaces entries of the train section."""
    lmdb = Path(data, "gt.lmdb").exists()
    suffix = ".lmdb" if lmdb else ""
    pair = dict(type="PairedDataset", dataroot_gt=f"{data}/gt{suffix}", dataroot_lq=f"{data}/lq{suffix}")
    patches = dict(gt_size=32, use_hflip=True, use_rot=True, batch_size_per_gpu=2, num_worker_per_gpu=0)
    section = dict(
        ema_decay=0.9,
        optim_g=ADAM,
        scheduler=dict(type="MultiStepLR", milestones=[2], gamma=0.5),
        total_iter=iterations,
        pixel_opt=dict(type="L1Loss", loss_weight=1.0, reduction="mean"),
    )
    options = dict(
        name=name or f"toy_{stage}",
        model_type=MODELS[stage],
        scale=4,
        num_gpu=0,
        manual_seed=0,
        datasets=dict(
            train=dict(name="train", dataset_enlarge_ratio=3, **pair, **patches),
            val=dict(name="val", **pair),
        ),
        network_g=dict(S1),
        path={},
        val=dict(val_freq=iterations, save_img=False, metrics=dict(psnr=PSNR)),
        logger=dict(print_freq=1, save_checkpoint_freq=2, use_tb_logger=False),
    )  # fmt: skip
    if stage != "s1":
        options["network_g"], options["network_S1"] = dict(S2), dict(S1)
        start = "experiments/toy_s1/models/net_g_latest.pth"
        options["path"] = dict(pretrain_network_S1=start, pretrain_network_g=start, strict_load_g=False)
        options["path"] |= dict(param_key_g="params_ema")
        section |= dict(kd_opt=dict(type="KDLoss", loss_weight=1.0, temperature=0.15), encoder_iter=0)
    if stage == "gan":
        options["path"] |= dict(pretrain_network_g="experiments/toy_s2/models/net_g_latest.pth", strict_load_g=True)
        options["network_d"] = dict(type="UNetDiscriminatorSN", num_in_ch=3, num_feat=8, skip_connection=True)
        section |= dict(optim_d=ADAM, gan_opt=dict(type="GANLoss", gan_type="vanilla", loss_weight=0.1))
        section |= dict(net_d_iters=1, net_d_init_iters=0)
    options["train"] = section | train
    return options


def write_options(options, file="toy.yml"):
    Path(file).write_text(yaml.safe_dump(options, sort_keys=False))
    return file


def run_training(options, *extra):
    return basicsr_main(["train", "-opt", write_options(options, f"{options['name']}.yml"), *extra])


@contextmanager
def working_in(folder):
    """The working directory meanwhile."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def train_stages(folder, iterations, *, lmdb=True):
    """Write pairs to `folder` and train each stage there for so many iterations, in this order; returns the folder."""
    with working_in(folder):
        write_pairs("data", lmdb=lmdb)
        for stage, count in iterations.items():
            assert run_training(train_options(stage, iterations=count)) == 0
    return folder


def trained(stage, name=None):
    """The weights that a toy training saved last."""
    return torch.load(f"experiments/{name or f'toy_{stage}'}/models/net_g_latest.pth", weights_only=True)


def warm_up_law(iterations):
    """The published law of a warm-up of some iterations, with short intervals."""
    law = dict(encoder_iter=iterations, lr_encoder=1e-3, gamma_encoder=0.1, lr_decay_encoder=2)
    return law | dict(lr_sr=5e-4, gamma_sr=0.5, lr_decay_sr=3)


def rows(name, file):
    """The lines of a record of a run, without what differs between two runs alike."""
    lines = Path(f"experiments/{name}/{file}").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


def files_of(name):
    """Bytes of the safetensors files, without the name of the run in their cards."""
    found = Path(f"experiments/{name}/models").glob("*.safetensors")
    return {file.name: file.read_bytes().replace(f'"{name}'.encode(), b'"name') for file in found}


def killed_at(number, run):
    """`run()` in a process that kills itself at its `number`-th writing to disk; False if it ended before."""
    child = os.fork()
    if not child:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            written = event == "os.rename" or (event == "open" and str(arguments[1]) in ("a", "w", "wb"))
            if written and "experiments" in str(arguments[0]):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 99
        faulthandler.dump_traceback_later(300, exit=True)  # a child that hangs fails the test
        try:
            sys.addaudithook(hook)
            code = run()
        except BaseException:
            traceback.print_exc()
        finally:  # never back into pytest
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
