"""Ten thousand images through `diffir prepare`, in bounded memory, killed in the middle and finished:
python benchmarks/prepare_many.py [-n 10000] [-o benchmarks/results/prepare.md].

Memory is the sum over all processes of a job, sampled from /proc every tenth of a second (shared pages count once per
process, so it is an upper bound).
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from setting import commit, machine

REPO = Path(__file__).resolve().parents[1]


def make_tree(folder, count):
    """Cuts of a photograph, each shifted and marked so that no two are equal."""
    photo = cv2.cvtColor(skimage.data.retina(), cv2.COLOR_RGB2BGR)
    rng = np.random.default_rng(0)
    for number in range(count):
        top, left = rng.integers(0, photo.shape[0] - 256), rng.integers(0, photo.shape[1] - 320)
        image = photo[top : top + 256, left : left + 320].copy()
        image[0, :32] = rng.integers(0, 256, (32, 3))
        path = folder / f"{number // 1000:02d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def family(pid):
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def memory_of(pid):
    """Resident and proportional MiB of a process and its children: the second splits shared pages fairly."""
    resident = shared = 0
    for one in family(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        resident += int(re.search(r"^Rss: +(\d+)", text, re.MULTILINE)[1])
        shared += int(re.search(r"^Pss: +(\d+)", text, re.MULTILINE)[1])
    return resident / 1024, shared / 1024


def run(*words, kill_when=None):
    """Seconds, peak MiB (resident, proportional) and exit code of `diffir prepare ...`; SIGKILL when asked to."""
    start, peak = time.perf_counter(), (0.0, 0.0)
    command = [sys.executable, "-m", "diffir_sr", "prepare", *map(str, words), "--jobs", "2"]
    with open(os.devnull, "w") as silent:
        process = subprocess.Popen(command, cwd=REPO, stdout=silent, stderr=silent)
        while process.poll() is None:
            peak = tuple(max(pair) for pair in zip(peak, memory_of(process.pid), strict=True))
            if kill_when is not None and kill_when():
                process.send_signal(signal.SIGKILL)
                kill_when = None
            time.sleep(0.1)
    return time.perf_counter() - start, peak, process.returncode


def sha256_of(path):
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            total.update(part)
    return total.hexdigest()


def digest(folder):
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def count_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


def measure(root, count):
    """Rows of the table: job, seconds, MiB, what was compared."""
    images, half = root / "in", count * 4 // 2  # four squares of each image
    make_tree(images, count)
    cut = ("subimages", images, "--size", 192, "--step", 128)
    seconds, peak, code = run(*cut, "-o", root / "whole")
    assert code == 0, code
    yield f"subimages, {count_files(root / 'whole'):,} squares", seconds, peak, "uninterrupted"
    seconds, peak, code = run(*cut, "-o", root / "broken", kill_when=lambda: count_files(root / "broken") > half)
    assert code == -signal.SIGKILL, code
    left = count_files(root / "broken")
    yield "the same, killed (SIGKILL)", seconds, peak, f"{left:,} squares were there"
    seconds, peak, code = run(*cut, "-o", root / "broken")
    same = digest(root / "broken") == digest(root / "whole")
    lists = [(root / f"{name}.manifest.jsonl").read_bytes() for name in ("whole", "broken")]
    assert code == 0 and same and lists[0] == lists[1]  # noqa: PT018
    yield "the same, finished by a second call", seconds, peak, "files and manifest equal to the uninterrupted ones"
    shutil.rmtree(root / "broken")
    for codec in ("png", "raw"):
        seconds, peak, code = run("lmdb", root / "whole", "-o", root / f"{codec}.lmdb", "--codec", codec)
        assert code == 0, code
        size = (root / f"{codec}.lmdb" / "data.mdb").stat().st_size / 2**20
        yield f"lmdb, codec {codec}", seconds, peak, f"{size:,.0f} MiB"
    yield from measure_killed_lmdb(root, half=size / 2)
    few = root / "few"
    for path in sorted(images.rglob("*.png"))[:100]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    seconds, peak, code = run("subimages", few, "--size", 192, "--step", 128, "-o", root / "few_cut")
    yield "subimages of 100 images, to compare memory", seconds, peak, ""


def measure_killed_lmdb(root, *, half):
    """Rows of an LMDB whose building was killed when it was half as large as `root`/raw.lmdb, and made again."""

    def is_half_written():
        files = list(root.glob("broken.lmdb.partial-*/data.mdb"))
        return bool(files) and files[0].stat().st_size / 2**20 > half

    words = ("lmdb", root / "whole", "-o", root / "broken.lmdb", "--codec", "raw")
    seconds, peak, code = run(*words, kill_when=is_half_written)
    assert code == -signal.SIGKILL, code
    assert not (root / "broken.lmdb").exists()
    yield "lmdb, codec raw, killed (SIGKILL)", seconds, peak, "no LMDB was there"
    seconds, peak, code = run(*words)
    assert code == 0, code
    for name in (".manifest.jsonl", "/meta_info.txt", "/data.mdb"):
        pair = [sha256_of(Path(f"{root / one}.lmdb{name}")) for one in ("raw", "broken")]
        assert pair[0] == pair[1], name
    assert not list(root.glob("*.partial-*"))
    yield "the same, made by a second call", seconds, peak, "data, list and manifest equal to the uninterrupted ones"


def libraries():
    return ", ".join(f"{name} {version(name)}" for name in ("numpy", "opencv-python", "pillow", "lmdb"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--number", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    lines = [
        f"# Preparing {args.number:,} images",
        "",
        f"`python benchmarks/prepare_many.py`, {date.today()}, commit {commit()}, {machine()}, Python "
        f"{platform.python_version()}, {libraries()}. Images of 256 x 320 pixels; `--jobs 2`, "
        "so two processes and the one that leads them; peak memory of all together, resident and with shared pages "
        "counted once. Most of it is libraries: compare the last line.",
        "",
        "| job | seconds | peak RSS, MiB | peak PSS, MiB | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    with tempfile.TemporaryDirectory() as name:
        for job, seconds, peak, note in measure(Path(name), args.number):
            lines.append(f"| {job} | {seconds:.1f} | {peak[0]:,.0f} | {peak[1]:,.0f} | {note} |")
            print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
