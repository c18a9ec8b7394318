"""BasicSR's VGG features on weights that are really there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.weights.backbones import features_of

_KINDS = ("vgg11", "vgg13", "vgg16", "vgg19")


def load_vgg(vgg_type: str, *, vgg_path: str | None = None) -> nn.Module:
    """A VGG of torchvision whose `features` carry ImageNet weights; the classifier has no values.

    Raises CheckpointError that lists every place tried and how to get the file without a network.
    """
    if vgg_type not in _KINDS:
        raise OptionError(f"vgg_type: unknown {vgg_type!r}; known: {', '.join(_KINDS)}")
    tensors, path = features_of(vgg_type, given=vgg_path, option="train.perceptual_opt.vgg_path")
    with torch.device("meta"):  # the classifier, nine tenths of the numbers, is never made
        network = getattr(models, vgg_type)(weights=None, init_weights=False)
    _load_features(network, tensors, path)
    return network


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


@contextlib.contextmanager
def vgg_features_from(build: Callable[[str], Any]) -> Iterator[None]:
    """While open, BasicSR's VGGFeatureExtractor takes its network from `build(vgg_type)`.

    BasicSR loads one fixed file, a VGG19's, for every vgg_type, insists on the classifier's weights, and calls
    torchvision with an argument that is going away.
    """
    import basicsr.archs.vgg_arch as module

    class Networks:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda **_: build(name)

    kept = module.vgg, module.VGG_PRETRAIN_PATH
    module.vgg, module.VGG_PRETRAIN_PATH = Networks(), ""
    try:
        yield
    finally:
        module.vgg, module.VGG_PRETRAIN_PATH = kept
