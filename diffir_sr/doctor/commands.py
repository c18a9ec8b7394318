"""`diffir doctor data | env`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.files.processes import available_cpus
from diffir_sr.parsing import add_accept_damaged

if TYPE_CHECKING:
    from diffir_sr.doctor.targets import ExaminedSet, ExaminedSets

_ROLES = ("lq", "gt", "mask")


def add_doctor_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir doctor data` and `diffir doctor env`; each sets `run`, from parsed arguments to an exit code."""
    parser = commands.add_parser("doctor", help="check data or this installation for problems")
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    data = kinds.add_parser(
        "data",
        help="decode and check every image of an option file, of folders, LMDBs or shards",
        description="Decode and check every image. Exit code: 0 for nothing or notes, 3 for warnings, 1 for errors.",
    )
    data.add_argument("target", nargs="*", help="option file (.yml), or folders, LMDBs or shards of images")
    data.add_argument("--lq", metavar="DIR", help="degraded images, partners of those in --gt")
    data.add_argument("--gt", metavar="DIR", help="ground truth")
    data.add_argument("--mask", metavar="DIR", help="masks, partners of images in --gt with the same names")
    data.add_argument(
        "--against",
        metavar="DIR",
        action="append",
        default=[],
        help="test images, which must not be in the training data",
    )
    data.add_argument(
        "--scale", type=int, help="size of the ground truth relative to the degraded image (default: option file, or 1)"
    )
    data.add_argument(
        "--template",
        default="{}",
        metavar="{}x4",
        help="name of a degraded image, with {} for the name of its ground truth (default {})",
    )
    data.add_argument("--gt-size", type=int, metavar="PX", help="side of training patches; smaller images are reported")
    data.add_argument(
        "--assessor",
        type=Path,
        metavar="FILE",
        help="an AutoDIR, which looks for damaged ground truth (noise, blur, rain, haze, ...): file or folder",
    )
    data.add_argument("--meta-info", metavar="FILE", help="list of the images to use")
    _add_json(data)
    add_accept_damaged(data)
    data.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    data.set_defaults(run=_data)
    about = "report versions, hardware, weights and disk speed, and flag problems"
    env = kinds.add_parser("env", help=about, description=f"{about.capitalize()}. Exit codes as for data.")
    env.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="folder for measuring disk speed (default: current)"
    )
    _add_json(env)
    env.set_defaults(run=_env)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the full report to FILE; without FILE or with -, print it instead of the table",
    )


def _data(args: argparse.Namespace) -> int:
    from diffir_sr.doctor.findings import as_json, as_table
    from diffir_sr.doctor.sets import examine_data
    from diffir_sr.plugins import load_plugins

    load_plugins()
    found = _targets(args)
    report = examine_data(found.targets, jobs=args.jobs, known=found.findings, assessor=args.assessor)
    _give(args.json, as_json(report), as_table(report))
    return report.exit_code


def _env(args: argparse.Namespace) -> int:
    from diffir_sr.doctor import environment
    from diffir_sr.doctor.environment import facts_as_json, facts_as_table

    found = environment.facts(args.folder)
    _give(args.json, facts_as_json(found), facts_as_table(found))
    return environment.exit_code(found)


def _give(target: str | None, values: dict[str, Any], table: str) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if target and target != "-":
        write_report(text, Path(target))
    sys.stdout.write(text if target == "-" else table)


def _targets(args: argparse.Namespace) -> ExaminedSets:
    from diffir_sr.doctor.targets import ExaminedSet, ExaminedSets, targets_of_options

    if args.scale is not None and args.scale < 1:
        raise InputError(f"--scale: expected 1 or more, got {args.scale}")
    found = ExaminedSets()
    for target in args.target:
        if Path(target).suffix.lower() in (".yml", ".yaml"):
            described = targets_of_options(Path(target), scale=args.scale)
            found.targets += described.targets
            found.findings += described.findings
        else:
            found.targets.append(ExaminedSet(target, {"gt": target}, training=True, gt_size=args.gt_size))
    roots = {role: root for role in _ROLES if (root := getattr(args, role))}
    if roots:
        named = ExaminedSet(
            "pairs" if len(roots) > 1 else next(iter(roots)), roots, training=True, scale=args.scale or 1
        )
        found.targets.append(_restricted(named, args))
    found.targets += [ExaminedSet(f"test {folder}", {"gt": folder}, training=False) for folder in args.against]
    if not any(target.training for target in found.targets) and not args.target:
        raise InputError("nothing to examine: name an option file, folders, or --lq and --gt")
    return found


def _restricted(target: ExaminedSet, args: argparse.Namespace) -> ExaminedSet:
    return type(target)(
        target.name,
        target.roots,
        target.training,
        target.scale,
        template=args.template,
        meta_info=args.meta_info,
        gt_size=args.gt_size,
    )
