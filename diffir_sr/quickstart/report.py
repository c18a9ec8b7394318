"""What the quick start shows: one comparison picture per photograph, loss curves, and a table."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils.matlab_functions import imresize
from PIL import Image, ImageDraw, ImageFont

from diffir_sr.errors import InputError
from diffir_sr.quickstart.commands import restored_path

SCALE = 4
BORDER = 4
_LABELS = {"bicubic": "bicubic", "S1": "DiffIR S1 (sees GT)", "S2": "DiffIR S2", "S2_GAN": "DiffIR S2-GAN"}
_DETAIL_PX = 96
_WHITE, _INK, _CAPTION_PX = (255, 255, 255), (20, 20, 20), 26


def write_report(folder: Path, *, data: Path, stages: tuple[str, ...]) -> str:
    """Write pictures, curves and summary of a finished quick start into `folder`; return the table as text."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for gt_path in sorted((data / "heldout/HR").glob("*.png")):
        name = gt_path.stem
        gt = _read(gt_path)
        lq = _read(data / "heldout/LR_x4" / gt_path.name)
        versions = {"bicubic": _bicubic(lq)}
        versions |= {stage: _read(restored_path(stage, name)) for stage in stages}
        rows[name] = {label: _measure(image, gt) for label, image in versions.items()}
        _comparison(lq, versions, gt, rows[name]).save(folder / f"{name}.png")
    if not rows:
        raise InputError(f"no held-out photographs under {(data / 'heldout/HR').absolute()}")
    _curves(folder / "losses.png", stages)
    table = _table(rows)
    (folder / "summary.md").write_text(table + "\n")
    return table


def _read(path: Path) -> np.ndarray:
    """BGR uint8, as BasicSR's metrics expect."""
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"cannot read {path.absolute()}")
    return image


def _bicubic(lq: np.ndarray) -> np.ndarray:
    enlarged = imresize(lq.astype(np.float32) / 255, SCALE)
    return np.asarray(enlarged * 255).round().clip(0, 255).astype(np.uint8)


def _measure(image: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    psnr = calculate_psnr(image, gt, crop_border=BORDER, test_y_channel=True)
    ssim = calculate_ssim(image, gt, crop_border=BORDER, test_y_channel=True)
    return float(psnr), float(ssim)


def _table(rows: dict[str, dict[str, tuple[float, float]]]) -> str:
    versions = list(next(iter(rows.values())))
    lines = [
        f"PSNR (dB) / SSIM on Y, border {BORDER}, x{SCALE}:",
        "",
        "| photograph | " + " | ".join(_LABELS.get(version, version) for version in versions) + " |",
        "| --- |" + " ---: |" * len(versions),
    ]
    means = {version: tuple(np.mean([row[version] for row in rows.values()], axis=0).tolist()) for version in versions}
    for name, row in {**rows, "mean": means}.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[v][0]:.2f} / {row[v][1]:.4f}" for v in versions) + " |")
    gain = means["S2"][0] - means["bicubic"][0]
    lines += ["", f"Stage 2 against bicubic: {gain:+.2f} dB on the mean of {len(rows)} held-out photographs."]
    return "\n".join(lines)


def _comparison(
    lq: np.ndarray, versions: dict[str, np.ndarray], gt: np.ndarray, scores: dict[str, tuple[float, float]]
) -> Image.Image:
    """Two rows of three whole pictures, and under each its most detailed part, enlarged."""
    height, width = gt.shape[:2]
    panels = {"LQ": cv2.resize(lq, (width, height), interpolation=cv2.INTER_NEAREST), **versions, "GT": gt}
    top, left = _detail(gt)
    zoom = width // _DETAIL_PX
    detail_height = _DETAIL_PX * zoom
    cell = (width + 8, height + detail_height + _CAPTION_PX + 16)
    sheet = Image.new("RGB", (3 * cell[0] + 8, 2 * cell[1] + 8), _WHITE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for index, (label, image) in enumerate(panels.items()):
        x, y = 8 + (index % 3) * cell[0], 8 + (index // 3) * cell[1]
        psnr_ssim = f": {scores[label][0]:.2f} dB, SSIM {scores[label][1]:.4f}" if label in scores else ""
        draw.text((x, y), _LABELS.get(label, label) + psnr_ssim, fill=_INK, font=font)
        part = image[top : top + _DETAIL_PX, left : left + _DETAIL_PX]
        part = cv2.resize(part, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        sheet.paste(_rgb(image), (x, y + _CAPTION_PX))
        sheet.paste(_rgb(part), (x, y + _CAPTION_PX + height + 4))
    return sheet


def _rgb(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))


def _detail(gt: np.ndarray) -> tuple[int, int]:
    """Top left corner of the square with the strongest edges."""
    edges = cv2.Laplacian(cv2.cvtColor(gt, cv2.COLOR_BGR2GRAY), cv2.CV_32F)
    strength = cv2.boxFilter(np.abs(edges), -1, (_DETAIL_PX, _DETAIL_PX), anchor=(0, 0))
    inside = strength[: gt.shape[0] - _DETAIL_PX, : gt.shape[1] - _DETAIL_PX]
    top, left = np.unravel_index(np.argmax(inside), inside.shape)
    return int(top), int(left)


def _curves(path: Path, stages: tuple[str, ...]) -> None:
    """Losses and held-out PSNR over iterations, a column per stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(stages), figsize=(5 * len(stages), 7), squeeze=False)
    for column, stage in enumerate(stages):
        run = Path(f"experiments/quickstart_{stage}")
        training, validation = _records(run / "training.jsonl"), _records(run / "validation.jsonl")
        above, below = axes[0][column], axes[1][column]
        for loss in [name for name in training[-1] if name.startswith("l_") and not name.startswith("l_kd")]:
            points = [(row["iter"], row[loss]) for row in training if loss in row]
            above.plot(*zip(*points, strict=True), label=loss, linewidth=1)
        above.set(title=f"{stage}: losses", xlabel="iteration", yscale="log")
        above.legend(fontsize=8)
        below.plot([row["iter"] for row in validation], [row["psnr"] for row in validation], marker="o")
        below.set(title=f"{stage}: held-out PSNR-Y (dB)", xlabel="iteration")
        below.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _records(path: Path) -> list[dict[str, float]]:
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines:
        raise InputError(f"no records at {path.absolute()}; did the training run to its end?")
    return [json.loads(line) for line in lines]
