"""What stands for BasicSR's own classes, which cannot declare anything: arguments here, the rest by name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from diffir_sr.families.base import Family
from diffir_sr.option_types import NotNegative, Number, Section, Small, SmallOrZero


class PixelArguments(Section):
    """Arguments of L1Loss, MSELoss and CharbonnierLoss."""

    loss_weight: NotNegative = Field(description="Factor on the loss.")
    reduction: Literal["mean", "sum"] = Field(description="How pixels are put together: mean or sum.")


class CharbonnierArguments(PixelArguments):
    """Arguments of CharbonnierLoss."""

    eps: NotNegative = Field(description="Added to squares before their root.")


class VggOptions(Section):
    """What `train.perceptual_opt` may hold beside the arguments of its loss; read before the loss is built."""

    vgg_path: str | None = Field(
        None, description="File with VGG's weights; by default they are looked for, and downloaded if not found."
    )


class GANArguments(Section):
    """Arguments of GANLoss."""

    gan_type: Literal["vanilla", "lsgan", "wgan", "wgan_softplus", "hinge"] = Field(
        description="vanilla, lsgan, wgan, wgan_softplus or hinge."
    )
    real_label_val: Number = Field(description="Label of true images.")
    fake_label_val: Number = Field(description="Label of restored images.")
    loss_weight: NotNegative = Field(description="Factor on the generator's loss; the discriminator's is always 1.")


class UNetDiscriminatorArguments(Section):
    """Arguments of UNetDiscriminatorSN."""

    num_in_ch: Small = Field(description="Channels of the images that it sees.")
    num_feat: Small = Field(description="Channels of its first layer.")
    skip_connection: bool = Field(description="Whether its halves are connected as in a U-Net.")


class MetricArguments(Section):
    """Arguments of every metric; `better` is read by BasicSR's record of the best value."""

    crop_border: SmallOrZero = Field(description="Pixels left out at each side.")
    input_order: Literal["HWC", "CHW"] = Field(description="Order of the image's axes; leave it as it is.")
    better: Literal["higher", "lower"] = Field(
        "higher", description="Which value is the best one of a run: higher or lower; by default what the metric means."
    )


class FidelityArguments(MetricArguments):
    """Arguments of PSNR and SSIM."""

    test_y_channel: bool = Field(description="Whether brightness (Y of BT.601) is compared instead of RGB.")


class NiqeArguments(MetricArguments):
    """Arguments of NIQE."""

    convert_to: Literal["y", "gray"] = Field(description="What is looked at: y (brightness) or gray.")
    better: Literal["higher", "lower"] = Field("lower", description="See calculate_psnr; lower by default.")


class PerceptualMetricArguments(MetricArguments):
    """Arguments of metrics by a network, which are this package's functions: functions declare nothing."""

    backbone: str = Field(
        description="File with the network's ImageNet weights; by default they are looked for, see metrics.md."
    )
    better: Literal["higher", "lower"] = Field("lower", description="See calculate_psnr; lower by default.")


class LpipsArguments(PerceptualMetricArguments):
    """Arguments of LPIPS."""

    net: Literal["alex", "vgg"] = Field(description="Network that compares: alex or vgg.")


class Described:
    """Stands for a class or function of which only the arguments are declared."""

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
        "basicsr.losses.basic_loss:PerceptualLoss": "diffir_sr.models.basicsr_options:PerceptualOptions",
        "basicsr.losses.gan_loss:GANLoss": f"{_HERE}:GAN",
        "basicsr.archs.discriminator_arch:UNetDiscriminatorSN": f"{_HERE}:UNET",
        "basicsr.metrics.psnr_ssim:calculate_psnr": f"{_HERE}:FIDELITY",
        "basicsr.metrics.psnr_ssim:calculate_ssim": f"{_HERE}:FIDELITY",
        "basicsr.metrics.niqe:calculate_niqe": f"{_HERE}:NIQE",
        "diffir_sr.metrics.image_api:calculate_ssim_matlab": f"{_HERE}:FIDELITY",
        "diffir_sr.metrics.image_api:calculate_lpips": f"{_HERE}:LPIPS",
        "diffir_sr.metrics.image_api:calculate_dists": f"{_HERE}:DISTS",
        "basicsr.models.sr_model:SRModel": "diffir_sr.models.basicsr_options:SROptions",
        "basicsr.models.srgan_model:SRGANModel": "diffir_sr.models.basicsr_options:SRGANOptions",
        "basicsr.models.esrgan_model:ESRGANModel": "diffir_sr.models.basicsr_options:SRGANOptions",
        "basicsr.data.paired_image_dataset:PairedImageDataset": "diffir_sr.data.checks:PairedImages",
        "basicsr.data.single_image_dataset:SingleImageDataset": "diffir_sr.data.checks:SingleImages",
        "basicsr.data.realesrgan_dataset:RealESRGANDataset": "diffir_sr.data.realesrgan_dataset:RealESRGANDataset",
        "basicsr.data.realesrgan_paired_dataset:RealESRGANPairedDataset": (
            "diffir_sr.data.realesrgan_dataset:RealESRGANPairedDataset"
        ),
    },
)
