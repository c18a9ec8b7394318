"""Rules about files and folders that must be there: weights, data, lists."""

from __future__ import annotations

import os
import re
from functools import partial

from diffir_sr.options.recipes import recipe_names, recipes_folder
from diffir_sr.options.report import Report
from diffir_sr.options.rules import ADVERSARIAL, TAUGHT, Found, apply_rules
from diffir_sr.options.rules_data import ROOTS, is_lmdb, roots_in
from diffir_sr.options.view import View

_MAKER = {
    "DiffIRS1Model": "train_DiffIRS1",
    "DiffIRS2Model": "train_DiffIRS2",
    "DiffIRGANS2Model": "train_DiffIRS2_GAN",
    "DiffIRInpaintS1Model": "train_DiffIRS1",
    "DiffIRInpaintS2Model": "train_DiffIRS2",
}
_STAGE = {"DiffIRS1Model": "stage 1", "DiffIRS2Model": "stage 2", "DiffIRGANS2Model": "the GAN stage"}
_STAGE |= {"DiffIRInpaintS1Model": "stage 1", "DiffIRInpaintS2Model": "stage 2"}
# What the weights of network_g that a training starts from were trained as.
_BEFORE = {"DiffIRS2Model": "DiffIRS1Model", "DiffIRGANS2Model": "DiffIRS2Model"}
_BEFORE |= {"DiffIRInpaintS2Model": "DiffIRInpaintS1Model"}


def apply_file_rules(view: View, report: Report) -> None:
    """Add to the report every file and folder that is named and missing."""
    names = [name for name, _ in view.datasets()]
    weights = [key for key in view.values.get("path") or {} if str(key).startswith("pretrain_network_")]
    apply_rules(
        [
            state_exists,
            vgg_exists,
            backbone_exists,
            *(partial(weights_exist, key=key) for key in weights),
            *(partial(data_exists, name=name, root=root) for name in names for root in (*ROOTS, "dataroot_mask")),
            *(partial(list_exists, name=name, key=key) for name in names for key in ("meta_info_file", "meta_info")),
        ],
        view,
        report,
    )


def weights_exist(view: View, key: str) -> Found:
    """Weights to start from are there; a missing file is told with the command that makes it."""
    network = key.removeprefix("pretrain_")
    is_teacher = network == "network_S1"
    if is_teacher and not view.is_train:  # tests need no teacher
        return
    if view.has("path", "resume_state") and not is_teacher:  # the run that is resumed has its own
        return
    path = view.get("path", key)
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield ("path", key), f"{_absent('file', path)}; {_origin(view, network)}"


def state_exists(view: View) -> Found:
    """The training state to resume from is there."""
    path = view.get("path", "resume_state")
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield ("path", "resume_state"), f"{_absent('file', path)}; training writes states to training_states/"


def vgg_exists(view: View) -> Found:
    """The file with VGG's weights is there."""
    path = view.get("train", "perceptual_opt", "vgg_path")
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield (
            ("train", "perceptual_opt", "vgg_path"),
            f"{_absent('file', path)}; it should hold torchvision's VGG weights",
        )


def backbone_exists(view: View) -> Found:
    """The file with the weights of a perceptual loss's own network is there."""
    path = view.get("train", "perceptual_opt", "weights_path")
    if isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
        yield (
            ("train", "perceptual_opt", "weights_path"),
            f"{_absent('file', path)}; without the option, the message says where the weights come from",
        )


def data_exists(view: View, name: str, root: str) -> Found:
    """A folder or LMDB of images is there."""
    for path in roots_in({root: view.get("datasets", name, root)}, root):
        if not os.path.isdir(os.path.expanduser(path)) and not _is_list(path):
            what = "LMDB" if is_lmdb(path) else "folder"
            yield ("datasets", name, root), f"{_absent(what, path)}; datasets/README.md says how to prepare data"


def _is_list(path: str) -> bool:
    return path.endswith((".txt", ".jsonl")) and os.path.isfile(os.path.expanduser(path))


def list_exists(view: View, name: str, key: str) -> Found:
    """A list of images is there."""
    path = view.get("datasets", name, key)
    if path and isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
        hint = "without the option, all images are used" if key == "meta_info_file" else "correct the path"
        yield ("datasets", name, key), f"{_absent('file', path)}; {hint}"


def _absent(what: str, path: str) -> str:
    seen_from = "" if os.path.isabs(os.path.expanduser(path)) else f" (current folder: {os.getcwd()})"
    return f"no such {what}: {path}{seen_from}"


def _origin(view: View, network: str) -> str:
    model = view.get("model_type")
    if network == "network_S1":
        maker = _BEFORE.get(model, model) if model in TAUGHT else None
        maker = "DiffIRS1Model" if maker == "DiffIRS2Model" else maker  # the GAN stage has the same teacher
    elif network == "network_g":
        maker = _BEFORE.get(model) if view.is_train else model
    else:
        maker = model if network == "network_d" and model in ADVERSARIAL else None
    if maker not in _MAKER:
        return "correct the path, or remove the option to start without"
    recipe = _recipe_of(view.get("path", f"pretrain_{network}"))
    if network == "network_d" and recipe and "GAN" not in recipe and view.task() == "sr":
        recipe = None  # published fine-tuning files look for it where stage 2 writes, which has none
    if recipe is None and view.task() == "sr":
        recipe = f"options/{_MAKER[maker]}_x{view.scale()}.yml"
    made_by = f": basicsr train -opt {recipe}" if recipe else f" (model_type {maker})"
    return f"{_STAGE[maker]} makes it{made_by}"


def _recipe_of(weights: str) -> str | None:
    """The recipe whose run writes a file, found by the name of its folder; None if it is none of ours."""
    run = re.search(r"experiments/([^/]+)/models/", weights)
    folder = recipes_folder()
    for name in recipe_names(folder) if run else ():
        written = re.search(r"^name: *([^\s#]+)", (folder / f"{name}.yml").read_text(encoding="utf-8"), re.MULTILINE)
        if run and written and written[1] == run[1]:
            return f"options/{name}.yml"
    return None
