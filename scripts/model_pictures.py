"""Make the pictures that show the shipped models: python scripts/model_pictures.py.

Photographs of scikit-image (public domain, CC0), which no model was trained on, are degraded and restored.
docs/sr_x4.jpg is at the top of README.md; docs/models_TASK.jpg show every shipped model of a task in docs/models.md.
"""

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from diffir_sr.cli import main as diffir
from diffir_sr.data.masks import evaluation_mask
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.prepare.shake import camera_path, exposure
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.weights.registry import choose, locate, registry

SIDE = 256
CROPS = {"astronaut": (0, 128), "coffee": (60, 160), "chelsea": (20, 90), "rocket": (150, 220)}  # top, left
HOLES = dict(zip(CROPS, ("thin", "medium", "thick", "medium"), strict=True))
SHAKE = 9.0  # pixels
GAP, CAPTION = 4, 24  # pixels

Cells = dict[str, np.ndarray]  # caption: image


def is_there(model: str) -> bool:
    return locate(registry()[model]) is not None


def restored(model: str, image: np.ndarray, *, mask: np.ndarray | None = None) -> np.ndarray:
    return np.asarray(load_restorer(choose(model=model).path)(image, mask=mask))


def enlarged(original: np.ndarray, *, scale: int, models: list[str]) -> Cells:
    small = bicubic_resize(original, scale=1 / scale)
    cells = {
        f"input, {len(small)} x {len(small)}": small.repeat(scale, axis=0).repeat(scale, axis=1),
        "bicubic": bicubic_resize(small, scale=scale),
    }
    return cells | {model: restored(model, small) for model in models if is_there(model)}


def as_found(original: np.ndarray, name: str) -> Cells:
    """Degraded by blur, noise and JPEG, twice, as real-world super-resolution assumes."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given"), Path(folder, "made")
        given.mkdir()
        Image.fromarray(original).save(given / f"{name}.png")
        recipe = "options/shipped/realsr_x4/train_S1.yml"
        if diffir(["prepare", "degrade", str(given), "-o", str(made), "--opt", recipe]):
            raise SystemExit(1)
        small = np.asarray(Image.open(made / f"{name}.png"))
    cells = {f"input, {SIDE // 4} x {SIDE // 4}": small.repeat(4, axis=0).repeat(4, axis=1)}
    cells["bicubic"] = bicubic_resize(small, scale=4)
    return cells | {model: restored(model, small) for model in ("sr_x4", "realsr_x4")}


def shaken(original: np.ndarray, name: str) -> Cells:
    path = camera_path(np.random.default_rng(zlib.crc32(name.encode())), length=SHAKE)
    blurred = exposure(original, path)
    return {f"camera shake of {SHAKE:.0f} pixels": blurred, "deblur": restored("deblur", blurred)}


def filled(original: np.ndarray, name: str) -> Cells:
    hole = evaluation_mask(HOLES[name], size=SIDE, seed=0, name=name) > 0
    white = np.where(hole[..., None], np.uint8(255), original)
    telea = cv2.inpaint(white, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return {f"{HOLES[name]} holes": white, "Telea (OpenCV)": telea, "inpaint": restored("inpaint", white, mask=hole)}


def save(path: Path, make: Callable[[np.ndarray, str], Cells], names: list[str]) -> None:
    """A row for each photograph: what `make` makes of it, and the original."""
    step = SIDE + GAP
    rows = []
    for name in names:
        top, left = CROPS[name]
        original = np.ascontiguousarray(getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE])
        rows.append(make(original, name) | {f"original, {SIDE} x {SIDE}": original})
    high = CAPTION + step
    page = Image.new("RGB", (len(rows[0]) * step - GAP, len(rows) * high - GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, cells in enumerate(rows):
        for column, (label, image) in enumerate(cells.items()):
            draw.text((column * step, row * high + 2), label, fill=(20, 20, 20), font=font)
            page.paste(Image.fromarray(image), (column * step, row * high + CAPTION))
    page.save(path, quality=92, optimize=True)


def main() -> None:
    names = list(CROPS)
    save(Path("docs/sr_x4.jpg"), lambda image, _: enlarged(image, scale=4, models=["sr_x4"]), names[:2])
    save(Path("docs/models_x4.jpg"), lambda image, _: enlarged(image, scale=4, models=["sr_x4", "sr_x4_sharp"]), names)
    if is_there("sr_x2"):
        save(Path("docs/models_x2.jpg"), lambda image, _: enlarged(image, scale=2, models=["sr_x2"]), names[:2])
    if is_there("realsr_x4"):
        save(Path("docs/models_realsr.jpg"), as_found, names)
    if is_there("deblur"):
        save(Path("docs/models_deblur.jpg"), shaken, names)
    if is_there("inpaint"):
        save(Path("docs/models_inpaint.jpg"), filled, names)


if __name__ == "__main__":
    main()
