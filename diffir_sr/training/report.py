"""One HTML file about a training: curves, pictures over time, the worst ones, options, cost, environment.

The file needs nothing from outside: charts are SVG, pictures are WebP, both inside it, and its content security policy
forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import importlib.util
import io
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import yaml
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.utils import tensor2img
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from diffir_sr.data.records import read_records
from diffir_sr.devices import accelerator_count
from diffir_sr.errors import DiffIRError, InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.models.validation import result_names
from diffir_sr.training.run import quiet
from diffir_sr.version import __version__

logger = logging.getLogger("basicsr")

_POINTS = 800  # of one curve; longer ones are means of neighbours
_SIDE = 384  # pixels that are shown of a picture
_STEPS = 5  # moments of a training at which a picture is shown
_WORST = 8
_QUALITY = 92  # of WebP


@dataclass
class Sample:
    """One validation picture as it was restored over time; images are BGR uint8 of one size, cut alike."""

    dataset: str
    name: str
    lq: np.ndarray
    gt: np.ndarray | None
    restored: dict[int, np.ndarray] = field(default_factory=dict)  # by iteration


@dataclass
class RunRecord:
    """What a training has left in its folder."""

    folder: Path
    opt: dict[str, Any]
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    scores: dict[str, list[dict[str, Any]]]  # per picture of the newest validation, by dataset
    log: list[str]

    @property
    def iterations(self) -> int:
        return int(self.training[-1]["iter"]) if self.training else 0


def check_report_possible() -> None:
    """Raise InputError where what draws and fills the page is not installed."""
    absent = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"a report needs {' and '.join(absent)}: pip install 'diffir_sr[quickstart]'")


def write_run_report(folder: Path, output: Path, *, pictures: int = 4, restore: bool = True) -> list[str]:
    """Write the report of the training in `folder` (experiments/<name>); gives what had to be left out.

    The worst `pictures` of each validation set are shown; those that validation did not save are restored now by saved
    checkpoints, if `restore`. Raises InputError for a folder without a training.
    """
    check_report_possible()
    run = read_run(folder)
    samples, left_out = _samples(run, pictures, restore=restore)
    write_report(_page(run, samples, left_out), output)
    return left_out


def report_at_the_end(folder: Path) -> None:
    """Write the report of a training that has ended to its folder, unless the one there is newer than its records."""
    output = folder / "report.html"
    records = list(folder.glob("*.jsonl"))
    if output.is_file() and all(path.stat().st_mtime_ns < output.stat().st_mtime_ns for path in records):
        return
    for line in write_run_report(folder, output):
        logger.warning(line)
    logger.info(f"Wrote {output}")


def read_run(folder: Path) -> RunRecord:
    """What a training has recorded; raises InputError where there is none."""
    used = folder / "options_used.yml"
    if not used.is_file():
        raise InputError(f"{folder.absolute()}: no training (no {used.name}); name a folder such as experiments/NAME")
    try:
        opt = yaml.safe_load(used.read_text(encoding="utf-8"))
        name, sections = str(opt["name"]), list(opt["datasets"])
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{used}: damaged ({type(error).__name__}); --auto_resume of the training mends it") from error
    training = [row for row in read_records(folder / "training.jsonl") if isinstance(row.get("iter"), int)]
    validation = [row for row in read_records(folder / "validation.jsonl") if isinstance(row.get("iter"), int)]
    if not training and not validation:
        raise InputError(
            f"{folder.absolute()}: {name} has recorded nothing yet; run it for logger.print_freq iterations"
        )
    datasets = [opt["datasets"][key].get("name") or key for key in sections if key.split("_")[0] == "val"]
    scores = {name: _scores(folder / f"validation_{name}.csv") for name in datasets}
    logs = sorted(folder.glob("train_*.log"), key=lambda path: path.stat().st_mtime)
    log = [line for path in logs for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return RunRecord(folder, opt, training, validation, scores, log)


def _scores(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("image") != "mean"]
    return [{key: value if key == "image" else float(value) for key, value in row.items()} for row in rows]


def _metrics(run: RunRecord) -> dict[str, bool]:
    """The metrics of the validation, and whether more is better."""
    given = (run.opt.get("val") or {}).get("metrics") or {}
    return {name: (opt or {}).get("better", "higher") == "higher" for name, opt in given.items()}


def _worst(run: RunRecord, dataset: str, metric: str) -> list[dict[str, Any]]:
    """The pictures of a dataset from the worst on; those without a number first."""
    higher = _metrics(run)[metric]
    rows = [row for row in run.scores.get(dataset, ()) if metric in row]
    return sorted(rows, key=lambda row: (not math.isnan(row[metric]), row[metric] if higher else -row[metric]))


# Pictures over time.


def _samples(run: RunRecord, count: int, *, restore: bool) -> tuple[list[Sample], list[str]]:
    """Pictures of all validation sets, and a sentence on each set of which none can be shown."""
    samples: list[Sample] = []
    left_out: list[str] = []
    for key, section in run.opt["datasets"].items():
        if key.split("_")[0] == "val" and count:
            try:
                samples += _samples_of(run, section, count, restore=restore)
            except (DiffIRError, OSError, ValueError, RuntimeError, KeyError) as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                left_out.append(f"{section.get('name') or key}: its pictures cannot be shown ({why})")
    return samples, left_out


def _samples_of(run: RunRecord, section: dict[str, Any], count: int, *, restore: bool) -> list[Sample]:
    with quiet():
        dataset = build_dataset(copy.deepcopy(section))
    names = result_names(dataset)
    metric = next(iter(_metrics(run)), None)
    worst = [row["image"] for row in _worst(run, section["name"], metric)] if metric else []
    chosen = [names.index(name) for name in worst if name in names][:count] or list(range(len(names)))[:count]
    saved = {index: _saved(run, names[index]) for index in chosen}
    unsaved = [index for index in chosen if not saved[index]]
    if unsaved and not restore:
        chosen = [index for index in chosen if saved[index]]
        unsaved = []
    made: dict[int, dict[int, np.ndarray]] = {
        index: {iteration: _read(path) for iteration, path in found.items()} for index, found in saved.items() if found
    }
    model: Any = None
    for iteration, weights in _spread(_checkpoints(run)).items() if unsaved else ():
        model = _model(run, weights)
        for index in unsaved:
            model.feed_data(default_collate([dataset[index]]))
            model.test()
            made.setdefault(index, {})[iteration] = _array(model.output[0])
    return [
        _cut(_sample(section["name"], names[index], dataset[index], made[index])) for index in chosen if index in made
    ]


def _saved(run: RunRecord, name: str) -> dict[int, Path]:
    """The pictures of one name that validations have saved, by iteration."""
    folder = run.folder / "visualization" / name
    found = {path.stem.removeprefix(f"{name}_"): path for path in folder.glob("*.png")} if folder.is_dir() else {}
    return _spread({int(label): path for label, path in found.items() if label.isdigit()})


def _checkpoints(run: RunRecord) -> dict[int, Path]:
    found = {path.stem.removeprefix("net_g_"): path for path in (run.folder / "models").glob("net_g_*.pth")}
    return {int(label): path for label, path in found.items() if label.isdigit()}


def _spread(found: Mapping[int, Path]) -> dict[int, Path]:
    """A few of them, evenly over time, the first and the last among them."""
    keys = sorted(found)
    at = np.unique(np.linspace(0, len(keys) - 1, min(_STEPS, len(keys))).round().astype(int)) if keys else []
    return {keys[index]: found[keys[index]] for index in at}


def _model(run: RunRecord, weights: Path) -> Any:
    """The run's model as a test has it, with the weights that its validation used."""
    opt = copy.deepcopy(run.opt)
    opt |= {"is_train": False, "dist": False, "rank": 0, "world_size": 1}
    opt["num_gpu"] = min(int(opt.get("num_gpu") or 0), accelerator_count())
    key = "params_ema" if (opt.get("train") or {}).get("ema_decay") else "params"
    opt["path"] |= {"pretrain_network_g": str(weights), "param_key_g": key, "strict_load_g": True}
    opt["path"].pop("resume_state", None)
    with quiet():
        return build_model(opt)


def _sample(dataset: str, name: str, item: Mapping[str, Any], restored: dict[int, np.ndarray]) -> Sample:
    height, width = next(iter(restored.values())).shape[:2]
    # Inpainting has no degraded picture but the ground truth without what the mask covers.
    degraded = item["lq"][:3] if "lq" in item else item["gt"] * (1 - item["mask"])
    lq = cv2.resize(_array(degraded), (width, height), interpolation=cv2.INTER_NEAREST)
    gt = _array(item["gt"]) if "gt" in item else lq
    fits = "gt" in item and gt.shape[:2] == (height, width)
    return Sample(dataset, name, lq, gt if fits else None, dict(sorted(restored.items())))


def _array(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] as BGR uint8."""
    return cast(np.ndarray, tensor2img([image]))


def _cut(sample: Sample) -> Sample:
    """The part of a sample that is shown: where the last restored picture is furthest from the truth, or the middle."""
    last = sample.restored[max(sample.restored)]
    height, width = (min(_SIDE, side) for side in last.shape[:2])
    top, left = (last.shape[0] - height) // 2, (last.shape[1] - width) // 2
    if sample.gt is not None:
        error = np.square(last.astype(np.float32) - sample.gt).mean(axis=2)
        error = cv2.boxFilter(error, -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
        inside = error[: last.shape[0] - height + 1, : last.shape[1] - width + 1]
        top, left = (int(at) for at in np.unravel_index(np.argmax(inside), inside.shape))
    part = (slice(top, top + height), slice(left, left + width))
    return Sample(
        sample.dataset,
        sample.name,
        sample.lq[part],
        None if sample.gt is None else sample.gt[part],
        {iteration: image[part] for iteration, image in sample.restored.items()},
    )


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"{path}: cannot be read")
    return image


# The page.


def _page(run: RunRecord, samples: Sequence[Sample], left_out: Sequence[str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        name=str(run.opt["name"]),
        facts=_facts(run),
        charts=list(_charts(run)),
        samples=[_shown(sample) for sample in samples],
        worst=list(_worst_tables(run)),
        cost=_cost(run),
        environment=_environment(run),
        warnings=_warnings(run),
        options=list(_flat(run.opt)),
        left_out=left_out,
        script=script,
        digest=digest,
        made=f"diffir_sr {__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
    )


def _shown(sample: Sample) -> dict[str, Any]:
    steps = [{"iteration": iteration, "source": _webp(image)} for iteration, image in sample.restored.items()]
    height, width = sample.lq.shape[:2]
    gt = None if sample.gt is None else _webp(sample.gt)
    return {
        "dataset": sample.dataset,
        "name": sample.name,
        "lq": _webp(sample.lq),
        "gt": gt,
        "steps": steps,
        "width": width,
        "height": height,
    }


def _webp(image: np.ndarray) -> str:
    """A BGR image as the address of itself."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """What stands at the top: the model, how far it is, the last and the best values."""
    total = (run.opt.get("train") or {}).get("total_iter")
    facts = [
        ("model", f"{run.opt.get('model_type')}, {(run.opt.get('network_g') or {}).get('type')}"),
        ("iterations", f"{run.iterations:,d} of {total:,d}" if isinstance(total, int) else f"{run.iterations:,d}"),
    ]
    for dataset in dict.fromkeys(row.get("dataset") for row in run.validation):
        for metric, higher in _metrics(run).items():
            values = [
                (row["iter"], row[metric]) for row in run.validation if row.get("dataset") == dataset and metric in row
            ]
            if values:
                best = (max if higher else min)(values, key=lambda one: one[1])
                facts.append(
                    (f"{dataset}: {metric}", f"{values[-1][1]:.4f}, best {best[1]:.4f} at iteration {best[0]:,d}")
                )
    return facts


def _cost(run: RunRecord) -> list[tuple[str, str]]:
    """Time, as the log has it, and disk."""
    spent, loading, before = 0.0, 0.0, 0
    for row in run.training:
        if isinstance(row.get("time"), int | float):
            spent += row["time"] * (row["iter"] - before)
            loading += row.get("data_time", 0.0) * (row["iter"] - before)
            before = row["iter"]
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    facts = [("disk", f"{sum(path.stat().st_size for path in files) / 2**20:,.1f} MiB in {len(files):,d} files")]
    facts += [("parameters", line.partition("Network: ")[2]) for line in dict.fromkeys(_after("Network: ", run.log))]
    if before:
        share = f"{loading / spent:.1%} of it waiting for data" if spent else ""
        facts.insert(0, ("time of iterations", f"{spent / 3600:.2f} hours, {spent / before:.3f} s each, {share}"))
    return facts


def _after(mark: str, lines: Sequence[str]) -> list[str]:
    return [mark + line.partition(mark)[2] for line in lines if mark in line]


def _environment(run: RunRecord) -> list[str]:
    """The line that each start of the training wrote of itself."""
    return list(dict.fromkeys(line.partition("INFO: ")[2] for line in run.log if "INFO: diffir_sr " in line))


def _warnings(run: RunRecord) -> list[str]:
    found = [re.sub(r"^\S+ \S+ ", "", line) for line in run.log if re.match(r"\S+ \S+ (WARNING|ERROR): ", line)]
    return list(dict.fromkeys(found))


def _worst_tables(run: RunRecord) -> Iterator[dict[str, Any]]:
    for dataset in run.scores:
        for metric, higher in _metrics(run).items():
            rows = _worst(run, dataset, metric)[:_WORST]
            if rows:
                yield {
                    "dataset": dataset,
                    "metric": metric,
                    "better": "higher" if higher else "lower",
                    "rows": [(row["image"], f"{row[metric]:.4f}") for row in rows],
                }


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", "~" if value is None else str(value)


# Charts.


def _charts(run: RunRecord) -> Iterator[dict[str, str]]:
    """Title, description and address of every chart."""
    numbers = {key for row in run.training for key, value in row.items() if isinstance(value, int | float)}
    values = [key for key in run.training[-1] if key in numbers] if run.training else []
    losses = [key for key in values if key.startswith("l_")]
    others = [key for key in values if key.startswith("out_")]
    rates = (
        {f"lr {index + 1}": index for index in range(len(run.training[-1].get("lrs") or ()))} if run.training else {}
    )
    if losses:
        curves = {key: _curve(run.training, key) for key in losses}
        positive = all(value > 0 for _, ys in curves.values() for value in ys)
        yield _chart("Losses", curves, logarithmic=positive)
    if others:
        yield _chart("Means of the discriminator's logits", {key: _curve(run.training, key) for key in others})
    for metric in _metrics(run):
        curves = {}
        for dataset in dict.fromkeys(str(row.get("dataset")) for row in run.validation):
            rows = [row for row in run.validation if str(row.get("dataset")) == dataset and metric in row]
            if rows:
                curves[dataset] = ([row["iter"] for row in rows], [row[metric] for row in rows])
        if curves:
            yield _chart(f"Validation: {metric}", curves, marked=True)
    if rates:
        curves = {
            name: _thinned(
                [row["iter"] for row in run.training], [(row.get("lrs") or [math.nan])[at] for row in run.training]
            )
            for name, at in rates.items()
            if all(len(row.get("lrs") or ()) > at for row in run.training)
        }
        yield _chart("Learning rate", curves)
    times = {key: _curve(run.training, key) for key in ("time", "data_time") if key in values}
    if times:
        yield _chart("Seconds per iteration", times)


Curve = tuple[list[float], list[float]]


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    found = [row for row in rows if isinstance(row.get(key), int | float)]
    return _thinned([row["iter"] for row in found], [float(row[key]) for row in found])


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> Curve:
    """At most _POINTS points, each the mean of its neighbours."""
    parts = np.array_split(np.arange(len(xs)), min(len(xs), _POINTS)) if xs else []
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    return [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]


def _chart(
    title: str, curves: Mapping[str, Curve], *, logarithmic: bool = False, marked: bool = False
) -> dict[str, str]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    # Names are text and no formulas, and no name hides a curve from the legend.
    with matplotlib.rc_context({"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "diffir"}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        lines = [
            axes.plot(xs, ys, linewidth=1.3, marker="o" if marked else None, markersize=3)[0]
            for xs, ys in curves.values()
        ]
        axes.set(title=title, xlabel="iteration", yscale="log" if logarithmic else "linear")
        if logarithmic:  # the labels that such an axis has by itself are formulas
            low, high = axes.get_ylim()
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if high < 10 * low else ""))
        axes.grid(alpha=0.25)
        axes.legend(lines, list(curves), fontsize=8)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"title": title, "about": f"{title} over iterations: {', '.join(curves)}", "source": source}
