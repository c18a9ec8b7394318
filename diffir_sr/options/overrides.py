"""Options of the command line, BasicSR's `--force_yml section:key=value`, without its eval and exec."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffir_sr.errors import OptionError
from diffir_sr.options.report import Keys, Place, found
from diffir_sr.options.source import Source, read_value


def apply_overrides(source: Source, entries: Iterable[str]) -> None:
    """Write each entry into the source; whether a new key may be is for the schema. Raises OptionError."""
    for entry in entries:
        _apply(source, entry)


def _apply(source: Source, entry: str) -> None:
    told = f"--force_yml {entry}"
    names, equals, text = entry.partition("=")
    keys: Keys = tuple(name.strip() for name in names.split(":"))
    if not equals or not all(keys):
        raise OptionError(f"{told}: expected section:key=value, for example train:ema_decay=0.999")
    section = _section_for(source, keys, told)
    value = read_value(text, file=told)
    for old in [place for place in source.places if place[: len(keys)] == keys]:
        del source.places[old]
    # BasicSR reads none, in any case, as nothing.
    section[str(keys[-1])] = None if text.strip().lower() == "none" else value.values["value"]
    source.places |= {(*keys, *inner[1:]): place for inner, place in value.places.items()}


def _section_for(source: Source, keys: Keys, told: str) -> dict[str, Any]:
    section: Any = source.values
    for depth, name in enumerate(keys[:-1], start=1):
        if section.get(name) is None:
            section[name] = {}
            source.places[keys[:depth]] = Place(told, 0)
        section = section[name]
        if not isinstance(section, dict):
            way = ":".join(map(str, keys[:depth]))
            raise OptionError(f"{told}: {way} is no section, it is {found(section)} ({source.places[keys[:depth]]})")
    return section
