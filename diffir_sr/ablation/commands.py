"""`diffir ablate FILE`: train the variants, measure them, write the report."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.version import __version__

if TYPE_CHECKING:
    from diffir_sr.ablation.study import AblationFile, Run

logger = logging.getLogger("diffir_sr.ablation")


def add_ablate_parser(commands: Any) -> None:
    """Add `diffir ablate`."""
    what = "train variants of a recipe under equal conditions and compare them"
    parser = commands.add_parser("ablate", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("file", type=Path, help="ablation file; see options/ablations")
    parser.add_argument("-o", "--output", type=Path, help="folder of the report (default: results/ablate_<name>)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds instead of those in the file")
    parser.add_argument("--iterations", type=int, help="iterations of each stage instead of those in the file")
    parser.add_argument("--doc", type=Path, help="also insert the report into this document, between its markers")
    parser.add_argument("--dry-run", action="store_true", help="list the trainings without running them")
    parser.set_defaults(run=_ablate)


def _ablate(args: argparse.Namespace) -> int:
    from diffir_sr.ablation.study import (
        Found,
        check_document,
        check_runs,
        plan_runs,
        put_into,
        read_ablation,
        write_report,
    )

    ablation = read_ablation(args.file)
    if args.seeds:
        if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
            raise InputError(f"--seeds: expected numbers of 0 or more, each once, got {' '.join(map(str, args.seeds))}")
        ablation = ablation.model_copy(update={"seeds": args.seeds})
    if args.iterations is not None:
        if args.iterations < 1:
            raise InputError(f"--iterations: expected 1 or more, got {args.iterations}")
        ablation = ablation.model_copy(update={"iterations": args.iterations})
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the plot of the report needs matplotlib: pip install 'diffir_sr[quickstart]'")
    runs = plan_runs(ablation, args.file.parent)
    check_runs(ablation, runs, file=args.file)
    if args.dry_run:
        sys.stdout.write("".join(f"{run.name}: stage {run.stage}, seed {run.seed}\n" for run in runs))
        return 0
    if args.doc:
        check_document(args.doc, ablation.name)
    folder = args.output or Path("results") / f"ablate_{ablation.name}"
    measured = {run.name: _measured(run, ablation, number, runs) for number, run in enumerate(runs, start=1)}
    found = {
        name: Found(tuple(measured[run.name] for run in runs if run.variant == name and run.stage == 2))
        for name in ablation.variants
    }
    plain = [run for run in runs if run.stage == 1 and run.variant == next(iter(ablation.variants))]
    oracle = Found(tuple(measured[run.name] for run in plain))
    report = write_report(ablation, found, oracle, folder, setting=_setting(ablation, runs))
    sys.stdout.write(f"{report.read_text(encoding='utf-8')}\n{report}\n")
    for path in put_into(args.doc, ablation.name, report) if args.doc else ():
        sys.stdout.write(f"{path}\n")
    return 0


def _measured(run: Run, ablation: AblationFile, number: int, runs: list[Run]) -> float:
    """The metric after the last iteration of a run; trains the run unless it is already finished."""
    import yaml

    from diffir_sr.options import load_options

    file = Path("experiments") / "ablations" / f"{run.name}.yml"
    text = yaml.safe_dump(run.values, sort_keys=False, allow_unicode=True)
    other = file.is_file() and file.read_bytes() != text.encode()
    if other and _was_trained(run):
        raise InputError(
            f"{file}: an earlier run with this name had other options; remove experiments/{run.name} and this file"
        )
    write_atomically(text.encode(), file)
    total = int(load_options(file, check_files=False).values["train"]["total_iter"])
    record = Path("experiments") / run.name / "validation.jsonl"
    if _last(record, ablation.metric, total) is None:
        sys.stdout.write(f"[{number}/{len(runs)}] {run.name}: stage {run.stage}, seed {run.seed}\n")
        sys.stdout.flush()
        _train(run, file)
    value = _last(record, ablation.metric, total)
    if value is None:
        raise InputError(
            f"{record}: no {ablation.metric} after iteration {total}; remove experiments/{run.name} to train it again"
        )
    return value


def _was_trained(run: Run) -> bool:
    """Whether a run has left results that depend on its options."""
    folder = Path("experiments") / run.name
    names = ("models/*", "training_states/*", "validation.jsonl")
    return any(path.stat().st_size for name in names for path in folder.glob(name))


def _train(run: Run, file: Path) -> None:
    """Train in a separate process, so that runs do not share state."""
    words = [sys.executable, "-m", "diffir_sr", "basicsr", "train", "-opt", str(file), "--auto_resume"]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)
    if done.returncode:
        where = f"see experiments/{run.name}"
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise InputError(f"{run.name}: the training ended with exit code {done.returncode}: {last}; {where}")


def _last(record: Path, metric: str, total: int) -> float | None:
    """The mean of the metric over the validation sets after iteration `total`, if recorded."""
    from diffir_sr.data.records import read_records

    rows = [row for row in read_records(record) if row.get("iter") == total and "dataset" in row]
    values: dict[str, float] = {}
    for row in rows:
        with contextlib.suppress(KeyError, ValueError, TypeError):  # the metric is missing, or not a number
            values[row["dataset"]] = float(row[metric])
    return sum(values.values()) / len(values) if values else None


def _setting(ablation: AblationFile, runs: list[Run]) -> str:
    import torch

    from diffir_sr.options import load_options

    steps = {run.stage: load_options(_file(run), check_files=False).values["train"]["total_iter"] for run in runs}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return (
        f"`diffir ablate`: {steps[1]} iterations of stage 1, {steps[2]} of stage 2, seeds "
        f"{', '.join(map(str, ablation.seeds))}; same data, budget and validation for all. diffir_sr {__version__}, "
        f"torch {torch.__version__}, {device}."
    )


def _file(run: Run) -> Path:
    return Path("experiments") / "ablations" / f"{run.name}.yml"
