"""Perceptual distances: LPIPS and DISTS, both 0 for equal images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.metrics.fidelity import check_tensors
from diffir_sr.weights.backbones import features_of, tensors_of

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
