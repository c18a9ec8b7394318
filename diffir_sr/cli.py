"""The commands: `basicsr train|test` and `diffir ...`; errors of the user's making end as one message, exit code 1."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from diffir_sr.ablation.commands import add_ablate_parser
from diffir_sr.doctor.commands import add_doctor_parser
from diffir_sr.errors import DiffIRError, SaveFailed
from diffir_sr.evaluation.commands import add_evaluate_parser
from diffir_sr.inference.commands import add_restore_parser
from diffir_sr.options import load_options
from diffir_sr.options.commands import add_options_parser
from diffir_sr.plugins import load_plugins
from diffir_sr.prepare.commands import add_prepare_parser
from diffir_sr.quickstart.commands import add_quickstart_parser
from diffir_sr.training.loop import Interrupted, train
from diffir_sr.training.run import RunArguments, forget_log
from diffir_sr.training.testing import test
from diffir_sr.version import __version__
from diffir_sr.weights_commands import add_describe_parser, add_models_parser, add_weights_parser


def basicsr_main(argv: Sequence[str] | None = None) -> int:
    """`basicsr train|test -opt FILE`, with the arguments of BasicSR's own scripts."""
    return _run(basicsr_parser(), argv)


def basicsr_parser() -> argparse.ArgumentParser:
    """The arguments of `basicsr`."""
    parser = argparse.ArgumentParser(prog="basicsr", description="Train and test BasicSR models (by diffir_sr).")
    parser.add_argument("--version", action="version", version=f"basicsr {basicsr_version()}, diffir_sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | test")
    for name, what in (
        ("train", "train what an option file describes"),
        ("test", "restore and measure datasets"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        _add_run_arguments(command)
        command.set_defaults(run=_train if name == "train" else _test)
    return parser


def basicsr_version() -> str:
    """The version of the BasicSR that is installed."""
    return version("basicsr")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none", help="who started the processes"
    )
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest state of this experiment")
    parser.add_argument("--debug", action="store_true", help="log every iteration, validate and save every 8")
    # torchrun tells each process its rank by the environment; older launchers pass one of these.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options of the file"
    )


def _arguments(args: argparse.Namespace) -> RunArguments:
    return RunArguments(launcher=args.launcher, auto_resume=args.auto_resume, debug=args.debug, root=Path.cwd())


def _train(args: argparse.Namespace) -> int:
    load_plugins()
    try:
        train(load_options(args.opt, is_train=True, overrides=tuple(args.force_yml)), _arguments(args))
    except Interrupted as stopped:
        return stopped.exit_code
    return 0


def _test(args: argparse.Namespace) -> int:
    load_plugins()
    test(load_options(args.opt, is_train=False, overrides=tuple(args.force_yml)), _arguments(args))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`diffir restore|evaluate|prepare|doctor|options|models|describe|quickstart ...`."""
    return _run(diffir_parser(), argv)


def diffir_parser() -> argparse.ArgumentParser:
    """The arguments of `diffir`."""
    parser = argparse.ArgumentParser(
        prog="diffir", description="Restore pictures; data, options and weights for DiffIR."
    )
    parser.add_argument("--version", action="version", version=f"diffir_sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_restore_parser,
        add_prepare_parser,
        add_options_parser,
        add_models_parser,
        add_weights_parser,
        add_describe_parser,
        add_quickstart_parser,
        add_doctor_parser,
        add_evaluate_parser,
        add_ablate_parser,
    ):
        add(commands)
    return parser


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (DiffIRError, SaveFailed) as error:
        log = logging.getLogger("basicsr")
        if any(isinstance(handler, logging.FileHandler) for handler in log.handlers):
            log.error(f"{error}")  # the log file of a run should say why it ended, too
        else:
            sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        forget_log()
