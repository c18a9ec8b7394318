"""AutoDIR's record, and that of NAFNet, which its structure correction is: what they add, what their weights show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffir_sr.errors import CheckpointError
from diffir_sr.families.autodir_checkpoint import PARTS, is_published
from diffir_sr.families.base import Family, Identity, Tensors
from diffir_sr.families.sr3 import NEEDS_CARD

# Blocks of released networks that are tested with local means: side of their training patches.
_LOCAL = {(1, 1, 1, 28): 256}
_UNCONVERTED = "in the layout of its authors; write it as a folder first: diffir weights convert FILE -o FOLDER"
_CORRECTS = "which corrects what a diffusion restored and restores no picture by itself; give the folder of an AutoDIR"


def identify(tensors: Tensors, card: Mapping[str, Any]) -> Identity | None:
    """The AutoDIR, NAFNet or structure correction that has these tensors, None for others.

    The weights do not show whether means are local (`train_size`): a released GoPro network has them, others not.
    Raises CheckpointError for weights of this family that have no possible size.
    """
    if is_published(tensors):
        return Identity("AutoDIR", {}, "AutoDIR as released", refuses=_UNCONVERTED)
    if {f"{PARTS['assessor']}logit_scale", f"{PARTS['correction']}intro.weight"} <= set(tensors):
        return _system(tensors, card)
    if not {"intro.weight", "ending.weight", "encoders.0.0.sca.1.weight"} <= set(tensors):
        return None
    width, seen = tensors["intro.weight"].shape[:2]
    levels = [_numbers(tensors, part) for part in ("encoders", "decoders")]
    arguments: dict[str, Any] = {
        "width": width,
        "middle_blk_num": _numbers(tensors, "middle_blks"),
        "enc_blk_nums": [_numbers(tensors, f"encoders.{level}") for level in range(levels[0])],
        "dec_blk_nums": [_numbers(tensors, f"decoders.{level}") for level in range(levels[1])],
    }
    made = tensors["ending.weight"].shape[0]
    if levels[0] != levels[1] or (seen, made) not in ((3, 3), (6, 3)):
        raise CheckpointError(
            f"a NAFNet of {levels[0]} levels down and {levels[1]} up that maps {seen} channels to {made}; expected as "
            "many levels up as down, and 3 channels to 3 (AutoDIR's structure correction: 6 to 3)"
        )
    blocks = "+".join(",".join(map(str, arguments[name])) for name in ("enc_blk_nums", "dec_blk_nums"))
    title = f"width {width}, blocks {blocks}, middle {arguments['middle_blk_num']}"
    if seen == 6:
        return Identity("NAFNetSCM", arguments, f"AutoDIR structure correction (NAFNet), {title}", refuses=_CORRECTS)
    facts = {"task": "restoration without change of size"}
    local = _LOCAL.get(tuple(arguments["enc_blk_nums"])) if "network" not in card else None
    if local:
        arguments["train_size"] = local
        facts["not in the weights"] = f"local means as for training patches of {local} pixels, as the released test has"
    return Identity("NAFNet", arguments, f"NAFNet, {title}", facts=facts)


def _system(tensors: Tensors, card: Mapping[str, Any]) -> Identity:
    """The whole system; what its parts are built of is in the card alone."""
    counts = {
        part: sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    facts = {"task": "restoration of unknown faults, one after the other"}
    facts |= {part: f"{count:,d} numbers" if count else "none (folded pixels)" for part, count in counts.items()}
    millions = sum(counts.values()) / 1e6
    title = f"AutoDIR, {millions:,.1f} million numbers"
    return Identity("AutoDIR", {}, title, refuses="" if "network" in card else NEEDS_CARD, facts=facts)


def _numbers(tensors: Tensors, prefix: str) -> int:
    """How many numbered children of `prefix` there are."""
    rests = (name.removeprefix(f"{prefix}.") for name in tensors if name.startswith(f"{prefix}."))
    return len({rest.split(".")[0] for rest in rests})


AUTODIR = Family(
    name="AutoDIR",
    archs=(
        "diffir_sr.archs.autodir_arch:AutoDIR",
        "diffir_sr.archs.nafnet_arch:NAFNet",
        "diffir_sr.archs.nafnet_arch:NAFNetSCM",
    ),
    models=(
        "diffir_sr.models.autodir_models:AutoDIRAssessorModel",
        "diffir_sr.models.autodir_models:AutoDIRDiffusionModel",
        "diffir_sr.models.autodir_models:AutoDIRCorrectionModel",
    ),
    datasets=("diffir_sr.data.labelled_dataset:LabelledPairsDataset",),
    losses=(
        "diffir_sr.losses.autodir_losses:PSNRLoss",
        "diffir_sr.losses.autodir_losses:FidelityLoss",
        "diffir_sr.losses.autodir_losses:CategoryCrossEntropy",
    ),
    identify=identify,
    engines={"diffir_sr.archs.autodir_arch:AutoDIR": "diffir_sr.inference.autodir:AutoDIREngine"},
)
