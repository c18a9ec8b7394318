"""The section `train`: what every training reads, and what the published DiffIR trainings read on top."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from diffir_sr.options.fields import (
    Built,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Probability,
    Section,
    Whole,
)


class TrainLoop(Section):
    """What BasicSR's training loop and its base model read, whatever the model."""

    total_iter: Count = Field(description="Iterations to train for.")
    warmup_iter: Whole = Field(-1, description="Iterations over which the learning rate grows from 0; -1 is none.")
    ema_decay: Probability = Field(0.0, description="Decay of the averaged weights (params_ema); 0 is no average.")
    optim_g: Built = Field(description="Optimizer of network_g: a class of torch.optim and its arguments.")
    scheduler: Built = Field(description="How the learning rate changes.")
    pixel_opt: Built | None = Field(None, description="Loss between the restored image and the ground truth.")
    perceptual_opt: Built | None = Field(
        None, description="Loss between VGG features of the two; vgg_path names the file with VGG's weights."
    )
    form: Literal["auto", "plain", "fast"] = Field(
        "auto",
        description="How DiffIR's body is computed in training: plain, as it is defined; fast, in fewer passes over "
        "memory, with the same numbers to rounding; auto is fast on CPUs and plain elsewhere.",
    )
    autocast: Literal["none", "bfloat16"] = Field(
        "none",
        description="bfloat16 computes convolutions and matrix products of network_g in half precision; weights, norm "
        "statistics, diffusion and losses stay in float32.",
    )
    checkpointing: bool = Field(
        False,
        description="Whether DiffIR's blocks are computed again in the backward pass instead of being kept: the same "
        "numbers in a fraction of the memory, and about a third more time.",
    )


class MixingAugs(Section):
    """Mixup of the images in a batch, as in the published deblurring recipe."""

    mixup: bool = Field(False, description="Whether images are mixed.")
    mixup_beta: Positive = Field(1.2, description="Both parameters of the Beta distribution of the mixing weight.")
    use_identity: bool = Field(True, description="Whether half of the batches stay unmixed.")


class TrainOptions(TrainLoop):
    """What the DiffIR models and BasicSR's SRModel, SRGANModel and ESRGANModel read."""

    optim_d: Built | None = Field(None, description="Optimizer of network_d; has effect in GAN training.")
    gan_opt: Built | None = Field(None, description="Adversarial loss; has effect in GAN training.")
    feature_matching_opt: Built | None = Field(
        None, description="Distance between what the discriminator's layers make of both images; inpainting alone."
    )
    kd_opt: Built | None = Field(None, description="Loss between the priors of stage 1 and stage 2 (KDLoss).")
    net_d_iters: Count = Field(1, description="Discriminator steps for each step of network_g.")
    net_d_init_iters: CountOrZero = Field(0, description="Iterations in which the discriminator trains alone.")
    clip_grad_norm: Positive | None = Field(
        None, description="Largest total norm of network_g's gradient; by default there is no limit."
    )
    diffusion_training: Literal["joint", "separate"] = Field(
        "joint",
        description="joint (published, the paper's V3): all steps run and the image loss reaches the prior; separate "
        "(V2, worse in the paper): the diffusion learns single random steps, the body alone learns from the image.",
    )
    encoder_iter: CountOrZero = Field(
        0, description="Iterations of stage 2 in which the prior alone is learnt; 0 is none."
    )
    lr_encoder: NotNegative | None = Field(None, description="Learning rate of these; has effect if encoder_iter > 0.")
    gamma_encoder: NotNegative | None = Field(
        None,
        description="Factor on lr_encoder every lr_decay_encoder iterations; has effect if encoder_iter > 0.",
    )
    lr_decay_encoder: Count | None = Field(None, description="See gamma_encoder.")
    lr_sr: NotNegative | None = Field(None, description="Learning rate after these; has effect if encoder_iter > 0.")
    gamma_sr: NotNegative | None = Field(
        None, description="Factor on lr_sr every lr_decay_sr iterations; has effect if encoder_iter > 0."
    )
    lr_decay_sr: Count | None = Field(None, description="See gamma_sr.")
    mixing_augs: MixingAugs | None = Field(None, description="Mixup; needed by published deblurring files.")


class MultiStep(Section):
    """MultiStepLR, MultiStepRestartLR: the learning rate falls at given iterations."""

    type: str = Field(description="MultiStepLR or MultiStepRestartLR (the same).")
    milestones: list[Count] = Field(description="Iterations at which the learning rate is multiplied by gamma.")
    gamma: Positive = Field(0.1, description="Factor at each milestone.")
    restarts: list[CountOrZero] = Field([0], description="Iterations at which the first learning rate comes back.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on it at each restart.")


class CosineRestart(Section):
    """CosineAnnealingRestartLR: half a cosine from the learning rate down to eta_min, once per period."""

    type: str = Field(description="CosineAnnealingRestartLR.")
    periods: list[Count] = Field(description="Iterations of each period; together at least total_iter.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on the learning rate in each period.")
    eta_min: NotNegative = Field(0.0, description="Learning rate at the end of every period.")


class CosineRestartCyclic(Section):
    """CosineAnnealingRestartCyclicLR: the same with a floor for each period (published deblurring)."""

    type: str = Field(description="CosineAnnealingRestartCyclicLR.")
    periods: list[Count] = Field(description="Iterations of each period; together at least total_iter.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on the learning rate in each period.")
    eta_mins: list[NotNegative] = Field([0.0], description="Learning rate at the end of each period.")


SCHEDULERS: dict[str, type[Section]] = {
    "MultiStepLR": MultiStep,
    "MultiStepRestartLR": MultiStep,
    "CosineAnnealingRestartLR": CosineRestart,
    "CosineAnnealingRestartCyclicLR": CosineRestartCyclic,
}
