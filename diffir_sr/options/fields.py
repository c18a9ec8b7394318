"""The kinds of values that options have. Every message reads "expected ..., found ..."."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A section of an option file; its fields are the options that exist there, each with one sentence."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def expected(what: str) -> PydanticCustomError:
    """The error of a value that is not what was expected."""
    return PydanticCustomError("expected", "expected {what}", {"what": what})  # type: ignore[arg-type]


def _as_number(value: Any) -> Any:
    # Quoted numbers ("5e3") are numbers too; true and false are none, although Python counts them as such.
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
    if count < 0:
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
        raise expected(f"probabilities that add up to 1 (these make {sum(value):g})")
    return value


def _three(value: list[float]) -> list[float]:
    if len(value) != 3:
        raise expected("three probabilities: enlarge, shrink, keep")
    return value


Number = Annotated[float, BeforeValidator(_as_number)]
Whole = Annotated[int, BeforeValidator(_as_whole)]
Count = Annotated[Whole, Field(ge=1)]
CountOrZero = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Range = Annotated[list[NotNegative], AfterValidator(_increasing)]
Qualities = Annotated[list[Annotated[Number, Field(ge=0, le=100)]], AfterValidator(_increasing)]
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


class Built(BaseModel):
    """An object that `type` names; the other keys are the arguments of its constructor."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str = Field(description="Name in BasicSR's registry, or in torch.optim for an optimizer.")
