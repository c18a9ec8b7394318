"""`diffir options`: check files, print the reference or the JSON schema, list and copy recipes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffir_sr.errors import OptionError


def add_options_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `diffir options` and its commands; each sets `run`, from parsed arguments to an exit code."""
    about = "check option files, show the available options, copy recipes"
    commands = subparsers.add_parser("options", help=about, description=about).add_subparsers(
        required=True, metavar="COMMAND"
    )
    check = commands.add_parser("check", help="check option files without running them")
    check.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="option file; checked as a training if it has datasets.train, otherwise as a test",
    )
    check.add_argument("--no-files", action="store_true", help="do not check whether weights and data exist")
    check.add_argument("--json", action="store_true", help="print the findings of each file, with their lines, as JSON")
    check.set_defaults(run=_check)
    reference = commands.add_parser("reference", help="print the reference of all options (Markdown)")
    reference.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here instead of to the terminal")
    reference.set_defaults(run=_reference)
    schema = commands.add_parser("schema", help="print a JSON schema, for completion in editors")
    schema.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here instead of to the terminal")
    schema.set_defaults(run=_schema)
    listing = commands.add_parser("list", help="list the recipes included in the package")
    listing.set_defaults(run=_list)
    copy = commands.add_parser("copy", help="copy recipes into a folder, to edit them")
    copy.add_argument("names", nargs="+", metavar="NAME", help="name from `diffir options list`")
    copy.add_argument("-o", "--output", type=Path, default=Path("options"), metavar="DIR", help="default: options")
    copy.set_defaults(run=_copy)


def _check(args: argparse.Namespace) -> int:
    from diffir_sr.plugins import load_plugins

    load_plugins()
    checked = [_checked(file, check_files=not args.no_files) for file in args.files]
    if args.json:
        _say(json.dumps(checked, indent=2, ensure_ascii=False))
    else:
        for result in checked:
            _tell(result)
    return 0 if all(result["right"] for result in checked) else 1


def _checked(file: str, *, check_files: bool) -> dict[str, Any]:
    """The findings in one file, as values for JSON; `text` is the readable form of its problems."""
    from diffir_sr.options.check import OptionProblems
    from diffir_sr.options.load import load_options
    from diffir_sr.options.source import read_source

    found: dict[str, Any] = {"file": file, "right": False, "command": None, "problems": [], "warnings": []}
    try:
        datasets = read_source(file).values.get("datasets")
        is_train = isinstance(datasets, dict) and "train" in datasets
        found["command"] = f"basicsr {'train' if is_train else 'test'}"
        loaded = load_options(file, is_train=is_train, check_files=check_files)
    except OptionProblems as error:
        return found | {"problems": [asdict(one) for one in error.findings], "text": str(error)}
    except OptionError as error:  # the file cannot be read at all
        return found | {
            "problems": [{"file": file, "line": 0, "option": "", "message": str(error)}],
            "text": str(error),
        }
    return found | {"right": True, "warnings": [asdict(one) for one in loaded.findings], "text": ""}


def _tell(result: dict[str, Any]) -> None:
    from diffir_sr.options.check import Finding

    if result["right"]:
        for warning in result["warnings"]:
            _say(f"warning: {Finding(**warning)}")
        _say(f"{result['file']}: valid, for `{result['command']}`")
    else:
        _say(result["text"])


def _reference(args: argparse.Namespace) -> int:
    from diffir_sr.options.reference import render_reference

    return _give(render_reference(), args.output)


def _schema(args: argparse.Namespace) -> int:
    from diffir_sr.options.reference import json_schema

    return _give(json.dumps(json_schema(), indent=2) + "\n", args.output)


def _give(text: str, output: Path | None) -> int:
    if output is None:
        sys.stdout.write(text)
    else:
        from diffir_sr.options.recipes import write_text

        write_text(output, text)
    return 0


def _list(args: argparse.Namespace) -> int:
    from diffir_sr.options.recipes import recipe_names, recipes_folder, summary

    folder = recipes_folder()
    names = recipe_names(folder)
    width = max(map(len, names))
    for name in names:
        _say(f"{name:{width}}  {summary(folder / f'{name}.yml')}".rstrip())
    return 0


def _copy(args: argparse.Namespace) -> int:
    from diffir_sr.options.recipes import copy_recipes

    for path in copy_recipes(args.names, to=args.output):
        _say(f"{path}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
