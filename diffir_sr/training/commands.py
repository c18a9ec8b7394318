"""`diffir plan`, `diffir recipe` and `diffir report`: before, during and after trainings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError


def add_plan_parser(commands: Any) -> None:
    """Add `diffir plan`."""
    what = "tell what a training will take of time, memory and disk, and what is missing"
    parser = commands.add_parser(
        "plan",
        help=what,
        description=what[0].upper() + what[1:] + ", on this machine. Memory is found on shapes; a few steps, batches "
        "and pictures are measured. Nothing is written.",
    )
    parser.add_argument(
        "-opt", "--opt", nargs="+", type=Path, required=True, metavar="FILE", help="option files, or a recipe"
    )
    parser.add_argument("--json", action="store_true", help="for programs: the same as a list of JSON objects")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options of all files"
    )
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    import json
    import sys
    from dataclasses import asdict

    from diffir_sr.plugins import load_plugins
    from diffir_sr.training.plan import as_text, plan_file

    load_plugins()
    plans = []
    for file in args.opt:
        for plan in plan_file(file, args.force_yml):
            plans.append(asdict(plan))
            if not args.json:
                sys.stdout.write(as_text(plan))
                sys.stdout.flush()
    if args.json:
        sys.stdout.write(json.dumps(plans, indent=2, ensure_ascii=False) + "\n")
    elif len(plans) > 1 and all(plan["hours"] is not None for plan in plans):
        sys.stdout.write(f"in all {sum(plan['hours'] for plan in plans):.2f} hours\n")
    return 0


def add_recipe_parser(commands: Any) -> None:
    """Add `diffir recipe`."""
    what = "train the stages of a recipe in order, and resume after an interruption"
    parser = commands.add_parser(
        "recipe",
        help=what,
        description="Checks all stages of a recipe file (options, data, networks, disk), then runs them in order, each "
        "with the weights of those before it. The same command goes on after a stop, a kill or a failure.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="recipe, such as options/small/sr/recipe.yml")
    parser.add_argument("--dry-run", action="store_true", help="check all stages and print their commands")
    parser.add_argument(
        "--restart", nargs="?", const="", metavar="STAGE", help="do STAGE (default: the first) and all after it anew"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="go on with trainings of these names that this recipe did not begin"
    )
    parser.add_argument("--nproc_per_node", type=int, default=1, metavar="N", help="processes of torchrun (default 1)")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options of all trainings"
    )
    parser.set_defaults(run=_recipe)


def _recipe(args: argparse.Namespace) -> int:
    import shlex
    import sys

    from diffir_sr.plugins import load_plugins
    from diffir_sr.training.recipe import check_recipe, read_recipe, run_recipe

    if args.nproc_per_node < 1:
        raise InputError(f"--nproc_per_node: expected 1 or more, got {args.nproc_per_node}")
    load_plugins()
    recipe = read_recipe(args.file, args.force_yml)
    check_recipe(recipe)
    if args.dry_run:
        sys.stdout.write("".join(f"{shlex.join(stage.words())}\n" for stage in recipe.stages))
        return 0
    restart = recipe.stages[0].name if args.restart == "" else args.restart
    return run_recipe(recipe, restart=restart, adopt=args.adopt, processes=args.nproc_per_node)


def add_report_parser(commands: Any) -> None:
    """Add `diffir report`."""
    what = "write an HTML page about a training: curves, pictures over time, worst pictures, cost"
    parser = commands.add_parser(
        "report",
        help=what,
        description=what[0].upper() + what[1:] + ". One file that needs nothing from outside. A training writes it by "
        "itself with logger.report: true.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the training, such as experiments/NAME")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: DIR/report.html")
    parser.add_argument(
        "--pictures", type=int, default=4, metavar="N", help="how many of the worst of each set are shown (default 4)"
    )
    parser.add_argument(
        "--no-restore", action="store_true", help="show pictures that validation saved alone, restore none now"
    )
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    import sys

    from diffir_sr.plugins import load_plugins
    from diffir_sr.training.report import write_run_report

    if args.pictures < 0:
        raise InputError(f"--pictures: expected 0 or more, got {args.pictures}")
    load_plugins()
    output = args.output or args.folder / "report.html"
    for line in write_run_report(args.folder, output, pictures=args.pictures, restore=not args.no_restore):
        sys.stderr.write(f"{line}\n")
    sys.stdout.write(f"{output}\n")
    return 0
