"""Files that other programs read: each parses, and what it names exists."""

import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffir_sr.cli import diffir_parser, main
from diffir_sr.version import __version__

REPO = Path(__file__).resolve().parents[1]
SETUP = ast.parse((REPO / "setup.py").read_text())
TARGETS = set(re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), flags=re.M))


def setup_argument(name):
    found = [node.value for node in ast.walk(SETUP) if isinstance(node, ast.keyword) and node.arg == name]
    return ast.literal_eval(found[0])


def read(name):
    return yaml.safe_load((REPO / name).read_text())


def test_the_workflow_runs_targets_of_the_makefile_on_supported_pythons():
    workflow = read(".github/workflows/test.yml")
    assert {"push", "pull_request"} <= workflow[True].keys()  # YAML 1.1 reads the key `on` as true
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [step["run"].split() for step in steps if "run" in step]
    assert {"check", "test"} == {target for _, target in commands} <= TARGETS
    assert {program for program, _ in commands} == {"make"}
    pythons = {workflow["jobs"]["check"]["steps"][1]["with"]["python-version"]}
    pythons |= set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"])
    declared = {name.rpartition(" ")[2] for name in setup_argument("classifiers") if ":: 3." in name}
    assert pythons == declared


def test_hooks_are_tools_that_the_makefile_runs():
    lint = (REPO / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    for hook in hooks:
        program, subcommand = hook["entry"].split()[:2]
        assert f"$(BIN)/{Path(program).name} {subcommand}" in lint
        assert Path(program).parent.as_posix() == ".venv/bin"
    assert len(hooks) == 2


def test_the_citation_is_of_this_version_and_licence():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (__version__, setup_argument("license"))
    assert all(reference["authors"] and reference["title"] for reference in citation["references"])


@pytest.mark.parametrize("path", sorted((REPO / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_issue_forms_have_fields_and_name_commands_that_exist(path, capsys):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names) > 0
    for words in re.findall(r"`diffir ([a-z ]+?)(?: [A-Z]+)?`", path.read_text()):
        with pytest.raises(SystemExit, match="^0$"):
            main([*words.split(), "--help"])
        assert f"diffir {words}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_image_is_built_from_files_that_exist_and_runs_as_a_user(name):
    text = (REPO / name).read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    patterns = (REPO / ".dockerignore").read_text().split()
    assert patterns[0] == "*"
    for word, rest in lines:
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (REPO / source).exists(), source
                kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
                assert any(fnmatch.fnmatch(source.split("/")[0], pattern) for pattern in kept), source
    assert [rest for word, rest in lines if word == "USER"][-1] not in ("root", "0")
    (entry,) = [json.loads(rest) for word, rest in lines if word == "ENTRYPOINT"]
    assert f"{entry[0]} = diffir_sr.cli:main" in setup_argument("entry_points")["console_scripts"]
    (extras,) = re.findall(r"\.whl\)\[([a-z,]+)\]", text)
    assert set(extras.split(",")) <= setup_argument("extras_require").keys()
    installed = next(index for index, line in enumerate(lines) if "[video" in line[1])
    assert any(word == "USER" for word, _ in lines[installed:])
    ports = {rest for word, rest in lines if word == "EXPOSE"}
    for words in re.findall(r"^#   docker run (.+)$", (REPO / name).read_text(), flags=re.M):
        image = "diffir_sr:cuda" if name.endswith("cuda") else "diffir_sr"
        typed = words.partition(f" {image} ")[2].split()
        diffir_parser().parse_args(typed)  # raises SystemExit for what does not exist
        assert ("--gpus all" in words) == name.endswith("cuda")
        assert set(re.findall(r"-p [\d.]+:\d+:(\d+)", words)) <= ports


def test_the_images_differ_in_their_device_alone():
    own = re.compile(r"#|RUN pip install (torch |\"\$\(ls)|ENV NVIDIA_")
    steps = [
        [line for line in (REPO / name).read_text().splitlines() if not own.match(line)]
        for name in ("Dockerfile", "Dockerfile.cuda")
    ]
    assert steps[0] == steps[1]


NOTEBOOK = json.loads((REPO / "examples/first_steps.ipynb").read_text())


def test_the_notebook_is_one_and_holds_no_output():
    assert NOTEBOOK["nbformat"] == 4
    assert NOTEBOOK["metadata"]["kernelspec"]["language"] == "python"
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        kept = {"outputs": cell.get("outputs"), "execution_count": cell.get("execution_count")}
        assert kept == (
            {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else dict.fromkeys(kept)
        )


def test_every_cell_of_the_notebook_runs(tmp_path):
    """In a process of its own, in the order of the notebook, as a kernel does: no cell has magic commands."""
    pytest.importorskip("skimage", reason="needs the extra quickstart")
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join(cells))
    folder = tmp_path / "examples"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, tmp_path / "cells.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPO), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"sr_x4: ([\d.]+) dB", done.stdout)[1]) > float(
        re.search(r"bicubic: ([\d.]+) dB", done.stdout)[1]
    )
    assert list((folder / "restored").glob("*.png"))


def test_the_notebook_installs_what_the_repository_has(monkeypatch):
    """Its first cell on a machine without the package: the commands are recorded, not run."""
    ran = []
    monkeypatch.chdir(REPO / "examples")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(words))
    exec("".join(next(cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")["source"]), {})
    (script, install) = ran
    assert Path(script[-1]).samefile(REPO / "scripts/install_basicsr.py")
    place, extras = re.fullmatch(r"(.+)\[([a-z,]+)\]", install[-1]).groups()
    assert Path(place).samefile(REPO)
    assert set(extras.split(",")) <= setup_argument("extras_require").keys()
