"""Rules about one dataset: patch sizes, loaders, LMDBs, degradation.

Each takes the view, the dataset's name (train, val_1, ...) and its type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from diffir_sr.options.report import Keys, Report
from diffir_sr.options.rules import INPAINTING, Found, apply_rules
from diffir_sr.options.schema_data import DATASETS
from diffir_sr.options.training import BASICSR_MODELS, OUR_MODELS
from diffir_sr.options.view import View

DatasetRule = Callable[..., Found]
PAIRED = ("PairedDataset", "PairedImageDataset", "DeblurPairedDataset", "RealESRGANPairedDataset")
CUT = (*PAIRED, "InpaintDataset")  # training patches have the dataset's gt_size
ROOTS = ("dataroot_gt", "dataroot_lq")


def apply_dataset_rules(view: View, report: Report) -> None:
    """Add to the report what the rules find in each dataset."""
    apply_rules(
        (partial(rule, name=name, kind=kind) for name, kind in view.datasets() for rule in DATASET_RULES),
        view,
        report,
    )


def is_lmdb(path: str) -> bool:
    """Whether a dataset's root names an LMDB (or its manifest) and not a folder of images."""
    return path.rstrip("/\\").removesuffix(".manifest.jsonl").endswith(".lmdb")


def roots_in(options: Mapping[str, Any], key: str) -> list[str]:
    """The paths that a dataset names under a key, which may be one or a list."""
    given = options.get(key)
    return [path for path in (given if isinstance(given, list) else [given]) if isinstance(path, str)]


def training_loader_is_complete(view: View, name: str, kind: str) -> Found:
    """Training data says how it is cut and loaded."""
    if name != "train" or not view.is_train:
        return
    needed = ["batch_size_per_gpu", "num_worker_per_gpu"]
    needed += ["gt_size"] if kind in CUT else []
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
        geometry, scale = view.geometry(), view.scale() or 1
        multiple = (geometry.multiple_of if geometry else 1) * scale
        if size % multiple:
            lower = size // multiple * multiple
            near = f"{lower} or {lower + multiple}" if lower else str(multiple)
            takes = f"multiples of {geometry.multiple_of}" if geometry else "a whole number of"
            yield (
                keys,
                f"{size} does not fit: at scale {scale}, degraded patches must have {takes} pixels; "
                f"choose a multiple of {multiple}, for example {near}",
            )


def _patches(view: View, name: str, kind: str) -> Iterator[tuple[Keys, int]]:
    keys: Keys = ("gt_size",) if kind == "RealESRGANDataset" else ("datasets", name, "gt_size")
    if kind in (*CUT, "RealESRGANDataset") and view.has(*map(str, keys)):
        yield keys, view.get(*map(str, keys))
    if kind in PAIRED:
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
    given = {root: view.get(*at, root) for root in ROOTS if view.has(*at, root)}
    roots = {root: roots_in(given, root) for root in given}
    stored = view.get(*at, "io_backend", "type")
    for root, path in ((root, path) for root, paths in roots.items() for path in paths):
        if stored == "lmdb" and not is_lmdb(path):
            yield (*at, root), f"io_backend is lmdb, but {path!r} does not end in .lmdb; remove io_backend"
        if stored == "disk" and is_lmdb(path):
            yield (*at, root), f"io_backend is disk, but {path!r} names an LMDB; remove io_backend"
    kinds = {is_lmdb(path) for paths in roots.values() for path in paths}
    if stored is None and len(kinds) > 1 and kind == "PairedImageDataset":
        yield (*at, "dataroot_lq"), f"{kind} needs two folders or two LMDBs, found one of each"


def sources_are_paired(view: View, name: str, kind: str) -> Found:
    """Several roots come with as many partners and weights."""
    at = ("datasets", name)
    if kind not in DATASETS or "source_weights" not in DATASETS[kind].model_fields:
        return
    given = {key: view.get(*at, key) for key in (*ROOTS, "source_weights") if view.has(*at, key)}
    counts = {key: len(value) if isinstance(value, list) else 1 for key, value in given.items()}
    lq, gt = (counts.get(root) for root in reversed(ROOTS))
    if kind in PAIRED and lq and gt and lq != gt:
        yield (*at, "dataroot_lq"), f"names {lq} places and dataroot_gt {gt}; give as many of each"
    elif "source_weights" in counts and counts["source_weights"] != max(counts.get(root, 0) for root in ROOTS):
        count = max(counts.get(root, 0) for root in ROOTS)
        yield (*at, "source_weights"), f"{counts['source_weights']} weights for {count} sources; give one for each"


def holes_are_known(view: View, name: str, kind: str) -> Found:
    """An InpaintDataset has images, and masks where it cannot draw them."""
    if kind != "InpaintDataset":
        return
    at = ("datasets", name)
    has = {key: view.has(*at, key) for key in (*ROOTS, "dataroot_mask")}
    if has["dataroot_gt"] == has["dataroot_lq"]:
        yield (*at, "dataroot_gt"), "give either dataroot_gt (whole images) or dataroot_lq (images with holes)"
    elif has["dataroot_lq"] and not has["dataroot_mask"]:
        yield (*at, "dataroot_mask"), "missing: images without ground truth need to say where the holes are"
    elif has["dataroot_lq"] and name == "train":
        yield (*at, "dataroot_gt"), "missing: training needs whole images"


def holes_are_filled(view: View, name: str, kind: str) -> Found:
    """Images with holes are for the models that fill them, and those for such images."""
    at = ("datasets", name, "type")
    fills, holes = view.model in INPAINTING, kind == "InpaintDataset"
    if holes and not fills and view.model in OUR_MODELS + BASICSR_MODELS:
        yield at, f"its images have holes, which {' and '.join(INPAINTING)} fill, not {view.model}; change model_type"
    if fills and not holes and kind in DATASETS:
        yield at, f"{view.model} fills holes, which the images of {kind} do not have; use type: InpaintDataset"


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
    if kind == "RealESRGANDataset" and name == "train" and view.get("degrade_by", default="batch") == "batch":
        batch = view.get("datasets", name, "batch_size_per_gpu", default=1)
        pool = view.get("queue_size", default=180)
        if pool % batch:
            yield (
                ("queue_size",),
                f"{pool} is no multiple of datasets.{name}.batch_size_per_gpu, which is {batch}",
            )


def degradation_is_on(view: View, name: str, kind: str) -> Found:
    """A dataset without degraded images needs the model to make them."""
    if kind == "RealESRGANDataset" and not view.get("high_order_degradation", default=True):
        yield ("high_order_degradation",), "a RealESRGANDataset has no degraded images of its own; remove this option"


def growing_patches_agree(view: View, name: str, kind: str) -> Found:
    """Phases of growing patches are described completely."""
    at, lists = ("datasets", name), ("mini_batch_sizes", "iters", "gt_sizes")
    if kind in PAIRED and any(view.has(*at, key) for key in lists):
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
    sources_are_paired,
    holes_are_known,
    holes_are_filled,
    kernels_have_chances,
    pool_suits_batches,
    degradation_is_on,
    growing_patches_agree,
)
