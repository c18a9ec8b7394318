"""The option files included in the package: where they are, what they do, and copying them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import write_report
from diffir_sr.options.check import nearest
from diffir_sr.options.source import files_read

_PACKAGE = Path(__file__).resolve().parent.parent
# Published inpainting configurations are composed by hydra; they are not read, and the error names the equivalent
# recipe.
_TRAINING = (
    *("training_model", "losses", "generator", "discriminator", "evaluator", "trainer", "optimizers", "visualizer"),
    *("location", "kd", "run_title", "generatorS1_path", "generatorS2_path", "defaults"),
)
_PREDICTION = ("indir", "outdir", "model", "out_key")
_OURS = ("model_type", "network_g")


def recipes_folder() -> Path:
    """The folder of the recipes: in the installed package, or `options/` in a checkout."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "options"):
        if (folder / "train_DiffIRS2_x4.yml").is_file():  # another package may have a folder of that name
            return folder
    raise InputError(f"the recipes are missing from this installation (looked in {_PACKAGE / 'recipes'}); reinstall it")


def recipe_names(folder: Path) -> list[str]:
    """Names of all recipes in a folder, without .yml; those in subfolders last, as subfolder/name."""
    files = [path for path in folder.rglob("*.yml") if _is_recipe(path.read_text(encoding="utf-8"))]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return sorted(names, key=lambda name: (name.count("/"), name))


def _is_recipe(text: str) -> bool:
    """Whether a file can be run: bases have no name, ablations have variants, chains of recipes have stages."""
    keys = {line.split(":")[0] for line in text.splitlines()}
    return "name" in keys and not keys & {"variants", "stages"}


def summary(path: Path) -> str:
    """The first comment line of a recipe, which says what it does; empty if there is none."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def copy_recipes(names: list[str], *, to: Path) -> list[Path]:
    """Copy recipes and their bases into a folder; existing files are never changed.

    Subfolders are kept, so that `base` still works. Raises OptionError for unknown names and InputError if a file
    exists already, before anything is written.
    """
    folder = recipes_folder()
    wanted = list(dict.fromkeys(source for name in names for source in _sources(name, folder)))
    targets = {source: to / source.relative_to(folder) for source in wanted}
    taken = [str(target) for target in targets.values() if target.exists()]
    if taken:
        raise InputError(
            f"not copied, because these files exist already: {', '.join(taken)}; choose another folder with -o"
        )
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, source.read_text(encoding="utf-8"))
    return list(targets.values())


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; raises InputError if it cannot be written. Makes no folder, since it may be a typo."""
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
        raise OptionError(f"no recipe is named {name!r}; {hint}`diffir options list` shows all")
    yield from (Path(os.path.normpath(file)) for file in files_read(folder / f"{plain}.yml"))


def refuse_hydra(values: dict[str, Any], *, file: str) -> None:
    """Raise OptionError, which names the equivalent recipe, for a configuration of the published inpainting code."""
    if any(key in values for key in _OURS):
        return
    training = [key for key in _TRAINING if key in values]
    prediction = [key for key in _PREDICTION if key in values]
    if len(training) > 1:
        _refuse(file, training, f"its training is {_recipe_for(values, Path(file).stem)}")
    if len(prediction) > 1:
        instead = "to restore your own images and masks, use options/inpaint/test_mine.yml or diffir restore --mask"
        _refuse(file, prediction, instead)


def _refuse(file: str, keys: list[str], instead: str) -> NoReturn:
    raise OptionError(
        f"{file}: expected an option file with name, model_type, datasets and network_g, found an inpainting "
        f"configuration for hydra and Lightning (keys {', '.join(keys)}), which needs the published code; {instead}"
    )


def _recipe_for(values: dict[str, Any], stem: str) -> str:
    """The recipe for the stage and data of the configuration, or all possible ones if it does not name them."""
    chosen = _chosen(values)
    described = " ".join([stem, *chosen.values()]).lower()
    stages = [number for number in "12" if _names_stage(number, values, chosen)]
    data = {"celeb": "celebahq", "big": "place256_bigLdata", "place": "place256"}
    sets = [ours for theirs, ours in data.items() if theirs in described][:1]
    files = [
        f"options/inpaint/train_{name}S{number}.yml"
        for name in sets or list(data.values())
        for number in (stages if len(stages) == 1 else "12")
    ]
    return f"{files[0]}: basicsr train -opt {files[0]}" if len(files) == 1 else f"one of {', '.join(files)}"


def _names_stage(number: str, values: dict[str, Any], chosen: dict[str, str]) -> bool:
    sections = [values.get(name) for name in ("training_model", "generator")]
    kinds = [str(section.get("kind")) for section in sections if isinstance(section, dict)]
    return any(f"S{number}" in kind for kind in (*kinds, chosen.get("generator", "")))


def _chosen(values: dict[str, Any]) -> dict[str, str]:
    """The choices in hydra's list of defaults, by group, combined with the paths in the file itself."""
    given = values.get("defaults")
    pairs = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    own = {key: values[key] for key in ("location", "run_title") if key in values}
    return {key: str(value) for one in (*pairs, own) for key, value in one.items()}
