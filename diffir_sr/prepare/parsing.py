"""Arguments and words that the jobs of `diffir prepare` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import InputError
from diffir_sr.files.machine import available_cpus
from diffir_sr.parsing import add_accept_damaged, deferred

if TYPE_CHECKING:
    from diffir_sr.data.sources import FolderSource

_SHOWN = 10

# Choices and defaults of jobs, which their parsers show.
RESIZE_METHODS = ("bicubic", "area", "lanczos")
GOPRO_SIZE, GOPRO_OVERLAP, GOPRO_MIDDLE = 512, 256, 256  # pixels
MASK_KINDS = ("thin", "medium", "thick")
MASK_SIZES = (256, 512)  # pixels
FACTORS = (0.75, 0.5, 1 / 3)
SHORTEST = 400  # pixels


def add_job(
    jobs: Any, name: str, what: str, *, module: str = "", source: str = "folder of images"
) -> argparse.ArgumentParser:
    """A parser with input, --output, --jobs and --dry-run; `command` of `module` (called as the job) takes them."""
    parser = jobs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help=f"{source}, sub-folders included")
    parser.add_argument("-o", "--output", type=Path, required=True)
    add_running(parser, module or name)
    return parser


def add_running(parser: argparse.ArgumentParser, module: str) -> None:
    """How a job runs: --jobs, --dry-run, --accept-damaged."""
    add_accept_damaged(parser)
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.set_defaults(run=deferred(f"diffir_sr.prepare.{module}:command"))


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="make again what exists (default: keep it) and remove what other parameters made in its place",
    )


def add_to_8bit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to-8bit", action="store_true", help="round 16-bit images to 8 bits (default: an error)")


def folder(path: Path) -> FolderSource:
    """The images of a folder; raises InputError for an LMDB."""
    from diffir_sr.data.sources import FolderSource, open_source

    source = open_source(path)
    if not isinstance(source, FolderSource):
        raise InputError(f"{path.absolute()} is an LMDB; expected a folder of image files")
    return source


def say(text: str) -> int:
    """Print a line; gives exit code 0."""
    sys.stdout.write(text + "\n")
    return 0


def examples(paths: Sequence[Path]) -> str:
    """The first files of a plan, one per line."""
    lines = [f"\n  {path}" for path in paths[:_SHOWN]]
    return "".join(lines) + (f"\n  ... {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


def on_disk(pixels: float, *, copied: Sequence[Path] = ()) -> str:
    """A rough size of so many colour pixels as PNG (photographs take about 1.5 bytes of their 3), and of copies."""
    return f"about {(pixels * 1.5 + sum(file.stat().st_size for file in copied)) / 2**20:,.1f} MiB"


def alpha_note(done: Sequence[Any]) -> list[str]:
    """What a job says at its end of images whose alpha it dropped."""
    count = sum(one.dropped_alpha for one in done)
    return [f"alpha dropped in {count}"] if count else []
