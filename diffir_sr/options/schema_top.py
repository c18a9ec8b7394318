"""The options at the top level of a file, and the small sections `path`, `val`, `logger`, `dist_params`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from diffir_sr.options.fields import (
    Built,
    Count,
    CountOrZero,
    Gpus,
    Names,
    Probability,
    Qualities,
    Range,
    ResizeShares,
    Section,
)
from diffir_sr.options.schema_train import TrainOptions


class PathOptions(Section):
    """Weights to start from. pretrain_network_<x>, param_key_<x>, strict_load_<x> exist per network_<x>."""

    pretrain_network_g: str | None = Field(None, description="Weights file of network_g to start from or to test.")
    pretrain_network_S1: str | None = Field(  # noqa: N815 - published name
        None, description="Weights file of the stage-1 teacher; needed to train stage 2 and the GAN stage."
    )
    pretrain_network_d: str | None = Field(None, description="Weights file of the discriminator to go on from.")
    param_key_g: str | None = Field(
        "params", description="Entry of pretrain_network_g to load: params_ema (averaged weights) or params."
    )
    param_key_S1: str | None = Field(  # noqa: N815 - published style
        "params_ema", description="Entry of pretrain_network_S1 to load."
    )
    param_key_d: str | None = Field("params", description="Entry of pretrain_network_d to load.")
    strict_load_g: bool = Field(True, description="Whether every weight of network_g must be in its file.")
    strict_load_d: bool = Field(True, description="Whether every weight of network_d must be in its file.")
    resume_state: str | None = Field(None, description="Training state (.state) to resume from.")
    ignore_resume_networks: Names = Field(
        [],
        description="Networks that resuming loads from pretrain_* all the same; network_S1 always is one.",
    )


class ValOptions(Section):
    """How and when images are restored and measured."""

    val_freq: Count = Field(5000, description="Iterations between two validations; has effect in training.")
    save_img: bool = Field(False, description="Whether restored images are written; the default is true when testing.")
    suffix: str | None = Field(None, description="Ending of saved file names; by default the name of the run.")
    pbar: bool = Field(True, description="Whether a progress bar is shown.")
    seed: CountOrZero = Field(0, description="Seed of the start noise; each image's draw depends on it alone.")
    steps: Count | None = Field(None, description="SR3, DvSR: steps of the sampler; by default those of network_g.")
    sampler: Literal["ddpm", "ddim"] | None = Field(None, description="SR3, DvSR: kind of the steps.")
    eta: Probability | None = Field(None, description="SR3, DvSR: share of ddpm's noise that steps of ddim add.")
    variance: Literal["fixed_small", "fixed_large"] | None = Field(
        None, description="SR3, DvSR: noise that steps of ddpm add, the posterior's or beta's."
    )
    metrics: dict[str, Any] | None = Field(
        None,
        description="Metrics by the name to log, each with a type, its arguments and better (higher, lower).",
    )
    window_size: CountOrZero | None = Field(
        None, description="Has no effect (published files carry it): networks know what they must pad to."
    )


class WandbOptions(Section):
    """Weights & Biases, fed from TensorBoard's log."""

    project: str | None = Field(None, description="Project to log to; nothing is sent without it.")
    resume_id: str | None = Field(None, description="Run to append to.")


class LoggerOptions(Section):
    """What is logged and saved during training."""

    print_freq: Count = Field(100, description="Iterations between two log lines.")
    save_checkpoint_freq: Count = Field(5000, description="Iterations between two checkpoints.")
    use_tb_logger: bool = Field(False, description="Whether TensorBoard files are written to tb_logger/<name>.")
    wandb: WandbOptions | None = Field(None, description="Weights & Biases; needs use_tb_logger.")


class DistParams(Section):
    """How processes of one training find each other; has effect with `--launcher slurm`."""

    backend: str = Field("nccl", description="Backend of torch.distributed.")
    port: Count | None = Field(None, description="Port of the first process.")


class Degradation(Section):
    """How the model for real images makes its inputs; has effect with RealESRGANDataset alone."""

    gt_size: Count | None = Field(None, description="Side in pixels of the patches cut after degradation.")
    degrade_by: Literal["batch", "image"] = Field(
        "batch",
        description="batch (published): decisions are shared by a batch and a pool mixes batches; image: each image "
        "has its own, which neither batch size, ranks nor resuming change.",
    )
    queue_size: Count = Field(
        180, description="Pairs in the pool of degrade_by: batch; a multiple of batch_size_per_gpu."
    )
    gt_usm: bool = Field(False, description="Whether the ground truth is sharpened.")
    l1_gt_usm: bool = Field(False, description="Whether the target of the pixel loss is sharpened.")
    percep_gt_usm: bool = Field(False, description="Whether the target of the perceptual loss is sharpened.")
    gan_gt_usm: bool = Field(False, description="Whether the discriminator's real images are sharpened.")
    high_order_degradation: bool = Field(True, description="Whether images are degraded (false: used as read).")
    resize_prob: ResizeShares | None = Field(None, description="Chances to enlarge, shrink, keep; first resize.")
    resize_range: Range | None = Field(None, description="Smallest and largest factor of the first resize.")
    gaussian_noise_prob: Probability | None = Field(None, description="Chance of Gaussian noise, else Poisson.")
    noise_range: Range | None = Field(None, description="Sigma of the first Gaussian noise, of 255.")
    poisson_scale_range: Range | None = Field(None, description="Strength of the first Poisson noise.")
    gray_noise_prob: Probability | None = Field(None, description="Chance that the first noise has no colour.")
    jpeg_range: Qualities | None = Field(None, description="Quality of the first JPEG compression.")
    second_blur_prob: Probability | None = Field(None, description="Chance of the second blur.")
    resize_prob2: ResizeShares | None = Field(None, description="Chances to enlarge, shrink, keep; second resize.")
    resize_range2: Range | None = Field(None, description="Smallest and largest factor of the second resize.")
    gaussian_noise_prob2: Probability | None = Field(None, description="Chance of Gaussian noise, else Poisson.")
    noise_range2: Range | None = Field(None, description="Sigma of the second Gaussian noise, of 255.")
    poisson_scale_range2: Range | None = Field(None, description="Strength of the second Poisson noise.")
    gray_noise_prob2: Probability | None = Field(None, description="Chance that the second noise has no colour.")
    jpeg_range2: Qualities | None = Field(None, description="Quality of the second JPEG compression.")


class Options(Degradation):
    """An option file."""

    base: str | list[str] | None = Field(
        None, description="Option files to build on, relative to this one; keys here win, of several the later."
    )
    plugins: list[str] | None = Field(None, description="Modules to import first; they add archs, losses and so on.")
    name: str = Field(min_length=1, description="Name of the run; results go to experiments/<name> or results/<name>.")
    model_type: str = Field(description="Which training it is: DiffIRS1Model, DiffIRS2Model, DiffIRGANS2Model, ...")
    scale: Count | None = Field(
        None, description="Size of the output over the size of the input; by default that of the network."
    )
    num_gpu: Gpus = Field("auto", description="GPUs to use without a launcher: auto (all), or how many; 0 is CPU.")
    manual_seed: CountOrZero | None = Field(None, description="Seed of everything random; by default a new one.")
    find_unused_parameters: bool = Field(
        False, description="Whether distributed training looks for parameters that got no gradient."
    )
    datasets: dict[str, Any] = Field(description="train, val, val_<name>, test, test_<name>: what is read.")
    network_g: Built = Field(description="The network that restores.")
    network_S1: Built | None = Field(  # noqa: N815 - published name
        None, description="The stage-1 network that teaches stage 2; type DiffIRS1."
    )
    network_d: Built | None = Field(None, description="The discriminator; has effect in GAN training.")
    path: PathOptions | None = Field(None, description="Weights to start from.")
    train: TrainOptions | None = Field(None, description="Losses, optimizers, schedule; needed to train.")
    val: ValOptions | None = Field(None, description="Validation and testing; ~ switches validation off.")
    logger: LoggerOptions | None = Field(None, description="What is logged and saved.")
    licence: str | None = Field(None, description="Licence of the weights, told in their model card; such as MIT.")
    dist_params: DistParams | None = Field(None, description="How processes find each other.")
