"""Image quality metrics as pure functions: PSNR and SSIM, distances of deep features, and names for `val.metrics`.

Metrics take pairs of equal size: tensors in [0, 1] or 8-bit arrays.

LPIPS and DISTS are 0 for equal images. FID and KID are distances of sets on the features of one specific network,
TensorFlow's Inception of 2015.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.metrics.metric_util import reorder_image, to_y_channel
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from scipy.ndimage import correlate1d
from torch import Tensor, nn

from diffir_sr.devices import default_device
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.weights.backbones import features_of, tensors_of
from diffir_sr.weights.registry import check, entry_of, find


def check_tensors(restored: Tensor, gt: Tensor, *, channels: tuple[int, ...] = (1, 3), smallest: int = 1) -> None:
    """Raise InputError unless both are (N, C, H, W) with equal shapes, in [0, 1], with sides of at least `smallest`."""
    _check_same_shape(restored, gt)
    for name, image in (("restored", restored), ("gt", gt)):
        if image.ndim != 4 or image.shape[1] not in channels or not image.shape[0]:
            wanted = " or ".join(str(count) for count in channels)
            raise InputError(f"{name}: expected (N, C, H, W) with C of {wanted}, found {tuple(image.shape)}")
        _check_side(min(image.shape[2:]), smallest, name)
        if not image.is_floating_point():
            raise InputError(f"{name}: expected floating-point values in [0, 1], found {image.dtype}; divide by 255")
        low, high = (float(extreme) for extreme in image.detach().aminmax())
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise InputError(
                f"{name}: expected values in [0, 1], found {low:g} to {high:g}; clamp or rescale them first"
            )


def check_arrays(restored: np.ndarray, gt: np.ndarray, *, smallest: int = 1) -> None:
    """Raise InputError unless both are (H, W), (H, W, 1) or (H, W, 3) with equal shapes, uint8."""
    _check_same_shape(restored, gt)
    for name, image in (("restored", restored), ("gt", gt)):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise InputError(f"{name}: expected (H, W), (H, W, 1) or (H, W, 3), found {image.shape}")
        _check_side(min(image.shape[:2]), smallest, name)
        if image.dtype != np.uint8:
            raise InputError(f"{name}: expected an array of uint8, 0 to 255, found {image.dtype}; round it first")


def _check_same_shape(restored: Any, gt: Any) -> None:
    if restored.shape != gt.shape:
        raise InputError(
            f"the images differ in shape: restored {tuple(restored.shape)}, gt {tuple(gt.shape)}; crop or resize one"
        )


def _check_side(side: int, smallest: int, name: str) -> None:
    if side < smallest:
        raise InputError(f"{name}: its shorter side has {side} pixels, this metric needs {smallest} or more")


def as_unit_tensor(image: np.ndarray) -> Tensor:
    """Convert a uint8 array (H, W, C) to float32 (1, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255


# The protocol of a metric as text.


def protocol(opt: Mapping[str, Any]) -> str:
    """Channel, border and variant of one entry of `val.metrics`: 'Y, border 4', 'RGB, border 0, net vgg'."""
    kind = opt.get("type")
    luma = opt.get("test_y_channel") or (kind == "calculate_niqe" and opt.get("convert_to", "y") == "y")
    parts = ["Y" if luma else "RGB"]
    ours = kind in ("calculate_ssim_matlab", "calculate_lpips", "calculate_dists")
    if ours or "crop_border" in opt:
        parts.append(f"border {opt.get('crop_border', 0)}")
    if kind == "calculate_ssim_matlab":
        parts.append("MATLAB's" if luma else "MATLAB's, window over channels too")
    if kind == "calculate_lpips":
        parts.append(f"net {opt.get('net', 'alex')}")
    if kind == "calculate_dists":
        parts.append("full size")
    return ", ".join(parts)


# PSNR and SSIM.


Convention = Literal["basicsr", "matlab"]
_WINDOW = 11
_SIGMA = 1.5
# (0.01 L)^2 and (0.03 L)^2 of Wang et al. 2004, for L = 255
_C1, _C2 = 6.5025, 58.5225

Images = TypeVar("Images", Tensor, np.ndarray)


def psnr(restored: Images, gt: Images, *, border: int = 0, luma: bool = False) -> Tensor | float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Tensors are (N, C, H, W) in [0, 1], C of 1 or 3 (RGB), are not rounded, and give (N,) in float64. Arrays are
    (H, W[, C]) of uint8 and give a number. `border` pixels are ignored at each side. `luma` compares Y of BT.601
    (16 to 235, not rounded) instead of RGB. Equal to BasicSR's `calculate_psnr` and, on RGB, to MATLAB's psnr().
    """
    return _of_each(restored, gt, border, smallest=1, measure=lambda a, b: calculate_psnr(a, b, 0, test_y_channel=luma))


def ssim(
    restored: Images, gt: Images, *, border: int = 0, luma: bool = False, convention: Convention = "basicsr"
) -> Tensor | float:
    """Structural similarity, at most 1, and 1 for equal images. Images and arguments are those of `psnr`.

    Both conventions use a Gaussian window of 11 pixels, sigma 1.5. "basicsr" (Wang et al. 2004) takes the mean over
    channels, each separately, and over positions where the window fits. "matlab" is MATLAB's ssim(): edges are extended
    and every pixel counts, and an image with three channels is a volume with a window of 11 x 11 x 11, so channels mix;
    the paper's deblurring table uses it. Its Y of uint8 is rounded.
    """
    if convention not in get_args(Convention):
        raise InputError(f"convention: expected one of {', '.join(get_args(Convention))}, found {convention!r}")
    if convention == "basicsr":
        return _of_each(restored, gt, border, _WINDOW, lambda a, b: calculate_ssim(a, b, 0, test_y_channel=luma))
    return _of_each(restored, gt, border, 1, lambda a, b: _volumetric_ssim(*(_planes(image, luma) for image in (a, b))))


def _of_each(
    restored: Images, gt: Images, border: int, smallest: int, measure: Callable[[np.ndarray, np.ndarray], float]
) -> Tensor | float:
    """`measure` for every pair, as (H, W, C) in BGR from 0 to 255, without its border."""
    if border < 0:
        raise InputError(f"border: expected 0 or more pixels, found {border}")
    if isinstance(restored, Tensor) and isinstance(gt, Tensor):
        check_tensors(restored, gt, smallest=smallest + 2 * border)
        pairs = zip(_as_arrays(restored), _as_arrays(gt), strict=True)
        values = [float(measure(_inner(a, border), _inner(b, border))) for a, b in pairs]
        return torch.tensor(values, dtype=torch.float64)
    if not (isinstance(restored, np.ndarray) and isinstance(gt, np.ndarray)):
        raise InputError(f"expected two tensors or two arrays, found {type(restored).__name__}, {type(gt).__name__}")
    check_arrays(restored, gt, smallest=smallest + 2 * border)
    a, b = (image.reshape(*image.shape[:2], -1)[..., ::-1] for image in (restored, gt))
    return float(measure(_inner(a, border), _inner(b, border)))


def _as_arrays(images: Tensor) -> np.ndarray:
    return images.detach().cpu().double().mul(255).permute(0, 2, 3, 1).flip(3).numpy()


def _inner(image: np.ndarray, border: int) -> np.ndarray:
    return np.ascontiguousarray(image[border : image.shape[0] - border, border : image.shape[1] - border])


def _planes(image: np.ndarray, luma: bool) -> np.ndarray:
    """(H, W, C) as in MATLAB, whose rgb2ycbcr() rounds Y of uint8 images."""
    values = (to_y_channel(image) if luma else image).astype(np.float64)
    return np.floor(values + 0.5) if luma and image.dtype == np.uint8 else values


def _volumetric_ssim(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((likeness / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))).mean())


def _smooth(volume: np.ndarray) -> np.ndarray:
    """Weighted mean around every value of (H, W, C), also along C if there is more than one channel."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    for axis in range(3 if volume.shape[2] > 1 else 2):
        volume = correlate1d(volume, weights / weights.sum(), axis=axis, mode="nearest")
    return volume


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


Order = Literal["HWC", "CHW"]
Better = Literal["higher", "lower"]


def calculate_ssim_matlab(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    input_order: Order = "HWC",
    test_y_channel: bool = False,
    better: Better = "higher",
) -> float:
    """SSIM of two BGR arrays of uint8 as computed by MATLAB's ssim(), on RGB with a window that includes channels."""
    a, b = _rgb(img, img2, crop_border, input_order)
    return float(ssim(a, b, luma=test_y_channel, convention="matlab"))


def calculate_lpips(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    input_order: Order = "HWC",
    net: Net = "alex",
    backbone: str | None = None,
    better: Better = "lower",
) -> float:
    """LPIPS of two BGR arrays of uint8, on the GPU if there is one; see `perceptual.lpips`."""
    return lpips(*_tensors(img, img2, crop_border, input_order), net=net, backbone=backbone).item()


def calculate_dists(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int = 0,
    input_order: Order = "HWC",
    backbone: str | None = None,
    better: Better = "lower",
) -> float:
    """DISTS of two BGR arrays of uint8 at full size, on the GPU if there is one; see `perceptual.dists`."""
    return dists(*_tensors(img, img2, crop_border, input_order), backbone=backbone).item()


def check_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CheckpointError, which names the entry, if a metric of `val.metrics` lacks its package or weights."""
    for name, opt in metrics.items():
        backbone = opt.get("backbone")
        try:
            if opt["type"] == "calculate_lpips":
                prepare("lpips", net=opt.get("net", "alex"), backbone=backbone)
            elif opt["type"] == "calculate_dists":
                prepare("dists", backbone=backbone)
        except CheckpointError as error:
            raise CheckpointError(f"val.metrics.{name}: {error}") from error


def _rgb(img: np.ndarray, img2: np.ndarray, border: int, order: str) -> tuple[np.ndarray, np.ndarray]:
    if border < 0:
        raise InputError(f"crop_border: expected 0 or more pixels, found {border}")
    a, b = (reorder_image(image, input_order=order)[..., ::-1] for image in (img, img2))
    check_arrays(a, b, smallest=2 * border + 1)
    height, width = a.shape[:2]
    inner = (slice(border, height - border), slice(border, width - border))
    return a[inner], b[inner]


def _tensors(img: np.ndarray, img2: np.ndarray, border: int, order: str) -> list[Tensor]:
    return [as_unit_tensor(image).to(default_device()) for image in _rgb(img, img2, border, order)]
