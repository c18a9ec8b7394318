"""Configurations of the published inpainting project: it is trained by another program, with Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffir_sr.errors import OptionError
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.options.source import read_source

_MARKS = ("training_model", "generator", "losses")
# Its options and ours, section by section.
_NETWORK = ("n_encoder_res", "dim", "num_blocks", "heads", "ffn_expansion_factor", "bias", "LayerNorm_type")
_NETWORK += ("n_denoise_res", "linear_start", "linear_end", "timesteps")
_NAMES = {
    "losses.l1.weight_known": "train.pixel_opt.weight_known",
    "losses.l1.weight_missing": "train.pixel_opt.weight_missing",
    "losses.adversarial.weight": "train.gan_opt.loss_weight",
    "losses.adversarial.gp_coef": "train.gan_opt.gp_coef",
    "losses.adversarial.mask_as_fake_target": "train.gan_opt.mask_as_fake_target",
    "losses.feature_matching.weight": "train.feature_matching_opt.loss_weight",
    "losses.resnet_pl.weight": "train.perceptual_opt.perceptual_weight",
    "losses.kd.loss_weight": "train.kd_opt.loss_weight",
    "losses.kd.temperature": "train.kd_opt.temperature",
    "optimizers.generator.lr": "train.optim_g.lr",
    "optimizers.discriminator.lr": "train.optim_d.lr",
    **{f"generator.{name}": f"network_g.{name}" for name in _NETWORK},
    **{f"discriminator.{name}": f"network_d.{name}" for name in ("input_nc", "ndf", "n_layers")},
}


def refuse_hydra(values: Mapping[str, Any], path: str | Path) -> None:
    """Raise OptionError for such a configuration: which recipe takes its place, and in which values the two differ.

    It is not converted: one file of several is at hand, and data, batch and iterations stand in the others.
    """
    if not all(isinstance(values.get(mark), Mapping) for mark in _MARKS) or "model_type" in values:
        return
    recipe = f"inpaint/{_counterpart(values)}"
    differing = list(_differences(values, read_source(recipes_folder() / f"{recipe}.yml").values))
    told = "\n  ".join(["", *differing]) if differing else " nothing"
    raise OptionError(
        f"{path}: a Hydra configuration of the published inpainting project ({', '.join(_MARKS)}), not an option file; "
        f"inpainting trains here as all else does: basicsr train -opt options/{recipe}.yml (a copy to change: "
        f"`diffir options copy {recipe}`). Its weights are read as they are. What this file sets otherwise:{told}"
    )


def _counterpart(values: Mapping[str, Any]) -> str:
    kind = f"{values['training_model'].get('kind')} {values['generator'].get('kind')}"
    stage = "S2" if "S2" in kind else "S1"
    defaults = values.get("defaults")
    places = [str(one.get("location")) for one in defaults or () if isinstance(one, Mapping) and "location" in one]
    depth = values["generator"].get("num_blocks")
    if "big" in kind or (isinstance(depth, list) and depth[-1:] == [20]):
        return f"train_place256_bigLdata{stage}"
    return f"train_{'celebahq' if any('celeb' in place for place in places) else 'place256'}{stage}"


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    for name, here in _NAMES.items():
        given, recipe = _at(theirs, name), _at(ours, here)
        if given is not None and given != recipe:
            yield f"{name} is {given}; {here} is {recipe}"


def _at(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
