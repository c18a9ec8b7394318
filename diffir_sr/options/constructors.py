"""Checking the arguments of what is built from options, against the signature of what will be called."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from basicsr.utils.registry import Registry
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

from diffir_sr.options.report import Keys, Report, found, nearest
from diffir_sr.options.sections import check_value

_SUFFIX = "_basicsr"  # BasicSR registers some of its classes under names with this ending and finds them without
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def find(registry: Registry, name: Any) -> Any | None:
    """What BasicSR would build for this name, or None."""
    known = dict(iter(registry))  # its keys() without [] confuses dict()
    return known.get(name, known.get(f"{name}{_SUFFIX}")) if isinstance(name, str) else None


def check_type(registry: Registry, given: Mapping[str, Any], keys: Keys, report: Report, *, kind: str) -> Any | None:
    """What `given["type"]` names; None, with a problem, if there is no type or nothing of that name."""
    if "type" not in given:
        report.problem((*keys, "type"), f"missing: the name of {_a(kind)}")
        return None
    return named(registry, given["type"], (*keys, "type"), report, kind=kind)


def named(registry: Registry, name: Any, keys: Keys, report: Report, *, kind: str) -> Any | None:
    """What a name stands for in a registry, or None with a problem that lists what there is."""
    thing = find(registry, name)
    if thing is not None:
        return thing
    if not isinstance(name, str):
        report.problem(keys, f"expected the name of {_a(kind)}, found {found(name)}")
        return None
    origins = {known.removesuffix(_SUFFIX): getattr(thing, "__module__", "?") for known, thing in registry}
    near = nearest(name, origins)
    hint = f"did you mean {near!r}? " if near else ""
    listed = ", ".join(f"{known} ({origin})" for known, origin in sorted(origins.items())) or "none"
    report.problem(
        keys,
        f"no {kind} is called {name!r}; {hint}Known: {listed}. Plugins add names: installed, or under 'plugins'",
    )
    return None


def check_arguments(
    target: Callable[..., Any],
    given: Mapping[str, Any],
    keys: Keys,
    report: Report,
    *,
    leave_out: Iterable[str] = (),
    also: Mapping[str, TypeAdapter[Any]] | None = None,
    any_keyword: bool = True,
) -> dict[str, Any]:
    """`given` with values as the annotations of `target` want them; `type` stays as it is.

    `leave_out` names parameters that are not for option files, `also` options that `target` does not take but
    somebody reads. `any_keyword` says whether a `**kwargs` of `target` makes every name right.
    """
    parameters = _parameters(target, frozenset(leave_out))
    also = also or {}
    if parameters is None:
        return dict(given)
    named = {name: p for name, p in parameters.items() if p.kind not in _VARIABLE}
    open_ended = any_keyword and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    values = dict(given)
    for name in [name for name in given if name != "type"]:
        adapter = also[name] if name in also else _annotation(target, name)
        if name in named or name in also:
            values[name] = _check_argument(adapter, named.get(name), given[name], (*keys, name), report)
        elif not open_ended:
            report.unknown((*keys, name), [*named, *also])
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            report.problem((*keys, name), f"missing: {_name_of(target)} needs it")
    return values


def argument_names(registry: Registry, name: Any) -> set[str]:
    """What the constructor that a name stands for can be given; nothing if there is none."""
    target = find(registry, name)
    parameters = _parameters(target, frozenset()) if target is not None else None
    return {name for name, parameter in (parameters or {}).items() if parameter.kind not in _VARIABLE}


def _check_argument(
    adapter: TypeAdapter[Any] | None,
    parameter: inspect.Parameter | None,
    value: Any,
    keys: Keys,
    report: Report,
) -> Any:
    if adapter is None:
        return value
    default = parameter.default if parameter is not None else inspect.Parameter.empty
    if value is None and default is None:  # "x: int = None" means that None is fine
        return value
    checked = check_value(adapter, value, keys, report)
    # Anything else than plain values would not survive being logged and copied by BasicSR.
    return checked if isinstance(checked, (bool, int, float, str, list)) else value


@cache
def _parameters(target: Callable[..., Any], leave_out: frozenset[str]) -> dict[str, inspect.Parameter] | None:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # written in C, without a signature
        return None
    return {name: parameter for name, parameter in parameters.items() if name not in leave_out}


@cache
def _annotation(target: Callable[..., Any], name: str) -> TypeAdapter[Any] | None:
    function: Any = target.__init__ if isinstance(target, type) else target
    try:
        # Each on its own: one name that cannot be resolved must not leave the others unchecked.
        only = types.SimpleNamespace(__annotations__={name: function.__annotations__[name]})
        hint = typing.get_type_hints(only, function.__globals__, include_extras=True)[name]
        return None if hint is None else TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (KeyError, NameError, TypeError, AttributeError, PydanticSchemaGenerationError, PydanticUserError):
        return None  # an annotation that pydantic cannot read checks nothing


def _name_of(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
