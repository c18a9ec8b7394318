"""`diffir prepare degrade`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.data.sources import FolderSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.images import decode, read_file
from diffir_sr.files.machine import available_cpus
from diffir_sr.files.picture import as_bits, encode_png
from diffir_sr.options import load_options
from diffir_sr.prepare import degrade
from diffir_sr.prepare.contact_sheet import centre, contact_sheet, enlarged
from diffir_sr.prepare.stored import Job, underway

_SHOWN = 12
_TILE = 256


def add_degrade_parser(jobs: Any) -> None:
    """Add `diffir prepare degrade`."""
    what = "degrade images as real-world training does (blur, resize, noise, JPEG, twice)"
    parser = jobs.add_parser("degrade", help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("input", type=Path, help="folder of images, sub-folders included")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--opt", metavar="FILE", help="training option file that says how (default: as published)")
    parser.add_argument("--scale", type=int, help="how many times smaller (default: that of --opt, or 4)")
    parser.add_argument("--seed", type=int, default=0, help="a result follows from seed and name (default 0)")
    parser.add_argument("--crop-gt", type=Path, help="also write the inputs, cropped to multiples of scale, here")
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="make again what exists (default: keep it)")
    parser.set_defaults(run=_degrade)


def _degrade(args: argparse.Namespace) -> int:
    source = open_source(args.input)
    if not isinstance(source, FolderSource):
        raise InputError(f"{args.input.absolute()} is an LMDB; expected a folder of image files")
    if args.seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {args.seed}")
    given = _recipe(args)
    tasks = degrade.plan(source, args.output, given, crop_gt=args.crop_gt, overwrite=args.overwrite)
    job = Job(args.output, "degrade", asdict(given), source.path)
    crops = Job(args.crop_gt, "crop", {"scale": given.scale}, source.path) if args.crop_gt else None
    planned = [one for one in (job, crops) if one is not None]
    for one in planned:
        one.check(overwrite=args.overwrite)
    if args.dry_run:
        sys.stdout.write(f"would degrade {len(tasks)} images, x1/{given.scale}, seed {args.seed}, to {args.output}\n")
        return 0
    with underway(*planned, overwrite=args.overwrite):
        done = degrade.run(tasks, jobs=args.jobs)
        sheet = _write_sheet(tasks, args.output, given.scale)
        job.finish((one.lq for one in done), notes=[f"x1/{given.scale}", f"see {sheet}"])
        if crops is not None:
            crops.finish(one.cropped for one in done if one.cropped is not None)
    return 0


def _recipe(args: argparse.Namespace) -> degrade.Recipe:
    top: dict[str, Any] = load_options(args.opt, check_files=False).values if args.opt else {}
    dataset = (top.get("datasets") or {}).get("train") or {}
    if args.opt and str(dataset.get("type")).removesuffix("_basicsr") != "RealESRGANDataset":
        raise InputError(f"{args.opt}: datasets.train is a {dataset.get('type')}; only a RealESRGANDataset is degraded")
    return degrade.recipe(top, dataset, scale=args.scale or int(top.get("scale") or 4), seed=args.seed)


def _write_sheet(tasks: Sequence[degrade.Task], output: Path, scale: int) -> Path:
    """The middle of the first images beside what became of it, on one page; gives its path."""
    tiles = []
    side = _TILE // scale * scale
    for task in tasks[:_SHOWN]:
        image = decode(read_file(task.file), where=str(task.file))
        lq = decode(read_file(task.output.path), where=str(task.output.path))
        gt = image[: lq.shape[0] * scale, : lq.shape[1] * scale]
        tiles.append((task.name, _colours(centre(gt, side))))
        tiles.append(("degraded", enlarged(_colours(centre(lq, side // scale)), scale)))
    path = output.with_name(f"{output.name}.sheet.png")
    write_atomically(encode_png(contact_sheet(tiles, columns=4)), path)
    return path


def _colours(image: np.ndarray) -> np.ndarray:
    image = as_bits(image, np.uint8)
    if image.shape[2] < 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])
