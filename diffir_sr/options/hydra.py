"""Published inpainting configurations, which hydra composes: not read, but answered with our recipe in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from diffir_sr.errors import OptionError

_TRAINING = (
    *("training_model", "losses", "generator", "discriminator", "evaluator", "trainer", "optimizers", "visualizer"),
    *("location", "kd", "run_title", "generatorS1_path", "generatorS2_path", "defaults"),
)
_PREDICTION = ("indir", "outdir", "model", "out_key")
_OURS = ("model_type", "network_g")


def refuse_hydra(values: dict[str, Any], *, file: str) -> None:
    """Raise OptionError for a configuration of the published inpainting code, and name the recipe in its place."""
    if any(key in values for key in _OURS):
        return
    training = [key for key in _TRAINING if key in values]
    prediction = [key for key in _PREDICTION if key in values]
    if len(training) > 1:
        _refuse(file, training, f"its training is {_recipe(values, Path(file).stem)}")
    if len(prediction) > 1:
        instead = "images and masks of your own are restored by options/inpaint/test_mine.yml or diffir restore --mask"
        _refuse(file, prediction, instead)


def _refuse(file: str, keys: list[str], instead: str) -> NoReturn:
    raise OptionError(
        f"{file}: expected an option file with name, model_type, datasets and network_g, found an inpainting "
        f"configuration for hydra and Lightning (keys {', '.join(keys)}), which needs the published code; {instead}"
    )


def _recipe(values: dict[str, Any], stem: str) -> str:
    """Stage and data as the configuration names them; where it does not, all recipes that it may be."""
    chosen = _chosen(values)
    told = " ".join([stem, *chosen.values()]).lower()
    stages = [number for number in "12" if _names_stage(number, values, chosen)]
    data = {"celeb": "celebahq", "big": "place256_bigLdata", "place": "place256"}
    sets = [ours for theirs, ours in data.items() if theirs in told][:1]
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
    """What hydra's list of defaults takes of each group, with what the file says of places itself."""
    given = values.get("defaults")
    pairs = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    own = {key: values[key] for key in ("location", "run_title") if key in values}
    return {key: str(value) for one in (*pairs, own) for key, value in one.items()}
