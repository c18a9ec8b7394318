"""Comparison pictures of the quick start: a sheet per held-out picture, one strip for all, curves of losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffir_sr.data.records import read_records
from diffir_sr.errors import InputError
from diffir_sr.quickstart.cases import Case
from diffir_sr.quickstart.tasks import Task

LABELS = {
    "bicubic": "bicubic",
    "blurred": "blurred",
    "zeros": "holes as zeros",
    "mean": "mean colour",
    "telea": "OpenCV Telea",
    "S1": "DiffIR S1 (sees GT)",
    "S2": "DiffIR S2",
    "S2_GAN": "DiffIR S2-GAN",
}
_DETAIL_PX = 96
_CELL_PX = 192  # of the strip
_WHITE, _INK, _CAPTION_PX = (255, 255, 255), (20, 20, 20), 26

Versions = dict[str, np.ndarray]


def sheet(case: Case, versions: Versions, scores: dict[str, tuple[float, ...]]) -> Image.Image:
    """Rows of two or three whole pictures, and under each its most detailed part, enlarged."""
    height, width = case.gt.shape[:2]
    panels = _panels(case, versions)
    columns = 2 if len(panels) == 4 else 3
    top, left = _detail(case, _DETAIL_PX)
    zoom = max(1, width // _DETAIL_PX)
    detail_height = _DETAIL_PX * zoom
    cell = (width + 8, height + detail_height + _CAPTION_PX + 16)
    page = Image.new("RGB", (columns * cell[0] + 8, -(-len(panels) // columns) * cell[1] + 8), _WHITE)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for index, (label, image) in enumerate(panels.items()):
        x, y = 8 + (index % columns) * cell[0], 8 + (index // columns) * cell[1]
        measured = f": {scores[label][0]:.2f} dB, SSIM {scores[label][1]:.4f}" if label in scores else ""
        draw.text((x, y), LABELS.get(label, label) + measured, fill=_INK, font=font)
        part = image[top : top + _DETAIL_PX, left : left + _DETAIL_PX]
        part = cv2.resize(part, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        page.paste(_rgb(image), (x, y + _CAPTION_PX))
        page.paste(_rgb(part), (x, y + _CAPTION_PX + height + 4))
    return page


def strip(rows: Sequence[tuple[Case, Versions]], *, detail: int) -> Image.Image:
    """A row per held-out picture: squares of `detail` pixels of every version, side by side."""
    labels = list(_panels(*rows[0]))
    step = _CELL_PX + 4
    page = Image.new("RGB", (len(labels) * step + 4, len(rows) * (step + _CAPTION_PX) + _CAPTION_PX), _WHITE)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, label in enumerate(labels):
        draw.text((4 + column * step, 6), LABELS.get(label, label), fill=_INK, font=font)
    for index, (case, versions) in enumerate(rows):
        y = _CAPTION_PX + index * (step + _CAPTION_PX)
        top, left = _detail(case, detail)
        draw.text((4, y + _CELL_PX + 4), case.name, fill=_INK, font=font)
        for column, image in enumerate(_panels(case, versions).values()):
            part = image[top : top + detail, left : left + detail]
            how = cv2.INTER_NEAREST if detail <= _CELL_PX else cv2.INTER_AREA
            page.paste(_rgb(cv2.resize(part, (_CELL_PX, _CELL_PX), interpolation=how)), (4 + column * step, y))
    return page


def _panels(case: Case, versions: Versions) -> Versions:
    height, width = case.gt.shape[:2]
    enlarged = (
        {"LQ": cv2.resize(case.shown, (width, height), interpolation=cv2.INTER_NEAREST)}
        if case.shown is not None
        else {}
    )
    return {**enlarged, **versions, "GT": case.gt}


def _rgb(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))


def _detail(case: Case, side: int) -> tuple[int, int]:
    """Top left corner of the square that holds most of what is of interest."""
    height, width = case.gt.shape[:2]
    strength = cv2.boxFilter(case.interest, -1, (side, side), anchor=(0, 0))
    inside = strength[: max(1, height - side), : max(1, width - side)]
    top, left = np.unravel_index(np.argmax(inside), inside.shape)
    return int(top), int(left)


def curves(path: Path, task: Task) -> None:
    """Losses and held-out PSNR over iterations, a column per stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(task.stages), figsize=(5 * len(task.stages), 7), squeeze=False)
    for column, stage in enumerate(task.stages):
        run = Path(f"experiments/{task.prefix}_{stage}")
        training, validation = _records(run / "training.jsonl"), _records(run / "validation.jsonl")
        above, below = axes[0][column], axes[1][column]
        for loss in [name for name in training[-1] if name.startswith("l_") and not name.startswith("l_kd")]:
            points = [(row["iter"], row[loss]) for row in training if loss in row]
            above.plot(*zip(*points, strict=True), label=loss, linewidth=1)
        above.set(title=f"{stage}: losses", xlabel="iteration", yscale="log")
        above.legend(fontsize=8)
        below.plot([row["iter"] for row in validation], [row["psnr"] for row in validation], marker="o")
        below.set(title=f"{stage}: held-out PSNR (dB)", xlabel="iteration")
        below.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _records(path: Path) -> list[dict[str, float]]:
    found = read_records(path)
    if not found:
        raise InputError(f"no records at {path.absolute()}; did the training run to its end?")
    return found
