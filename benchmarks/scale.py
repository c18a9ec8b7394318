"""What a million images cost where every image counts: python benchmarks/scale.py [-o benchmarks/results/scale.md].

Near duplicates among random 64-bit hashes with planted pairs; the indexes of shards, read at the start of a training;
training samples from shards and from LMDBs of the same images, in one process. Seconds are those of the processor,
which other programs on the machine lengthen less than those of the clock.
"""

import argparse
import multiprocessing
import platform
import resource
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import skimage.data
from setting import commit, machine

from diffir_sr.cli import main as diffir
from diffir_sr.data.pairs import PairedDataset
from diffir_sr.data.sources import open_source
from diffir_sr.doctor.images import near_within
from diffir_sr.files.picture import encode_png
from diffir_sr.files.shards import Member, write_index
from diffir_sr.prepare.downscale import smaller

IMAGES_EACH = 5000  # in a shard
SECONDS = 4.0


def planted(count):
    """Random hashes, and pairs of numbers whose hashes differ in up to ten bits."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    ones = rng.choice(count // 2, count // 1000, replace=False)
    others = count // 2 + rng.choice(count // 2, len(ones), replace=False)
    for one, other in zip(ones, others, strict=True):
        flips = rng.choice(64, rng.integers(0, 11), replace=False).astype(np.uint64)
        hashes[other] = hashes[one] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    return hashes, set(zip(ones.tolist(), others.tolist(), strict=True))


def duplicates(count):
    hashes, expected = planted(count)
    started = time.process_time()
    found = list(near_within(hashes))
    seconds = time.process_time() - started
    missed = len(expected - set(found))
    return [
        f"near duplicates of {count:,d} hashes",
        seconds,
        f"{len(found):,d} pairs, {missed} of {len(expected):,d} missed",
    ]


def indexes(count):
    """Open shards whose indexes name `count` images; only their headers and ends exist on the disk."""
    with tempfile.TemporaryDirectory() as name:
        bytes_of_indexes = 0
        for number in range(-(-count // IMAGES_EACH)):
            shard = Path(name, f"{number:05d}.tar")
            make_shard(shard, number)
            bytes_of_indexes += shard.with_name(f"{shard.name}.index.jsonl").stat().st_size
        started = time.process_time()
        source = open_source(name)
        seconds = time.process_time() - started
        return [
            f"start with shards of {len(source.names):,d} images",
            seconds,
            f"indexes of {bytes_of_indexes / 2**20:.0f} MiB",
        ]


def make_shard(shard, number):
    import tarfile

    size, step = 300_000, 300_544
    first = number * IMAGES_EACH
    members = [
        Member(f"{first + at:08d}.png", 512 + at * step, size, (480, 480, 3), True, f"{first + at:064x}", f"{at}.png")
        for at in range(IMAGES_EACH)
    ]
    header = tarfile.TarInfo(members[-1].name)
    header.size = size
    with open(shard, "wb") as file:  # sparse: the disk stores the last header alone
        file.seek(members[-1].start - 512)
        file.write(header.tobuf())
        file.truncate(members[-1].start + step + 1024)
    write_index(shard, members)


def samples():
    """Pairs per second, by storage and codec."""
    photo, made = skimage.data.retina(), {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number in range(36):
            top, left = divmod(number, 6)
            gt = np.ascontiguousarray(photo[150 * top : 150 * top + 480, 150 * left : 150 * left + 480])
            for side, image in (("gt", gt), ("lq", smaller(gt, scale=4))):
                path = root / side / f"{number:03d}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(encode_png(image))
        for codec in ("png", "raw"):
            for side in ("gt", "lq"):
                diffir(["prepare", "lmdb", f"{root}/{side}", "-o", f"{root}/{side}_{codec}.lmdb", "--codec", codec])
                out = ["-o", f"{root}/{side}_{codec}", "--codec", codec, "--shard-size", "2MB"]
                diffir(["prepare", "shards", f"{root}/{side}", *out])
            for ending, kind in ((".lmdb", "LMDB"), ("", "shards")):
                roots = {f"dataroot_{side}": f"{root}/{side}_{codec}{ending}" for side in ("gt", "lq")}
                made[kind, codec] = per_second(roots)
    return made


def per_second(roots):
    data = PairedDataset(dict(name="x", scale=4, gt_size=256, phase="train", use_hflip=True, use_rot=True, **roots))
    data.draws_are_unique = True
    data.give_bytes()
    for draw in range(36):
        data[draw]
    started, count = time.process_time(), 0
    while time.process_time() - started < SECONDS:
        data[count]
        count += 1
    return count / (time.process_time() - started)


def alone(job, argument, results):
    """A row of the table, of a process of its own, since a process never forgets its largest memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = job(argument)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    results.put([row[0], f"{row[1]:.1f}", f"{grown:,.0f}", row[2]])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--counts", nargs="+", type=int, default=[100_000, 1_000_000])
    args = parser.parse_args()
    start = multiprocessing.get_context("spawn")
    rows = []
    for job in (duplicates, indexes):
        for count in args.counts:
            results = start.Queue()
            process = start.Process(target=alone, args=(job, count, results))
            process.start()
            rows.append(results.get())
            process.join()
    speeds = samples()
    lines = [
        "# A million images",
        "",
        f"`python benchmarks/scale.py`, {date.today()}, commit {commit()}, {machine()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}. Seconds of one core; memory beyond that of the imported "
        "program.",
        "",
        "| | seconds | MiB | |",
        "| --- | ---: | ---: | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "Training pairs per second of one core (480-pixel images, patches of 256, x4, uint8), in the page cache:",
        "",
        "| codec | LMDB | shards | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for codec in ("png", "raw"):
        lmdb, shards = (speeds[kind, codec] for kind in ("LMDB", "shards"))
        lines.append(f"| {codec} | {lmdb:,.0f} | {shards:,.0f} | {shards / lmdb:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
