"""Which check applies to which part of an option file: fields, a signature, or what a class declares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from diffir_sr.families import declaring
from diffir_sr.families.basicsr import MetricArguments, VggOptions
from diffir_sr.option_types import Keys
from diffir_sr.options.check import (
    Declared,
    Known,
    argument_names,
    arguments_of,
    as_mapping,
    check_arguments,
    check_declared,
    check_section,
    check_type,
    declared,
    fields_of,
    find,
    named,
)
from diffir_sr.options.report import Report, nearest
from diffir_sr.options.schema import (
    SCHEDULERS,
    Loader,
    LoggerOptions,
    Options,
    PathOptions,
    TrainLoop,
    ValOptions,
)

PHASES = re.compile(r"train|(val|test)(_.+)?")
_PATH_FIELDS = {
    "pretrain_network": "pretrain_network_g",
    "param_key": "param_key_g",
    "strict_load": "strict_load_g",
}


def standard_models() -> dict[str, Any]:
    """The registered models that train by this package's loop, by name; option files are handed between them."""
    return {name: kind for name, kind in MODEL_REGISTRY if is_standard(kind)}


def is_standard(model: Any) -> bool:
    """Whether a model trains by this package's loop, so that all of `train` and `val` is known."""
    return bool(getattr(declaring(model), "STANDARD_LOOP", False))


def readers(attribute: str = "OPTIONS") -> dict[str, tuple[Declared, list[str]]]:
    """Option of `train` (VAL_OPTIONS: of `val`) that not all read: what declares it, and which models read it."""
    found: dict[str, tuple[Declared, list[str]]] = {}
    for name, kind in standard_models().items():
        options = declared(kind, attribute)
        for option in options.known:
            found.setdefault(option, (options, []))[1].append(name)
    return found


def top_readers() -> dict[str, tuple[Declared, list[str]]]:
    """The same for options at the top level of a file, which models and datasets declare."""
    found: dict[str, tuple[Declared, list[str]]] = {}
    for registry in (MODEL_REGISTRY, DATASET_REGISTRY):
        for _, kind in registry:
            options = declared(kind, "TOP_OPTIONS")
            for option in options.known:
                names = found.setdefault(option, (options, []))[1]
                names += [declaring(kind).__name__] if declaring(kind).__name__ not in names else []
    return found


def _known(several: dict[str, tuple[Declared, list[str]]]) -> Known:
    return {name: options.known[name] for name, (options, _) in several.items()}


def elsewhere(values: dict[str, Any]) -> dict[str, set[str]]:
    """Section: options that exist there in this file; for hints about options in the wrong section."""
    data = set(Loader.model_fields).union(*(declared(kind).all_names for _, kind in DATASET_REGISTRY))
    sections = {"val": ValOptions, "path": PathOptions, "logger": LoggerOptions}
    names = {section: set(schema.model_fields) for section, schema in sections.items()}
    names["train"] = {*TrainLoop.model_fields, *readers()}
    names["val"] |= readers("VAL_OPTIONS").keys()
    network = as_mapping(values.get("network_g"), (), Report())
    arguments = argument_names(find(ARCH_REGISTRY, network.get("type")))
    return {"": {*Options.model_fields, *top_readers()}, **names, "datasets.*": data, "network_g": arguments}


def check_structure(values: dict[str, Any], report: Report, *, is_train: bool) -> dict[str, Any]:
    """All options with the values that their rules make of them; every problem goes to the report."""
    networks = [name for name in values if name.startswith("network_")]
    known = {**_known(top_readers()), **dict.fromkeys(networks, (Options, "network_d")), **fields_of(Options)}
    checked = check_section(known, values, (), report, skip=("path", "train", "val"))
    model_type = values.get("model_type")
    model = (
        named(MODEL_REGISTRY, model_type, ("model_type",), report, kind="model")
        if isinstance(model_type, str)
        else None
    )
    if "path" in values:
        checked["path"] = _check_path(values["path"], networks, model, report)
    for name in networks:
        if isinstance(values[name], dict):
            checked[name] = _check_network(values[name], (name,), report)
    checked["datasets"] = _check_datasets(values.get("datasets"), report)
    checked["train"] = _check_train(values, model, report, is_train=is_train)
    checked["val"] = _check_val(values.get("val"), model, report)
    # The order and the presence of keys are the file's.
    return {name: checked[name] for name in values}


def named_classes(values: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys of the section, class) of everything that a file names and that may declare rules."""
    if (model := find(MODEL_REGISTRY, values.get("model_type"))) is not None:
        yield (), model
    train = as_mapping(values.get("train"), (), Report())
    sections = [((name,), values[name], ARCH_REGISTRY) for name in values if name.startswith("network_")]
    sections += [
        (("datasets", name), one, DATASET_REGISTRY)
        for name, one in as_mapping(values.get("datasets"), (), Report()).items()
    ]
    sections += [(("train", name), train[name], LOSS_REGISTRY) for name in train if name.endswith("_opt")]
    for keys, section, registry in sections:
        kind = find(registry, section.get("type")) if isinstance(section, dict) else None
        if kind is not None:
            yield keys, kind


def _check_path(given: Any, networks: list[str], model: Any, report: Report) -> Any:
    given = as_mapping(given, ("path",), report)
    labels = {name.removeprefix("network_") for name in networks}
    kinds = [model, *standard_models().values()]  # option files are handed from one model to the next
    labels |= {helper.name for kind in kinds for helper in getattr(kind, "frozen_networks", ())}
    also: Known = {
        f"{prefix}_{label}": (PathOptions, name) for prefix, name in _PATH_FIELDS.items() for label in labels
    }
    lost = [name for name in given if _label(name) not in (None, *labels) and name not in PathOptions.model_fields]
    for name in lost:
        report.problem(("path", name), f"there is no section network_{_label(name)} that this could be for")
    return check_section({**also, **fields_of(PathOptions)}, given, ("path",), report, skip=lost)


def _label(name: str) -> str | None:
    prefix = next((prefix for prefix in _PATH_FIELDS if name.startswith(f"{prefix}_")), None)
    return name.removeprefix(f"{prefix}_") if prefix else None


def _check_network(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    arch = check_type(ARCH_REGISTRY, given, keys, report, kind="arch")
    return check_arguments(arch, given, keys, report) if arch else given


def _check_datasets(given: Any, report: Report) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    # That `datasets` itself is a section is a matter of the top level's fields.
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
    if dataset is None:  # the type has a problem already; which keys it takes cannot be said
        known = fields_of(Loader)
        return check_section(known, given, keys, report, skip={"type"} | (given.keys() - known.keys()))
    options = declared(dataset, base=Loader)
    return check_declared(options, given, keys, report, what=f"dataset type {given['type']}")


def _check_train(values: dict[str, Any], model: Any, report: Report, *, is_train: bool) -> Any:
    if is_train and values.get("train") is None:
        report.problem(("train",), "missing: a training needs losses, an optimizer and total_iter")
    given = as_mapping(values.get("train"), ("train",), report)
    if not isinstance(values.get("train"), dict):
        return values.get("train")
    keys, standard = ("train",), model is None or is_standard(model)
    options = Declared(fields_of(TrainLoop), whole=True) if model is None else declared(model, base=TrainLoop)
    own = set(options.all_names)
    if standard:  # what only other models read has no effect, which a warning says
        options.known = {**_known(readers()), **options.known}
    built = [name for name in given if name.endswith("_opt") or name.startswith("optim_")]
    # Whatever the model: these two are what BasicSR calls objects to build.
    others = [] if standard else [name for name in built if name not in options.all_names]
    others += [name for name in given if standard and name not in own and given[name] is None]
    optional = set(options.known) if not is_train else set(options.known) - own
    what = f"model type {getattr(model, '__name__', '')}"
    checked = check_declared(options, given, keys, report, what=what, skip=others, optional=optional)
    for name in sorted(built):
        section = as_mapping(given[name], (*keys, name), report if name in others else Report())
        if isinstance(given[name], dict):
            check = _check_optimizer if name.startswith("optim_") else _check_loss
            checked[name] = check(section, (*keys, name), report)
    if scheduler := as_mapping(given.get("scheduler"), (), Report()):
        checked["scheduler"] = _check_scheduler(scheduler, (*keys, "scheduler"), report, strict=standard)
    return checked


def _check_val(given: Any, model: Any, report: Report) -> Any:
    val = as_mapping(given, ("val",), report)
    if not val:
        return given
    # BasicSR's models for video and faces read more options here.
    options = declared(model, "VAL_OPTIONS", base=ValOptions)
    if model is None or is_standard(model):
        options.whole = True
        options.known = {**_known(readers("VAL_OPTIONS")), **options.known}
    what = f"val of model type {getattr(model, '__name__', '')}"
    checked = check_declared(options, val, ("val",), report, what=what)
    if isinstance(val.get("metrics"), dict):
        metrics = val["metrics"].items()
        checked["metrics"] = {name: _check_metric(one, ("val", "metrics", name), report) for name, one in metrics}
    return checked


def _check_metric(given: Any, keys: Keys, report: Report) -> Any:
    """One entry of `val.metrics`; what the metric does not take is a problem even where **kwargs eats it."""
    if given is None:
        report.problem(keys, "expected a section (key: value), found nothing (~); remove the metric")
    options = as_mapping(given, keys, report)
    metric = check_type(METRIC_REGISTRY, options, keys, report, kind="metric") if isinstance(given, dict) else None
    if metric is None:
        return given
    also: Known = {"better": (MetricArguments, "better")}
    section, name = {**also, **arguments_of(metric)}["better"]
    # BasicSR takes a metric whose options do not say so for one whose highest value is the best.
    better = {} if section.model_fields[name].default == "higher" else {"better": section.model_fields[name].default}
    check = partial(check_arguments, leave_out=("img", "img2"), also=also, any_keyword=False)
    return better | check(metric, options, keys, report)


def _check_loss(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    loss = check_type(LOSS_REGISTRY, given, keys, report, kind="loss")
    also = fields_of(VggOptions) if keys[-1] == "perceptual_opt" else None
    return given if loss is None else check_arguments(loss, given, keys, report, also=also)


def _check_optimizer(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    known = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    name = given.get("type")
    if not isinstance(name, str) or name not in known:
        near = nearest(name, known) if isinstance(name, str) else None
        hint = f"did you mean {near!r}? " if near else ""
        report.problem((*keys, "type"), f"no optimizer of torch.optim is called {name!r}; {hint}Known: {_list(known)}")
        return given
    return check_arguments(known[name], given, keys, report, leave_out=("params",))


def _check_scheduler(given: dict[str, Any], keys: Keys, report: Report, *, strict: bool) -> dict[str, Any]:
    name = given.get("type")
    if isinstance(name, str) and name in SCHEDULERS:
        return check_section(fields_of(SCHEDULERS[name]), given, keys, report)
    if strict or not isinstance(name, str):
        near = nearest(name, SCHEDULERS) if isinstance(name, str) else None
        hint = f"did you mean {near!r}? " if near else ""
        report.problem((*keys, "type"), f"no scheduler is called {name!r}; {hint}Known: {_list(SCHEDULERS)}")
    else:
        report.warn(keys, f"keys of scheduler {name!r} are not checked (it is the model's own)")
    return given


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
