"""Checking a section: against fields, against the signature of a constructor, against the declarations of classes.

Each option is checked individually, so that one mistake never hides another."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, cast, get_args, get_origin

from basicsr.utils.registry import Registry
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from diffir_sr.errors import OptionError
from diffir_sr.families import declaring
from diffir_sr.option_types import Built, Keys, Section, explain, found, inherited


@dataclass(frozen=True)
class Place:
    """Position of a key: a file and a line, or a command line argument (line 0)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass
class Report:
    """Collects problems and warnings; `known_options` (section: names) is used for hints about misplaced keys."""

    known_options: Mapping[str, Iterable[str]] = field(default_factory=dict)
    problems: list[tuple[Keys, str]] = field(default_factory=list)
    warnings: list[tuple[Keys, str]] = field(default_factory=list)

    def problem(self, keys: Keys, text: str) -> None:
        """A problem that must be fixed before a run."""
        self.problems.append((keys, text))

    def warn(self, keys: Keys, text: str) -> None:
        """A warning, which does not prevent a run."""
        self.warnings.append((keys, text))

    def unknown(self, keys: Keys, known: Iterable[str]) -> None:
        """An unknown option; the message suggests what may have been meant."""
        self.problem(keys, f"unknown option; {_hint(keys, sorted(known), self.known_options)}")

    def touches(self, keys: Keys) -> bool:
        """Whether there is a problem at this value, around it or inside it."""
        return any(at[: len(keys)] == keys[: len(at)] for at, _ in self.problems)


def fail_on_problems(report: Report, places: Mapping[Keys, Place], *, file: str) -> None:
    """If there are problems, raise one OptionError that lists all of them in the order of the lines."""
    if not report.problems:
        return
    findings = located(report.problems, places)
    count = f"{file}: {len(findings)} problems\n" if len(findings) > 1 else ""
    raise OptionProblems(count + "\n".join(map(str, findings)), findings)


@dataclass(frozen=True)
class Finding:
    """A problem or warning with its position."""

    file: str
    line: int  # 0: a command line argument
    option: str  # section.key
    message: str

    def __str__(self) -> str:
        return f"{Place(self.file, self.line)}: {self.option}: {self.message}"


class OptionProblems(OptionError):  # noqa: N818 - several errors at once
    """All problems of an option file."""

    def __init__(self, text: str, findings: Sequence[Finding]) -> None:
        super().__init__(text)
        self.findings = tuple(findings)


def located(notes: Iterable[tuple[Keys, str]], places: Mapping[Keys, Place]) -> list[Finding]:
    """Each note once, with its position, sorted by file (main file first) and line."""
    order = {file: rank for rank, file in enumerate(dict.fromkeys(place.file for place in places.values()))}
    found = [(place_of(keys, places), keys, text) for keys, text in notes]
    found.sort(key=lambda note: (note[0].line == 0, order.get(note[0].file, 0), note[0].line))
    return list(dict.fromkeys(Finding(place.file, place.line, dotted(keys), text) for place, keys, text in found))


def place_of(keys: Keys, places: Mapping[Keys, Place]) -> Place:
    """Position of a key, or of the nearest section around it if the key is absent."""
    while keys not in places:
        keys = keys[:-1]
    return places[keys]


def dotted(keys: Keys) -> str:
    """('train', 'periods', 0) as 'train.periods[0]'."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text or "the file"


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name most similar to `name`, ignoring case, or None."""
    by_lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def _hint(keys: Keys, known: list[str], known_options: Mapping[str, Iterable[str]]) -> str:
    name, here = str(keys[-1]), dotted(keys[:-1]) if len(keys) > 1 else ""
    here = "datasets.*" if here.startswith("datasets.") else here
    others = {section: list(names) for section, names in known_options.items() if section != here}
    if very_near := nearest(name, known, cutoff=0.8):
        return f"did you mean {very_near!r}?"
    for section, names in others.items():
        if name in names:
            return f"it belongs {f'under {section!r}' if section else 'at the top level'}"
    if near := nearest(name, known):
        return f"did you mean {near!r}?"
    for section, names in others.items():
        if near := nearest(name, names, cutoff=0.8):
            return f"did you mean {near!r} {f'under {section!r}' if section else 'at the top level'}?"
    return f"known options here: {', '.join(known) or 'none'}"


Known = Mapping[str, tuple[type[Section], str]]  # option: the section and the field that define it
_SUFFIX = (
    "_basicsr"  # BasicSR registers some of its classes under names with this suffix, and also finds them without it
)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


# Sections


def fields_of(section: type[Section]) -> dict[str, tuple[type[Section], str]]:
    """The options of a section."""
    return {name: (section, name) for name in section.model_fields}


def check_section(
    known: Known,
    given: Mapping[str, Any],
    keys: Keys,
    report: Report,
    *,
    skip: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> dict[str, Any]:
    """`given` with every value converted as its field requires (5000.0 to 5000 for a count).

    `skip` names options that are checked elsewhere, `optional` those that may be absent although their field is
    required. Problems go to the report; values with problems stay unchanged.
    """
    values, skip = dict(given), set(skip)
    for name in [name for name in given if name not in skip]:
        if name in known:
            values[name] = _check_field(*known[name], given[name], (*keys, name), report)
        else:
            report.unknown((*keys, name), known)
    for name, (section, field_name) in known.items():
        info = section.model_fields[field_name]
        if info.is_required() and name == field_name and name not in given and name not in {*skip, *optional}:
            report.problem((*keys, name), f"missing: {info.description}")
    return values


def check_model(schema: type[BaseModel], given: Mapping[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    """`given` converted by a plugin's pydantic model, whose own rules across options are applied, too."""
    try:
        checked = schema.model_validate(dict(given))
    except ValidationError as error:
        for detail in _possible(error):
            if detail["type"] == "extra_forbidden":
                report.unknown((*keys, *detail["loc"]), _fields_at(schema, detail["loc"]))
            else:
                report.problem((*keys, *detail["loc"]), explain(detail))
        return dict(given)
    return {**given, **checked.model_dump(exclude_unset=True, by_alias=True)}


def _fields_at(schema: type[BaseModel], way: Sequence[str | int]) -> Iterable[str]:
    """The options of the model inside `schema`, or inside its lists and mappings, that a way from its top leads to."""
    for key in way[:-1]:
        if key in schema.model_fields:
            kinds: list[Any] = [schema.model_fields[str(key)].annotation]
            while kinds and not (get_origin(kinds[0]) is None and issubclass(kinds[0], BaseModel)):
                kinds = [*kinds[1:], *get_args(kinds[0])]
            schema = kinds[0] if kinds else schema
    return schema.model_fields


def as_mapping(value: Any, keys: Keys, report: Report) -> dict[str, Any]:
    """`value` if it is a section; otherwise an empty one, and a problem unless it is absent or ~."""
    if isinstance(value, dict):
        return value
    if value is not None:
        report.problem(keys, f"expected a section (key: value), found {found(value)}")
    return {}


def nested_section(info: FieldInfo) -> type[Section] | None:
    """The section type of a field, or None."""
    for kind in (info.annotation, *typing.get_args(info.annotation)):
        if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, Section):
            return kind
    return None


def is_built(info: FieldInfo) -> bool:
    """Whether a field describes an object with a type and arguments."""
    return Built in (info.annotation, *typing.get_args(info.annotation))


def check_value(adapter: TypeAdapter[Any], value: Any, keys: Keys, report: Report) -> Any:
    """`value` converted to the adapter's type, or unchanged with problems in the report."""
    try:
        # true is an int in Python, but not in an option file.
        return adapter.validate_python(value, strict=True if isinstance(value, bool) else None)
    except ValidationError as error:
        for detail in _possible(error):
            steps = (step for step in detail["loc"] if isinstance(step, int))
            report.problem((*keys, *steps), explain(detail))
        return value


def _possible(error: ValidationError) -> list[Any]:
    """Of alternatives such as `number or tensor`, report only those that a file can contain."""
    details = error.errors(include_url=False)
    return [detail for detail in details if detail["type"] != "is_instance_of"] or details


def _check_field(section: type[Section], name: str, value: Any, keys: Keys, report: Report) -> Any:
    info = section.model_fields[name]
    nested = nested_section(info)
    if nested is not None and isinstance(value, dict):
        return check_section(fields_of(nested), value, keys, report)
    if nested is not None or is_built(info):
        as_mapping(value, keys, report)
        if value is None and info.is_required():
            report.problem(keys, f"missing: {info.description}")
        return value
    return check_value(_adapter(section, name), value, keys, report)


@cache
def _adapter(section: type[Section], name: str) -> TypeAdapter[Any]:
    info = section.model_fields[name]
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    return TypeAdapter(kind, config=ConfigDict(strict=True))


# Names in registries


def find(registry: Registry, name: Any) -> Any | None:
    """The class that BasicSR would build for this name, or None."""
    known = dict(iter(registry))  # its keys() without [] confuses dict()
    return known.get(name, known.get(f"{name}{_SUFFIX}")) if isinstance(name, str) else None


def check_type(registry: Registry, given: Mapping[str, Any], keys: Keys, report: Report, *, kind: str) -> Any | None:
    """The class named by `given["type"]`; None, with a problem, if the type is missing or unknown."""
    if "type" not in given:
        report.problem((*keys, "type"), f"missing: the name of {_a(kind)}")
        return None
    return named(registry, given["type"], (*keys, "type"), report, kind=kind)


def named(registry: Registry, name: Any, keys: Keys, report: Report, *, kind: str) -> Any | None:
    """The class with a name in a registry, or None with a problem that lists the known names."""
    thing = find(registry, name)
    if thing is not None:
        return thing
    if not isinstance(name, str):
        report.problem(keys, f"expected the name of {_a(kind)}, found {found(name)}")
        return None
    ours_last = sorted(registry, key=lambda entry: not entry[0].endswith(_SUFFIX))
    origins = {known.removesuffix(_SUFFIX): getattr(thing, "__module__", "?") for known, thing in ours_last}
    near = nearest(name, origins)
    hint = f"did you mean {near!r}? " if near else ""
    listed = ", ".join(f"{known} ({origin})" for known, origin in sorted(origins.items())) or "none"
    report.problem(
        keys,
        f"no {kind} is named {name!r}; {hint}Known: {listed}. Plugins add names: installed, or under 'plugins'",
    )
    return None


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


# Declarations of classes


@dataclass
class Declared:
    """The options that a class and its base classes declare; see `option_types`."""

    known: dict[str, tuple[type[Section], str]] = field(default_factory=dict)
    models: list[type[BaseModel]] = field(default_factory=list)  # pydantic models of plugins, checked as a whole
    names: set[str] = field(default_factory=set)  # known only by name
    whole: bool = False  # whether the class itself declares its options, so that all others are wrong

    @property
    def all_names(self) -> set[str]:
        """All known options."""
        return {*self.known, *self.names, *(name for model in self.models for name in _names(model))}


def declared(kind: Any, attribute: str = "OPTIONS", *, base: type[Section] | None = None) -> Declared:
    """The options that a class declares in addition to those of `base`."""
    found, source = Declared(fields_of(base) if base else {}), declaring(kind)
    found.whole = attribute in getattr(source, "__dict__", {})
    for one in reversed(source.__mro__) if isinstance(source, type) else ():
        for name in vars(one).get("WITHOUT_OPTIONS", ()):
            found.known.pop(name, None)
            found.names.discard(name)
        given = vars(one).get(attribute, ())
        if isinstance(given, type) and issubclass(given, Section):
            found.known |= fields_of(given)
        elif isinstance(given, type) and issubclass(given, BaseModel):
            found.models.append(given)
        else:
            found.names |= set(cast("Iterable[str]", given))
    return found


def gathered(kind: Any, attribute: str) -> Iterator[Any]:
    """The entries of the tuples named `attribute` (RULES, ...) of a class and its base classes."""
    for several in inherited(declaring(kind), attribute):
        yield from several


def check_declared(
    options: Declared,
    given: Mapping[str, Any],
    keys: Keys,
    report: Report,
    *,
    what: str,
    skip: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> dict[str, Any]:
    """Check the declared options; if the class itself declares none, unknown options pass with one warning."""
    theirs = {*options.names, *(name for model in options.models for name in _names(model))}
    others = given.keys() - options.all_names - set(skip)
    checked = check_section(options.known, given, keys, report, skip={*skip, *others, *theirs}, optional=optional)
    for model in options.models:
        mine = _names(model)
        checked |= check_model(model, {name: given[name] for name in given if name in mine}, keys, report)
    if others and not options.whole:
        listed = ", ".join(sorted(others))
        report.warn(keys, f"keys of {what} are not checked (the class declares no OPTIONS): {listed}")
    elif not any(model.model_config.get("extra") == "allow" for model in options.models):
        for name in sorted(others):
            report.unknown((*keys, name), options.all_names)
    return checked


def _names(model: type[BaseModel]) -> set[str]:
    return {info.alias or name for name, info in model.model_fields.items()}


# Arguments of constructors


def check_arguments(
    target: Callable[..., Any],
    given: Mapping[str, Any],
    keys: Keys,
    report: Report,
    *,
    leave_out: Iterable[str] = (),
    also: Known | None = None,
    any_keyword: bool = True,
) -> dict[str, Any]:
    """`given` converted by the ARGUMENTS of a class, or otherwise by the annotations of its constructor.

    `type` stays as it is. `leave_out` names parameters that are not options, `also` names options that `target` does
    not take but that are read elsewhere. `any_keyword`: whether a `**kwargs` of `target` accepts every name.
    """
    parameters, bounds = _parameters(target, frozenset(leave_out)), {**(also or {}), **arguments_of(target)}
    if parameters is None:
        return dict(given)
    named = {name: p for name, p in parameters.items() if p.kind not in _VARIABLE}
    # Some are not arguments of the constructor, but are read before. These have defaults; the others need none.
    read_before = {name for name, (section, _) in bounds.items() if not section.model_fields[name].is_required()}
    open_ended = any_keyword and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    values = dict(given)
    for name in [name for name in given if name != "type"]:
        if name in named or name in read_before:
            adapter = _adapter(*bounds[name]) if name in bounds else _annotation(target, name)
            values[name] = _check_argument(adapter, named.get(name), given[name], (*keys, name), report)
        elif not open_ended:
            report.unknown((*keys, name), [*named, *read_before])
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            report.problem((*keys, name), f"missing: {getattr(target, '__name__', target)} needs it")
    return values


def arguments_of(target: Any) -> dict[str, tuple[type[Section], str]]:
    """The arguments that a class, or its substitute, describes."""
    described = getattr(declaring(target), "ARGUMENTS", None)
    return fields_of(described) if described is not None else {}


def argument_names(target: Any) -> set[str]:
    """The parameters of a constructor; none if it has no signature."""
    parameters = _parameters(target, frozenset()) if target is not None else None
    return {name for name, parameter in (parameters or {}).items() if parameter.kind not in _VARIABLE}


def signature_of(target: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a constructor by name; nothing where it has no signature."""
    return _parameters(target, frozenset()) or {}


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
    if value is None and default is None:  # "x: int = None" means that None is allowed
        return value
    checked = check_value(adapter, value, keys, report)
    # BasicSR logs and copies options, so only plain values are possible.
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
        # Individually, so that one name that cannot be resolved does not leave the others unchecked.
        only = types.SimpleNamespace(__annotations__={name: function.__annotations__[name]})
        hint = typing.get_type_hints(only, function.__globals__, include_extras=True)[name]
        return None if hint is None else TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (KeyError, NameError, TypeError, AttributeError, PydanticSchemaGenerationError, PydanticUserError):
        return None  # no check for an annotation that pydantic does not support
