"""Checking the section `train` and the metrics: losses, optimizers, schedulers by what will be called."""

from __future__ import annotations

from typing import Any, Literal

import torch
from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import TypeAdapter

from diffir_sr.options.constructors import check_arguments, check_type
from diffir_sr.options.declared import check_declared
from diffir_sr.options.report import Keys, Report, nearest
from diffir_sr.options.schema_train import SCHEDULERS, TrainLoop, TrainOptions
from diffir_sr.options.sections import as_mapping, check_section

OUR_MODELS = (
    "DiffIRS1Model",
    "DiffIRS2Model",
    "DiffIRGANS2Model",
    "DiffIRInpaintS1Model",
    "DiffIRInpaintS2Model",
)
BASICSR_MODELS = ("SRModel", "SRGANModel", "ESRGANModel")
_VGG_PATH = {"vgg_path": TypeAdapter(str)}  # read before BasicSR builds its PerceptualLoss, which has no such argument
_BETTER = {"better": TypeAdapter(Literal["higher", "lower"])}
# BasicSR takes a metric whose options do not say so for one whose highest value is the best.
_LOWER_IS_BETTER = ("calculate_niqe", "calculate_lpips", "calculate_dists")


def kinship(model: Any) -> Literal["known", "derived", "other"]:
    """Whether a model class is ours or BasicSR's for super-resolution, derived from ours, or neither."""
    names = [kind.__name__ for kind in getattr(model, "__mro__", ())]
    if (
        model is None or names[:1] and names[0] in OUR_MODELS + BASICSR_MODELS
    ):  # no model: its name has a problem already
        return "known"
    return "derived" if set(OUR_MODELS) & set(names) else "other"


def check_train(given: dict[str, Any], model: Any, report: Report, *, is_train: bool) -> dict[str, Any]:
    """The section `train` with values as its rules want them; a test needs none of its options."""
    keys, kind = ("train",), kinship(model)
    schema = TrainLoop if kind == "other" else TrainOptions
    needed = {name for name, field in schema.model_fields.items() if field.is_required()}
    optional = needed if not is_train else needed - {"total_iter"} if kind == "other" else set()
    absent = optional - given.keys()
    built = {name for name in given if name.endswith("_opt") or name.startswith("optim_")}
    if kind == "known":
        checked = check_section(schema, given, keys, report, skip=absent)
    else:
        others = built - schema.model_fields.keys()
        plain = {name: value for name, value in given.items() if name not in others}
        what = f"model type {model.__name__}"
        checked = given | check_declared(model, schema, plain, keys, report, what=what, skip=absent)
    for name in sorted(built):
        options = as_mapping(given[name], (*keys, name), report if name not in schema.model_fields else Report())
        if isinstance(given[name], dict):
            check = _check_optimizer if name.startswith("optim_") else _check_loss
            checked[name] = check(options, (*keys, name), report)
    if scheduler := as_mapping(given.get("scheduler"), (), Report()):
        checked["scheduler"] = _check_scheduler(scheduler, (*keys, "scheduler"), report, strict=kind != "other")
    return checked


def check_metric(given: Any, keys: Keys, report: Report) -> Any:
    """One entry of `val.metrics`; what the metric does not take is a problem even where **kwargs eats it."""
    options = as_mapping(given, keys, report)
    if not isinstance(given, dict):
        return given
    metric = check_type(METRIC_REGISTRY, options, keys, report, kind="metric")
    if metric is None:
        return given
    better = {"better": "lower"} if options["type"] in _LOWER_IS_BETTER else {}
    left_out = ("img", "img2")
    return better | check_arguments(metric, options, keys, report, leave_out=left_out, also=_BETTER, any_keyword=False)


def _check_loss(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    loss = check_type(LOSS_REGISTRY, given, keys, report, kind="loss")
    if loss is None:
        return given
    also = _VGG_PATH if keys[-1] == "perceptual_opt" else None
    return check_arguments(loss, given, keys, report, also=also)


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
        return check_section(SCHEDULERS[name], given, keys, report)
    if strict or not isinstance(name, str):
        near = nearest(name, SCHEDULERS) if isinstance(name, str) else None
        hint = f"did you mean {near!r}? " if near else ""
        report.problem((*keys, "type"), f"no scheduler is called {name!r}; {hint}Known: {_list(SCHEDULERS)}")
    else:
        report.warn(keys, f"keys of scheduler {name!r} are not checked (it is the model's own)")
    return given


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
