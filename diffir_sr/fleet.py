"""`diffir fleet`: very many images restored by workers of a Ray cluster; results are the files of `diffir restore`.

OUT holds `results/3fa/<address><suffix>`, where the address is a digest of the content of the image and of all settings
that determine the result, and `manifest.parquet`, a row for each image (`SCHEMA`). Rows of a run are collected by this
process alone, in `OUT/.fleet/rows`, and merged into the manifest at its end, so that no row is written twice, whatever
Ray repeats. A result whose row was lost is found again by its address.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from tqdm import tqdm

from diffir_sr.devices import accelerator_count
from diffir_sr.errors import InputError
from diffir_sr.failures import sentence
from diffir_sr.files.atomic import sweep, write_atomically
from diffir_sr.files.images import inspect, read_file, read_picture
from diffir_sr.files.processes import available_cpus, hold
from diffir_sr.inference.commands import check_numbers, chosen_model, restorer_arguments
from diffir_sr.inference.files import Job, Journal, check_apart, digest, input_files, is_video, result_name
from diffir_sr.inference.inputs import find_mask
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.inference.runner import (
    NO_POINT_IN_GOING_ON,
    RestoreSettings,
    Runner,
    describe_failure,
    mask_digest,
)
from diffir_sr.parsing import ACCEPT_DAMAGED
from diffir_sr.progress import progress_bar, write_out
from diffir_sr.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

INSTALL = "pip install 'diffir_sr[ray]'"
MANIFEST = "manifest.parquet"
_RESULTS, _STATE, _LIST = "results", ".fleet", ".parquet"
_TRIES = 3  # deaths of workers over one image, after which it is an error
_MOST_AT_ONCE = 32  # images in a task of a worker
_TASKS_EACH = 8  # tasks per worker at least, so that they end at about the same time
_FLUSH_S, _FLUSH_ROWS = 10.0, 1000
_LOOKUPS = 16  # threads that look whether files exist, which on network folders is waiting
_SHOWN = 5
# Of an image: the columns of the manifest, in order.
_COLUMNS = {
    "source": "string",  # absolute path
    "source_digest": "string",  # BLAKE2b, 128 bits, as in the journal of diffir restore; with a mask, + its digest
    "source_bytes": "int64",
    "source_mtime_ns": "int64",
    "output": "string",  # relative to the folder; null after an error
    "output_digest": "string",
    "output_bytes": "int64",
    "height": "int32",  # of the result
    "width": "int32",
    "weights_digest": "string",
    "seed": "int64",
    "settings": "string",  # JSON: everything that determines the result besides the image
    "seconds": "float64",  # null if the result existed
    "tries": "int32",  # more than 1 if a worker died over the image
    "notes": "string",  # what diffir restore says about the image
    "error": "string",
    "host": "string",
    "device": "string",
    "version": "string",
}


def schema() -> pa.Schema:
    """The schema of the manifest."""
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()])


class Image(NamedTuple):
    """An image to restore: its absolute path, and its name relative to its input folder (masks are found by it)."""

    source: str
    relative: str


@dataclass(frozen=True)
class Order:
    """What a worker needs to know; `settings` as computed by this process, so that it notices other weights."""

    output: str
    run: str
    restorer: Mapping[str, Any]
    restore: RestoreSettings
    settings: Mapping[str, Any]
    device: str
    cpus: int
    accept_damaged: bool


class Worker:
    """Restores the images of tables with columns `source` and `relative`; returns a row of the manifest for each."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._notes: list[str] = []
        self._stop: str | None = None  # why this worker cannot go on, for the last column of its tables
        try:
            self._prepare()
        except Exception as error:
            self._stop = sentence(error)
            if self._stop is None:
                raise

    def _prepare(self) -> None:
        """Load the network; raises InputError if this machine has other weights than the one that gave the order."""
        order = self._order
        if order.accept_damaged:
            os.environ[ACCEPT_DAMAGED] = "1"
        torch.set_num_threads(order.cpus)
        restorer = load_restorer(**order.restorer, device=order.device)
        self._settings = settings_of(restorer, order.restore)
        if self._settings != order.settings:
            raise InputError(
                f"{platform.node()}: weights or settings differ from those of the machine that started the fleet; "
                "install the same version and give weights by a path that all machines share"
            )
        self._runner = Runner(restorer, order.restore, Journal(None, self._settings), note=self._notes.append)
        logging.getLogger("diffir_sr").addHandler(_Collector(self._notes))
        made = {"weights_digest": _text(self._settings["weights"]), "seed": self._settings["seed"]}
        self._constant = made | {"settings": json.dumps(self._settings, sort_keys=True), "host": platform.node()}
        self._constant |= {"device": str(restorer.device), "version": __version__}

    def __call__(self, images: pa.Table) -> pa.Table:
        """Columns of the manifest and `stop`: why the whole fleet has to, in a row of its own.

        As a value, since Ray would wrap an exception, add to its message, and throw away the rows before it.
        """
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for image in images.to_pylist():
            if self._stop is None:
                try:
                    rows.append(self._row(Image(**image)))
                except InputError as error:
                    self._stop = str(error)
        rows += [{"stop": self._stop}] if self._stop else []
        return pa.Table.from_pylist(rows, schema=schema().append(pa.field("stop", pa.string())))

    def _row(self, image: Image) -> dict[str, Any]:
        """The row of an image; raises InputError if continuing is pointless (the disk is full)."""
        self._notes.clear()
        row: dict[str, Any] = {"source": image.source, **self._constant}
        job = Job(Path(image.source), None, image.relative)
        try:
            row["tries"], begun_before = self._begin(image)
            found = os.stat(image.source)  # before it is read, so that a later change is noticed
            row |= {"source_bytes": found.st_size, "source_mtime_ns": found.st_mtime_ns}
            if row["tries"] > _TRIES:
                row["error"] = (
                    f"{image.source}: {_TRIES} workers died while restoring it (killed by the system for lack of "
                    "memory, or a crash); look at the image, or give each worker more memory"
                )
            else:
                row |= self._restored(job, begun_before=begun_before)
        except Exception as error:
            row["error"] = self._failure(error, job)
        row["notes"] = "; ".join(self._notes) or None
        with contextlib.suppress(OSError):  # attempts of other runs do not count
            _attempt(self._order.output, image).unlink(missing_ok=True)
        return row

    def _begin(self, image: Image) -> tuple[int, bool]:
        """The number of this attempt in this run, and whether any run began before.

        Each attempt adds a line to a file, which is removed when the image is done.
        """
        path = _attempt(self._order.output, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            file.write(f"{self._order.run}\n")
            file.seek(0)
            attempts = file.read().splitlines()
        return attempts.count(self._order.run), len(attempts) > 1

    def _restored(self, job: Job, *, begun_before: bool) -> dict[str, Any]:
        settings = self._order.restore
        assert job.source is not None
        data = read_file(job.source)
        mask = None if settings.mask is None else find_mask(settings.mask, job.relative, job.source)
        source = digest(data) + mask_digest(mask)
        suffix = Path(result_name(job.relative, settings.form)).suffix.lower()
        name = _address(source, self._settings, suffix)
        target = Path(self._order.output, name)
        if begun_before:  # its worker may have been killed while writing
            sweep(target.parent, of=target.name)
        started = time.perf_counter()
        content, seconds = self._existing(target), None
        if content is None:
            ((_, content),) = self._runner.restored(Job(job.source, target, job.relative), data, mask)
            write_atomically(content, target)
            seconds = round(time.perf_counter() - started, 3)
        size = inspect(content, where=str(target))
        row = {"source_digest": source, "output": name, "output_digest": digest(content), "output_bytes": len(content)}
        return row | {"height": size.height, "width": size.width, "seconds": seconds}

    def _existing(self, target: Path) -> bytes | None:
        """The result if it exists and can be decoded to its end."""
        try:
            data = target.read_bytes()
            read_picture(data, where=str(target))
        except (OSError, InputError):
            return None
        return data

    def _failure(self, error: Exception, job: Job) -> str:
        if isinstance(error, OSError) and error.errno in NO_POINT_IN_GOING_ON:
            raise InputError(
                f"{error.filename or self._order.output}: {os.strerror(error.errno or errno.ENOSPC)} (on "
                f"{platform.node()}); free disk space and run the same command again, which continues from there"
            ) from error
        if isinstance(error, getattr(torch, "AcceleratorError", ())) and sentence(error) is None:
            os._exit(1)  # nothing works on this device until the process starts again; the attempt is counted
        if sentence(error) is None:
            return f"{job}: {type(error).__name__}: {error} (a bug in diffir_sr {__version__})"
        return describe_failure(error, job)


class _Collector(logging.Handler):
    """Adds warnings to a list."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


def settings_of(restorer: Any, restore: RestoreSettings) -> dict[str, Any]:
    """Everything that determines a result besides the image and its mask."""
    made = restorer.settings(samples=restore.samples, average=restore.average, quality=restore.quality)
    return json.loads(json.dumps({**made, "format": restore.form}))


def _address(source: str, settings: Mapping[str, Any], suffix: str) -> str:
    key = digest(json.dumps([source, settings, suffix], sort_keys=True).encode())
    return f"{_RESULTS}/{key[:3]}/{key}{suffix}"


def _attempt(output: str, image: Image) -> Path:
    return Path(output, _STATE, "attempts", digest(image.source.encode()))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Rows:
    """The rows of a run, kept in files until `merge` makes them part of the manifest."""

    def __init__(self, output: Path) -> None:
        self._output, self._folder = output, output / _STATE / "rows"
        self._waiting: list[pa.Table] = []
        self._flushed = time.monotonic()

    def add(self, rows: pa.Table) -> bool:
        """Add rows; returns whether they were written, with all before them."""
        self._waiting.append(rows)
        many = sum(len(table) for table in self._waiting) >= _FLUSH_ROWS
        if many or time.monotonic() - self._flushed >= _FLUSH_S:
            self.flush()
            return True
        return False

    def flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            path = self._folder / f"{len(self._files()):08d}{_LIST}"
            write_atomically(_encoded(pa.concat_tables(self._waiting)), path)
        self._waiting, self._flushed = [], time.monotonic()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{_LIST}"))

    def read(self) -> pa.Table:
        """The newest row of each image, of all runs."""
        import pyarrow as pa

        manifest = self._output / MANIFEST
        files = [manifest] if manifest.exists() else []
        tables = [_decoded(path) for path in [*files, *self._files()]]
        return _newest(pa.concat_tables([schema().empty_table(), *tables]))

    def merge(self) -> pa.Table:
        """Write the manifest, sorted by source, and remove what it was made of; returns it."""
        self.flush()
        rows = self.read().sort_by("source")
        write_atomically(_encoded(rows), self._output / MANIFEST)
        shutil.rmtree(self._output / _STATE, ignore_errors=True)
        return rows


def _encoded(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _decoded(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).select(list(_COLUMNS)).cast(schema())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as rows of a fleet ({_first_line(error)}); move it away and run the same command "
            "again, which finds the results that exist"
        ) from error


def _newest(rows: pa.Table) -> pa.Table:
    """The last row of each source."""
    import pyarrow as pa

    numbered = pa.table({"source": rows["source"], "number": pa.array(range(len(rows)), pa.int64())})
    return rows.take(numbered.group_by("source").aggregate([("number", "max")])["number_max"])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# The images that are asked for, and those of them that are not done yet.


def listed(inputs: Sequence[str], *, column: str) -> Iterator[Image]:
    """The images of folders, files, globs and Parquet lists, each once; raises InputError if there are none."""
    seen, videos = set(), 0
    for given in inputs:
        is_list = given.lower().endswith(_LIST)
        for path, relative in _of_list(Path(os.path.expanduser(given)), column) if is_list else input_files(given):
            source = os.path.abspath(path)
            if source in seen:
                continue
            seen.add(source)
            if is_video(path):
                videos += 1
                continue
            try:
                source.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{os.fsencode(source)!r}: this name is not UTF-8 text, as Parquet needs; rename the file"
                ) from error
            yield Image(source, relative)
    if videos:
        sys.stderr.write(f"{videos} videos are left out; restore them with diffir restore\n")
    if not seen or len(seen) == videos:
        raise InputError(f"{', '.join(inputs)}: lists 0 images; give a folder with images, or a list of their paths")


def _of_list(path: Path, column: str) -> Iterator[tuple[Path, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise InputError(f"{path}: has no column {column!r}, only {', '.join(names)}; choose one with --column")
        kind = file.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{path}: column {column!r} has values of type {kind}, expected text (paths)")
        for batch in file.iter_batches(columns=[column]):
            for name in batch.column(0).to_pylist():
                if not name:
                    raise InputError(f"{path}: column {column!r} has an empty path; remove that row")
                yield path.parent / name, name if not os.path.isabs(name) else Path(name).name
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as a Parquet list ({_first_line(error)}); write it again") from error


@dataclass(frozen=True)
class Plan:
    """What is left to do, and what is not: images done, and images that failed in an earlier run."""

    todo: list[Image]
    done: int
    failed: int


def plan(
    images: Sequence[Image], rows: pa.Table, output: Path, *, settings: str, retry: bool, mask: str | None = None
) -> Plan:
    """The images that have no row, changed since (also those that failed), lost their result, or with `retry` failed.

    With `mask`, a file, a folder or a colour, an image has changed if its mask has. Raises InputError if the manifest
    has rows of other settings or weights.
    """
    others = [one for one in rows["settings"].unique().to_pylist() if one != settings]
    if others:
        raise InputError(
            f"{output / MANIFEST} has results of other settings or weights ({_difference(others[0], settings)}); "
            "choose another folder"
        )
    known = ("source", "source_bytes", "source_mtime_ns", "output", "error", "source_digest")
    before = {row[0]: row[1:] for row in zip(*(rows[name].to_pylist() for name in known), strict=True)}

    def state(image: Image) -> str:
        row = before.get(image.source)
        if row is None:
            return "todo"
        *known, result, error, source = row
        if error is not None and retry:
            return "todo"
        with contextlib.suppress(OSError):  # an image that was removed when it was done stays done
            found = os.stat(image.source)
            if [found.st_size, found.st_mtime_ns] != known:
                return "todo"
            if error is None and mask is not None and not source.endswith(_mask_digest(mask, image)):
                return "todo"
        if error is not None:
            return "failed"
        return "done" if (output / result).exists() else "todo"

    with ThreadPoolExecutor(_LOOKUPS) as pool:
        states = list(pool.map(state, images)) if before else ["todo"] * len(images)
    todo = [image for image, found in zip(images, states, strict=True) if found == "todo"]
    return Plan(todo, states.count("done"), states.count("failed"))


def _mask_digest(mask: str, image: Image) -> str:
    """What its mask adds to the digest of an image, `+` at least; a mask that is not there differs from any other."""
    try:
        return mask_digest(find_mask(mask, image.relative, Path(image.source)))
    except (OSError, InputError):
        return "+"


def _difference(before: str, now: str) -> str:
    old, new = json.loads(before), json.loads(now)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return "; ".join(f"{name} {old.get(name)!r}, now {new.get(name)!r}" for name in names)


# The cluster.


@dataclass(frozen=True)
class Workers:
    """Number of workers, CPUs and accelerators of each, and the device that they compute on."""

    count: int
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        return "auto" if self.gpus else "cpu"


@contextlib.contextmanager
def cluster(address: str | None, *, workers: int | None, cpus: int, use_gpus: bool) -> Iterator[Workers]:
    """Connect to a Ray cluster, or start one on this machine, and leave it at the end; yields what fits on it.

    One CPU always stays free: a pool that takes all of them leaves none for Ray's own tasks, and waits forever. Raises
    InputError if the cluster cannot be reached, or if `workers` of `cpus` CPUs do not fit.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the rest is in its log files
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _reach(address)
        if address is None:
            gpus = accelerator_count() if use_gpus else 0
            count = workers or gpus or max(1, available_cpus() // cpus)
            # CPUs are only a number to Ray; that of the machine may be less, and then workers take turns.
            with _without_stderr():
                ray.init(
                    address="local",
                    num_cpus=count * cpus + 1,
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    **quiet,
                )
        else:
            with _without_stderr():
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"the Ray cluster {address or 'on this machine'} cannot be used ({_first_line(error)}); start it with "
            "'ray start --head', or leave --address and RAY_ADDRESS out"
        ) from error
    try:
        yield fitting(ray.cluster_resources(), workers=workers, cpus=cpus, use_gpus=use_gpus)
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise OSError if nothing answers at host:port, for which Ray would wait for many minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()


_REACH_S = 10.0
_STORE_BYTES = 2**28  # of shared memory: only paths and rows go through it


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence standard error below Python: Ray's core writes to it which log level it was given."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def fitting(resources: Mapping[str, float], *, workers: int | None, cpus: int, use_gpus: bool) -> Workers:
    """The workers for a cluster with these resources; raises InputError if they do not fit."""
    all_cpus, all_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0)) if use_gpus else 0
    most = (all_cpus - 1) // cpus
    if all_gpus:
        most = min(most, all_gpus)
    count = workers or most
    if not 1 <= count <= most:
        raise InputError(
            f"--workers {count or 1}: the cluster has {all_cpus} CPUs and {all_gpus} accelerators, enough for {most} "
            f"workers of --cpus {cpus} (one CPU stays free for Ray); give fewer"
        )
    return Workers(count, cpus, 1 if all_gpus else 0)


def restored(
    images: Sequence[Image], order: Order, workers: Workers, *, say: Callable[[str], None]
) -> Iterator[pa.Table]:
    """The rows of images in the order of their completion, a table at a time.

    Dead workers and machines are replaced, and what they had in hand is done again. Raises InputError if a worker says
    that all have to stop, or if the cluster itself ends.
    """
    import pyarrow as pa
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # large images take their time
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    at_once = max(1, min(_MOST_AT_ONCE, len(images) // (_TASKS_EACH * workers.count)))
    parts = [images[start : start + at_once] for start in range(0, len(images), at_once)]
    tables = [pa.Table.from_pylist([image._asdict() for image in part]) for part in parts]
    made = ray.data.from_arrow(tables).map_batches(
        Worker,  # type: ignore[arg-type] - a class with __call__
        fn_constructor_args=[order],
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=workers.count, initial_size=min(workers.count, len(tables))
        ),
    )
    nodes = _Nodes(say)
    try:
        for table in cast("Iterator[pa.Table]", made.iter_batches(batch_size=None, batch_format="pyarrow")):
            nodes.look()
            stop = table["stop"].drop_null()
            yield table.filter(table["stop"].is_null()).drop_columns(["stop"])
            if len(stop):
                raise InputError(stop[0].as_py())
    except RayError as error:
        raise InputError(
            f"the Ray cluster gave up ({_first_line(error)}); run the same command again, which continues from there"
        ) from error


class _Nodes:
    """Says when a machine of the cluster is lost."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._looked = say, time.monotonic()
        self._alive = self._now()

    def _now(self) -> set[str]:
        import ray

        return {f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})" for node in ray.nodes() if node["Alive"]}

    def look(self) -> None:
        if time.monotonic() - self._looked < 1:
            return
        self._looked, before = time.monotonic(), self._alive
        self._alive = self._now()
        for lost in sorted(before - self._alive):
            self._say(f"{lost} is lost; what it had in hand is taken again by the {len(self._alive)} others")


def run(args: argparse.Namespace) -> int:
    """`diffir fleet`."""
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError(f"diffir fleet needs Ray Data and PyArrow: {INSTALL}") from error
    check_numbers(args)
    for name in ("workers", "cpus"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    output = Path(os.path.abspath(args.output))
    check_apart([one for one in args.inputs if not one.lower().endswith(_LIST)], output)
    images = list(listed(args.inputs, column=args.column))
    order, about = _order(args, output)
    settings = json.dumps(order.settings, sort_keys=True)
    with hold(output):
        rows = Rows(output)
        work = plan(images, rows.read(), output, settings=settings, retry=args.retry_errors, mask=order.restore.mask)
        started = time.perf_counter()
        workers = _work(args, work, order, rows) if work.todo else None
        manifest = rows.merge()
    return _summary(images, manifest, work, output, f"{about}{_crew(workers, time.perf_counter() - started)}")


def _order(args: argparse.Namespace, output: Path) -> tuple[Order, str]:
    """What workers are told, and a few words about it; weights are loaded once, so that errors come first."""
    chosen = chosen_model(args)
    arguments = restorer_arguments(args, chosen)
    if chosen.entry is not None:  # by name, since packages may be installed elsewhere on other machines
        arguments |= {"weights": None, "model": chosen.entry.name}
    else:
        files = arguments["weights"] if isinstance(arguments["weights"], list) else [arguments["weights"]]
        arguments["weights"] = [os.path.abspath(file) for file in files]
    if arguments["schedule"]:
        arguments["schedule"] = os.path.abspath(arguments["schedule"])
    if arguments["blend"]:
        arguments["blend"] = (_absolute(arguments["blend"][0]), arguments["blend"][1])
    mask = args.mask if args.mask is None else _absolute(args.mask)
    restore = RestoreSettings(
        form=args.format, mask=mask, samples=args.samples, average=args.samples > 1, quality=args.quality
    )
    restorer = load_restorer(**arguments, device="cpu")
    settings = settings_of(restorer, restore)
    run_name = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    accept = os.environ.get(ACCEPT_DAMAGED) == "1"
    order = Order(str(output), run_name, arguments, restore, settings, args.device, args.cpus, accept)
    return order, f"{f'model {chosen.entry.name}, ' if chosen.entry else ''}seed {args.seed}"


def _absolute(given: str) -> str:
    """The absolute path of a file or folder that exists; what else may be given (the name of a model) as it is."""
    path = os.path.expanduser(given)
    return os.path.abspath(path) if os.path.exists(path) else given


def _work(args: argparse.Namespace, work: Plan, order: Order, rows: Rows) -> Workers:
    """Restore what is to do; whatever ends it, the rows so far are kept."""

    def say(text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    with cluster(args.address, workers=args.workers, cpus=args.cpus, use_gpus=args.device != "cpu") as workers:
        order = replace(order, device=workers.device)
        died = 0
        with progress_bar(total=len(work.todo), unit="image") as bar:
            try:
                for table in restored(work.todo, order, workers, say=say):
                    rows.add(table)
                    bar.update(len(table))
                    again = [tries for tries in table["tries"].to_pylist() if tries > 1]
                    if again and not died:
                        say("a worker died; what it had in hand is taken again, and nothing is lost")
                    died += len(again)
            except BaseException:
                with contextlib.suppress(OSError):  # the disk is full: results without a row are found again
                    rows.merge()
                raise
        if died:
            say(f"{died} images were taken again after their worker died (column tries of the manifest)")
    return workers


def _crew(workers: Workers | None, seconds: float) -> str:
    return "" if workers is None else f", {workers.count} workers, {seconds:.0f} s"


def _summary(images: Sequence[Image], manifest: pa.Table, work: Plan, output: Path, about: str) -> int:
    """Print what became of the images; returns the exit code."""
    rows = dict(zip(manifest["source"].to_pylist(), manifest["error"].to_pylist(), strict=True))
    lost = [image.source for image in images if image.source not in rows]
    failures = [rows[image.source] for image in images if rows.get(image.source) is not None]
    for failure in failures[:_SHOWN]:
        sys.stderr.write(f"failed: {failure}\n")
    if failures:
        more = f" ({len(failures) - _SHOWN} more)" if len(failures) > _SHOWN else ""
        sys.stderr.write(f"errors are rows of {output / MANIFEST}{more}; --retry-errors takes these images again\n")
    if lost:
        raise InputError(
            f"{output}: {len(lost)} images have no row, such as {lost[0]}; run the same command again, which takes them"
        )
    kept = f", {work.done} kept" if work.done else ""
    new = len(images) - work.done - len(failures)
    bad = f", {len(failures)} failed" if failures else ""
    write_out(f"{output}: {new} restored{kept}{bad} ({about})\n")
    return 1 if failures else 0
