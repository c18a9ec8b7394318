"""Which file is whose mask, what of it is the mask, and which files of a folder are restored."""

import logging
from pathlib import Path

import numpy as np
import pytest
from pictures import photo, write_network
from PIL import Image

from diffir_sr.cli import main
from diffir_sr.data.masks import binary
from diffir_sr.errors import InputError
from diffir_sr.files.images import read_picture
from diffir_sr.files.picture import Picture, encode_png
from diffir_sr.inference.files import plan_jobs
from diffir_sr.inference.inputs import find_mask, mask_for

HOLE = np.zeros((20, 17), np.uint8)
HOLE[5:12, 3:9] = 255


def put(name, image):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(name)


def restore(*words):
    return main(["restore", *words, "-w", write_network("I.pth", task="inpaint")])


@pytest.mark.parametrize("mask", ["p_mask.png", "p_mask001.png", "p_mask.PNG", "p_mask000.BMP"])
def test_a_picture_is_never_its_own_mask_and_masks_are_not_restored(mask, capsys):
    put("in/p.png", photo())
    put(f"in/{mask}", HOLE)
    assert restore("in", "-o", "out", "--mask", "in") == 0
    assert sorted(file.name for file in Path("out").iterdir()) == ["p.png", "restored.jsonl"]
    made = read_picture(Path("out/p.png").read_bytes(), where="made").colours
    assert np.array_equal(made[HOLE == 0], photo()[HOLE == 0])
    assert (made != photo()).any()
    assert "1 restored" in capsys.readouterr().out


def test_a_picture_without_a_mask_fails_alone(capsys):
    put("in/p.png", photo())
    put("in/q.png", photo(left=90))
    put("in/p_mask.png", HOLE)
    assert restore("in", "-o", "out", "--mask", "in") == 1
    output = capsys.readouterr()
    assert "q.png: no mask of this name" in output.err
    assert "1 restored, 1 failed" in output.out


def test_masks_of_a_folder_of_their_own_may_have_any_suffix():
    put("masks/p.BMP", HOLE)
    assert find_mask("masks", "p.png", Path("in/p.png")) == "masks/p.BMP"
    put("masks/p_mask002.png", HOLE)
    assert find_mask("masks", "p.png", Path("in/p.png")) == "masks/p_mask002.png"
    with pytest.raises(InputError, match="no mask of this name"):
        find_mask("masks", "pp.png", Path("in/pp.png"))


def test_alpha_is_the_mask_where_colours_are_uniform_and_only_there():
    white = np.full((20, 17, 3), 255, np.uint8)
    drawn = np.dstack([white, HOLE])
    found = mask_for(Picture(photo()), Image.fromarray(drawn), where="p")
    assert np.array_equal(found.missing, HOLE > 0)
    assert "its alpha is used as the mask" in found.notes[0]
    assert np.array_equal(binary(drawn), HOLE > 0)
    painted = np.dstack([np.repeat(HOLE[..., None], 3, axis=2), np.full_like(HOLE, 255)])
    found = mask_for(Picture(photo()), painted, where="p")
    assert np.array_equal(found.missing, HOLE > 0)
    assert found.notes == ()
    grey = np.dstack([HOLE, np.arange(HOLE.size, dtype=np.uint8).reshape(HOLE.shape)])
    assert np.array_equal(binary(grey), HOLE > 0)


def test_a_mask_that_covers_nearly_everything_is_reported():
    for mask, message in ((np.ones((20, 17), bool), "everything"), (HOLE * 0 + 255, "everything")):
        assert f"covers {message}" in mask_for(Picture(photo()), mask, where="p").notes[-1]
    most = np.ones((20, 17), bool)
    most[0, :9] = False
    assert "covers 97.4% of the image" in mask_for(Picture(photo()), most, where="p").notes[-1]
    assert mask_for(Picture(photo()), HOLE > 0, where="p").notes == ()


def test_folders_name_what_they_leave_out_and_read_more_than_they_write(caplog):
    put("in/a.png", photo())
    Path("in/b.jfif").write_bytes(Path("in/a.png").read_bytes())
    for form in ("gif", "avif"):
        Image.fromarray(photo()).save(f"in/c.{form}")
    for name in ("d.jxl", "e.psd", "notes.txt", ".hidden.jxl"):
        Path("in", name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        jobs = plan_jobs(["in"], "out")
    assert [job.target.name for job in jobs] == ["a.png", "b.jfif", "c.avif.png", "c.gif.png"]
    assert "2 files of unsupported kinds are left out: d.jxl, e.psd" in caplog.text


def test_a_file_of_any_name_is_read_if_its_content_is_a_picture():
    Path("upload").write_bytes(encode_png(photo()))
    assert [job.target.name for job in plan_jobs(["upload"], "out")] == ["upload.png"]
    Path("notes").write_text("nothing")
    with pytest.raises(InputError, match="neither an image nor a video by name or content"):
        plan_jobs(["notes"], "out")


def test_damage_is_accepted_where_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("DIFFIR_ACCEPT_DAMAGED", "0")
    put("in/p.jpg", photo(200, 200, top=0))
    whole = Path("in/p.jpg").read_bytes()
    Path("in/p.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    for words in (["restore", "in", "-o", "out", "-w", write_network(task="deblur")],):
        assert main(words) == 1
        assert "damaged or truncated" in capsys.readouterr().err
        assert main([*words, "--accept-damaged"]) == 0
        assert "which was accepted" in capsys.readouterr().err
    assert main(["prepare", "subimages", "in", "-o", "cut", "--size", "64", "--step", "64", "--jobs", "1"]) == 0
    monkeypatch.setenv("DIFFIR_ACCEPT_DAMAGED", "0")
    with pytest.raises(InputError, match="damaged or truncated"):
        read_picture(Path("in/p.jpg").read_bytes(), where="p")
