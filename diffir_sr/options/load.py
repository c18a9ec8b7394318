"""Loading option files: read, rename, correct, check, complete; check that required files exist."""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from diffir_sr.data.sources import shards_at
from diffir_sr.errors import OptionError
from diffir_sr.families import declaring
from diffir_sr.families.autodir import is_folder
from diffir_sr.option_types import Found, Section, found, inherited
from diffir_sr.options.check import Finding, Report, fail_on_problems, find, gathered, located
from diffir_sr.options.recipes import recipe_names, recipes_folder, refuse_hydra
from diffir_sr.options.rules import ROOTS, OptionView, apply_rules, apply_warnings, asked, is_lmdb, roots_in
from diffir_sr.options.schema import LoggerOptions, Options, ValOptions, check_structure, known_options, named_classes
from diffir_sr.options.source import OptionSource, apply_overrides, read_source


@dataclass(frozen=True)
class LoadedOptions:
    """Checked options, in the structure and with the names that BasicSR reads."""

    values: dict[str, Any]
    findings: list[Finding]  # options without effect and applied corrections, each with place and reason
    path: Path

    @property
    def warnings(self) -> list[str]:
        """The findings as lines of text."""
        return [str(finding) for finding in self.findings]


def load_options(
    path: str | Path,
    is_train: bool = True,
    overrides: Iterable[str] = (),
    *,
    check_files: bool = True,
    coming: Collection[str] = (),
) -> LoadedOptions:
    """The options of a file for `basicsr train` or, if not `is_train`, `basicsr test`.

    `overrides` are entries of BasicSR's `--force_yml`, section:key=value. `check_files`: whether weights and data must
    exist, except for the keys of `path` in `coming`, whose weights an earlier stage will write. Imports the modules
    listed under `plugins`. Raises OptionError with all problems found.
    """
    source = read_source(path)
    apply_overrides(source, overrides)
    _import_plugins(source, file=str(path))
    refuse_hydra(source.values, file=str(path))
    report = Report(known_options=known_options(source.values))
    values = copy.deepcopy(source.values)
    _rename(values, source, report)
    _correct(values, report)
    values = check_structure(values, report, is_train=is_train)
    view = OptionView(values, report, is_train=is_train)
    apply_rules(view, report)
    if check_files:
        apply_file_rules(view, report, coming=coming)
    fail_on_problems(report, source.places, file=str(path))
    _settle_window(view, report)
    _warn_of_a_misleading_name(view, report)
    apply_warnings(view, report)
    _complete(values, view)
    return LoadedOptions(values, located(report.warnings, source.places), Path(path))


def _import_plugins(source: OptionSource, *, file: str) -> None:
    modules = source.values.get("plugins") or []
    if not isinstance(modules, list):  # reported by the schema
        return
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a folder here does not shadow an installed package
    report = Report()
    for index, module in enumerate(modules):
        if not isinstance(module, str):
            report.problem(("plugins", index), f"expected the name of a module (package.module), found {found(module)}")
            continue
        try:
            importlib.import_module(module)
        except Exception as error:
            report.problem(("plugins", index), f"plugin {module!r} cannot be imported: {type(error).__name__}: {error}")
    fail_on_problems(report, source.places, file=file)


# Earlier names, and corrections of published files


def _rename(values: dict[str, Any], source: OptionSource, report: Report) -> None:
    """Replace earlier names of options by their new ones, in their sections and at the top level."""
    for keys, kind in list(named_classes(values)):
        renamed = {old: new for one in inherited(declaring(kind), "RENAMED") for old, new in one.items()}
        for section_keys in dict.fromkeys((keys, ())):
            section = _section_at(values, section_keys)
            for old in [old for old in renamed if old in section and renamed[old] not in section]:
                report.warn((*section_keys, old), f"is now named {renamed[old]}")
                # In place of the old one, so that the order is kept.
                items = [(renamed[key] if key == old else key, value) for key, value in section.items()]
                section.clear()
                section.update(items)
                before, now = (*section_keys, old), (*section_keys, renamed[old])
                for place, at in list(source.places.items()):
                    if place[: len(before)] == before:
                        source.places[now + place[len(before) :]] = at


def _section_at(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    section: Any = values
    for key in keys:
        section = section[key]
    return section


def _correct(values: dict[str, Any], report: Report) -> None:
    """Apply the corrections that classes declare for published files, each with a warning."""
    for keys, kind in list(named_classes(values)):
        for correction in gathered(kind, "CORRECTIONS"):
            report.warnings.extend(correction(values, keys))


def _settle_window(view: OptionView, report: Report) -> None:
    """Published x2 and x1 files contain a window_size that is too small; nothing reads it, but it is misleading."""
    if not view.has("val", "window_size"):
        return
    size, rule = view.get("val", "window_size"), view.size_rule()
    if rule and size % rule.multiple_of:
        report.warn(
            ("val", "window_size"),
            f"corrected from {size} to {rule.multiple_of}: padding is a property of the network, which always pads "
            f"to multiples of {rule.multiple_of}",
        )
        view.values["val"]["window_size"] = rule.multiple_of
        return
    pads = f"this one pads to multiples of {rule.multiple_of}" if rule else "it is not configurable"
    report.warn(("val", "window_size"), f"has no effect: padding is a property of the network ({pads})")


def _warn_of_a_misleading_name(view: OptionView, report: Report) -> None:
    """A run named after another scale would mix its results with those of that scale."""
    named = re.search(r"_x([1248])(?=_|$)", view.get("name", default=""))
    if named and view.scale() not in (None, int(named[1])):
        other = f"x{named[1]}"
        report.warn(
            ("name",),
            f"contains {other}, but the scale is {view.scale()}: results would mix with those of {other}; rename it",
        )


# Defaults


def _complete(values: dict[str, Any], view: OptionView) -> None:
    """Fill in options that BasicSR reads without checking whether they exist."""
    values.setdefault("num_gpu", Options.model_fields["num_gpu"].default)
    if values.get("scale") is None and view.scale() is not None:
        values["scale"] = view.scale()
    _complete_path(values, view)
    if (
        "val" not in values or values["val"] is not None or not view.is_train
    ):  # `val: ~` disables validation in training
        values["val"] = _filled(values.get("val"), ValOptions, save_img=not view.is_train)
    if view.is_train:
        values["logger"] = _filled(values.get("logger"), LoggerOptions)
    for dataset in _sections(values["datasets"]):
        _set_backend(dataset)


def _filled(given: Mapping[str, Any] | None, section: type[Section], **instead: Any) -> dict[str, Any]:
    """A section completed with the defaults of absent options."""
    defaults = {name: copy.copy(info.default) for name, info in section.model_fields.items()}
    return {**defaults, **instead, **(given or {})}


def _complete_path(values: dict[str, Any], view: OptionView) -> None:
    """Networks that are not trained keep their pretrained weights when a training resumes."""
    path = values["path"] = dict(values.get("path") or {})
    helpers = [one for one in view.declares("frozen_networks") or () if values.get(one.section) is not None]
    for helper in helpers:
        path.setdefault(f"param_key_{helper.name}", "params_ema")
    if view.is_train or "ignore_resume_networks" in path:
        ignored = path.get("ignore_resume_networks") or []
        path["ignore_resume_networks"] = list(dict.fromkeys([*ignored, *(helper.section for helper in helpers)]))


def _set_backend(dataset: dict[str, Any]) -> None:
    paths = [path for root in ROOTS for path in roots_in(dataset, root)]
    kinds = {"lmdb" if is_lmdb(path) else "webdataset" if shards_at(expanded(path)) else "disk" for path in paths}
    # Different kinds are left to the dataset.
    if dataset.get("io_backend") is None and len(kinds) == 1:
        dataset["io_backend"] = {"type": kinds.pop()}


def _sections(values: Any) -> Iterator[dict[str, Any]]:
    members: Iterable[Any] = values.values() if isinstance(values, dict) else ()
    yield from (one for one in members if isinstance(one, dict))


# Rules about files and folders that must exist: weights, data, lists.


def apply_file_rules(view: OptionView, report: Report, *, coming: Collection[str] = ()) -> None:
    """Report every file and folder that is named but missing, except for the `coming` weights."""
    names = [name for name, _ in view.datasets()]
    named = [key for key in view.values.get("path") or {} if str(key).startswith("pretrain_network_")]
    weights = [key for key in named if key not in coming]
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
    """Weights to start from exist; the message about a missing file names the command that makes it."""
    network = key.removeprefix("pretrain_")
    is_helper = network in [helper.section for helper in view.declares("frozen_networks") or ()]
    if is_helper and not view.is_train:  # not needed for tests
        return
    if view.has("path", "resume_state") and not is_helper:  # the resumed run has its own
        return
    path = view.get("path", key)
    if path and not os.path.isfile(os.path.expanduser(path)) and not is_folder(Path(os.path.expanduser(path))):
        yield ("path", key), f"{_absent('file', path)}; {_origin(view, network)}"


def state_exists(view: OptionView) -> Found:
    """The training state to resume from exists."""
    path = view.get("path", "resume_state")
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield ("path", "resume_state"), f"{_absent('file', path)}; training writes states to training_states/"


def vgg_exists(view: OptionView) -> Found:
    """The file with the VGG weights exists."""
    path = view.get("train", "perceptual_opt", "vgg_path")
    if path and not os.path.isfile(os.path.expanduser(path)):
        yield (
            ("train", "perceptual_opt", "vgg_path"),
            f"{_absent('file', path)}; it should contain torchvision's VGG weights",
        )


def backbone_exists(view: OptionView) -> Found:
    """The file with the weights of the network of a perceptual loss exists."""
    path = view.get("train", "perceptual_opt", "weights_path")
    if isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
        yield (
            ("train", "perceptual_opt", "weights_path"),
            f"{_absent('file', path)}; remove the option to see where the weights can be found",
        )


def data_exists(view: OptionView, name: str, root: str) -> Found:
    """A folder, LMDB or folder of shards exists."""
    for path in roots_in({root: view.get("datasets", name, root)}, root):
        if not expanded(path).is_dir() and not _is_list(path) and not shards_at(expanded(path)):
            what = "LMDB" if is_lmdb(path) else "folder"
            yield ("datasets", name, root), f"{_absent(what, path)}; see datasets/README.md for how to prepare data"


def expanded(path: str) -> Path:
    """A path with its ~ replaced."""
    return Path(os.path.expanduser(path))


def _is_list(path: str) -> bool:
    return path.endswith((".txt", ".jsonl")) and os.path.isfile(os.path.expanduser(path))


def list_exists(view: OptionView, name: str, key: str) -> Found:
    """A list of images exists."""
    path = view.get("datasets", name, key)
    if path and isinstance(path, str) and not os.path.isfile(os.path.expanduser(path)):
        hint = "without the option, all images are used" if key == "meta_info_file" else "correct the path"
        yield ("datasets", name, key), f"{_absent('file', path)}; {hint}"


def _absent(what: str, path: str) -> str:
    seen_from = "" if os.path.isabs(os.path.expanduser(path)) else f" (current folder: {os.getcwd()})"
    return f"no such {what}: {path}{seen_from}"


def _origin(view: OptionView, network: str) -> str:
    """The training that writes such weights, and its command."""
    made_by = (view.declares("MADE_BY") or {}) if view.is_train else {"network_g": view.model}
    if view.is_train and view.has(network) and network not in made_by and network != "network_g":
        made_by = {**made_by, network: view.model}  # other networks than network_g are written by the training itself
    maker = declaring(find(MODEL_REGISTRY, made_by.get(network)))
    title, recipe_of = getattr(maker, "TITLE", ""), getattr(maker, "RECIPE", None)
    if not title:
        return "correct the path, or remove the option to start from scratch"
    recipe = _recipe_of(view.get("path", f"pretrain_{network}"), made_by[network])
    recipe = recipe or (recipe_of(view) if recipe_of else None)
    how = f": basicsr train -opt options/{recipe}.yml" if recipe else f" (model_type {made_by[network]})"
    return f"{title} makes it{how}"


def _recipe_of(weights: str, model: str) -> str | None:
    """The training recipe of a model whose run writes a file, found by the name of its folder; None if there is none.

    Testing recipes carry names of runs, too, and none of them writes weights.
    """
    run = re.search(r"experiments/([^/]+)/models/", weights)
    folder = recipes_folder()
    for name in recipe_names(folder) if run else ():
        written = re.search(r"^name: *([^\s#]+)", (folder / f"{name}.yml").read_text(encoding="utf-8"), re.MULTILINE)
        if run and written and written[1] == run[1]:
            with suppress(OptionError):
                values = read_source(folder / f"{name}.yml").values
                if values.get("model_type") == model and "train" in values:
                    return name
    return None
