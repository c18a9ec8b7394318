"""What this process may use: processors and memory of the machine, or of the container where that is less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # the first kind of groups tells a number near 2**63 where there is no limit


def available_cpus() -> int:
    """Cores that this process may use: by affinity and by the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        quota, period = _number(group, "cpu.cfs_quota_us"), _number(group, "cpu.cfs_period_us")
        words = _text(group, "cpu.max").split()
        if len(words) == 2 and words[0].isdigit():
            quota, period = int(words[0]), int(words[1])
        if quota and period and quota > 0:
            count = min(count, max(1, round(quota / period)))
    return count


def memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less."""
    import psutil

    limits = (_limit(group) for group in _groups("memory"))
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def free_memory() -> int:
    """Bytes that this process may still take: of the machine and of its containers."""
    import psutil

    found = [psutil.virtual_memory().available]
    for group in _groups("memory"):
        limit = _limit(group)
        used = _number(group, "memory.current") or _number(group, "memory.usage_in_bytes")
        if limit is not None and used is not None:
            words = [line.split() for line in _text(group, "memory.stat").splitlines()]
            counts = {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdigit()}
            cached = counts.get("file", counts.get("total_cache", 0))  # given back when memory is short
            found.append(max(0, limit - used + cached))
    return min(found)


def _limit(group: Path) -> int | None:
    found = _number(group, "memory.max") or _number(group, "memory.limit_in_bytes")
    return found if found is not None and found < _UNLIMITED else None


def _groups(kind: str) -> Iterator[Path]:
    """The control groups of this process and those around it, of both kinds; none where the system has none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for root, names in ((_GROUPS, ("",)), (_GROUPS / kind, (kind, f"{kind},cpuacct"))):
        yield root
        for line in lines:
            _, held, path = (line.split(":", 2) + ["", ""])[:3]
            if held in names:
                here = root / path.lstrip("/")
                yield from (one for one in (here, *here.parents) if one != root and root in one.parents)


def _text(group: Path, name: str) -> str:
    try:
        return (group / name).read_text().strip()
    except OSError:
        return ""


def _number(group: Path, name: str) -> int | None:
    text = _text(group, name)
    return int(text) if text.lstrip("-").isdigit() and len(text) < 30 else None
