"""`diffir prepare multiscale`, `gopro`, `pairs`; manifests; a job that is killed and finished."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffir_sr.cli import main
from diffir_sr.data.pairs import DeblurPairedDataset
from diffir_sr.data.sources import open_source, read_manifest
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.multiscale import sizes_of

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encode_png(np.ascontiguousarray(image, np.uint8)))


def picture(path):
    return decode(Path(path).read_bytes(), where=str(path))


def run(*arguments):
    return main(["prepare", *map(str, arguments), "--jobs", "1"])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def digest(folder):
    return {name: hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() for name in files(folder)}


# multiscale


def test_versions_have_the_published_names_and_sizes():
    put("in/köln street.png", skimage.data.coffee())  # 400 x 600
    put("in/astro.png", skimage.data.astronaut())  # 512 x 512
    assert run("multiscale", "in", "-o", "out") == 0
    assert files("out") == sorted([*(f"astroT{n}.png" for n in range(4)), *(f"köln streetT{n}.png" for n in range(3))])
    shapes = [picture(f"out/astroT{n}.png").shape[:2] for n in range(4)]
    assert shapes == [(384, 384), (256, 256), (170, 170), (400, 400)]
    expected = np.asarray(Image.fromarray(skimage.data.coffee()).resize((450, 300), Image.Resampling.LANCZOS))
    assert np.array_equal(picture("out/köln streetT0.png"), expected)


@pytest.mark.parametrize(
    ("height", "width", "last"), [(800, 1000, (400, 500)), (1000, 801, (499, 400)), (400, 900, None)]
)
def test_the_last_version_has_a_shortest_side_of_400(height, width, last):
    assert sizes_of(height, width, factors=(0.5,), shortest=400)[-1] == last


def test_the_images_themselves_may_lie_beside_their_versions():
    put("in/a.png", skimage.data.coffee())
    assert run("multiscale", "in", "-o", "out", "--factors", 0.5, "--shortest", 0, "--with-original") == 0
    assert Path("out/a.png").read_bytes() == Path("in/a.png").read_bytes()
    assert files("out") == ["a.png", "aT0.png"]


def test_versions_with_one_name_are_refused(capsys):
    put("in/a.png", skimage.data.coffee())
    put("in/aT0.png", skimage.data.coffee())
    assert run("multiscale", "in", "-o", "out", "--with-original") == 1
    assert "a.png and aT0.png would both be written to out/aT0.png" in capsys.readouterr().err
    assert not Path("out").exists()


# gopro


def frames(split, *, original=False, count=2, size=(720, 1280)):
    photo = np.tile(skimage.data.astronaut(), (2, 3, 1))[: size[0], : size[1]]
    for number in range(count):
        low, high = ("blur", "sharp") if original else ("input", "target")
        scene = f"GOPR0{number}" if original else "."
        put(f"set/{split}/{scene}/{low}/{number:06d}.png", 255 - np.roll(photo, number, 0))
        put(f"set/{split}/{scene}/{high}/{number:06d}.png", np.roll(photo, number, 0))


@pytest.mark.parametrize("original", [False, True])
def test_gopro_becomes_eight_patches_a_pair_and_middles(original):
    frames("train", original=original)
    frames("test", original=original, count=1)
    assert run("gopro", "set", "-o", "out", "--whole-test") == 0
    first = "GOPR00-000000" if original else "000000"
    patches = files("out/train_crops/input_crops")
    assert len(patches) == 16
    assert patches == files("out/train_crops/target_crops")
    assert [name for name in patches if name.startswith(f"{first}-")] == [f"{first}-{n}.png" for n in range(1, 9)]
    photo = np.tile(skimage.data.astronaut(), (2, 3, 1))[:720, :1280]
    corners = [(top, left) for top in (0, 208) for left in (0, 256, 512, 768)]
    for number, (top, left) in enumerate(corners, start=1):
        sharp = picture(f"out/train_crops/target_crops/{first}-{number}.png")
        assert np.array_equal(sharp, photo[top : top + 512, left : left + 512])
        assert np.array_equal(picture(f"out/train_crops/input_crops/{first}-{number}.png"), 255 - sharp)
    assert np.array_equal(picture(f"out/val_crops/target_crops/{first}.png"), photo[232:488, 512:768])
    assert np.array_equal(picture(f"out/test/target/{first}.png"), photo)
    opt = dict(dataroot_gt="out/train_crops/target_crops", dataroot_lq="out/train_crops/input_crops", gt_size=512)
    assert len(DeblurPairedDataset({**opt, "phase": "train"})) == 16
    assert len(read_manifest(Path("out/train_crops/input_crops.manifest.jsonl")).entries) == 16


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: Path("set/train/input/000001.png").unlink(), "1 images of .* have no partner: 000001"),
        (
            lambda: put("set/train/input/000001.png", np.zeros((700, 1280, 3), np.uint8)),
            "700x1280, its partner 720x1280",
        ),
        (lambda: Path("set/train").rename("set/tran"), "contains no folder train or test"),
        (lambda: Path("set/train/input").rename("set/train/blury"), "no pairs; expected folders input and target"),
    ],
)
def test_a_deblurring_set_with_faults_is_refused_before_anything_is_written(spoil, message, capsys):
    frames("train")
    spoil()
    assert run("gopro", "set", "-o", "out") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not Path("out").exists()


# pairs


def messy():
    photo = skimage.data.chelsea()
    for name, (high, low) in {"a": (96, 24), "b": (98, 24), "c": (90, 24), "d": (96, None), "e": (None, 24)}.items():
        if high:
            put(f"gt/{name}.png", photo[:high, :high])
        if low:
            put(f"lq/{name}_small.png", photo[:low, :low])
    Path("gt/f.png").write_bytes(b"no image")
    put("lq/f_small.png", photo[:24, :24])


def test_every_fault_of_own_pairs_is_reported(capsys):
    messy()
    assert run("pairs", "lq", "gt", "--scale", 4, "--template", "{}_small") == 1
    output = capsys.readouterr().err
    assert "b.png: 98x98, expected 96x96 for its degraded image of 24x24 (--crop-gt would crop it)" in output
    assert "c.png: 90x90, expected 96x96 for its degraded image of 24x24\n" in output
    assert "d.png: no degraded image d_small" in output
    assert "e_small.png: no ground truth for it" in output
    assert "f.png" in output
    assert "1 pairs at scale 4, 5 faults; fix them" in output


def test_good_pairs_are_copied_under_one_name(capsys):
    messy()
    arguments = ["--scale", 4, "--template", "{}_small", "--crop-gt", "--skip-bad"]
    assert run("pairs", "lq", "gt", "-o", "clean", *arguments) == 0
    assert files("clean/lq") == files("clean/gt") == ["a.png", "b.png"]
    assert picture("clean/gt/b.png").shape == (96, 96, 3)
    assert Path("clean/gt/a.png").read_bytes() == Path("gt/a.png").read_bytes()
    entries = read_manifest(Path("clean/lq.manifest.jsonl")).entries
    assert [(entry.name, entry.origin) for entry in entries] == [("a.png", "a_small.png"), ("b.png", "b_small.png")]
    assert run("pairs", "clean/lq", "clean/gt", "--scale", 4) == 0
    assert capsys.readouterr().out.endswith("2 pairs at scale 4, 0 faults\n")


def test_pairs_that_are_all_bad_leave_nothing():
    put("gt/a.png", skimage.data.chelsea()[:90, :90])
    put("lq/a.png", skimage.data.chelsea()[:24, :24])
    assert run("pairs", "lq", "gt", "-o", "clean", "--scale", 4, "--skip-bad") == 1
    assert not Path("clean").exists()


# Manifests and interruption


@pytest.mark.parametrize(
    "job",
    [
        ["subimages", "in", "-o", "out", "--size", "64", "--step", "40"],
        ["downscale", "in", "-o", "out", "--scale", "2"],
        ["multiscale", "in", "-o", "out", "--factors", "0.5"],
    ],
)
def test_a_job_that_stopped_half_way_ends_as_an_unbroken_one(job):
    for index in range(3):
        put(f"in/p{index}.png", skimage.data.astronaut()[100 * index : 100 * index + 90, :100])
    assert run(*job) == 0
    listed, made = Path("out.manifest.jsonl").read_bytes(), digest("out")
    for entry in read_manifest(Path("out.manifest.jsonl")).entries:
        assert entry.sha256 == made[entry.name]
        assert picture(f"out/{entry.name}").shape == entry.size
    for name in files("out")[::2]:
        Path("out", name).unlink()
    Path("out.manifest.jsonl").rename("out.unfinished.json")  # as a killed job leaves it: no list, a note
    head = json.loads(listed.splitlines()[0])
    Path("out.unfinished.json").write_text(json.dumps({"job": head["job"], "parameters": head["parameters"]}))
    assert run(*job) == 0
    assert (Path("out.manifest.jsonl").read_bytes(), digest("out")) == (listed, made)
    assert not Path("out.unfinished.json").exists()


def test_a_killed_job_is_finished_by_the_next_call_with_the_same_result():
    rng = np.random.default_rng(0)
    for index in range(40):
        put(f"in/p{index:02d}.png", rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    words = [sys.executable, "-m", "diffir_sr", "prepare", "subimages", "in", "--size", "150", "--step", "75"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    assert run("subimages", "in", "--size", 150, "--step", 75, "-o", "whole") == 0
    process = subprocess.Popen([*words, "-o", "broken", "--jobs", "2"], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while len(list(Path("broken").glob("*.png"))) < 40 and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # workers notice that their parent is gone
    assert 0 < len(list(Path("broken").glob("*.png"))) < 360
    assert not Path("broken.manifest.jsonl").exists()
    assert run("subimages", "in", "--size", 150, "--step", 75, "-o", "broken") == 0
    assert digest("broken") == digest("whole")  # nothing half-written is left either
    assert Path("broken.manifest.jsonl").read_bytes() == Path("whole.manifest.jsonl").read_bytes()


def test_other_parameters_are_refused_even_after_an_interruption(capsys):
    put("in/a.png", skimage.data.astronaut()[:100, :100])
    assert run("subimages", "in", "-o", "out", "--size", 50, "--step", 25) == 0
    assert run("subimages", "in", "-o", "out", "--size", 50, "--step", 50) == 1
    assert "out contains images made with other parameters (step 25, now 50)" in capsys.readouterr().err
    Path("out.manifest.jsonl").unlink()
    Path("out.unfinished.json").write_text('{"job": "subimages", "parameters": {"size": 40}}')
    assert run("subimages", "in", "-o", "out", "--size", 50, "--step", 50) == 1
    assert "(size 40, now 50" in capsys.readouterr().err
    assert run("downscale", "in", "-o", "out", "--scale", 2) == 1
    assert "by 'subimages', not 'downscale'" in capsys.readouterr().err


def test_two_sources_may_fill_one_folder():
    put("div2k/a.png", skimage.data.astronaut()[:100, :100])
    put("flickr/b.png", skimage.data.astronaut()[100:200, :100])
    for source in ("div2k", "flickr"):
        assert run("subimages", source, "-o", "df2k", "--size", 60, "--step", 40) == 0
    found = read_manifest(Path("df2k.manifest.jsonl"))
    assert {entry.name for entry in found.entries} == set(files("df2k"))
    assert found.source.endswith("flickr")
    assert "div2k + " in found.source


def test_the_manifest_of_an_lmdb_shows_its_keys_and_can_be_read_as_a_root():
    for name in "abc":
        put(f"in/sub/{name}.1.png", skimage.data.astronaut()[:40, :40])
    for codec in ("png", "raw"):
        assert run("lmdb", "in", "-o", f"{codec}.lmdb", "--codec", codec) == 0
        entries = read_manifest(Path(f"{codec}.lmdb.manifest.jsonl")).entries
        assert [entry.origin for entry in entries] == [f"sub/{name}.1.png" for name in "abc"]
        assert open_source(f"{codec}.lmdb.manifest.jsonl").names == ["sub/a.1", "sub/b.1", "sub/c.1"]
        if codec == "raw":
            pixels = open_source("raw.lmdb").read("sub/b.1").tobytes()
            assert entries[1].sha256 == hashlib.sha256(pixels).hexdigest()
