"""What the parsers of commands share."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable


def deferred(name: str) -> Callable[[argparse.Namespace], int]:
    """The function "module:name" as a command's `run`, imported when it is called and not when parsers are made."""

    def run(args: argparse.Namespace) -> int:
        module, _, function = name.partition(":")
        return getattr(importlib.import_module(module), function)(args)

    return run
