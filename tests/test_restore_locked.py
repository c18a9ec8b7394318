"""`diffir restore` where folders and records may not be read: told in a sentence, the others go on, results stay."""

import errno
import os
from pathlib import Path

import pytest
from pictures import write_network
from test_restore_command import files, put, restore

from diffir_sr.inference.files import NAME


def lock(monkeypatch, folder):
    """Folders called `folder` cannot be listed (root may list any, so that permissions would not do)."""
    scandir = os.scandir

    def refusing(path="."):
        if Path(path).name == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)


@pytest.mark.parametrize("words", [[], ["--format", "jpg"]])
def test_a_locked_folder_is_reported_and_the_others_go_on(monkeypatch, capsys, words):
    put("in/a.png", "in/locked/b.png", "in/sub/c.png")
    lock(monkeypatch, "locked")
    assert restore("in", "-o", "out", *words) == 1
    output = capsys.readouterr()
    assert "failed: in/locked: cannot be read" in output.err
    assert "2 restored, 1 failed" in output.out
    assert len(files("out")) == 2


def test_a_locked_input_is_reported(monkeypatch, capsys):
    put("locked/b.png")
    lock(monkeypatch, "locked")
    assert restore("locked", "-o", "out") == 1
    assert "error: locked: cannot be accessed (Permission denied); check its permissions" in capsys.readouterr().err


def test_a_picture_in_a_locked_folder_is_reported(monkeypatch, capsys):
    put("in/b.png")
    weights = write_network()

    def refuse(self, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert restore("in/b.png", "-o", "out", weights=weights) == 1
    assert "in/b.png: cannot be accessed (Permission denied)" in capsys.readouterr().err


def test_a_record_that_is_no_text_stops_the_run_and_keeps_the_results(capsys):
    put("in/a.png")
    assert restore("in", "-o", "out") == 0
    before = Path("out/a.png").read_bytes()
    Path("out", NAME).write_bytes(b"\xff\xfe\x00")
    assert restore("in", "-o", "out", "--overwrite") == 1
    assert f"out/{NAME}: the journal of restored files cannot be read" in capsys.readouterr().err
    assert Path("out/a.png").read_bytes() == before
    assert Path("out", NAME).read_bytes() == b"\xff\xfe\x00"


@pytest.mark.parametrize("line", ['{"output": "a.png"}', "3", '{"output": 3, "sha": 1, "source": 2, "settings": 4}'])
def test_an_odd_line_of_the_record_counts_as_none(capsys, line):
    put("in/a.png")
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    Path("out", NAME).write_text(line)
    assert restore("in", "-o", "out") == 1
    assert "a.png exists and was not made by this run" in capsys.readouterr().err
    assert Path("out/a.png").read_bytes() == b"mine"
