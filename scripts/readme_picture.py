"""Make the picture at the top of README.md, docs/sr_x4.jpg: python scripts/readme_picture.py.

Two photographs of scikit-image, which the model was not trained on, are downscaled by 4 and restored by the shipped
model sr_x4. Columns: input, bicubic interpolation, sr_x4, original.
"""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from diffir_sr.inference.restorer import load_restorer
from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.weights.registry import choose

SCALE, SIDE = 4, 256
CROPS = {"astronaut": (0, 128), "coffee": (60, 160)}  # name in skimage.data: top and left of the square
LABELS = (f"input, {SIDE // SCALE} x {SIDE // SCALE}", "bicubic", "sr_x4", f"original, {SIDE} x {SIDE}")
GAP, CAPTION = 4, 24  # pixels


def main() -> None:
    restorer = load_restorer(choose(model="sr_x4").path)
    step = SIDE + GAP
    page = Image.new("RGB", (len(LABELS) * step - GAP, CAPTION + len(CROPS) * step - GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for column, label in enumerate(LABELS):
        draw.text((column * step, 2), label, fill=(20, 20, 20), font=font)
    for row, (name, (top, left)) in enumerate(CROPS.items()):
        photograph = getattr(skimage.data, name)()
        original = np.ascontiguousarray(photograph[top : top + SIDE, left : left + SIDE])
        small = bicubic_resize(original, scale=1 / SCALE)
        pixels = small.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        for column, image in enumerate((pixels, bicubic_resize(small, scale=SCALE), restorer(small), original)):
            page.paste(Image.fromarray(np.asarray(image)), (column * step, CAPTION + row * step))
    page.save(Path("docs/sr_x4.jpg"), quality=92, optimize=True)


if __name__ == "__main__":
    main()
