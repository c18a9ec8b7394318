"""The held-out pictures of each task: what is degraded, what simple methods make of it, and the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from basicsr.utils.matlab_functions import imresize

from diffir_sr.errors import InputError
from diffir_sr.quickstart.tasks import DATA, DRAWS, HELD_OUT_DATA, HOLES, Task

SCALE = 4
_TELEA_RADIUS = 3


@dataclass(frozen=True)
class Case:
    """One held-out picture, BGR uint8. `simple` is what to beat, by name; the first is the degraded input itself.

    `shown` is an input that cannot be measured, of another size than `gt`. `restored` is where `basicsr test` puts
    what a stage makes of it, with {stage}. Pictures show most of where `interest` (H, W) is largest.
    """

    name: str
    simple: dict[str, np.ndarray]
    gt: np.ndarray
    restored: str
    interest: np.ndarray
    shown: np.ndarray | None = None

    def of_stage(self, stage: str) -> np.ndarray:
        """What a stage made of it; raises InputError where its test has not run."""
        path = Path(self.restored.format(stage=stage))
        if not path.is_file():
            raise InputError(f"no restored picture at {path.absolute()}; did the test of {stage} run?")
        return read(path)


@dataclass(frozen=True)
class Protocol:
    """How a task is measured."""

    said: str
    luma: bool
    border: int


PROTOCOLS = {
    "sr": Protocol(f"PSNR (dB) / SSIM on Y, border {SCALE}, x{SCALE}", luma=True, border=SCALE),
    "realsr": Protocol(f"PSNR (dB) / SSIM on Y, border {SCALE}, x{SCALE}", luma=True, border=SCALE),
    "deblur": Protocol("PSNR (dB) / SSIM on RGB", luma=False, border=0),
    "inpaint": Protocol("PSNR (dB) / SSIM on RGB, whole pictures", luma=False, border=0),
}


def cases(task: Task) -> list[Case]:
    """The held-out pictures of a task; raises InputError where there are none."""
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
    """The case of a picture that was made smaller; bicubic enlargement is what there is to beat."""
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
    """An image (H, W, 3) whose `hole` (H, W) is zero, the mean of the known pixels, and what Telea makes of it."""
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
