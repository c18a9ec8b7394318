"""What is changed in an option file, and options that are known to have no effect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from diffir_sr.options.report import Report
from diffir_sr.options.rules import ADVERSARIAL, INPAINTING, TAUGHT, WARMED_UP
from diffir_sr.options.rules_data import ROOTS, is_lmdb, roots_in
from diffir_sr.options.schema_top import Degradation
from diffir_sr.options.training import BASICSR_MODELS, OUR_MODELS
from diffir_sr.options.view import View

_WARM_UP = ("lr_encoder", "gamma_encoder", "lr_decay_encoder", "lr_sr", "gamma_sr", "lr_decay_sr")
_ALTERNATING = tuple(model for model in ADVERSARIAL if model not in INPAINTING)
# Options of `train` that only some models read.
_READ_BY = {
    "gan_opt": ADVERSARIAL,
    "optim_d": ADVERSARIAL,
    "net_d_iters": _ALTERNATING,
    "net_d_init_iters": _ALTERNATING,
    "feature_matching_opt": INPAINTING,
    "kd_opt": TAUGHT,
    "encoder_iter": WARMED_UP,
    "clip_grad_norm": OUR_MODELS,
    "form": OUR_MODELS,
    "autocast": OUR_MODELS,
    "checkpointing": OUR_MODELS,
}


def settle_task(values: dict[str, Any], report: Report) -> None:
    """Published deblurring files use the names of the super-resolution networks; their dataset tells them."""
    datasets = [one for one in _sections(values.get("datasets")) if one.get("type") == "DeblurPairedDataset"]
    network = values.get("network_g")
    if not datasets or not isinstance(network, dict) or "task" in network or "scale" in network:
        return
    settled = [name for name in ("network_g", "network_S1") if isinstance(values.get(name), dict)]
    for name in settled:
        values[name] = {**values[name], "task": values[name].get("task", "deblur")}
    told = " and ".join(f"{name}.task" for name in settled)
    report.warn(
        ("network_g",),
        f"{told} set to 'deblur', because a dataset is a DeblurPairedDataset and no scale is given",
    )
    if values.get("scale") not in (None, 1):
        report.warn(("scale",), f"corrected from {values['scale']} to 1: deblurring does not change the size")
        values["scale"] = 1


def settle_window(view: View, report: Report) -> None:
    """Published x2 and x1 files carry a window_size that is too small; nothing reads it, but it must not mislead."""
    if not view.has("val", "window_size"):
        return
    size, geometry = view.get("val", "window_size"), view.geometry()
    if geometry and size % geometry.multiple_of:
        report.warn(
            ("val", "window_size"),
            f"corrected from {size} to {geometry.multiple_of}: padding is a property of the network, and this one pads "
            f"to multiples of {geometry.multiple_of} whatever is written here",
        )
        view.values["val"]["window_size"] = geometry.multiple_of
        return
    pads = f"this one pads to multiples of {geometry.multiple_of}" if geometry else "it alone decides"
    report.warn(("val", "window_size"), f"has no effect: padding is a property of the network ({pads})")


def warn_of_a_misleading_name(view: View, report: Report) -> None:
    """A run called after another scale would write its results among those of that scale's run."""
    named = re.search(r"_x([1248])(?=_|$)", view.get("name", default=""))
    if named and view.task() == "sr" and view.scale() not in (None, int(named[1])):
        other = f"x{named[1]}"
        report.warn(
            ("name",),
            f"says {other}, but the scale is {view.scale()}: results go where those of {other} would; rename it",
        )


def warn_of_dead_options(view: View, report: Report) -> None:
    """Options that published files carry and that change nothing, each with the reason."""
    _warn_of_warm_up(view, report)
    if view.task() == "inpaint" and view.get("network_g", "num_refinement_blocks", default=0):
        report.warn(
            ("network_g", "num_refinement_blocks"),
            "has no effect: the inpainting network has no refinement blocks (write 0 or leave it out)",
        )
    _warn_of_degradation(view, report)
    _warn_of_foreign_options(view, report)
    for name, _ in view.datasets(phase="train"):
        if view.get("datasets", name, "use_shuffle", default=True) is False:
            report.warn(("datasets", name, "use_shuffle"), "has no effect: training data is always shuffled")


def warn_of_a_cold_start(view: View, report: Report) -> None:
    """Stage 2 may start from random weights, but the published one does not."""
    starts = view.has("path", "pretrain_network_g") or view.has("path", "resume_state")
    if view.is_train and view.model in ("DiffIRS2Model", "DiffIRInpaintS2Model") and not starts:
        report.warn(
            ("path", "pretrain_network_g"),
            "not given: stage 2 starts from random weights; the published recipe starts from stage 1's",
        )


def _warn_of_warm_up(view: View, report: Report) -> None:
    given = [key for key in view.get("train", default={}) if key in _WARM_UP and view.has("train", key)]
    warms_up = view.model in WARMED_UP and view.get("train", "encoder_iter", default=0) > 0
    if warms_up and view.model == "DiffIRGANS2Model" and (given := [key for key in given if "encoder" in key]):
        report.warn(
            ("train", given[0]),
            f"has no effect{_others(given)}: the GAN stage learns all parts from its start; there, encoder_iter above "
            "0 says only that lr_sr, gamma_sr and lr_decay_sr rule the learning rate of network_g",
        )
    if not given or warms_up or view.model not in OUR_MODELS + BASICSR_MODELS:
        return
    why = "encoder_iter is 0" if view.model in WARMED_UP else f"{view.model} has no warm-up"
    report.warn(
        ("train", given[0]),
        f"has no effect{_others(given)}: {why}, so train.scheduler rules the learning rate, as in the published "
        "super-resolution recipes",
    )


def _warn_of_foreign_options(view: View, report: Report) -> None:
    if not view.is_train or view.model not in OUR_MODELS + BASICSR_MODELS:
        return
    for key, models in _READ_BY.items():
        if view.has("train", key) and view.model not in models and view.get("train", key):
            report.warn(("train", key), f"has no effect: {view.model} does not read it (only {', '.join(models)})")
    mixes = view.model in OUR_MODELS and view.model not in INPAINTING
    if not mixes and view.get("train", "mixing_augs", "mixup", default=False):
        report.warn(("train", "mixing_augs", "mixup"), f"has no effect: {view.model} does not mix images")


def _warn_of_degradation(view: View, report: Report) -> None:
    # Our models sharpen the targets of any data.
    alive = (
        {name for name in Degradation.model_fields if name.endswith("gt_usm")} if view.model in OUR_MODELS else set()
    )
    given = [name for name in view.values if name in set(Degradation.model_fields) - alive and view.has(name)]
    degrades = any(kind == "RealESRGANDataset" for _, kind in view.datasets())
    if given and not degrades and view.model in OUR_MODELS + BASICSR_MODELS:
        report.warn(
            (given[0],), f"has no effect{_others(given)}: only training on a RealESRGANDataset degrades images itself"
        )


def _others(given: list[str]) -> str:
    return f" (also {', '.join(given[1:])})" if given[1:] else ""


def set_defaults(values: dict[str, Any], *, scale: int | None, is_train: bool) -> None:
    """Fill in what BasicSR reads without asking whether it is there."""
    values.setdefault("num_gpu", "auto")
    if values.get("scale") is None and scale is not None:
        values["scale"] = scale
    _set_path_defaults(values, is_train=is_train)
    if "val" not in values or values["val"] is not None or not is_train:  # `val: ~` switches it off in training
        val = {"val_freq": 5000, "save_img": not is_train, "suffix": None, "pbar": True, "seed": 0}
        values["val"] = _filled(values.get("val"), val)
    if is_train:
        logger = {"print_freq": 100, "save_checkpoint_freq": 5000, "use_tb_logger": False}
        values["logger"] = _filled(values.get("logger"), logger)
    for dataset in _sections(values["datasets"]):
        _set_backend(dataset)


def _set_path_defaults(values: dict[str, Any], *, is_train: bool) -> None:
    path = values["path"] = _filled(values.get("path"), {})
    if values.get("network_S1") is not None:
        path.setdefault("param_key_S1", "params_ema")
    if is_train or "ignore_resume_networks" in path:
        ignored = path.setdefault("ignore_resume_networks", [])
        if values.get("network_S1") is not None and "network_S1" not in ignored:
            path["ignore_resume_networks"] = [*ignored, "network_S1"]


def _set_backend(dataset: dict[str, Any]) -> None:
    kinds = {is_lmdb(path) for root in ROOTS for path in roots_in(dataset, root)}
    # One folder and one LMDB: the dataset itself must see to it.
    if dataset.get("io_backend") is None and len(kinds) == 1:
        dataset["io_backend"] = {"type": "lmdb" if kinds.pop() else "disk"}


def _filled(given: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    return {**defaults, **(given or {})}


def _sections(values: Any) -> Iterator[dict[str, Any]]:
    members: Iterable[Any] = values.values() if isinstance(values, dict) else ()
    yield from (one for one in members if isinstance(one, dict))
