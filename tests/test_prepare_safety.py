"""`diffir prepare` never harms its input, never leaves halves, and its outputs fit each other."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffir_sr.cli import main
from diffir_sr.data.pairs import find_pairs
from diffir_sr.data.sources import open_source
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare import lmdb_build

REPO = Path(__file__).resolve().parents[1]
PHOTO = np.ascontiguousarray(skimage.data.astronaut()[:96, 100:196])


def put(path, image=PHOTO):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes())


def run(*words, code=0, jobs=1):
    assert main(["prepare", *map(str, words), "--jobs", str(jobs)]) == code


def start(*words):
    """The command in a process of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "diffir_sr", "prepare", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(what, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("output", ["in", "in/small", "./in/../in"])
@pytest.mark.parametrize(
    "job", [["downscale", "--scale", 4, "--overwrite"], ["subimages", "--size", 48, "--overwrite"]]
)
def test_results_never_go_where_the_input_is(output, job, capsys):
    put("in/a.png")
    before = Path("in/a.png").read_bytes()
    run(job[0], "in", "-o", output, *job[1:], code=1)
    assert "choose a folder next to it" in capsys.readouterr().err
    assert [path.read_bytes() for path in Path("in").rglob("*")] == [before]


def test_cropped_ground_truth_goes_to_a_folder_of_its_own(capsys):
    put("in/a.png")
    for folder in ("in", "lq"):
        run("downscale", "in", "-o", "lq", "--scale", 4, "--crop-gt", folder, code=1)
    assert not Path("lq").exists()


@pytest.mark.parametrize("jobs", [1, 3])
def test_bad_files_are_all_reported_however_many_images_there_are(jobs, capsys):
    for index in range(300):
        put(f"in/{index:03d}.png", PHOTO[:8, :8])
    bad = ("003", "280", "299")
    for name in bad:
        Path(f"in/{name}.png").write_bytes(encode_png(PHOTO)[:-30])
    run("lmdb", "in", "-o", "out.lmdb", code=1, jobs=jobs)
    output = capsys.readouterr().err
    assert "3 of 300 images failed" in output
    assert all(f"in/{name}.png: damaged or truncated" in output for name in bad)
    assert not list(Path().glob("out.lmdb*"))


def test_unreadable_headers_are_all_reported(capsys):
    for name in "abc":
        put(f"in/{name}.png")
    for name in "ac":
        Path(f"in/{name}.png").write_bytes(b"\x89PNG")
    for words in (["subimages", "--size", 48], ["downscale", "--scale", 4], ["meta"]):
        run(words[0], "in", "-o", "out", *words[1:], code=1)
        output = capsys.readouterr().err
        assert "2 of 3 images" in output
        assert "in/a.png" in output
        assert "in/c.png" in output
        assert not Path("out").exists()


@pytest.mark.parametrize("words", [["subimages", "--size", 32], ["downscale", "--scale", 4]])
def test_every_job_stores_8_bits_without_alpha(words, capsys):
    put("in/alpha.png", np.dstack([PHOTO, PHOTO[..., 0]]))
    put("in/grey.png", PHOTO[..., 0])
    put("in/deep.png", PHOTO.astype(np.uint16) * 257)
    run(words[0], "in", "-o", "out", *words[1:], code=1)
    assert "deep.png: 16 bits per channel; give --to-8bit" in capsys.readouterr().err
    run(words[0], "in", "-o", "out", *words[1:], "--to-8bit", "--overwrite")
    assert "alpha dropped in 1" in capsys.readouterr().out
    source = open_source("out")
    shapes = {name.split("_")[0]: source.read(name).shape[2] for name in source.names}
    assert shapes == {"alpha": 3, "deep": 3, "grey": 1}
    assert all(source.read(name).dtype == np.uint8 for name in source.names)


def test_rounding_to_8_bits_goes_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    put("in/a.png", values)
    run("lmdb", "in", "-o", "out.lmdb", "--to-8bit")
    assert np.array_equal(open_source("out.lmdb").read("a")[..., 0], np.round(values / 257).astype(np.uint8))


def test_squares_of_both_folders_fit_each_other():
    put("HR/0801.png")
    run("downscale", "HR", "-o", "made", "--scale", 4)
    Path("LR").mkdir()
    Path("made/0801.png").rename("LR/0801x4.png")  # as official low-resolution images are called
    run("subimages", "HR", "-o", "HR_sub", "--size", 48, "--step", 24)
    run("subimages", "LR", "-o", "LR_sub", "--size", 12, "--step", 6, "--drop-suffix", "x4")
    assert len(find_pairs("LR_sub", "HR_sub", scale=4, gt_size=48).pairs) == 9
    for folder in ("HR_sub", "LR_sub"):
        run("lmdb", folder, "-o", f"{folder}.lmdb")
    run("lmdb", "LR_sub", "-o", "again.lmdb", "--pair-with", "HR_sub.lmdb", "--scale", 4)


def test_names_that_become_one_without_their_suffix_are_refused(capsys):
    put("in/a.png")
    put("in/ax4.png")
    run("subimages", "in", "-o", "out", "--size", 48, "--drop-suffix", "x4", code=1)
    assert "a and ax4" in capsys.readouterr().err


def test_cutting_goes_on_where_it_stopped(capsys):
    put("in/a.png")
    run("subimages", "in", "-o", "out", "--size", 48, "--step", 48)
    kept = Path("out/a_s001.png").stat().st_mtime_ns
    Path("out/a_s003.png").unlink()
    run("subimages", "in", "-o", "out", "--size", 48, "--step", 48)
    assert "1 made, 3 kept" in capsys.readouterr().out
    assert Path("out/a_s001.png").stat().st_mtime_ns == kept
    assert np.array_equal(open_source("out").read("a_s003"), PHOTO[48:, :48])


def test_lists_tell_real_channels_and_go_to_a_file(capsys):
    put("in/b (1).png", PHOTO[..., 0])
    put("in/a.jpg", PHOTO)
    run("meta", "in", "-o", ".", code=1)
    assert "is a folder; give a file" in capsys.readouterr().err
    run("meta", "in", "-o", "meta.txt", jobs=2)
    assert Path("meta.txt").read_text() == "a.jpg (96,96,3)\nb (1).png (96,96,1)\n"


def value(name):
    with lmdb.open("out.lmdb", readonly=True, lock=False) as environment, environment.begin() as transaction:
        return transaction.get(name)


def test_png_files_are_stored_byte_for_byte_and_others_as_png():
    put("in/a.png")
    put("in/b.jpg")
    Path("in/c.png").write_bytes(Path("in/b.jpg").read_bytes())  # a JPEG file with the wrong name
    run("lmdb", "in", "-o", "out.lmdb")
    assert value(b"a") == Path("in/a.png").read_bytes()
    for key in (b"b", b"c"):
        assert value(key).startswith(b"\x89PNG")
        assert np.array_equal(decode(value(key), where="x"), decode(Path("in/b.jpg").read_bytes(), where="x"))
    assert Path("out.lmdb/meta_info.txt").read_text().splitlines()[0] == "a.png (96,96,3) 1"


def test_a_turned_png_is_stored_upright():
    tags = Image.Exif()
    tags[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(PHOTO[:32]).save(data, "PNG", exif=tags)
    Path("in").mkdir()
    Path("in/a.png").write_bytes(data.getvalue())
    run("lmdb", "in", "-o", "out.lmdb")
    stored = cv2.imdecode(np.frombuffer(value(b"a"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored[..., ::-1], np.rot90(PHOTO[:32], -1))
    assert open_source("out.lmdb").size("a") == (96, 32)


def test_a_map_that_is_full_grows(monkeypatch):
    rng = np.random.default_rng(0)
    for index in range(20):
        put(f"in/{index}.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    monkeypatch.setattr(lmdb_build, "_PAGE", 64)  # so that too little is asked for
    monkeypatch.setattr(lmdb_build, "_CHUNK", 7)
    run("lmdb", "in", "-o", "out.lmdb")
    source = open_source("out.lmdb")
    assert all(source.read(name).shape == (64, 64, 3) for name in source.names)
    assert len(source.names) == 20


def test_names_too_long_for_an_lmdb_are_reported_before_anything_is_built(capsys):
    put(f"in/{'ü' * 60}/{'ä' * 60}.png")
    run("lmdb", "in", "-o", "out.lmdb", code=1)
    assert "1 images have names too long for an LMDB, which takes keys of 511 bytes" in capsys.readouterr().err
    assert not list(Path().glob("out.lmdb*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lmdb", "in", "-o", "out.lmdb", "--jobs", "0"], "--jobs: expected 1 or more, got 0"),
        (["lmdb", "in", "-o", "out.lmdb", "--compress-level", "11"], "--compress-level: expected 0 to 9, got 11"),
        (["lmdb", "in", "-o", "out.lmdb", "--pair-with", "in", "--scale", "0"], "scale: expected 1 or more, got 0"),
        (["downscale", "in", "-o", "out", "--scale", "1"], "--scale: expected 2 or more, got 1"),
        (["downscale", "in", "-o", "out", "--scale", "200"], "1 images are smaller than 200 pixels: in/a.png"),
        (["subimages", "in", "-o", "out", "--step", "0"], "size and step must be 1 or more"),
        (["subimages", "in", "-o", "out", "--compress-level", "-1"], "--compress-level: expected 0 to 9, got -1"),
        (["subimages", "built.lmdb", "-o", "out"], "is an LMDB; expected a folder of image files"),
    ],
)
def test_impossible_settings_are_reported_with_what_was_expected(words, message, capsys):
    put("in/a.png")
    run("lmdb", "in", "-o", "built.lmdb")
    assert main(["prepare", *words]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()
    assert not list(Path().glob("out.lmdb*"))


def test_a_dry_run_says_which_files_and_refuses_what_the_run_would(capsys):
    put("in/sub/a.png")
    run("subimages", "in", "-o", "out", "--size", 48, "--step", 48, "--dry-run")
    assert "4 squares of 48 pixels under out, about 0.0 MiB:\n  out/sub/a_s001.png\n" in capsys.readouterr().out
    run("lmdb", "in", "-o", "out", "--dry-run", code=1)
    assert "must end in .lmdb" in capsys.readouterr().err


def test_a_build_that_still_runs_keeps_its_folder_and_a_dead_one_does_not():
    put("in/a.png")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, left = (Path(f".out.lmdb.partial-{process}") for process in (os.getppid(), dead.pid))
    for folder in (mine, left):
        folder.mkdir()
    run("lmdb", "in", "-o", "out.lmdb")
    assert mine.is_dir()
    assert not left.exists()


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_leaves_whole_files_alone():
    big = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for index in range(200):
        put(f"in/{index}.bmp", big)
    process = start("downscale", "in", "-o", "lq", "--scale", 2, "--crop-gt", "gt", "--jobs", 2)
    wait_for(lambda: len(list(Path().glob("lq/*.png"))) > 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to workers, too
    output = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "interrupted" in output
    assert "Traceback" not in output
    files = [path for folder in ("lq", "gt") for path in Path(folder).iterdir()]
    assert 3 < len(files) < 400
    assert all(decode(path.read_bytes(), where=str(path)).shape[2] == 3 for path in files)
    assert not [path for path in files if "partial" in path.name]


@pytest.mark.slow
def test_a_killed_build_takes_its_workers_with_it():
    big = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for index in range(200):
        put(f"in/{index}.bmp", big)
    process = start("lmdb", "in", "-o", "out.lmdb", "--jobs", 2)
    wait_for(lambda: list(Path().glob(".out.lmdb.partial-*")))
    process.kill()
    process.communicate(timeout=60)  # ends when the last worker closes the pipe
    assert process.returncode == -signal.SIGKILL
    assert not Path("out.lmdb").exists()
    with pytest.raises(ProcessLookupError):
        wait_for(lambda: os.killpg(process.pid, 0), seconds=10)
