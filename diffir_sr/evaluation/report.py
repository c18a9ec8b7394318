"""Results as a table for the terminal, as CSV and as JSON; the worst images come first."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from diffir_sr.evaluation.measure import Measured, Row
from diffir_sr.evaluation.presets import HIGHER_IS_BETTER, SET_METRICS
from diffir_sr.metrics.fidelity import protocol


def worst_first(measured: Measured) -> list[Row]:
    """Rows sorted by their first metric, worst first; sorted by name without image metrics."""
    metrics = list(measured.plan.images)
    if not metrics:
        return measured.rows
    sign = 1 if metrics[0] in HIGHER_IS_BETTER else -1
    return sorted(measured.rows, key=lambda row: sign * row.values[metrics[0]])


def as_table(measured: Measured, *, worst: int) -> str:
    """Means with their protocols, then the `worst` images, then means by hole size."""
    count = len(measured.rows)
    head = f"{count} image{'s' if count > 1 else ''}, preset {measured.plan.preset}"
    lines = [head + (f"; {measured.cropped} ground truths cropped to the restored size" if measured.cropped else "")]
    lines += [f"  {name:<12}{measured.mean(name):>10.4f}   {how}" for name, how in _protocols(measured).items()]
    lines += [
        f"  {name:<12}{value:>10.4f}   {measured.titles[name]}, {_counts(measured, name)}"
        for name, value in measured.sets.items()
    ]
    metrics = list(measured.plan.images)
    if metrics and worst and count > 1:
        rows = [(row.name, row.values) for row in worst_first(measured)[:worst]]
        lines += _block(f"worst by {metrics[0]}", metrics, rows)
    if metrics and (bins := measured.bins()):
        means = [
            (f"{title} ({len(rows)} images)", {name: measured.mean(name, rows) for name in metrics})
            for title, rows in bins.items()
        ]
        lines += _block("mean by hole size as a share of the image", metrics, means)
    return "\n".join(lines) + "\n"


def _counts(measured: Measured, name: str) -> str:
    restored, true = measured.counts[name]
    return f"{restored} and {true} {'patches' if SET_METRICS[name].patches else 'images'}"


def _block(title: str, metrics: list[str], rows: list[tuple[str, dict[str, float]]]) -> list[str]:
    header = " ".join(f"{name:>11}" for name in metrics)
    cells = [" ".join(f"{values[name]:>11.4f}" for name in metrics) + f"   {name}" for name, values in rows]
    return ["", f"{title}:", *(f"  {line}" for line in (header, *cells))]


def as_csv(measured: Measured) -> str:
    """A row per image, worst first, and a final row 'mean'."""
    metrics, file = list(measured.plan.images), io.StringIO()
    holes = any(row.hole is not None for row in measured.rows)
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["image", *metrics, *(["hole"] if holes else [])])
    for row in worst_first(measured):
        cells = [f"{row.values[name]:.6f}" for name in metrics]
        table.writerow([row.name, *cells, *([f"{row.hole:.6f}"] if holes else [])])
    table.writerow(["mean", *(f"{measured.mean(name):.6f}" for name in metrics), *([""] if holes else [])])
    return file.getvalue()


def as_json(measured: Measured) -> dict[str, Any]:
    """All results, unrounded; infinity is the text 'inf', since JSON has no number for it."""
    metrics = list(measured.plan.images)
    return {
        "preset": measured.plan.preset,
        "images": len(measured.rows),
        "protocol": _protocols(measured) | measured.titles,
        "mean": {name: _number(measured.mean(name)) for name in metrics},
        "sets": {name: _number(value) for name, value in measured.sets.items()},
        "holes": {
            title: {"images": len(rows)} | {name: _number(measured.mean(name, rows)) for name in metrics}
            for title, rows in measured.bins().items()
        },
        "worst_first": [
            {"image": row.name, "hole": row.hole} | {name: _number(row.values[name]) for name in metrics}
            for row in worst_first(measured)
        ],
    }


def _protocols(measured: Measured) -> dict[str, str]:
    return {name: protocol(opt) for name, opt in measured.plan.images.items()}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
