"""Rules about one dataset: patch sizes, loaders, LMDBs, degradation.

Each takes the view, the dataset's name (train, val_1, ...) and its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from diffir_sr.options.report import Keys, Report
from diffir_sr.options.rules import Found, apply_rules
from diffir_sr.options.schema_data import DATASETS
from diffir_sr.options.view import View

DatasetRule = Callable[..., Found]
PAIRED = ("PairedDataset", "PairedImageDataset", "DeblurPairedDataset")
ROOTS = ("dataroot_gt", "dataroot_lq")


def apply_dataset_rules(view: View, report: Report) -> None:
    """Add to the report what the rules find in each dataset."""
    apply_rules(
        (partial(rule, name=name, kind=kind) for name, kind in view.datasets() for rule in DATASET_RULES),
        view,
        report,
    )


def is_lmdb(path: str) -> bool:
    """Whether a dataset's root names an LMDB and not a folder of images."""
    return path.rstrip("/\\").endswith(".lmdb")


def training_loader_is_complete(view: View, name: str, kind: str) -> Found:
    """Training data says how it is cut and loaded."""
    if name != "train" or not view.is_train:
        return
    needed = ["batch_size_per_gpu", "num_worker_per_gpu"]
    needed += ["gt_size"] if kind in PAIRED else []
    needed += ["use_hflip", "use_rot"] if kind == "PairedImageDataset" else []
    for key in needed:
        if not view.has("datasets", name, key):
            yield (
                ("datasets", name, key),
                f"missing: {DATASETS['PairedImageDataset'].model_fields[key].description}",
            )


def patches_fit(view: View, name: str, kind: str) -> Found:
    """Whole pixels in the degraded patch, and sides that the network can take."""
    for keys, size in _patches(view, name, kind) if view.is_train and name == "train" else ():
        frame, scale = view.frame(), view.scale() or 1
        multiple = (frame.multiple_of if frame else 1) * scale
        if size % multiple:
            lower = size // multiple * multiple
            near = f"{lower} or {lower + multiple}" if lower else str(multiple)
            takes = f"multiples of {frame.multiple_of}" if frame else "a whole number of"
            yield (
                keys,
                f"{size} does not fit: at scale {scale}, degraded patches must have {takes} pixels; "
                f"choose a multiple of {multiple}, for example {near}",
            )


def _patches(view: View, name: str, kind: str) -> Iterator[tuple[Keys, int]]:
    keys: Keys = ("gt_size",) if kind == "RealESRGANDataset" else ("datasets", name, "gt_size")
    if kind in (*PAIRED, "RealESRGANDataset") and view.has(*map(str, keys)):
        yield keys, view.get(*map(str, keys))
    if kind == "DeblurPairedDataset":
        for index, size in enumerate(view.get("datasets", name, "gt_sizes", default=[])):
            yield ("datasets", name, "gt_sizes", index), size


def readers_exist(view: View, name: str, kind: str) -> Found:
    """Reader processes can only persist where there are any."""
    if view.get("datasets", name, "persistent_workers", default=False):
        if name != "train":
            yield (
                ("datasets", name, "persistent_workers"),
                "only training has reader processes; remove it here",
            )
        elif view.get("datasets", name, "num_worker_per_gpu", default=1) == 0:
            yield ("datasets", name, "persistent_workers"), "needs num_worker_per_gpu above 0"


def prefetching_is_possible(view: View, name: str, kind: str) -> Found:
    """Prefetching to the GPU needs pinned memory."""
    at = ("datasets", name)
    if view.get(*at, "prefetch_mode") == "cuda" and not view.get(*at, "pin_memory", default=False):
        yield (*at, "prefetch_mode"), "cuda needs pin_memory: true"


def storage_is_consistent(view: View, name: str, kind: str) -> Found:
    """Roots are what `io_backend` says they are."""
    if kind not in DATASETS:
        return
    at = ("datasets", name)
    roots = {root: view.get(*at, root) for root in ROOTS if view.has(*at, root)}
    stored = view.get(*at, "io_backend", "type")
    for root, path in roots.items():
        if stored == "lmdb" and not is_lmdb(path):
            yield (*at, root), f"io_backend is lmdb, but {path!r} does not end in .lmdb; remove io_backend"
        if stored == "disk" and is_lmdb(path):
            yield (*at, root), f"io_backend is disk, but {path!r} names an LMDB; remove io_backend"
    if stored is None and len({is_lmdb(path) for path in roots.values()}) > 1 and kind != "PairedDataset":
        yield (*at, "dataroot_lq"), f"{kind} needs two folders or two LMDBs, found one of each"


def images_are_listed(view: View, name: str, kind: str) -> Found:
    """Folders of a RealESRGANDataset come with a list of their images."""
    at = ("datasets", name)
    if kind == "RealESRGANDataset" and not view.has(*at, "meta_info") and not is_lmdb(view.get(*at, "dataroot_gt")):
        yield (*at, "meta_info"), "missing: the text file that lists the images of dataroot_gt"


def kernels_have_chances(view: View, name: str, kind: str) -> Found:
    """Every kind of kernel has a chance."""
    at = ("datasets", name)
    for ending in ("", "2") if kind == "RealESRGANDataset" else ():
        kinds = view.get(*at, f"kernel_list{ending}", default=[])
        chances = view.get(*at, f"kernel_prob{ending}", default=[])
        if len(kinds) != len(chances):
            yield (
                (*at, f"kernel_prob{ending}"),
                f"{len(chances)} chances for {len(kinds)} kinds in kernel_list{ending}; give one for each",
            )


def pool_suits_batches(view: View, name: str, kind: str) -> Found:
    """The pool of pairs holds a whole number of batches."""
    if kind == "RealESRGANDataset" and name == "train":
        batch = view.get("datasets", name, "batch_size_per_gpu", default=1)
        pool = view.get("queue_size", default=180)
        if pool % batch:
            yield (
                ("queue_size",),
                f"{pool} is no multiple of datasets.{name}.batch_size_per_gpu, which is {batch}",
            )


def growing_patches_agree(view: View, name: str, kind: str) -> Found:
    """Phases of growing patches are described completely."""
    at, lists = ("datasets", name), ("mini_batch_sizes", "iters", "gt_sizes")
    if kind == "DeblurPairedDataset" and any(view.has(*at, key) for key in lists):
        counts = {key: len(view.get(*at, key, default=[])) for key in lists}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{key} has {count}" for key, count in counts.items())
            yield at, f"these lists must be of one length: {told}"


DATASET_RULES: tuple[DatasetRule, ...] = (
    training_loader_is_complete,
    patches_fit,
    readers_exist,
    prefetching_is_possible,
    storage_is_consistent,
    images_are_listed,
    kernels_have_chances,
    pool_suits_batches,
    growing_patches_agree,
)
