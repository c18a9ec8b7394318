"""What very many images cost where every image counts: python benchmarks/scale.py [-o benchmarks/results/scale.md].

Near duplicates among random 64-bit hashes with planted pairs; the indexes of shards, read at the start of a training;
the manifest of a fleet; what a worker of a fleet does for an image besides restoring it; training samples from shards
and from LMDBs of the same images. One core takes about four minutes; --counts 10000000 measures more. Seconds are
those of the processor, which other programs on the machine lengthen less than those of the clock.
"""

import argparse
import multiprocessing
import platform
import resource
import shlex
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import skimage.data
from setting import commit, machine

from diffir_sr import fleet
from diffir_sr.cli import main as diffir
from diffir_sr.data.pairs import PairedDataset
from diffir_sr.data.sources import open_source
from diffir_sr.doctor.images import near_within
from diffir_sr.files.picture import encode_png
from diffir_sr.files.shards import Member, write_index
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.inference.runner import RestoreSettings
from diffir_sr.prepare.downscale import smaller

IMAGES_EACH = 5000  # in a shard
WORKER_IMAGES, WORKER_SIDE = 40, 32
IMPORTED = ["diffir_sr.fleet", "diffir_sr.data.pairs", "diffir_sr.doctor.images", "diffir_sr.prepare.downscale"]
SECONDS = 4.0  # of the processor, for each row of training pairs


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
        for number, first in enumerate(range(0, count, IMAGES_EACH)):
            shard = Path(name, f"{number:05d}.tar")
            make_shard(shard, range(first, min(count, first + IMAGES_EACH)))
            bytes_of_indexes += shard.with_name(f"{shard.name}.index.jsonl").stat().st_size
        started = time.process_time()
        source = open_source(name)
        seconds = time.process_time() - started
        return [
            f"start with shards of {len(source.names):,d} images",
            seconds,
            f"indexes of {bytes_of_indexes / 2**20:.0f} MiB",
        ]


def make_shard(shard, numbers):
    size, step = 300_000, 300_544
    members = [
        Member(f"{name:08d}.png", 512 + at * step, size, (480, 480, 3), True, f"{name:064x}", f"photos/{name:08d}.png")
        for at, name in enumerate(numbers)
    ]
    header = tarfile.TarInfo(members[-1].name)
    header.size = size
    with open(shard, "wb") as file:  # sparse: the disk stores the last header alone
        file.seek(members[-1].start - 512)
        file.write(header.tobuf())
        file.truncate(members[-1].start + step + 1024)
    write_index(shard, members)


def manifest(count):
    """Merge the rows of `count` images into a manifest."""
    rng, constant = np.random.default_rng(0), {name: pa.nulls(count, kind.type) for name, kind in fields().items()}
    digests = [[rng.bytes(16).hex() for _ in range(count)] for _ in range(3)]
    sizes = rng.integers(10**5, 10**6, (4, count))
    columns = constant | {
        "source": pa.array([f"/data/photos/{number // 1000:05d}/{number:08d}.png" for number in range(count)]),
        "source_digest": pa.array(digests[0]),
        "source_bytes": pa.array(sizes[0]),
        "source_mtime_ns": pa.array(1_700_000_000_000_000_000 + sizes[1] * 10**6 + sizes[3]),
        "output": pa.array([f"results/{name[:3]}/{name}.png" for name in digests[1]]),
        "output_digest": pa.array(digests[2]),
        "output_bytes": pa.array(sizes[2]),
        "seconds": pa.array(rng.random(count).round(3)),
    }
    same = dict(height=1920, width=1920, weights_digest="0" * 32, seed=0, settings="{}", tries=1, host="node1")
    for name, value in (same | dict(device="cuda:0", version="1.0")).items():
        columns[name] = pa.repeat(pa.scalar(value, fields()[name].type), count)
    with tempfile.TemporaryDirectory() as name:
        rows = fleet.Rows(Path(name))
        started = time.process_time()
        rows.add(pa.table(columns, schema=fleet.schema()))
        rows.merge()
        seconds = time.process_time() - started
        size = Path(name, fleet.MANIFEST).stat().st_size
    return [f"manifest of a fleet, {count:,d} rows", seconds, f"{size / 2**20:.0f} MiB, {size / count:.0f} bytes a row"]


def fields():
    return {field.name: field for field in fleet.schema()}


def worker(count):
    """Restore small images with a worker of a fleet, then let it find that they are done."""
    photo, side = skimage.data.retina(), WORKER_SIDE
    with tempfile.TemporaryDirectory() as name:
        images = []
        for number in range(count):
            top, left = divmod(number, 10)
            part = photo[300 + side * top :, 300 + side * left :][:side, :side]
            path = Path(name, f"{number:04d}.png")
            path.write_bytes(encode_png(np.ascontiguousarray(part)))
            images.append(fleet.Image(str(path), path.name)._asdict())
        restorer, restore = load_restorer(model="sr_x4", device="cpu"), RestoreSettings()
        settings = fleet.settings_of(restorer, restore)
        order = fleet.Order(f"{name}/out", "one", {"model": "sr_x4"}, restore, settings, "cpu", 1, False)
        work, seconds = fleet.Worker(order), []
        for _ in range(2):
            started = time.process_time()
            rows = work(pa.Table.from_pylist(images))
            seconds.append(time.process_time() - started)
            assert rows["error"].null_count == count, rows["error"]
    found = f"{1000 * seconds[1] / count:.1f} ms an image to find a result that exists"
    return [f"a worker of a fleet, {count} images of {side} x {side}, sr_x4", seconds[0], found]


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


START = multiprocessing.get_context("forkserver")  # processes that begin with everything imported, and nothing done
START.set_forkserver_preload([*IMPORTED, "pyarrow.parquet", "skimage.data"])


def measured(job, argument):
    """A row of the table, and the seconds of this process with what it prepared."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    what, seconds, found = job(argument)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    memory = "" if job is manifest else f"{grown:,.0f}"  # most of it is that of making the rows
    return [what, f"{seconds:.1f}", memory, found], time.process_time()


def alone(job, argument):
    """`measured` in a process of its own, since a process never forgets its largest memory."""
    with ProcessPoolExecutor(1, mp_context=START) as pool:
        row, seconds = pool.submit(measured, job, argument).result()  # raises if the process dies
    print(" | ".join(row), file=sys.stderr)
    return row, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--counts", nargs="+", type=int, metavar="N", default=[100_000, 1_000_000])
    args = parser.parse_args()
    code = commit()
    done = [alone(job, count) for job in (duplicates, indexes, manifest) for count in args.counts]
    done.append(alone(worker, WORKER_IMAGES))
    speeds = samples()
    total = time.process_time() + sum(seconds for _, seconds in done)
    counts = "" if args.counts == parser.get_default("counts") else shlex.join(["--counts", *map(str, args.counts)])
    options = f" {counts}" if counts else ""
    lines = [
        "# Very many images",
        "",
        f"`python benchmarks/scale.py{options}`, {date.today()}, commit {code}, {machine()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}. Seconds of one core ({total:.0f} in all); memory beyond "
        "that of the imported program.",
        "",
        "| | seconds | MiB | |",
        "| --- | ---: | ---: | --- |",
        *(f"| {' | '.join(row)} |" for row, _ in done),
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
