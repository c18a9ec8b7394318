"""`diffir restore`: pictures, folders, videos and streams to restored ones."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError
from diffir_sr.inference.files import STREAM, SUFFIX_OF, plan
from diffir_sr.inference.stream import write_out

_MOST_GIB = 2**20  # more than any machine has


def add_restore_parser(commands: Any) -> None:
    """Add `diffir restore`."""
    parser = commands.add_parser(
        "restore",
        help="restore pictures, folders and videos",
        description="Restores pictures and videos; the weights file says which network it holds.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files, folders, quoted globs, or - (standard input)")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="folder, file name, or - (standard output)"
    )
    parser.add_argument("-w", "--weights", type=Path, required=True, metavar="FILE", help=".pth or .safetensors")
    parser.add_argument(
        "--blend",
        nargs=2,
        metavar=("FILE", "SHARE"),
        help="mix in the weights of FILE: 0 is --weights alone, 1 is FILE alone (such as a GAN training's)",
    )
    parser.add_argument(
        "--mask", help="inpainting: what is missing, as file, folder of files, or colour like '#ff00ff'"
    )
    parser.add_argument("--seed", type=int, default=0, help="with the picture's content it sets the start noise (0)")
    parser.add_argument(
        "--samples", type=int, default=1, metavar="K", help="K start noises: K results, their mean, sensitivity map"
    )
    parser.add_argument("--format", choices=SUFFIX_OF, help="format of results (default: each keeps its own)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG and WebP, 1 to 100 (95)")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists (default: it is kept)")
    _add_machine(parser)
    parser.set_defaults(run=_restore)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is), cpu, cuda, cuda:N")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument(
        "--tile-mode",
        choices=["exact", "tiles", "prior"],
        default="exact",
        help="exact: the result of the whole picture (default); tiles: overlapping parts, less memory, another result "
        "(DiffIR's share the picture's prior; 'prior' is the older name)",
    )
    parser.add_argument("--tile", type=int, default=256, help="pixels of a tile's side, --tile-mode tiles (256)")
    parser.add_argument("--overlap", type=int, default=32, help="pixels that tiles share, --tile-mode tiles (32)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="what the network may take (default: what is free)")


def _restore(args: argparse.Namespace) -> int:
    # What follows takes a while to import, and most commands do without it.
    from diffir_sr.inference.restorer import load_restorer
    from diffir_sr.inference.runner import RestoreSettings, restore_jobs

    _check_numbers(args)
    jobs = plan(args.inputs, args.output, form=args.format)  # what cannot be is known before weights are loaded
    restorer = load_restorer(
        args.weights,
        blend=_blend(args.blend),
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        tile_mode=args.tile_mode,
        tile=args.tile,
        overlap=args.overlap,
        memory_limit=None if args.memory is None else int(args.memory * 2**30),
    )
    wishes = RestoreSettings(form=args.format, mask=args.mask, samples=args.samples, quality=args.quality)
    outcome = restore_jobs(restorer, jobs, Path(args.output), wishes, overwrite=args.overwrite)
    parts = [f"{outcome.restored} restored"]
    parts += [f"{outcome.kept} kept"] if outcome.kept else []
    parts += [f"{len(outcome.failures)} failed"] if outcome.failures else []
    each = f", {outcome.seconds / outcome.restored:.2f} s each" if outcome.restored else ""
    say = sys.stderr.write if args.output == STREAM else write_out
    say(f"{args.output}: {', '.join(parts)}{each} (seed {args.seed}, {restorer.device})\n")
    return 1 if outcome.failures else 0


def _check_numbers(args: argparse.Namespace) -> None:
    if args.samples < 1:
        raise InputError(f"--samples: expected 1 or more, got {args.samples}")
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality: expected 1 to 100, got {args.quality}")
    if args.memory is not None and not 0 < args.memory <= _MOST_GIB:  # so that NaN is refused, too
        raise InputError(f"--memory: expected more than 0 GiB, at most {_MOST_GIB:d}, got {args.memory:g}")


def _blend(given: list[str] | None) -> tuple[str, float] | None:
    if given is None:
        return None
    try:
        return str(Path(given[0]).expanduser()), float(given[1])
    except ValueError as error:
        raise InputError(f"--blend: expected a file and a share from 0 to 1, got {' '.join(given)}") from error
