"""Distances between two sets of images: Fréchet and kernel distance of their features.

FID and KID are these distances on the features of one specific network, TensorFlow's Inception of 2015.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.devices import default_device
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.metrics.fidelity import check_tensors
from diffir_sr.metrics.perceptual import VGGStages
from diffir_sr.weights.backbones import features_of
from diffir_sr.weights.registry import entry_of
from diffir_sr.weights.search import check, find

Kind = Literal["frechet", "kernel"]
_TITLES = {"frechet": "Frechet distance", "kernel": "kernel distance"}
_INCEPTION_TITLES = {"frechet": "FID", "kernel": "KID"}
_SUBSET = 1000  # images in each draw of KID, as published


@dataclass(frozen=True)
class Features:
    """A function from images (N, 3, H, W) in [0, 1] to vectors (N, D), and the name of its distances."""

    name: str
    network: nn.Module
    is_inception: bool = False


def inception_features(path: str | None = None) -> Features:
    """The 2048 features on which FID is defined; images are resized to 299 pixels as pytorch-fid does.

    `path` is the file of the weights, by default searched for (see `weights.search`). Raises CheckpointError if there
    is none, or if it is not the published one.
    """
    entry = entry_of("inception")
    place = find("inception", given=path, option="--inception")
    check(replace(place, sha256=entry.sha256), entry)  # also for a given file, since no other network gives an FID
    from basicsr.archs import inception

    inception.LOCAL_FID_WEIGHTS = str(place.path)  # where BasicSR looks before it downloads
    network = inception.InceptionV3((3,))  # pyright: ignore[reportArgumentType] - takes a list of blocks, contrary to its annotation
    return Features("Inception 2048", _First(network), is_inception=True)


def vgg16_features(path: str | None = None) -> Features:
    """Means of the last stage of VGG16, 512 numbers: ranks sets of images without FID's weights, but is not FID."""
    return Features("VGG16 conv5_3", _Pooled(VGGStages(features_of("vgg16", given=path)[0])))


def patches_of(images: Tensor, *, height: int, width: int) -> Tensor:
    """Images (N, C, H, W) cut into (N * rows * columns, C, height, width), row by row, every pixel in one of them.

    Raises InputError if the sides are not divisible.
    """
    count, channels, high, wide = images.shape
    if high % height or wide % width or not (high and wide):
        raise InputError(
            f"{high}x{wide} pixels (height x width) cannot be divided into patches of {height}x{width}; crop the "
            "image to whole patches"
        )
    cut = images.unflatten(3, (wide // width, width)).unflatten(2, (high // height, height))
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height, width)


class SetDistance:
    """Distance between a set of restored images and a set of ground truth, which need not be pairs.

    "frechet" is the squared Fréchet distance of Gaussians fitted to the features (Heusel et al. 2017). "kernel" is
    the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018) over all images; if a set has more
    than 1000, or the sets differ in size, the mean over 100 seeded draws of equal size. The arithmetic is that of
    torchmetrics, in float64. Features are computed on the GPU if there is one.
    """

    def __init__(self, features: Features, kind: Kind = "frechet") -> None:
        if kind not in _TITLES:
            raise OptionError(f"kind: expected one of {', '.join(_TITLES)}, found {kind!r}")
        self.kind: Kind = kind
        self._features = features
        self._device = default_device()
        self._network = features.network.eval().to(self._device)
        self._vectors: dict[bool, list[Tensor]] = {True: [], False: []}

    @property
    def title(self) -> str:
        """FID or KID for features of Inception; otherwise the kind of distance and the features."""
        if self._features.is_inception:
            return _INCEPTION_TITLES[self.kind]
        return f"{_TITLES[self.kind]}, features: {self._features.name}"

    @property
    def counts(self) -> tuple[int, int]:
        """Number of images added so far: restored, ground truth."""
        restored, true = (sum(map(len, self._vectors[real])) for real in (False, True))
        return restored, true

    def update(self, images: Tensor, *, real: bool) -> None:
        """Add images (N, 3, H, W) in [0, 1] to the ground truth or to the restored set; sizes may differ."""
        check_tensors(images, images, channels=(3,))
        with torch.no_grad():
            vectors = self._network(images.float().to(self._device)).cpu()
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise InputError(f"{self._features.name}: expected ({len(images)}, D), found {tuple(vectors.shape)}")
        self._vectors[real].append(vectors)

    def compute(self) -> float:
        """The distance between the two sets; raises InputError if one has fewer than two images."""
        sets = {real: torch.cat(parts) if parts else torch.empty(0, 1) for real, parts in self._vectors.items()}
        for real, vectors in sets.items():
            if len(vectors) < 2:
                which = "true" if real else "restored"
                raise InputError(f"{self.title}: {len(vectors)} {which} images, two or more are needed")
        counts = [len(vectors) for vectors in sets.values()]
        # Only the draws are random; the state of PyTorch's generator is restored for the caller.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features", category=UserWarning)
            torch.manual_seed(0)
            metric = self._arithmetic(counts, sets[True].shape[1])
            for real, vectors in sets.items():
                metric.update(vectors.cpu().double(), real=real)
            found = metric.compute()
        return float(found if self.kind == "frechet" else found[0])

    def _arithmetic(self, counts: list[int], dimensions: int) -> Any:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.kid import KernelInceptionDistance
        except ImportError as error:
            raise CheckpointError(
                f"{self.title} needs the package torchmetrics ({error}); run: pip install 'diffir_sr[metrics]'"
            ) from error
        ready = _AsTheyAre(dimensions)
        if self.kind == "frechet":
            return FrechetInceptionDistance(feature=ready)
        drawn = min(*counts, _SUBSET)
        return KernelInceptionDistance(feature=ready, subset_size=drawn, subsets=100 if max(counts) > drawn else 1)


class _AsTheyAre(nn.Module):
    """For torchmetrics, which expects a network although the features are already computed."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


class _First(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0].flatten(1)


class _Pooled(nn.Module):
    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.stages(images)[-1], 1).flatten(1)
