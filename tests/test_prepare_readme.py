"""The commands of datasets/README.md, run: they make what the option files look for."""

import re
import shlex
import tarfile
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from diffir_sr.cli import main
from diffir_sr.data.checks import check_dataset_options
from diffir_sr.options import load_options

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "datasets/README.md").read_text(encoding="utf-8")


def commands():
    lines = PAGE.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("diffir prepare ")]


def test_the_commands_make_what_the_option_files_name():
    photo = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    for folder, side in (("datasets/DF2K/HR", 510), ("Urban100/original", 101)):
        Path(folder).mkdir(parents=True)
        cv2.imwrite(f"{folder}/a.png", photo[:side, :side])
    for name in ("photos", "photos_small"):
        Path("mine", name).mkdir(parents=True)
    cv2.imwrite("mine/photos/a.png", photo[:96, :96])
    cv2.imwrite("mine/photos_small/a_small.png", photo[:24, :24])
    Path("RealSR/Canon/Test/4").mkdir(parents=True)
    cv2.imwrite("RealSR/Canon/Test/4/Canon_001_HR.png", photo[:96, :96])
    cv2.imwrite("RealSR/Canon/Test/4/Canon_001_LR4.png", photo[:24, :24])
    for split in ("train", "test"):
        for side in ("blur", "sharp"):
            Path("downloads/GoPro", split, "GOPR01", side).mkdir(parents=True)
            cv2.imwrite(f"downloads/GoPro/{split}/GOPR01/{side}/0001.png", np.tile(photo, (2, 2, 1))[:720, :1000])
    for split in ("train", "test"):
        Path("mine", split).mkdir()
        cv2.imwrite(f"mine/{split}/b.png", np.tile(photo, (2, 2, 1))[:540, :540])
    Path("datasets/Places/val").mkdir(parents=True)
    cv2.imwrite("datasets/Places/val/a.png", photo[:200, :300])
    Path("datasets/others").mkdir()
    with tarfile.open("datasets/others/00000.tar", "w") as tar:
        tar.add("mine/photos/a.png", "0.gt.png")
        tar.add("mine/photos_small/a_small.png", "0.lq.png")
    for words in commands():
        assert main([*words[1:], "--jobs", "1"]) == 0
    shards = [
        {f"dataroot_{side}": f"datasets/{place}" for side, place in zip(("lq", "gt"), places, strict=True)}
        for places in (("others/lq", "others/gt"), ("DF2K/LR_shards", "DF2K/HR_shards"))
    ]
    for roots in shards:
        check_dataset_options(dict(type="PairedDataset", scale=4, phase="val", **roots))
    checked = []
    for recipe in ("train_DiffIRS1_x4", "realsr/train_DiffIRS1_x4", "deblur/train_DiffIRS1", "deblur/test_DiffIRS2"):
        path = REPO / f"options/{recipe}.yml"
        options = load_options(path, is_train="train" in recipe, check_files=False).values
        for name, section in options["datasets"].items():
            if re.search("DF2K|Urban100|GoPro|RealSRV3", str(section["dataroot_gt"])):
                if isinstance(section["dataroot_gt"], list):
                    section["dataroot_gt"] = section["dataroot_gt"][0]  # OST comes from elsewhere
                check_dataset_options(section | dict(scale=options["scale"], phase=name.split("_")[0]))
                checked.append(section["name"])
    assert checked == ["DF2K", "Urban100", "DF2K_OST", "RealSRV3-Canon", "GoPro", "GoPro-val", "GoPro"]
