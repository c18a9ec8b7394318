"""`diffir prepare degrade` and `masks`: what they write is a function of seed and name, and told in lists."""

import hashlib
import json
import subprocess
import zlib

import numpy as np
import pytest
import skimage.data
import torch
from test_training_tasks import real
from toy import train_options, write_options

from diffir_sr.cli import main
from diffir_sr.data.arrays import to_tensor
from diffir_sr.data.degradation import Degradation, blur_kernel, final_kernel
from diffir_sr.data.masks import evaluation_mask
from diffir_sr.data.sources import read_manifest
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.degrade import degraded, recipe


@pytest.fixture
def photos(tmp_path):
    for name, image in {
        "a/astronaut": skimage.data.astronaut()[:97, :130],
        "chelsea": skimage.data.chelsea()[:100, :122],
        "camera": skimage.data.camera()[:100, :100, None],
        "deep": skimage.data.coffee()[:90, :95].astype(np.uint16) * 257,
    }.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.ascontiguousarray(image)))
    return tmp_path / "photos"


def picture(path):
    return decode(path.read_bytes(), where=str(path))


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def run(*arguments):
    return main(["prepare", *map(str, arguments)])


def test_degraded_images_follow_from_seed_and_name_alone(photos, tmp_path):
    assert run("degrade", photos, "-o", tmp_path / "one", "--scale", 2, "--jobs", 1, "--crop-gt", tmp_path / "gt") == 0
    (photos / "chelsea.png").rename(photos.parent / "chelsea.png")
    assert run("degrade", photos, "-o", tmp_path / "two", "--scale", 2, "--jobs", 2) == 0
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert set(one) - set(two) == {"chelsea.png"}
    assert all(one[name] == two[name] for name in two)
    assert run("degrade", photos, "-o", tmp_path / "three", "--scale", 2, "--jobs", 1, "--seed", 1) == 0
    assert all(tree(tmp_path / "three")[name] != two[name] for name in two)
    lq, gt = picture(tmp_path / "one" / "a" / "astronaut.png"), picture(tmp_path / "gt" / "a" / "astronaut.png")
    assert lq.shape == (48, 65, 3)
    assert np.array_equal(gt, skimage.data.astronaut()[:96, :130])


def test_the_command_degrades_as_training_does(photos, tmp_path):
    given = recipe({}, {}, scale=4, seed=0)
    image = skimage.data.chelsea()[:100, :120]

    made = degraded(image, given, name="chelsea")
    assert made.shape == (25, 30, 3)
    assert run("degrade", photos, "-o", tmp_path / "lq", "--jobs", 1) == 0
    assert np.array_equal(picture(tmp_path / "lq" / "chelsea.png"), made)
    rng = np.random.default_rng((0, zlib.crc32(b"degrade/chelsea")))
    kernels = [blur_kernel(rng, ranges) for ranges in given.kernels] + [
        final_kernel(rng, final_sinc_prob=given.final_sinc_prob)
    ]
    named = zip(("kernel1", "kernel2", "sinc_kernel"), (torch.from_numpy(one)[None] for one in kernels), strict=True)
    trained_on = Degradation(scale=4)(to_tensor(image)[None], **dict(named), rng=rng)
    assert torch.equal(to_tensor(made)[None], trained_on)


def test_the_option_file_decides(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = real("s1", top=dict(resize_range=[1, 1], resize_range2=[1, 1], jpeg_range=[95, 95], jpeg_range2=[95, 95]))
    quiet = dict(noise_range=[0, 0], noise_range2=[0, 0], gaussian_noise_prob=1, gaussian_noise_prob2=1)
    options |= {**quiet, "second_blur_prob": 0.0}
    train = options["datasets"]["train"]
    train |= dict(blur_sigma=[0.2, 0.2], sinc_prob=0, kernel_list=["iso"], kernel_prob=[1], final_sinc_prob=0)
    file = write_options(options)
    for scale, least in ((1, 30), (None, 20)):
        chosen = ["--scale", scale] if scale else []
        assert run("degrade", photos, "-o", f"lq{scale}", "--opt", file, "--jobs", 1, *chosen) == 0
        lq, gt = picture(tmp_path / f"lq{scale}" / "chelsea.png"), skimage.data.chelsea()[:100, :120]
        step = gt.shape[0] // lq.shape[0]
        assert step == (scale or 4)
        error = lq[:, : 120 // step].astype(float) - gt.reshape(100 // step, step, 120 // step, step, 3).mean((1, 3))
        assert 10 * np.log10(255**2 / np.square(error).mean()) > least


def test_manifest_and_sums_tell_what_is_there(photos, tmp_path):
    assert run("degrade", photos, "-o", tmp_path / "lq", "--jobs", 1) == 0
    found = read_manifest(tmp_path / "lq.manifest.jsonl")
    assert [entry.name for entry in found.entries] == ["a/astronaut.png", "camera.png", "chelsea.png", "deep.png"]
    assert found.parameters["scale"] == 4
    for entry in found.entries:
        data = (tmp_path / "lq" / entry.name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert run("masks", photos, "-o", tmp_path / "m", "--kind", "thin", "--jobs", 1) == 0
    done = subprocess.run(["sha256sum", "-c", "../thin_256.sha256"], cwd=tmp_path / "m" / "thin_256")
    assert done.returncode == 0
    assert (tmp_path / "m" / "thin_256.sheet.png").is_file()
    assert (tmp_path / "lq.sheet.png").is_file()


def test_an_interrupted_job_ends_as_an_unbroken_one(photos, tmp_path):
    for folder in ("whole", "broken"):
        assert run("masks", photos, "-o", tmp_path / folder, "--jobs", 1, "--images-out", tmp_path / f"{folder}i") == 0
    expected = tree(tmp_path / "whole"), (tmp_path / "whole" / "thin_256.manifest.jsonl").read_bytes()
    (tmp_path / "broken" / "thin_256" / "chelsea.png").unlink()
    (tmp_path / "broken" / "thin_256.manifest.jsonl").unlink()
    assert run("masks", photos, "-o", tmp_path / "broken", "--jobs", 2, "--images-out", tmp_path / "brokeni") == 0
    assert (tree(tmp_path / "broken"), (tmp_path / "broken" / "thin_256.manifest.jsonl").read_bytes()) == expected
    assert tree(tmp_path / "brokeni") == tree(tmp_path / "wholei")


def test_other_parameters_do_not_mix_into_a_folder(photos, tmp_path, capsys):
    assert run("degrade", photos, "-o", tmp_path / "lq", "--jobs", 1) == 0
    before = tree(tmp_path / "lq")
    assert run("degrade", photos, "-o", tmp_path / "lq", "--jobs", 1, "--seed", 5) == 1
    assert "contains images made with other parameters (seed 0, now 5)" in capsys.readouterr().err
    assert tree(tmp_path / "lq") == before
    assert run("degrade", photos, "-o", tmp_path / "lq", "--jobs", 1, "--seed", 5, "--overwrite") == 0
    assert tree(tmp_path / "lq") != before


def test_masks_are_those_of_the_evaluation_and_counted(photos, tmp_path, capsys):
    assert run("masks", "--count", 6, "-o", tmp_path / "m", "--kind", "medium", "thick", "--seed", 2, "--jobs", 1) == 0
    output = capsys.readouterr().out
    for kind in ("medium", "thick"):
        shares = []
        for index in range(6):
            mask = picture(tmp_path / "m" / f"{kind}_256" / f"{index:06d}.png")
            expected = evaluation_mask(kind, size=256, seed=2, name=f"{index:06d}")
            assert np.array_equal(mask[..., 0], expected * 255)
            shares.append(100 * expected.mean())
        assert f"{kind}_256: 6 masks (6 made, 0 kept, " in output
        assert f"missing {np.mean(shares):.1f} % on average ({min(shares):.1f} to {max(shares):.1f})" in output
    assert run("masks", photos, "--count", 3, "-o", tmp_path / "n") == 1
    assert "either a folder of images or --count" in capsys.readouterr().err


def test_squares_belong_to_their_masks(photos, tmp_path):
    arguments = ["--size", 512, "--kind", "thin", "--images-out", tmp_path / "squares", "--jobs", 1]
    assert run("masks", photos, "-o", tmp_path / "m", *arguments) == 0
    squares = tree(tmp_path / "squares" / "512")
    assert set(squares) == set(tree(tmp_path / "m" / "thin_512"))
    assert all(picture(tmp_path / "squares" / "512" / name).shape[:2] == (512, 512) for name in squares)


def test_a_damaged_image_is_reported_and_the_others_are_made(photos, tmp_path, capsys):
    (photos / "chelsea.png").write_bytes((photos / "chelsea.png").read_bytes()[:500])
    assert run("degrade", photos, "-o", tmp_path / "lq", "--jobs", 2) == 1
    assert "1 of 4 images failed" in (output := capsys.readouterr().err)
    assert "chelsea.png: damaged or truncated" in output
    assert len(tree(tmp_path / "lq")) == 3
    assert not (tmp_path / "lq.manifest.jsonl").exists()


def test_a_dry_run_writes_nothing(photos, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run("degrade", photos, "-o", tmp_path / "lq", "--dry-run") == 0
    assert run("masks", photos, "-o", tmp_path / "m", "--dry-run") == 0
    assert "would degrade 4 images, x1/4" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_only_files_that_degrade_are_taken(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write_options(train_options("s1"))
    assert run("degrade", photos, "-o", "lq", "--opt", file) == 1
    assert "datasets.train is a PairedDataset; only a RealESRGANDataset is degraded" in capsys.readouterr().err


def test_the_manifest_is_plain_json_lines(photos, tmp_path):
    assert run("masks", photos, "-o", tmp_path / "m", "--kind", "thin", "--jobs", 1) == 0
    lines = [json.loads(line) for line in (tmp_path / "m" / "thin_256.manifest.jsonl").read_text().splitlines()]
    assert lines[0]["diffir_manifest"] == 1
    assert lines[0]["count"] == len(lines) - 1 == 4
    assert lines[1].keys() == {"name", "from", "size", "bytes", "sha256"}
