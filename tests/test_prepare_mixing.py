"""A folder holds images of one set of parameters, whatever was stopped, repeated or replaced in it; pairs by form."""

import hashlib
import json
import os
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
from diffir_sr.data.realesrgan_dataset import RealESRGANPairedDataset
from diffir_sr.data.sources import open_source, read_manifest
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare import subimages
from diffir_sr.prepare.multiscale import sizes_of

REPO = Path(__file__).resolve().parents[1]
PHOTO = skimage.data.astronaut()


def put(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encode_png(np.ascontiguousarray(image)))


def run(*words):
    return main(["prepare", *map(str, words), "--jobs", "1"])


def cut(step, *more, source="in"):
    return run("subimages", source, "-o", "out", "--size", 50, "--step", step, *more)


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def listed():
    return {entry.name: entry.sha256 for entry in read_manifest(Path("out.manifest.jsonl")).entries}


# Replacing


def test_what_is_replaced_leaves_no_squares_of_the_old_step():
    put("in/a.png", PHOTO[:100, :100])
    assert cut(25) == 0
    assert len(digest("out")) == 9
    assert cut(50, "--overwrite") == 0
    assert len(digest("out")) == 4
    assert listed() == digest("out")


def test_a_replacement_that_stopped_half_way_is_not_taken_for_done(capsys, monkeypatch):
    for name in "ab":
        put(f"in/{name}.png", PHOTO[:100, :100])
    assert cut(25) == 0
    work = subimages._cut_all

    def stops(task):
        if task.file.name == "b.png":
            raise KeyboardInterrupt
        return work(task)

    with monkeypatch.context() as patch:
        patch.setattr(subimages, "_cut_all", stops)
        assert cut(50, "--overwrite") == 130
    capsys.readouterr()
    assert cut(50) == 1  # half of the squares are those of the other step
    assert "a run with --overwrite was interrupted" in capsys.readouterr().err
    assert cut(50, "--overwrite") == 0
    made = digest("out")
    assert listed() == made
    assert len(made) == 8
    assert made["b_s002.png"] == hashlib.sha256(encode_png(PHOTO[:50, 50:100], compress_level=3)).hexdigest()


def test_replacing_one_of_two_sources_with_other_parameters_is_refused(capsys):
    put("in/a.png", PHOTO[:100, :100])
    put("more/b.png", PHOTO[:100, :100])
    assert cut(25) == cut(25, source="more") == 0
    before = digest("out")
    assert cut(50, "--overwrite") == 1
    assert "step 25, now 50" in capsys.readouterr().err
    assert cut(25, "--overwrite") == 0
    assert digest("out") == before == listed()


def test_a_folder_that_was_removed_may_be_made_otherwise(capsys):
    put("in/a.png", PHOTO[:100, :100])
    assert cut(25) == 0
    for path in Path("out").iterdir():
        path.unlink()
    Path("out").rmdir()
    Path("out.unfinished.json").write_text(json.dumps({"job": "x", "parameters": {}}))
    Path("out.manifest.jsonl").write_text("no manifest any more")
    assert cut(50) == 0
    assert listed() == digest("out")


def test_rounding_to_8_bits_may_be_allowed_half_way(capsys):
    put("in/a.png", PHOTO[:50, :50])
    put("in/b.png", PHOTO[:50, :50].astype(np.uint16) * 257)
    assert cut(50) == 1
    assert "give --to-8bit" in capsys.readouterr().err
    assert cut(50, "--to-8bit") == 0
    assert "1 made, 1 kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["subimages", "in", "--size", "50", "--step", "30"],
        ["downscale", "in", "--scale", "3"],
        ["multiscale", "in", "--factors", "0.4"],
        ["degrade", "in", "--scale", "2"],
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(words, capsys):
    put("in/a.png", PHOTO[:100, :100])
    assert cut(25) == 0
    before = digest(".")
    assert run(*words, "-o", "out", "--dry-run") == 1
    assert "contains images made with other parameters" in capsys.readouterr().err
    assert digest(".") == before


@pytest.mark.parametrize(
    "words",
    [
        ["subimages", "--size", "200", "--small", "skip"],
        ["multiscale", "--factors", "0.001", "--shortest", "0"],
    ],
)
def test_a_job_that_would_make_nothing_says_so(words, capsys):
    put("in/a.png", PHOTO[:100, :100])
    assert run(words[0], "in", "-o", "out", *words[1:]) == 1
    assert "all images under" in capsys.readouterr().err
    assert list(Path().iterdir()) == [Path("in")]


# LMDBs


def test_a_killed_lmdb_is_finished_by_the_next_call_with_the_same_list():
    rng = np.random.default_rng(0)
    for index in range(600):
        put(f"in/straße {index:03d}.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert run("lmdb", "in", "-o", "whole.lmdb", "--codec", "raw") == 0
    words = ["prepare", "lmdb", "in", "-o", "broken.lmdb", "--codec", "raw", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffir_sr", *words],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(Path().glob(".broken.lmdb.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("broken.lmdb").exists()
    assert run("lmdb", "in", "-o", "broken.lmdb", "--codec", "raw") == 0
    lists = [Path(f"{name}.lmdb.manifest.jsonl").read_bytes() for name in ("whole", "broken")]
    assert lists[0] == lists[1]
    sources = [open_source(f"{name}.lmdb") for name in ("whole", "broken")]
    assert sources[0].names == sources[1].names
    assert all(np.array_equal(sources[0].read(name), sources[1].read(name)) for name in sources[0].names[::50])


def test_images_of_an_lmdb_are_listed_by_their_own_names():
    put("in/Köln am Rhein/b (1).v2.png", PHOTO[:40, :30])
    put("in/a.png", PHOTO[:20, :20, :1])
    for codec in ("png", "raw"):
        assert run("lmdb", "in", "-o", f"{codec}.lmdb", "--codec", codec) == 0
        assert run("meta", f"{codec}.lmdb", "-o", f"{codec}.txt") == 0
        assert Path(f"{codec}.txt").read_text() == "Köln am Rhein/b (1).v2.png (40,30,3)\na.png (20,20,1)\n"
        assert len(open_source(f"{codec}.lmdb", meta_info=f"{codec}.txt").names) == 2
        assert len(open_source("in", meta_info=f"{codec}.txt").names) == 2


# multiscale, gopro


@pytest.mark.parametrize("side", [401, 512, 700, 1001, 2997])
def test_the_last_version_of_a_square_image_is_square(side):
    assert sizes_of(side, side, factors=(), shortest=400) == [(400, 400)]


def test_versions_are_those_of_the_published_arithmetic():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(401, 4000, (500, 2)).tolist():
        image = Image.new("1", (width, height))
        published = [(int(image.height * factor), int(image.width * factor)) for factor in (0.75, 0.5, 1 / 3)]
        if image.width < image.height:
            published.append((int(400 * (image.height / image.width)), 400))
        else:
            published.append((400, int(400 * (image.width / image.height))))
        assert sizes_of(height, width, factors=(0.75, 0.5, 1 / 3), shortest=400) == published


def test_crops_of_the_original_tree_name_the_scene_they_are_from(capsys):
    for scene in ("GOPR0372_07_00", "GOPR0372_07_01"):
        for side in ("blur", "sharp"):
            put(f"set/train/{scene}/{side}/000001.png", PHOTO[:64, :96])
    words = ["gopro", "set", "-o", "out", "--size", 64, "--overlap", 32]
    assert run(*words, "--dry-run") == 0
    assert "would write 4 pairs (patches) under out/train_crops" in capsys.readouterr().out
    assert run(*words) == 0
    entries = read_manifest(Path("out/train_crops/input_crops.manifest.jsonl")).entries
    assert {entry.name: entry.origin for entry in entries} == {
        f"GOPR0372_07_0{scene}-000001-{number}.png": f"train/GOPR0372_07_0{scene}/blur/000001.png"
        for scene in (0, 1)
        for number in (1, 2)
    }


# pairs


def realsr(folder):
    """Photographs named and put together as RealSR has them."""
    for name in ("Canon_001", "Canon_002", "Nikon_001"):
        put(f"{folder}/{name}_HR.png", PHOTO[:64, :96])
        put(f"{folder}/{name}_LR4.png", PHOTO[:64:4, :96:4])


FORMS = ["--template", "{}_LR4", "--gt-template", "{}_HR", "--scale", 4]


def test_pairs_in_one_folder_are_told_apart_by_their_names(capsys):
    realsr("Test/4")
    assert run("pairs", "Test/4", "Test/4", *FORMS, "-o", "clean", "--list", "pairs.txt") == 0
    assert sorted(digest("clean/lq")) == sorted(digest("clean/gt"))
    assert sorted(digest("clean/gt")) == ["Canon_001.png", "Canon_002.png", "Nikon_001.png"]
    assert run("pairs", "clean/lq", "clean/gt", "--scale", 4) == 0
    opt = dict(dataroot_gt="Test/4", dataroot_lq="Test/4", meta_info="pairs.txt", scale=4, phase="val")
    assert len(RealESRGANPairedDataset(opt)) == 3


def test_every_fault_of_pairs_in_one_folder_is_reported(capsys):
    realsr("in")
    Path("in/Canon_001_LR4.png").unlink()
    Path("in/Canon_002_HR.png").rename("in/Canon_002.png")
    assert run("pairs", "in", "in", *FORMS) == 1
    output = capsys.readouterr().err
    assert "Canon_001_HR.png: no degraded image Canon_001_LR4" in output
    assert "Canon_002_LR4.png: no ground truth for it" in output
    assert "Canon_002.png: neither {}_LR4 nor {}_HR" in output
    assert "1 pairs at scale 4, 3 faults" in output


def test_degraded_images_may_lie_beside_ground_truth_without_a_suffix():
    realsr("in")
    for path in Path("in").glob("*_HR.png"):
        path.rename(path.with_name(path.name.replace("_HR", "")))
    assert run("pairs", "in", "in", "--template", "{}_LR4", "--scale", 4) == 0


def test_one_folder_and_one_form_are_no_pairs(capsys):
    realsr("in")
    assert run("pairs", "in", "in") == 1
    assert "give --template and --gt-template" in capsys.readouterr().err


def test_lmdbs_are_checked_as_folders_are(capsys):
    put("gt/a.png", PHOTO[:64, :64])
    put("gt/b.png", PHOTO[:64, :64])
    put("lq/a.png", PHOTO[:16, :16])
    for name in ("gt", "lq"):
        assert run("lmdb", name, "-o", f"{name}.lmdb") == 0
    assert run("pairs", "lq.lmdb", "gt.lmdb", "--scale", 4) == 1
    assert "gt.lmdb[b]: no degraded image b" in capsys.readouterr().err
    assert run("pairs", "lq.lmdb", "gt", "--scale", 4, "--skip-bad") == 0
    assert run("pairs", "lq.lmdb", "gt", "--scale", 4, "--skip-bad", "-o", "clean") == 1
    assert "LMDBs and shards can only be checked" in capsys.readouterr().err
