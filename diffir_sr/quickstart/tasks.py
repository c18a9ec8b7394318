"""The tasks of `diffir quickstart`: stages, commands that prepare data, and openly licensed photographs.

The photographs are those of the scikit-image wheel, split into training and held-out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.picture import encode_png
from diffir_sr.options.recipes import recipes_folder


@dataclass(frozen=True)
class Photograph:
    """A photograph inside scikit-image: function name in `skimage.data`, and its licence as stated there."""

    name: str
    licence: str


# The stereo pair "motorcycle" states no licence and is left out.
TRAINING = (
    Photograph("coffee", "CC0, by Rachel Michetti"),
    Photograph("rocket", "public domain, by SpaceX"),
    Photograph("hubble_deep_field", "public domain, NASA"),
    Photograph("camera", "CC0, by Lav Varshney"),
    Photograph("brick", "CC0, CC0Textures"),
    Photograph("grass", "CC0, DTD and CC0Textures"),
    Photograph("gravel", "CC0, CC0Textures"),
)
HELD_OUT = (
    Photograph("astronaut", "public domain, NASA"),
    Photograph("chelsea", "CC0, by Stefan van der Walt"),
)


def write_photographs(photographs: tuple[Photograph, ...], *, folder: Path) -> list[Path]:
    """Write photographs as 8-bit RGB PNG files; no network is needed. Existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for photograph in photographs:
        path = folder / f"{photograph.name}.png"
        if not path.exists():
            write_atomically(encode_png(np.ascontiguousarray(_load(photograph.name))), path)
        written.append(path)
    return written


def _load(name: str) -> np.ndarray:
    try:
        import skimage.data
    except ImportError as error:
        raise InputError("the quick start needs scikit-image: pip install 'diffir_sr[quickstart]'") from error
    read: Callable[[], np.ndarray] = getattr(skimage.data, name)
    image = read()
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]


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
        """The folder of its option files."""
        return recipes_of(self.name)


def recipes_of(task: str) -> Path:
    """The folder of a task's option files, as short as possible."""
    folder = recipes_folder() / "small" / task
    here = Path("options/small", task)
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
