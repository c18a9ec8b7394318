"""Reading option files: YAML without Python objects or duplicate keys, and with the line of every key."""

from __future__ import annotations

import codecs
import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from diffir_sr.errors import OptionError
from diffir_sr.option_types import Keys, found
from diffir_sr.options.check import Place, dotted


@dataclass
class OptionSource:
    """Options as written, with the location of every key; () is the location of the file itself."""

    values: dict[str, Any]
    places: dict[Keys, Place] = field(default_factory=dict)


_LARGEST_FILE = 10**7  # bytes; the largest recipe has 5,000
_DEEPEST = 50  # levels of nested sections
_MOST_VALUES = 100_000  # after expanding aliases (*name): a file of a few lines could expand to billions


class _Loader(yaml.SafeLoader):
    """YAML 1.1 of plain values, where 5e3 and 1e-4 are numbers too (as in YAML 1.2)."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Like yaml's, which would exceed Python's recursion limit on deeply nested values."""
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                problem = f"more than {_DEEPEST} nested sections or lists"
                raise ComposerError(None, None, problem, self.peek_event().start_mark)
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_source(path: str | Path) -> OptionSource:
    """The options of a file, merged over those of the files named by its key `base`, recursively.

    Of several bases the later wins. Mappings are merged; lists and single values replace what `base` has.
    Raises OptionError.
    """
    return _read_chain(Path(path), ())


def files_read(path: str | Path) -> list[Path]:
    """The option file itself and those it is based on, nearest first. Raises OptionError."""
    files = dict.fromkeys([path := Path(path)])
    values, _ = _parse(_text_of(path), file=str(path))
    base = values.get("base") if isinstance(values, dict) else None
    bases = [one for one in (base if isinstance(base, list) else [base]) if isinstance(one, str)]
    return list(dict.fromkeys([*files, *(file for one in bases for file in files_read(path.parent / one))]))


def read_value(text: str, *, file: str) -> OptionSource:
    """One YAML value from the command line, stored under the key 'value'."""
    value, places = _parse(text, file=file, numbered=False)
    places = {("value", *keys): Place(file, 0) for keys in places}
    return OptionSource({"value": value}, places)


def _read_chain(path: Path, above: tuple[Path, ...]) -> OptionSource:
    if path.resolve() in (opened.resolve() for opened in above):
        raise OptionError(f"{above[-1]}: base: files are based on each other: {' -> '.join(map(str, (*above, path)))}")
    values, places = _parse(_text_of(path), file=str(path))
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected options, 'key: value' on each line, found {found(values)}")
    base, place = values.pop("base", None), places.get(("base",))
    source = OptionSource(values, {keys: at for keys, at in places.items() if keys[:1] != ("base",)})
    if base is None:
        return source
    bases = base if isinstance(base, list) else [base]
    if not bases or not all(isinstance(one, str) for one in bases):
        raise OptionError(f"{place}: base: expected the path of an option file or a list of such, found {found(base)}")
    try:
        layers = [_read_chain(path.parent / one, (*above, path)) for one in bases]
    except FileNotFoundError as error:
        raise OptionError(f"{place}: base: {error}") from None
    return functools.reduce(_on_top, [*layers, source])


def _on_top(below: OptionSource, above: OptionSource) -> OptionSource:
    return OptionSource(_merge(below.values, above.values), _merge_places(below, above))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _merge_places(below: OptionSource, above: OptionSource) -> dict[Keys, Place]:
    replaced = {keys for keys in above.places if not isinstance(_at(above.values, keys), dict)}
    kept = {
        keys: place
        for keys, place in below.places.items()
        if keys not in above.places and not any(keys[:depth] in replaced for depth in range(1, len(keys)))
    }
    return {**above.places, **kept}


def _at(values: Any, keys: Keys) -> Any:
    for key in keys:
        values = values[key]
    return values


class NoSuchFileError(OptionError, FileNotFoundError):
    """An option file does not exist."""

    __str__ = Exception.__str__


def _text_of(path: Path) -> str:
    if path.is_dir():
        raise OptionError(f"{path} is a folder; expected an option file (.yml)")
    if path.exists() and not path.is_file():
        raise OptionError(f"{path} is no file (a pipe or a device); expected an option file (.yml)")
    if path.is_file() and (size := path.stat().st_size) > _LARGEST_FILE:
        raise OptionError(f"{path}: {size:,} bytes are no option file; expected {_LARGEST_FILE:,} or less")
    try:
        return _decoded(path.read_bytes(), path)
    except FileNotFoundError:
        similar = _similar_files(path)
        hint = f"similar files: {', '.join(similar)}" if similar else "`diffir options list` names the recipes"
        raise NoSuchFileError(f"no such option file: {path} (current folder: {Path.cwd()}); {hint}") from None
    except OSError as error:
        raise OptionError(f"{path}: cannot be read as text: {error}") from error


def _decoded(data: bytes, path: Path) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise OptionError(f"{path}:1: cannot be read as text: it is in UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise OptionError(f"{path}:{line}: cannot be read as text: {reason}") from None


def _similar_files(path: Path) -> list[str]:
    folders = dict.fromkeys([path.parent, Path("options")])
    files = {file.name: str(file) for folder in reversed(folders) for file in sorted(folder.glob("*.y*ml"))}
    near = difflib.get_close_matches(path.name, files, n=3, cutoff=0.5)
    return [files[name] for name in near]


def _parse(text: str, *, file: str, numbered: bool = True) -> tuple[Any, dict[Keys, Place]]:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, file=file)
            value = None if node is None else reader.value(node, ())
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        place = Place(file, text.count("\n", 0, error.position) + 1 if numbered else 0)
        code = error.character if isinstance(error.character, int) else ord(error.character)
        reason = f"the character U+{code:04X} must not be in a text file; remove it"
        raise OptionError(f"{place}: not valid YAML: {reason}") from None
    except yaml.YAMLError as error:
        raise OptionError(_explain(error, file=file, numbered=numbered)) from None
    return value, {(): Place(file, 1), **reader.places}


def _explain(error: yaml.YAMLError, *, file: str, numbered: bool) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{file}:{mark.line + 1}" if mark and numbered else file
    problem = getattr(error, "problem", None) or str(error)
    if problem == "second occurrence":  # yaml puts the rest in the context
        problem = f"{getattr(error, 'context', '')}".split(";")[0] + " (&name), which names two values"
    if "could not determine a constructor" in problem:
        return f"{place}: {problem}; option files hold plain values only (text, numbers, true, false, lists)"
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return f"{place}: not valid YAML: {problem}{hint}"


_KINDS = {"int": "a whole number", "float": "a number", "timestamp": "a date", "bool": "true or false"}
_KINDS |= {"binary": "encoded bytes", "null": "nothing"}


class _Reader:
    """Converts YAML nodes to values and records the line of every key."""

    def __init__(self, loader: _Loader, *, file: str) -> None:
        self.places: dict[Keys, Place] = {}
        self._loader = loader
        self._file = file
        self._open: set[int] = set()
        self._unique: set[int] = set()
        self._merging: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        self._counted(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if id(node) in self._open:
            raise OptionError(f"{self._place(node)}: a YAML alias (*name) contains itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
                return {name: self.value(child, (*keys, name)) for name, child in self._items(node, keys)}
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self._element(child, (*keys, index)) for index, child in enumerate(node.value)]
        finally:
            self._open.discard(id(node))
        raise yaml.constructor.ConstructorError(
            None, None, f"could not determine a constructor for the tag {node.tag!r}", node.start_mark
        )

    def _counted(self, node: yaml.Node) -> None:
        self._count += 1
        if self._count > _MOST_VALUES:
            raise OptionError(
                f"{self._place(node)}: more than {_MOST_VALUES:,} values (aliases, *name, count each time); "
                "an option file has a few hundred"
            )

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError):
            kind = _KINDS.get(node.tag.rsplit(":", 1)[-1], "a value")
            where = f"{dotted(keys)}: " if keys else ""
            message = f"{self._place(node)}: {where}looks like {kind} and is none, found {found(node.value)}"
            raise OptionError(f"{message}; put it in quotes if it is text") from None

    def _element(self, node: yaml.Node, keys: Keys) -> Any:
        self.places[keys] = self._place(node)
        return self.value(node, keys)

    def _items(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, yaml.Node]]:
        self._check_unique(node, keys)
        children: dict[str, yaml.Node] = {}
        for key_node, child in self._merged(node):
            name = self._name(key_node)
            self.places[(*keys, name)] = self._place(key_node)
            children[name] = child
        yield from children.items()

    def _merged(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """The items of a mapping after those merged by `<<: *other`; later ones win, as in YAML 1.1."""
        self._counted(node)
        if id(node) in self._merging:
            raise OptionError(f"{self._place(node)}: a YAML alias (*name) contains itself")
        self._merging.add(id(node))
        try:
            taken: list[tuple[yaml.Node, yaml.Node]] = []
            own: list[tuple[yaml.Node, yaml.Node]] = []
            for key, child in node.value:
                if key.tag != "tag:yaml.org,2002:merge":
                    own.append((key, child))
                    continue
                several = child.value if isinstance(child, yaml.SequenceNode) else [child]
                for other in reversed(several):  # the first of several wins
                    if not isinstance(other, yaml.MappingNode):
                        raise OptionError(f"{self._place(key)}: '<<' takes the keys of a section or of a list of such")
                    taken += self._merged(other)
            names = {self._name(key): (key, child) for key, child in taken}
            return [*names.values(), *own]
        finally:
            self._merging.discard(id(node))

    def _check_unique(self, node: yaml.MappingNode, keys: Keys) -> None:
        if id(node) in self._unique:  # met again through an alias
            return
        self._unique.add(id(node))
        first: dict[Any, int] = {}
        for key_node, _ in node.value:
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if name in first:
                where = ".".join(map(str, (*keys, name)))
                raise OptionError(f"{self._place(key_node)}: {where}: given twice, first in line {first[name]}")
            first[name] = line

    def _name(self, node: yaml.Node) -> str:
        name = self._scalar(node, ()) if isinstance(node, yaml.ScalarNode) else None
        if name is None and not isinstance(node, yaml.ScalarNode):
            raise OptionError(f"{self._place(node)}: expected the name of an option, found a list or a section")
        if isinstance(name, str):
            return name
        raise OptionError(f"{self._place(node)}: expected the name of an option, found {found(name)}; quote it")

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1)


# Options of the command line: BasicSR's `--force_yml section:key=value`, without its eval and exec


def apply_overrides(source: OptionSource, entries: Iterable[str]) -> None:
    """Apply each entry to the source; the schema decides whether a new key is valid. Raises OptionError."""
    for entry in entries:
        _apply(source, entry)


def _apply(source: OptionSource, entry: str) -> None:
    origin = f"--force_yml {entry}"
    names, equals, text = entry.partition("=")
    keys: Keys = tuple(name.strip() for name in names.split(":"))
    if not equals or not all(keys):
        raise OptionError(f"{origin}: expected section:key=value, for example train:ema_decay=0.999")
    section = _section_for(source, keys, origin)
    value = read_value(text, file=origin)
    for old in [place for place in source.places if place[: len(keys)] == keys]:
        del source.places[old]
    # As in BasicSR, none in any capitalisation means no value.
    section[str(keys[-1])] = None if text.strip().lower() == "none" else value.values["value"]
    source.places |= {(*keys, *inner[1:]): place for inner, place in value.places.items()}


def _section_for(source: OptionSource, keys: Keys, origin: str) -> dict[str, Any]:
    section: Any = source.values
    for depth, name in enumerate(keys[:-1], start=1):
        if section.get(name) is None:
            section[name] = {}
            source.places[keys[:depth]] = Place(origin, 0)
        section = section[name]
        if not isinstance(section, dict):
            way = ":".join(map(str, keys[:depth]))
            raise OptionError(f"{origin}: {way} is no section, it is {found(section)} ({source.places[keys[:depth]]})")
    return section
