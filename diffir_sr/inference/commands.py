"""`diffir restore`: restores images, folders, videos and streams."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.parsing import add_accept_damaged, deferred

if TYPE_CHECKING:
    from diffir_sr.inference.files import Job, Shard
    from diffir_sr.inference.runner import RunSummary
    from diffir_sr.weights.registry import Chosen

FORMATS = ("png", "jpg", "webp", "tiff", "bmp")
_MOST_GIB = 2**20  # more than any machine has


def add_restore_parser(commands: Any) -> None:
    """Add `diffir restore`."""
    parser = commands.add_parser(
        "restore",
        help="restore images, folders and videos",
        description="Restores images and videos with a model of 'diffir models list' (by default a shipped one), "
        "or with any weights file, from which the architecture is read.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files, folders, quoted globs, or - (standard input)")
    parser.add_argument(
        "-o",
        "--output",
        type=os.path.expanduser,
        required=True,
        metavar="OUT",
        help="folder, file name, or - (standard output)",
    )
    _add_model(parser)
    parser.add_argument(
        "--samples",
        type=int,
        metavar="K",
        help="write K results from K initial noises, their mean, a sensitivity map (default: 1, or as in --schedule)",
    )
    parser.add_argument(
        "--average", action="store_true", help="write only the mean of --samples, under the normal name"
    )
    _add_results(parser)
    parser.add_argument(
        "--trace",
        action="store_true",
        help="AutoDIR: beside each result, what was found and done in each round: .trace.json and .trace.png",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results (default: keep them)")
    parser.add_argument(
        "--json",
        type=os.path.expanduser,
        metavar="FILE",
        help="write the outcome of each input to FILE; - is standard output",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (an accelerator if there is one), cpu, cuda, cuda:N, mps, xpu"
    )
    _add_machine(parser)
    _add_parts(parser)
    parser.set_defaults(run=_restore)


def add_serve_parser(commands: Any) -> None:
    """Add `diffir serve`."""
    parser = commands.add_parser(
        "serve",
        help="restore images on a local web page",
        description="Serves a page that restores images in the browser, with the results of diffir restore, and the "
        "same as an HTTP API (docs/serve.md). It listens on this machine alone.",
    )
    parser.add_argument("-w", "--weights", type=Path, action="append", metavar="FILE", help="further models to offer")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=0, help="port (default: the first free one from 7860 on)")
    parser.add_argument(
        "--name", action="append", metavar="HOST", help="name under which other machines or a proxy reach this one"
    )
    parser.add_argument("--device", default="auto", help="as for diffir restore")
    parser.add_argument("--max-file", type=float, default=200, metavar="MIB", help="size of an uploaded file (200)")
    parser.add_argument("--max-pixels", type=float, default=64, metavar="MILLION", help="pixels of an image (64)")
    parser.add_argument("--max-files", type=int, default=500, metavar="N", help="images at once (500)")
    parser.add_argument("--max-waiting", type=int, default=64, metavar="N", help="restorations not yet finished (64)")
    parser.set_defaults(run=deferred("diffir_sr.serve.page:run"))


def add_fleet_parser(commands: Any) -> None:
    """Add `diffir fleet`."""
    parser = commands.add_parser(
        "fleet",
        help="restore very many images on a Ray cluster",
        description="Restores images with one worker per accelerator of a Ray cluster (or of this machine), with the "
        "results of diffir restore. OUT gets the results, named by their content and settings, and manifest.parquet, "
        "a row for each image (docs/scale.md). The same command again continues.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="folders, files, quoted globs, or lists (.parquet with a column of paths)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder, shared by all workers")
    _add_model(parser)
    parser.add_argument("--samples", type=int, metavar="K", help="the mean of K results from K initial noises")
    _add_results(parser)
    _add_machine(parser)
    parser.add_argument(
        "--column", default="path", help="column of paths in lists, relative to the folder of the list (path)"
    )
    parser.add_argument("--retry-errors", action="store_true", help="take images again that failed before")
    parser.add_argument("--address", help="Ray cluster, such as auto (default: $RAY_ADDRESS, otherwise this machine)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="workers (default: one per accelerator, otherwise CPUs / --cpus)"
    )
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="CPUs for each worker (2)")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="cpu: leave accelerators alone")
    parser.set_defaults(run=deferred("diffir_sr.fleet:run"), average=False)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Options for the network, what it is given besides the image, and its noise."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        help="name of a model (default: realsr_x4 if available, otherwise sr_x4; with --mask, inpaint)",
    )
    parser.add_argument(
        "-w",
        "--weights",
        type=Path,
        action="append",
        metavar="FILE",
        help="weights instead of --model (.pth, .safetensors, ...); further -w make a cascade",
    )
    parser.add_argument(
        "--blend",
        nargs=2,
        metavar=("FILE", "SHARE"),
        help="interpolate with the weights in FILE (or of this model), such as those of a GAN training: 0 is only "
        "--weights or --model, 1 only FILE",
    )
    parser.add_argument(
        "--mask",
        type=os.path.expanduser,
        help="inpainting: missing pixels, as a mask file, a folder of masks, or a colour such as '#ff00ff'",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the initial noise, together with the content of the image (0)"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    """Options for sampling and for the files of results."""
    _add_sampling(parser)
    _add_autodir(parser)
    parser.add_argument("--format", choices=FORMATS, help="format of results (default: that of the input)")
    parser.add_argument("--quality", type=int, default=95, help="quality of JPEG and WebP, 1 to 100 (95)")
    add_accept_damaged(parser)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    """Options for folders that several processes or machines restore together."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="restore part I of N, by a hash of the file names, with a journal of its own in OUT; then --merge",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="restore nothing: merge the journals of shards in OUT, name what is missing",
    )
    parser.add_argument(
        "--devices", metavar="all", help="one process per accelerator (all), or per device of a list: cuda:0,cuda:2"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options for networks that sample images by diffusion (SR3, DvSR)."""
    parser.add_argument("--steps", type=int, metavar="N", help="diffusion: number of sampling steps")
    parser.add_argument("--sampler", choices=["ddpm", "ddim"], help="diffusion: sampler")
    parser.add_argument(
        "--eta", type=float, help="--sampler ddim: noise added by the steps, as a share of that of ddpm, 0 to 1 (0)"
    )
    parser.add_argument(
        "--variance",
        choices=["fixed_small", "fixed_large"],
        help="--sampler ddpm: variance of the noise added by the steps",
    )
    parser.add_argument(
        "--schedule", type=Path, metavar="FILE", help="diffusion: schedule file written by diffir search-schedule"
    )


def _add_autodir(parser: argparse.ArgumentParser) -> None:
    """What AutoDIR can be asked for."""
    parser.add_argument("--prompt", metavar="TEXT", help="AutoDIR: undo this, in your own words, in one round")
    parser.add_argument(
        "--degradations", metavar="rain,haze", help="AutoDIR: undo these, one after the other (default: it finds out)"
    )
    parser.add_argument("--max-rounds", type=int, metavar="N", help="AutoDIR: rounds at most (7)")
    parser.add_argument(
        "--structure",
        metavar="W",
        help="AutoDIR: weight of the correction, for all or by name: 0.5, or rain=0.5,haze=1 (1; low resolution: 0)",
    )
    parser.add_argument(
        "--view",
        choices=["center", "grid_mean", "grid_geometric"],
        help="AutoDIR: assess the centre, or squares that cover the picture, by the arithmetic or geometric mean of "
        "their probabilities (default: the model's)",
    )
    parser.add_argument(
        "--rounding", choices=["nearest", "floor"], help="AutoDIR: floor truncates results to 8 bits, as published"
    )
    parser.add_argument("--clamp", action="store_true", default=None, help="AutoDIR: clip pictures between rounds")
    parser.add_argument(
        "--colour-fix", action="store_true", default=None, help="AutoDIR: keep the mean and deviation of each colour"
    )
    parser.add_argument(
        "--offload",
        action="store_true",
        default=None,
        help="AutoDIR: on an accelerator, only the part that works; the others stay in the CPU's memory",
    )


def _structure(given: str | None) -> float | dict[str, float] | None:
    if given is None:
        return None
    try:
        if "=" not in given:
            return float(given)
        return {name: float(weight) for name, weight in (part.split("=") for part in given.split(","))}
    except ValueError as error:
        raise InputError(f"--structure: expected a number, or rain=0.5,haze=1; got {given!r}") from error


_WISHED = (
    "steps", "sampler", "eta", "variance", "prompt", "max_rounds", "view", "rounding", "clamp", "colour_fix", "offload"
)  # fmt: skip


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    """What the network is asked for; only those who have such options take them."""
    return {
        **{name: getattr(args, name) for name in _WISHED},
        "degradations": args.degradations.split(",") if args.degradations else None,
        "structure": _structure(args.structure),
    }


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument(
        "--tile-mode",
        choices=["exact", "tiles", "prior"],
        default="exact",
        help="exact: the result of the whole image (default); tiles: overlapping parts, less memory, different result "
        "(with DiffIR, they share the prior of the image; 'prior' is the older name)",
    )
    parser.add_argument("--tile", type=int, default=256, help="side of a tile in pixels, with --tile-mode tiles (256)")
    parser.add_argument(
        "--overlap", type=int, default=32, help="overlap of tiles in pixels, with --tile-mode tiles (32)"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="memory limit of the network (default: the free memory)"
    )


def _restore(args: argparse.Namespace) -> int:
    # Slow imports, which most commands do not need.
    from diffir_sr.inference.files import NAME, STREAM, plan_jobs
    from diffir_sr.inference.restorer import load_restorer
    from diffir_sr.inference.runner import RestoreSettings, restore_jobs
    from diffir_sr.progress import write_out

    check_numbers(args)
    if args.tile_mode == "prior":
        sys.stderr.write("warning: --tile-mode prior is now named --tile-mode tiles\n")
    if args.output == args.json == STREAM:
        raise InputError("-o - and --json - would both write to standard output; give a file for one of them")
    # Invalid arguments are reported before weights are loaded.
    jobs = plan_jobs(args.inputs, args.output, form=args.format, mask=args.mask)
    shard = _part(args, jobs)
    if args.merge:
        return _merge(args, jobs)
    if args.devices:
        return _on_devices(args, jobs, shard)
    if shard is not None:
        jobs = [job for job in jobs if shard.has(job)]
    chosen = chosen_model(args)
    restorer = load_restorer(**restorer_arguments(args, chosen), device=args.device)
    settings = RestoreSettings(
        form=args.format,
        mask=args.mask,
        samples=args.samples,
        average=args.average,
        quality=args.quality,
        trace=args.trace,
    )
    outcome = restore_jobs(
        restorer,
        jobs,
        Path(args.output),
        settings,
        overwrite=args.overwrite,
        journal=NAME if shard is None else shard.journal,
        alone=shard is None,
    )
    if args.json:
        text = _as_json(
            outcome,
            args,
            restorer.settings(samples=args.samples, average=args.average, quality=args.quality),
            restorer.device,
        )
        data = text.encode(errors="backslashreplace")  # undecodable bytes in names become JSON escapes
        write_out(data) if args.json == STREAM else write_atomically(data, Path(args.json))
    parts = [f"{outcome.restored} restored"]
    parts += [f"{outcome.kept} kept"] if outcome.kept else []
    parts += [f"{len(outcome.failures)} failed"] if outcome.failures else []
    each = f", {outcome.seconds / outcome.restored:.2f} s each" if outcome.restored else ""
    say = sys.stderr.write if STREAM in (args.output, args.json) else write_out
    name = f"model {chosen.entry.name}, " if chosen.entry else ""
    part = "" if shard is None else f"shard {shard}, "
    say(f"{args.output}: {', '.join(parts)}{each} ({part}{name}seed {args.seed}, {restorer.device})\n")
    return 1 if outcome.failures else 0


def chosen_model(args: argparse.Namespace) -> Chosen:
    """The weights that the arguments ask for; a model that nobody asked for by name is named on standard error."""
    from diffir_sr.weights.registry import choose

    named: list[Path] = args.weights or []
    chosen = choose(named[0] if named else None, args.model, masked=args.mask is not None, dashes="--")
    if chosen.entry is not None and chosen.by_default:
        about = f"{chosen.entry.name} ({chosen.entry.about})"
        sys.stderr.write(f"restoring with the model {about}; others: diffir models list\n")
    return chosen


def restorer_arguments(args: argparse.Namespace, chosen: Chosen) -> dict[str, Any]:
    """The arguments of `load_restorer`, except the device."""
    named: list[Path] = args.weights or []
    return {
        "weights": chosen.path if len(named) < 2 else named,
        "sampling": _wishes(args),
        "schedule": args.schedule,
        "blend": _blend(args.blend),
        "dtype": args.dtype,
        "seed": args.seed,
        "tile_mode": args.tile_mode,
        "tile": args.tile,
        "overlap": args.overlap,
        "memory_limit": None if args.memory is None else int(args.memory * 2**30),
    }


def _part(args: argparse.Namespace, jobs: Sequence[Job]) -> Shard | None:
    """The part of --shard; InputError if the options of parts contradict each other or have no folder."""
    from diffir_sr.inference.files import shard_of

    given = [name for name in ("shard", "merge", "devices") if getattr(args, name)]
    if "merge" in given and len(given) > 1:
        raise InputError(f"--merge restores nothing; leave --{given[0] if given[0] != 'merge' else given[1]} out")
    if given and any(job.target is None or job.target == Path(args.output) for job in jobs):
        raise InputError(f"--{given[0]}: needs a folder for the results, got -o {args.output}")
    if args.devices and (args.json or args.device != "auto"):
        raise InputError(f"--devices: leave {'--json' if args.json else '--device'} out")
    return shard_of(args.shard) if args.shard else None


def _merge(args: argparse.Namespace, jobs: Sequence[Job]) -> int:
    from diffir_sr.inference.files import merge

    found = merge(Path(args.output), jobs)
    for name in found.missing:
        sys.stderr.write(f"missing: {name}\n")
    lacking = f", {len(found.missing)} of {len(jobs)} inputs have none" if found.missing else ""
    sys.stdout.write(f"{args.output}: {found.results} results of {found.journals} journals{lacking}\n")
    return 1 if found.missing else 0


def _on_devices(args: argparse.Namespace, jobs: Sequence[Job], shard: Shard | None) -> int:
    from diffir_sr.inference.files import Shard, devices_of, restore_on

    devices = devices_of(args.devices)
    codes = restore_on(devices, args.words[args.words.index("restore") + 1 :], shard or Shard(1, 1))
    if shard is not None:  # the other shards are merged with these
        return max(codes)
    return max(*codes, _merge(args, jobs))


def _as_json(outcome: RunSummary, args: argparse.Namespace, settings: Mapping[str, object], device: object) -> str:
    values = {
        "output": args.output,
        "device": str(device),
        "settings": settings,
        "restored": outcome.restored,
        "kept": outcome.kept,
        "failed": len(outcome.failures),
        "seconds": round(outcome.seconds, 3),
        "files": [asdict(job) for job in outcome.jobs],
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def check_numbers(args: argparse.Namespace) -> None:
    """Complete the number of samples, and raise InputError for numbers out of range."""
    from diffir_sr.diffusion.sampling import read_schedule

    if args.samples is None:
        args.samples = read_schedule(args.schedule).samples if args.schedule else 1
        args.average |= args.samples > 1
    if args.samples < 1:
        raise InputError(f"--samples: expected 1 or more, got {args.samples}")
    if args.average and args.samples < 2:
        raise InputError("--average: needs --samples 2 or more")
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality: expected 1 to 100, got {args.quality}")
    if args.memory is not None and not 0 < args.memory <= _MOST_GIB:  # so that NaN is refused, too
        raise InputError(f"--memory: expected more than 0 GiB, at most {_MOST_GIB:d}, got {args.memory:g}")


def _blend(given: list[str] | None) -> tuple[str, float] | None:
    if given is None:
        return None
    try:
        return given[0], float(given[1])
    except ValueError as error:
        raise InputError(f"--blend: expected a file and a share from 0 to 1, got {' '.join(given)}") from error
