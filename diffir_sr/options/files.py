"""Rules about files and folders that must be there: weights, data, lists."""

from __future__ import annotations

import os
import re
from functools import partial

from basicsr.utils.registry import MODEL_REGISTRY

from diffir_sr.errors import OptionError
from diffir_sr.families import declaring
from diffir_sr.option_types import Found
from diffir_sr.options.check import find
from diffir_sr.options.recipes import recipe_names, recipes_folder
from diffir_sr.options.report import Report
from diffir_sr.options.rules import ROOTS, OptionView, asked, is_lmdb, roots_in
from diffir_sr.options.source import read_source


def apply_file_rules(view: OptionView, report: Report) -> None:
    """Add to the report every file and folder that is named and missing."""
    names = [name for name, _ in view.datasets()]
    weights = [key for key in view.values.get("path") or {} if str(key).startswith("pretrain_network_")]
    report.problems += asked(
        [
            state_exists,
            vgg_exists,
            backbone_exists,
            *(partial(weights_exist, key=key) for key in weights),
            *(partial(data_exists, name=name, root=root) for name in names for root in (*ROOTS, "dataroot_mask")),
            *(partial(list_exists, name=name, key=key) for name in names for key in ("meta_info_file", "meta_info")),
        ],
        view,
    )


def weights_exist(view: OptionView, key: str) -> Found:
    """Weights to start from are there; a missing file is told with the command that makes it."""
    network = key.removeprefix("pretrain_")
    is_helper = network in [helper.section for helper in view.declares("frozen_networks") or ()]
    if is_helper and not view.is_train:  # tests need none
        return
    if view.has("path", "resume_state") and not is_helper:  # the run that is resumed has its own
        return
    path = view.get("path", key)
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield ("path", key), f"{_absent('file', path)}; {_origin(view, network)}"


def state_exists(view: OptionView) -> Found:
    """The training state to resume from is there."""
    path = view.get("path", "resume_state")
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield ("path", "resume_state"), f"{_absent('file', path)}; training writes states to training_states/"


def vgg_exists(view: OptionView) -> Found:
    """The file with VGG's weights is there."""
    path = view.get("train", "perceptual_opt", "vgg_path")
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield (
            ("train", "perceptual_opt", "vgg_path"),
            f"{_absent('file', path)}; it should hold torchvision's VGG weights",
        )


def backbone_exists(view: OptionView) -> Found:
    """The file with the weights of a perceptual loss's own network is there."""
    path = view.get("train", "perceptual_opt", "weights_path")
    if isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
        yield (
            ("train", "perceptual_opt", "weights_path"),
            f"{_absent('file', path)}; without the option, the message says where the weights come from",
        )


def data_exists(view: OptionView, name: str, root: str) -> Found:
    """A folder or LMDB of images is there."""
    for path in roots_in({root: view.get("datasets", name, root)}, root):
        if not os.path.isdir(os.path.expanduser(path)) and not _is_list(path):
            what = "LMDB" if is_lmdb(path) else "folder"
            yield ("datasets", name, root), f"{_absent(what, path)}; datasets/README.md says how to prepare data"


def _is_list(path: str) -> bool:
    return path.endswith((".txt", ".jsonl")) and os.path.isfile(os.path.expanduser(path))


def list_exists(view: OptionView, name: str, key: str) -> Found:
    """A list of images is there."""
    path = view.get("datasets", name, key)
    if path and isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
        hint = "without the option, all images are used" if key == "meta_info_file" else "correct the path"
        yield ("datasets", name, key), f"{_absent('file', path)}; {hint}"


def _absent(what: str, path: str) -> str:
    seen_from = "" if os.path.isabs(os.path.expanduser(path)) else f" (current folder: {os.getcwd()})"
    return f"no such {what}: {path}{seen_from}"


def _origin(view: OptionView, network: str) -> str:
    """Which training writes such weights, and by which command."""
    made_by = (view.declares("MADE_BY") or {}) if view.is_train else {"network_g": view.model}
    if view.is_train and view.has(network) and network not in made_by and network != "network_g":
        made_by = {**made_by, network: view.model}  # what a training has beside network_g it writes itself
    maker = declaring(find(MODEL_REGISTRY, made_by.get(network)))
    title, recipe_of = getattr(maker, "TITLE", ""), getattr(maker, "RECIPE", None)
    if not title:
        return "correct the path, or remove the option to start without"
    recipe = _recipe_of(view.get("path", f"pretrain_{network}"), made_by[network])
    recipe = recipe or (recipe_of(view) if recipe_of else None)
    how = f": basicsr train -opt options/{recipe}.yml" if recipe else f" (model_type {made_by[network]})"
    return f"{title} makes it{how}"


def _recipe_of(weights: str, model: str) -> str | None:
    """The recipe of a model whose run writes a file, found by the name of its folder; None if it is none of ours."""
    run = re.search(r"experiments/([^/]+)/models/", weights)
    folder = recipes_folder()
    for name in recipe_names(folder) if run else ():
        written = re.search(r"^name: *([^\s#]+)", (folder / f"{name}.yml").read_text(encoding="utf-8"), re.MULTILINE)
        if run and written and written[1] == run[1]:
            try:
                return name if read_source(folder / f"{name}.yml").values.get("model_type") == model else None
            except OptionError:
                return None
    return None
