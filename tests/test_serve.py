"""The page in a real browser, and its HTTP API: the files of `diffir restore`, limits, other origins, stopping."""

import os
import shutil
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from toy import NETWORK

pytest.importorskip("gradio", reason="needs the extra web")
from gradio_client import Client, handle_file  # noqa: E402

from diffir_sr.archs.diffir_arch import DiffIRS2  # noqa: E402
from diffir_sr.cli import main  # noqa: E402
from diffir_sr.errors import InputError  # noqa: E402
from diffir_sr.files.images import read_picture  # noqa: E402
from diffir_sr.files.picture import Picture, encode, encode_png  # noqa: E402
from diffir_sr.serve.page import launch  # noqa: E402
from diffir_sr.serve.service import Limits, Service, Wish  # noqa: E402
from diffir_sr.weights_files import write_card_file  # noqa: E402

WAIT = 90_000  # ms


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
    service = Service(folder / "tasks", Limits(2**23, 4_000_000, 5), weights=weights)
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
