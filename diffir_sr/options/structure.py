"""Which rule applies to which part of an option file: schemas for sections, signatures for what BasicSR builds."""

from __future__ import annotations

import re
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import BaseModel

from diffir_sr.options.constructors import check_arguments, check_type, named
from diffir_sr.options.fields import Section
from diffir_sr.options.report import Keys, Report
from diffir_sr.options.schema_data import DATASETS, Loader, Stored, dataset_schema
from diffir_sr.options.schema_top import LoggerOptions, Options, PathOptions, ValOptions
from diffir_sr.options.schema_train import TrainOptions
from diffir_sr.options.sections import as_mapping, check_model, check_section
from diffir_sr.options.training import check_metric, check_train

PHASES = re.compile(r"train|(val|test)(_.+)?")
OUR_MODELS = ("DiffIRS1Model", "DiffIRS2Model", "DiffIRGANS2Model")
BASICSR_MODELS = ("SRModel", "SRGANModel", "ESRGANModel")
_PATH_FIELDS = {"pretrain_network": "pretrain_network_g", "param_key": "param_key_g", "strict_load": "strict_load_g"}


def elsewhere() -> dict[str, set[str]]:
    """Section: its options; for hints about options in the wrong section."""
    data = set().union(*(schema.model_fields for schema in DATASETS.values()))
    sections = {"train": TrainOptions, "val": ValOptions, "path": PathOptions, "logger": LoggerOptions}
    names = {section: set(schema.model_fields) for section, schema in sections.items()}
    return {"": set(Options.model_fields), **names, "datasets.*": data}


def check_structure(values: dict[str, Any], report: Report, *, is_train: bool) -> dict[str, Any]:
    """All options with the values that their rules make of them; every problem goes to the report."""
    networks = {name for name in values if name.startswith("network_")}
    checked = check_section(
        Options, values, (), report, also=dict.fromkeys(networks, "network_S1"), skip=("path", "train", "val")
    )
    if "path" in values:
        checked["path"] = _check_path(values["path"], networks, report)
    for name in networks:
        given = as_mapping(values[name], (), Report())
        if given:
            checked[name] = _check_network(given, (name,), report)
    model_type = values.get("model_type")
    model = named(MODEL_REGISTRY, model_type, ("model_type",), report, kind="model") if model_type else None
    checked["datasets"] = _check_datasets(values.get("datasets"), report)
    _check_train_and_val(values, checked, model, report, is_train=is_train)
    return checked


def _check_path(given: Any, networks: set[str], report: Report) -> Any:
    labels = [name.removeprefix("network_") for name in networks]
    also = {
        f"{prefix}_{label}": field
        for prefix, field in _PATH_FIELDS.items()
        for label in labels
        if f"{prefix}_{label}" not in PathOptions.model_fields and label not in ("g", "d", "S1")
    }
    given = as_mapping(given, ("path",), report)
    return check_section(PathOptions, given, ("path",), report, also=also)


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
        return check_section(base, given, keys, report, skip=given.keys() - base.model_fields)
    return check_declared(dataset, base, given, keys, report, what=f"dataset type {given['type']}")


def check_declared(
    owner: Any, base: type[Section], given: dict[str, Any], keys: Keys, report: Report, *, what: str
) -> dict[str, Any]:
    """Check the options that `base` knows, and the others as the class attribute OPTIONS of their owner says.

    OPTIONS is a pydantic model class or an iterable of names. Without it the others pass with one warning.
    """
    declared = getattr(owner, "OPTIONS", None)
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        theirs = {field.alias or name for name, field in declared.model_fields.items()}
    else:
        theirs = set(declared or ())
    others = given.keys() - base.model_fields.keys()
    checked = check_section(base, given, keys, report, skip=given.keys() & (others | theirs))
    if declared is None:
        if others:
            report.warn(keys, f"keys of {what} are not checked (the class declares no OPTIONS): {_listed(others)}")
        return checked
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        own = {name: value for name, value in given.items() if name in theirs}
        checked |= check_model(declared, own, keys, report)
        if declared.model_config.get("extra") == "allow":
            return checked
    for name in others - theirs:
        report.unknown((*keys, name), theirs | base.model_fields.keys())
    return checked


def _check_train_and_val(
    values: dict[str, Any], checked: dict[str, Any], model: Any, report: Report, *, is_train: bool
) -> None:
    familiar = is_familiar(model)
    if is_train and values.get("train") is None:
        report.problem(("train",), "missing: a training needs losses, an optimizer and total_iter")
    train = as_mapping(values.get("train"), ("train",), report)
    if train:
        checked["train"] = check_train(train, model, report, familiar=familiar, is_train=is_train)
    val = as_mapping(values.get("val"), ("val",), report)
    if val:
        if familiar or model is None:
            checked["val"] = check_section(ValOptions, val, ("val",), report)
        else:  # BasicSR's other models read more here
            what = f"model type {values['model_type']}"
            checked["val"] = check_declared(None, ValOptions, val, ("val",), report, what=what)
        metrics = as_mapping(val.get("metrics"), (), Report())
        if metrics:
            checked["val"]["metrics"] = {
                name: check_metric(given, ("val", "metrics", name), report, METRIC_REGISTRY)
                for name, given in metrics.items()
            }


def is_familiar(model: Any) -> bool:
    """Whether a model is one of ours or of BasicSR's super-resolution models, or derived from ours."""
    names = [kind.__name__ for kind in getattr(model, "__mro__", ())]
    return any(name in OUR_MODELS for name in names) or names[:1] and names[0] in BASICSR_MODELS


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
