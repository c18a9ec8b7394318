"""The benchmark tests of `options/bench`: their protocols, and runs of them on stand-ins for data and weights."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from test_metrics_perceptual import needs_weights
from toy import NETWORK, write_pairs

from diffir_sr.cli import basicsr_main, main
from diffir_sr.evaluation.presets import plan_measurement
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder

FOLDER = recipes_folder() / "bench"
LUMA = {"crop_border": 4, "test_y_channel": True}
COLOUR = {"crop_border": 0, "test_y_channel": False}
WHOLE = {"crop_border": 0, "better": "lower"}
PROTOCOLS = {
    "sr": {
        "psnr": {"type": "calculate_psnr", **LUMA},
        "ssim": {"type": "calculate_ssim", **LUMA},
        "lpips_alex": {"type": "calculate_lpips", "net": "alex", **WHOLE},
        "dists": {"type": "calculate_dists", **WHOLE},
    },
    "realsr": {
        "lpips_vgg": {"type": "calculate_lpips", "net": "vgg", **WHOLE},
        "dists": {"type": "calculate_dists", **WHOLE},
        "psnr": {"type": "calculate_psnr", **LUMA},
        "ssim": {"type": "calculate_ssim", **LUMA},
    },
    "deblur": {
        "psnr": {"type": "calculate_psnr", **COLOUR},
        "ssim_matlab": {"type": "calculate_ssim_matlab", **COLOUR},
    },
    "inpaint": {
        "lpips_vgg": {"type": "calculate_lpips", "net": "vgg", **WHOLE},
        "ssim": {"type": "calculate_ssim", **COLOUR},
    },
}
# file: protocol, scale, datasets in their order, the paper's numbers
BENCHMARKS = {
    "Set5": ("sr", 4, ["Set5"], []),
    "Set14": ("sr", 4, ["Set14"], ["27.73", "0.1117"]),
    "Urban100": ("sr", 4, ["Urban100"], ["26.05", "0.1007"]),
    "General100": ("sr", 4, ["General100"], ["30.58", "0.0717"]),
    "Manga109": ("sr", 4, ["Manga109"], ["30.32", "0.0463"]),
    "DIV2K100": ("sr", 4, ["DIV2K100"], ["29.13", "0.0871"]),
    "RealSR": ("realsr", 4, ["RealSRV3-Canon"], ["0.3527", "0.1588", "27.65"]),
    "NTIRE2020": ("realsr", 4, ["NTIRE2020-Track1"], ["0.3088", "0.1131", "27.31"]),
    "GoPro": ("deblur", 1, ["GoPro"], ["33.20", "0.963"]),
    "HIDE": ("deblur", 1, ["HIDE"], ["31.55", "0.947"]),
    "CelebA-HQ": ("inpaint", 1, ["CelebA-HQ-thin", "CelebA-HQ-thick"], ["4.5967", "0.0769", "5.1440", "0.0918"]),
    "Places": ("inpaint", 1, ["Places-thin", "Places-thick"], ["0.4913", "0.0758", "1.9788", "0.1306"]),
}
MODELS = {"sr": "DiffIRGANS2Model", "realsr": "DiffIRGANS2Model"}
MODELS |= {"deblur": "DiffIRS2Model", "inpaint": "DiffIRInpaintS2Model"}


def file_of(name):
    return FOLDER / f"test_{name}.yml"


def test_every_benchmark_has_a_file_and_every_file_is_checked():
    assert {path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.yml")} == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_measure_by_the_protocol_of_the_paper_s_table(name):
    protocol, scale, datasets, _ = BENCHMARKS[name]
    loaded = load_options(file_of(name), is_train=False, check_files=False)
    values = loaded.values
    assert loaded.warnings == []
    assert values["val"]["metrics"] == PROTOCOLS[protocol]
    assert (values["scale"], values["model_type"]) == (scale, MODELS[protocol])
    assert [dataset["name"] for dataset in values["datasets"].values()] == datasets
    assert (values["path"]["strict_load_g"], values["val"]["save_img"]) == (True, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_benchmark_and_the_command_that_evaluates_measure_the_same(protocol):
    images = plan_measurement(protocol).images
    given = {
        name: {key: value for key, value in opt.items() if key != "better"} for name, opt in PROTOCOLS[protocol].items()
    }
    assert images == given


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_say_their_command_and_the_number_of_the_paper(name):
    text = file_of(name).read_text()
    head = text.split("base:")[0]
    assert f"# Run      basicsr test -opt options/bench/test_{name}.yml" in head
    assert "DiffIR paper" in head
    assert "table of" in head
    assert all(number in head for number in BENCHMARKS[name][3])
    assert ("diffir evaluate" in head and "FID" in head) == (BENCHMARKS[name][0] == "inpaint")


def test_benchmarks_share_what_they_share():
    for path in FOLDER.glob("test_*.yml"):
        assert not {"network_g", "val", "train", "model_type", "scale"} & yaml.safe_load(path.read_text()).keys()


def stand_in(name):
    """An option file on top of a benchmark's that names small data, a small network and its weights."""
    protocol, scale, *_ = BENCHMARKS[name]
    write_pairs("data", scale=scale, size=64, count=2, lmdb=False)
    if scale == 1:
        _blur(Path("data"))
    roots = {"dataroot_gt": "data/gt", "dataroot_lq": "data/lq"}
    values = load_options(file_of(name), is_train=False, check_files=False).values
    small = {key: value for key, value in NETWORK.items() if protocol != "inpaint" or key != "num_refinement_blocks"}
    torch.manual_seed(0)
    torch.save({values["path"]["param_key_g"]: build_network(values["network_g"] | small).state_dict()}, "net.pth")
    if protocol == "inpaint":
        roots = {"dataroot_gt": "data/gt", "dataroot_mask": "data/masks"}
        _cut_holes(Path("data"))
    options = {
        "base": str(file_of(name)),
        "num_gpu": 0,
        "datasets": dict.fromkeys(values["datasets"], roots),
        "network_g": small,
        "path": {"pretrain_network_g": "net.pth"},
    }
    Path("stand_in.yml").write_text(yaml.safe_dump(options))
    return values["name"]


def _blur(folder):
    for path in (folder / "gt").iterdir():
        (folder / "lq" / path.name).write_bytes(
            encode_png(cv2.blur(decode(path.read_bytes(), where=path.name), (5, 1)))
        )


def _cut_holes(folder):
    (folder / "masks").mkdir()
    for path in (folder / "gt").iterdir():
        mask = np.zeros((64, 64, 1), np.uint8)
        mask[20:40, 10:50] = 255
        (folder / "masks" / path.name).write_bytes(encode_png(mask))


@pytest.mark.parametrize(
    "name", ["GoPro", *(pytest.param(name, marks=needs_weights) for name in ("Set5", "RealSR", "CelebA-HQ"))]
)
def test_a_benchmark_runs_and_gives_what_the_command_gives(name):
    protocol, _, datasets, _ = BENCHMARKS[name]
    run = stand_in(name)
    assert basicsr_main(["test", "-opt", "stand_in.yml"]) == 0
    for dataset in datasets:
        with Path("results", run, f"{dataset}.csv").open() as file:
            *rows, mean = csv.DictReader(file)
        assert [row["image"] for row in rows] == ["p0", "p1"]
        metrics = list(PROTOCOLS[protocol])
        assert list(mean) == ["image", *metrics]
        command = ["evaluate", f"results/{run}/visualization/{dataset}", "data/gt", "--preset", protocol]
        assert main([*command, "--metrics", *metrics, "--json", "again.json"]) == 0
        again = json.loads(Path("again.json").read_text())
        for metric in metrics:
            assert float(mean[metric]) == pytest.approx(again["mean"][metric], abs=1e-6)
