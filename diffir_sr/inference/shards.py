"""Restoring a folder in parts: shards for the jobs of a cluster, one process per device, and merging their journals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffir_sr.devices import accelerator_count, default_device, device_of
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.inference.files import NAME, Job, entries_of, journals_in, name_in_folder


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def journal(self) -> str:
        """The name of the journal of this part."""
        return f"{Path(NAME).stem}.{self.number}-of-{self.count}{Path(NAME).suffix}"

    def has(self, job: Job) -> bool:
        """Whether a job belongs to this part: a function of its relative name alone."""
        key = hashlib.blake2b(job.relative.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(key, "little") % self.count == self.number - 1

    def divided(self, parts: int) -> list[Shard]:
        """The parts of this part: together they have its jobs."""
        return [Shard(self.number + self.count * part, self.count * parts) for part in range(parts)]


def shard_of(text: str) -> Shard:
    """The part named by "I/N"; raises InputError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard: expected I/N with I from 1 to N, such as 3/16, got {text!r}")
    return Shard(int(found[1]), int(found[2]))


def devices_of(text: str) -> list[str]:
    """The devices of --devices: all accelerators of this machine, or a list such as cuda:0,cuda:2."""
    if text != "all":
        return [str(device_of(name)) for name in text.split(",")]
    count = accelerator_count()
    return [f"{default_device().type}:{number}" for number in range(count)] or ["cpu"]


def restore_on(devices: Sequence[str], words: Sequence[str], shard: Shard) -> list[int]:
    """Run `diffir restore` with the arguments `words` once per device, each on its part; returns the exit codes.

    The processes end with this one, also if it is interrupted; what they finished is in their journals.
    """
    running = []
    try:
        for device, part in zip(devices, shard.divided(len(devices)), strict=True):
            mine = ["--devices", "", "--device", device, "--shard", str(part)]  # the last ones count
            running.append(subprocess.Popen([sys.executable, "-m", "diffir_sr", "restore", *words, *mine]))
        return [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


@dataclass(frozen=True)
class Merged:
    """What a merged journal has: results in all, of how many journals, and inputs without a result."""

    results: int
    journals: int
    missing: list[str]


def merge(output: Path, jobs: Sequence[Job]) -> Merged:
    """Merge the journals of all parts in `output` into one, and find the jobs without a result in it.

    Raises InputError, changing nothing, if parts were restored with different settings or weights.
    """
    paths = journals_in(output)
    merged: dict[str, dict[str, object]] = {}
    sizes, made = {}, {}
    for path in paths:
        sizes[path] = path.stat().st_size
        for name, entry in entries_of(path).items():
            made.setdefault(json.dumps(entry["settings"], sort_keys=True), path.name)
            merged[name] = entry
    if len(made) > 1:
        raise InputError(
            f"{output}: {' and '.join(list(made.values())[:2])} have results of different settings or weights; restore "
            "one of them again with --overwrite, or merge them in folders of their own"
        )
    lines = [json.dumps(merged[name]) for name in sorted(merged)]
    if lines:
        write_atomically("".join(f"{line}\n" for line in lines).encode(), output / NAME)
    for path in paths:
        # A part that is still being restored adds lines; its journal stays for the next merge.
        if path.name != NAME and path.stat().st_size == sizes[path]:
            path.unlink()
    targets = [(job, job.target) for job in jobs if job.target is not None]
    missing = [
        str(job)
        for job, target in targets
        if name_in_folder(target, output) not in merged or not os.path.exists(target)
    ]
    return Merged(len(merged), len(paths), missing)
