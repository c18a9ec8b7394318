"""The commands of datasets/README.md, run: they make what the option files look for."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import yaml

from diffir_sr.cli import main
from diffir_sr.data.checks import check_dataset_options

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
    for words in commands():
        assert main([*words[1:], "--jobs", "1"]) == 0
    recipe = yaml.safe_load((REPO / "options/train_DiffIRS1_x4.yml").read_text(encoding="utf-8"))
    checked = 0
    for name, section in recipe["datasets"].items():
        if re.search("DF2K|Urban100", section["dataroot_gt"]):
            check_dataset_options(section | dict(scale=4, phase=name.split("_")[0]))
            checked += 1
    assert checked == 2
