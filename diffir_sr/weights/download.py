"""Downloads that are complete and verified, or leave nothing that could be mistaken for a weights file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import importlib
import importlib.util
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from diffir_sr.errors import CheckpointError
from diffir_sr.version import __version__
from diffir_sr.weights_files import is_safetensors, refuse_foreign

HUB = "hf://"
INSTALL_HUB = "pip install 'diffir_sr[hub]'"
_OFFLINE = ("DIFFIR_OFFLINE", "HF_HUB_OFFLINE")
_TRIES = 3
_CHUNK = 1 << 18  # bytes
_TIMEOUT_S = 30.0  # without receiving a byte


def offline() -> str | None:
    """The environment variable that disables network access, with its value, or None."""
    for name in _OFFLINE:
        value = os.environ.get(name, "")
        if value.lower() not in ("", "0", "false", "no", "off"):
            return f"{name}={value}"
    return None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, target: Path, *, sha256: str = "", size: int | None = None) -> Path:
    """Download `url` to `target` (for hf:// addresses, to the cache of the Hub); returns the path.

    An interrupted download is resumed, in this call and the next one, if a checksum is known to verify the parts.
    Processes that need the same file wait for the first one. Raises CheckpointError for everything that prevents the
    download; an unexpected file is removed.
    """
    forbidden = offline()
    if forbidden:
        raise CheckpointError(f"{url}: not downloaded, because {forbidden} disables network access")
    if url.startswith(HUB):
        return _from_hub(url, sha256)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_file():  # unless another process has downloaded it meanwhile
                _fetch(url, target, sha256, size)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error}); {_remedy(error)}") from error
    return target


def _remedy(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free space there, or set another folder with XDG_CACHE_HOME" if full else "check its folder's permissions"


def _fetch(url: str, target: Path, sha256: str, size: int | None) -> None:
    partial = target.with_name(f".{target.name}.partial")
    if not sha256:  # the partial file may belong to another version
        partial.unlink(missing_ok=True)
    try:
        _receive(url, partial, resumable=bool(sha256), size=size)
        _check(partial, url, sha256)
    except _DamagedError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(str(error)) from error
    except OSError as error:
        if not isinstance(error, _BrokenError):
            partial.unlink(missing_ok=True)  # the disk is full: free the space
            raise
        raise CheckpointError(str(error)) from error
    os.replace(partial, target)


class _BrokenError(OSError):
    """The connection failed; the received part is kept."""


class _DamagedError(Exception):
    """The received file is not the expected one."""


def _receive(url: str, partial: Path, *, resumable: bool, size: int | None) -> None:
    for left in reversed(range(_TRIES)):
        before = _length(partial)
        try:
            _receive_rest(url, partial, size=size)
            return
        except urllib.error.HTTPError as error:
            raise _BrokenError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            arrived = _length(partial)
            if not resumable:
                partial.unlink(missing_ok=True)
            if not left or arrived <= before:  # nothing received: an immediate retry is pointless
                kept = f", {arrived:,d} bytes are kept, and the next attempt continues from there" if resumable else ""
                raise _BrokenError(f"{url}: {reason}{kept if arrived else ''}") from error


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive_rest(url: str, partial: Path, *, size: int | None) -> None:
    start = _length(partial)
    headers = {"User-Agent": f"diffir_sr/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        partial.unlink()  # longer than the file, or all of it: start over
        _receive_rest(url, partial, size=size)
        return
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced else size
        _check_room(partial, (total or 0) - start)
        with partial.open("ab" if start else "wb") as file, _bar(partial, total, start) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    arrived = _length(partial)
    if total is not None and arrived < total:
        raise http.client.HTTPException(f"interrupted after {arrived:,d} of {total:,d} bytes")


def _check_room(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,d} bytes are needed, {free:,d} are free")


def _bar(partial: Path, total: int | None, start: int) -> tqdm:
    name = partial.name.removeprefix(".").removesuffix(".partial")
    return tqdm(
        total=total, initial=start, unit="B", unit_scale=True, desc=name, file=sys.stderr, leave=False,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip


def _check(file: Path, url: str, sha256: str) -> None:
    """Raise _DamagedError for a wrong checksum or, if none is known, for a file without weights."""
    if sha256:
        digest = sha256_of(file)
        if not digest.startswith(sha256):
            raise _DamagedError(f"{url}: the received file has sha256 {digest}, expected {sha256}; it is not kept")
        return
    try:
        if not is_safetensors(file):
            refuse_foreign(file, kind="PyTorch weights file")
    except CheckpointError as error:
        what = str(error).removeprefix(f"{file.resolve()}: ")
        raise _DamagedError(f"{url}: the received file is not a weights file and is not kept ({what})") from error


def _from_hub(url: str, sha256: str) -> Path:
    owner, repository, file = _hub_parts(url)
    hub = hub_module()
    if hub is None:
        raise CheckpointError(f"{url}: the Hub needs huggingface_hub, which is not installed; {INSTALL_HUB}")
    try:
        path = Path(hub.hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # errors of many classes: its own, those of requests, of the system
        raise CheckpointError(f"{url}: {type(error).__name__}: {first_line(error)}") from error
    try:
        _check(path, url, sha256)
    except _DamagedError as error:
        with contextlib.suppress(OSError):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise CheckpointError(str(error)) from error
    return path


def hub_module() -> Any | None:
    """The module huggingface_hub, or None if it is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    return importlib.import_module("huggingface_hub")


def hub_cached(url: str) -> Path | None:
    """The path of hf://OWNER/REPOSITORY/FILE in the cache of the Hub, or None."""
    hub = hub_module()
    if hub is None:
        return None
    owner, repository, file = _hub_parts(url)
    found = hub.try_to_load_from_cache(f"{owner}/{repository}", file)
    return Path(found) if isinstance(found, str) else None


def _hub_parts(url: str) -> tuple[str, str, str]:
    parts = url.removeprefix(HUB).split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise CheckpointError(f"{url}: expected hf://OWNER/REPOSITORY/FILE")
    return parts[0], parts[1], parts[2]


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), "no reason given")
