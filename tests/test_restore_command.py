"""`diffir restore`: trees, names, streams, resuming after a kill, bad files among good ones, full disks."""

import errno
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import photo, write_network
from PIL import Image

from diffir_sr.cli import main
from diffir_sr.files import atomic
from diffir_sr.files.images import read_picture
from diffir_sr.files.picture import encode_png
from diffir_sr.inference.files import plan_jobs
from diffir_sr.weights.registry import locate, registry


def put(*names, size=(12, 10)):
    for index, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(*size, top=index, left=100 + 9 * (index % 30))).save(name)


def restore(*words, weights=None):
    return main(["restore", *words, "-w", weights or write_network()])


def files(folder):
    found = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "restored.jsonl")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def test_a_tree_keeps_its_structure_and_no_name_collides(capsys):
    put("in/a.png", "in/a.jpg", "in/sub/a.png", "in/a.b.webp", "in/.hidden.png")
    assert restore("in", "-o", "out") == 0
    assert files("out") == ["a.b.webp", "a.jpg", "a.png", "sub/a.png"]
    assert "out: 4 restored" in capsys.readouterr().out
    assert restore("in", "-o", "pngs", "--format", "png") == 0
    assert files("pngs") == ["a.b.webp.png", "a.jpg.png", "a.png", "sub/a.png"]
    assert restore("in/a.png", "in/sub/a.png", "in/a.jpg", "-o", "flat") == 0
    assert files("flat") == ["a.jpg", "a.png", "sub/a.png"]
    assert restore("in/**/*.png", "-o", "glob") == 0
    assert files("glob") == ["a.png", "sub/a.png"]
    assert restore("in/a.png", "-o", "one/result.tif") == 0
    assert files("one") == ["result.tif"]
    assert not Path("one/restored.jsonl").exists()


def test_names_that_differ_in_case_alone_are_kept_apart():
    Path("in").mkdir()
    for name in ("a.png", "A.PNG"):
        Path("in", name).write_bytes(b"x")
    if len(list(Path("in").iterdir())) == 2:
        targets = [job.target.name for job in plan_jobs(["in"], "out")]
        assert len({name.lower() for name in targets}) == 2


def test_standard_input_to_standard_output(monkeypatch, capfdbinary):
    put("a.png")
    weights = write_network()
    assert restore("a.png", "-o", "b.png", weights=weights) == 0
    capfdbinary.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("a.png").read_bytes())))
    assert restore("-", "-o", "-", weights=weights) == 0
    assert capfdbinary.readouterr().out == Path("b.png").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("is_closed", [True, False])
def test_standard_output_that_takes_nothing_is_reported(monkeypatch, capsys, is_closed):
    put("a.png")
    weights = write_network()
    for output in ("out", "-"):
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr("sys.stdout", None if is_closed else full)
            assert restore("a.png", "-o", output, weights=weights) == 1
        reason = "closed" if is_closed else "No space left on device"
        printed = capsys.readouterr().err
        assert f"standard output cannot be written ({reason})" in printed
        assert "Traceback" not in printed
    assert files("out") == ["a.png"]


def test_nothing_is_overwritten_unless_asked(capsys):
    put("in/a.png", "in/b.png")
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    assert restore("in", "-o", "out") == 1
    assert Path("out/a.png").read_bytes() == b"mine"
    output = capsys.readouterr()
    assert "a.png exists and was not made by this run; use --overwrite to replace it" in output.err
    assert "1 restored, 1 failed" in output.out
    assert restore("in", "-o", "out", "--seed", "1") == 1
    assert "b.png exists, made from other settings or weights" in capsys.readouterr().err
    assert restore("in", "-o", "out", "--overwrite") == 0
    assert "1 restored, 1 kept" in capsys.readouterr().out
    assert cv2.imread("out/a.png").shape == (48, 40, 3)
    before = Path("in/a.png").read_bytes()
    assert restore("in/a.png", "-o", "in", "--overwrite") == 1
    assert Path("in/a.png").read_bytes() == before


def test_a_bad_picture_is_reported_and_the_rest_goes_on(capsys):
    put("in/a.png", "in/z.png")
    whole = encode_png(photo(40, 40))
    Path("in/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("in/empty.jpg").write_bytes(b"")
    Image.fromarray(photo()).convert("LAB").save("in/print.tif")
    assert restore("in", "-o", "out") == 1
    output = capsys.readouterr()
    assert "2 restored, 3 failed" in output.out
    for part in (
        "in/cut.png: damaged or truncated",
        "in/empty.jpg: the file is empty",
        "in/print.tif: contains CIELAB colours",
    ):
        assert part in output.err
    assert "Traceback" not in output.err
    assert files("out") == ["a.png", "z.png"]


def test_weights_that_hold_nan_restore_nothing(capsys):
    put("in/a.png", "in/b.png")
    content = torch.load(write_network(), weights_only=True)["params_ema"]
    content["G.tail.1.weight"].fill_(float("nan"))
    torch.save({"params_ema": content}, "nan.pth")
    assert restore("in", "-o", "out", weights="nan.pth") == 1
    output = capsys.readouterr()
    assert "nan.pth: the tensor G.tail.1.weight contains" in output.err
    assert "not finite" in output.err
    assert not files("out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.png", "-o", "out"], "no such file or folder"),
        (["*.tiff", "-o", "out"], "matches no image"),
        (["in", "-o", "in/out"], "is the input folder in or inside it"),
        (["in", "-o", "out.png"], "one file name for 2 inputs"),
        (["in", "-o", "-"], "standard output takes one image, found 2"),
        (["net.pth", "-o", "out"], "neither an image nor a video by name"),
        (["in/a.png", "-o", "out", "--samples", "0"], "--samples: expected 1 or more"),
        (["in/a.png", "-o", "out", "--blend", "net.pth", "much"], "--blend: expected a file and a share"),
        (["in/a.png", "-o", "out", "--blend", "net.pth", "nan"], "blend: expected a share from 0"),
        (["in/a.png", "-o", "out", "--memory", "nan"], "--memory: expected more than 0 GiB, at most 1048576, got nan"),
        (["in/a.png", "-o", "out", "--memory", "inf"], "--memory: expected more than 0 GiB, at most 1048576, got inf"),
        (["in/a.png", "-o", "out", "--memory", "1e300"], "at most 1048576, got 1e+300"),
        (["in/a.png", "-o", "out", "--tile-mode", "prior", "--overlap", "-1"], "overlap: expected 0 pixels or more"),
        (
            ["in/a.png", "-o", "out", "--device", "meta"],
            "device 'meta': this machine has 0 of this kind; choose auto, cpu",
        ),
        (
            ["in/a.png", "-o", "out", "--device", "mps"],
            "device 'mps': this machine has 0 of this kind; choose auto, cpu",
        ),
    ],
)
def test_a_command_that_cannot_work_says_why_and_writes_nothing(capsys, words, message):
    put("in/a.png", "in/b.png")
    assert restore(*words) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_second_weights_file_may_lie_in_the_home_folder(monkeypatch):
    put("in/a.png")
    Path("home").mkdir()
    write_network("home/sharp.pth", stage="gan")
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    assert restore("in", "-o", "out", "--blend", "~/sharp.pth", "0.5") == 0
    assert restore("in", "-o", "same", "--blend", "home/sharp.pth", "0.5") == 0
    assert Path("out/a.png").read_bytes() == Path("same/a.png").read_bytes()


def test_a_model_is_interpolated_with_its_sharper_one_by_name():
    put("in/a.png")
    sharper = registry()["sr_x4"].sharper
    ends = {"named": sharper, "given": str(locate(registry()[sharper]).path)}
    for folder, end in ends.items():
        assert main(["restore", "in", "-o", folder, "--model", "sr_x4", "--blend", end, "0.3"]) == 0
    assert main(["restore", "in", "-o", "plain", "--model", "sr_x4"]) == 0
    named, given, plain = (Path(folder, "a.png").read_bytes() for folder in ("named", "given", "plain"))
    assert named == given != plain


def test_masks_by_file_folder_and_colour(capsys):
    weights = write_network("fill.pth", task="inpaint")
    put("in/a.png", "in/b.png")
    mask = np.zeros((12, 10), np.uint8)
    mask[3:6, 2:7] = 255
    Path("masks").mkdir()
    cv2.imwrite("masks/a_mask.png", mask)
    cv2.imwrite("masks/b.png", np.where(mask, 200, 20).astype(np.uint8))
    assert restore("in", "-o", "out", "--mask", "masks", weights=weights) == 0
    assert "masks/b.png: 100.0% of the mask is grey; pixels from 50 % on" in capsys.readouterr().err
    for name in "ab":
        given, made = cv2.imread(f"in/{name}.png"), cv2.imread(f"out/{name}.png")
        assert np.array_equal(made[mask == 0], given[mask == 0])
        assert (made[mask > 0] != given[mask > 0]).any()
    painted = read_picture(Path("in/a.png").read_bytes(), where="a").colours.copy()
    painted[mask > 0] = (255, 0, 255)
    Path("painted.png").write_bytes(encode_png(painted))
    assert restore("painted.png", "-o", "by_colour", "--mask", "#ff00ff", weights=weights) == 0
    assert np.array_equal(cv2.imread("by_colour/painted.png"), cv2.imread("out/a.png"))
    cv2.imwrite("masks/b.png", mask[:-1])
    assert restore("in", "-o", "out2", "--mask", "masks", weights=weights) == 1
    assert "in/b.png: its mask masks/b.png is 11x10, expected 12x10" in capsys.readouterr().err
    assert files("out2") == ["a.png"]
    assert restore("in", "-o", "out3", weights=weights) == 1
    assert restore("in", "-o", "out3", "--mask", "masks") == 1
    assert "takes no mask" in capsys.readouterr().err


def test_samples_are_written_with_mean_and_map(capsys):
    put("in/a.png")
    assert restore("in", "-o", "out", "--samples", "3") == 0
    names = ["a.mean.png", "a.png.sensitivity.png", *(f"a.sample{number}.png" for number in (1, 2, 3))]
    assert files("out") == sorted(names)
    output = capsys.readouterr().err
    assert "sensitivity to the prior" in output
    assert "not its error" in output
    shown = cv2.imread("out/a.png.sensitivity.png", cv2.IMREAD_UNCHANGED)
    assert (shown.shape, shown.dtype, shown.max()) == ((48, 40), np.uint16, 65535)
    assert restore("in", "-o", "plain") == 0
    assert Path("plain/a.png").read_bytes() == Path("out/a.sample1.png").read_bytes()
    assert restore("in", "-o", "out", "--samples", "3") == 0
    assert "0 restored, 1 kept" in capsys.readouterr().out


def start(*words):
    """The command in a process of its own, forked so that torch is not imported again; says.txt holds what it says."""

    def run():
        with Path("says.txt").open("a") as file:
            sys.stderr = sys.stdout = file
            code = main(["restore", *words])
        os._exit(code)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_leaves_nothing_half_written(capsys, number):
    put(*(f"in/p{index:03d}.png" for index in range(60)), size=(40, 40))
    weights = write_network()
    child = start("in", "-o", "out", "-w", weights)
    while len(list(Path("out").glob("p*.png"))) < 3:
        assert child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == (130 if number == signal.SIGINT else -9)
    assert "Traceback" not in Path("says.txt").read_text()
    done = files("out")
    assert 3 <= len(done) < 60
    for name in done:
        if not name.startswith("."):
            assert cv2.imread(f"out/{name}").shape == (160, 160, 3)
    with Path("out/restored.jsonl").open("a") as file:
        file.write('{"output": "p05')  # as a kill in the middle of a line leaves it
    capsys.readouterr()
    assert restore("in", "-o", "out", weights=weights) == 0
    kept = int(capsys.readouterr().out.split(" restored, ")[1].split()[0])
    assert kept >= 3
    assert restore("in", "-o", "straight", weights=weights) == 0
    assert files("out") == files("straight")
    for name in files("straight"):
        assert Path("out", name).read_bytes() == Path("straight", name).read_bytes()
    for line in Path("straight/restored.jsonl").read_text().splitlines():
        assert json.loads(line)["settings"]["seed"] == 0


def test_two_processes_write_what_one_does():
    put(*(f"in/p{index}.png" for index in range(4)))
    weights = write_network()
    children = [start(*(f"in/p{index}.png" for index in part), "-o", "two", "-w", weights) for part in ((3, 0), (1, 2))]
    assert restore("in", "-o", "one", weights=weights) == 0
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert files("one") == files("two")
    for name in files("one"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_full_disk_ends_the_run_in_words(capsys, monkeypatch):
    put("in/a.png", "in/b.png")
    rename, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if str(target).endswith("b.png"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    assert restore("in", "-o", "out") == 1
    assert (
        "No space left on device; 1 restored so far; free disk space and run the same command"
        in capsys.readouterr().err
    )
    assert files("out") == ["a.png"]
    monkeypatch.undo()


def test_a_folder_that_cannot_be_written_is_named(capsys):
    put("in/a.png")
    Path("out").write_text("a file, no folder")
    assert restore("in", "-o", "out") == 1
    output = capsys.readouterr().err
    assert "out: File exists" in output or "Not a directory" in output
    assert "Traceback" not in output


def test_memory_narrows_the_strips_and_changes_no_byte(capsys):
    put("in/a.png", "in/b.png", size=(230, 60))
    assert restore("in", "-o", "out") == 0
    output = capsys.readouterr().err
    assert output.count("230x60 in strips of") == 1  # the second picture is like the first
    assert restore("in", "-o", "narrow", "--memory", "0.01") == 0
    output = capsys.readouterr().err
    assert output.count("230x60 in strips of 16 of 232 rows") == 2
    for name in ("a.png", "b.png"):
        assert Path("out", name).read_bytes() == Path("narrow", name).read_bytes()
    assert restore("in", "-o", "none", "--memory", "0.001") == 1
    output = capsys.readouterr().err
    assert "a.png: 230x60 pixels need about 9 MiB even in the narrowest strips" in output
    assert "use tiles (--tile-mode tiles), allow or free more memory, or split the image" in output
    tiles = ("--tile-mode", "prior", "--tile", "64")
    assert restore("in", "-o", "tiny", "--memory", "0.0001", *tiles) == 1
    assert "use tiles smaller than 64 pixels" in capsys.readouterr().err
    assert not files("none")
    assert restore("in", "-o", "none", "--memory", "0") == 1
    assert "--memory: expected more than 0 GiB, at most 1048576, got 0" in capsys.readouterr().err


def test_tiles_under_one_prior_from_the_command_line(capsys):
    put("in/a.png", size=(90, 75))
    assert restore("in/a.png", "-o", "exact/a.png") == 0
    tiles = ("--tile-mode", "prior", "--tile", "32", "--overlap", "8")
    assert restore("in/a.png", "-o", "tiles/a.png", *tiles) == 0
    assert "in tiles, each in strips of" in capsys.readouterr().err
    exact, tiled = (cv2.imread(f"{folder}/a.png").astype(int) for folder in ("exact", "tiles"))
    assert exact.shape == tiled.shape
    assert 0 < np.abs(exact - tiled).mean() < 40
    assert main(["restore", "in/a.png", "-o", "tiles", "-w", "net.pth"]) == 1  # made otherwise
    assert "overwrite" in capsys.readouterr().err


def test_two_formats_for_one_result_are_refused(tmp_path, capsys):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    given = [str(tmp_path / "a.png"), "-w", str(write_network()), "--format", "webp"]
    assert main(["restore", *given, "-o", str(tmp_path / "out.png")]) != 0
    assert "requests png, --format webp" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    assert main(["restore", *given, "-o", str(tmp_path / "out.webp")]) == 0
    assert (tmp_path / "out.webp").read_bytes()[8:12] == b"WEBP"


def test_a_format_that_is_not_written_is_no_name_of_a_folder(tmp_path, capsys):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    assert main(["restore", str(tmp_path / "a.png"), "-w", str(write_network()), "-o", str(tmp_path / "a.gif")]) != 0
    assert "cannot write gif" in capsys.readouterr().err
    assert not (tmp_path / "a.gif").exists()


def test_a_name_as_long_as_the_file_system_takes_is_restored(capsys):
    name = "n" * 251 + ".png"
    put(f"in/{name}")
    assert restore("in", "-o", "out") == 0
    assert files("out") == [name]
    assert restore("in", "-o", "out") == 0
    assert "1 kept" in capsys.readouterr().out
