"""Processes and the machine: running processes, file locks, available processors and memory."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError

_BEAT_S = 5.0  # interval at which a holder renews its lock, for other machines, which cannot check its process id
_SETTLE_S = 0.1


def is_running(process: int) -> bool:
    """Whether a process with this id runs on this machine."""
    import psutil

    try:
        return psutil.pid_exists(process)
    except OverflowError:
        return False


LEADER = "DIFFIR_LEADER"  # in the environment of a process: the number of the one without which it should end


def follow_leader() -> None:
    """Have the system send SIGTERM to this process when the one that started it as its leader ends (Linux alone)."""
    leader = os.environ.pop(LEADER, "")  # not for processes that this one starts
    if not leader.isdigit() or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(leader):  # it has ended before that
        os.kill(os.getpid(), signal.SIGTERM)


def short_name(name: str, *, ending: str) -> str:
    """A hidden name for an auxiliary file of `name`, of at most about 110 bytes, below the limit of all systems."""
    plain = f".{name}{ending}"
    if len(os.fsencode(plain)) <= 100:
        return plain
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}{ending}"


@contextlib.contextmanager
def hold(target: Path, *, watch_s: float = 60.0) -> Iterator[None]:
    """Prevent other processes of this package from writing to `target` meanwhile.

    The lock is a file `.NAME.lock` next to `target` that names its holder. It only requires that creating a file is
    atomic. The lock of a dead process is released: on the same machine, a holder is identified by its process id and
    start time; on another machine, by the modification time of the file, which the holder renews and which is watched
    for `watch_s` seconds. Raises InputError if another process holds the lock or it cannot be written.
    """
    lock = target.with_name(short_name(target.name, ending=".lock"))
    record = _record()
    made = [folder for folder in lock.absolute().parents if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _take(lock, record, target, watch_s=watch_s)
    except OSError as error:
        raise InputError(
            f"{target.absolute()}: cannot be written ({error.strerror or error}); check its permissions and the disk, "
            "or choose another folder"
        ) from error
    done = threading.Event()
    threading.Thread(target=_show_life, args=(lock, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        # A forked child must not release the lock of its parent.
        if record["pid"] == os.getpid() and _read(lock) == record:
            with contextlib.suppress(OSError):  # also remove folders that were made only for the lock
                lock.unlink()
                for folder in made:
                    folder.rmdir()


def _record() -> dict[str, Any]:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else ["python"]
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "command": " ".join(words)[:300],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _started(process: int) -> float | None:
    """Start time of a process in seconds; None if no process with this id runs."""
    import psutil

    with contextlib.suppress(psutil.Error, OverflowError, ValueError):
        return round(psutil.Process(process).create_time(), 2)
    return None


def _take(lock: Path, record: dict[str, Any], target: Path, *, watch_s: float) -> None:
    text = json.dumps(record)
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            found = _read(lock)
            if found is None:
                continue  # released meanwhile
            if _lives(lock, found, watch_s=watch_s):
                raise _busy(target, found) from None
            if _read(lock) == found and _taken_over(lock, text, record):
                return
            continue
        with os.fdopen(handle, "w") as file:
            file.write(text)
        return


def _taken_over(lock: Path, text: str, record: dict[str, Any]) -> bool:
    """Replace the record of a dead process; if several processes do so, the last one wins, and all notice."""
    ours = lock.with_name(f"{lock.name}-{os.getpid()}")
    ours.write_text(text)
    os.replace(ours, lock)
    time.sleep(_SETTLE_S)
    return _read(lock) == record


def _read(lock: Path) -> dict[str, Any] | None:
    """The record of a lock; None if there is no lock, {} if its process died before writing the record."""
    for _ in range(20):
        try:
            found = json.loads(lock.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(_SETTLE_S)
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _lives(lock: Path, found: dict[str, Any], *, watch_s: float) -> bool:
    process, started = found.get("pid"), found.get("started")
    if not isinstance(process, int):
        return False
    if found.get("host") == platform.node():
        now = _started(process)
        return now is not None and isinstance(started, int | float) and abs(now - started) < 2
    sys.stderr.write(
        f"{lock}: held on {found.get('host')}; watching for {watch_s:.0f} s whether that process is alive\n"
    )
    before, end = _time_of(lock), time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(min(1.0, watch_s))
        if _time_of(lock) != before:
            return True
    return False


def _time_of(lock: Path) -> int | None:
    try:
        with lock.open("rb") as file:  # on network folders, opening contacts the server; stat may not
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _busy(target: Path, found: dict[str, Any]) -> InputError:
    who = f"process {found.get('pid')} on {found.get('host')}, since {found.get('since')}"
    return InputError(
        f"{target.absolute()}: another process is writing there: {found.get('command')} ({who}); wait until it ends, "
        "or choose another name"
    )


def _show_life(lock: Path, done: threading.Event) -> None:
    while not done.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(lock)


# Available processors and memory: of the machine, or of the container if that is less.


_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # cgroups v1 reports a number near 2**63 if there is no limit


def available_cpus() -> int:
    """Number of cores that this process may use, by affinity and by the quota of the container."""
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
    """Total memory in bytes: of the machine, or of the container if that is less."""
    import psutil

    limits = (_limit(group) for group in _groups("memory"))
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def free_memory() -> int:
    """Bytes that this process can still allocate, limited by the machine and its containers."""
    import psutil

    found = [psutil.virtual_memory().available]
    for group in _groups("memory"):
        limit = _limit(group)
        used = _number(group, "memory.current") or _number(group, "memory.usage_in_bytes")
        if limit is not None and used is not None:
            words = [line.split() for line in _text(group, "memory.stat").splitlines()]
            counts = {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdigit()}
            cached = counts.get("file", counts.get("total_cache", 0))  # freed when memory is short
            found.append(max(0, limit - used + cached))
    return min(found)


def _limit(group: Path) -> int | None:
    found = _number(group, "memory.max") or _number(group, "memory.limit_in_bytes")
    return found if found is not None and found < _UNLIMITED else None


def _groups(kind: str) -> Iterator[Path]:
    """The cgroups of this process and their parents, of v1 and v2; none if the system has none."""
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
