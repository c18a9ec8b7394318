"""How classes declare their options: value types, sections, rules; for this package's classes and for plugins.

Classes named in option files (models, datasets, networks, losses, metrics) may have these attributes:

- `OPTIONS`: a `Section` (or any pydantic model, or names) of the options it reads in addition to those that all
  classes of its kind read: in `train` for a model, in its own section for a dataset. Options of base classes are
  inherited, except the names in `WITHOUT_OPTIONS`. An empty `OPTIONS = ()` means that there are no further options.
- `VAL_OPTIONS`: a `Section` of the options it reads in `val` (model); `TOP_OPTIONS`: of those at the top level of the
  file (model, dataset).
- `ARGUMENTS`: a `Section` with bounds and descriptions of its constructor's arguments (network, loss, metric).
- `RULES` and `WARNINGS`: functions (view, keys of the section that names the class) that yield (keys, sentence), for
  problems that stop a run and for those that only need attention.
- `CORRECTIONS`: functions (values of the whole file, keys of the section) that change the values before they are
  checked and yield (keys, sentence) for each change.
- `RENAMED`: former names of its options, {old: new}; they are accepted with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from diffir_sr.errors import OptionError

Keys = tuple[str | int, ...]  # the path from the top of a file to a value
Found = Iterator[tuple[Keys, str]]


class SizeRule(NamedTuple):
    """The number of pixels of which input sides must be multiples, and the ratio of output size to input size."""

    multiple_of: int
    scale: int


class View(Protocol):
    """A rule's view of an option file. A rule that reads a value with a problem of its own is skipped."""

    is_train: bool

    @property
    def model(self) -> str:
        """The model type."""
        ...

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value, or `default` if it is absent or ~."""
        ...

    def effective(self, *keys: str) -> Any:
        """The value, or the default declared by its class or section if it is absent or ~."""
        ...

    def has(self, *keys: str) -> bool:
        """Whether the key is present and not ~."""
        ...

    def kind(self, *keys: str) -> Any:
        """The class named by a section, or the model's class without keys; None if there is none."""
        ...

    def declares(self, name: str, *keys: str) -> Any:
        """The attribute `name` of `kind(*keys)`, or of the substitute for a class that cannot have it; else None."""
        ...

    def datasets(self, *, phase: str | None = None) -> Iterator[tuple[str, str]]:
        """(name, type) of each dataset, or of those of one phase: train, val or test."""
        ...

    def models_with(self, name: str) -> list[str]:
        """The model types whose class has a true attribute `name`."""
        ...

    def size_rule(self, network: str = "network_g") -> SizeRule | None:
        """The size rule of a network; None if unknown."""
        ...

    def scale(self) -> int | None:
        """The ratio of output size to input size, from the network or else from the file."""
        ...

    def patch_fault(self, size: int) -> str | None:
        """The problem with training patches of `size` ground-truth pixels; None if they fit."""
        ...


Rule = Callable[[View, tuple[str, ...]], Found]
# In addition, a network may have a class method `size_rule_of(argument)`, which returns the SizeRule of the network
# whose constructor arguments are `argument(name, default)`, or raises OptionError if they are invalid.
Correction = Callable[[dict[str, Any], tuple[str, ...]], Found]


S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A section of an option file; its fields are the valid options, each with a description."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @classmethod
    def of(cls: type[S], given: Mapping[str, Any] | None) -> S:
        """The options of this section in `given`, with defaults for absent ones; classes read their options with it.

        Raises OptionError that names every option with a wrong value.
        """
        known = {name: value for name, value in (given or {}).items() if name in cls.model_fields}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            details = error.errors(include_url=False)
            messages = (f"{'.'.join(map(str, detail['loc']))}: {explain(detail)}" for detail in details)
            raise OptionError("; ".join(messages)) from None


class Built(BaseModel):
    """An object of the class named by `type`; the other keys are its constructor arguments."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str = Field(description="Name in BasicSR's registry, or in torch.optim for an optimizer.")


def expected(what: str) -> PydanticCustomError:
    """The error for an unexpected value."""
    return PydanticCustomError("expected", "expected {what}", {"what": what})  # type: ignore[arg-type]


def _as_number(value: Any) -> Any:
    # Quoted numbers ("5e3") are accepted; true and false are not numbers, although Python treats them as such.
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not math.isfinite(number):
        raise expected("a number")
    return number


def _as_whole(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = _as_number(value)
    except PydanticCustomError:
        raise expected("a whole number") from None
    if number != int(number):
        raise expected("a whole number")
    return int(number)


def _as_gpus(value: Any) -> Any:
    if value == "auto":
        return value
    try:
        count = _as_whole(value)
    except PydanticCustomError:
        count = -1
    if not 0 <= count <= 1024:
        raise expected("'auto' or a number of GPUs (0: use the CPU)")
    return count


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


def _as_roots(value: Any) -> Any:
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, str) or one is None for one in several) or several == [None]:
        raise expected("a path or a list of paths")
    return value


def _increasing(value: list[float]) -> list[float]:
    if len(value) != 2 or value[0] > value[1]:
        raise expected("two numbers, the smaller first")
    return value


def _shares(value: list[float]) -> list[float]:
    if abs(sum(value) - 1) > 1e-3:
        raise expected(f"probabilities that add up to 1 (the sum is {sum(value):g})")
    return value


def _three(value: list[float]) -> list[float]:
    if len(value) != 3:
        raise expected("three probabilities: enlarge, shrink, keep")
    return value


Number = Annotated[float, BeforeValidator(_as_number)]
Whole = Annotated[int, BeforeValidator(_as_whole)]
Count = Annotated[Whole, Field(ge=1, le=10**12)]
CountOrZero = Annotated[Whole, Field(ge=0, le=10**12)]
Small = Annotated[Whole, Field(ge=1, le=65536)]  # pixels, images of a batch, channels
SmallOrZero = Annotated[Whole, Field(ge=0, le=65536)]
Blocks = Annotated[Whole, Field(ge=0, le=256)]  # how often a network repeats a part
Seed = Annotated[Whole, Field(ge=0, lt=2**32 - 65536)]  # NumPy's seeds end at 2**32, and each rank adds its own number
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Range = Annotated[list[NotNegative], AfterValidator(_increasing)]
PositiveRange = Annotated[list[Annotated[Number, Field(gt=0, le=1000)]], AfterValidator(_increasing)]
ResizeRange = Annotated[list[Annotated[Number, Field(gt=0, le=64)]], AfterValidator(_increasing)]
Qualities = Annotated[list[Annotated[Number, Field(ge=1, le=100)]], AfterValidator(_increasing)]
Shares = Annotated[list[Probability], AfterValidator(_shares)]
ResizeShares = Annotated[Shares, AfterValidator(_three)]
Names = Annotated[list[str], BeforeValidator(_as_list)]
Roots = Annotated[
    Any,
    BeforeValidator(_as_roots),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "null"]}}]}),
]
Gpus = Annotated[
    Any,
    BeforeValidator(_as_gpus),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0}]}),
]

_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "list_type": "a list, [a, b, ...]",
    "tuple_type": "a list, [a, b, ...]",
    "dict_type": "a section (key: value)",
    "model_type": "a section (key: value)",
    "model_attributes_type": "a section (key: value)",
    "too_short": "{min_length} or more",
    "too_long": "{max_length} or fewer",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "expected": "{what}",
    "string_too_short": "text",
    "is_instance_of": "an object of {class} (which YAML cannot hold)",
}


def explain(detail: ErrorDetails) -> str:
    """A validation error of pydantic as `expected ..., found ...`."""
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return "missing (required)"
    if kind not in _EXPECTED:
        return f"{detail['msg']}, found {found(value)}"
    limits = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in detail.get("ctx", {}).items()
    }
    what = _EXPECTED[kind].format(**limits)
    quote = kind == "string_type" and isinstance(value, (bool, int, float)) or type(value).__name__ == "date"
    return f"expected {what}, found {found(value)}" + ("; put it in quotes" if quote else "")


def found(value: Any) -> str:
    """How messages show a value."""
    if value is None:
        return "nothing (~)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section with keys " + (", ".join(map(str, list(value)[:5])) or "(none)")
    if isinstance(value, str):
        return f"{_shortened(repr(value))} (text)"
    text = _shortened(repr(value) if isinstance(value, (int, float, list)) else str(value))
    return f"the list {text}" if isinstance(value, list) else text


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def inherited(kind: Any, name: str) -> Iterable[Any]:
    """The values of the attribute `name` in all classes of `kind`'s ancestry that define it, base classes first."""
    ancestry = reversed(kind.__mro__) if isinstance(kind, type) else (kind,)
    return [vars(one)[name] for one in ancestry if name in getattr(one, "__dict__", {})]
