"""`diffir prepare gopro`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError
from diffir_sr.prepare import gopro
from diffir_sr.prepare.parsing import add_job, add_overwrite, on_disk, say
from diffir_sr.prepare.stored import Job, underway

_SIDES = {"crops": ("input_crops", "target_crops"), "whole": ("input", "target")}


def add_gopro_parser(jobs: Any) -> None:
    """Add `diffir prepare gopro`."""
    what = "cut a deblurring set into training patches and validation crops"
    source = "folder with train and test, each with input and target, or the original GoPro tree"
    parser = add_job(jobs, "gopro", _gopro, what, source=source)
    parser.add_argument("--size", type=int, default=gopro.SIZE, help="side of a patch (default 512)")
    parser.add_argument("--overlap", type=int, default=gopro.OVERLAP, help="pixels that neighbours share (default 256)")
    parser.add_argument(
        "--middle", type=int, default=gopro.MIDDLE, help="side of the middles of test images (default 256)"
    )
    parser.add_argument(
        "--whole-test", action="store_true", help="also copy whole test images to test/input and test/target"
    )
    add_overwrite(parser)


def _gopro(args: argparse.Namespace) -> int:
    splits = {name: args.input / name for name in ("train", "test") if (args.input / name).is_dir()}
    if not splits:
        raise InputError(f"{args.input.absolute()}: no folder train or test in it; name the folder that holds them")
    if args.output.resolve() == args.input.resolve() and args.whole_test:
        raise InputError(f"{args.output.absolute()}: whole test images would be copied onto themselves")
    frames = {name: gopro.find_frames(split) for name, split in splits.items()}
    plans: list[tuple[Path, str, str, dict[str, Any], list[gopro.Crops]]] = []
    if "train" in frames:
        cut = {"size": args.size, "overlap": args.overlap}
        crops = gopro.plan_patches(frames["train"], args.output / "train_crops", **cut, overwrite=args.overwrite)
        plans.append((args.output / "train_crops", "crops", "patches", cut, crops))
    if "test" in frames:
        crops = gopro.plan_middles(
            frames["test"], args.output / "val_crops", size=args.middle, overwrite=args.overwrite
        )
        plans.append((args.output / "val_crops", "crops", "middles", {"size": args.middle}, crops))
    if "test" in frames and args.whole_test:
        crops = gopro.plan_copies(frames["test"], args.output / "test", overwrite=args.overwrite)
        plans.append((args.output / "test", "whole", "whole", {}, crops))
    work = [
        ([Job(output / side, f"gopro {label}", parameters, args.input) for side in _SIDES[kind]], label, crops)
        for output, kind, label, parameters, crops in plans
    ]
    for jobs, _, _ in work:
        for job in jobs:
            job.check(overwrite=args.overwrite)
    for jobs, label, crops in work:
        if args.dry_run:
            _tell(label, crops, jobs[0].output.parent)
        else:
            _cut(args, jobs, label, crops)
    return 0


def _tell(label: str, crops: list[gopro.Crops], output: Path) -> None:
    count = sum(len(crop.outputs) for crop in crops)
    pixels = sum(len(crop.outputs) * crop.size**2 for crop in crops if crop.size)
    disk = on_disk(pixels, copied=[crop.file for crop in crops if not crop.size])
    say(f"would write {count // 2} pairs ({label}) under {output}, {disk}")


def _cut(args: argparse.Namespace, jobs: list[Job], label: str, crops: list[gopro.Crops]) -> None:
    with underway(*jobs, overwrite=args.overwrite):
        done = gopro.run(crops, jobs=args.jobs, label=label)
        for number, job in enumerate(jobs):  # blurred and sharp take turns
            job.finish(one for stored in done[number::2] for one in stored)
