"""The page in a real browser, and its HTTP API: the files of `diffir restore`, limits, other origins, stopping."""

import errno
import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import time
import tracemalloc
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import NETWORK

pytest.importorskip("gradio", reason="needs the extra web")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from diffir_sr.archs.diffir_arch import DiffIRS2  # noqa: E402
from diffir_sr.cli import main  # noqa: E402
from diffir_sr.errors import InputError  # noqa: E402
from diffir_sr.files.images import inspect, read_picture  # noqa: E402
from diffir_sr.files.picture import Picture, encode, encode_png  # noqa: E402
from diffir_sr.serve.page import finished, launch  # noqa: E402
from diffir_sr.serve.service import Limits, Service, Stopped, Wish  # noqa: E402
from diffir_sr.weights_files import write_card_file  # noqa: E402

WAIT = 90_000  # ms
LIMITS = Limits(2**23, 4_000_000, 5)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    os.environ |= {"GRADIO_TEMP_DIR": str(folder / "files"), "GRADIO_ANALYTICS_ENABLED": "False"}
    for name in ("files", "tasks"):
        (folder / name).mkdir()
    torch.manual_seed(0)
    for task in ("sr", "inpaint"):
        network = DiffIRS2(task=task, scale=2 if task == "sr" else 1, **NETWORK)
        write_card_file(network.state_dict(), {}, folder / f"{task}.safetensors")
    weights = [folder / "sr.safetensors", folder / "inpaint.safetensors"]
    service = Service(folder / "tasks", LIMITS, weights=weights)
    page, address = launch(service, host="127.0.0.1", port=0, block=False)
    yield service, address, folder
    page.close()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def photo(height, width, *, seed=0, bits=16, alpha=True):
    source = np.random.default_rng(seed)
    kind = np.uint16 if bits == 16 else np.uint8
    colours = source.integers(0, 2**bits, (height, width, 3)).astype(kind)
    return encode(Picture(colours, alpha=colours[..., 0].copy() if alpha else None), "png")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="drives a browser")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs the browser chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    """A page, with the addresses elsewhere that it asks for."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    outside = []
    opened.on("request", lambda one: one.url.startswith((server[1], "data:", "blob:")) or outside.append(one.url))
    opened.goto(server[1])
    opened.wait_for_selector("#restore", timeout=WAIT)
    yield opened
    opened.close()
    assert outside == []


def choose(page, name):
    page.click("#model input")
    page.get_by_role("option", name=name).click()


def upload(page, *paths):
    page.set_input_files("#files input[type=file]", [str(path) for path in paths])
    page.wait_for_selector(f"#files >> text={paths[0].stem}", timeout=WAIT)


def test_the_download_has_the_bytes_of_the_command(page, server, tmp_path):
    (tmp_path / "photo.png").write_bytes(photo(24, 40))
    upload(page, tmp_path / "photo.png")
    choose(page, "sr.safetensors")
    page.click("#restore")
    page.wait_for_selector("#slider img", timeout=WAIT)
    with page.expect_download() as got:
        page.click("#result a")
    got.value.save_as(tmp_path / "page.png")
    weights = str(server[2] / "sr.safetensors")
    assert main(["restore", "photo.png", "-o", "command.png", "-w", weights]) == 0
    assert (tmp_path / "page.png").read_bytes() == (tmp_path / "command.png").read_bytes()
    assert got.value.suggested_filename == "photo.png"
    slider = page.locator("#slider")
    slider.scroll_into_view_if_needed()
    box, shown = slider.bounding_box(), slider.screenshot()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=4)
    page.mouse.up()
    page.mouse.move(0, 0)
    assert slider.screenshot() != shown
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing is cut off on a telephone


def test_what_is_brushed_over_is_filled_and_nothing_else(page, tmp_path):
    (tmp_path / "hole.png").write_bytes(photo(64, 64, alpha=False))
    page.click("#inpainting button >> nth=0")
    upload(page, tmp_path / "hole.png")
    choose(page, "inpaint.safetensors")
    canvas = page.locator("#editor canvas").first
    canvas.wait_for(timeout=WAIT)
    page.wait_for_timeout(1500)  # the image is laid on the canvas
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 10, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    undo, redo, zoom = (page.locator(f"#editor button[aria-label='{name}']") for name in ("Undo", "Redo", "Zoom in"))
    painted = canvas.screenshot()
    undo.click()
    page.wait_for_timeout(300)
    assert canvas.screenshot() != painted
    redo.click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    seen = page.inner_text("#editor")
    assert "%" in seen
    zoom.click()
    page.wait_for_timeout(300)
    assert page.inner_text("#editor") != seen  # which shows the zoom
    page.click("#restore")
    page.wait_for_selector("#result a", timeout=WAIT)
    with page.expect_download() as got:
        page.click("#result a")
    got.value.save_as(tmp_path / "filled.png")
    given, made = (
        read_picture((tmp_path / name).read_bytes(), where=name).colours for name in ("hole.png", "filled.png")
    )
    share = (given != made).any(axis=2).mean()
    assert 0 < share < 0.9


def test_an_error_is_the_sentence_of_the_command(page, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    upload(page, tmp_path / "text.png")
    page.click("#restore")
    page.wait_for_selector("[data-testid=toast-body]", timeout=WAIT)
    told = page.inner_text("[data-testid=toast-body]")
    assert main(["restore", "text.png", "-o", "out.png"]) == 1
    said = next(line for line in capsys.readouterr().err.splitlines() if "text.png" in line and "failed" in line)
    assert said.partition("text.png: ")[2] in told


def test_stop_stops(page, tmp_path):
    (tmp_path / "large.png").write_bytes(photo(700, 900, bits=8, alpha=False))
    upload(page, tmp_path / "large.png")
    choose(page, "sr.safetensors")
    page.click("#restore")
    page.wait_for_selector("#status >> text=restoring 1 image", timeout=WAIT)
    page.click("#stop")
    page.wait_for_selector("#status >> text=nothing was restored", timeout=WAIT)


def test_the_api_restores_batches_to_a_zip(server, tmp_path):
    client = Client(server[1], verbose=False)
    names = [f"p{number}.png" for number in range(3)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(photo(16, 24, seed=number))
    files = [handle_file(tmp_path / name) for name in names]
    _, _, result, status = client.predict(images=files, model="sr.safetensors", seed=3, api_name="/restore")
    weights = str(server[2] / "sr.safetensors")
    assert main(["restore", *names, "-o", "out", "-w", weights, "--seed", "3"]) == 0
    with zipfile.ZipFile(result) as archive:
        assert sorted(archive.namelist()) == names
        assert all(archive.read(name) == (tmp_path / "out" / name).read_bytes() for name in names)
    assert "3 restored" in status


def test_a_mask_file_as_on_the_command_line(server, tmp_path):
    client = Client(server[1], verbose=False)
    (tmp_path / "p.png").write_bytes(photo(24, 24))
    mask = np.zeros((24, 24, 1), np.uint8)
    mask[4:9, 6:20] = 255
    (tmp_path / "m.png").write_bytes(encode_png(mask))
    given = dict(images=[handle_file(tmp_path / "p.png")], mask=handle_file(tmp_path / "m.png"))
    _, _, result, _ = client.predict(**given, model="inpaint.safetensors", api_name="/restore")
    weights = str(server[2] / "inpaint.safetensors")
    assert main(["restore", "p.png", "-o", "o.png", "-w", weights, "--mask", "m.png"]) == 0
    with open(result, "rb") as file:
        assert file.read() == (tmp_path / "o.png").read_bytes()


@pytest.mark.parametrize("headers", [{"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example"}])
def test_other_pages_and_names_are_refused(server, headers):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(server[1], headers=headers))


def ended(task, seconds=60):
    """A task that has come to its end."""
    task.thread.join(seconds)
    assert task.over
    return task


def made_by_command(folder, *words):
    """Files that `diffir restore` writes to `folder`."""
    assert main(["restore", *words, "-o", str(folder)]) == 0
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "restored.jsonl"}


def test_dial_samples_and_format_are_those_of_the_command(server, tmp_path):
    client = Client(server[1], verbose=False)
    (tmp_path / "p.png").write_bytes(photo(12, 16))
    ask = partial(client.predict, images=[handle_file(tmp_path / "p.png")], api_name="/restore")
    words = ["p.png", "--model", "sr_x4"]

    _, shots, result, _ = ask(model="sr_x4", sharpness=0.35)
    wanted = made_by_command(tmp_path / "dial", *words, "--blend", "sr_x4_sharp", "0.35")
    assert {Path(result).name: Path(result).read_bytes()} == wanted
    assert wanted != made_by_command(tmp_path / "plain", *words)
    assert shots == []

    pair, shots, result, _ = ask(model="sr_x4", samples=3, form="tiff")
    wanted = made_by_command(tmp_path / "samples", *words, "--samples", "3", "--format", "tiff")
    with zipfile.ZipFile(result) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == wanted
    assert [shot["caption"] for shot in shots] == ["sample1", "sample2", "sample3", "mean", "sensitivity"]
    *_, mean, overlay = (read_picture(Path(shot["image"]).read_bytes(), where="shot").colours for shot in shots)
    assert overlay.shape == mean.shape == (48, 64, 3)
    assert np.abs(np.diff(overlay.astype(int), axis=2)).mean() > 5  # coloured
    assert Path(pair[1]).read_bytes() == Path(shots[3]["image"]).read_bytes()  # the mean is compared

    _, _, result, _ = ask(model="sr_x4", samples=2, average=True)
    wanted = made_by_command(tmp_path / "mean", *words, "--samples", "2", "--average")
    assert Path(result).read_bytes() == wanted["p.png"]

    for arguments, words in (
        (dict(model="sr.safetensors", sharpness=0.5), "no sharper model of sr.safetensors is known"),
        (dict(model="sr_x4", prompt="less rain"), "prompt: only AutoDIR takes one"),
        (dict(model="sr_x4", samples=33), "Value 33 is greater than maximum value 32"),
    ):
        with pytest.raises(AppError, match=words):
            ask(**arguments)


def test_rounds_are_shown_as_they_come(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra autodir")
    pytest.importorskip("diffusers", reason="needs the extra autodir")
    from test_autodir import carded  # imports what the extra brings

    (tmp_path / "p.png").write_bytes(photo(26, 37, bits=8, alpha=False))
    path = carded(tmp_path)
    service = Service(tmp_path / "work", LIMITS, weights=[path])
    assert service.has_rounds
    made = {}
    for prompt in ("remove the rain", None, "remove the haze"):
        wish = Wish(model=path.name, prompt=prompt)
        task = ended(service.begin("one", [str(tmp_path / "p.png")], wish))
        pair, shots, result, _ = finished(task, wish)
        words = [] if prompt is None else ["--prompt", prompt]
        wanted = made_by_command(tmp_path / f"wanted {prompt}", "p.png", "-w", str(path), *words)
        made[prompt] = Path(result).read_bytes()
        assert made[prompt] == wanted["p.png"]
        labels = [label for _, label in shots]
        assert labels
        assert all(Path(file).is_file() for file, _ in shots)
        assert prompt is None or labels[0].startswith(f"1: {prompt}")
        service.end("one", task)
    assert made["remove the rain"] != made["remove the haze"]


def test_strokes_are_added_to_the_mask_in_the_size_of_the_image(tmp_path):
    (tmp_path / "p.png").write_bytes(photo(40, 60, bits=8, alpha=False))
    mask = np.zeros((40, 60, 1), np.uint8)
    mask[:8, :8] = 255
    (tmp_path / "m.png").write_bytes(encode_png(mask))
    strokes = np.zeros((20, 30), bool)  # the page showed the image at half its size
    strokes[10:14, 5:25] = True
    service = Service(tmp_path / "work", LIMITS)
    wanted = mask[..., 0] > 0
    wanted[20:28, 10:50] = True
    for given, truth in ((Wish(strokes=strokes, mask=tmp_path / "m.png"), wanted), (Wish(strokes=strokes), wanted)):
        if given.mask is None:
            truth = truth & (mask[..., 0] == 0)
        task = ended(service.begin("one", [str(tmp_path / "p.png")], given))
        drawn_mask = read_picture((task.folder / "drawn.png").read_bytes(), where="mask").colours[..., 0] > 0
        assert (drawn_mask == truth).all()
        assert task.error is None


def test_the_line_is_served_in_order_bounded_and_can_be_left(tmp_path):
    """One restoration at a time; who waits can stop at once; who is refused hears why; a page that closes stops."""
    service = Service(tmp_path / "work", replace(LIMITS, waiting=4))
    (tmp_path / "p.png").write_bytes(photo(8, 8))
    (tmp_path / "large.png").write_bytes(photo(900, 900, bits=8, alpha=False))
    wish = Wish(model="sr_x4")
    first = service.begin("a", [str(tmp_path / "large.png")], wish)
    others = [service.begin(session, [str(tmp_path / "p.png")], wish) for session in "bcd"]
    with pytest.raises(InputError, match="4 restorations are waiting already; try again later"):
        service.begin("e", [str(tmp_path / "p.png")], wish)
    assert [task.status() for task in others] == [
        "waiting for 1 restoration of others", "waiting for 2 restorations of others",
        "waiting for 3 restorations of others",
    ]  # fmt: skip
    service.stop("c")
    ended(others[1], seconds=5)
    assert not first.over  # nobody else is disturbed
    assert others[2].status() == "waiting for 2 restorations of others"
    service.end("a", first)  # the browser has gone
    ended(first, seconds=20)
    assert isinstance(first.error, Stopped)
    for task in (others[0], others[2]):
        assert ended(task).outcome.restored == 1
    assert not first.folder.exists()
    assert len(service.line) == 0


def test_who_goes_away_stops(server, tmp_path):
    service, address, _ = server
    (tmp_path / "large.png").write_bytes(photo(700, 900, bits=8, alpha=False))
    client = Client(address, verbose=False)
    job = client.submit(images=[handle_file(tmp_path / "large.png")], model="sr_x4", api_name="/restore")
    until = time.monotonic() + 60
    while not any(task.began for tasks in service._tasks.values() for task in tasks):
        assert time.monotonic() < until
        time.sleep(0.05)
    job.cancel()
    while len(service.line):
        assert time.monotonic() < until
        time.sleep(0.05)
    while list((server[2] / "tasks").iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(height, width, data, *more):
    """A PNG file with any header, chunks before the pixels, and compressed pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", data), chunk(b"IEND", b"")])


BOMB = zlib.compress(bytes(2**27), 9)  # 128 MiB
HOSTILE = {
    "pixels.png": (png_of(60_000, 60_000, b""), "60000x60000 pixels, at most 4 million are accepted here"),
    "page.png": (b"<html><script>alert(1)</script></html>", "contains HTML, expected PNG"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected PNG"),
    "archive.png": (b"PK\x03\x04" + bytes(60), "expected PNG"),
    "program.png": (b"\x7fELF" + bytes(60), "expected PNG"),
    "empty.png": (b"", "the file is empty"),
    "cut.png": (png_of(8, 8, zlib.compress(bytes(40))), "damaged|truncated|unreadable|incomplete|pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_one_sentence(server, tmp_path, name):
    content, words = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=words) as caught:
        Client(server[1], verbose=False).predict(images=[handle_file(tmp_path / name)], api_name="/restore")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert list((server[2] / "tasks").iterdir()) == []


def test_metadata_that_unpacks_to_much_takes_little_memory(tmp_path):
    pixels = zlib.compress((b"\0" + bytes(24)) * 8)
    for kind, start in ((b"zTXt", b"Comment\0\0"), (b"iCCP", b"p\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0")):
        (tmp_path / "p.png").write_bytes(png_of(8, 8, pixels, chunk(kind, start + BOMB)))
        service = Service(tmp_path / "work", LIMITS)
        tracemalloc.start()
        task = ended(service.begin("one", [str(tmp_path / "p.png")], Wish(model="sr_x4")))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert task.outcome.restored == 1
        assert most < 2**26
        service.end("one", task)


def posted(address, path, body, headers):
    return urllib.request.urlopen(urllib.request.Request(f"{address}gradio_api{path}", body, headers), timeout=60)


def test_names_and_paths_from_outside_touch_nothing(server):
    """A client that is no browser names files as it likes, on upload and afterwards."""
    folder = server[2]
    before = set(folder.iterdir())
    for name in ("../../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "evil\u202egnp.exe", "x" * 300 + ".png"):
        part = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = part + photo(8, 8) + b"\r\n--b--\r\n"
        answer = posted(server[1], "/upload", body, {"Content-Type": "multipart/form-data; boundary=b"})
        (path,) = json.load(answer)
        assert Path(path).resolve().is_relative_to((folder / "files").resolve())
        assert called(server[1], path)[0] == "complete"
    assert set(folder.iterdir()) == before
    secret = folder / "sr.safetensors"
    for path in (str(secret), f"{folder}/files/../sr.safetensors", "/etc/hostname", "http://127.0.0.1:1/p.png"):
        event, told = called(server[1], path)
        assert event == "error", told
    with pytest.raises(urllib.error.HTTPError, match="403|404"):
        urllib.request.urlopen(f"{server[1]}gradio_api/file={secret}")


def called(address, path):
    """How the call of /restore ended: its last event, and what came with it."""
    data = {"images": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "model": "sr.safetensors"}
    started = posted(address, "/call/v2/restore", json.dumps(data).encode(), {"Content-Type": "application/json"})
    number = json.load(started)["event_id"]
    lines = (
        urllib.request.urlopen(f"{address}gradio_api/call/v2/restore/{number}", timeout=60).read().decode().split("\n")
    )
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    return events[-1], [line for line in lines if line.startswith("data: ")][-1]


def test_a_full_disk_is_one_sentence(server, tmp_path, monkeypatch):
    (tmp_path / "p.png").write_bytes(photo(16, 16))
    client = Client(server[1], verbose=False)
    ask = partial(client.predict, images=[handle_file(tmp_path / "p.png")], model="sr.safetensors", api_name="/restore")

    def full(data, target, *rest):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:  # while results are written
        patch.setattr("diffir_sr.inference.files.write_atomically", full)
        with pytest.raises(AppError, match="No space left on device; 0 restored so far; free disk space"):
            ask()
    with monkeypatch.context() as patch:  # while an upload arrives
        usage = shutil.disk_usage("/")._replace(free=2**20)
        patch.setattr("diffir_sr.serve.page.shutil.disk_usage", lambda path: usage)
        body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="p.png"\r\n\r\nx\r\n--b--\r\n'
        with pytest.raises(urllib.error.HTTPError) as caught:
            posted(server[1], "/upload", body, {"Content-Type": "multipart/form-data; boundary=b"})
        assert caught.value.code == 507
        assert b"would fill the disk, which has 1 MiB free" in caught.value.read()
    assert ask()[2].endswith("p.png")  # and afterwards it works
    assert list((server[2] / "tasks").iterdir()) == []


def test_the_documented_calls_work_as_written(server, tmp_path):
    """docs/serve.md: its Python is executed as it is, and its shell, with the address of this server."""
    text = (Path(__file__).resolve().parents[1] / "docs/serve.md").read_text()
    (python,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    (shell,) = re.findall(r"^```\n(file=.*?)^```", text, flags=re.M | re.S)
    Path("photo.jpg").write_bytes(encode(Picture(np.full((24, 16, 3), 99, np.uint8)), "jpeg"))
    address = server[1].rstrip("/")
    names = {}
    exec(python.replace("http://127.0.0.1:7860", address), names)
    wanted = made_by_command(tmp_path / "out", "photo.jpg", "--model", "sr_x4", "--blend", "sr_x4_sharp", "0.3")
    assert Path(names["result"]).read_bytes() == wanted["photo.jpg"]
    if shutil.which("curl") is None:
        return
    said = subprocess.run(
        ["bash", "-c", shell.replace("http://127.0.0.1:7860", address)], capture_output=True, text=True, check=True
    ).stdout
    assert "event: complete" in said
    *_, url = re.findall(r'"url": "([^"]+/photo\.jpg)"', said)
    made = urllib.request.urlopen(url).read()
    assert made == made_by_command(tmp_path / "plain", "photo.jpg", "--model", "sr_x4")["photo.jpg"]


def test_many_clients_get_their_own_results(monkeypatch, capsys):
    """benchmarks/serve_load.py, small: a server process, eight clients, more requests than may wait, Ctrl-C."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())  # which it changes
        code = importlib.import_module("serve_load").main(["--pictures", "16"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "| 16 of 16 |" in said
    assert re.search(r"\d refused", said)


def test_limits_and_names_from_outside(tmp_path):
    service = Service(tmp_path / "work", Limits(file_bytes=3000, pixels=400, files=2))
    small, wide, heavy = tmp_path / "small.png", tmp_path / "wide.png", tmp_path / "heavy.png"
    small.write_bytes(photo(8, 8))
    wide.write_bytes(encode_png(np.zeros((30, 30, 3), np.uint8)))
    heavy.write_bytes(bytes(4000))
    for files, wish, words in (
        ([], Wish(), "no image"),
        ([small] * 3, Wish(), "3 images, at most 2"),
        ([wide], Wish(), "30x30 pixels, at most"),
        ([heavy], Wish(), "MiB, at most"),
        ([small], Wish(model="../../etc/passwd"), "choose one of"),
        ([small], Wish(sharpness=2), "sharpness: expected 0"),
        ([small], Wish(samples=1000), "samples: expected 1 to 32"),
        ([small], Wish(average=True), "average: needs 2 samples"),
        ([small], Wish(quality=0), "quality: expected 1 to 100"),
        ([small], Wish(mask=wide), "wide|mask.png: 30x30 pixels, at most"),
    ):
        with pytest.raises(InputError, match=words):
            service.begin("one", [str(file) for file in files], wish)
    assert list((tmp_path / "work").iterdir()) == []  # what is refused leaves nothing
    task = ended(service.begin("one", [str(small), str(small)], Wish(model="sr_x4")))
    assert task.error is None
    assert sorted(path.name for path in (task.folder / "out").glob("*.png")) == ["2-small.png", "small.png"]
    service.end("one", task)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_mask_and_the_pixels_choose_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("diffir_sr.serve.service._LARGE", 300)
    sizes = {"small.png": (16, 12), "large.png": (24, 16)}
    for name, (height, width) in sizes.items():
        (tmp_path / name).write_bytes(photo(height, width))
    service = Service(tmp_path / "work", Limits(file_bytes=10**6, pixels=10**6, files=2))

    def made(wish, *names):
        task = ended(service.begin("one", [str(tmp_path / name) for name in names], wish))
        assert task.error is None, task.error
        found = {path.name: inspect(path.read_bytes(), where=path.name) for path in (task.folder / "out").glob("*.png")}
        return {name: (one.height, one.width) for name, one in found.items()}

    assert made(Wish(), "small.png") == {"small.png": (64, 48)}
    assert made(Wish(), "large.png") == {"large.png": (48, 32)}
    assert made(Wish(), *sizes) == {"small.png": (32, 24), "large.png": (48, 32)}  # one model for all of a task
    assert made(Wish(sharpness=0.5), "large.png") == {"large.png": (96, 64)}  # the dial is that of x4
    assert made(Wish(mask=tmp_path / "large.png"), "large.png") == {"large.png": (24, 16)}
