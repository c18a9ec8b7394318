"""Report of the quick start: a comparison picture per held-out image, one strip for all, loss curves, and a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils.matlab_functions import imresize
from PIL import Image, ImageDraw, ImageFont

from diffir_sr.data.records import read_records
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import save_text
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.metrics import calculate_lpips, prepare
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.quickstart.tasks import DATA, DRAWS, HELD_OUT, HELD_OUT_DATA, HOLES, QUICKSTARTS, Task
from diffir_sr.version import __version__
from diffir_sr.weights.registry import choose

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
    """Rows of two or three whole images, each with its most detailed part enlarged below."""
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
    """A row per held-out image: squares of `detail` pixels of every version, side by side."""
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
    """Top left corner of the square with the highest total `interest`."""
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


# The held-out images of each task: degraded input, results of simple methods, and ground truth.


SCALE = 4
_TELEA_RADIUS = 3


@dataclass(frozen=True)
class Case:
    """One held-out image, BGR uint8. `simple` holds the baselines by name; the first is the degraded input itself.

    `shown` is the input if it cannot be measured because its size differs from `gt`. `restored` is the path of the
    result of `basicsr test`, with {stage} in it. Details are cut where `interest` (H, W) is largest.
    """

    name: str
    simple: dict[str, np.ndarray]
    gt: np.ndarray
    restored: str
    interest: np.ndarray
    shown: np.ndarray | None = None

    def of_stage(self, stage: str) -> np.ndarray:
        """The result of a stage; raises InputError if its test has not run."""
        path = Path(self.restored.format(stage=stage))
        if not path.is_file():
            raise InputError(f"no restored picture at {path.absolute()}; did the test of {stage} run?")
        return read(path)


@dataclass(frozen=True)
class Protocol:
    """How a task is measured; `said` is the text for the report."""

    description: str
    luma: bool
    border: int


PROTOCOLS = {
    "sr": Protocol(f"PSNR (dB) / SSIM on Y, border {SCALE}, x{SCALE}", luma=True, border=SCALE),
    "realsr": Protocol(f"PSNR (dB) / SSIM on Y, border {SCALE}, x{SCALE}", luma=True, border=SCALE),
    "deblur": Protocol("PSNR (dB) / SSIM on RGB", luma=False, border=0),
    "inpaint": Protocol("PSNR (dB) / SSIM on RGB, whole pictures", luma=False, border=0),
}


def cases(task: Task) -> list[Case]:
    """The held-out images of a task; raises InputError if there are none."""
    found = list(_READERS[task.name](task))
    if not found:
        raise InputError(
            f"no held-out photographs for {task.name} under {HELD_OUT_DATA.absolute()}; were they prepared?"
        )
    return found


def read(path: Path) -> np.ndarray:
    """BGR uint8, as BasicSR's metrics expect."""
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"cannot read {path.absolute()}")
    return image


def _named(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((path.stem, path) for path in sorted(folder.glob("*.png")))


def enlarged_case(name: str, truth: np.ndarray, small: np.ndarray, *, restored: str = "") -> Case:
    """The case of a downscaled image; the baseline is bicubic enlargement."""
    return Case(name, {"bicubic": _bicubic(small)}, truth, restored, _edges(truth), shown=small)


def _enlarged(task: Task, *, name: str, gt: Path, lq: Path, dataset: str) -> Case:
    restored = f"results/{task.prefix}_{{stage}}/visualization/{dataset}/{gt.stem}_{{stage}}.png"
    return enlarged_case(name, read(gt), read(lq), restored=restored)


def _sr(task: Task) -> Iterator[Case]:
    for name, gt in _named(HELD_OUT_DATA / "HR"):
        yield _enlarged(task, name=name, gt=gt, lq=HELD_OUT_DATA / "LR_x4" / gt.name, dataset="heldout")


def _realsr(task: Task) -> Iterator[Case]:
    for seed in DRAWS:
        for name, gt in _named(HELD_OUT_DATA / "HR_real"):
            lq = HELD_OUT_DATA / f"LR_real_{seed}" / gt.name
            yield _enlarged(task, name=f"{name}, degraded {seed}", gt=gt, lq=lq, dataset=f"degraded_{seed}")


def _deblur(task: Task) -> Iterator[Case]:
    test = DATA / "deblur/test"
    for name, path in _named(test / "target"):
        gt = read(path)
        restored = f"results/{task.prefix}_{{stage}}/visualization/heldout/{name}_{{stage}}.png"
        yield Case(name, {"blurred": read(test / "input" / path.name)}, gt, restored, _edges(gt))


def _inpaint(task: Task) -> Iterator[Case]:
    for kind in HOLES:
        for name, path in _named(HELD_OUT_DATA / "squares/256"):
            gt = read(path)
            hole = read(HELD_OUT_DATA / f"masks/{kind}_256" / path.name)[..., 0] > 0
            restored = f"results/{task.prefix}_{{stage}}/visualization/{kind}/{name}_{{stage}}.png"
            yield Case(f"{name}, {kind}", filled(gt, hole), gt, restored, hole.astype(np.float32))


def filled(gt: np.ndarray, hole: np.ndarray) -> dict[str, np.ndarray]:
    """An image (H, W, 3) with its `hole` (H, W) filled with zeros, with the mean of the known pixels, and by Telea."""
    zero, mean = gt.copy(), gt.copy()
    zero[hole] = 0
    mean[hole] = gt[~hole].mean(axis=0).round()
    telea = cv2.inpaint(zero, hole.astype(np.uint8), _TELEA_RADIUS, cv2.INPAINT_TELEA)
    return {"zeros": zero, "mean": mean, "telea": telea}


def _bicubic(lq: np.ndarray) -> np.ndarray:
    enlarged = imresize(lq.astype(np.float32) / 255, SCALE)
    return np.asarray(enlarged * 255).round().clip(0, 255).astype(np.uint8)


def _edges(gt: np.ndarray) -> np.ndarray:
    return np.abs(cv2.Laplacian(cv2.cvtColor(gt, cv2.COLOR_BGR2GRAY), cv2.CV_32F))


_READERS: dict[str, Callable[[Task], Iterator[Case]]] = {
    "sr": _sr,
    "realsr": _realsr,
    "deblur": _deblur,
    "inpaint": _inpaint,
}


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
