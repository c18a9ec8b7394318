"""What the parsers of commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from diffir_sr.import_hook import imported

ACCEPT_DAMAGED = "DIFFIR_ACCEPT_DAMAGED"  # in the environment, so that the worker processes of a command have it, too


def deferred(name: str) -> Callable[[argparse.Namespace], int]:
    """The function "module:name" as a command's `run`, imported when it is called and not when parsers are made."""

    def run(args: argparse.Namespace) -> int:
        return imported(name)(args)

    return run


def add_accept_damaged(parser: argparse.ArgumentParser) -> None:
    """Add --accept-damaged, which is in force as soon as it is read, in worker processes too."""
    parser.add_argument(
        "--accept-damaged",
        action=_AcceptDamaged,
        nargs=0,
        help="take what can still be decoded of damaged pictures, with a warning (default: an error); for trainings: "
        "DIFFIR_ACCEPT_DAMAGED=1",
    )


class _AcceptDamaged(argparse.Action):
    def __call__(self, *_: Any, **__: Any) -> None:
        os.environ[ACCEPT_DAMAGED] = "1"
