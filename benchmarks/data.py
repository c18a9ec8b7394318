"""Training pairs per second, ours and BasicSR's, in one run: python benchmarks/data.py [-o benchmarks/results/data.md].

Super-resolution x4: LMDBs of 480-pixel sub-images of real photographs, patches of 256, flips and turns, to tensors.
"""

import argparse
import logging
import os
import platform
import random
import re
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import skimage.data
import torch
from torch.utils.data import DataLoader

from diffir_sr.cli import main as diffir
from diffir_sr.data.images import encode_png
from diffir_sr.prepare.downscale import smaller

# isort: split
from basicsr.data import build_dataset  # after diffir_sr, which repairs it

REPO = Path(__file__).resolve().parents[1]
SECONDS = 4.0


def make_data(folder):
    photographs = [skimage.data.hubble_deep_field(), skimage.data.astronaut(), skimage.data.retina()]
    number = 0
    for photo in photographs:
        for top in range(0, photo.shape[0] - 479, 160):
            for left in range(0, photo.shape[1] - 479, 160):
                gt = np.ascontiguousarray(photo[top : top + 480, left : left + 480])
                for name, image in (("gt", gt), ("lq", smaller(gt, scale=4))):
                    path = folder / name / f"{number:03d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode_png(image))
                number += 1
    for name in ("gt", "lq"):
        for codec in ("png", "raw"):
            diffir(
                ["prepare", "lmdb", str(folder / name), "-o", str(folder / codec / f"{name}.lmdb"), "--codec", codec]
            )
    return number


def dataset(folder, *, kind, codec, as_bytes=False):
    roots = {f"dataroot_{name}": str(folder / codec / f"{name}.lmdb") for name in ("gt", "lq")}
    opt = dict(name="x", type=kind, phase="train", scale=4, gt_size=256, use_hflip=True, use_rot=True, **roots)
    built = build_dataset(opt | dict(io_backend=dict(type="lmdb")))
    if kind == "PairedDataset":
        built.draws_are_unique = True
        if as_bytes:
            built.give_bytes()
    return built


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


def loaded(data, workers):
    """Pairs per second out of a DataLoader with batches of 8."""
    indices = [random.randrange(len(data)) for _ in range(400_000)]
    batches = iter(DataLoader(data, batch_size=8, sampler=indices, num_workers=workers))
    for _ in range(10):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += 8
    return count / (time.perf_counter() - start)


def machine():
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {model[1] if model else platform.processor()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("basicsr").setLevel("WARNING")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.strip()
    cases = {
        "BasicSR PairedImageDataset, PNG": dict(kind="PairedImageDataset", codec="png"),
        "PairedDataset, PNG": dict(kind="PairedDataset", codec="png"),
        "PairedDataset, raw, float": dict(kind="PairedDataset", codec="raw"),
        "PairedDataset, raw, uint8": dict(kind="PairedDataset", codec="raw", as_bytes=True),
    }
    with tempfile.TemporaryDirectory() as name:
        count = make_data(Path(name))
        sizes = {codec: sum(f.stat().st_size for f in Path(name, codec).rglob("data.mdb")) for codec in ("png", "raw")}
        rows = {}
        for label, how in cases.items():
            data = dataset(Path(name), **how)
            rows[label] = [alone(data), *(loaded(data, workers) for workers in (0, 1, 2))]
    base = rows["BasicSR PairedImageDataset, PNG"]
    lines = [
        "# Training pairs per second, super-resolution x4",
        "",
        f"`python benchmarks/data.py`, {date.today()}, commit {commit}, {machine()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}. {count} sub-images of 480 pixels (LMDBs: PNG "
        f"{sizes['png'] / 2**20:.0f} MiB, "
        f"raw {sizes['raw'] / 2**20:.0f} MiB, in the page cache), patches of 256, one torch thread. In brackets: times "
        "BasicSR's.",
        "",
        "| dataset, codec | one process | DataLoader, 0 workers | 1 worker | 2 workers |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, values in rows.items():
        cells = [f"{value:,.0f} ({value / first:.1f})" for value, first in zip(values, base, strict=True)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
