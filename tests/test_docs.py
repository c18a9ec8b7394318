"""The documentation: the site builds without a warning, and what the tutorials tell to do is done, in small."""

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffir_sr.cli import main

REPO = Path(__file__).resolve().parents[1]
TUTORIALS = re.split(r"^## ", (REPO / "docs/tutorials.md").read_text(), flags=re.M)[1:]
TASKS = [part for part in TUTORIALS if "diffir recipe" in part]
SMALL = {"train": {"total_iter": 2, "encoder_iter": 0}, "val": {"val_freq": 2}, "logger": {"print_freq": 1}}
QUIET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPO)}


class Links(HTMLParser):
    """Local targets of links, images, styles and scripts of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        target = named.get("href") if tag in ("a", "link") else named.get("src")
        if target and not re.match(r"[a-z]+:|#", target):
            self.found.append(target.split("#")[0])


def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", REPO / "docs", tmp_path / "site"],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert {page.stem for page in pages} >= {path.stem for path in (REPO / "docs").glob("*.md")}
    for page in pages:
        links = Links()
        links.feed(page.read_text())
        assert links.found
        for target in links.found:
            assert not target or (page.parent / target.split("?")[0]).exists(), f"{page.name}: {target}"
    start = (tmp_path / "site/index.html").read_text()
    assert "sr_x4" in start
    assert "https://fonts" not in start  # read without a network, too


def blocks(text):
    """(language, content) of each code block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)


@pytest.mark.parametrize("tutorial", TASKS, ids=lambda text: text.split("\n")[0])
def test_every_step_of_a_tutorial_works(tutorial, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = pytest.importorskip("skimage.data", reason="needs the extra quickstart")
    photographs = {"photos": data.astronaut(), "heldout": data.chelsea()}
    for folder, image in photographs.items():
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ascontiguousarray(image[:280, 40:320])).save(tmp_path / folder / "one.png")
    run = 0
    for language, content in blocks(tutorial):
        if language == "yaml":
            name = re.match(r"# (\w+\.yml)\n", content)[1]
            values = yaml.safe_load(content)
            (tmp_path / name).write_text(yaml.safe_dump(values if "stages" in values else merged(values, SMALL)))
            continue
        for line in content.replace("\\\n", " ").splitlines():
            code = main(shlex.split(line)[1:])
            printed = capfd.readouterr()
            assert code == 0, f"{line}\n{printed.out[-2000:]}{printed.err[-2000:]}"
            run += 1
    assert run >= 7
    assert list((tmp_path / "restored").glob("*.png"))
    assert re.search(r"psnr.*\d\d\.\d", printed.out, flags=re.S | re.I)  # the last command measures


def merged(below, above):
    both = {key: merged(below[key], value) for key, value in above.items() if isinstance(below.get(key), dict)}
    return {**below, **above, **both}
