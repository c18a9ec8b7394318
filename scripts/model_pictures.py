"""Make the pictures that show the shipped models: python scripts/model_pictures.py.

Photographs of scikit-image (public domain), which no model was trained on, are downscaled by 4 and restored.
docs/sr_x4.jpg is at the top of README.md, docs/models_x4.jpg compares the models in docs/models.md.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from diffir_sr.inference.restorer import load_restorer
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.weights.registry import choose

SCALE, SIDE = 4, 256
CROPS = {"astronaut": (0, 128), "coffee": (60, 160), "chelsea": (20, 90), "rocket": (150, 220)}  # top, left
GAP, CAPTION = 4, 24  # pixels

Column = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of the small image and the original


def pixels(small: np.ndarray, original: np.ndarray) -> np.ndarray:
    return small.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def bicubic(small: np.ndarray, original: np.ndarray) -> np.ndarray:
    return bicubic_resize(small, scale=SCALE)


def shipped(model: str) -> Column:
    restorer = load_restorer(choose(model=model).path)
    return lambda small, original: restorer(small)


def save(path: Path, columns: dict[str, Column], names: list[str]) -> None:
    """A row for each photograph, a column for each way to enlarge it."""
    step = SIDE + GAP
    page = Image.new("RGB", (len(columns) * step - GAP, CAPTION + len(names) * step - GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for column, label in enumerate(columns):
        draw.text((column * step, 2), label, fill=(20, 20, 20), font=font)
    for row, name in enumerate(names):
        top, left = CROPS[name]
        original = np.ascontiguousarray(getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE])
        small = bicubic_resize(original, scale=1 / SCALE)
        for column, made in enumerate(columns.values()):
            page.paste(Image.fromarray(np.asarray(made(small, original))), (column * step, CAPTION + row * step))
    page.save(path, quality=92, optimize=True)


def main() -> None:
    first = {f"input, {SIDE // SCALE} x {SIDE // SCALE}": pixels, "bicubic": bicubic, "sr_x4": shipped("sr_x4")}
    last: dict[str, Column] = {f"original, {SIDE} x {SIDE}": lambda small, original: original}
    save(Path("docs/sr_x4.jpg"), first | last, ["astronaut", "coffee"])
    save(Path("docs/models_x4.jpg"), first | {"sr_x4_sharp": shipped("sr_x4_sharp")} | last, list(CROPS))


if __name__ == "__main__":
    main()
