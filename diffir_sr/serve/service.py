"""What is behind the page: models, limits, and restorations that wait in a line, run one at a time and can be stopped.

Nothing here knows gradio, so that another front end could use it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from diffir_sr.archs.autodir_arch import AutoDIR, AutoDIRSettings, Round
from diffir_sr.errors import InputError
from diffir_sr.files.images import inspect, read_file, read_picture
from diffir_sr.files.picture import Picture, encode_png
from diffir_sr.inference.autodir import round_tiles
from diffir_sr.inference.inputs import mask_for
from diffir_sr.inference.restorer import Restorer, load_restorer
from diffir_sr.inference.runner import RunSummary, map_name
from diffir_sr.weights.registry import Entry, choose, locate, registry

AUTOMATIC = "automatic"
# Images of more pixels are enlarged by this model if the choice is automatic: x4 would make 16 times as many.
_LARGE, _FOR_LARGE = 2**20, "sr_x2"
_SHOWN = 1600  # pixels: largest side of images on the screen
_ROUNDS_SHOWN, _MOST_SHOTS = 768, 60
_LOADED = 3  # models that are kept in memory


@dataclass(frozen=True)
class Limits:
    """What is accepted from outside."""

    file_bytes: int
    pixels: int
    files: int
    waiting: int = 64  # restorations that are not finished
    samples: int = 32


@dataclass(frozen=True)
class Wish:
    """How to restore: the options of `diffir restore` that the page has.

    `sharpness` is the share of --blend with the sharper model; `strokes` (H, W) bool, of the brush, mark missing pixels
    of the first image in any resolution, together with the file `mask`.
    """

    model: str = AUTOMATIC
    mask: Path | None = None
    strokes: np.ndarray | None = None
    sharpness: float = 0.0
    samples: int = 1
    average: bool = False
    form: str | None = None
    quality: int = 95
    seed: int = 0
    prompt: str | None = None

    @property
    def masked(self) -> bool:
        return self.mask is not None or self.strokes is not None


class Stopped(BaseException):  # noqa: N818 - not an error, and not to be caught as one
    """Raised in the thread of a restoration that is to stop."""


class Line:
    """Tasks in the order in which they came; the first one has the device."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._tasks)

    def join(self, task: Task, *, most: int) -> None:
        """Raises InputError if the line is full."""
        with self._changed:
            if len(self._tasks) >= most:
                raise InputError(f"{len(self._tasks)} restorations are waiting already; try again later")
            self._tasks.append(task)

    def before(self, task: Task) -> int:
        """How many tasks are finished before this one begins."""
        with self._changed:
            return self._tasks.index(task) if task in self._tasks else 0

    def wait(self, task: Task) -> None:
        """Return when it is the turn of this task; raises Stopped if it is stopped earlier."""
        with self._changed:
            self._changed.wait_for(lambda: task.stopping or self._tasks[0] is task)
        if task.stopping:
            raise Stopped

    def wake(self) -> None:
        """Let tasks that are being stopped leave."""
        with self._changed:
            self._changed.notify_all()

    def leave(self, task: Task) -> None:
        with self._changed:
            self._tasks.remove(task)
            self._changed.notify_all()


class Task:
    """A restoration in a thread, which waits for its turn and can be stopped at any operation of the network."""

    def __init__(self, folder: Path, line: Line, pixels: Sequence[int], work: Callable[[Task], RunSummary]) -> None:
        """`pixels` are those of each input. The caller starts the thread, after it has joined the line."""
        self.folder = folder  # of this task alone: inputs in `in`, results in `out`
        self.outcome: RunSummary | None = None
        self.error: BaseException | None = None
        self.shots: list[tuple[str, np.ndarray]] = []  # what is to be seen of the way: rounds of AutoDIR
        self.rate: float | None = None  # seconds per pixel, measured here or before with the same model
        self.done = 0  # inputs
        self.stopping = False
        self.began: float | None = None
        self.pixels, self._work, self._line = tuple(pixels), work, line
        self._last = 0.0  # when the last input was finished
        self._lock = threading.Lock()
        self._interruptible, self._over, self._discarded = False, False, False
        self.thread = threading.Thread(target=self._run, daemon=True)

    @property
    def over(self) -> bool:
        return self._over

    def _run(self) -> None:
        # One exception at most is raised here from outside, only while interruptible, and is pending at most until the
        # lock is taken again: within the first `_set(False)`, or within the second one if it interrupted the first.
        try:
            try:
                self._set(True)
                self._line.wait(self)
                self._take_turn()
                self.outcome = self._work(self)
            finally:
                self._set(False)
        except BaseException as error:  # noqa: BLE001 - reported by the thread that waits
            self.error = error
        try:
            self._set(False)
        except Stopped as error:
            self.error = error
        self._line.leave(self)
        with self._lock:
            self._over = True
            discarded = self._discarded
        if discarded:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _take_turn(self) -> None:
        with self._lock:
            if self.stopping:
                raise Stopped
            self.began = self._last = time.monotonic()

    def _set(self, interruptible: bool) -> None:
        with self._lock:
            self._interruptible = interruptible

    def progress(self, done: int, total: int, file: Path | None) -> bool:
        """What `Restorer.files` reports to."""
        if done > self.done:
            now = time.monotonic()
            self.rate = (now - (self.began or now)) / max(1, sum(self.pixels[:done]))
            self.done, self._last = done, now
        return not self.stopping

    def stop(self) -> None:
        """Stop between two operations; results that are finished remain."""
        with self._lock:
            if self.stopping:
                return
            self.stopping = True
            if self._interruptible and self.began is not None and self.thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), ctypes.py_object(Stopped))
        self._line.wake()

    def discard(self) -> None:
        """Stop, and remove the task's folder as soon as nothing is written there."""
        self.stop()
        with self._lock:
            self._discarded = True
            over = self._over
        if over:
            shutil.rmtree(self.folder, ignore_errors=True)

    def status(self) -> str:
        """Place in the line, or progress with the time left if the speed is known."""
        if self.began is None:
            before = self._line.before(self)
            return f"waiting for {before} restoration{'s' if before > 1 else ''} of others" if before else "starting"
        now, total = time.monotonic(), len(self.pixels)
        of = f"{self.done} of {total} restored" if self.done else f"restoring {total} image{'s' if total > 1 else ''}"
        if self.rate is None:
            return f"{of}, {now - self.began:.0f} s so far"
        left = self.rate * sum(self.pixels[self.done :]) - (now - self._last)
        return f"{of}, about {max(1, left):.0f} s left" if left > 0 else f"{of}, {now - self.began:.0f} s so far"


class Service:
    """Models, limits and the folder of a server."""

    def __init__(self, folder: Path, limits: Limits, *, device: str = "auto", weights: Sequence[Path] = ()) -> None:
        """Raises InputError for weights that cannot be told apart or loaded."""
        self.limits, self.device = limits, device
        self.line = Line()
        self._folder, self._given = folder, {path.name: path for path in weights}
        if len(self._given) < len(weights):
            raise InputError("-w: two of these files have the same name, by which they are chosen; rename one")
        self._loaded: OrderedDict[tuple[Path, Path | None, float], Restorer] = OrderedDict()
        self._rates: dict[Path, float] = {}
        self._tasks: dict[str, list[Task]] = {}
        self._lock = threading.Lock()
        self._defaults: dict[Path, AutoDIRSettings] = {}  # of the AutoDIRs, which requests change
        self._count = 0
        for path in weights:  # so that a wrong file is reported before anybody comes
            self._restorer(path, None, 0.0)
        self.has_rounds = bool(self._defaults)

    def models(self) -> list[str]:
        """Names to choose from: weights files of the command line, and named models that are on this machine."""
        named = [entry.name for entry in registry().values() if entry.kind == "restorer" and locate(entry) is not None]
        return [AUTOMATIC, *self._given, *(name for name in named if name not in self._given)]

    def sharper(self, model: str) -> Entry | None:
        """The model at the other end of the dial between fidelity and sharpness, if this one has such an end."""
        return self._dial(model)[1]

    def _dial(self, model: str) -> tuple[Entry | None, Entry | None]:
        """Both ends of the dial; for the automatic choice, of the default model or else the first that has two."""
        if model in self._given:
            return None, None
        known = registry()
        models = [choose(masked=False).entry, *known.values()] if model == AUTOMATIC else [known.get(model)]
        for entry in models:
            other = known.get(entry.sharper) if entry is not None and locate(entry) is not None else None
            if other is not None and locate(other) is not None:
                return entry, other
        return None, None

    def check(self, path: Path) -> int:
        """The pixels of a file; raises InputError for one that is too large, or no image, before it is decoded."""
        size = path.stat().st_size
        if size > self.limits.file_bytes:
            raise InputError(
                f"{path.name}: {size / 2**20:.1f} MiB, at most {self.limits.file_bytes / 2**20:g} are accepted here"
            )
        known = inspect(read_file(path), where=path.name)
        if known.height * known.width > self.limits.pixels:
            raise InputError(
                f"{path.name}: {known.height}x{known.width} pixels, at most {self.limits.pixels / 1e6:g} million are "
                "accepted here"
            )
        return known.height * known.width

    def begin(self, session: str, files: Sequence[str], wish: Wish) -> Task:
        """Begin to restore uploaded files; the task's `discard` ends it. Raises InputError, and OSError of the disk."""
        self._check_wish(len(files), wish)
        with self._lock:
            self._count += 1
            folder = self._folder / f"task{self._count}"
        try:
            (folder / "in").mkdir(parents=True)
            inputs, pixels = self._inputs(files, folder)
            mask = self._mask(inputs[0], wish, folder)
            task = Task(folder, self.line, pixels, partial(self._restore, inputs=inputs, mask=mask, wish=wish))
            self.line.join(task, most=self.limits.waiting)
            try:
                task.thread.start()
            except RuntimeError:  # no more threads
                self.line.leave(task)
                raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._tasks.setdefault(session, []).append(task)
        return task

    def end(self, session: str, task: Task) -> None:
        """Forget a task and its files."""
        task.discard()
        with self._lock:
            left = [one for one in self._tasks.pop(session, []) if one is not task]
            if left:
                self._tasks[session] = left

    def stop(self, session: str) -> None:
        """Stop what this session restores."""
        with self._lock:
            tasks = list(self._tasks.get(session, []))
        for task in tasks:
            task.stop()

    def _check_wish(self, count: int, wish: Wish) -> None:
        if not count:
            raise InputError("no image; choose one or more first")
        if count > self.limits.files:
            raise InputError(f"{count} images, at most {self.limits.files} at once are accepted here")
        if wish.model not in self.models():
            raise InputError(f"model {wish.model!r}: choose one of {', '.join(self.models())}")
        if not 0 <= wish.sharpness <= 1:
            raise InputError(f"sharpness: expected 0 (fidelity) to 1 (sharp), got {wish.sharpness:g}")
        if not 1 <= wish.samples <= self.limits.samples:
            raise InputError(f"samples: expected 1 to {self.limits.samples}, got {wish.samples}")
        if wish.average and wish.samples < 2:
            raise InputError("average: needs 2 samples or more")
        if not 1 <= wish.quality <= 100:
            raise InputError(f"quality: expected 1 to 100, got {wish.quality}")

    def _inputs(self, files: Sequence[str], folder: Path) -> tuple[list[Path], list[int]]:
        """The files in the task's own folder, each under its name, and their pixels."""
        inputs = []
        for number, file in enumerate(files, start=1):
            name = Path(file).name.lstrip(".") or "image"  # a name is never a path
            path = folder / "in" / name
            if path.exists():
                path = folder / "in" / f"{number}-{name}"
            _link(Path(file), path)
            inputs.append(path)
        return inputs, [self.check(path) for path in inputs]

    def _mask(self, image: Path, wish: Wish, folder: Path) -> str | None:
        """The mask as a file: that of the user, or one with the strokes of the brush added to it."""
        given = None
        if wish.mask is not None:
            given = folder / f"mask{wish.mask.suffix}"
            _link(wish.mask, given)
            self.check(given)
        if wish.strokes is None:
            return None if given is None else str(given)
        picture = read_picture(read_file(image), where=image.name)
        height, width = picture.size
        drawn = cv2.resize(wish.strokes.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        if given is not None:
            drawn |= mask_for(picture, given, where=image.name).missing
        path = folder / "drawn.png"
        path.write_bytes(encode_png((drawn * np.uint8(255))[..., None]))
        return str(path)

    def _restore(self, task: Task, *, inputs: Sequence[Path], mask: str | None, wish: Wish) -> RunSummary:
        """The work of a task, in its thread."""
        path = self._given.get(wish.model) or self._named(wish, task.pixels)
        sharper = self._sharper_file(wish)
        task.rate = self._rates.get(path)
        restorer = self._restorer(path, sharper, wish.sharpness if sharper else 0.0)
        network = restorer.network
        if isinstance(network, AutoDIR):
            network.restore_settings = self._defaults[path]
            network.adjust(prompt=wish.prompt or None)
            network.watch = partial(_keep_round, task)
        elif wish.prompt:
            raise InputError("prompt: only AutoDIR takes one; leave it out, or choose AutoDIR")
        made = restorer.seeded(wish.seed).files(
            list(inputs),
            task.folder / "out",
            mask=mask,
            samples=wish.samples,
            average=wish.average,
            form=wish.form,
            quality=wish.quality,
            progress=task.progress,
        )
        if task.rate is not None and wish.samples == 1:
            self._rates[path] = task.rate
        return made

    def _named(self, wish: Wish, pixels: Sequence[int]) -> Path:
        """The file of the named model, or of the one for these images: a mask and their pixels decide."""
        name = None if wish.model == AUTOMATIC else wish.model
        if name is None and wish.sharpness and not wish.masked:
            faithful, _ = self._dial(AUTOMATIC)
            name = faithful.name if faithful is not None else None
        elif name is None and not wish.masked and max(pixels) > _LARGE:
            known = registry().get(_FOR_LARGE)
            name = _FOR_LARGE if known is not None and locate(known) is not None else None
        return choose(None, name, masked=wish.masked).path

    def _sharper_file(self, wish: Wish) -> Path | None:
        if not wish.sharpness:
            return None
        other = self.sharper(wish.model)
        if other is None or wish.masked:
            raise InputError(f"sharpness: no sharper model of {wish.model} is known; set it to 0")
        return choose(model=other.name).path

    def _restorer(self, path: Path, sharper: Path | None, share: float) -> Restorer:
        """The loaded restorer; the least recently used ones give place."""
        key = path, sharper, share
        with self._lock:
            found = self._loaded.pop(key, None)
        if found is None:
            with self._lock:
                while len(self._loaded) >= _LOADED:
                    self._loaded.popitem(last=False)
            found = load_restorer(path, blend=None if sharper is None else (sharper, share), device=self.device)
            if isinstance(found.network, AutoDIR):
                self._defaults.setdefault(path, found.network.restore_settings)
        with self._lock:
            self._loaded[key] = found
        return found


def _keep_round(task: Task, one: Round) -> None:
    if len(task.shots) < _MOST_SHOTS:
        task.shots += round_tiles(one, side=_ROUNDS_SHOWN)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def shown(picture: Picture, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as 8-bit RGB for the screen, (H, W, 3); `size` (height, width) enlarges it."""
    values: np.ndarray = picture.colours if picture.colours.dtype != np.float64 else picture.colours.astype(np.float32)
    height, width = size or values.shape[:2]
    share = min(1, _SHOWN / max(height, width))
    wanted = max(1, round(width * share)), max(1, round(height * share))
    if wanted != values.shape[1::-1]:
        larger = wanted[0] >= values.shape[1]
        values = cv2.resize(values, wanted, interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
    values = values.reshape(*values.shape[:2], -1)
    values = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
    top = {"uint8": 255, "uint16": 65535}.get(values.dtype.name, 1)
    return np.rint(values.astype(np.float32).clip(0, top) * (255 / top)).astype(np.uint8)


def compared(source: Path, target: Path, folder: Path) -> tuple[str, str]:
    """Files with the input, enlarged, and the result, in equal sizes, for the screen."""
    after = read_picture(read_file(target), where=target.name)
    before = read_picture(read_file(source), where=source.name)
    size = after.colours.shape[:2]
    paths = folder / "before.png", folder / "after.png"
    for path, image in zip(paths, (shown(before, size=size), shown(after)), strict=True):
        path.write_bytes(encode_png(image))
    return str(paths[0]), str(paths[1])


def sampled(target: Path, samples: int) -> list[tuple[str, np.ndarray]]:
    """The labelled pictures of a result with several samples: the samples, their mean, the sensitivity laid over it.

    `target` is the name that a single result would have.
    """
    names = [*(f"sample{number}" for number in range(1, samples + 1)), "mean"]
    files = [target.with_name(f"{target.stem}.{name}{target.suffix}") for name in names]
    pictures = [shown(read_picture(read_file(file), where=file.name)) for file in files]
    spread = shown(read_picture(read_file(map_name(target)), where=target.name))
    return [*zip(names, pictures, strict=True), ("sensitivity", overlaid(pictures[-1], spread))]


def overlaid(picture: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """A sensitivity map (H, W, 3) laid over a picture, both uint8: colours from dark to yellow where it is large."""
    heat = cv2.cvtColor(cv2.applyColorMap(spread[..., 0], cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    share = 0.25 + 0.6 * spread[..., :1] / np.float32(255)
    grey = picture.mean(axis=2, keepdims=True)
    return np.rint((1 - share) * grey + share * heat).astype(np.uint8)


def results_in(folder: Path) -> list[Path]:
    """The restored files of a task's folder, without its journal."""
    return sorted(path for path in (folder / "out").rglob("*") if path.is_file() and path.suffix != ".jsonl")


def packed(folder: Path) -> Path:
    """The results of a folder: the file itself, or a zip of several."""
    out, files = folder / "out", results_in(folder)
    if len(files) == 1:
        return files[0]
    target = folder / "restored.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            archive.write(path, path.relative_to(out).as_posix())
    return target
