"""What the documents tell a reader to type exists: commands parse, option files load, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from diffir_sr.cli import basicsr_parser, diffir_parser
from diffir_sr.options import load_options
from diffir_sr.quickstart.commands import data_commands, stage_commands

REPO = Path(__file__).resolve().parents[1]
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "datasets/README.md",
    "experiments/README.md",
    "examples/plugin/README.md",
    "docs/restore.md",
    "docs/scale.md",
    "docs/training.md",
    "docs/models.md",
    "docs/bench.md",
    "docs/tasks.md",
    "docs/experiments.md",
    "docs/tutorials.md",
    "docs/faq.md",
    "docs/design.md",
)
DOCUMENTS = [REPO / name for name in NAMES]


def commands(document):
    """The command lines in the code blocks of a document, with continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document.read_text(), flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(diffir|basicsr|torchrun|make) ", line)]


COMMANDS = [(document.relative_to(REPO).as_posix(), words) for document in DOCUMENTS for words in commands(document)]


@pytest.mark.parametrize(
    ("document", "words"), COMMANDS, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else value
)
def test_every_command_is_one_that_exists(document, words):
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), flags=re.M)
        assert [word for word in words[1:] if "=" not in word][0] in targets
        return
    if words[0] == "torchrun":
        words = words[words.index("basicsr") :]
    parser = basicsr_parser() if words[0] == "basicsr" else diffir_parser()
    args = parser.parse_args(words[1:])
    if words[0] == "basicsr" and Path(args.opt).parts[0] == "options":
        assert load_options(REPO / args.opt, is_train=words[1] == "train", check_files=False).warnings == []


def test_there_are_commands_in_the_documents():
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPO).as_posix())
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_tutorial_is_what_the_quick_start_runs():
    typed = [" ".join(words) for words in commands(REPO / "README.md")]
    options = [" ".join(shlex.split(command)) for command in data_commands()]
    assert [command for command in options if command not in typed] == []
    named = {Path(command.split()[3]).name for command in stage_commands(0) if " train " in command}
    assert named == {Path(command.split()[3]).name for command in typed if "options/small/sr/train" in command}
