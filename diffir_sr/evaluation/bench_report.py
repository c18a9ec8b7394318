"""Reports of a benchmark as Markdown, JSON and a plot, and comparison with the paper or an earlier run."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from diffir_sr.errors import InputError
from diffir_sr.evaluation.bench import BenchResult, Method, paper_rows, paper_tables
from diffir_sr.evaluation.presets import HIGHER_IS_BETTER
from diffir_sr.metrics import protocol
from diffir_sr.training.cost import COUNTED_SIDE
from diffir_sr.version import __version__

# Tolerances for reproducing the paper: its values are rounded, and decoders and resizing differ.
TOLERANCES = {
    "psnr": 0.05,
    "ssim": 0.002,
    "ssim_matlab": 0.002,
    "lpips_alex": 0.002,
    "lpips_vgg": 0.002,
    "dists": 0.002,
    "fid": 0.1,
}
_NONE = "–"


def check_picture_possible() -> None:
    """Raise InputError if the plot of a benchmark cannot be drawn, before measuring anything."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the plot needs matplotlib: pip install 'diffir_sr[quickstart]', or give --no-picture")


def as_markdown(result: BenchResult) -> str:
    """A table per set: measured value, value of the paper and difference for each metric, then the cost."""
    benchmark = result.benchmark
    lines = [f"# {benchmark.name}", "", f"`diffir bench {benchmark.path}`; {_machine(result)}.", ""]
    for name, facts in result.sets.items():
        part = "" if facts["images"] == facts["of"] else f" of {facts['of']}"
        lines += [f"## {name}: {facts['images']}{part} images", ""]
        lines += [f"{metric}: {how}" for metric, how in _protocols(result).items()]
        lines += [f"sha256 of the pixels: {facts['sha256']}", *_source(name), "", *_set_table(result, name), ""]
    lines += ["| weights | sha256 | what they are |", "| --- | --- | --- |"]
    lines += [f"| {one.name} | {one.sha256} | {one.about} |" for one in result.methods if one.is_network]
    lines += [f"\n{one.name}: operations are not counted ({one.uncounted})." for one in result.methods if one.uncounted]
    lines += [f"\n{note}." for note in result.notes]
    return "\n".join(lines) + "\n"


def _source(name: str) -> list[str]:
    return [f"Paper: {table.title}, {table.source}" for table in paper_tables() if name in table.sets]


def _set_table(result: BenchResult, name: str) -> list[str]:
    paper = paper_rows(name)
    printed = dict.fromkeys(metric for row in paper.values() for metric in row)
    metrics = list(dict.fromkeys([*result.found[result.methods[0].name, name].values, *printed]))

    def cells(found: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
        row = []
        for metric in metrics:
            value, there = found.get(metric), expected.get(metric)
            gap = None if value is None or there is None else value - there
            row.append(_value(metric, value))
            row += [_value(metric, there), _value(metric, gap, sign=True)] if metric in printed else []
        return row

    head = [
        cell for metric in metrics for cell in ((metric, "paper", "difference") if metric in printed else (metric,))
    ]
    cost = ["parameters", f"MACs ({COUNTED_SIDE} px)", "s/image", "peak memory"]
    lines = [_line("method", *head, *cost), "| --- |" + " --: |" * (len(head) + len(cost))]
    measured = {method.paper for method in result.methods if method.paper}
    lines += [_line(row, *cells({}, values), *[_NONE] * 4) for row, values in paper.items() if row not in measured]
    for method in result.methods:
        found = result.found[method.name, name]
        spent = _count(method.parameters), _count(method.macs), f"{found.seconds:.2f}", _bytes(found.memory)
        lines.append(_line(f"**{method.name}**", *cells(found.values, paper.get(method.paper, {})), *spent))
    return lines


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _value(metric: str, value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return _NONE
    digits = 2 if metric == "psnr" else 4
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _count(number: float | None) -> str:
    if not number:
        return _NONE
    power = min(int(math.log10(number) // 3), 4)
    return f"{number / 1000**power:.2f} {['', 'k', 'M', 'G', 'T'][power]}".rstrip()


def _bytes(number: int | None) -> str:
    return _NONE if number is None else f"{number / 2**20:.0f} MiB"


def _protocols(result: BenchResult) -> dict[str, str]:
    return {name: protocol(opt) for name, opt in result.benchmark.metrics.items()}


def _machine(result: BenchResult) -> str:
    where = (
        torch.cuda.get_device_name(result.device)
        if result.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"diffir_sr {__version__}, torch {torch.__version__}, {where}"


def as_json(result: BenchResult) -> dict[str, Any]:
    """All results, unrounded, for programs and for `--against`; infinity is the text 'inf'."""
    return {
        "benchmark": result.benchmark.name,
        "option_file": str(result.benchmark.path),
        "made_with": _machine(result),
        "protocol": _protocols(result),
        "sets": result.sets,
        "notes": result.notes,
        "methods": [_method_json(result, method) for method in result.methods],
    }


def _method_json(result: BenchResult, method: Method) -> dict[str, Any]:
    sets = {}
    for name in result.sets:
        found, paper = result.found[method.name, name], paper_rows(name).get(method.paper, {})
        sets[name] = {
            "measured": {metric: _number(value) for metric, value in found.values.items()},
            "paper": paper,
            "difference": {
                metric: _number(found.values[metric] - value)
                for metric, value in paper.items()
                if metric in found.values
            },
            "seconds_per_image": found.seconds,
            "peak_memory_bytes": found.memory,
            "images": {
                image: {metric: _number(value) for metric, value in row.items()} for image, row in found.images.items()
            },
        }
    facts = {"name": method.name, "sha256": method.sha256, "about": method.about, "paper_row": method.paper}
    cost = {
        "parameters": method.parameters,
        "macs": method.macs,
        "macs_side": COUNTED_SIDE,
        "uncounted": method.uncounted,
    }
    return facts | cost | {"sets": sets}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def draw(result: BenchResult, path: Path) -> None:
    """A panel per set: its first metric over seconds per image; better is up and to the left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = next(iter(result.benchmark.metrics))
    figure, axes = plt.subplots(1, len(result.sets), figsize=(6 * len(result.sets), 5), squeeze=False)
    for axis, name in zip(axes[0], result.sets, strict=True):
        for method in result.methods:
            found = result.found[method.name, name]
            axis.scatter(found.seconds, found.values[metric], marker="o" if method.is_network else "x")
            axis.annotate(
                method.name,
                (found.seconds, found.values[metric]),
                textcoords="offset points",
                xytext=(5, 4),
                fontsize=8,
            )
        for row in {method.paper for method in result.methods if method.paper}:
            expected = paper_rows(name).get(row, {}).get(metric)
            if expected is not None:
                axis.axhline(expected, linestyle=":", linewidth=1, color="grey")
                axis.annotate(
                    f"{row} in the paper",
                    (0.01, expected),
                    xycoords=("axes fraction", "data"),
                    fontsize=7,
                    color="grey",
                )
        axis.set(
            title=name,
            xlabel="s/image",
            ylabel=f"{metric} ({protocol(result.benchmark.metrics[metric])})",
            xscale="log",
        )
        if metric not in HIGHER_IS_BETTER:
            axis.invert_yaxis()
        axis.margins(0.15)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def disagreements(result: BenchResult, tolerances: Mapping[str, float], against: Path | None) -> list[str]:
    """Deviations from the paper, or from an earlier JSON result, beyond the tolerance.

    Raises InputError if there is nothing to compare with, or the earlier run used other images.
    """
    compared, found = 0, []
    for method, name, metric, value, expected, source in _expected(result, against):
        compared += 1
        tolerance = tolerances.get(metric, 0.0)
        if not abs(value - expected) <= tolerance:  # also true for NaN
            found.append(
                f"{name}, {method}: {metric} is {value:.4f}, {source} {expected:.4f} (tolerance {tolerance:g})"
            )
    if not compared:
        raise InputError(
            "--check: none of these methods has a value to compare with; measure a network of the paper's table on one "
            "of its sets, or give an earlier result with --against"
        )
    return found


def _expected(result: BenchResult, against: Path | None) -> Iterator[tuple[str, str, str, float, float, str]]:
    earlier = None if against is None else _earlier(against, result)
    for method in result.methods:
        for name in result.sets:
            values = result.found[method.name, name].values
            if earlier is not None:
                expected, source = earlier.get((method.name, name), {}), f"{against}"
            else:
                expected, source = paper_rows(name).get(method.paper, {}), "the paper"
            for metric in expected.keys() & values.keys():
                yield method.name, name, metric, values[metric], float(expected[metric]), source


def _earlier(path: Path, result: BenchResult) -> dict[tuple[str, str], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pixels = {name: facts["sha256"] for name, facts in content["sets"].items()}
        found = {
            (one["name"], name): cell["measured"] for one in content["methods"] for name, cell in one["sets"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--against {path}: not a result of diffir bench ({type(error).__name__}: {error})") from error
    for name, facts in result.sets.items():
        if name in pixels and pixels[name] != facts["sha256"]:
            raise InputError(f"--against {path}: was measured on other images of {name} (sha256 {pixels[name]})")
    return found
