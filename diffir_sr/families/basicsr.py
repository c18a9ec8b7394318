"""Substitutes for BasicSR's own classes, which declare no options: arguments here, other options by name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from diffir_sr.families.base import Family
from diffir_sr.option_types import NotNegative, Number, Section, Small, SmallOrZero


class PixelArguments(Section):
    """Arguments of L1Loss, MSELoss and CharbonnierLoss."""

    loss_weight: NotNegative = Field(description="Weight of the loss.")
    reduction: Literal["mean", "sum"] = Field(description="Reduction over pixels: mean or sum.")


class CharbonnierArguments(PixelArguments):
    """Arguments of CharbonnierLoss."""

    eps: NotNegative = Field(description="Added to squares before taking the root.")


class VggOptions(Section):
    """Options of `train.perceptual_opt` besides the arguments of its loss; read before the loss is built."""

    vgg_path: str | None = Field(
        None, description="File with the VGG weights; by default searched for, and downloaded if not found."
    )


class GANArguments(Section):
    """Arguments of GANLoss."""

    gan_type: Literal["vanilla", "lsgan", "wgan", "wgan_softplus", "hinge"] = Field(
        description="vanilla, lsgan, wgan, wgan_softplus or hinge."
    )
    real_label_val: Number = Field(description="Label of real images.")
    fake_label_val: Number = Field(description="Label of restored images.")
    loss_weight: NotNegative = Field(
        description="Weight of the generator's loss; that of the discriminator is always 1."
    )


class UNetDiscriminatorArguments(Section):
    """Arguments of UNetDiscriminatorSN."""

    num_in_ch: Small = Field(description="Channels of its input images.")
    num_feat: Small = Field(description="Channels of its first layer.")
    skip_connection: bool = Field(description="Whether it has the skip connections of a U-Net.")


class MetricArguments(Section):
    """Arguments of every metric; `better` is read by BasicSR's record of the best value."""

    crop_border: SmallOrZero = Field(description="Border in pixels to ignore.")
    input_order: Literal["HWC", "CHW"] = Field(description="Order of the axes of the image; keep the default.")
    better: Literal["higher", "lower"] = Field(
        "higher", description="Which values are better: higher or lower; by default as appropriate for the metric."
    )


class FidelityArguments(MetricArguments):
    """Arguments of PSNR and SSIM."""

    test_y_channel: bool = Field(description="Whether luma (Y of BT.601) is compared instead of RGB.")


class NiqeArguments(MetricArguments):
    """Arguments of NIQE."""

    convert_to: Literal["y", "gray"] = Field(description="Channel to measure: y (luma) or gray.")
    better: Literal["higher", "lower"] = Field("lower", description="See calculate_psnr; lower by default.")


class PerceptualMetricArguments(MetricArguments):
    """Arguments of metrics with a network, which are functions of this package; functions cannot declare options."""

    backbone: str = Field(
        description="File with the ImageNet weights of the network; by default searched for, see metrics.md."
    )
    better: Literal["higher", "lower"] = Field("lower", description="See calculate_psnr; lower by default.")


class LpipsArguments(PerceptualMetricArguments):
    """Arguments of LPIPS."""

    net: Literal["alex", "vgg"] = Field(description="Backbone: alex or vgg.")


class Described:
    """Substitute for a class or function of which only the arguments are declared."""

    def __init__(self, arguments: type[Section]) -> None:
        self.ARGUMENTS: Any = arguments


_HERE = __name__
PIXEL, CHARBONNIER = map(Described, (PixelArguments, CharbonnierArguments))
GAN, UNET, FIDELITY = map(Described, (GANArguments, UNetDiscriminatorArguments, FidelityArguments))
NIQE, LPIPS, DISTS = map(Described, (NiqeArguments, LpipsArguments, PerceptualMetricArguments))

BASICSR = Family(
    name="BasicSR",
    stand_ins={
        "basicsr.losses.basic_loss:L1Loss": f"{_HERE}:PIXEL",
        "basicsr.losses.basic_loss:MSELoss": f"{_HERE}:PIXEL",
        "basicsr.losses.basic_loss:CharbonnierLoss": f"{_HERE}:CHARBONNIER",
        "basicsr.losses.basic_loss:PerceptualLoss": "diffir_sr.models.auxiliary:PerceptualOptions",
        "basicsr.losses.gan_loss:GANLoss": f"{_HERE}:GAN",
        "basicsr.archs.discriminator_arch:UNetDiscriminatorSN": f"{_HERE}:UNET",
        "basicsr.metrics.psnr_ssim:calculate_psnr": f"{_HERE}:FIDELITY",
        "basicsr.metrics.psnr_ssim:calculate_ssim": f"{_HERE}:FIDELITY",
        "basicsr.metrics.niqe:calculate_niqe": f"{_HERE}:NIQE",
        "diffir_sr.metrics:calculate_ssim_matlab": f"{_HERE}:FIDELITY",
        "diffir_sr.metrics:calculate_lpips": f"{_HERE}:LPIPS",
        "diffir_sr.metrics:calculate_dists": f"{_HERE}:DISTS",
        "basicsr.models.sr_model:SRModel": "diffir_sr.models.auxiliary:SROptions",
        "basicsr.models.srgan_model:SRGANModel": "diffir_sr.models.auxiliary:SRGANOptions",
        "basicsr.models.esrgan_model:ESRGANModel": "diffir_sr.models.auxiliary:SRGANOptions",
        "basicsr.data.paired_image_dataset:PairedImageDataset": "diffir_sr.data.checks:PairedImages",
        "basicsr.data.single_image_dataset:SingleImageDataset": "diffir_sr.data.checks:SingleImages",
        "basicsr.data.realesrgan_dataset:RealESRGANDataset": "diffir_sr.data.realesrgan_dataset:RealESRGANDataset",
        "basicsr.data.realesrgan_paired_dataset:RealESRGANPairedDataset": (
            "diffir_sr.data.realesrgan_dataset:RealESRGANPairedDataset"
        ),
    },
)
