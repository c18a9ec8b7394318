"""`diffir evaluate RESTORED GT`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError
from diffir_sr.evaluation.presets import IMAGE_METRICS, PRESETS, SET_METRICS, plan_measurement
from diffir_sr.files.atomic import check_writable, write_report
from diffir_sr.parsing import add_accept_damaged


def add_evaluate_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir evaluate`."""
    what = "measure restored images against ground truth, with the protocols of the paper"
    parser = commands.add_parser("evaluate", help=what, description=f"{what.capitalize()}.")
    parser.add_argument("restored", type=Path, help="folder, LMDB or shards of restored images")
    parser.add_argument("gt", type=Path, help="folder, LMDB or shards of the ground truth")
    parser.add_argument(
        "--preset", choices=list(PRESETS), required=True, help="table whose protocol and metrics are used"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"metrics instead of those of the preset: {', '.join((*IMAGE_METRICS, *SET_METRICS))}",
    )
    add_accept_damaged(parser)
    parser.add_argument("--border", type=int, metavar="PX", help="border in pixels to ignore for PSNR, SSIM and NIQE")
    parser.add_argument("--channel", choices=["y", "rgb"], help="channel for PSNR and SSIM")
    parser.add_argument("--suffix", metavar="TEXT", help="suffix of restored names (default: detected)")
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="masks named like the ground truth: also report means by hole size"
    )
    parser.add_argument(
        "--inception", metavar="FILE", help="weights of Inception for FID and KID (default: searched for)"
    )
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="number of worst images to show (default 5)")
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write a CSV row per image, worst first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results, unrounded")
    parser.set_defaults(run=_evaluate)


def add_bench_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir bench`."""
    what = "measure networks on a benchmark, compared with the values of the paper"
    parser = commands.add_parser("bench", help=what, description=f"{what.capitalize()}.")
    parser.add_argument("opt", metavar="FILE", help="option file of a test, such as options/bench/test_Set14.yml")
    parser.add_argument("-m", "--model", nargs="+", default=[], metavar="NAME", help="names in diffir models list")
    parser.add_argument("-w", "--weights", nargs="+", default=[], type=Path, metavar="FILE", help="weights files")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: results/bench/NAME")
    parser.add_argument("--limit", type=int, metavar="N", help="measure only the first N images of each set")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial noise (0)")
    parser.add_argument("--device", default="auto", help="as for diffir restore")
    parser.add_argument("--no-picture", action="store_true", help="do not plot quality against cost")
    parser.add_argument("--check", action="store_true", help="exit code 1 if values differ by more than the tolerance")
    parser.add_argument(
        "--against", type=Path, metavar="JSON", help="with --check: compare with an earlier result instead of the paper"
    )
    parser.add_argument(
        "--tolerance", nargs="+", default=[], metavar="METRIC=VALUE", help="with --check: tolerance of a metric"
    )
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options of the file"
    )
    parser.set_defaults(run=_bench)


def add_search_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `diffir search-schedule`."""
    what = "find the schedule, sampler and number of samples that suit a network (SR3, DvSR)"
    parser = commands.add_parser(
        "search-schedule",
        help=what,
        description=f"{what.capitalize()}: measures every cell of the grid `search` of an option file on its images, "
        "and writes search.csv, search.png and schedule.json, for `diffir restore --schedule` and `val.schedule`. "
        "An interrupted search continues when it is started again.",
    )
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file of a test")
    parser.add_argument(
        "-w", "--weights", type=Path, metavar="FILE", help="weights (default: path.pretrain_network_g in the file)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: results/search/NAME")
    parser.add_argument(
        "--objective", metavar="METRIC", help="metric of val.metrics (default: search.objective in the file)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="measure only the first N images of each set")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial noise, which all cells share (0)")
    parser.add_argument("--device", default="auto", help="as for diffir restore")
    parser.add_argument("--no-picture", action="store_true", help="do not plot the Pareto front")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="override options of the file"
    )
    parser.set_defaults(run=_search)


def _search(args: argparse.Namespace) -> int:
    from diffir_sr.checkpoints import load_network
    from diffir_sr.devices import device_of
    from diffir_sr.evaluation import schedule_search as searching
    from diffir_sr.evaluation.bench import checksum, open_benchmark
    from diffir_sr.evaluation.bench_report import check_picture_possible
    from diffir_sr.inference.combined import engine_of
    from diffir_sr.weights.download import sha256_of

    if not args.no_picture:
        check_picture_possible()
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: expected 1 or more images, got {args.limit}")
    benchmark = open_benchmark(args.opt, overrides=tuple(args.force_yml))
    grid = searching.grid_of(benchmark.options)
    weights = args.weights or benchmark.weights
    if weights is None:
        raise InputError(f"{args.opt}: the file in path.pretrain_network_g does not exist; give the weights with -w")
    objective = args.objective or grid.objective or searching.default_objective(benchmark.metrics)
    engine = engine_of(load_network(weights).network, device=device_of(args.device))
    folder = args.output or Path("results/search") / benchmark.name
    _check_writable(folder / "search.csv")
    folder.mkdir(parents=True, exist_ok=True)
    counts = {name: min(len(one), args.limit or len(one)) for name, one in benchmark.datasets.items()}
    measured_on = {name: checksum(benchmark, name, count) for name, count in counts.items()}
    about = {"weights": sha256_of(weights), "pictures": measured_on, "seed": args.seed}
    found = searching.search(
        engine,
        searching.pictures_of(benchmark, limit=args.limit),
        grid,
        benchmark.metrics,
        objective=objective,
        seed=args.seed,
        record=folder / "measured.jsonl",
        about=json.dumps([about, benchmark.metrics], sort_keys=True),
        count=sum(counts.values()),
    )
    chosen = searching.schedule_file(found, grid, about=about)
    _write(searching.as_csv(found), folder / "search.csv")
    _write(json.dumps(chosen, indent=2) + "\n", folder / "schedule.json")
    if not args.no_picture:
        searching.draw(found, folder / "search.png")
    if found.skipped:
        sys.stderr.write(f"{len(found.skipped)} cells of the grid are skipped; the first: {found.skipped[0]}\n")
    picture = "" if args.no_picture else ", search.png"
    sys.stdout.write(f"{searching.as_text(found)}{folder}/: search.csv, schedule.json{picture}\n")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from diffir_sr.evaluation.bench import network_method, open_benchmark, run_benchmark, simple_methods
    from diffir_sr.evaluation.bench_report import as_json as bench_json
    from diffir_sr.evaluation.bench_report import as_markdown, check_picture_possible, disagreements, draw
    from diffir_sr.inference.restorer import device_of

    tolerances = _tolerances(args)
    if not args.no_picture:
        check_picture_possible()
    benchmark = open_benchmark(args.opt, overrides=tuple(args.force_yml))
    named: list[tuple[Path | None, str | None]] = [
        *((one, None) for one in args.weights),
        *((None, one) for one in args.model),
    ]
    if not named and benchmark.weights is not None:
        named = [(benchmark.weights, None)]
    what = {"scale": benchmark.scale, "takes_mask": benchmark.takes_mask}
    networks = [network_method(weights, model, seed=args.seed, device=args.device, **what) for weights, model in named]
    methods = [*simple_methods(**what), *networks]
    twice = [method.name for method in methods if [one.name for one in methods].count(method.name) > 1]
    if twice:
        raise InputError(f"{twice[0]}: several weights have this file name; rename one to distinguish the rows")
    folder = args.output or Path("results/bench") / benchmark.name
    _check_writable(folder / "bench.json")
    result = run_benchmark(benchmark, methods, device=device_of(args.device), limit=args.limit)
    text = as_markdown(result)
    _write(text, folder / "bench.md")
    _write(json.dumps(bench_json(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n", folder / "bench.json")
    if not args.no_picture:
        draw(result, folder / "bench.png")
    sys.stdout.write(f"{text}\n{folder}/: bench.md, bench.json{'' if args.no_picture else ', bench.png'}\n")
    if not args.check:
        return 0
    found = disagreements(result, tolerances, args.against)
    for one in found:
        sys.stderr.write(f"check: {one}\n")
    return 1 if found else 0


def _tolerances(args: argparse.Namespace) -> dict[str, float]:
    from diffir_sr.evaluation.bench_report import TOLERANCES

    if (args.against or args.tolerance) and not args.check:
        raise InputError("--against and --tolerance require --check")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: expected 1 or more images, got {args.limit}")
    found = dict(TOLERANCES)
    for given in args.tolerance:
        metric, _, value = given.partition("=")
        try:
            found[metric] = float(value)
        except ValueError as error:
            raise InputError(f"--tolerance: expected METRIC=VALUE such as psnr=0.1, got {given}") from error
        if not found[metric] >= 0:
            raise InputError(f"--tolerance: expected 0 or more, got {given}")
    return found


def _evaluate(args: argparse.Namespace) -> int:
    from diffir_sr.data.sources import open_source
    from diffir_sr.evaluation.measure import as_csv, as_json, as_table, measure, pair_up

    for path in (args.output, args.json):
        if path:
            _check_writable(path)
    luma = None if args.channel is None else args.channel == "y"
    wanted = plan_measurement(args.preset, args.metrics, border=args.border, luma=luma)
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
    """Check before measuring that a file can be created there; raises InputError."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file in it")
        check_writable(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write(text: str, path: Path) -> None:
    try:
        write_report(text, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror}); choose another file, or check its folder")
