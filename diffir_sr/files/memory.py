"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path


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
