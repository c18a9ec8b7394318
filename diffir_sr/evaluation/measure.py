"""Measuring pairs of images, matched by name, and distances between the sets; results as table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric

from diffir_sr.data.arrays import as_rgb_float
from diffir_sr.data.masks import binary
from diffir_sr.data.sources import ImageSource, image_names, open_source, some
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.evaluation.presets import HIGHER_IS_BETTER, PATCH, SET_METRICS, MeasurementPlan
from diffir_sr.metrics import (
    Features,
    SetDistance,
    as_unit_tensor,
    inception_features,
    patches_of,
    protocol,
    vgg16_features,
)
from diffir_sr.progress import progress_bar

_NIQE_BLOCK = 96


@dataclass
class Row:
    """The values of one image; `hole` is the masked share of it, if masks are given."""

    name: str
    values: dict[str, float]
    hole: float | None = None


@dataclass
class Measured:
    """Values per image and per set; `titles` are the names of set distances."""

    plan: MeasurementPlan
    rows: list[Row]
    cropped: int
    sets: dict[str, float] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(
        default_factory=dict
    )  # number of images (or patches): restored, ground truth

    def mean(self, metric: str, rows: list[Row] | None = None) -> float:
        """Mean over images, as in validation; infinite if one image equals its ground truth."""
        return float(np.mean([row.values[metric] for row in rows or self.rows]))

    def bins(self) -> dict[str, list[Row]]:
        """Rows by hole size in tenths of the image ('20-30%'), without empty bins; {} without masks."""
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            if row.hole is not None:
                found.setdefault(min(int(row.hole * 10), 9), []).append(row)
        return {f"{10 * tenth}-{10 * tenth + 10}%": found[tenth] for tenth in sorted(found)}


def measure(
    sets: Sets, plan: MeasurementPlan, *, masks: ImageSource | None = None, weights: str | None = None
) -> Measured:
    """Measure every pair and the sets according to `plan`, showing a progress bar.

    `masks` are named like the ground truth; values above 0 are holes. `weights` is the file of Inception for FID and
    KID. Raises InputError, which names the image.
    """
    _check_masks(sets, masks)
    _check_patches(sets, plan)
    distances = _distances(plan, weights)
    rows, cropped = [], 0
    for pair in progress_bar(sets.pairs, unit="image", leave=False):
        restored, gt = as_stored(sets.restored.read(pair.restored)), as_stored(sets.gt.read(pair.gt))
        whole = gt.shape
        gt = gt[: restored.shape[0], : restored.shape[1]]
        cropped += gt.shape != whole
        try:
            values = {name: _value(restored, gt, opt) for name, opt in plan.images.items()}
            for name, distance in distances.items():
                for image, real in ((restored, False), (gt, True)):
                    whole = as_unit_tensor(image)
                    cut = SET_METRICS[name].patches
                    distance.update(patches_of(whole, height=PATCH[0], width=PATCH[1]) if cut else whole, real=real)
        except InputError as error:
            raise InputError(f"{pair.gt}: {error}") from error
        hole = None if masks is None else float(binary(masks.read(pair.gt), dilate=0).mean())
        rows.append(Row(pair.gt, values, hole))
    measured = Measured(plan, rows, cropped)
    for name, distance in distances.items():
        on = f", patches of {PATCH[1]}x{PATCH[0]}" if SET_METRICS[name].patches else ""
        measured.sets[name], measured.titles[name] = distance.compute(), distance.title + on
        measured.counts[name] = distance.counts
    return measured


def as_stored(image: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) as uint8, rounded as in validation: grey is repeated, alpha dropped, 16 bits converted to 8."""
    return (as_rgb_float(image) * np.float32(255)).round().astype(np.uint8)


def _value(restored: np.ndarray, gt: np.ndarray, opt: dict[str, Any]) -> float:
    border = opt["crop_border"]
    height, width = (side - 2 * border for side in restored.shape[:2])
    if opt["type"] == "calculate_niqe" and (height // _NIQE_BLOCK) * (width // _NIQE_BLOCK) < 2:
        raise InputError(f"NIQE needs two blocks of {_NIQE_BLOCK} pixels, found {height}x{width} inside the border")
    if opt["type"] == "calculate_ssim" and min(height, width) < 11:
        raise InputError(f"SSIM needs sides of 11 pixels, found {height}x{width} inside the border")
    if min(height, width) < 1:
        raise InputError(f"a border of {border} pixels leaves nothing of {restored.shape[0]}x{restored.shape[1]}")
    return float(calculate_metric({"img": restored[..., ::-1], "img2": gt[..., ::-1]}, opt))


def _distances(plan: MeasurementPlan, weights: str | None) -> dict[str, SetDistance]:
    wanted = {SET_METRICS[name].features for name in plan.sets}
    features = {"inception": _inception(plan, weights)} if "inception" in wanted else {}
    features |= {"vgg16": vgg16_features()} if "vgg16" in wanted else {}
    kinds = {name: SET_METRICS[name] for name in plan.sets}
    return {name: SetDistance(features[metric.features], metric.kind) for name, metric in kinds.items()}


def _inception(plan: MeasurementPlan, weights: str | None) -> Features:
    try:
        return inception_features(weights)
    except CheckpointError as error:
        others = [
            *plan.images,
            "patch_fd_vgg16" if any(SET_METRICS[name].patches for name in plan.sets) else "fd_vgg16",
        ]
        raise CheckpointError(f"{error}\nTo measure without FID and KID: --metrics {' '.join(others)}") from error


def _check_masks(sets: Sets, masks: ImageSource | None) -> None:
    if masks is None:
        return
    names = [pair.gt for pair in sets.pairs]
    absent = [name for name in names if name not in masks]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(names)} images have no mask of the same name under {masks.path.resolve()}: "
            f"{some(absent)}; add them, or leave --masks out"
        )
    sizes, gt = masks.sizes(names), sets.gt.sizes(names)
    wrong = [f"{name}: {gt[name]}, its mask {sizes[name]}" for name in names if sizes[name] != gt[name]]
    if wrong:
        raise InputError(f"{len(wrong)} masks differ in size (height, width) from their images: {some(wrong)}")


def _check_patches(sets: Sets, plan: MeasurementPlan) -> None:
    cut = [name for name in plan.sets if SET_METRICS[name].patches]
    if not cut:
        return
    sizes = sets.restored.sizes([pair.restored for pair in sets.pairs])
    wrong = [
        f"{name}: {size[0]}x{size[1]}"
        for name, size in sizes.items()
        if any(side % part for side, part in zip(size, PATCH, strict=True))
    ]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(sizes)} images (height x width) cannot be divided into patches of "
            f"{PATCH[0]}x{PATCH[1]}, as needed for {', '.join(cut)}: {some(wrong)}; crop them to whole patches, "
            "or choose other --metrics"
        )


# Matching restored images and ground truth by name.


@dataclass(frozen=True)
class Partners:
    """Names of one image in the sources of restored images, ground truth and, if given, masks."""

    restored: str
    gt: str


@dataclass(frozen=True)
class Sets:
    """Two sources and their pairs; `ending` is the suffix of restored names after the name of the ground truth."""

    restored: ImageSource
    gt: ImageSource
    pairs: list[Partners]
    ending: str


def pair_up(restored: str | Path, gt: str | Path, *, suffix: str | None = None, spare: int = 0) -> Sets:
    """Match all images of two folders or LMDBs; raises InputError, which lists mismatches.

    A restored image has the name of its ground truth, optionally with a suffix that all of them share: BasicSR's
    validation writes `<name>_<experiment>.png`. `suffix` sets it. Sizes are equal, or the ground truth is up to `spare`
    pixels larger at the bottom and the right.
    """
    sources = open_source(restored), open_source(gt)
    whole = {name: name for name in sources[1].names}
    # For nested folders, validation writes all results into one.
    flat = dict(zip(whole, image_names([f"{name}.png" for name in whole]), strict=True))
    for called in (whole, flat):
        ending = _ending(called, sources[0], suffix)
        if ending is not None:
            pairs = [Partners(stem + ending, name) for name, stem in called.items()]
            _check_spare_images(pairs, *sources)
            _check_sizes(pairs, *sources, spare=spare)
            return Sets(*sources, pairs, ending)
    raise _no_pairs(*sources, suffix)


def _ending(called: dict[str, str], restored: ImageSource, suffix: str | None) -> str | None:
    """The suffix of restored names after those of the ground truth: '' if none, None if they do not match."""
    if suffix is not None:
        candidates = {f"_{suffix}", suffix}
    elif all(stem in restored for stem in called.values()):
        return ""
    else:
        longest = max(called.values(), key=len)  # fewest names begin with it
        candidates = {name[len(longest) :] for name in restored.names if name.startswith(longest)}
    fitting = sorted(end for end in candidates if all(stem + end in restored for stem in called.values()))
    if len(fitting) > 1:
        raise InputError(
            f"restored images of {restored.path.resolve()} match the ground truth with several suffixes: "
            f"{', '.join(fitting)}; choose one with --suffix"
        )
    return fitting[0] if fitting else None


def _no_pairs(restored: ImageSource, gt: ImageSource, suffix: str | None) -> InputError:
    others = [*sorted(restored.names), ""]  # names that begin with another follow it
    following = ((name, others[bisect_left(others, name, hi=len(others) - 1)]) for name in gt.names)
    alone = [name for name, other in following if not other.startswith(name)] or gt.names
    ending = "with a common suffix" if suffix is None else f"followed by {suffix!r} or {'_' + suffix!r}"
    return InputError(
        f"{len(alone)} of {len(gt.names)} images of gt {gt.path.resolve()} have no restored partner in "
        f"{restored.path.resolve()}: {some(alone)}; a restored image has its ground truth's name, or that {ending}; "
        f"found there: {some(restored.names)}"
    )


def _check_spare_images(pairs: list[Partners], restored: ImageSource, gt: ImageSource) -> None:
    known = {pair.restored for pair in pairs}
    extra = [name for name in restored.names if name not in known]
    if extra:
        raise InputError(
            f"{len(extra)} restored images of {restored.path.resolve()} have no ground truth in {gt.path.resolve()}: "
            f"{some(extra)}; remove them, or add their ground truth"
        )


def _check_sizes(pairs: list[Partners], restored: ImageSource, gt: ImageSource, *, spare: int) -> None:
    sizes = restored.sizes([pair.restored for pair in pairs]), gt.sizes([pair.gt for pair in pairs])
    wrong = []
    for pair in pairs:
        small, large = sizes[0][pair.restored], sizes[1][pair.gt]
        if not all(0 <= b - a <= spare for a, b in zip(small, large, strict=True)):
            wrong.append(f"{pair.gt}: restored {small[0]}x{small[1]}, gt {large[0]}x{large[1]}")
    if wrong:
        larger = f" or up to {spare} pixels larger" if spare else ""
        raise InputError(
            f"{len(wrong)} of {len(pairs)} pairs differ in size (height x width): {some(wrong)}; the ground truth must "
            f"have the size of the restored image{larger}"
        )


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
