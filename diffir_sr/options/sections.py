"""Checking a section against its schema, each option on its own, so that one mistake never hides another."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from diffir_sr.options.fields import Built, Section
from diffir_sr.options.report import Keys, Report, found


def check_section(
    schema: type[Section],
    given: Mapping[str, Any],
    keys: Keys,
    report: Report,
    *,
    also: Mapping[str, str] | None = None,
    skip: Iterable[str] = (),
) -> dict[str, Any]:
    """`given` with every value as its schema wants it (5000.0 as 5000 where a count belongs).

    `also` names further options and the field whose rules they follow. `skip` names options that others
    check. Problems go to the report; values with problems stay as they are.
    """
    fields, also = schema.model_fields, also or {}
    values = dict(given)
    for name in [name for name in given if name not in skip]:
        field = also.get(name, name)
        if field in fields:
            values[name] = _check_field(schema, field, given[name], (*keys, name), report)
        else:
            report.unknown((*keys, name), [*fields, *also])
    for name, field in fields.items():
        if field.is_required() and name not in given and name not in skip:
            report.problem((*keys, name), f"missing: {field.description}")
    return values


def check_model(schema: type[BaseModel], given: Mapping[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    """`given` as a plugin's pydantic model wants it; the model's own rules across options hold too."""
    try:
        checked = schema.model_validate(dict(given))
    except ValidationError as error:
        details = error.errors(include_url=False)
        # Of the choices `number or tensor`, a file can hold the number alone: only what it can hold is told.
        told = [detail for detail in details if detail["type"] != "is_instance_of"] or details
        for detail in told:
            if detail["type"] == "extra_forbidden":
                report.unknown((*keys, *detail["loc"]), schema.model_fields)
            else:
                report.problem((*keys, *detail["loc"]), _explain(detail))
        return dict(given)
    return {**given, **checked.model_dump(exclude_unset=True, by_alias=True)}


def as_mapping(value: Any, keys: Keys, report: Report) -> dict[str, Any]:
    """`value` if it is a section; otherwise nothing, and a problem unless it is absent or ~."""
    if isinstance(value, dict):
        return value
    if value is not None:
        report.problem(keys, f"expected a section (key: value), found {found(value)}")
    return {}


def nested_section(field: FieldInfo) -> type[Section] | None:
    """The schema of a field that is a section of its own, or None."""
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, Section):
            return kind
    return None


def check_value(adapter: TypeAdapter[Any], value: Any, keys: Keys, report: Report) -> Any:
    """`value` as the adapter's type wants it, or unchanged with problems in the report."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # Of the choices `number or tensor`, a file can hold the number alone: only what it can hold is told.
        told = [detail for detail in details if detail["type"] != "is_instance_of"] or details
        for detail in told:
            report.problem((*keys, *(step for step in detail["loc"] if isinstance(step, int))), _explain(detail))
        return value


def _check_field(schema: type[Section], name: str, value: Any, keys: Keys, report: Report) -> Any:
    field = schema.model_fields[name]
    nested = nested_section(field)
    if nested is not None and isinstance(value, dict):
        return check_section(nested, value, keys, report)
    if nested is not None or _is_built(field):
        as_mapping(value, keys, report)
        if value is None and field.is_required():
            report.problem(keys, f"expected a section (key: value), found nothing: {field.description}")
        return value
    return check_value(_adapter(schema, name), value, keys, report)


def _is_built(field: FieldInfo) -> bool:
    return Built in (field.annotation, *typing.get_args(field.annotation))


@cache
def _adapter(schema: type[Section], name: str) -> TypeAdapter[Any]:
    field = schema.model_fields[name]
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(strict=True))


_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "list_type": "a list, [a, b, ...]",
    "tuple_type": "a list, [a, b, ...]",
    "dict_type": "a section (key: value)",
    "model_type": "a section (key: value)",
    "too_short": "{min_length} or more",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "literal_error": "{expected}",
    "expected": "{what}",
    "string_too_short": "text",
    "is_instance_of": "an object of {class} (which YAML cannot hold)",
}


def _explain(detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return "missing (required)"
    if kind not in _EXPECTED:
        return f"{detail['msg']}, found {found(value)}"
    what = _EXPECTED[kind].format(**detail.get("ctx", {}))
    quote = kind == "string_type" and isinstance(value, (bool, int, float)) or type(value).__name__ == "date"
    return f"expected {what}, found {found(value)}" + ("; put it in quotes" if quote else "")
