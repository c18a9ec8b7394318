"""The tasks of `diffir quickstart`: the stages of each, and the commands that prepare its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffir_sr.options.recipes import recipes_folder

DATA = Path("datasets/quickstart")
TRAIN_DATA, HELD_OUT_DATA = DATA / "train", DATA / "heldout"
_T, _H = TRAIN_DATA, HELD_OUT_DATA
_VGG = "diffir models fetch vgg16"
_SHARP = (  # training photographs of tasks that degrade during training
    f"diffir prepare subimages {_T}/photos -o {_T}/sub --size 240 --step 120",
    f"diffir prepare lmdb {_T}/sub -o {_T}/sub.lmdb --codec raw",
)
DRAWS = (0, 1, 2)  # seeds of the degradations that realsr is measured on
HOLES = ("thin", "medium", "thick")


@dataclass(frozen=True)
class Task:
    """One task: `about` is its description in the report; `data` are commands, with {recipes} for the recipe folder."""

    name: str
    title: str
    about: str
    stages: tuple[str, ...]
    data: tuple[str, ...]
    lpips: bool = False  # whether LPIPS is measured, too

    @property
    def prefix(self) -> str:
        """The prefix of the names of its experiments and results."""
        return "quickstart" if self.name == "sr" else f"quickstart_{self.name}"

    @property
    def results(self) -> Path:
        """The folder of the report and the pictures."""
        return Path("results") / self.prefix

    @property
    def recipes(self) -> Path:
        """The folder of its option files, as short as possible."""
        folder = recipes_folder() / "small" / self.name
        here = Path("options/small", self.name)
        return here if here.is_dir() and here.resolve() == folder.resolve() else folder


QUICKSTARTS = {
    task.name: task
    for task in (
        Task(
            "sr",
            "Super-resolution x4",
            "Photographs downscaled by MATLAB's bicubic; the baseline is bicubic enlargement. S2-GAN is a very short "
            "adversarial phase, which trades PSNR for sharpness.",
            ("S1", "S2", "S2_GAN"),
            (
                f"diffir prepare downscale {_T}/photos -o {_T}/LR_x4 --scale 4 --crop-gt {_T}/HR",
                f"diffir prepare subimages {_T}/HR -o {_T}/HR_sub --size 240 --step 120",
                f"diffir prepare subimages {_T}/LR_x4 -o {_T}/LR_x4_sub --size 60 --step 30",
                f"diffir prepare lmdb {_T}/HR_sub -o {_T}/HR_sub.lmdb",
                f"diffir prepare lmdb {_T}/LR_x4_sub -o {_T}/LR_x4_sub.lmdb --pair-with {_T}/HR_sub.lmdb --scale 4",
                f"diffir prepare downscale {_H}/photos -o {_H}/LR_x4 --scale 4 --crop-gt {_H}/HR",
                _VGG,
            ),
        ),
        Task(
            "realsr",
            "Real-world super-resolution x4",
            "Training degrades sharp photographs at every step (blur, resize, noise and JPEG, twice), with a subset of "
            "the published ranges: milder blur, and always some noise. Each held-out photograph was degraded in three "
            "ways (`diffir prepare degrade`, seeds 0, 1, 2); the baseline is bicubic enlargement.",
            ("S1", "S2"),
            (
                *_SHARP,
                *(
                    f"diffir prepare degrade {_H}/photos -o {_H}/LR_real_{seed} "
                    f"--opt {{recipes}}/train_S1.yml --seed {seed} --crop-gt {_H}/HR_real"
                    for seed in DRAWS
                ),
            ),
            lpips=True,
        ),
        Task(
            "deblur",
            "Motion deblurring",
            "Photographs with the blur of a camera shaking during the exposure: the mean, in linear light, of the "
            "frames along a random path of 3 to 6 pixels (`diffir prepare shake`). Patches grow from 48 to 96 pixels "
            "during training. Each held-out photograph was blurred twice.",
            ("S1", "S2"),
            (
                f"diffir prepare shake {_T}/photos -o {DATA}/shaken/train --length 3 6 --count 4",
                f"diffir prepare shake {_H}/photos -o {DATA}/shaken/test --length 3 6 --count 2",
                f"diffir prepare gopro {DATA}/shaken -o {DATA}/deblur --size 160 --overlap 40 --whole-test",
                *(
                    f"diffir prepare lmdb {DATA}/deblur/train_crops/{side}_crops "
                    f"-o {DATA}/deblur/train_crops/{side}_crops.lmdb --codec raw"
                    for side in ("input", "target")
                ),
            ),
        ),
        Task(
            "inpaint",
            "Inpainting",
            "Held-out squares of 256 pixels with the thin, medium and thick masks of the published evaluation "
            "(`diffir prepare masks`); known pixels are never changed. The input of the network has zeros in the "
            "holes; the other baselines are holes filled with the mean colour of the known pixels, and OpenCV's Telea "
            "(radius 3). Of the four tasks this is the slowest to learn: after a quarter of an hour, a network "
            "continues colours and edges across narrow strokes, as it was trained to, but fills wide holes with "
            "plausible colours, not structures.",
            ("S1", "S2"),
            (
                *_SHARP,
                f"diffir prepare masks {_H}/photos -o {_H}/masks --images-out {_H}/squares",
            ),
            lpips=True,
        ),
    )
}
