"""The options that exist whatever the model: top level, `path`, `train`, `val`, `logger`, loaders, schedulers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from diffir_sr.option_types import (
    Built,
    Count,
    CountOrZero,
    Gpus,
    Names,
    NotNegative,
    Positive,
    Probability,
    Section,
    Seed,
    Small,
    SmallOrZero,
    Whole,
)


class PathOptions(Section):
    """Weights to start from. pretrain_network_<x>, param_key_<x>, strict_load_<x> exist per network_<x>."""

    pretrain_network_g: str | None = Field(None, description="Weights file of network_g to start from or to test.")
    pretrain_network_d: str | None = Field(None, description="Weights file of the discriminator to go on from.")
    param_key_g: str | None = Field(
        "params", description="Entry of pretrain_network_g to load: params_ema (averaged weights) or params."
    )
    param_key_d: str | None = Field("params", description="Entry of pretrain_network_d to load.")
    strict_load_g: bool = Field(True, description="Whether every weight of network_g must be in its file.")
    strict_load_d: bool = Field(True, description="Whether every weight of network_d must be in its file.")
    resume_state: str | None = Field(None, description="Training state (.state) to resume from.")
    ignore_resume_networks: Names = Field(
        [],
        description="Networks that resuming loads from pretrain_* all the same; those that are not trained always are.",
    )


class ValOptions(Section):
    """How and when images are restored and measured."""

    val_freq: Count = Field(5000, description="Iterations between two validations; has effect in training.")
    save_img: bool = Field(False, description="Whether restored images are written; the default is true when testing.")
    suffix: str | None = Field(None, description="Ending of saved file names; by default the name of the run.")
    pbar: bool = Field(True, description="Whether a progress bar is shown.")
    seed: Seed = Field(0, description="Seed of the start noise; each image's draw depends on it alone.")
    metrics: dict[str, Any] | None = Field(
        None,
        description="Metrics by the name to log, each with a type, its arguments and better (higher, lower).",
    )
    window_size: SmallOrZero | None = Field(
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

    backend: Literal["nccl", "gloo", "mpi"] = Field("nccl", description="Backend of torch.distributed.")
    port: Annotated[Whole, Field(ge=1, le=65535)] | None = Field(None, description="Port of the first process.")


class TrainLoop(Section):
    """What BasicSR's training loop and its base model read, whatever the model."""

    total_iter: Count = Field(description="Iterations to train for.")
    warmup_iter: Annotated[Whole, Field(ge=-1, le=10**12)] = Field(
        -1, description="Iterations over which the learning rate grows from 0; -1 is none."
    )
    ema_decay: Probability = Field(0.0, description="Decay of the averaged weights (params_ema); 0 is no average.")
    optim_g: Built | None = Field(None, description="Optimizer of network_g: a class of torch.optim and its arguments.")
    scheduler: Built | None = Field(None, description="How the learning rate changes.")
    pixel_opt: Built | None = Field(None, description="Loss between the restored image and the ground truth.")
    perceptual_opt: Built | None = Field(
        None, description="Loss between VGG features of the two; vgg_path names the file with VGG's weights."
    )


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
    periods: list[Count] = Field(min_length=1, description="Iterations of each period; together at least total_iter.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on the learning rate in each period.")
    eta_min: NotNegative = Field(0.0, description="Learning rate at the end of every period.")


class CosineRestartCyclic(Section):
    """CosineAnnealingRestartCyclicLR: the same with a floor for each period (published deblurring)."""

    type: str = Field(description="CosineAnnealingRestartCyclicLR.")
    periods: list[Count] = Field(min_length=1, description="Iterations of each period; together at least total_iter.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on the learning rate in each period.")
    eta_mins: list[NotNegative] = Field([0.0], description="Learning rate at the end of each period.")


SCHEDULERS: dict[str, type[Section]] = {
    "MultiStepLR": MultiStep,
    "MultiStepRestartLR": MultiStep,
    "CosineAnnealingRestartLR": CosineRestart,
    "CosineAnnealingRestartCyclicLR": CosineRestartCyclic,
}


class IoBackend(Section):
    """How images are stored."""

    type: Literal["disk", "lmdb", "memcached"] = Field(description="disk (folders of images), lmdb or memcached.")
    readonly: bool = Field(True, description="Whether an LMDB is opened for reading only.")
    lock: bool = Field(False, description="Whether an LMDB is locked against writers.")
    readahead: bool = Field(False, description="Whether the system reads ahead in an LMDB.")
    server_list_cfg: str | None = Field(None, description="Server list of memcached.")
    client_cfg: str | None = Field(None, description="Client settings of memcached.")
    sys_path: str | None = Field(None, description="Where memcached's Python module is.")


class Loader(Section):
    """What is read for every dataset, whatever its type."""

    name: str = Field(description="Name in logs and of the folder of results.")
    type: str = Field(description="Class of the dataset.")
    batch_size_per_gpu: Small | None = Field(None, description="Images per step and GPU; needed in datasets.train.")
    num_worker_per_gpu: Annotated[Whole, Field(ge=0, le=1024)] | None = Field(
        None, description="Processes per GPU that read images; needed in datasets.train."
    )
    dataset_enlarge_ratio: Annotated[Whole, Field(ge=1, le=10**6)] = Field(
        1, description="How often an epoch repeats the dataset; has effect in train."
    )
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(
        None, description="cpu: batches wait in a queue; cuda (needs pin_memory) or ~: the next one is copied ahead."
    )
    num_prefetch_queue: Small = Field(1, description="Batches that wait; has effect with prefetch_mode cpu.")
    pin_memory: bool = Field(False, description="Whether batches lie in memory that GPUs read faster.")
    persistent_workers: bool = Field(False, description="Whether readers outlive an epoch; has effect in train.")
    use_shuffle: bool = Field(True, description="Has no effect (published files carry it): training data is shuffled.")
    io_backend: IoBackend | None = Field(
        None, description="How images are stored; by default lmdb if the roots end in .lmdb, else disk."
    )


class Options(Section):
    """An option file."""

    base: str | list[str] | None = Field(
        None, description="Option files to build on, relative to this one; keys here win, of several the later."
    )
    plugins: list[str] | None = Field(None, description="Modules to import first; they add archs, losses and so on.")
    name: str = Field(min_length=1, description="Name of the run; results go to experiments/<name> or results/<name>.")
    model_type: str = Field(description="Which training it is: a model of this package, of BasicSR or of a plugin.")
    scale: Small | None = Field(
        None, description="Size of the output over the size of the input; by default that of the network."
    )
    num_gpu: Gpus = Field("auto", description="GPUs to use without a launcher: auto (all), or how many; 0 is CPU.")
    manual_seed: Seed | None = Field(None, description="Seed of everything random; by default a new one.")
    find_unused_parameters: bool = Field(
        False, description="Whether distributed training looks for parameters that got no gradient."
    )
    datasets: dict[str, Any] = Field(description="train, val, val_<name>, test, test_<name>: what is read.")
    network_g: Built = Field(description="The network that restores.")
    network_d: Built | None = Field(None, description="The discriminator; has effect in GAN training.")
    path: PathOptions | None = Field(None, description="Weights to start from.")
    train: TrainLoop | None = Field(None, description="Losses, optimizers, schedule; needed to train.")
    val: ValOptions | None = Field(None, description="Validation and testing; ~ switches validation off.")
    logger: LoggerOptions | None = Field(None, description="What is logged and saved.")
    licence: str | None = Field(None, description="Licence of the weights, told in their model card; such as MIT.")
    dist_params: DistParams | None = Field(None, description="How processes find each other.")
