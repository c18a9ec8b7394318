"""The datasets that have a schema, by type."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from diffir_sr.options.fields import (
    Count,
    CountOrZero,
    NotNegative,
    Number,
    Positive,
    Probability,
    Range,
    Roots,
    Section,
    Shares,
)

Kernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KernelSize = Literal[7, 9, 11, 13, 15, 17, 19, 21]
KINDS: tuple[Kernel, ...] = get_args(Kernel)
SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # published chances


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


class Seeded(Stored):
    """Our datasets for training: every random choice follows from the seed and the number of the draw."""

    seed: CountOrZero | None = Field(None, description="Seed of all random choices; by default manual_seed.")
    source_weights: list[Positive] | None = Field(
        None, description="Shares of training draws where several roots are given; by default their sizes."
    )


class PairedDataset(Seeded):
    """Degraded images and their ground truth, from folders or LMDBs."""

    dataroot_gt: Roots = Field(description="Folder, LMDB or list of the ground truth; several are mixed.")
    dataroot_lq: Roots = Field(description="Folder, LMDB or list of the degraded images, in the same order.")
    meta_info_file: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    filename_tmpl: str = Field("{}", description="Name of a degraded image, {} being the ground truth's: {}x4.")
    gt_size: Count | None = Field(None, description="Side in pixels of training patches; needed in datasets.train.")
    use_hflip: bool = Field(False, description="Whether training patches are mirrored at random.")
    use_rot: bool = Field(False, description="Whether training patches are turned by quarters at random.")
    mini_batch_sizes: list[Count] | None = Field(None, description="Progressive training: batch per GPU of each phase.")
    iters: list[Count] | None = Field(None, description="Progressive training: iterations of each phase.")
    gt_sizes: list[Count] | None = Field(None, description="Progressive training: side of the patches of each phase.")


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


class RealESRGANPairedDataset(PairedDataset):
    """Own pairs of real images, to fine-tune on; scale 1 or more, as PairedDataset."""

    meta_info: str | None = Field(None, description="List of pairs, `gt.png, lq.png` per line; by default by name.")


class RealESRGANDataset(Seeded):
    """Ground truth with random blur kernels; the model degrades it as the top-level options say."""

    dataroot_gt: Roots = Field(description="Folder, LMDB or list of the ground truth; several are mixed.")
    meta_info: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    use_hflip: bool = Field(False, description="Whether images are mirrored at random.")
    use_rot: bool = Field(False, description="Whether images are turned by quarters at random.")
    gt_size: Count | None = Field(None, description="Has no effect here; see the top-level gt_size.")
    crop_pad_size: Count = Field(400, description="Side in pixels of the squares that are degraded, then cut smaller.")
    blur_kernel_size: KernelSize = Field(
        21, description="Largest side of the first kernel; odd sizes from 7 on are drawn."
    )
    kernel_list: list[Kernel] = Field(list(KINDS), description="Kinds of kernels of the first blur.")
    kernel_prob: Shares = Field(list(SHARES), description="Chance of each kind.")
    sinc_prob: Probability = Field(0.1, description="Chance of a sinc filter instead.")
    blur_sigma: Range = Field([0.2, 3], description="Width of Gaussian kernels in pixels.")
    betag_range: Range = Field([0.5, 4], description="Shape of generalized Gaussian kernels.")
    betap_range: Range = Field([1, 2], description="Shape of plateau kernels.")
    blur_kernel_size2: KernelSize = Field(21, description="Largest side of the second kernel.")
    kernel_list2: list[Kernel] = Field(list(KINDS), description="Kinds of kernels of the second blur.")
    kernel_prob2: Shares = Field(list(SHARES), description="Chance of each kind.")
    sinc_prob2: Probability = Field(0.1, description="Chance of a sinc filter instead.")
    blur_sigma2: Range = Field([0.2, 1.5], description="Width of Gaussian kernels in pixels.")
    betag_range2: Range = Field([0.5, 4], description="Shape of generalized Gaussian kernels.")
    betap_range2: Range = Field([1, 2], description="Shape of plateau kernels.")
    final_sinc_prob: Probability = Field(0.8, description="Chance of a sinc filter at the end.")


class DeblurPairedDataset(Seeded):
    """Blurred and sharp images of one size, with patches that grow during training."""

    dataroot_gt: Roots = Field(description="Folder, LMDB or list of the sharp images; several are mixed.")
    dataroot_lq: Roots = Field(description="Folder, LMDB or list of the blurred images, in the same order.")
    meta_info_file: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    filename_tmpl: str = Field("{}", description="Name of a blurred image, {} being the sharp one's.")
    gt_size: Count | None = Field(None, description="Side in pixels of training patches; needed in datasets.train.")
    geometric_augs: bool = Field(False, description="Whether patches are mirrored and turned at random.")
    mini_batch_sizes: list[Count] | None = Field(None, description="Batch per GPU of each phase.")
    iters: list[Count] | None = Field(None, description="Iterations of each phase.")
    gt_sizes: list[Count] | None = Field(None, description="Side in pixels of the patches of each phase.")


class IrregularMasks(Section):
    """Polylines with thick strokes."""

    max_angle: Count | None = Field(None, description="Largest turn in radians plus one; default 4.")
    max_len: Count | None = Field(None, description="Longest segment in pixels, less ten; default 200.")
    max_width: Count | None = Field(None, description="Thickest stroke in pixels, less five; default 100.")
    min_times: CountOrZero | None = Field(None, description="Fewest polylines; default 1.")
    max_times: Count | None = Field(None, description="Most polylines, less one; default 5.")


class BoxMasks(Section):
    """Axis-parallel boxes."""

    margin: CountOrZero | None = Field(None, description="Pixels between a box and the border; default 10.")
    bbox_min_size: Count | None = Field(None, description="Shortest side in pixels; default 30.")
    bbox_max_size: Count | None = Field(None, description="Longest side in pixels; default 150.")
    min_times: Count | None = Field(None, description="Fewest boxes; default 1.")
    max_times: Count | None = Field(None, description="Most boxes; default 4.")


class MaskGenerator(Section):
    """Random masks, under the published names."""

    irregular_proba: NotNegative = Field(1, description="Weight of polyline masks.")
    irregular_kwargs: IrregularMasks | None = Field(None, description="How polylines are drawn.")
    box_proba: NotNegative = Field(1, description="Weight of box masks.")
    box_kwargs: BoxMasks | None = Field(None, description="How boxes are drawn.")


class InpaintDataset(Seeded):
    """Images with holes, which are drawn or given as mask images (every value above 0 is missing)."""

    dataroot_gt: Roots | None = Field(None, description="Folder, LMDB or list of whole images; several are mixed.")
    dataroot_lq: Roots | None = Field(None, description="Instead of dataroot_gt, to test: images without ground truth.")
    dataroot_mask: str | None = Field(None, description="Folder or LMDB of masks; by default masks are drawn.")
    meta_info_file: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    gt_size: Count | None = Field(None, description="Side in pixels of training patches; needed in datasets.train.")
    use_hflip: bool = Field(False, description="Whether training patches are mirrored at random.")
    augment: Literal["none", "distortions"] = Field(
        "none", description="distortions: warps and colour changes of the published Places recipe."
    )
    mask_kind: Literal["random", "thin", "medium", "thick"] = Field(
        "random", description="random: as mask_gen says; else the masks of the published evaluation."
    )
    mask_gen: MaskGenerator | None = Field(None, description="How random masks are drawn.")
    mask_dilate: CountOrZero = Field(0, description="Pixels by which given masks grow.")


DATASETS: dict[str, type[Section]] = {
    model.__name__: model
    for model in (
        PairedDataset,
        SingleDataset,
        PairedImageDataset,
        SingleImageDataset,
        RealESRGANDataset,
        RealESRGANPairedDataset,
        DeblurPairedDataset,
        InpaintDataset,
    )
}


def dataset_schema(name: Any) -> type[Section] | None:
    """The schema of a dataset type, with or without BasicSR's suffix; None if it has none."""
    return DATASETS.get(str(name).removesuffix("_basicsr"))
