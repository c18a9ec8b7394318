"""`diffir serve`: a page in the browser, and the same as an HTTP API; results are the files of `diffir restore`.

Everything stays on this machine: the server listens on 127.0.0.1 unless asked otherwise, and the page loads nothing
from elsewhere. Uploaded and made files lie in a folder of this process, which is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import html
import importlib
import importlib.util
import os
import queue
import re
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.failures import sentence
from diffir_sr.files.images import inspect, read_file, read_picture
from diffir_sr.files.picture import Picture, encode_png
from diffir_sr.inference.restorer import Restorer, load_restorer
from diffir_sr.inference.runner import RunSummary
from diffir_sr.weights.registry import choose, locate, registry

AUTOMATIC = "automatic"
INSTALL = "pip install 'diffir_sr[web]'"
_SHOWN = 1600  # pixels: largest side of the images in the comparison


@dataclass(frozen=True)
class Limits:
    """What is accepted from outside."""

    file_bytes: int
    pixels: int
    files: int


class Stopped(BaseException):  # noqa: N818 - not an error, and not to be caught as one
    """Raised in the thread of a restoration that is to stop."""


class Task:
    """A restoration in a thread, which can be stopped at any operation of the network."""

    def __init__(self, work: Callable[[Callable[[int, int, Path | None], bool]], RunSummary]) -> None:
        self.news: queue.Queue[tuple[int, int]] = queue.Queue()
        self.outcome: RunSummary | None = None
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._work = work
        self._lock = threading.Lock()
        self._running = True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._work(self._progress)
        except BaseException as error:  # noqa: BLE001 - reported by the thread that waits
            self.error = error
        finally:
            with self._lock:
                self._running = False

    def _progress(self, done: int, total: int, file: Path | None) -> bool:
        self.news.put((done, total))
        return not self._stop.is_set()

    def stop(self) -> None:
        """Stop between two operations; results that are finished remain."""
        self._stop.set()
        with self._lock:
            if self._running and self.thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), ctypes.py_object(Stopped))


@dataclass
class Service:
    """Models, limits and the folder of a server; restorations run one at a time."""

    folder: Path
    limits: Limits
    device: str = "auto"
    weights: Sequence[Path] = ()
    _loaded: dict[Path, Restorer] = field(default_factory=dict)
    _tasks: dict[str, Task] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0

    def models(self) -> list[str]:
        """Names to choose from: weights files of the command line, and named models that are on this machine."""
        named = [entry.name for entry in registry().values() if entry.kind == "restorer" and locate(entry) is not None]
        return [AUTOMATIC, *(path.name for path in self.weights), *named]

    def restorer(self, model: str, *, masked: bool) -> Restorer:
        """The restorer of a name of `models`; by default, the mask decides. Raises InputError for other names."""
        if model not in self.models():
            raise InputError(f"model {model!r}: choose one of {', '.join(self.models())}")
        given = next((path for path in self.weights if path.name == model), None)
        if given is None:
            given = choose(None, None if model == AUTOMATIC else model, masked=masked).path
        with self._lock:
            if given not in self._loaded:
                self._loaded[given] = load_restorer(given, device=self.device)
            return self._loaded[given]

    def check(self, path: Path) -> None:
        """Raise InputError for a file that is too large, or no image, before it is decoded."""
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

    def task_folder(self) -> Path:
        """A new folder for one restoration."""
        with self._lock:
            self._count += 1
            folder = self.folder / f"task{self._count}"
        (folder / "in").mkdir(parents=True)
        return folder

    def start(self, session: str, files: Sequence[str], model: str, mask: str | None, seed: int) -> tuple[Path, Task]:
        """Begin to restore uploaded files; returns the folder, in which results go to `out`. Raises InputError."""
        if not files:
            raise InputError("no image; choose one or more first")
        if len(files) > self.limits.files:
            raise InputError(f"{len(files)} images, at most {self.limits.files} at once are accepted here")
        folder = self.task_folder()
        inputs = []
        for number, file in enumerate(files, start=1):
            name = Path(file).name.lstrip(".") or "image"  # a name is never a path
            path = folder / "in" / name
            if path.exists():
                path = folder / "in" / f"{number}-{name}"
            os.link(file, path) if _same_disk(Path(file), folder) else path.write_bytes(Path(file).read_bytes())
            self.check(path)
            inputs.append(path)
        if mask is not None:
            self.check(Path(mask))
        restorer = self.restorer(model, masked=mask is not None)

        def work(progress: Callable[[int, int, Path | None], bool]) -> RunSummary:
            return restorer.seeded(seed).files(inputs, folder / "out", mask=mask, progress=progress)

        task = Task(work)
        with self._lock:
            self._tasks[session] = task
        return folder, task

    def stop(self, session: str) -> None:
        """Stop what this session restores."""
        with self._lock:
            task = self._tasks.get(session)
        if task is not None:
            task.stop()


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def shown(picture: Picture, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as 8-bit RGB for the screen, (H, W, 3); `size` (height, width) enlarges it."""
    colours = picture.colours
    values = colours / np.iinfo(colours.dtype).max if colours.dtype.kind == "u" else colours.clip(0, 1)
    values = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
    height, width = size or values.shape[:2]
    share = min(1, _SHOWN / max(height, width))
    wanted = max(1, round(width * share)), max(1, round(height * share))
    if wanted != values.shape[1::-1]:
        larger = wanted[0] >= values.shape[1]
        values = cv2.resize(
            values.astype(np.float32), wanted, interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA
        )
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def compared(source: Path, target: Path, folder: Path) -> tuple[str, str]:
    """Files with the input, enlarged, and the result, in equal sizes, for the screen."""
    after = read_picture(read_file(target), where=target.name)
    before = read_picture(read_file(source), where=source.name)
    size = after.colours.shape[:2]
    paths = folder / "before.png", folder / "after.png"
    for path, image in zip(paths, (shown(before, size=size), shown(after)), strict=True):
        path.write_bytes(encode_png(image))
    return str(paths[0]), str(paths[1])


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


def drawn_mask(edited: Any, folder: Path) -> str | None:
    """The strokes of the brush as a mask file; None if there are none."""
    layers = (edited or {}).get("layers") or []
    strokes = [np.asarray(layer)[..., 3] > 0 for layer in layers if np.asarray(layer).ndim == 3]
    if not any(stroke.any() for stroke in strokes):
        return None
    path = folder / "mask.png"
    path.write_bytes(encode_png((np.logical_or.reduce(strokes) * 255).astype(np.uint8)[..., None]))
    return str(path)


def message_of(error: BaseException) -> str:
    """The sentence of the command line for an error; other errors are bugs and raised again."""
    text = sentence(error) if isinstance(error, Exception) else None
    if text is None:
        raise error
    return text


def left(started: float, done: int, total: int) -> str:
    """Progress in words, with the time left once a file is finished."""
    spent = time.monotonic() - started
    if not done:
        return f"restoring {total} image{'s' if total > 1 else ''}, {spent:.0f} s so far"
    return f"{done} of {total} restored, about {spent / done * (total - done):.0f} s left"


def page(service: Service) -> Any:
    """The page, a `gradio.Blocks`."""
    gr = importlib.import_module("gradio")

    def preview(files: list[str] | None) -> Any:
        if not files:
            return None
        try:
            service.check(Path(files[0]))
            picture = read_picture(read_file(Path(files[0])), where=Path(files[0]).name)
        except (InputError, OSError) as error:
            raise gr.Error(html.escape(message_of(error)), duration=None) from error
        image = shown(picture)
        if image.shape[:2] != picture.colours.shape[:2]:  # the mask needs the pixels of the picture
            return None
        return {"background": image, "layers": [], "composite": image}

    def restore(
        files: list[str] | None, model: str, edited: Any, mask: str | None, seed: float, request: Any
    ) -> Iterator[tuple[Any, Any, str]]:
        started, nothing = time.monotonic(), gr.skip()
        session = request.session_hash or str(id(request))
        try:
            if mask is None:
                mask = drawn_mask(edited, service.task_folder())
            folder, task = service.start(session, files or [], model or AUTOMATIC, mask, int(seed or 0))
        except (InputError, OSError, ValueError) as error:
            raise gr.Error(html.escape(message_of(error)), duration=None) from error
        done, total = 0, len(files or [])
        try:
            while task.thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    done, total = task.news.get(timeout=0.5)
                yield nothing, nothing, left(started, done, total)
        finally:
            if task.thread.is_alive():  # the browser has gone
                task.stop()
        yield finished(folder, task, time.monotonic() - started)

    def finished(folder: Path, task: Task, seconds: float) -> tuple[Any, Any, str]:
        if task.error is not None and not isinstance(task.error, Stopped):
            raise gr.Error(html.escape(message_of(task.error)), duration=None) from task.error
        outcome = task.outcome or RunSummary(stopped=True)
        if outcome.failures and not outcome.restored:
            raise gr.Error(html.escape("\n".join(outcome.failures)), duration=None)
        results = results_in(folder)
        if not results:
            return None, None, "stopped; nothing was restored"
        job = next((one for one in outcome.jobs if one.status == "restored" and one.target), None)
        pair = compared(Path(job.source), Path(job.target), folder) if job and job.target else None
        words = [f"{len(results)} restored in {seconds:.1f} s"]
        words += ["stopped before the end"] if task.error is not None or outcome.stopped else []
        words += [f"failed: {one}" for one in outcome.failures]
        return pair, str(packed(folder)), "\n\n".join(html.escape(word) for word in words)

    restore.__annotations__["request"] = gr.Request  # gradio passes the request by its type

    def stop(request: Any) -> None:
        service.stop(request.session_hash or "")

    stop.__annotations__["request"] = gr.Request

    with gr.Blocks(title="diffir_sr", analytics_enabled=False, delete_cache=(3600, 3600)) as made:
        gr.Markdown("# Restore images\nAll work is done on this machine; nothing is sent elsewhere.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                files = gr.File(file_count="multiple", label="Images", type="filepath", elem_id="files")
                model = gr.Dropdown(service.models(), value=AUTOMATIC, label="Model", elem_id="model")
                seed = gr.Number(0, precision=0, label="Seed")
                with gr.Accordion("Missing parts (inpainting)", open=False, elem_id="inpainting"):
                    editor = gr.ImageEditor(
                        type="numpy",
                        layers=False,
                        transforms=(),
                        sources=(),
                        format="png",
                        label="Brush over what is missing (one image)",
                        brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
                        elem_id="editor",
                    )
                    mask = gr.File(label="or a mask file: white is missing", type="filepath", elem_id="mask")
                with gr.Row():
                    start = gr.Button("Restore", variant="primary", elem_id="restore")
                    end = gr.Button("Stop", variant="stop", elem_id="stop")
            with gr.Column(scale=2, min_width=300):
                slider = gr.ImageSlider(
                    type="filepath", format="png", label="Before, after", max_height=700, elem_id="slider"
                )
                result = gr.File(
                    label="Result: the file that diffir restore writes", interactive=False, elem_id="result"
                )
                status = gr.Markdown("", elem_id="status")
        files.change(preview, files, editor, api_visibility="private", show_progress="hidden")
        start.click(
            restore,
            [files, model, editor, mask, seed],
            [slider, result, status],
            api_name="restore",
            concurrency_limit=1,
            show_progress="minimal",
        )
        end.click(stop, None, None, api_name="stop", concurrency_limit=None, queue=False)
    return made


def guard(hosts: Sequence[str]) -> Any:
    """A middleware that refuses requests of other pages and for other host names (DNS rebinding)."""

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] in ("http", "websocket"):
                headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
                host, origin = headers.get(b"host", ""), headers.get(b"origin")
                if re.sub(r":\d+$", "", host) not in hosts or (origin is not None and origin.split("://")[-1] != host):
                    body = b"requests of other pages and for other names of this machine are refused\n"
                    start = {
                        "type": "http.response.start",
                        "status": 403,
                        "headers": [(b"content-type", b"text/plain")],
                    }
                    await send(start)
                    await send({"type": "http.response.body", "body": body})
                    return
            await self.app(scope, receive, send)

    return Guard


def launch(service: Service, *, host: str, port: int, block: bool) -> tuple[Any, str]:
    """Serve the page; returns it and its address. With `block`, until it is interrupted."""
    gr = importlib.import_module("gradio")
    middleware = importlib.import_module("starlette.middleware").Middleware
    made = page(service)
    made.queue(max_size=64)
    _, address, _ = made.launch(
        server_name=host,
        server_port=port or None,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        max_file_size=service.limits.file_bytes,
        show_error=True,
        footer_links=["api"],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        app_kwargs={"middleware": [middleware(guard((host, "127.0.0.1", "localhost", "[::1]")))]},
    )
    if block:
        sys.stdout.write(f"{address}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        made.block_thread()
    return made, address


def run(args: argparse.Namespace) -> int:
    """`diffir serve`."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError(f"the page needs gradio: {INSTALL}")
    for name in ("max_file", "max_pixels", "max_files"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0, got {getattr(args, name):g}")
    limits = Limits(int(args.max_file * 2**20), int(args.max_pixels * 1e6), args.max_files)
    with tempfile.TemporaryDirectory(prefix="diffir_serve_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        service = Service(Path(folder), limits, device=args.device, weights=args.weights or ())
        for path in service.weights:
            service.restorer(path.name, masked=False)  # so that a wrong file is reported before anybody comes
        launch(service, host=args.host, port=args.port, block=True)
    return 0
