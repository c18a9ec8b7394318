"""The openly licensed photographs of the scikit-image wheel, split into training and held-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.picture import encode_png


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
