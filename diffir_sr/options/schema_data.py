"""The datasets that have a schema, by type."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from diffir_sr.options.fields import Count, CountOrZero, Number, Positive, Probability, Range, Section, Shares

Kernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]


class Loader(Section):
    """What is read for every dataset, whatever its type."""

    name: str = Field(description="Name in logs and of the folder of results.")
    type: str = Field(description="Class of the dataset.")
    batch_size_per_gpu: Count | None = Field(None, description="Images per step and GPU; needed in datasets.train.")
    num_worker_per_gpu: CountOrZero | None = Field(
        None, description="Processes per GPU that read images; needed in datasets.train."
    )
    dataset_enlarge_ratio: Count = Field(1, description="How often an epoch repeats the dataset; has effect in train.")
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(
        None, description="cpu: batches wait in a queue; cuda (needs pin_memory) or ~: the next one is copied ahead."
    )
    num_prefetch_queue: Count = Field(1, description="Batches that wait; has effect with prefetch_mode cpu.")
    pin_memory: bool = Field(False, description="Whether batches lie in memory that GPUs read faster.")
    persistent_workers: bool = Field(False, description="Whether readers outlive an epoch; has effect in train.")
    use_shuffle: bool = Field(True, description="Has no effect (published files carry it): training data is shuffled.")


class IoBackend(Section):
    """How images are stored."""

    type: Literal["disk", "lmdb", "memcached"] = Field(description="disk (folders of images), lmdb or memcached.")
    readonly: bool = Field(True, description="Whether an LMDB is opened for reading only.")
    lock: bool = Field(False, description="Whether an LMDB is locked against writers.")
    readahead: bool = Field(False, description="Whether the system reads ahead in an LMDB.")
    server_list_cfg: str | None = Field(None, description="Server list of memcached.")
    client_cfg: str | None = Field(None, description="Client settings of memcached.")
    sys_path: str | None = Field(None, description="Where memcached's Python module is.")


class Stored(Loader):
    """Datasets that read images from folders or LMDBs."""

    io_backend: IoBackend | None = Field(
        None, description="How images are stored; by default lmdb if the roots end in .lmdb, else disk."
    )


class PairedDataset(Stored):
    """Degraded images and their ground truth, from two folders or two LMDBs."""

    dataroot_gt: str = Field(description="Folder or LMDB of the ground truth.")
    dataroot_lq: str = Field(description="Folder or LMDB of the degraded images.")
    meta_info_file: str | None = Field(None, description="Text file that lists the images to use; by default all.")
    filename_tmpl: str = Field("{}", description="Name of a degraded image, {} being the ground truth's: {}x4.")
    gt_size: Count | None = Field(None, description="Side in pixels of training patches; needed in datasets.train.")
    use_hflip: bool = Field(False, description="Whether training patches are mirrored at random.")
    use_rot: bool = Field(False, description="Whether training patches are turned by quarters at random.")
    seed: CountOrZero | None = Field(None, description="Seed of crops and flips; by default manual_seed.")


class SingleDataset(Stored):
    """Degraded images without ground truth; for testing."""

    dataroot_lq: str = Field(description="Folder or LMDB of the images.")


class PairedImageDataset(Stored):
    """BasicSR's pairs of images, as in published files."""

    dataroot_gt: str = Field(description="Folder or LMDB of the ground truth.")
    dataroot_lq: str = Field(description="Folder or LMDB of the degraded images.")
    meta_info_file: str | None = Field(None, description="Text file that lists the images to use; by default all.")
    filename_tmpl: str = Field("{}", description="Name of a degraded image, {} being the ground truth's: {}x4.")
    gt_size: Count | None = Field(None, description="Side in pixels of training patches; needed in datasets.train.")
    use_hflip: bool = Field(False, description="Whether patches are mirrored at random; needed in datasets.train.")
    use_rot: bool = Field(False, description="Whether patches are turned at random; needed in datasets.train.")
    mean: list[Number] | None = Field(None, description="Mean of R, G, B to subtract.")
    std: list[Positive] | None = Field(None, description="Deviation of R, G, B to divide by.")
    color: Literal["y"] | None = Field(None, description="y: luma only.")


class SingleImageDataset(Stored):
    """BasicSR's images without ground truth, as in published test files."""

    dataroot_lq: str = Field(description="Folder or LMDB of the images.")
    meta_info_file: str = Field("", description="Text file that lists the images to use; by default all.")
    mean: list[Number] | None = Field(None, description="Mean of R, G, B to subtract.")
    std: list[Positive] | None = Field(None, description="Deviation of R, G, B to divide by.")
    color: Literal["y"] | None = Field(None, description="y: luma only.")


class RealESRGANDataset(Stored):
    """Ground truth with random blur kernels; the model degrades it as the top-level options say."""

    dataroot_gt: str = Field(description="Folder or LMDB of the ground truth.")
    meta_info: str | None = Field(None, description="Text file that lists the images; needed unless it is an LMDB.")
    use_hflip: bool = Field(description="Whether images are mirrored at random.")
    use_rot: bool = Field(description="Whether images are turned at random.")
    gt_size: Count | None = Field(None, description="Has no effect here; see the top-level gt_size.")
    blur_kernel_size: Count = Field(description="Largest side of the first kernel (BasicSR draws 7 to 21).")
    kernel_list: list[Kernel] = Field(description="Kinds of kernels of the first blur.")
    kernel_prob: Shares = Field(description="Chance of each kind.")
    sinc_prob: Probability = Field(description="Chance of a sinc filter instead.")
    blur_sigma: Range = Field(description="Width of Gaussian kernels in pixels.")
    betag_range: Range = Field(description="Shape of generalized Gaussian kernels.")
    betap_range: Range = Field(description="Shape of plateau kernels.")
    blur_kernel_size2: Count = Field(description="Largest side of the second kernel.")
    kernel_list2: list[Kernel] = Field(description="Kinds of kernels of the second blur.")
    kernel_prob2: Shares = Field(description="Chance of each kind.")
    sinc_prob2: Probability = Field(description="Chance of a sinc filter instead.")
    blur_sigma2: Range = Field(description="Width of Gaussian kernels in pixels.")
    betag_range2: Range = Field(description="Shape of generalized Gaussian kernels.")
    betap_range2: Range = Field(description="Shape of plateau kernels.")
    final_sinc_prob: Probability = Field(description="Chance of a sinc filter at the end.")


class DeblurPairedDataset(Stored):
    """Blurred and sharp images of one size, with patches that grow during training."""

    dataroot_gt: str = Field(description="Folder or LMDB of the sharp images.")
    dataroot_lq: str = Field(description="Folder or LMDB of the blurred images.")
    filename_tmpl: str = Field("{}", description="Name of a blurred image, {} being the sharp one's.")
    gt_size: Count | None = Field(None, description="Side in pixels of the patches read; needed in datasets.train.")
    geometric_augs: bool = Field(False, description="Whether patches are mirrored and turned at random.")
    mini_batch_sizes: list[Count] | None = Field(None, description="Images per GPU used in each phase.")
    iters: list[Count] | None = Field(None, description="Iterations of each phase.")
    gt_sizes: list[Count] | None = Field(None, description="Side in pixels of the patches of each phase.")
    mean: list[Number] | None = Field(None, description="Mean of R, G, B to subtract.")
    std: list[Positive] | None = Field(None, description="Deviation of R, G, B to divide by.")


DATASETS: dict[str, type[Section]] = {
    model.__name__: model
    for model in (
        PairedDataset,
        SingleDataset,
        PairedImageDataset,
        SingleImageDataset,
        RealESRGANDataset,
        DeblurPairedDataset,
    )
}


def dataset_schema(name: Any) -> type[Section] | None:
    """The schema of a dataset type, with or without BasicSR's suffix; None if it has none."""
    return DATASETS.get(str(name).removesuffix("_basicsr"))
