"""A small clean set of real photographs in every form that the doctor passes, and ways to harm it."""

from pathlib import Path

import cv2
import lmdb
import numpy as np
import skimage.data
import yaml

from diffir_sr.cli import main
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.downscale import smaller

SCALE = 4
# 144-pixel parts that differ; `sky` is nearly flat. Training pictures and test pictures are of different photographs.
PARTS = {
    "cat": (skimage.data.chelsea, 60, 120),
    "ear": (skimage.data.chelsea, 10, 290),
    "cup": (skimage.data.coffee, 60, 200),
    "spoon": (skimage.data.coffee, 230, 330),
    "cells": (skimage.data.immunohistochemistry, 0, 0),
    "tissue": (skimage.data.immunohistochemistry, 300, 260),
    "sky": (skimage.data.rocket, 4, 4),
}
TEST_PARTS = {"face": (skimage.data.astronaut, 20, 150), "suit": (skimage.data.astronaut, 300, 200)}
JPEG_PARTS = {"gland": (skimage.data.immunohistochemistry, 10, 360), "table": (skimage.data.coffee, 0, 440)}
INPAINT_PARTS = {"eye": (skimage.data.retina, 500, 200), "vein": (skimage.data.retina, 700, 900)}
GREY_PARTS = {"man": (skimage.data.camera, 60, 150), "stones": (skimage.data.gravel, 0, 0)}
GT_SIZE = 64
SIDE = 144


def part(read, top, left, side=SIDE):
    """(side, side, C) of a photograph; `sky` is smoothed, as it was stored as JPEG."""
    photo = read()
    photo = photo[..., None] if photo.ndim == 2 else photo[..., :3]
    photo = cv2.GaussianBlur(photo, (0, 0), 2) if read is skimage.data.rocket else photo
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


def put(path, image):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(encode_png(image))
    else:
        path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1].tobytes())


def put_pairs(folder, parts, suffix=".png"):
    for name, where in parts.items():
        gt = part(*where)
        put(f"{folder}/gt/{name}{suffix}", gt)
        put(f"{folder}/lq/{name}{suffix}", smaller(gt, scale=SCALE))


def prepare(*words):
    assert main(["prepare", *words, "--jobs", "1"]) == 0


def clean_world():
    """Folders, LMDBs and shards under the current folder, without faults; returns the option file that names them."""
    put_pairs("train", PARTS)
    put_pairs("test", TEST_PARTS)
    put_pairs("grey", GREY_PARTS)
    put_pairs("jpeg", JPEG_PARTS, suffix=".jpg")
    for codec in ("png", "raw"):
        for kind in ("gt", "lq"):
            prepare("lmdb", f"test/{kind}", "-o", f"test_{codec}/{kind}.lmdb", "--codec", codec)
    for kind in ("gt", "lq"):
        prepare("shards", f"test/{kind}", "-o", f"test_shards/{kind}")
    Path("some.txt").write_text("face.png (144,144,3)\n")
    for index, (name, where) in enumerate(INPAINT_PARTS.items()):
        put(f"inpaint/gt/{name}.png", part(*where))
        mask = np.zeros((SIDE, SIDE, 1), np.uint8)
        mask[20 + index : 60, 30 : 80 + index] = 255
        put(f"inpaint/mask/{name}.png", mask)
    paired = dict(type="PairedDataset")
    train = dict(name="t", **paired, dataroot_gt="train/gt", dataroot_lq="train/lq", gt_size=GT_SIZE)
    datasets = {
        "train": train | dict(batch_size_per_gpu=1, num_worker_per_gpu=0),
        "val_1": dict(name="a", **paired, dataroot_gt="test/gt", dataroot_lq="test/lq"),
        "val_2": dict(name="b", **paired, dataroot_gt="test/gt", dataroot_lq="test/lq", meta_info_file="some.txt"),
        "val_3": dict(name="c", **paired, dataroot_gt="test_png/gt.lmdb", dataroot_lq="test_png/lq.lmdb"),
        "val_4": dict(name="d", **paired, dataroot_gt="test_raw/gt.lmdb", dataroot_lq="test_raw/lq.lmdb"),
        "val_5": dict(name="e", **paired, dataroot_gt="grey/gt", dataroot_lq="grey/lq"),
        "val_6": dict(name="f", **paired, dataroot_gt="jpeg/gt", dataroot_lq="jpeg/lq"),
        "val_7": dict(name="g", **paired, dataroot_gt="test_shards/gt", dataroot_lq="test_shards/lq"),
    }
    options = yaml.safe_load((Path(__file__).parents[1] / "options/train_DiffIRS1_x4.yml").read_text())
    Path("data.yml").write_text(yaml.safe_dump(options | dict(datasets=datasets)))
    return "data.yml"


def truncate(path):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


def change_lmdb(folder, change):
    """Call `change(transaction)` on the data of an LMDB."""
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        change(transaction)
