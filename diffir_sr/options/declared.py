"""Options of other packages' classes: checked if the class declares OPTIONS, else passed with a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import BaseModel

from diffir_sr.options.fields import Section
from diffir_sr.options.report import Keys, Report
from diffir_sr.options.sections import check_model, check_section


def check_declared(
    owner: Any,
    base: type[Section],
    given: Mapping[str, Any],
    keys: Keys,
    report: Report,
    *,
    what: str,
    skip: Iterable[str] = (),
) -> dict[str, Any]:
    """Check the options that `base` knows, and the others as the class attribute OPTIONS of their owner says.

    OPTIONS is a pydantic model class or an iterable of names. Without it the others pass with one warning.
    """
    declared = getattr(owner, "OPTIONS", None)
    model = declared if isinstance(declared, type) and issubclass(declared, BaseModel) else None
    theirs = _names(model) if model else set(cast("Iterable[str]", declared or ()))
    others = given.keys() - base.model_fields.keys()
    checked = check_section(base, given, keys, report, skip={*skip, *others, *theirs})
    if declared is None:
        if others:
            listed = ", ".join(sorted(others))
            report.warn(keys, f"keys of {what} are not checked (the class declares no OPTIONS): {listed}")
        return checked
    if model:
        checked |= check_model(model, {name: given[name] for name in given if name in theirs}, keys, report)
    if not (model and model.model_config.get("extra") == "allow"):
        for name in sorted(others - theirs):
            report.unknown((*keys, name), theirs | base.model_fields.keys())
    return checked


def _names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}
