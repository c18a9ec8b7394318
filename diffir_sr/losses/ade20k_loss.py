"""The perceptual loss with a wide field of view: features of a dilated ResNet50 trained to segment ADE20K."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import resnet50

from diffir_sr.errors import CheckpointError
from diffir_sr.option_types import NotNegative, Section
from diffir_sr.weights.backbones import read_tensors
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights.search import find

_NAME = "ade20k_resnet50"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, R, G, B in [0, 1]


class DilatedResNet50(nn.Module):
    """The encoder of the MIT scene parsing benchmark: ResNet50 with three 3x3 convolutions at the start.

    The last two stages keep their resolution and dilate instead, so that features are 1/8 of the image and see far.
    Parameters are named as in the published file.
    """

    def __init__(self) -> None:
        super().__init__()
        trunk = resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
        for number, (into, out, stride) in enumerate(((3, 64, 2), (64, 64, 1), (64, 128, 1)), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
        self.maxpool = trunk.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4
        # The start has 128 channels, torchvision's 64.
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
    weights_path: str = Field(
        description="File with the weights of the dilated ResNet50; by default they are looked for."
    )
    sha256: str = Field(description="Checksum that the file must have; by default none is asked for.")


class ADE20KPerceptualLoss(nn.Module):
    """Sum over four stages of the mean squared difference of features, times `perceptual_weight` (published: 30).

    LaMa's high-receptive-field perceptual loss. Its weights come from `weights_path`, or else from where published
    trainings have them (see `weights.search`); nothing is downloaded, and nothing takes
    their place. `sha256` pins the file.
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
        self.net.eval()  # its batch norms are those of the file, whatever the training does
        return self.net((image - self.mean) / self.deviation)


def backbone_file(weights_path: str | None) -> Path:
    """The file of the backbone; raises CheckpointError that says where it was looked for and what to do."""
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
    # Files of PyTorch 0.4 do not count batches, and the published one has buffers of its parallel batch norm.
    wanted = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    told = _difference(tensors, wanted)
    if told:
        raise CheckpointError(
            f"{path.absolute()}: not the dilated ResNet50 of ADE20K: {told}; see: diffir models show {_NAME}"
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
