"""Reading option files: YAML without Python objects or duplicate keys, and with the line of every key."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffir_sr.errors import OptionError
from diffir_sr.options.report import Keys, Place, found


@dataclass
class Source:
    """Options as they were written, with the place of every key; () is the place of the file itself."""

    values: dict[str, Any]
    places: dict[Keys, Place] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 of plain values, where 5e3 and 1e-4 are numbers too (as in YAML 1.2)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_source(path: str | Path) -> Source:
    """The options of a file, on top of those of the files that its key `base` names, and so on.

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


def read_value(text: str, *, file: str) -> Source:
    """One YAML value that stands on a command line; the source's values hold it under the key 'value'."""
    value, places = _parse(text, file=file, numbered=False)
    places = {("value", *keys): Place(file, 0) for keys in places}
    return Source({"value": value}, places)


def _read_chain(path: Path, above: tuple[Path, ...]) -> Source:
    if path.resolve() in (opened.resolve() for opened in above):
        raise OptionError(f"{above[-1]}: base: files are based on each other: {' -> '.join(map(str, (*above, path)))}")
    values, places = _parse(_text_of(path), file=str(path))
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected options, 'key: value' on each line, found {found(values)}")
    base, place = values.pop("base", None), places.get(("base",))
    source = Source(values, {keys: at for keys, at in places.items() if keys[:1] != ("base",)})
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


def _on_top(below: Source, above: Source) -> Source:
    return Source(_merge(below.values, above.values), _merge_places(below, above))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _merge_places(below: Source, above: Source) -> dict[Keys, Place]:
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
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        similar = _similar_files(path)
        hint = f"similar files: {', '.join(similar)}" if similar else "`diffir options list` names the recipes"
        raise NoSuchFileError(f"no such option file: {path} (current folder: {Path.cwd()}); {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read as text: {error}") from error


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
    except yaml.YAMLError as error:
        raise OptionError(_explain(error, file=file, numbered=numbered)) from None
    return value, {(): Place(file, 1), **reader.places}


def _explain(error: yaml.YAMLError, *, file: str, numbered: bool) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{file}:{mark.line + 1}" if mark and numbered else file
    problem = getattr(error, "problem", None) or str(error)
    if "could not determine a constructor" in problem:
        return f"{place}: {problem}; option files hold plain values only (text, numbers, true, false, lists)"
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return f"{place}: not valid YAML: {problem}{hint}"


class _Reader:
    """Turns YAML nodes into values and notes the line of every key."""

    def __init__(self, loader: _Loader, *, file: str) -> None:
        self.places: dict[Keys, Place] = {}
        self._loader = loader
        self._file = file
        self._open: set[int] = set()
        self._unique: set[int] = set()

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._loader.construct_object(node)
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

    def _element(self, node: yaml.Node, keys: Keys) -> Any:
        self.places[keys] = self._place(node)
        return self.value(node, keys)

    def _items(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, yaml.Node]]:
        self._check_unique(node, keys)
        self._loader.flatten_mapping(node)  # '<<: *other' becomes the keys of the other mapping
        children: dict[str, yaml.Node] = {}
        for key_node, child in node.value:
            name = self._name(key_node)
            self.places[(*keys, name)] = self._place(key_node)
            children[name] = child
        yield from children.items()

    def _check_unique(self, node: yaml.MappingNode, keys: Keys) -> None:
        if id(node) in self._unique:  # met again through an alias, flattened by now
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
        name = self._loader.construct_object(node, deep=True)
        if isinstance(name, str):
            return name
        raise OptionError(f"{self._place(node)}: expected the name of an option, found {found(name)}; quote it")

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1)
