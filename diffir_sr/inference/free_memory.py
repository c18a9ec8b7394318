"""Whether a restored picture fits into memory, told before anything large is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from diffir_sr.errors import InputError

_PER_INPUT_PIXEL = 24  # bytes: decoded twice over, and as float32
_PER_OUTPUT_PIXEL = 24  # float32 twice over while it is clipped and rounded; its bytes; the file


def check_fits_in_memory(height: int, width: int, *, scale: int, where: str, available: int | None = None) -> None:
    """Raise InputError where input and result alone (the network has its own plan) exceed the memory that is free."""
    available = free_memory() if available is None else available
    needed = height * width * (_PER_INPUT_PIXEL + _PER_OUTPUT_PIXEL * scale * scale)
    if needed > available:
        raise InputError(
            f"{where}: {height}x{width} restored to {height * scale}x{width * scale} needs about "
            f"{needed / 2**30:.1f} GiB for the pictures alone, {available / 2**30:.1f} GiB are free; cut it into parts"
        )


def free_memory() -> int:
    """Bytes that this process may still take: of the machine and of its container."""
    found = [_of_container(), _of_machine()]
    return min(one for one in found if one is not None)


def _of_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS tells no more


def _of_container() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    cached = int(entries.get("file", 0))  # given back when memory is short
    return None if limit == "max" else max(0, int(limit) - used + cached)


def available(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()
