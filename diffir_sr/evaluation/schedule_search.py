"""Which schedule, sampler and number of samples suit a network: every cell of a grid measured on the same pictures.

Whang et al. 2022, section 4: trained once, a diffusion is sampled with any schedule, and schedules trade what is close
to the truth for what looks real. Cells share the first guess of each picture and its start noise.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffir_sr.data.records import append_record, read_records
from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.diffusion.sampling import Sampling
from diffir_sr.errors import InputError, OptionError
from diffir_sr.evaluation.bench import Benchmark, Picture
from diffir_sr.families.base import Engine, WalksInSteps
from diffir_sr.inference.plain import Guesses, restore_samples
from diffir_sr.models.sr3_model import SearchGrid
from diffir_sr.models.validation import measure
from diffir_sr.progress import progress_bar

_CALLS = "network_calls"  # a column, and the axis beside a single metric
_NOT_METRICS = ("schedule", "steps", "linear_end", "sampler", "variance", "eta", "samples", _CALLS, "seconds", "front")


@dataclass(frozen=True)
class Cell:
    """One way to sample; `end` is the last beta of a schedule that has one, and "trained" visits the training's."""

    schedule: str
    steps: int
    end: float | None
    sampler: str
    variance: str | None
    eta: float | None

    def sampling(self, start: float) -> Sampling:
        """As options; `start` is the first beta of a schedule that has one."""
        how: dict[str, Any] = {"sampler": self.sampler, "variance": self.variance, "eta": self.eta}
        if self.schedule == "trained":
            return Sampling(steps=self.steps, **how)
        about: dict[str, Any] = {"schedule": self.schedule, "n_timestep": self.steps}
        if self.end is not None:
            about |= {"linear_start": start, "linear_end": self.end}
        return Sampling(beta_schedule=about, **how)


@dataclass
class Found:
    """What a search measured: a row per cell and number of samples; the first `axes` metric is the objective."""

    rows: list[dict[str, Any]]
    better: dict[str, str]  # of each metric: higher or lower
    objective: str
    skipped: list[str] = field(default_factory=list)  # cells that cannot be sampled from

    @property
    def axes(self) -> tuple[str, str]:
        """The objective, and the first other metric, or what it costs where there is none."""
        return self.objective, next((name for name in self.better if name != self.objective), _CALLS)

    def loss(self, row: Mapping[str, Any], metric: str) -> float:
        """A row's value such that less is better; what could not be computed is worst."""
        value = float(row[metric])
        if math.isnan(value):
            return math.inf
        return -value if self.better.get(metric) == "higher" else value

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best objective, of equal ones the one of fewest network calls."""
        return min(self.rows, key=lambda row: (self.loss(row, self.objective), row[_CALLS]))


def grid_of(options: Mapping[str, Any]) -> SearchGrid:
    """The grid of an option file, or the default one; raises OptionError."""
    return SearchGrid.of(options.get("search"))


def default_objective(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The first metric of which less is better, which says how real pictures look; else the first."""
    return next((name for name, opt in metrics.items() if opt.get("better") == "lower"), next(iter(metrics)))


def cells_of(grid: SearchGrid, network: WalksInSteps) -> tuple[list[Cell], list[str]]:
    """The cells of a grid that a network can be sampled with, and sentences about those that it cannot.

    The network's sampling is another one afterwards. Raises OptionError where no cell is left.
    """
    ways = [("ddpm", variance, None) for variance in grid.variance if "ddpm" in grid.samplers]
    ways += [("ddim", None, eta) for eta in grid.eta if "ddim" in grid.samplers]
    cells, refused = [], []
    for schedule, steps in itertools.product(grid.schedules, grid.steps):
        ends: Sequence[float | None] = [None] if schedule in ("trained", "cosine") else grid.linear_end
        for end in ends:
            named = f"{schedule}, {steps} steps" + ("" if end is None else f", linear_end {end:g}")
            try:
                network.sampling = Cell(schedule, steps, end, "ddpm", None, None).sampling(grid.linear_start)
            except OptionError as error:
                refused.append(f"{named}: {error}")
                continue
            cells += [Cell(schedule, steps, end, *way) for way in ways]
    if not cells:
        why = f"; the first: {refused[0]}" if refused else ": it names no sampler"
        raise OptionError(f"search: none of the grid's cells can be sampled from{why}")
    return cells, refused


def search(
    engine: Engine,
    pictures: Iterable[tuple[str, Picture]],
    grid: SearchGrid,
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    objective: str,
    seed: int = 0,
    record: Path | None = None,
    about: str = "",
    count: int | None = None,
) -> Found:
    """Measure every cell of `grid` on `pictures` (set, picture); a bar on stderr where that is a terminal.

    Values are means over pictures. `record` is a file of what was measured so far, from which a search that was
    stopped goes on; `about` names weights and all else that measurements depend on; `count` is the number of pictures,
    for the bar. The network's sampling is as before afterwards. Raises OptionError for a network without a sampler, a
    grid or an objective that cannot be.
    """
    network: Any = engine.network
    if not isinstance(network, WalksInSteps):
        raise OptionError(
            f"search: {type(getattr(network, 'net', network)).__name__} restores without a sampler; there is nothing "
            "to search"
        )
    if objective not in metrics:
        raise OptionError(f"objective: expected one of val.metrics ({', '.join(metrics)}), found {objective!r}")
    before = network.sampling
    known = {} if record is None else _known(record, about)
    values: dict[tuple[Cell, int], list[dict[str, float]]] = {}
    try:
        cells, skipped = cells_of(grid, network)
        with progress_bar(total=count and count * len(cells), unit="cell", leave=False) as bar:
            for name, picture in pictures:
                guesses: Guesses = {}
                for cell in cells:
                    key = json.dumps([name, *asdict(cell).values(), grid.linear_start, max(grid.samples)])
                    if key not in known:
                        network.sampling = replace(cell.sampling(grid.linear_start), clip=before.clip)
                        drawn = _measured(engine, picture, grid.samples, metrics, seed=seed, guesses=guesses)
                        known[key] = drawn
                        if record is not None:
                            append_record(record, {"about": about, "key": key, "values": drawn})
                    for number in grid.samples:
                        values.setdefault((cell, number), []).append(known[key][str(number)])
                    bar.update()
    finally:
        network.sampling = before
    if not values:
        raise InputError("search: no pictures to measure on")
    better = {name: str(opt.get("better", "higher")) for name, opt in metrics.items()}
    rows = [_row(cell, number, measured) for (cell, number), measured in values.items()]
    found = Found(rows, better, objective, skipped)
    for row, is_on_front in zip(found.rows, front([_point(found, row) for row in found.rows]), strict=True):
        row["front"] = is_on_front
    return found


def _known(record: Path, about: str) -> dict[str, dict[str, dict[str, float]]]:
    rows = [row for row in read_records(record) if row.get("about") == about]
    return {row["key"]: row["values"] for row in rows if "key" in row and "values" in row}


def _measured(
    engine: Engine,
    picture: Picture,
    counts: Sequence[int],
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    guesses: Guesses,
) -> dict[str, dict[str, float]]:
    """Values of the mean of so many samples, for each of `counts`: those of fewer are among those of more."""
    if not guesses and isinstance(engine.network, WalksInSteps):  # so that no cell's seconds hold the first guess
        now = engine.network.sampling
        engine.network.sampling = now.changed(steps=1)
        for _ in restore_samples(engine, picture.lq, noises=[PictureNoise(picture.lq, seed=seed)], guesses=guesses):
            pass
        engine.network.sampling = now
    noises = [PictureNoise(picture.lq, seed=seed, sample=sample) for sample in range(max(counts))]
    mean, found, started = torch.zeros(()), dict[str, dict[str, float]](), time.perf_counter()
    for number, made in enumerate(restore_samples(engine, picture.lq, noises=noises, guesses=guesses), start=1):
        mean = mean + (made - mean) / number
        if number in counts:
            seconds = time.perf_counter() - started
            found[str(number)] = {"seconds": seconds, **_values(mean, picture, metrics)}
            started = time.perf_counter() - seconds  # measuring costs nothing
    return found


def _values(mean: Tensor, picture: Picture, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    if mean.shape != picture.gt.shape:
        sizes = " and ".join("x".join(str(side) for side in one.shape[-2:]) for one in (mean, picture.gt))
        raise InputError(f"{picture.name}: the network gives another size than the ground truth: {sizes}")
    return measure(mean, picture.gt, metrics)


def _row(cell: Cell, count: int, values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
    row = {name: value for name, value in asdict(cell).items() if name != "end"}
    return {
        **{"schedule": cell.schedule, "steps": cell.steps, "linear_end": cell.end},
        **row,
        "samples": count,
        _CALLS: cell.steps * count,
        **means,
    }


def _point(found: Found, row: Mapping[str, Any]) -> tuple[float, float]:
    first, second = (found.loss(row, axis) for axis in found.axes)
    return first, second


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as good in both numbers and better in one (less is)."""
    on, least = [False] * len(points), math.inf
    order = sorted(range(len(points)), key=lambda index: points[index])
    for _, group in itertools.groupby(order, key=lambda index: points[index][0]):
        members = list(group)
        lowest = points[members[0]][1]
        if lowest < least:
            least = lowest
            for index in members:
                on[index] = points[index][1] == lowest
    return on


# What is written


def as_csv(found: Found) -> str:
    """A row per cell and number of samples, the best objective first; an empty field is what a cell has not."""
    file = io.StringIO()
    columns = [name for name in _NOT_METRICS if name != "front"] + list(found.better) + ["front"]
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()
    for row in sorted(found.rows, key=lambda row: found.loss(row, found.objective)):
        table.writerow({name: _cell(row[name]) for name in columns})
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return repr(value) if isinstance(value, float) else "" if value is None else value


def read_csv(text: str) -> list[dict[str, Any]]:
    """The rows of `as_csv`, in its order."""
    rows: list[dict[str, Any]] = []
    for line in csv.DictReader(io.StringIO(text)):
        row: dict[str, Any] = {}
        for name, value in line.items():
            if name in ("schedule", "sampler", "variance"):
                row[name] = value or None
            elif name in ("steps", "samples", _CALLS):
                row[name] = int(value)
            else:
                row[name] = float(value) if value else None
        row["front"] = bool(row["front"])
        rows.append(row)
    return rows


def schedule_file(found: Found, grid: SearchGrid, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """The best row as what `diffir restore --schedule` and `val.schedule` read, with what was measured of it."""
    best = found.best
    cell = Cell(*(best[name] for name in ("schedule", "steps", "linear_end", "sampler", "variance", "eta")))
    sampling = {name: value for name, value in asdict(cell.sampling(grid.linear_start)).items() if value is not None}
    del sampling["clip"]  # stays the network's
    return {
        "sampling": sampling,
        "samples": best["samples"],
        "found": {"objective": found.objective, **{name: best[name] for name in found.better}, **about},
    }


def as_text(found: Found, *, most: int = 12) -> str:
    """The front as a table, best objective first; `most` rows of it."""
    rows = sorted((row for row in found.rows if row["front"]), key=lambda row: found.loss(row, found.objective))
    columns = [name for name in (*_NOT_METRICS[:-1], *found.better) if any(row[name] is not None for row in rows)]
    lines = [[_short(row[name]) for name in columns] for row in rows[:most]]
    widths = [max(len(line[at]) for line in [columns, *lines]) for at in range(len(columns))]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [columns, *lines]
    ]
    more = [f"... and {len(rows) - most} more, in the CSV"] if len(rows) > most else []
    axes = " and ".join(found.axes)
    return "\n".join([f"{len(found.rows)} rows; not beaten in {axes}:", *table, *more]) + "\n"


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(found: Found, path: Path) -> None:
    """Every row by its two axes, the front as a line; size shows the number of samples, colour the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    across, up = found.axes[1], found.axes[0]
    rows = [row for row in found.rows if all(math.isfinite(row[axis]) for axis in (across, up))]
    figure, axis = plt.subplots(figsize=(7.5, 5.5))
    steps = [row["steps"] for row in rows]
    for sampler, marker in (("ddpm", "o"), ("ddim", "^")):
        part = [row for row in rows if row["sampler"] == sampler]
        shown = axis.scatter(
            [row[across] for row in part],
            [row[up] for row in part],
            s=[18 + 14 * math.log2(row["samples"]) for row in part],
            c=[row["steps"] for row in part],
            norm=LogNorm(min(steps, default=1), max(steps, default=1) + 1),
            marker=marker,
            alpha=0.75,
            label=sampler,
        )
    on = sorted((row for row in rows if row["front"]), key=lambda row: row[across])
    axis.plot([row[across] for row in on], [row[up] for row in on], color="black", linewidth=1, label="Pareto front")
    best = found.best
    axis.annotate("schedule.json", (best[across], best[up]), textcoords="offset points", xytext=(6, 6), fontsize=8)
    for name, invert in ((across, axis.invert_xaxis), (up, axis.invert_yaxis)):
        if found.better.get(name) == "lower" or name == _CALLS:
            invert()
    if across == _CALLS:
        axis.set_xscale("log")
    axis.set(xlabel=across, ylabel=up, title="better is up and to the right; larger: more samples averaged")
    figure.colorbar(shown, label="steps")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def pictures_of(benchmark: Benchmark, *, limit: int | None) -> Iterator[tuple[str, Picture]]:
    """The pictures of all sets of an option file, `limit` of each at most, under names that tell them apart."""
    for name in benchmark.datasets:
        for number, picture in enumerate(itertools.islice(benchmark.pictures(name), limit)):
            yield f"{name} {number} {picture.name}", picture
