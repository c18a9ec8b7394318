"""Everything this package adds to BasicSR's registries: the classes of families, and shared ones."""

from __future__ import annotations

from diffir_sr.compat import promise
from diffir_sr.families import FAMILIES
from diffir_sr.families.base import Family

# Shared by families. BasicSR registers UNetDiscriminatorSN under a suffixed name; published files use the bare one.
SHARED = Family(
    name="shared",
    archs=(
        "basicsr.archs.discriminator_arch:UNetDiscriminatorSN",
        "diffir_sr.archs.nlayer_discriminator_arch:NLayerDiscriminator",
    ),
    models=("diffir_sr.models.restoration_model:PlainModel",),
    datasets=(
        "diffir_sr.data.pairs:PairedDataset",
        "diffir_sr.data.pairs:SingleDataset",
        "diffir_sr.data.pairs:DeblurPairedDataset",
        "diffir_sr.data.realesrgan_dataset:RealESRGANDataset",
        "diffir_sr.data.realesrgan_dataset:RealESRGANPairedDataset",
        "diffir_sr.data.inpaint_dataset:InpaintDataset",
    ),
    losses=(
        "diffir_sr.losses:MaskedL1Loss",
        "diffir_sr.losses:MaskedGANLoss",
        "diffir_sr.losses:FeatureMatchingLoss",
        "diffir_sr.losses:ADE20KPerceptualLoss",
    ),
    metrics=(
        "diffir_sr.metrics:calculate_lpips",
        "diffir_sr.metrics:calculate_dists",
        "diffir_sr.metrics:calculate_ssim_matlab",
    ),
)


def register() -> None:
    """Add the names of this package to BasicSR's registries, imported on first use; a taken name is an error."""
    from basicsr.utils.registry import (
        ARCH_REGISTRY,
        DATASET_REGISTRY,
        LOSS_REGISTRY,
        METRIC_REGISTRY,
        MODEL_REGISTRY,
    )

    for family in (SHARED, *FAMILIES):
        for registry, names in (
            (ARCH_REGISTRY, family.archs),
            (DATASET_REGISTRY, family.datasets),
            (LOSS_REGISTRY, family.losses),
            (METRIC_REGISTRY, family.metrics),
            (MODEL_REGISTRY, family.models),
        ):
            for name in names:
                promise(registry, name)
