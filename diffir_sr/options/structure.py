"""Which rule applies to which part of an option file: a schema, a signature, or what a class declares."""

from __future__ import annotations

import re
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

from diffir_sr.options.constructors import argument_names, check_arguments, check_type, named
from diffir_sr.options.declared import check_declared
from diffir_sr.options.report import Keys, Report
from diffir_sr.options.schema_data import DATASETS, Loader, Stored, dataset_schema
from diffir_sr.options.schema_top import LoggerOptions, Options, PathOptions, ValOptions
from diffir_sr.options.schema_train import TrainOptions
from diffir_sr.options.sections import as_mapping, check_section
from diffir_sr.options.training import check_metric, check_train, kinship

PHASES = re.compile(r"train|(val|test)(_.+)?")
_PATH_FIELDS = {
    "pretrain_network": "pretrain_network_g",
    "param_key": "param_key_g",
    "strict_load": "strict_load_g",
}


def elsewhere(values: dict[str, Any]) -> dict[str, set[str]]:
    """Section: options that exist there in this file; for hints about options in the wrong section."""
    data = set().union(*(schema.model_fields for schema in DATASETS.values()))
    sections = {"train": TrainOptions, "val": ValOptions, "path": PathOptions, "logger": LoggerOptions}
    names = {section: set(schema.model_fields) for section, schema in sections.items()}
    network = as_mapping(values.get("network_g"), (), Report())
    arguments = argument_names(ARCH_REGISTRY, network.get("type"))
    return {"": set(Options.model_fields), **names, "datasets.*": data, "network_g": arguments}


def check_structure(values: dict[str, Any], report: Report, *, is_train: bool) -> dict[str, Any]:
    """All options with the values that their rules make of them; every problem goes to the report."""
    networks = [name for name in values if name.startswith("network_")]
    checked = check_section(
        Options, values, (), report, also=dict.fromkeys(networks, "network_S1"), skip=("path", "train", "val")
    )
    if "path" in values:
        checked["path"] = _check_path(values["path"], networks, report)
    for name in networks:
        if isinstance(values[name], dict):
            checked[name] = _check_network(values[name], (name,), report)
    model_type = values.get("model_type")
    model = (
        named(MODEL_REGISTRY, model_type, ("model_type",), report, kind="model")
        if isinstance(model_type, str)
        else None
    )
    checked["datasets"] = _check_datasets(values.get("datasets"), report)
    checked["train"] = _check_train(values, model, report, is_train=is_train)
    checked["val"] = _check_val(values.get("val"), model, report)
    # The order and the presence of keys are the file's.
    return {name: checked[name] for name in values}


def _check_path(given: Any, networks: list[str], report: Report) -> Any:
    given = as_mapping(given, ("path",), report)
    labels = [name.removeprefix("network_") for name in networks]
    also = {
        f"{prefix}_{label}": field
        for prefix, field in _PATH_FIELDS.items()
        for label in labels
        if f"{prefix}_{label}" not in PathOptions.model_fields and label not in ("g", "d", "S1")
    }
    lost = [name for name in given if _label(name) not in (None, *labels) and name not in PathOptions.model_fields]
    for name in lost:
        report.problem(("path", name), f"there is no section network_{_label(name)} that this could be for")
    return check_section(PathOptions, given, ("path",), report, also=also, skip=lost)


def _label(name: str) -> str | None:
    found = next((prefix for prefix in _PATH_FIELDS if name.startswith(f"{prefix}_")), None)
    return name.removeprefix(f"{found}_") if found else None


def _check_network(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    arch = check_type(ARCH_REGISTRY, given, keys, report, kind="arch")
    return check_arguments(arch, given, keys, report) if arch else given


def _check_datasets(given: Any, report: Report) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    # That `datasets` itself is a section is a matter of the top level's schema.
    for phase, options in (given if isinstance(given, dict) else {}).items():
        keys = ("datasets", phase)
        if not PHASES.fullmatch(phase):
            report.problem(keys, "not a kind of dataset; expected train, val, val_<name>, test or test_<name>")
        if not isinstance(options, dict):
            as_mapping(options, keys, report)
            if options is None:
                report.problem(keys, "expected a section (key: value), found nothing (~)")
        checked[phase] = _check_dataset(options, keys, report) if isinstance(options, dict) else options
    return checked


def _check_dataset(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    dataset = check_type(DATASET_REGISTRY, given, keys, report, kind="dataset")
    schema = dataset_schema(given.get("type"))
    if schema is not None:
        return check_section(schema, given, keys, report)
    base = Stored if "io_backend" in given else Loader
    if dataset is None:  # the type has a problem already; which keys it takes cannot be said
        return check_section(base, given, keys, report, skip={"type"} | (given.keys() - base.model_fields))
    return check_declared(dataset, base, given, keys, report, what=f"dataset type {given['type']}")


def _check_train(values: dict[str, Any], model: Any, report: Report, *, is_train: bool) -> Any:
    if is_train and values.get("train") is None:
        report.problem(("train",), "missing: a training needs losses, an optimizer and total_iter")
    train = as_mapping(values.get("train"), ("train",), report)
    if not isinstance(values.get("train"), dict):
        return values.get("train")
    return check_train(train, model, report, is_train=is_train)


def _check_val(given: Any, model: Any, report: Report) -> Any:
    val = as_mapping(given, ("val",), report)
    if not val:
        return given
    if kinship(model) == "other":  # BasicSR's models for video and faces read more options here
        what = f"val of model type {model.__name__}"
        checked = check_declared(None, ValOptions, val, ("val",), report, what=what)
    else:
        checked = check_section(ValOptions, val, ("val",), report)
    if isinstance(val.get("metrics"), dict):
        metrics = val["metrics"].items()
        checked["metrics"] = {name: check_metric(one, ("val", "metrics", name), report) for name, one in metrics}
    return checked
