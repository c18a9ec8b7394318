"""Helpers for the argument parsers of commands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from diffir_sr.import_hook import imported

ACCEPT_DAMAGED = "DIFFIR_ACCEPT_DAMAGED"  # in the environment, so that worker processes inherit it


def deferred(name: str) -> Callable[[argparse.Namespace], int]:
    """The function "module:name" as the `run` of a command, imported only when it is called."""

    def run(args: argparse.Namespace) -> int:
        return imported(name)(args)

    return run


def add_accept_damaged(parser: argparse.ArgumentParser) -> None:
    """Add --accept-damaged, which takes effect as soon as it is parsed, also in worker processes."""
    parser.add_argument(
        "--accept-damaged",
        action=_AcceptDamaged,
        nargs=0,
        help="use what can still be decoded of damaged images, with a warning (default: an error); for training: "
        "DIFFIR_ACCEPT_DAMAGED=1",
    )


class _AcceptDamaged(argparse.Action):
    def __call__(self, *_: Any, **__: Any) -> None:
        os.environ[ACCEPT_DAMAGED] = "1"
