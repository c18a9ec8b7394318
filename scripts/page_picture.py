"""Make the picture of the page of `diffir serve` in README.md and docs/serve.md: python scripts/page_picture.py.

A photograph of scikit-image that no model was trained on (coffee, Rachel Michetti, CC0) is downscaled by 4 and restored
on the page, in Chromium, with the slider between input and result. Needs the extras web and dev, and the program
chromium. Also writes the page in other states and at the width of a telephone to the folder given as an argument.
"""

import os
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from diffir_sr.prepare.stored import bicubic_resize
from diffir_sr.serve.page import launch
from diffir_sr.serve.service import Limits, Service

TARGET = Path("docs/page.jpg")
DESKTOP, TELEPHONE = {"width": 1180, "height": 760}, {"width": 390, "height": 844}
WAIT = 120_000  # ms


def restored(page: Page, photo: Path) -> None:
    page.set_input_files("#files input[type=file]", str(photo))
    page.wait_for_selector("#files >> text=coffee", timeout=WAIT)
    page.click("#restore")
    page.wait_for_selector("#status >> text=1 restored", timeout=WAIT)
    page.wait_for_selector("#slider img", timeout=WAIT)
    page.wait_for_timeout(1500)  # the slider lays out its images


def saved(page: Page, target: Path) -> None:
    shot = Image.open(BytesIO(page.screenshot())).convert("RGB")
    shot.save(target, quality=88, optimize=True)


def main() -> None:
    others = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("tasks", "files"):
            (folder / part).mkdir()
        os.environ |= {"GRADIO_TEMP_DIR": str(folder / "files"), "GRADIO_ANALYTICS_ENABLED": "False"}
        photo = folder / "coffee.png"
        Image.fromarray(bicubic_resize(skimage.data.coffee()[:400], scale=1 / 4)).save(photo)
        made, address = launch(
            Service(folder / "tasks", Limits(2**28, 2**26, 500)), host="127.0.0.1", port=0, block=False
        )
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=DESKTOP)
            page.goto(address)
            page.wait_for_selector("#restore", timeout=WAIT)
            restored(page, photo)
            saved(page, TARGET)
            if others is not None:
                others.mkdir(parents=True, exist_ok=True)
                page.click("#inpainting button >> nth=0")
                page.click("#more button >> nth=0")
                page.locator("#editor canvas").first.wait_for(timeout=WAIT)
                page.wait_for_timeout(1500)
                page.screenshot(path=others / "open.png", full_page=True)
                page.set_viewport_size(TELEPHONE)
                page.wait_for_timeout(1500)
                page.screenshot(path=others / "telephone.png", full_page=True)
                page.set_viewport_size(DESKTOP)
                page.fill("#samples input[type=number]", "3")
                page.click("#restore")
                page.wait_for_selector("#gallery img", timeout=WAIT)
                page.wait_for_timeout(1500)
                page.screenshot(path=others / "samples.png", full_page=True)
            browser.close()
        made.close()


if __name__ == "__main__":
    main()
