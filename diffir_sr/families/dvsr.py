"""DvSR's record: what it adds to BasicSR, and what its weights show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffir_sr.families.base import Family, Identity, Tensors
from diffir_sr.families.sr3 import NEEDS_CARD, unet_sizes

_PARTS = ("init_predictor.", "denoiser.")


def identify(tensors: Tensors, card: Mapping[str, Any]) -> Identity | None:
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
    models=("diffir_sr.models.dvsr_model:DvSRModel", "diffir_sr.models.dvsr_model:DvSRRegressionModel"),
    identify=identify,
)
