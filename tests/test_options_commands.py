"""`diffir options check | reference | schema | list | copy`."""

import argparse
import json
from pathlib import Path

import pytest
import yaml
from options_cases import STAGE_1, TEST, changed

from diffir_sr.cli import main
from diffir_sr.errors import InputError
from diffir_sr.options.commands import add_options_parser
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.options.reference import render_reference


def _run(*arguments):
    parser = argparse.ArgumentParser()
    add_options_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["options", *map(str, arguments)])
    return args.run(args)


def _write(name, options):
    Path(name).write_text(yaml.safe_dump(options, sort_keys=False))
    return name


def test_check_is_content_with_right_files(capsys):
    assert _run("check", "--no-files", _write("a.yml", STAGE_1), _write("b.yml", TEST)) == 0
    assert capsys.readouterr().out == "a.yml: valid, for `basicsr train`\nb.yml: valid, for `basicsr test`\n"


def test_check_shows_the_problems_of_every_file(capsys):
    wrong = _write("a.yml", changed(STAGE_1, {"nam": 1, "train.total_iters": 2}))
    assert _run("check", "--no-files", wrong, "nowhere.yml", _write("b.yml", TEST)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.yml: 2 problems"
    assert "train.total_iters: unknown option" in lines[1]
    assert "nam: unknown option" in lines[2]
    assert lines[3].startswith("no such option file: nowhere.yml")
    assert lines[4] == "b.yml: valid, for `basicsr test`"


def test_check_shows_warnings_and_passes(capsys):
    assert _run("check", "--no-files", _write("a.yml", changed(TEST, {"val.window_size": 8}))) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("warning: a.yml:")


def test_check_asks_for_files_unless_the_option_forbids_it(capsys):
    assert _run("check", _write("a.yml", TEST)) == 1
    assert "no such file: net_g.pth" in capsys.readouterr().out


def test_check_accepts_the_recipes():
    assert _run("check", "--no-files", *sorted(recipes_folder().glob("*.yml"))) == 0


def test_reference_goes_to_the_terminal_or_a_file(capsys):
    assert _run("reference") == 0
    assert capsys.readouterr().out == render_reference()
    assert _run("reference", "-o", "options.md") == 0
    assert Path("options.md").read_text() == render_reference()


def test_schema_goes_to_the_terminal_or_a_file(capsys):
    assert _run("schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "diffir_sr option file"
    assert _run("schema", "-o", "schema.json") == 0
    assert json.loads(Path("schema.json").read_text())["title"] == "diffir_sr option file"


def test_a_folder_that_does_not_exist_is_reported():
    with pytest.raises(InputError, match="cannot write nowhere/options.md"):
        _run("reference", "-o", "nowhere/options.md")


def test_list_names_every_recipe_with_what_it_does(capsys):
    assert _run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: line for line in lines}
    assert "DiffIR stage 2, super-resolution x4" in named["train_DiffIRS2_x4"]
    assert set(named) >= {path.stem for path in recipes_folder().glob("*.yml")}


def test_copy_writes_recipes_that_can_be_loaded(capsys):
    assert _run("copy", "train_DiffIRS1_x2", "test_DiffIRS2_GAN_x4", "-o", "mine") == 0
    assert capsys.readouterr().out == "mine/train_DiffIRS1_x2.yml\nmine/test_DiffIRS2_GAN_x4.yml\n"
    assert _run("check", "--no-files", *Path("mine").glob("*.yml")) == 0


def test_a_command_is_needed():
    with pytest.raises(SystemExit):
        _run()


def test_findings_as_json(tmp_path, capsys):
    (tmp_path / "wrong.yml").write_text("name: x\nmodel_type: PlainModel\nscale: 4\nnetwork_g: {type: EDSQ}\nhue: 3\n")
    assert main(["options", "copy", "small/sr/train_S1", "-o", "mine"]) == 0
    capsys.readouterr()
    assert main(["options", "check", "wrong.yml", "mine/small/sr/train_S1.yml", "--no-files", "--json"]) == 1
    wrong, right = json.loads(capsys.readouterr().out)
    assert wrong["right"] is False
    assert {"file", "line", "option", "message"} == set(wrong["problems"][0])
    (unknown,) = [problem for problem in wrong["problems"] if problem["option"] == "hue"]
    assert (unknown["file"], unknown["line"]) == ("wrong.yml", 5)
    assert right["right"] is True
    assert right["command"] == "basicsr train"
    assert main(["options", "check", "absent.yml", "--json"]) == 1
    (absent,) = json.loads(capsys.readouterr().out)
    assert "absent.yml" in absent["problems"][0]["message"]
