"""Report of an ablation: a table, a plot with error bars, and the paper's conclusions next to the measured ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from scipy.stats import t

from diffir_sr.ablation.plan import AblationFile
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically


@dataclass(frozen=True)
class Found:
    """Values of the metric for a variant (or for stage 1 with its oracle prior), one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; nan for a single one."""
        return stdev(self.values) if len(self.values) > 1 else math.nan


def against(found: Found, reference: Found, *, lower_is_better: bool) -> tuple[float, str]:
    """Mean gain over the reference, paired by seed, and the verdict: better, worse or within the noise.

    A difference counts if a paired t-test is significant at 5 %; with three seeds, that is from 4.3 times its standard
    error on. With one seed there is no verdict.
    """
    sign = -1 if lower_is_better else 1
    gains = [sign * (one - other) for one, other in zip(found.values, reference.values, strict=True)]
    if len(gains) < 2:
        return fmean(gains), "one seed: no statement"
    error = stdev(gains) / math.sqrt(len(gains))
    if abs(fmean(gains)) <= float(t.ppf(0.975, len(gains) - 1)) * error:
        return fmean(gains), "within the noise"
    return fmean(gains), "better" if fmean(gains) > 0 else "worse"


def write_report(
    ablation: AblationFile, found: Mapping[str, Found], oracle: Found, folder: Path, *, setting: str
) -> Path:
    """Write report.md, results.json and plot.png to `folder`; returns the path of the first."""
    reference = found[ablation.reference]
    lines = [
        f"# Ablation: {ablation.name}",
        "",
        ablation.about,
        "",
        setting,
        "",
        f"| variant | {ablation.metric}, mean | deviation | against {ablation.reference} | measured | paper |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        f"| stage 1 (oracle prior) | {oracle.mean:.3f} | {oracle.deviation:.3f} | | | |",
    ]
    for name, values in found.items():
        gain, verdict = against(values, reference, lower_is_better=ablation.lower_is_better)
        gap, verdict = ("", "reference") if name == ablation.reference else (f"{gain:+.3f}", verdict)
        paper = ablation.variants[name].paper
        lines.append(f"| {name} | {values.mean:.3f} | {values.deviation:.3f} | {gap} | {verdict} | {paper} |")
    lines += ["", f"Paper: {ablation.paper}"] if ablation.paper else []
    lines += ["", "![Means and deviations over the seeds](plot.png)", ""]
    folder.mkdir(parents=True, exist_ok=True)
    results = {"stage 1": oracle.values} | {name: values.values for name, values in found.items()}
    write_atomically(json.dumps(results, indent=1).encode(), folder / "results.json")
    write_atomically("\n".join(lines).encode(), folder / "report.md")
    _plot(ablation, found, oracle, folder / "plot.png")
    return folder / "report.md"


def _plot(ablation: AblationFile, found: Mapping[str, Found], oracle: Found, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.5 * len(found) + 1.6), layout="constrained")
    axes = figure.subplots()
    low, high = shown_range([*found.values(), oracle])
    for place, (name, values) in enumerate(found.items()):
        colour = "tab:orange" if name == ablation.reference else "tab:blue"
        if not low <= values.mean <= high:
            edge, arrow = (low, "\N{LEFTWARDS ARROW}") if values.mean < low else (high, "\N{RIGHTWARDS ARROW}")
            side = "left" if values.mean < low else "right"
            axes.text(edge, place, f" {arrow} {values.mean:.3f} ", va="center", ha=side, color=colour)
            continue
        axes.errorbar(values.mean, place, xerr=_spread(values), fmt="o", capsize=4, color=colour)
        axes.plot(values.values, [place + 0.18] * len(values.values), "|", color="grey")
    axes.axvline(oracle.mean, linestyle="--", color="grey", label="stage 1 (oracle prior)")
    axes.set_xlim(low, high)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xlabel(f"{ablation.metric}; dots: means, bars: deviation over {len(oracle.values)} seeds, ticks: seeds")
    axes.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=120)


def shown_range(found: Sequence[Found]) -> tuple[float, float]:
    """Range of the axis: all seeds, without variants so far away that the others would collapse to one point."""
    middle = median(one.mean for one in found)
    usual = max(median(abs(one.mean - middle) for one in found), median(_spread(one) for one in found))
    near = [one for one in found if abs(one.mean - middle) <= 10 * usual] if usual else list(found)
    values = [value for one in near for value in (*one.values, one.mean - _spread(one), one.mean + _spread(one))]
    margin = 0.08 * (max(values) - min(values)) or 0.1
    return min(values) - margin, max(values) + margin


def _spread(found: Found) -> float:
    return 0.0 if math.isnan(found.deviation) else found.deviation


# Inserting the report of an ablation into a document, between markers, so that no number is typed by hand.


def marks(name: str) -> tuple[str, str]:
    """The lines that enclose the report of the ablation `name`; invisible in rendered Markdown."""
    return f"<!-- begin of {name} -->", f"<!-- end of {name} -->"


def check_document(document: Path, name: str) -> None:
    """Raise InputError unless the document contains both markers once, in this order."""
    text = document.read_text(encoding="utf-8") if document.is_file() else None
    begin, end = marks(name)
    if text is None or text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        found = "there is no such file" if text is None else "they do not occur once each, in this order"
        raise InputError(
            f"{document}: expected the lines {begin!r} and {end!r} to insert the report between them; {found}"
        )


def put_into(document: Path, name: str, report: Path) -> list[Path]:
    """Replace the text between the markers by the report, and copy its plot; returns the files written.

    The plot goes to a folder named like the document: experiments/<name>.png for experiments.md.
    """
    check_document(document, name)
    picture = document.parent / document.stem / f"{name}.png"
    write_atomically((report.parent / "plot.png").read_bytes(), picture)
    _, _, table = report.read_text(encoding="utf-8").partition("\n\n")  # the document has headings of its own
    table = table.replace("(plot.png)", f"({document.stem}/{picture.name})").strip()
    fill(document, name, table)
    return [document, picture]


def fill(document: Path, name: str, text: str) -> None:
    """Replace the text between the markers of `name`; raises InputError if they are missing."""
    check_document(document, name)
    begin, end = marks(name)
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    write_atomically(f"{before}{begin}\n\n{text}\n\n{end}{after}".encode(), document)
