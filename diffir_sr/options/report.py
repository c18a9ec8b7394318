"""Problems and warnings about an option file, each with the position of its key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from diffir_sr.errors import OptionError
from diffir_sr.option_types import Keys


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
