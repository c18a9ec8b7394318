"""The option files that come with the package: where they are, what each says it does, and copies of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import write_report
from diffir_sr.options.report import nearest
from diffir_sr.options.source import files_read

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes_folder() -> Path:
    """The folder of the recipes: inside the installed package, or `options/` beside it in a checkout."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "options"):
        if (folder / "train_DiffIRS2_x4.yml").is_file():  # some other package may own a folder of that name
            return folder
    raise InputError(f"the recipes are missing from this installation (looked in {_PACKAGE / 'recipes'}); reinstall it")


def recipe_names(folder: Path) -> list[str]:
    """Names of all recipes in a folder, without .yml; those in subfolders come last, as subfolder/name."""
    files = [path for path in folder.rglob("*.yml") if _is_recipe(path.read_text(encoding="utf-8"))]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return sorted(names, key=lambda name: (name.count("/"), name))


def _is_recipe(text: str) -> bool:
    """Whether a file can be run: parts that others build on have no name, ablations have variants."""
    keys = {line.split(":")[0] for line in text.splitlines()}
    return "name" in keys and "variants" not in keys


def summary(path: Path) -> str:
    """What a recipe does, as its first comment line says; empty if it has none."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def copy_recipes(names: list[str], *, to: Path) -> list[Path]:
    """Copy recipes, and what they are based on, into a folder; files that exist are never touched.

    Subfolders stay, so that `base` still finds its file. Raises OptionError for names that do not exist and
    InputError if a file is in the way, before anything is written.
    """
    folder = recipes_folder()
    wanted = list(dict.fromkeys(source for name in names for source in _sources(name, folder)))
    targets = {source: to / source.relative_to(folder) for source in wanted}
    taken = [str(target) for target in targets.values() if target.exists()]
    if taken:
        raise InputError(f"not copied, because there is already: {', '.join(taken)}; choose another folder with -o")
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, source.read_text(encoding="utf-8"))
    return list(targets.values())


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing; raises InputError if it cannot be written. Makes no folder: it may be a typo."""
    try:
        path.parent.stat()
        write_report(text, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def _sources(name: str, folder: Path) -> Iterator[Path]:
    known = recipe_names(folder)
    plain = name.removesuffix(".yml").removeprefix("options/")
    if plain not in known:
        near = nearest(plain, known)
        hint = f"did you mean {near!r}? " if near else ""
        raise OptionError(f"no recipe is called {name!r}; {hint}`diffir options list` shows all")
    yield from (Path(os.path.normpath(file)) for file in files_read(folder / f"{plain}.yml"))
