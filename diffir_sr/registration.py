"""The table of contents: everything this package adds to BasicSR's registries."""

from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.archs.nlayer_discriminator_arch import NLayerDiscriminator
from diffir_sr.data.deblur_dataset import DeblurPairedDataset
from diffir_sr.data.inpaint_dataset import InpaintDataset
from diffir_sr.data.paired_dataset import PairedDataset
from diffir_sr.data.realesrgan_dataset import RealESRGANDataset, RealESRGANPairedDataset
from diffir_sr.data.single_dataset import SingleDataset
from diffir_sr.losses.ade20k_loss import ADE20KPerceptualLoss
from diffir_sr.losses.hole_losses import FeatureMatchingLoss, MaskedGANLoss, MaskedL1Loss
from diffir_sr.losses.prior_loss import KDLoss
from diffir_sr.metrics.image_api import calculate_dists, calculate_lpips, calculate_ssim_matlab
from diffir_sr.models.diffir_gan_s2_model import DiffIRGANS2Model
from diffir_sr.models.diffir_inpaint_s1_model import DiffIRInpaintS1Model
from diffir_sr.models.diffir_inpaint_s2_model import DiffIRInpaintS2Model
from diffir_sr.models.diffir_s1_model import DiffIRS1Model
from diffir_sr.models.diffir_s2_model import DiffIRS2Model


def register() -> None:
    """Add our names to BasicSR's registries; a name that is taken is an error."""
    contents = {
        # BasicSR has this discriminator under a suffixed name; published files use the bare one.
        ARCH_REGISTRY: (DiffIRS1, DiffIRS2, UNetDiscriminatorSN, NLayerDiscriminator),
        DATASET_REGISTRY: (
            PairedDataset,
            SingleDataset,
            DeblurPairedDataset,
            RealESRGANDataset,
            RealESRGANPairedDataset,
            InpaintDataset,
        ),
        LOSS_REGISTRY: (KDLoss, MaskedL1Loss, MaskedGANLoss, FeatureMatchingLoss, ADE20KPerceptualLoss),
        METRIC_REGISTRY: (calculate_lpips, calculate_dists, calculate_ssim_matlab),
        MODEL_REGISTRY: (
            DiffIRS1Model,
            DiffIRS2Model,
            DiffIRGANS2Model,
            DiffIRInpaintS1Model,
            DiffIRInpaintS2Model,
        ),
    }
    for registry, things in contents.items():
        for thing in things:
            registry.register(thing)
