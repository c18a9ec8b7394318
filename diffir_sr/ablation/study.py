"""Ablations: the variants of recipes and seeds that are trained, and the report next to the paper's findings."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml
from pydantic import Field
from scipy.stats import t

from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.option_types import Count, CountOrZero, Section
from diffir_sr.options import load_options
from diffir_sr.options.check import Report, check_model, fail_on_problems
from diffir_sr.options.schema import named_classes
from diffir_sr.options.source import read_source


class Variant(Section):
    """One variant; the keys of stage_1 and stage_2 override those of the recipes."""

    paper: str = Field("", description="What the paper found for this variant.")
    stage_1: dict[str, Any] = Field({}, description="Options of stage 1 that differ; it then trains its own stage 1.")
    stage_2: dict[str, Any] = Field({}, description="Options of stage 2 that differ.")


class AblationFile(Section):
    """Content of a file in options/ablations."""

    name: str = Field(min_length=1, description="Name of the runs and of the report folder.")
    about: str = Field(description="What is compared, in one sentence.")
    stage_1: str = Field(description="Option file of stage 1, relative to this file.")
    stage_2: str = Field(description="Option file of stage 2, relative to this file.")
    both: dict[str, Any] = Field({}, description="Options of both stages of all variants.")
    seeds: list[CountOrZero] = Field([0, 1, 2], min_length=1, description="Seeds of weights, patches and noise.")
    iterations: Count | None = Field(None, description="Iterations of each stage; by default the recipes'.")
    metric: str = Field(description="Name of the metric in the validation of the recipes.")
    lower_is_better: bool = Field(False, description="Whether smaller values of the metric are better.")
    reference: str = Field(description="The variant that the others are compared with.")
    paper: str = Field("", description="The paper's conclusion.")
    variants: dict[str, Variant] = Field(min_length=2, description="The variants, by name.")


@dataclass(frozen=True)
class Run:
    """One training: its name, its option file (as values) and the run whose weights it starts from."""

    name: str
    values: dict[str, Any]
    variant: str
    seed: int
    stage: int


def read_ablation(path: Path) -> AblationFile:
    """Read and check a file; raises OptionError, which lists all problems."""
    source = read_source(path)
    report = Report()
    check_model(AblationFile, source.values, (), report)
    fail_on_problems(report, source.places, file=str(path))
    found = AblationFile.model_validate(source.values)
    _check_names(found, report)
    fail_on_problems(report, source.places, file=str(path))
    if found.reference not in found.variants:
        raise OptionError(f"{path}: reference: no variant is named {found.reference!r}; there are: {_names(found)}")
    for stage in (found.stage_1, found.stage_2):
        if not (path.parent / stage).is_file():
            raise OptionError(f"{path}: no such option file: {(path.parent / stage).absolute()}")
    return found


def _check_names(ablation: AblationFile, report: Report) -> None:
    """Every training needs a unique name, because its files have that name."""
    name = ablation.name
    if name.startswith(".") or not name.isprintable() or any(mark in name for mark in "/\\:"):
        report.problem(("name",), f"expected a file name (without / \\ : and without a leading dot), found {name!r}")
    marks = [_mark(change.stage_1) for change in ablation.variants.values()]
    taken = {f"s1_{mark}": f"the runs of stage 1, {mark}" for mark in marks}
    for variant in ablation.variants:
        word = _word(variant).casefold()  # many file systems ignore case
        if word in taken:
            text = f"its runs would have the names of {taken[word]} ('{_word(variant)}'); give it another name"
            report.problem(("variants", variant), text)
        taken.setdefault(word, repr(variant))
    for index, seed in enumerate(ablation.seeds):
        if seed in ablation.seeds[:index]:
            report.problem(("seeds", index), f"{seed} is listed twice; every seed is trained once")


def _names(ablation: AblationFile) -> str:
    return ", ".join(ablation.variants)


def plan_runs(ablation: AblationFile, folder: Path) -> list[Run]:
    """All trainings in order; variants with the same stage 1 share it. `folder` is that of the ablation file."""
    runs: dict[str, Run] = {}
    for seed in ablation.seeds:
        for variant, change in ablation.variants.items():
            first = _run_name(ablation, "S1", change.stage_1, seed)
            if first not in runs:
                values = _values(ablation, folder / ablation.stage_1, first, change.stage_1, seed)
                runs[first] = Run(first, values, variant, seed, 1)
            second = f"ablate_{ablation.name}_{_word(variant)}_s{seed}"
            weights = f"experiments/{first}/models/net_g_latest.pth"
            values = _values(ablation, folder / ablation.stage_2, second, change.stage_2, seed)
            path = {"pretrain_network_g": weights, "pretrain_network_S1": weights, "strict_load_g": False}
            given = values.get("path", {})
            values["path"] = (
                {**path, **given} if isinstance(given, Mapping) else given
            )  # reported by the check of the options
            runs[second] = Run(second, values, variant, seed, 2)
    return list(runs.values())


def _values(ablation: AblationFile, recipe: Path, name: str, change: Mapping[str, Any], seed: int) -> dict[str, Any]:
    values: dict[str, Any] = {"base": str(recipe.resolve()), "name": name, "manual_seed": seed}
    values = _merged(values, ablation.both)
    if ablation.iterations:
        values = _merged(values, {"train": {"total_iter": ablation.iterations}})
    return _merged(values, change)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _run_name(ablation: AblationFile, stage: str, change: Mapping[str, Any], seed: int) -> str:
    return f"ablate_{ablation.name}_{stage}_{_mark(change)}_s{seed}"


def _mark(change: Mapping[str, Any]) -> str:
    """An identifier for changes of stage 1."""
    if not change:
        return "plain"
    text = json.dumps(change, sort_keys=True, default=str)  # YAML has dates, JSON does not
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)


# Checking every training of an ablation before the first one starts.


def check_runs(ablation: AblationFile, runs: Sequence[Run], *, file: Path) -> None:
    """Check the options of every variant and stage; raises one OptionError that lists all problems.

    Data and weights may still be missing. `file` is the ablation file, for the message.
    """
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            if run.seed != ablation.seeds[0]:  # other seeds differ in nothing else
                continue
            written = Path(folder) / f"{run.name}.yml"
            try:
                written.write_text(yaml.safe_dump(run.values, sort_keys=False, allow_unicode=True), encoding="utf-8")
                _check_purpose(load_options(written, check_files=False).values, ablation, run)
            except OptionError as error:
                message = str(error).replace(str(written), "merged options")
                faults.append(f"variant {run.variant!r}, stage {run.stage}: {message}")
    if faults:
        raise OptionError(f"{file}: {len(faults)} of its trainings cannot run:\n" + "\n".join(faults))


def _check_purpose(values: dict[str, Any], ablation: AblationFile, run: Run) -> None:
    kind = str((values.get("network_g") or {}).get("type"))
    stage = getattr(dict(named_classes(values)).get(("network_g",)), "stage", run.stage)
    if stage != run.stage:
        recipe = ablation.stage_1 if run.stage == 1 else ablation.stage_2
        raise OptionError(
            f"its network is {kind}, of stage {stage}; stage_{run.stage} of the ablation must name a recipe of "
            f"stage {run.stage}, found {recipe}"
        )
    measured = list((values.get("val") or {}).get("metrics") or {})
    if ablation.metric not in measured:
        raise OptionError(
            f"metric {ablation.metric!r} is not among val.metrics of {run.name}: {', '.join(measured) or 'none'}; "
            "use one of them, or add it under both.val.metrics"
        )


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
