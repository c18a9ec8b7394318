"""Training samples per second, ours and BasicSR's, in one run: python benchmarks/data.py [-o FILE].

Three cases on real photographs in LMDBs: super-resolution x4 (480-pixel sub-images, patches of 256, flips and turns),
motion deblurring (1280 x 720, patches of 512, the eight symmetries), inpainting (256-pixel images, drawn masks; BasicSR
has no such dataset, so its plain reader of whole images, FFHQDataset, stands beside it, which draws no masks).
"""

import argparse
import logging
import os
import platform
import random
import tempfile
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from torch.utils.data import DataLoader

from diffir_sr.cli import main as diffir
from diffir_sr.data.transport import SharedBatches
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.downscale import smaller
from diffir_sr.training.run import start_worker

# isort: split
from basicsr.data import build_dataset  # after diffir_sr, which repairs it
from setting import commit, machine

SECONDS = 4.0


PHOTOGRAPHS = ("hubble_deep_field", "astronaut", "retina")


def cuts(height, width, step):
    for photo in (getattr(skimage.data, name)() for name in PHOTOGRAPHS):
        enlarge = max(1, height / photo.shape[0], width / photo.shape[1])
        photo = cv2.resize(photo, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC) if enlarge > 1 else photo
        for top in range(0, photo.shape[0] - height + 1, step):
            for left in range(0, photo.shape[1] - width + 1, step):
                yield np.ascontiguousarray(photo[top : top + height, left : left + width])


def moved(image):
    """Blurred as by a shake of the camera, along a slanted line of 15 pixels."""
    return cv2.filter2D(image, -1, np.eye(15, dtype=np.float32) / 15)


DATA = {  # task: images, and what is degraded of them
    "sr": (lambda: cuts(480, 480, 160), lambda gt: smaller(gt, scale=4)),
    "deblur": (lambda: cuts(720, 1280, 100), moved),
    "inpaint": (lambda: cuts(256, 256, 128), None),
}


def make_data(folder, task):
    """LMDBs of both codecs; how many images, and the megabytes of each codec."""
    images, degrade = DATA[task]
    for number, gt in enumerate(images()):
        for name, image in (("gt", gt), ("lq", degrade(gt) if degrade else None)):
            if image is not None:
                path = folder / name / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(image))
    for name in ("gt", "lq") if degrade else ("gt",):
        for codec in ("png", "raw"):
            diffir(
                ["prepare", "lmdb", str(folder / name), "-o", str(folder / codec / f"{name}.lmdb"), "--codec", codec]
            )
    sizes = {codec: sum(f.stat().st_size for f in Path(folder, codec).rglob("data.mdb")) for codec in ("png", "raw")}
    return number + 1, {codec: size / 2**20 for codec, size in sizes.items()}


def dataset(folder, *, kind, codec, as_bytes=False, **more):
    roots = {f"dataroot_{name}": str(folder / codec / f"{name}.lmdb") for name in ("gt", "lq")}
    if kind in ("InpaintDataset", "FFHQDataset"):
        del roots["dataroot_lq"]
    built = build_dataset(dict(name="x", type=kind, phase="train", io_backend=dict(type="lmdb"), **roots) | more)
    if hasattr(built, "draws_are_unique"):
        built.draws_are_unique = True
        if as_bytes:
            built.give_bytes()
    return built


SR = dict(scale=4, gt_size=256, use_hflip=True, use_rot=True)
BLUR = dict(scale=1, gt_size=512)
TURNED = dict(use_hflip=True, use_rot=True)
CASES = {
    "sr": {
        "BasicSR PairedImageDataset, PNG": dict(kind="PairedImageDataset", codec="png", **SR),
        "PairedDataset, PNG": dict(kind="PairedDataset", codec="png", **SR),
        "PairedDataset, raw, float": dict(kind="PairedDataset", codec="raw", **SR),
        "PairedDataset, raw, uint8": dict(kind="PairedDataset", codec="raw", as_bytes=True, **SR),
    },
    "deblur": {
        "BasicSR PairedImageDataset, PNG": dict(kind="PairedImageDataset", codec="png", **BLUR, **TURNED),
        "DeblurPairedDataset, PNG": dict(kind="DeblurPairedDataset", codec="png", geometric_augs=True, **BLUR),
        "DeblurPairedDataset, raw, uint8": dict(
            kind="DeblurPairedDataset", codec="raw", geometric_augs=True, as_bytes=True, **BLUR
        ),
    },
    "inpaint": {
        "BasicSR FFHQDataset, PNG, no masks": dict(
            kind="FFHQDataset", codec="png", use_hflip=True, mean=[0.0] * 3, std=[1.0] * 3
        ),
        "InpaintDataset, PNG": dict(kind="InpaintDataset", codec="png", gt_size=256, use_hflip=True),
        "InpaintDataset, raw, uint8": dict(
            kind="InpaintDataset", codec="raw", gt_size=256, use_hflip=True, as_bytes=True
        ),
        "InpaintDataset, raw, distortions": dict(
            kind="InpaintDataset", codec="raw", gt_size=256, use_hflip=True, as_bytes=True, augment="distortions"
        ),
    },
}
TITLES = {
    "sr": "Super-resolution x4: 480-pixel sub-images, patches of 256",
    "deblur": "Motion deblurring: 1280 x 720, patches of 512",
    "inpaint": "Inpainting: 256-pixel images and masks",
}


def alone(data):
    """Pairs per second of one process, called directly."""
    indices = [random.randrange(len(data)) for _ in range(50_000)]
    for index in indices[:20]:
        data[index]
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        data[indices[count % len(indices)]]
        count += 1
    return count / (time.perf_counter() - start)


def decoded(folder):
    """Pairs per second whose PNG files one process decodes, and does nothing else with."""
    names = [path.name for path in sorted((folder / "gt").glob("*.png"))]
    pairs = [
        [np.fromfile(folder / side / name, np.uint8) for side in ("gt", "lq") if (folder / side).is_dir()]
        for name in names
    ]
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        for png in pairs[count % len(pairs)]:
            cv2.imdecode(png, cv2.IMREAD_COLOR)
        count += 1
    return count / (time.perf_counter() - start)


def loaded(data, workers):
    """Pairs per second out of a DataLoader with batches of 8; those of ours come as in a training."""
    indices = [random.randrange(len(data)) for _ in range(400_000)]
    ours = dict(worker_init_fn=start_worker, collate_fn=SharedBatches()) if hasattr(data, "draws_are_unique") else {}
    batches = iter(DataLoader(data, batch_size=8, sampler=indices, num_workers=workers, **ours))
    for _ in range(10):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += 8
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(CASES), default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("basicsr").setLevel("WARNING")
    lines = [
        "# Training samples per second",
        "",
        f"`python benchmarks/data.py`, {date.today()}, commit {commit()}, {machine()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}. LMDBs in the page cache, batches of 8, one torch thread. In brackets: "
        f"times the first row's. Load of the machine before: {os.getloadavg()[0]:.1f}.",
    ]
    for task, cases in ((task, CASES[task]) for task in args.tasks):
        lines += ["", f"## {TITLES[task]}", "", *measured(task, cases)]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


def measured(task, cases):
    with tempfile.TemporaryDirectory() as name:
        count, sizes = make_data(Path(name), task)
        alone_decoded = decoded(Path(name))
        rows = {}
        for label, how in cases.items():
            data = dataset(Path(name), **how)
            rows[label] = [alone(data), *(loaded(data, workers) for workers in (0, 1, 2))]
    yield (
        f"{count} images; PNG {sizes['png']:.0f} MiB, raw {sizes['raw']:.0f} MiB. Decoding PNG alone: "
        f"{alone_decoded:,.0f} a second in one process, which bounds every row that reads PNG."
    )
    yield ""
    yield "| dataset, codec | one process | DataLoader, 0 workers | 1 worker | 2 workers |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    base = next(iter(rows.values()))
    for label, values in rows.items():
        cells = [f"{value:,.0f} ({value / first:.1f})" for value, first in zip(values, base, strict=True)]
        yield f"| {label} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
