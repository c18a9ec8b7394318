"""Videos by `diffir restore` and `Restorer`: every frame once with its time, colours, tracks, damage, going on."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import film, pieces, shown, times, write_small

from diffir_sr import load_restorer
from diffir_sr.cli import main

LOSSLESS = ("--quality", "100")


def restore(*words, weights=None):
    return main(["restore", *words, "-w", weights or write_small("net.safetensors")])


def files(folder):
    found = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "restored.jsonl")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def psnr(one, other):
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


# Frames


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_without_loss_every_frame_is_what_the_picture_of_it_becomes(scale):
    weights = write_small("net.safetensors", scale=scale)
    film("in.mkv", codec="ffv1", form="bgr0")
    assert restore("in.mkv", "-o", "out", *LOSSLESS, weights=weights) == 0
    alone = load_restorer(weights)(pieces(8))
    made = shown("out/in.mkv")
    assert len(made) == 8
    for one, other in zip(made, alone, strict=True):
        assert np.array_equal(one, other)
    assert files("out") == ["in.mkv"]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "mkv", "webm", "avi", "ts", "m2ts", "flv", "3gp"])
def test_every_container_gives_the_frames_within_the_codecs_loss(capsys, suffix):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    film(f"in.{suffix}", 12, codec=codec, time_base=Fraction(1, 10), rate=10, options={"b": "2000000"})
    weights = write_small("net.safetensors", scale=2)
    assert restore(f"in.{suffix}", "-o", "out", weights=weights) == 0, capsys.readouterr().err
    assert "left out" not in capsys.readouterr().err
    before, after = times(f"in.{suffix}"), times(f"out/in.{suffix}")
    assert len(after) == 12
    assert before == after
    for one, other in zip(shown(f"out/in.{suffix}"), load_restorer(weights)(shown(f"in.{suffix}")), strict=True):
        assert psnr(one, other) > 30


def test_containers_that_are_not_written_become_matroska(capsys):
    film("in.wmv", codec="wmv2")
    Path("folder").mkdir()
    Path("in.wmv").rename("folder/in.wmv")
    assert restore("folder", "-o", "out") == 0
    assert files("out") == ["in.wmv.mkv"]
    assert restore("folder", "-o", "out.wmv") == 1
    assert "-o out.wmv: wmv is not written; end with one of .mp4" in capsys.readouterr().err
    assert len(shown("out/in.wmv.mkv")) == 8
