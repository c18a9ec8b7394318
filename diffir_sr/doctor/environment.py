"""Facts about this installation and this machine, and problems that would affect a run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.version import cuda as BUILT_FOR

from diffir_sr.doctor.findings import EXIT_CODES, Severity
from diffir_sr.errors import InputError
from diffir_sr.files.processes import available_cpus, memory_bytes
from diffir_sr.version import __version__
from diffir_sr.weights.registry import entry_of, locate

_PACKAGES = ("torch", "torchvision", "opencv-python", "numpy", "scipy", "lmdb", "pillow", "pydantic", "pyyaml", "av")
_BASICSR = "1.4.2"
_LEAST_SHARED = 2**30  # bytes: data loader workers with batches of large patches need more than Docker's 64 MiB
_LEAST_MEMORY = 8 * 2**30
_COMMANDS = ("diffir", "basicsr")


@dataclass(frozen=True)
class Fact:
    """One fact about the environment; with a severity, also what to do about it."""

    name: str
    value: str
    severity: Severity | None = None
    do: str = ""


def facts(folder: Path) -> list[Fact]:
    """All facts about this environment; disk speed is measured in `folder`."""
    return [
        *_versions(),
        *basicsr_facts(
            _loaded_from("basicsr"), _version("basicsr"), _installed_at("basicsr"), [os.getcwd(), *sys.path]
        ),
        *_machine(),
        *_gpus(),
        *_weights(),
        *_commands(),
        *_disk(folder),
    ]


def exit_code(found: Sequence[Fact]) -> int:
    """1 if there is any error, else 3 if there is any warning, else 0."""
    worst = {fact.severity for fact in found}
    return next((EXIT_CODES[severity] for severity in Severity if severity in worst), 0)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed_at(package: str) -> Path | None:
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(package)))
    except importlib.metadata.PackageNotFoundError:
        return None


def _loaded_from(package: str) -> Path | None:
    file = getattr(sys.modules.get(package), "__file__", None)
    return Path(file).parent if file else None


def _versions() -> Iterator[Fact]:
    yield Fact("diffir_sr", f"{__version__}, {Path(__file__).resolve().parents[1]}")
    yield Fact("python", f"{platform.python_version()}, {sys.executable}, {platform.platform()}")
    for package in _PACKAGES:
        # OpenCV has packages of several names; the module is what matters.
        module = sys.modules.get("cv2") if package == "opencv-python" else None
        yield Fact(package, getattr(module, "__version__", None) or _version(package) or "not installed")


def basicsr_facts(
    loaded: Path | None, version: str | None, installed: Path | None, path: Sequence[str]
) -> Iterator[Fact]:
    """Which BasicSR is in use, whether another copy shadows it, and whether a folder in `path` could.

    `loaded` is the folder of the package in use; `version` and `installed` come from the package manager.
    """
    reinstall = f"pip install basicsr=={_BASICSR}"
    if loaded is None:
        yield Fact("basicsr", "not found", Severity.ERROR, reinstall)
        return
    value = f"{version or 'no installed version'}, {loaded}"
    if installed is None:
        yield Fact("basicsr", f"{value}: a copy that is not installed", Severity.ERROR, reinstall)
    elif loaded.resolve() != installed.resolve():
        do = f"rename {loaded} or start in another folder, so that {installed} is used"
        yield Fact("basicsr", f"{value}: shadows the installed package", Severity.ERROR, do)
    elif version != _BASICSR:
        yield Fact("basicsr", f"{value}: not the release that this package patches", Severity.ERROR, reinstall)
    else:
        yield Fact("basicsr", value)
    others = {Path(entry or ".").resolve() / "basicsr" for entry in path} - {loaded.resolve()}
    for other in sorted(other for other in others if (other / "__init__.py").is_file() and other != installed):
        do = "rename it: scripts started there would import it instead of the installed package"
        yield Fact("another basicsr", f"{other}", Severity.WARNING, do)


def _machine() -> Iterator[Fact]:
    torch_threads, settings = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    threads = f"{torch_threads} threads in torch" + (f" (OMP_NUM_THREADS={settings})" if settings else "")
    yield Fact("cpu", f"{available_cpus()} of {os.cpu_count()} cores available, {threads}")
    memory = memory_bytes()
    small = memory < _LEAST_MEMORY
    do = "lower num_worker_per_gpu and batch sizes" if small else ""
    yield Fact("memory", _gib(memory), Severity.WARNING if small else None, do)
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm")
        small = shared.total < _LEAST_SHARED
        do = "start the container with --shm-size=8g or --ipc=host, or set num_worker_per_gpu: 0" if small else ""
        value = f"{_gib(shared.total)}, {_gib(shared.free)} free (used by data loader workers)"
        yield Fact("shared memory", value, Severity.WARNING if small else None, do)


def _gpus() -> Iterator[Fact]:
    driver = gpu_driver()
    yield Fact("driver", f"{driver or 'no NVIDIA driver found'}; torch is built for CUDA {BUILT_FOR or 'none'}")
    if not torch.cuda.is_available():
        if driver:
            do = "install a build of torch for this driver: https://pytorch.org/get-started/locally"
            yield Fact("gpu", "a driver is installed, but torch cannot use a GPU", Severity.WARNING, do)
        else:
            also = "; Apple's GPU is available" if torch.backends.mps.is_available() else ""
            yield Fact("gpu", f"none: training runs on the CPU, which is suitable for trials only{also}")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        bf16 = "bf16" if major >= 8 else "no fast bf16"
        yield Fact(f"gpu {index}", f"{name}, {_gib(total)}, {_gib(free)} free, capability {major}.{minor}, {bf16}")


def _weights() -> Iterator[Fact]:
    """Locations of the backbones of perceptual losses, which are needed only for training with such a loss."""
    for kind in ("vgg16", "vgg19"):
        there = locate(entry_of(kind))
        yield Fact(f"weights {kind}", str(there.path.resolve()) if there else f"not found (diffir models show {kind})")


def _commands() -> Iterator[Fact]:
    for command in _COMMANDS:
        file = shutil.which(command)
        if file is None:
            do = f"activate the environment, or use: {sys.executable} -m diffir_sr"
            yield Fact(f"command {command}", "not on PATH", Severity.WARNING, do)
        elif not belongs_here(Path(file)):
            do = f"activate the environment of {sys.executable}, or use: python -m diffir_sr"
            yield Fact(f"command {command}", f"{file}: belongs to another installation", Severity.WARNING, do)
        else:
            yield Fact(f"command {command}", file)


def belongs_here(script: Path) -> bool:
    """Whether a command on PATH starts this package with this Python."""
    try:
        text = script.read_bytes()
    except OSError:
        return False
    # Windows wraps scripts into programs, so there it is enough that they are in the folder of this Python.
    beside = script.resolve().parent in (Path(sys.executable).parent, Path(sys.executable).resolve().parent)
    mine = sys.executable.encode() in text or os.path.realpath(sys.executable).encode() in text
    return b"diffir_sr" in text and (mine or beside)


def _disk(folder: Path) -> Iterator[Fact]:
    name = f"disk {folder.absolute()}"
    try:
        speed: Speed = measure_disk(folder)
    except InputError as error:
        yield Fact(name, str(error), Severity.ERROR, "choose a writable folder")
        return
    free = shutil.disk_usage(folder).free
    cached = "after dropping it from the cache" if speed.dropped else "possibly from the cache"
    yield Fact(
        name,
        f"writes {speed.write_mib_s:.0f} MiB/s (synced), reads {speed.read_mib_s:.0f} MiB/s ({cached}; one file of "
        f"{speed.mib} MiB), {_gib(free)} free",
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


# Numbers of this machine: processors, memory, driver, disk; in a container, the limits of the container.


_MIB = 2**20
_MOST_MIB = 64
_MOST_SECONDS = 2.0


@dataclass(frozen=True)
class Speed:
    """Rates for one file of `mib` MiB; `dropped`: whether it was dropped from the cache before reading."""

    mib: int
    write_mib_s: float
    read_mib_s: float
    dropped: bool


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
    block = os.urandom(_MIB)  # incompressible, for file systems with compression
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


def facts_as_table(found: Sequence[Fact]) -> str:
    """One line per fact; for facts with a severity, another line says what to do."""
    width = max(len(fact.name) for fact in found if not fact.name.startswith("disk "))
    lines = []
    for fact in found:
        mark = f"{fact.severity.value}: " if fact.severity else ""
        lines.append(f"{fact.name:<{width}}  {mark}{fact.value}")
        lines += [f"{'':<{width}}  -> {fact.do}"] if fact.do else []
    return "\n".join([*lines, ""])


def facts_as_json(found: Sequence[Fact]) -> dict[str, Any]:
    """The same for programs."""
    listed = [
        {"name": fact.name, "value": fact.value, "severity": fact.severity and fact.severity.value, "do": fact.do}
        for fact in found
    ]
    return {"exit_code": exit_code(found), "facts": listed}
