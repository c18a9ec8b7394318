"""Report of the quick start: one comparison picture per held-out image, loss curves, and a table."""

from __future__ import annotations

import time

import numpy as np
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim

from diffir_sr.files.atomic import save_text
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.metrics.image_api import calculate_lpips
from diffir_sr.metrics.perceptual import prepare
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.quickstart.photographs import HELD_OUT
from diffir_sr.quickstart.pictures import (
    LABELS,
    PROTOCOLS,
    SCALE,
    Case,
    Versions,
    cases,
    curves,
    enlarged_case,
    read,
    sheet,
    strip,
)
from diffir_sr.quickstart.tasks import HELD_OUT_DATA, QUICKSTARTS, Task
from diffir_sr.version import __version__
from diffir_sr.weights.search import choose

_STRIP_DETAIL = {"inpaint": 256}  # side of the squares in the strip, in pixels; default:
_DETAIL = 96
_SHIPPED = "sr_x4"
_PIECE = (slice(0, 256), slice(128, 384))  # part of the first held-out photograph

Scores = dict[str, tuple[float, ...]]  # PSNR, SSIM and, if measured, LPIPS


def check_metrics(task: Task) -> None:
    """Raise CheckpointError if the weights of a metric of the report are missing, before any training."""
    if task.lpips:
        prepare("lpips", net="alex")


def show_shipped_model(task: Task) -> str:
    """Restore part of a held-out photograph with a shipped model; write shipped.jpg and shipped.md, return the text.

    Takes a few seconds.
    """
    started = time.perf_counter()
    photograph = HELD_OUT[0]
    whole = read(HELD_OUT_DATA / "photos" / f"{photograph.name}.png")
    truth = np.ascontiguousarray(whole[_PIECE])
    small = bicubic_resize(truth, scale=1 / SCALE)
    chosen = choose(model=_SHIPPED)
    restored = np.ascontiguousarray(load_restorer(chosen.path)(np.ascontiguousarray(small[..., ::-1]))[..., ::-1])
    seconds = time.perf_counter() - started
    case = enlarged_case(photograph.name, truth, small)
    versions = {**case.simple, _SHIPPED: restored}
    scores = {label: _measure(image, truth, QUICKSTARTS["sr"]) for label, image in versions.items()}
    task.results.mkdir(parents=True, exist_ok=True)
    strip([(case, versions)], detail=_DETAIL).save(task.results / "shipped.jpg", quality=90)
    measured = ", ".join(f"{label} {psnr:.2f} dB" for label, (psnr, *_) in scores.items())
    text = (
        f"The shipped model {_SHIPPED} has enlarged {small.shape[1]}x{small.shape[0]} pixels of the photograph "
        f"{photograph.name} to {truth.shape[1]}x{truth.shape[0]} in {seconds:.1f} s: {measured} (PSNR on Y). "
        f"For your own photograph: `diffir restore photo.jpg -o restored --model {_SHIPPED}`."
    )
    page = f"## Before any training: a shipped model\n\n{text}\n\n![Before any training](shipped.jpg)\n"
    save_text(page, task.results / "shipped.md")
    return text


def write_report(task: Task, *, how: str) -> str:
    """Write pictures, curves, summary.md and report.md of a finished quick start to `task.results`; returns the table.

    `how` says in the report what was run and how long it took.
    """
    folder = task.results
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Scores] = {}
    shown: list[tuple[Case, Versions]] = []
    for case in cases(task):
        versions = {**case.simple, **{stage: case.of_stage(stage) for stage in task.stages}}
        rows[case.name] = {label: _measure(image, case.gt, task) for label, image in versions.items()}
        sheet(case, versions, rows[case.name]).save(folder / f"{case.name.replace(', ', '_').replace(' ', '_')}.png")
        shown.append((case, versions))
    strip(shown, detail=_STRIP_DETAIL.get(task.name, _DETAIL)).save(folder / f"{task.name}.jpg", quality=82)
    curves(folder / "losses.png", task)
    table = _table(task, rows, against=list(shown[0][0].simple))
    save_text(table + "\n", folder / "summary.md")
    before = folder / "shipped.md"
    save_text((before.read_text() + "\n" if before.is_file() else "") + _page(task, table, how), folder / "report.md")
    return table


def _measure(image: np.ndarray, gt: np.ndarray, task: Task) -> tuple[float, ...]:
    how = PROTOCOLS[task.name]
    psnr = calculate_psnr(image, gt, crop_border=how.border, test_y_channel=how.luma)
    ssim = calculate_ssim(image, gt, crop_border=how.border, test_y_channel=how.luma)
    perceptual = (calculate_lpips(image, gt, net="alex"),) if task.lpips else ()
    return (float(psnr), float(ssim), *perceptual)


def _table(task: Task, rows: dict[str, Scores], *, against: list[str]) -> str:
    versions = list(next(iter(rows.values())))
    also = " / LPIPS (alex, RGB, lower is better)" if task.lpips else ""
    lines = [
        f"{PROTOCOLS[task.name].description}{also}:",
        "",
        "| photograph | " + " | ".join(LABELS[version] for version in versions) + " |",
        "| --- |" + " ---: |" * len(versions),
    ]
    means = {version: tuple(np.mean([row[version] for row in rows.values()], axis=0).tolist()) for version in versions}
    for name, row in {**rows, "mean": means}.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row[version]) for version in versions) + " |")
    gains = [f"{LABELS[other]}: {means['S2'][0] - means[other][0]:+.2f} dB" for other in against]
    what = "photographs" if task.name == "sr" else "pictures"
    lines += ["", f"Stage 2 against {', against '.join(gains)} on the mean of {len(rows)} held-out {what}."]
    return "\n".join(lines)


def _cell(values: tuple[float, ...]) -> str:
    return " / ".join([f"{values[0]:.2f}", *(f"{value:.4f}" for value in values[1:])])


def _page(task: Task, table: str, how: str) -> str:
    """The section about this task in docs/tasks.md."""
    by = "; ".join(f"{photograph.name} ({photograph.licence})" for photograph in HELD_OUT)
    threads = torch.get_num_threads()
    made = f"{how}; torch {torch.__version__}, {threads} thread{'s' * (threads > 1)}, diffir_sr {__version__}."
    parts = [f"## {task.title}", task.about, made, table, f"![{task.title}]({task.name}.jpg)", f"Photographs: {by}."]
    return "\n\n".join(parts) + "\n"
