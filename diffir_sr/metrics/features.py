"""Distances of deep features: LPIPS and DISTS of image pairs, Fréchet and kernel distances of two sets of images.

LPIPS and DISTS are 0 for equal images. FID and KID are distances of sets on the features of one specific network,
TensorFlow's Inception of 2015.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.devices import default_device
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.metrics.fidelity import check_tensors
from diffir_sr.weights.backbones import features_of, tensors_of
from diffir_sr.weights.registry import check, entry_of, find

Net = Literal["alex", "vgg"]
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}
CHANNELS = (64, 128, 256, 512, 512)
# Indices of the convolutions of each stage in torchvision's `features`.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_SMALLEST = 32  # smaller images vanish before AlexNet's last layer


class VGGStages(nn.Module):
    """Outputs of the last ReLU of each stage: (N, 64, H, W), (N, 128, H/2, W/2), ... (N, 512, H/16, W/16).

    The input is RGB in [0, 1] and is normalised for ImageNet. `tensors` come from `weights.backbones.features_of`. With
    `with_image`, the image itself, not normalised, comes first.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, pool: Callable[[Tensor], Tensor] | None = None, with_image: bool = False
    ) -> None:
        super().__init__()
        names = [f"features.{place}.{kind}" for stage in _STAGES for place in stage for kind in ("weight", "bias")]
        absent = [name for name in names if name not in tensors]
        if absent:
            raise CheckpointError(f"not the weights of VGG16: {absent[0]} is missing")
        for name in names:
            self.register_buffer(name.replace(".", "_"), tensors[name], persistent=False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.pool = pool or (lambda x: F.max_pool2d(x, 2))
        self.with_image = with_image

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        outputs = [image] if self.with_image else []
        for stage in _STAGES:
            if stage[0]:
                x = self.pool(x)
            for place in stage:
                weight, bias = (self.get_buffer(f"features_{place}_{kind}") for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            outputs.append(x)
        return outputs


def lpips(restored: Tensor, gt: Tensor, *, net: Net = "alex", backbone: str | None = None) -> Tensor:
    """Learned perceptual distance (LPIPS 0.1, Zhang et al. 2018) of each pair, (N,): 0 for equal images.

    Images are (N, 3, H, W) RGB in [0, 1], with sides of 32 pixels or more; they are not resized. `net` is the backbone:
    the paper's super-resolution table uses alex, the real-world and inpainting tables vgg. `backbone` is the file of
    its ImageNet weights, by default searched for (see `weights.search`).
    """
    if net not in get_args(Net):
        raise InputError(f"net: expected one of {', '.join(get_args(Net))}, found {net!r}")
    check_tensors(restored, gt, channels=(3,), smallest=_SMALLEST)
    network = _lpips_network(net, backbone).to(restored.device)
    with torch.no_grad():
        return network(restored.float() * 2 - 1, gt.float() * 2 - 1).flatten()


def dists(restored: Tensor, gt: Tensor, *, backbone: str | None = None) -> Tensor:
    """Distance of structure and texture (DISTS, Ding et al. 2020) of each pair, (N,): 0 for equal images.

    Images and `backbone` are those of `lpips`. Images are measured at full size, as in the paper's tables; the authors
    of DISTS resize them to 256 pixels first.
    """
    check_tensors(restored, gt, channels=(3,), smallest=_SMALLEST)
    stages, alpha, beta = _dists_network(backbone)
    stages = stages.to(restored.device)
    with torch.no_grad():
        layers = zip(stages(restored.float()), stages(gt.float()), strict=True)
        likeness = [torch.stack(_likeness(a, b)) for a, b in layers]
    texture_and_structure = torch.cat(likeness, dim=2)  # (2, N, channels of all layers)
    weights = torch.stack((alpha, beta))[:, None].to(restored.device)
    return 1 - (texture_and_structure * weights).sum((0, 2)) / weights.sum()


def _likeness(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 4 and 5 of DISTS: similarity of means (texture) and of covariances (structure), each (N, channels)."""
    tiny = 1e-6
    mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
    variance_a = (a - mean_a[..., None, None]).square().mean((2, 3))
    variance_b = (b - mean_b[..., None, None]).square().mean((2, 3))
    covariance = (a * b).mean((2, 3)) - mean_a * mean_b
    texture = (2 * mean_a * mean_b + tiny) / (mean_a.square() + mean_b.square() + tiny)
    return texture, (2 * covariance + tiny) / (variance_a + variance_b + tiny)


def prepare(metric: Literal["lpips", "dists"], *, net: Net = "alex", backbone: str | None = None) -> None:
    """Load what `lpips` or `dists` needs; raises CheckpointError if a package or weights are missing."""
    if metric == "lpips":
        _lpips_network(net, backbone)
    else:
        _dists_network(backbone)


@cache
def _lpips_network(net: Net, backbone: str | None) -> nn.Module:
    heads = tensors_of(f"lpips_{net}")
    trunk = features_of(_BACKBONES[net], given=backbone)[0]
    from lpips import LPIPS

    # Weights are drawn before they are replaced; measuring must not change the random state of a training.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*'?pretrained'?|.*weight enum", category=UserWarning)
        network = LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            known = heads if name.startswith("lin") else trunk
            # lpips names layers net.slice<part>.<index in features>.weight
            place = name if name.startswith("lin") else f"features.{name.split('.', 2)[2]}"
            if place not in known or known[place].shape != parameter.shape:
                raise CheckpointError(f"LPIPS {net}: the weights have no {place} of shape {tuple(parameter.shape)}")
            parameter.copy_(known[place])
    return network.requires_grad_(False).eval()


@cache
def _dists_network(backbone: str | None) -> tuple[nn.Module, Tensor, Tensor]:
    tensors = tensors_of("dists")
    alpha, beta = tensors["alpha"].flatten().detach(), tensors["beta"].flatten().detach()
    if len(alpha) != 3 + sum(CHANNELS) or len(beta) != len(alpha):
        raise CheckpointError(f"DISTS: expected {3 + sum(CHANNELS)} weights, found {len(alpha)} and {len(beta)}")
    return VGGStages(features_of("vgg16", given=backbone)[0], pool=_hann_pool, with_image=True), alpha, beta


def _hann_pool(x: Tensor) -> Tensor:
    """Root mean square under a 3 x 3 Hann window with stride 2, which replaces max-pooling in DISTS."""
    line = x.new_tensor([0.25, 0.5, 0.25])
    window = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x.square(), window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


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
