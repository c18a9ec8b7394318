"""The page of `diffir serve`, made with gradio, and its server.

Everything stays on this machine: the server listens on 127.0.0.1 unless asked otherwise, and the page loads nothing
from elsewhere. Uploaded and made files lie in a folder of this process, which is removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import importlib
import importlib.util
import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.failures import sentence
from diffir_sr.files.images import read_file, read_picture
from diffir_sr.files.picture import encode_png
from diffir_sr.inference.commands import FORMATS
from diffir_sr.inference.runner import RunSummary
from diffir_sr.serve.service import (
    AUTOMATIC,
    Limits,
    Service,
    Stopped,
    Task,
    Wish,
    compared,
    packed,
    results_in,
    sampled,
    shown,
)

INSTALL = "pip install 'diffir_sr[web]'"
AS_INPUT = "as the input"
_POLL = 0.25  # seconds
_KEPT = 4 * 3600  # seconds that files are kept which nobody deletes
_SPARE = 64 * 2**20  # bytes of the disk that uploads leave free
_CSS = """
.gradio-container {max-width: 1400px !important}
footer {opacity: .7}
"""


def drawn(edited: Any) -> np.ndarray | None:
    """The strokes of the brush, (H, W) bool; None if there are none."""
    layers = (edited or {}).get("layers") or []
    strokes = [np.asarray(layer)[..., 3] > 0 for layer in layers if np.asarray(layer).ndim == 3]
    return np.logical_or.reduce(strokes) if any(stroke.any() for stroke in strokes) else None


def message_of(error: BaseException) -> str:
    """The sentence of the command line for an error; other errors are bugs and raised again."""
    text = sentence(error) if isinstance(error, Exception) else None
    if text is None:
        raise error
    return text


def refused(error: BaseException) -> Exception:
    """The error as gradio shows it, which reads HTML."""
    return importlib.import_module("gradio").Error(html.escape(message_of(error)), duration=None, print_exception=False)


def finished(task: Task, wish: Wish) -> tuple[Any, Any, Any, str]:
    """What a finished or stopped task shows: comparison, labelled pictures, file, words. Raises the task's error."""
    if task.error is not None and task.outcome is None and not isinstance(task.error, Stopped):
        raise refused(task.error)
    outcome = task.outcome or RunSummary(stopped=True)
    if outcome.failures and not outcome.restored:
        raise refused(InputError("\n".join(outcome.failures)))
    results = results_in(task.folder)
    if not results:
        return None, _written(task.shots, task.folder), None, "stopped; nothing was restored"
    pair, shots = None, list(task.shots)
    job = next((one for one in outcome.jobs if one.status == "restored" and one.target), None)
    if job is not None and job.target is not None:
        target = Path(job.target)
        several = wish.samples > 1 and not wish.average
        mean = target.with_name(f"{target.stem}.mean{target.suffix}")
        pair = compared(Path(job.source), mean if several else target, task.folder)
        shots += sampled(target, wish.samples) if several else []
    restored = outcome.restored or len(results)
    words = [f"{restored} restored in {time.monotonic() - (task.began or time.monotonic()):.1f} s"]
    words += ["stopped before the end"] if outcome.stopped else []
    words += [f"failed: {one}" for one in outcome.failures]
    text = "\n\n".join(html.escape(word) for word in words)
    return pair, _written(shots, task.folder), str(packed(task.folder)), text


def _written(shots: Sequence[tuple[str, np.ndarray]], folder: Path) -> list[tuple[str, str]]:
    """Labelled pictures as files for the gallery."""
    made = []
    for number, (label, image) in enumerate(shots):
        path = folder / f"shot{number}.png"
        path.write_bytes(encode_png(np.ascontiguousarray(image)))
        made.append((str(path), label))
    return made


def _fetch_nothing(component: Any) -> None:
    """Let a component take uploaded files alone; gradio would also download from addresses that a client names."""
    move = component.async_move_resource_to_block_cache

    async def without_addresses(given: Any) -> Any:
        if re.match(r"[a-z]+://", str(given or ""), re.I):
            raise refused(InputError(f"{given}: addresses are not fetched; upload the file"))
        return await move(given)

    component.async_move_resource_to_block_cache = without_addresses


def page(service: Service) -> Any:
    """The page, a `gradio.Blocks`."""
    gr = importlib.import_module("gradio")

    def preview(files: list[str] | None) -> Any:
        if not files:
            return None
        try:
            service.check(Path(files[0]))
            image = shown(read_picture(read_file(Path(files[0])), where=Path(files[0]).name))
        except (InputError, OSError) as error:
            raise refused(error) from error
        return {"background": image, "layers": [], "composite": image}

    def dial(model: str) -> Any:
        other = service.sharper(model)
        about = f"1: {other.name}" if other else "this model has no sharper one"
        return gr.update(interactive=other is not None, info=about, **({} if other else {"value": 0}))

    async def restore(
        images: list[str] | None,
        model: str = AUTOMATIC,
        edited: Any = None,
        mask: str | None = None,
        sharpness: float = 0,
        samples: float = 1,
        average: bool = False,
        form: str = AS_INPUT,
        quality: float = 95,
        prompt: str = "",
        seed: float = 0,
        request: Any = None,
    ) -> AsyncIterator[tuple[Any, ...]]:
        session, nothing = request.session_hash or str(id(request)), gr.skip()
        wish = Wish(
            model=model or AUTOMATIC,
            mask=None if mask is None else Path(mask),
            strokes=drawn(edited),
            sharpness=float(sharpness or 0),
            samples=int(samples or 1),
            average=bool(average),
            form=None if form in (None, AS_INPUT) else form,
            quality=int(95 if quality is None else quality),
            seed=int(seed or 0),
            prompt=prompt or None,
        )
        try:
            task = await asyncio.to_thread(service.begin, session, images or [], wish)
        except (InputError, OSError) as error:
            raise refused(error) from error
        try:
            seen = 0
            while not task.over:
                new = task.shots[seen:]
                seen += len(new)
                gallery = await asyncio.to_thread(_written, task.shots[:seen], task.folder) if new else nothing
                yield nothing, gallery, nothing, task.status(), gr.update(visible=True) if new else nothing
                await asyncio.sleep(_POLL)
            try:
                pair, shots, file, words = await asyncio.to_thread(finished, task, wish)
            except OSError as error:
                raise refused(error) from error
            yield pair, shots, file, words, gr.update(visible=bool(shots))
        finally:  # also if the browser has gone
            service.end(session, task)

    restore.__annotations__["request"] = gr.Request  # gradio passes the request by its type

    def stop(request: Any) -> None:
        service.stop(request.session_hash or "")

    stop.__annotations__["request"] = gr.Request

    with gr.Blocks(title="diffir_sr", analytics_enabled=False, delete_cache=(600, _KEPT)) as made:
        gr.Markdown("# Restore images\nAll work is done on this machine; nothing is sent elsewhere.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                images = gr.File(file_count="multiple", label="Images", type="filepath", elem_id="files", height=150)
                model = gr.Dropdown(service.models(), value=AUTOMATIC, label="Model", elem_id="model")
                sharpness = gr.Slider(0, 1, 0, step=0.05, label="Fidelity to sharpness", elem_id="sharpness")
                prompt = gr.Textbox(
                    "",
                    label="What to undo, in your own words (AutoDIR; empty: it finds out)",
                    visible=service.has_rounds,
                    elem_id="prompt",
                )
                with gr.Row():
                    start = gr.Button("Restore", variant="primary", elem_id="restore", min_width=100)
                    end = gr.Button("Stop", variant="stop", elem_id="stop", min_width=100)
                with gr.Accordion("Missing parts (inpainting)", open=False, elem_id="inpainting"):
                    editor = gr.ImageEditor(
                        type="numpy",
                        layers=False,
                        transforms=(),
                        sources=(),
                        format="png",
                        label="Brush",
                        brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
                        elem_id="editor",
                    )
                    mask = gr.File(label="A mask file: white is missing", type="filepath", elem_id="mask", height=150)
                with gr.Accordion("Samples, format", open=False, elem_id="more"):
                    samples = gr.Slider(
                        1,
                        service.limits.samples,
                        1,
                        step=1,
                        label="Samples",
                        info="results from so many initial noises, their mean, and where they differ",
                        elem_id="samples",
                    )
                    average = gr.Checkbox(False, label="Only the mean of the samples", elem_id="average")
                    form = gr.Dropdown([AS_INPUT, *FORMATS], value=AS_INPUT, label="Format", elem_id="form")
                    quality = gr.Slider(1, 100, 95, step=1, label="Quality of JPEG and WebP", elem_id="quality")
                    seed = gr.Number(0, precision=0, label="Seed", elem_id="seed")
            with gr.Column(scale=2, min_width=300):
                slider = gr.ImageSlider(
                    type="filepath", format="png", label="Before, after", max_height=700, elem_id="slider"
                )
                status = gr.Markdown("", label="Status", elem_id="status")
                result = gr.File(
                    label="Result (the file that diffir restore writes)", interactive=False, elem_id="result"
                )
                with gr.Accordion("Samples and rounds", visible=False, elem_id="way") as way:
                    gallery = gr.Gallery(
                        label="Samples and rounds",
                        show_label=False,
                        columns=3,
                        format="png",
                        object_fit="contain",
                        elem_id="gallery",
                    )
        for taker in (images, mask, editor):
            _fetch_nothing(taker)
        images.change(preview, images, editor, api_visibility="private", show_progress="hidden")
        model.change(dial, model, sharpness, api_visibility="private", show_progress="hidden")
        made.load(dial, model, sharpness, api_visibility="private", show_progress="hidden")
        start.click(
            restore,
            [images, model, editor, mask, sharpness, samples, average, form, quality, prompt, seed],
            [slider, gallery, result, status, way],
            api_name="restore",
            concurrency_limit=None,  # the service has a line of its own
            show_progress="hidden",
        )
        end.click(stop, None, None, api_name="stop", concurrency_limit=None, queue=False)
    return made


class Guard:
    """Middleware that refuses requests of other pages and for other host names (DNS rebinding), and uploads that would
    fill the disk.
    """

    def __init__(self, app: Any, *, names: Sequence[str], folder: Path) -> None:
        """`names` of this machine are accepted beside addresses (DNS rebinding needs a name); `folder` of uploads."""
        self._app, self._names, self._folder = app, names, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, text = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": f"{text}\n".encode()})

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self._is_ours(host) or (origin is not None and origin.split("://")[-1] != host):
            return 403, "requests of other pages and for other names of this machine are refused (diffir serve --name)"
        if scope.get("path", "").endswith("/upload"):
            with contextlib.suppress(ValueError):
                size, free = int(headers.get(b"content-length", "0")), shutil.disk_usage(self._folder).free
                if size + _SPARE > free:
                    return 507, (
                        f"the upload of {size / 2**20:.0f} MiB would fill the disk, which has {free / 2**20:.0f} MiB "
                        "free; free disk space and try again"
                    )
        return None

    def _is_ours(self, host: str) -> bool:
        name = re.sub(r":\d+$", "", host)
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
        return name in ("localhost", *self._names)


def launch(service: Service, *, host: str, port: int, block: bool, names: Sequence[str] = ()) -> tuple[Any, str]:
    """Serve the page; returns it and its address. With `block`, until it is interrupted.

    `names` are those of this machine under which other machines reach it.
    """
    gr = importlib.import_module("gradio")
    middleware = importlib.import_module("starlette.middleware").Middleware
    made = page(service)
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
        css=_CSS,
        app_kwargs={
            "middleware": [
                middleware(Guard, names=(host, socket.gethostname(), *names), folder=Path(made.GRADIO_CACHE))
            ]
        },
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
    for name in ("max_file", "max_pixels", "max_files", "max_waiting"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0, got {getattr(args, name):g}")
    limits = Limits(int(args.max_file * 2**20), int(args.max_pixels * 1e6), args.max_files, args.max_waiting)
    with tempfile.TemporaryDirectory(prefix="diffir_serve_") as folder:
        tasks, uploads = Path(folder, "tasks"), Path(folder, "files")  # gradio serves files of the second one alone
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        tasks.mkdir()
        uploads.mkdir()
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then, too
        service = Service(tasks, limits, device=args.device, weights=args.weights or ())
        launch(service, host=args.host, port=args.port, block=True, names=args.name or ())
    return 0
