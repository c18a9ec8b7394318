"""Losses that BasicSR lacks: of DiffIR, of inpainting, of AutoDIR and of the NAFNet that corrects its pictures.

Masks are (B, 1, H, W), 1 = missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import resnet50

from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.option_types import Found, NotNegative, Positive, Section, View
from diffir_sr.weights.backbones import read_tensors
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights.registry import find


def needs_holes(view: View, at: tuple[str, ...]) -> Found:
    """Losses with masks require inpainting models."""
    if not view.declares("FILLS_HOLES"):
        fill = " and ".join(view.models_with("FILLS_HOLES"))
        yield (*at, "type"), f"{view.get(*at, 'type')} needs masks, which only {fill} have"


class MaskedL1Arguments(Section):
    """Arguments of MaskedL1Loss."""

    weight_known: NotNegative = Field(description="Factor on the difference at known pixels.")
    weight_missing: NotNegative = Field(description="Factor on the difference in holes.")


class MaskedGANArguments(Section):
    """Arguments of MaskedGANLoss."""

    loss_weight: NotNegative = Field(description="Factor on the generator's loss; the discriminator's is always 1.")
    gp_coef: NotNegative = Field(description="Factor on the gradient penalty of the discriminator at real images (R1).")
    mask_as_fake_target: bool = Field(
        description="Whether known pixels of restored images count as real for the discriminator."
    )


class FeatureMatchingArguments(Section):
    """Arguments of FeatureMatchingLoss."""

    loss_weight: NotNegative = Field(description="Factor on the distance.")


class MaskedL1Loss(nn.Module):
    """Mean absolute difference of images (B, 3, H, W), with separate weights for known and missing pixels.

    The published recipe uses weight 10 for known pixels and 0 for missing ones, which are left to the other losses.
    """

    ARGUMENTS = MaskedL1Arguments
    RULES = (needs_holes,)

    def __init__(self, weight_known: float = 10.0, weight_missing: float = 0.0) -> None:
        super().__init__()
        self.weight_known = weight_known
        self.weight_missing = weight_missing

    def forward(self, restored: Tensor, gt: Tensor, mask: Tensor) -> Tensor:
        weight = self.weight_missing * mask + self.weight_known * (1 - mask)
        return (weight * (restored - gt).abs()).mean()


class MaskedGANLoss(nn.Module):
    """Non-saturating adversarial loss with R1; known pixels of restored images count as real for the discriminator.

    forward(logits) is the generator's loss, times `loss_weight`. The discriminator's loss has weight 1 and three parts:
    `real_loss`, `fake_loss` and `penalty`. From LaMa, as in the published recipe.
    """

    ARGUMENTS = MaskedGANArguments
    RULES = (needs_holes,)
    SEES_HOLES = True

    def __init__(self, loss_weight: float = 10.0, gp_coef: float = 0.001, mask_as_fake_target: bool = True) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.gp_coef = gp_coef
        self.mask_as_fake_target = mask_as_fake_target

    def forward(self, logits: Tensor) -> Tensor:
        return self.loss_weight * F.softplus(-logits).mean()

    def real_loss(self, logits: Tensor) -> Tensor:
        """The discriminator's loss for the logits of real images."""
        return F.softplus(-logits).mean()

    def fake_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The same for restored images with `mask`, which is scaled to the logits by nearest neighbour."""
        if not self.mask_as_fake_target:
            return F.softplus(logits).mean()
        missing = F.interpolate(mask, size=logits.shape[-2:], mode="nearest")
        return (missing * F.softplus(logits) + (1 - missing) * F.softplus(-logits)).mean()

    def penalty(self, logits: Tensor, real: Tensor) -> Tensor:
        """`gp_coef` times R1 (Mescheder et al. 2018): squared norm of d(sum of logits)/d(real), mean over images.

        `real` must require a gradient; the result can be differentiated again.
        """
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return self.gp_coef * slope.square().flatten(1).sum(dim=1).mean()


class FeatureMatchingLoss(nn.Module):
    """Mean over a discriminator's layers of the mean squared difference of its activations for fake and real."""

    ARGUMENTS = FeatureMatchingArguments

    def __init__(self, loss_weight: float = 100.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """`fake` and `real`: the activations of each layer; the real ones get no gradient."""
        distances = [F.mse_loss(one, other.detach()) for one, other in zip(fake, real, strict=True)]
        return self.loss_weight * torch.stack(distances).mean()


# The perceptual loss with a large receptive field: features of a dilated ResNet50 trained for segmentation on ADE20K.


_NAME = "ade20k_resnet50"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, R, G, B in [0, 1]


class DilatedResNet50(nn.Module):
    """The encoder of the MIT scene parsing benchmark: ResNet50 with three 3x3 convolutions at the start.

    The last two stages use dilation instead of strides, so features have 1/8 of the resolution and a large receptive
    field. Parameters are named as in the published file.
    """

    def __init__(self) -> None:
        super().__init__()
        trunk = resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
        for number, (into, out, stride) in enumerate(((3, 64, 2), (64, 64, 1), (64, 128, 1)), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
        self.maxpool = trunk.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4
        # The stem has 128 channels, torchvision's has 64.
        first = self.layer1[0]
        first.add_module("conv1", nn.Conv2d(128, 64, 1, bias=False))
        first.get_submodule("downsample").add_module("0", nn.Conv2d(128, 256, 1, bias=False))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of the four stages: 256, 512, 1024 and 2048 channels at 1/4, 1/8, 1/8 and 1/8 of the sides."""
        for number in (1, 2, 3):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            image = F.relu(norm(conv(image)), inplace=True)
        features, image = [], self.maxpool(image)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            image = stage(image)
            features.append(image)
        return features


class ADE20KArguments(Section):
    """Arguments of the loss."""

    perceptual_weight: NotNegative = Field(description="Factor on the loss.")
    weights_path: str = Field(description="File with the weights of the dilated ResNet50; by default searched for.")
    sha256: str = Field(description="Required checksum of the file; by default it is not checked.")


class ADE20KPerceptualLoss(nn.Module):
    """Sum over four stages of the mean squared difference of features, times `perceptual_weight` (published: 30).

    LaMa's high-receptive-field perceptual loss. Its weights come from `weights_path`, or else from the search (see
    `weights.search`); nothing is downloaded, and there is no fallback. `sha256` pins the file.
    """

    ARGUMENTS = ADE20KArguments

    def __init__(
        self, perceptual_weight: float = 30.0, weights_path: str | None = None, sha256: str | None = None
    ) -> None:
        super().__init__()
        self.perceptual_weight = perceptual_weight
        self.net = load_backbone(backbone_file(weights_path), sha256=sha256)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])

    def forward(self, restored: Tensor, gt: Tensor) -> tuple[Tensor, None]:
        """The loss of images (B, 3, H, W) in [0, 1], and no style loss (BasicSR's PerceptualLoss gives both)."""
        with torch.no_grad():
            wanted = self._features(gt)
        distances = [F.mse_loss(one, other) for one, other in zip(self._features(restored), wanted, strict=True)]
        return self.perceptual_weight * torch.stack(distances).sum(), None

    def _features(self, image: Tensor) -> list[Tensor]:
        self.net.eval()  # batch norms always use the statistics of the file
        return self.net((image - self.mean) / self.deviation)


def backbone_file(weights_path: str | None) -> Path:
    """The file of the backbone; raises CheckpointError, which lists the places searched and what to do."""
    return find(_NAME, given=weights_path, option="train.perceptual_opt.weights_path").path


def load_backbone(path: Path, *, sha256: str | None = None) -> DilatedResNet50:
    """The frozen encoder with the weights of a file; raises CheckpointError for another network or another file."""
    if sha256:
        digest = sha256_of(path)
        if digest != sha256.lower():
            raise CheckpointError(f"{path.absolute()}: sha256 is {digest}, expected {sha256}; fetch the file again")
    tensors = read_tensors(path)
    with torch.device("meta"):
        net = DilatedResNet50()
    # Files of PyTorch 0.4 have no batch counters, and the published one has buffers of its parallel batch norm.
    wanted = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    difference = _difference(tensors, wanted)
    if difference:
        raise CheckpointError(
            f"{path.absolute()}: not the dilated ResNet50 of ADE20K: {difference}; see: diffir models show {_NAME}"
        )
    net.to_empty(device="cpu").load_state_dict({name: tensors[name] for name in wanted}, strict=False)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return net.eval().requires_grad_(False)


def _difference(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        return f"{len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}"
    other = [name for name in wanted if tensors[name].shape != wanted[name].shape]
    if other:
        name = other[0]
        return f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
    return None


# The loss between two priors: stage 2's estimate and stage 1's prior of the ground truth.


class KDArguments(Section):
    """Arguments of the loss."""

    loss_weight: NotNegative = Field(description="Factor on the distance between the priors.")
    temperature: Positive = Field(description="Temperature of the KL divergence, which is logged but not optimised.")
    criterion: Literal["l1", "l2", "kl"] = Field(
        description="Distance between the priors: l1 (published, best in the paper), l2 or kl."
    )


class KDLoss(nn.Module):
    """KL divergence and distance of priors (B, D), both weighted; training optimises only the distance.

    `criterion` is the distance: l1 (published), l2 or kl.

    The paper's ablation found L1 better than L2 and KL (L_diff, section 4.4); the published code logs the KL
    term. It is KL(softmax(teacher / temperature) || softmax(estimate / temperature)), summed over D, mean over B.
    """

    ARGUMENTS = KDArguments

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.15, criterion: str = "l1") -> None:
        super().__init__()
        if criterion not in ("l1", "l2", "kl"):
            raise OptionError(f"KDLoss: criterion: expected l1, l2 or kl, got {criterion!r}")
        self.criterion = criterion
        self.loss_weight = loss_weight
        self.temperature = temperature

    def forward(self, teacher: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """(KL, distance) of stage 1's prior and stage 2's estimate; without gradient for the teacher and for KL."""
        teacher = teacher.detach()
        kl = self._divergence(teacher, estimate)
        distance = {"l1": F.l1_loss, "l2": F.mse_loss, "kl": self._divergence}[self.criterion]
        apart = distance(teacher, estimate) if self.criterion == "kl" else distance(estimate, teacher)
        return self.loss_weight * kl.detach(), self.loss_weight * apart

    def _divergence(self, teacher: Tensor, estimate: Tensor) -> Tensor:
        target = (teacher / self.temperature).log_softmax(dim=1)
        guess = (estimate / self.temperature).log_softmax(dim=1)
        return F.kl_div(guess, target, reduction="batchmean", log_target=True)


class PSNRArguments(Section):
    """Arguments of PSNRLoss."""

    loss_weight: NotNegative = Field(description="Factor on the loss.")
    reduction: Literal["mean"] = Field(description="How images are put together; mean is all there is.")


class PSNRLoss(nn.Module):
    """The negative PSNR of images (B, C, H, W) in [0, 1], dB: each image's own, then their mean (NAFNet's loss)."""

    ARGUMENTS: ClassVar[Any] = PSNRArguments

    def __init__(self, loss_weight: float = 1.0, reduction: Literal["mean"] = "mean") -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        squares = (pred - target).square().mean(dim=(1, 2, 3))
        return self.loss_weight * 10 / math.log(10) * torch.log(squares + 1e-8).mean()


class CategoryArguments(Section):
    """Arguments of FidelityLoss and CategoryCrossEntropy."""

    loss_weight: NotNegative = Field(description="Factor on the loss.")


class FidelityLoss(nn.Module):
    """One minus the fidelity of probabilities (B, K) and labels (B, K), over K; AutoDIR's loss of the assessor.

    The 1e-8 under each root keeps gradients finite where a label is 0, and makes a perfect guess slightly negative.
    """

    ARGUMENTS: ClassVar[Any] = CategoryArguments

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return self.loss_weight * ((1 - _overlap(probabilities, labels)) / labels.shape[1]).mean()


class CategoryCrossEntropy(nn.Module):
    """Cross-entropy of probabilities (B, K) under labels (B, K)."""

    ARGUMENTS: ClassVar[Any] = CategoryArguments

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return -self.loss_weight * (labels * probabilities.clamp(min=1e-8).log()).sum(dim=1).mean()


def semantic_agnostic_loss(clean: Tensor, labels: Tensor) -> Tensor:
    """How likely the assessor finds the faults `labels` (B, K) of degraded pictures in their `clean` counterparts.

    `clean` are its probabilities (B, K) there: what it learns must be the fault, not what the picture shows.
    """
    return (_overlap(clean, labels) / labels.shape[1]).mean()


def _overlap(probabilities: Tensor, labels: Tensor) -> Tensor:
    return torch.sqrt(probabilities * labels + 1e-8).sum(dim=1)
