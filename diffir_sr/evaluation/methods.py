"""What a benchmark compares: networks, and the simple methods that need no weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.errors import InputError
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.prepare.storable import bicubic_resize
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights.search import choose

COUNTED_SIDE = 256  # pixels of the input for which multiplications are counted, as in the paper's table
_RADIUS = 3  # pixels, of OpenCV's inpainting


@dataclass
class Method:
    """One row: `restore` maps (1, C, H, W) in [0, 1], with the mask of missing pixels last for inpainting, to RGB.

    `paper` is its row in the paper's tables. `macs` counts multiplications with an addition for an input of
    COUNTED_SIDE pixels; `uncounted` says why there is no number.
    """

    name: str
    restore: Callable[[Tensor], Tensor]
    scale: int
    takes_mask: bool = False
    paper: str = ""
    sha256: str = ""
    parameters: int = 0
    macs: float | None = None
    uncounted: str = ""
    about: str = ""

    @property
    def is_network(self) -> bool:
        return bool(self.sha256)


def simple_methods(*, scale: int, takes_mask: bool) -> list[Method]:
    """What every network has to beat: enlargements, OpenCV's inpainting, or the degraded picture itself."""
    if takes_mask:
        kinds = {"OpenCV Telea": cv2.INPAINT_TELEA, "OpenCV Navier-Stokes": cv2.INPAINT_NS}
        return [Method(name, _inpainting(kind), 1, takes_mask=True) for name, kind in kinds.items()]
    if scale == 1:
        return [Method("input as it is", lambda lq: lq, 1)]
    return [
        Method("nearest", lambda lq: lq.repeat_interleave(scale, 2).repeat_interleave(scale, 3), scale),
        Method("bicubic (MATLAB's)", _on_bytes(lambda image: bicubic_resize(image, scale=scale)), scale),
        Method("Lanczos", _on_bytes(lambda image: _lanczos(image, scale)), scale),
    ]


def _on_bytes(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """A function of an array (H, W, 3) of uint8 as one of (1, 3, H, W) in [0, 1]."""

    def restore(lq: Tensor) -> Tensor:
        image = np.ascontiguousarray((lq[0, :3] * 255).round().byte().permute(1, 2, 0).numpy())
        return torch.from_numpy(make(image)).permute(2, 0, 1)[None].float() / 255

    return restore


def _lanczos(image: np.ndarray, scale: int) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.LANCZOS))


def _inpainting(kind: int) -> Callable[[Tensor], Tensor]:
    def restore(lq: Tensor) -> Tensor:
        hole = (lq[0, 3] > 0.5).byte().numpy()
        return _on_bytes(lambda image: cv2.inpaint(image, hole, _RADIUS, kind))(lq)

    return restore


def network_method(
    weights: str | os.PathLike[str] | None, model: str | None, *, seed: int, device: str, scale: int, takes_mask: bool
) -> Method:
    """The network of a file or a model as a method; raises InputError where it is not for these pictures."""
    chosen = choose(weights, model, masked=takes_mask, dashes="--")
    restorer = load_restorer(chosen.path, seed=seed, device=device)
    name = chosen.entry.name if chosen.entry else Path(chosen.path).name
    if restorer.takes_mask != takes_mask or restorer.scale != scale:
        wanted = "pictures with masks" if takes_mask else f"pictures without masks, scale {scale}"
        has = "takes masks" if restorer.takes_mask else f"takes none, scale {restorer.scale}"
        raise InputError(f"{name}: this benchmark is of {wanted}; the network {has}; choose another model")
    network = restorer.network
    paper = chosen.entry.paper if chosen.entry else "DiffIR_S2" if type(network).__name__ == "DiffIRS2" else ""
    macs, why = _multiplications(network, takes_mask=takes_mask)
    return Method(
        name,
        lambda lq: restorer.run(lq, restorer.start(lq)),
        scale,
        takes_mask,
        paper=paper,
        sha256=sha256_of(Path(os.path.expanduser(chosen.path))),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        uncounted=why,
        about=restorer.describe().splitlines()[0].partition(": ")[2],
    )


def _multiplications(network: nn.Module, *, takes_mask: bool) -> tuple[float | None, str]:
    """Multiply-additions of matrix products and convolutions, counted on shapes alone; or why they cannot be."""
    restores: Any = network  # `load_restorer` has refused those that do not
    noise = PictureNoise(torch.zeros(1, 3, 8, 8))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
            lq = torch.zeros(1, 3, COUNTED_SIDE, COUNTED_SIDE, device=next(network.parameters()).device)
            restores.restore(lq, noise=noise, **({"mask": lq[:, :1]} if takes_mask else {}))
    except Exception as error:  # whatever a network does that needs values, not shapes
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return counter.get_total_flops() / 2, ""
