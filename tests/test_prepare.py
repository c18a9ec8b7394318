"""`diffir prepare`: right, whole or not at all, and clear about what it will not do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from basicsr.utils.matlab_functions import imresize
from test_data import photo, put

from diffir_sr.cli import main
from diffir_sr.data.sources import open_source
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.prepare.subimages import starts

REPO = Path(__file__).resolve().parents[1]


def run(*words, code=0):
    assert main(["prepare", *map(str, words)]) == code


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2.0, 4.0, 0.37])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "noise"])
def test_bicubic_equals_the_matlab_port_of_basicsr(name, scale):
    if name == "noise":
        image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    else:
        image = np.ascontiguousarray(getattr(skimage.data, name)()[:120, :101])
    theirs = (imresize(image.astype(np.float32) / 255, scale) * 255).round().clip(0, 255)
    ours = bicubic_resize(image, scale=scale)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.99


def test_downscaling_crops_the_ground_truth_to_fit():
    put(Path("in/a.png"), photo(67))
    put(Path("in/sub/b.jpg"), photo(64), ".jpg")
    run("downscale", "in", "-o", "lq", "--scale", 4, "--crop-gt", "gt", "--jobs", 2)
    assert tree("lq") == tree("gt") == ["a.png", "sub/b.png"]
    assert cv2.imread("lq/a.png").shape == (16, 16, 3)
    assert np.array_equal(cv2.imread("gt/a.png"), cv2.imread("in/a.png")[:64, :64])


@pytest.mark.parametrize("method", ["area", "lanczos"])
def test_other_methods_keep_the_mean_colour(method):
    put(Path("in/a.png"), photo(64))
    run("downscale", "in", "-o", "lq", "--scale", 4, "--method", method)
    assert cv2.imread("lq/a.png").mean((0, 1)) == pytest.approx(photo(64)[..., ::-1].mean((0, 1)), abs=1.5)


def test_existing_files_are_kept_unless_an_option_says_otherwise(capsys):
    put(Path("in/a.png"), photo(64))
    run("downscale", "in", "-o", "lq", "--scale", 4)
    put(Path("lq/a.png"), mine := photo(20))
    run("downscale", "in", "-o", "lq", "--scale", 4)
    assert np.array_equal(cv2.imread("lq/a.png")[..., ::-1], mine)
    assert "0 made, 1 kept" in capsys.readouterr().out
    Path("lq/a.png").write_bytes(b"mine")
    assert main(["prepare", "downscale", "in", "-o", "lq", "--scale", "4"]) == 1
    assert "a.png: damaged or truncated" in capsys.readouterr().err
    run("downscale", "in", "-o", "lq", "--scale", 4, "--overwrite")
    assert cv2.imread("lq/a.png").shape == (16, 16, 3)


def test_sub_images_cover_every_pixel_and_are_named_as_basicsr_names_them():
    image = photo(100)
    put(Path("in/a.png"), image)
    run("subimages", "in", "-o", "out", "--size", 48, "--step", 24)
    assert tree("out") == [f"a_s{number:03d}.png" for number in range(1, 17)]
    places = [(top, left) for top in (0, 24, 48, 52) for left in (0, 24, 48, 52)]
    seen = np.zeros(image.shape[:2], bool)
    for number, (top, left) in enumerate(places, start=1):
        part = cv2.imread(f"out/a_s{number:03d}.png")[..., ::-1]
        assert np.array_equal(part, image[top : top + 48, left : left + 48])
        seen[top : top + 48, left : left + 48] = True
    assert seen.all()
    assert starts(100, size=48, step=24, threshold=4) == [0, 24, 48]


def test_a_dry_run_writes_nothing(capsys):
    put(Path("in/a.png"), photo(100))
    for words in (["downscale", "--scale", 4], ["subimages", "--size", 50], ["meta"], ["lmdb"]):
        run(words[0], "in", "-o", "out.lmdb", *words[1:], "--dry-run")
    assert capsys.readouterr().out.count("would ") == 4
    assert tree(".") == ["in/a.png"]


def test_the_list_of_a_folder_is_what_basicsr_reads():
    put(Path("in/b.png"), photo(20))
    put(Path("in/sub/a.jpg"), photo(16), ".jpg")
    run("meta", "in", "-o", "meta.txt")
    assert Path("meta.txt").read_text() == "b.png (20,20,3)\nsub/a.jpg (16,16,3)\n"
    run("meta", "in", "-o", "meta.txt", code=1)


def test_an_lmdb_is_as_large_as_its_images():
    rng = np.random.default_rng(0)
    for index in range(12):
        put(Path(f"in/{index}.png"), rng.integers(0, 256, (150, 150, 3), dtype=np.uint8))
    run("lmdb", "in", "-o", "out.lmdb")
    images = sum(path.stat().st_size for path in Path("in").iterdir())
    assert images < Path("out.lmdb/data.mdb").stat().st_size < 1.3 * images + 200_000
    assert open_source("out.lmdb").names == sorted(str(index) for index in range(12))


def test_every_bad_image_is_named_in_one_message_and_nothing_is_left(capsys):
    for name in "abcd":
        put(Path(f"in/{name}.png"), photo(32))
    Path("in/b.png").write_bytes(Path("in/b.png").read_bytes()[:100])
    Path("in/d.png").write_bytes(b"")
    for jobs in (1, 2):
        run("lmdb", "in", "-o", "out.lmdb", "--jobs", jobs, code=1)
        output = capsys.readouterr().err
        assert "2 of 4 images failed" in output
        assert "in/b.png: damaged" in output
        assert "in/d.png: the file is empty" in output
    assert not list(Path().glob("out.lmdb*"))


@pytest.mark.parametrize("words", [["subimages", "--size", 16], ["downscale", "--scale", 4], ["meta"], ["lmdb"]])
def test_a_folder_without_images_is_an_error_everywhere(words, capsys, tmp_path):
    Path("in").mkdir()
    run(words[0], "in", "-o", "out.lmdb", *words[1:], code=1)
    output = capsys.readouterr().err
    assert f"no images under {tmp_path / 'in'}" in output
    assert not Path("out.lmdb").exists()


def test_sixteen_bits_need_a_word_and_alpha_is_counted(capsys):
    Path("in").mkdir()
    cv2.imwrite("in/deep.png", np.full((8, 8, 3), 257 * 77, np.uint16))
    cv2.imwrite("in/alpha.png", np.full((8, 8, 4), 9, np.uint8))
    run("lmdb", "in", "-o", "out.lmdb", code=1)
    assert "deep.png: 16 bits per channel; give --to-8bit" in capsys.readouterr().err
    run("lmdb", "in", "-o", "out.lmdb", "--to-8bit")
    assert "alpha dropped in 1" in capsys.readouterr().out
    assert (open_source("out.lmdb").read("deep") == 77).all()
    assert open_source("out.lmdb").read("alpha").shape == (8, 8, 3)


def test_two_files_of_one_name_are_refused_with_both(capsys):
    put(Path("in/a.png"), photo(16))
    put(Path("in/a.jpg"), photo(16), ".jpg")
    run("lmdb", "in", "-o", "out.lmdb", code=1)
    output = capsys.readouterr().err
    assert "a.jpg" in output
    assert "a.png" in output


def test_pairs_are_checked_before_anything_is_built(capsys):
    for index in range(3):
        put(Path(f"gt/{index}.png"), photo(64))
        put(Path(f"lq/{index}.png"), photo(16))
    run("lmdb", "lq", "-o", "lq.lmdb", "--pair-with", "gt", "--scale", 2, code=1)
    assert "3 of 3 ground-truth images are not 2 times" in capsys.readouterr().err
    Path("lq/1.png").unlink()
    run("lmdb", "lq", "-o", "lq.lmdb", "--pair-with", "gt", "--scale", 4, code=1)
    assert "no partner: 1" in capsys.readouterr().err
    assert not Path("lq.lmdb").exists()


def test_an_existing_lmdb_and_a_wrong_suffix_are_refused(capsys):
    put(Path("in/a.png"), photo(16))
    run("lmdb", "in", "-o", "out", code=1)
    assert "must end in .lmdb" in capsys.readouterr().err
    run("lmdb", "in", "-o", "out.lmdb")
    run("lmdb", "in", "-o", "out.lmdb", code=1)
    assert "exists" in capsys.readouterr().err


def test_images_too_small_to_cut_are_listed(capsys):
    put(Path("in/a.png"), photo(40))
    run("subimages", "in", "-o", "out", "--size", 48, code=1)
    assert "in/a.png: 40x40" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_killed_build_leaves_no_lmdb_and_the_next_one_succeeds():
    rng = np.random.default_rng(0)
    big = rng.integers(0, 256, (700, 700, 3), dtype=np.uint8)
    for index in range(60):
        put(Path(f"in/{index}.bmp"), big, ".bmp")
    words = [sys.executable, "-m", "diffir_sr", "prepare", "lmdb", "in", "-o", "out.lmdb", "--jobs", "1"]
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(REPO)}, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not list(Path().glob(".out.lmdb.partial-*")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    assert not Path("out.lmdb").exists()
    run("lmdb", "in", "-o", "out.lmdb", "--jobs", 1)
    assert len(open_source("out.lmdb").names) == 60
    assert {path.name for path in Path().glob("out.lmdb*")} == {"out.lmdb", "out.lmdb.manifest.jsonl"}
