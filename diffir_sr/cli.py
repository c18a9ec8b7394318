"""The commands `basicsr train|test` and `diffir ...`. The module of a command is imported only when it is used."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffir_sr.import_hook import imported
from diffir_sr.version import __version__

if TYPE_CHECKING:
    from diffir_sr.training.run import RunArguments

# Name -> line in `diffir --help`, and the function that adds its parser, as "module:function".
COMMANDS = {
    "restore": ("restore images, folders and videos", "diffir_sr.inference.commands:add_restore_parser"),
    "fleet": ("restore very many images on a Ray cluster", "diffir_sr.inference.commands:add_fleet_parser"),
    "serve": ("restore images on a local web page", "diffir_sr.inference.commands:add_serve_parser"),
    "prepare": ("prepare training and test data", "diffir_sr.prepare.commands:add_prepare_parser"),
    "options": (
        "check option files, show the available options, copy recipes",
        "diffir_sr.options.commands:add_options_parser",
    ),
    "plan": (
        "tell what a training will take of time, memory and disk, and what is missing",
        "diffir_sr.training.commands:add_plan_parser",
    ),
    "recipe": (
        "train the stages of a recipe in order, and resume after an interruption",
        "diffir_sr.training.commands:add_recipe_parser",
    ),
    "report": (
        "write an HTML page about a training: curves, pictures over time, worst pictures, cost",
        "diffir_sr.training.commands:add_report_parser",
    ),
    "models": ("list, show, fetch and verify weights by name", "diffir_sr.weights_commands:add_models_parser"),
    "weights": (
        "convert AutoDIR's released checkpoint; older name of 'diffir models fetch'",
        "diffir_sr.weights_commands:add_weights_parser",
    ),
    "export": ("export a network to ONNX or TorchScript", "diffir_sr.weights_commands:add_export_parser"),
    "describe": ("describe a weights file", "diffir_sr.weights_commands:add_describe_parser"),
    "quickstart": (
        "train a small DiffIR on real photographs, from data to results",
        "diffir_sr.quickstart.commands:add_quickstart_parser",
    ),
    "assess": ("name what is wrong with pictures (AutoDIR's assessor)", "diffir_sr.inference.assess:add_assess_parser"),
    "doctor": (
        "check data or this installation for problems",
        "diffir_sr.doctor.commands:add_doctor_parser",
    ),
    "evaluate": (
        "measure restored images against ground truth, with the protocols of the paper",
        "diffir_sr.evaluation.commands:add_evaluate_parser",
    ),
    "bench": (
        "measure networks on a benchmark, compared with the values of the paper",
        "diffir_sr.evaluation.commands:add_bench_parser",
    ),
    "search-schedule": (
        "find the schedule, sampler and number of samples that suit a network (SR3, DvSR)",
        "diffir_sr.evaluation.commands:add_search_parser",
    ),
    "ablate": (
        "train variants of a recipe under equal conditions and compare them",
        "diffir_sr.ablation.commands:add_ablate_parser",
    ),
    "completion": ("print a script for shell completion", "diffir_sr.cli:add_completion_parser"),
}
CRASHED = 70  # exit code for a bug in this program (EX_SOFTWARE of sysexits.h)


def basicsr_main(argv: Sequence[str] | None = None) -> int:
    """`basicsr train|test -opt FILE`, with the arguments of BasicSR's own scripts."""
    return _run("basicsr", lambda words: basicsr_parser(), argv)


def basicsr_parser() -> argparse.ArgumentParser:
    """The argument parser of `basicsr`."""
    parser = argparse.ArgumentParser(
        prog="basicsr", description="Train and test BasicSR models (provided by diffir_sr)."
    )
    parser.add_argument("--version", action="version", version=f"basicsr {basicsr_version()}, diffir_sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | test")
    for name, what in (
        ("train", "train as described in an option file"),
        ("test", "restore the test sets of an option file and measure the results"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        _add_run_arguments(command)
        if name == "train":
            command.add_argument(
                "--reset-schedule",
                action="store_true",
                help="when resuming, take learning rates, schedule and settings of optimizers from the option file, "
                "as they are at that iteration, not from the state",
            )
        command.set_defaults(run=_train if name == "train" else _test)
    return parser


def basicsr_version() -> str:
    """The version of the installed BasicSR."""
    return version("basicsr")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none", help="launcher of distributed processes"
    )
    parser.add_argument("--auto_resume", action="store_true", help="resume from the newest state of this experiment")
    parser.add_argument(
        "--debug", action="store_true", help="log every iteration, validate and save every 8 iterations"
    )
    # torchrun passes the rank in the environment; older launchers pass one of these.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options of the file"
    )


def _arguments(args: argparse.Namespace) -> RunArguments:
    from diffir_sr.training.run import RunArguments

    return RunArguments(
        launcher=args.launcher,
        auto_resume=args.auto_resume,
        debug=args.debug,
        reset_schedule=getattr(args, "reset_schedule", False),
        root=Path.cwd(),
    )


def _train(args: argparse.Namespace) -> int:
    from diffir_sr.options import load_options
    from diffir_sr.plugins import load_plugins
    from diffir_sr.training.loop import Interrupted, train

    load_plugins()
    try:
        train(load_options(args.opt, is_train=True, overrides=tuple(args.force_yml)), _arguments(args))
    except Interrupted as stopped:
        return stopped.exit_code
    return 0


def _test(args: argparse.Namespace) -> int:
    from diffir_sr.options import load_options
    from diffir_sr.plugins import load_plugins
    from diffir_sr.training.loop import test

    load_plugins()
    test(load_options(args.opt, is_train=False, overrides=tuple(args.force_yml)), _arguments(args))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`diffir restore|models|prepare|options|evaluate|doctor|describe ...`; see COMMANDS."""
    return _run("diffir", lambda words: diffir_parser(_given_command(words)), argv)


def diffir_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The argument parser of `diffir`: with the arguments of one command and the names of the others, or all (None)."""
    parser = _Parser(
        prog="diffir",
        description="Restore images and videos; prepare data, check options and manage weights for DiffIR.",
    )
    parser.add_argument("--version", action="version", version=f"diffir_sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, (what, adder) in COMMANDS.items():
        if command in (None, name):
            imported(adder)(commands)
        else:
            commands.add_parser(name, help=what, add_help=False)
    return parser


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest command for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        given = message.partition("invalid choice: '")[2].partition("'")[0]
        near = difflib.get_close_matches(given, COMMANDS, n=1)
        if given and near:
            message = f"unknown command {given!r}; did you mean {near[0]!r}? (all: {', '.join(COMMANDS)})"
        super().error(message)


def _given_command(words: Sequence[str]) -> str:
    """The first word that is not an option; '' if there is none, so that no command is imported."""
    return next((word for word in words if not word.startswith("-")), "")


def add_completion_parser(commands: Any) -> None:
    """Add `diffir completion`."""
    parser = commands.add_parser(
        "completion",
        help=COMMANDS["completion"][0],
        description="Prints a script that completes `diffir` and `basicsr` in a shell. For bash and zsh, put "
        "'eval \"$(diffir completion bash)\"' into ~/.bashrc (zsh: ~/.zshrc); for fish: `diffir completion fish > "
        "~/.config/fish/completions/diffir.fish`.",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    parser.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    # One script for both commands if the shell allows it; fish needs a function for each.
    programs = [["diffir"], ["basicsr"]] if args.shell == "fish" else [["diffir", "basicsr"]]
    for names in programs:
        sys.stdout.write(shellcode(names, shell=args.shell) + "\n")
    return 0


def _run(
    program: str, parser_of: Callable[[Sequence[str]], argparse.ArgumentParser], argv: Sequence[str] | None
) -> int:
    """Parse, run, and report errors as one message; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _let_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not abort the command
            stream.reconfigure(errors="backslashreplace")
    try:
        if "_ARGCOMPLETE" in os.environ:
            _complete(parser_of)
        args = parser_of(words).parse_args(words)
        for name, value in vars(args).items():
            setattr(args, name, _home_expanded(value))
        args.words = words
        return int(args.run(args))
    except KeyboardInterrupt:
        _tell("interrupted", is_error=False)
        return 130
    except Exception as error:
        return _failed(error, [program, *words])
    finally:
        if "diffir_sr.compat" in sys.modules:
            sys.modules["diffir_sr.compat"].forget_log()


# What OpenMP runtimes (GNU's, LLVM's and Intel's) read about threads that wait: they sleep.
WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


def _let_threads_sleep() -> None:
    """Let threads of torch that wait for each other give up the core, unless the environment says how they wait.

    By default they spin, and beside another busy process a waiting thread then burns the core that the one it waits
    for needs: steps of a training take ten times as long. The runtime reads this once, when torch is imported.
    """
    if not {*WAITING, "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ.update(WAITING)


def _complete(parser_of: Callable[[Sequence[str]], argparse.ArgumentParser]) -> None:
    """Answer a completion request of the shell, and exit."""
    import argcomplete

    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or len(os.environ.get("COMP_LINE", "")))]
    try:
        words = shlex.split(line)
    except ValueError:  # an unclosed quote
        words = line.split()
    # While the command itself is being typed, no module of a command is needed.
    typed = words[1:] if line.endswith(" ") else words[1:-1]
    argcomplete.autocomplete(parser_of(typed))


def _home_expanded(value: Any) -> Any:
    """Expand `~` in parsed paths as a shell does; the name of an unknown user stays as it is."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if isinstance(value, list):
        return [_home_expanded(one) for one in value]
    return value


def _failed(error: Exception, command: Sequence[str]) -> int:
    from diffir_sr.failures import sentence, tell_launcher, write_crash_report

    if isinstance(error, BrokenPipeError):
        from diffir_sr.progress import close_standard_output

        close_standard_output()
        return 1
    message = sentence(error)
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        message = message and f"rank {os.environ['RANK']}: {message}"
    tell_launcher(message or f"{type(error).__name__}: {error}")
    if message is not None:
        _tell(message)
        return 1
    report = write_crash_report(error, command)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    kept = f"A report was written to {report}" if report else "No folder is writable for a report"
    _tell(
        f"{type(error).__name__} in {where}: {error}\nThis is a bug in diffir_sr or a plugin, not in your input. "
        f"{kept}; please send that file to the maintainers of the package that it names last."
    )
    return CRASHED


def _tell(message: str, *, is_error: bool = True) -> None:
    """Print on standard error, or log it during a run, so that the log file says why the run ended."""
    log = logging.getLogger("basicsr")
    if is_error and any(isinstance(handler, logging.FileHandler) for handler in log.handlers):
        log.error(message)
    else:
        sys.stderr.write(f"error: {message}\n" if is_error else f"{message}\n")
