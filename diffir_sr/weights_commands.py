"""Parsers of `diffir models`, `diffir weights` and `diffir describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffir_sr.parsing import deferred

_ACTIONS = "diffir_sr.weights_actions"


def add_models_parser(commands: Any) -> None:
    """Add `diffir models`."""
    parser = commands.add_parser("models", help="list, show, fetch and verify weights by name")
    actions = parser.add_subparsers(required=True, metavar="list | show | fetch | verify")
    each = (
        ("list", "list_models", None, "what is known by name, and whether it is here"),
        ("show", "show", "one", "everything that is known of one entry, and where it is looked for"),
        ("fetch", "fetch", "one", "make sure that the file is here: find it, or download it"),
        ("verify", "verify", "any", "compare the files that are here with their checksums and entries"),
    )
    for name, function, names, what in each:
        action = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if names:
            action.add_argument("name", metavar="NAME", nargs=None if names == "one" else "?")
        action.add_argument("--json", action="store_true", help="for programs, on standard output")
        action.set_defaults(run=deferred(f"{_ACTIONS}:{function}"))


def add_weights_parser(commands: Any) -> None:
    """Add `diffir weights`: converting, and the older name of `diffir models fetch`."""
    what = "convert AutoDIR's released checkpoint; the older name of 'diffir models fetch'"
    parser = commands.add_parser("weights", help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("name", metavar="convert | NAME", help="convert CHECKPOINT -o FOLDER, or a name to fetch")
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="autodir.ckpt; no code is run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="convert: the folder; VGG: also write its convolutions there"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="convert: CLIP's bpe_simple_vocab_16e6.txt.gz (in the package open_clip_torch) or tokenizer.json, which "
        "free prompts need",
    )
    parser.set_defaults(run=deferred(f"{_ACTIONS}:older_name"), json=False)


def add_describe_parser(commands: Any) -> None:
    """Add `diffir describe`."""
    parser = commands.add_parser("describe", help="say what a weights file is")
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="as JSON, with the whole model card")
    parser.set_defaults(run=deferred(f"{_ACTIONS}:describe"))
