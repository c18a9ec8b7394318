"""`diffir evaluate RESTORED GT`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError
from diffir_sr.evaluation.presets import IMAGE_METRICS, PRESETS, SET_METRICS, plan
from diffir_sr.files.atomic import partial_name, write_atomically


def add_evaluate_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir evaluate`."""
    what = "measure restored images against their ground truth, as a table of the paper does"
    parser = commands.add_parser("evaluate", help=what, description=f"{what.capitalize()}.")
    parser.add_argument("restored", type=Path, help="folder or LMDB of restored images")
    parser.add_argument("gt", type=Path, help="folder or LMDB of the ground truth")
    parser.add_argument("--preset", choices=list(PRESETS), required=True, help="whose protocol and metrics")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"instead of the preset's: {', '.join((*IMAGE_METRICS, *SET_METRICS))}",
    )
    parser.add_argument("--border", type=int, metavar="PX", help="left out at each side for PSNR, SSIM and NIQE")
    parser.add_argument("--channel", choices=["y", "rgb"], help="what PSNR and SSIM compare")
    parser.add_argument("--suffix", metavar="TEXT", help="ending of restored names (default: found out)")
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="holes, named as the ground truth: means by their size"
    )
    parser.add_argument(
        "--inception", metavar="FILE", help="weights of Inception for FID and KID (default: looked for)"
    )
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="how many of the worst are shown (default 5)")
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write a row per image, the worst first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from diffir_sr.data.sources import open_source
    from diffir_sr.evaluation.measure import measure
    from diffir_sr.evaluation.pairing import pair_up
    from diffir_sr.evaluation.report import as_csv, as_json, as_table

    for path in (args.output, args.json):
        if path:
            _check_writable(path)
    luma = None if args.channel is None else args.channel == "y"
    wanted = plan(args.preset, args.metrics, border=args.border, luma=luma)
    sets = pair_up(args.restored, args.gt, suffix=args.suffix, spare=wanted.spare)
    masks = open_source(args.masks) if args.masks else None
    measured = measure(sets, wanted, masks=masks, weights=args.inception)
    if sets.ending:
        sys.stdout.write(f"restored names end in {sets.ending!r}\n")
    sys.stdout.write(as_table(measured, worst=max(0, args.worst)))
    if args.output:
        _write(as_csv(measured), args.output)
    if args.json:
        text = json.dumps(as_json(measured), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _write(text, args.json)
    return 0


def _check_writable(path: Path) -> None:
    """Find out before the measuring whether a file can be made there; leaves nothing. Raises InputError."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
        folder = next(one for one in path.absolute().parents if one.exists())
        probe = folder / partial_name(path.name)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _write(text: str, path: Path) -> None:
    try:
        write_atomically(text.encode(), path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror}); choose another file, or check its folder")
