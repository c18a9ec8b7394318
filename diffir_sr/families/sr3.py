"""Records of SR3 and DvSR: what they add to BasicSR, and what identifies their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffir_sr.diffusion.schedule import named_betas
from diffir_sr.errors import CheckpointError
from diffir_sr.families.base import Family, Identity, Tensors

_NET = "denoise_fn."
# What the weights of the public configurations do not show, by inner_channel, channel_mults and res_blocks.
_PUBLISHED: dict[tuple[int, tuple[int, ...], int], tuple[str, int, int]] = {
    (64, (1, 2, 4, 8, 8), 2): ("sr_sr3_16_128", 32, 128),
    (64, (1, 2, 4, 8, 16), 1): ("sr_sr3_64_512", 16, 512),
}
_GROUPS, _SCALE = 32, 8  # of a public configuration that does not say otherwise; every one restores at x8


def identify(tensors: Tensors, card: Mapping[str, Any]) -> Identity | None:
    """The SR3 network that has these tensors, None for others.

    Weights do not show scale, groups and schedule. Files of the public code store the schedule, by which they are
    known, and the rest is that of the public configurations; of other files the model card must say it. Raises
    CheckpointError for weights of this family that have no possible size.
    """
    if f"{_NET}downs.0.weight" not in tensors or f"{_NET}final_conv.block.3.weight" not in tensors:
        return None
    arguments, attended = unet_sizes(tensors, _NET)
    seen, made = tensors[f"{_NET}downs.0.weight"].shape[1], tensors[f"{_NET}final_conv.block.3.weight"].shape[0]
    mults = ",".join(map(str, arguments["channel_mults"]))
    scale = f" x{card['scale']}" if card.get("scale") else ""
    title = f"SR3{scale} {arguments['preset']}, base {arguments['inner_channel']}, multipliers {mults}"
    facts = {"task": "super-resolution by diffusion"}
    if "network" in card or "betas" not in tensors:
        return Identity("SR3", arguments, title, refuses="" if "network" in card else NEEDS_CARD, facts=facts)
    key = (arguments["inner_channel"], tuple(arguments["channel_mults"]), arguments["res_blocks"])
    # Any size shows the same attention; for an unknown one take that in which the deepest level has 8 pixels.
    name, groups, size = _PUBLISHED.get(key, ("", _GROUPS, 2 ** (len(arguments["channel_mults"]) + 2)))
    arguments |= {
        "scale": _SCALE,
        "norm_groups": groups,
        "image_size": size,
        "attn_res": [size // 2**level for level in attended],
        "beta_schedule": _schedule(tensors["betas"]),
        "cond_resize": "pil",
    }
    facts |= {
        "configuration": f"{name} of the public code" if name else "of the public code, none that was published",
        "not in the weights": f"scale {_SCALE} and {groups} groups, as in the public configurations",
    }
    refuses = ""
    if (seen, made) == (3, 3):
        refuses = "unconditional, which makes pictures of nothing; give weights of a network that sees a picture"
    elif (seen, made) != (6, 3):
        refuses = f"which maps {seen} channels to {made}; networks of colours (6 to 3) are restored"
    elif arguments["inner_channel"] % groups:
        refuses = f"whose number of groups is unknown: {groups} do not divide {arguments['inner_channel']} channels"
    return Identity("SR3", arguments, title.replace("SR3", f"SR3 x{_SCALE}"), refuses=refuses, facts=facts)


NEEDS_CARD = (
    "whose schedule and other options its tensors do not show; give the .safetensors file that the training wrote "
    "beside it"
)


def unet_sizes(tensors: Tensors, prefix: str) -> tuple[dict[str, Any], list[int]]:
    """Constructor arguments that the shapes of the `NoiseLevelUNet` behind `prefix` show, and its levels of attention.

    Raises CheckpointError for shapes that no such network has.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    base = own["downs.0.weight"].shape[0]
    entries = {int(name.split(".")[1]) for name in own if name.startswith("downs.")}
    mults, blocks, attended = [], [0], set[int]()
    moves_in_blocks = False
    for entry in sorted(entries - {0}):
        convolution = own.get(f"downs.{entry}.res_block.block2.block.3.weight")
        if convolution is None:  # a change of resolution ends the level
            moves_in_blocks |= f"downs.{entry}.conv.weight" not in own
            blocks.append(0)
            continue
        if not blocks[-1]:
            mults.append(convolution.shape[0] // base)
        blocks[-1] += 1
        if f"downs.{entry}.attn.qkv.weight" in own:
            attended.add(len(blocks) - 1)
    if len(set(blocks)) != 1 or not blocks[0] or 0 in mults:
        raise CheckpointError(
            f"the tensors {prefix}downs have {blocks} residual blocks on its levels, expected as many on each; "
            "copy or fetch the weights again"
        )
    normalised = "final_conv.block.0.weight" in own
    preset = "dvsr" if not normalised else "sr3_paper" if moves_in_blocks else "janspiry"
    arguments = {"preset": preset, "inner_channel": base, "channel_mults": mults, "res_blocks": blocks[0]}
    return arguments, sorted(attended)


def _schedule(betas: Tensor) -> dict[str, Any]:
    """Stored betas (T,) as options: by name where they are evenly spaced."""
    start, end = betas[0].item(), betas[-1].item()
    about = {"schedule": "linear", "n_timestep": len(betas), "linear_start": _short(start), "linear_end": _short(end)}
    named = named_betas("linear", len(betas), start=about["linear_start"], end=about["linear_end"])
    if torch.allclose(named, betas.double(), rtol=1e-5, atol=0):
        return about
    return {"betas": betas.double().tolist()}


def _short(value: float) -> float:
    """The shortest decimal number that is this one in float32."""
    return float(f"{value:.6g}")


SR3 = Family(
    name="SR3",
    archs=("diffir_sr.archs.sr3_arch:SR3", "diffir_sr.archs.sr3_arch:SR3Regression"),
    models=("diffir_sr.models.sr3_model:SR3Model",),
    identify=identify,
)


_PARTS = ("init_predictor.", "denoiser.")


def identify_dvsr(tensors: Tensors, card: Mapping[str, Any]) -> Identity | None:
    """The DvSR network that has these tensors, None for others; its schedule is in a model card alone."""
    if not all(f"{part}downs.0.weight" in tensors for part in _PARTS):
        return None
    sizes = [unet_sizes(tensors, part)[0] for part in _PARTS]
    arguments = {
        "predictor_channel": sizes[0]["inner_channel"],
        "denoiser_channel": sizes[1]["inner_channel"],
        "channel_mults": sizes[1]["channel_mults"],
        "res_blocks": sizes[1]["res_blocks"],
        "cond_on_init": tensors["denoiser.downs.0.weight"].shape[1] == 9,
    }
    mults = ",".join(map(str, arguments["channel_mults"]))
    bases = f"{arguments['predictor_channel']} and {arguments['denoiser_channel']}"
    return Identity(
        "DvSR",
        arguments,
        f"DvSR, base {bases}, multipliers {mults}",
        refuses="" if "network" in card else NEEDS_CARD,
        facts={"task": "deblurring by diffusion"},
    )


DVSR = Family(
    name="DvSR",
    archs=("diffir_sr.archs.dvsr_arch:DvSR", "diffir_sr.archs.dvsr_arch:DvSRPredictor"),
    models=("diffir_sr.models.sr3_model:DvSRModel", "diffir_sr.models.sr3_model:DvSRRegressionModel"),
    identify=identify_dvsr,
)
