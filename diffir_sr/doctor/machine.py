"""Numbers of this machine: processors, memory, driver, disk; inside a container those that it is given."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from diffir_sr.errors import InputError

_MIB = 2**20
_MOST_MIB = 64
_MOST_SECONDS = 2.0


@dataclass(frozen=True)
class Speed:
    """Rates of one file of `mib` MiB; `dropped`: whether the system was asked to forget it before it was read."""

    mib: int
    write_mib_s: float
    read_mib_s: float
    dropped: bool


def available_cpus() -> int:
    """Cores that this process may use: by affinity and by the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        count = min(count, max(1, round(int(quota[0]) / int(quota[1]))))
    return count


def memory_bytes() -> int | None:
    """Memory of the machine, or of the container where that is less; None where it cannot be asked."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = _cgroup("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def gpu_driver() -> str | None:
    """The version of the NVIDIA driver, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None


def measure_disk(folder: Path) -> Speed:
    """Write and read one file in `folder` for at most about two seconds each; raises InputError without access."""
    block = os.urandom(_MIB)  # file systems that compress must not profit
    try:
        handle, name = tempfile.mkstemp(prefix=".diffir-doctor-", dir=folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder.absolute()}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "r+b", buffering=0) as file:
            return _timed(file.fileno(), block)
    except OSError as error:
        raise InputError(f"cannot write to {folder.absolute()}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _timed(handle: int, block: bytes) -> Speed:
    sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
    start, mib = time.perf_counter(), 0
    while mib < _MOST_MIB and time.perf_counter() - start < _MOST_SECONDS:
        os.write(handle, block)
        sync(handle)
        mib += 1
    wrote = time.perf_counter() - start
    dropped = hasattr(os, "posix_fadvise")
    if dropped:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(handle, 0, os.SEEK_SET)
    start = time.perf_counter()
    while os.read(handle, _MIB):
        pass
    return Speed(mib, mib / wrote, mib / (time.perf_counter() - start), dropped)
