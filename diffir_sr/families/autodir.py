"""The families AutoDIR and NAFNet, and the conversion of AutoDIR's released checkpoint.

Tensors of latent diffusion are renamed by diffusers' own functions, which are not part of its public interface: only
this module calls them, and a test compares the outputs before and after renaming.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffir_sr.archs.autodir_assessor import CLIP_TEXT, CLIP_VISION, of_library
from diffir_sr.diffusion.schedule import STORED_CONSTANTS
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.families.base import Family, Identity, Tensors
from diffir_sr.families.sr3 import NEEDS_CARD
from diffir_sr.files.atomic import save_atomically, save_text, write_atomically
from diffir_sr.version import __version__
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights_files import SUFFIX, read_card_file, write_card_file

UNET, LATENTS = "model.diffusion_model.", "first_stage_model."
CLIP, CORRECTION = "model_assessment.clipmodel.", "NAFNet."
CARD, TOKENIZER = "autodir.json", "tokenizer.json"
# Prefixes of the parts in our network.
PARTS = {
    "assessor": "assessor.clipmodel.",
    "unet": "diffusion.unet.",
    "autoencoder": "diffusion.latents.net.",
    "correction": "correction.",
}
_RENAMING = "diffusers.loaders.single_file_utils:convert_ldm_{}_checkpoint"


def is_published(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the layout of AutoDIR's released checkpoint."""
    return f"{UNET}input_blocks.0.0.weight" in tensors and f"{CLIP}logit_scale" in tensors


def converted(
    tensors: Mapping[str, Tensor],
    *,
    heads: int = 8,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    crop: int = 224,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and constructor arguments of `AutoDIR` from a checkpoint in the published layout.

    Sizes are derived from shapes, except those that shapes do not show: attention `heads` of the U-Net and CLIP's
    arguments. Raises CheckpointError, which names missing parts or unknown tensors.
    """
    parts = _parted(tensors)
    arguments: dict[str, Any] = {
        "assessor": _assessor(parts["assessor"], text, vision, crop),
        "unet": _unet_sizes(parts["unet"], heads),
        "autoencoder": _autoencoder_sizes(parts["autoencoder"]),
        "correction": _correction_sizes(parts["correction"]),
    }
    unet = {f"{UNET}{name}": tensor for name, tensor in parts["unet"].items()}
    latents = {f"{LATENTS}{name}": tensor for name, tensor in parts["autoencoder"].items()}
    renamed = {
        "assessor": parts["assessor"],
        "unet": _renamed("unet", unet, arguments["unet"]),
        "autoencoder": _renamed("vae", latents, arguments["autoencoder"]),
        "correction": parts["correction"],
    }
    return {
        f"{PARTS[part]}{name}": tensor for part, named in renamed.items() for name, tensor in named.items()
    }, arguments


def _parted(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    prefixes = {"unet": UNET, "autoencoder": LATENTS, "assessor": CLIP, "correction": CORRECTION}
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in prefixes}
    strange = []
    for name, tensor in tensors.items():
        part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), None)
        if part is not None:
            if not name.endswith(
                ".position_ids"
            ):  # counts from 0, which newer versions of transformers make themselves
                parts[part][name.removeprefix(prefixes[part])] = tensor
        elif name not in STORED_CONSTANTS:
            strange.append(name)
    missing = [prefixes[part] for part, named in parts.items() if not named]
    if missing:
        raise CheckpointError(f"no tensor begins with {' or '.join(missing)}; copy or fetch the checkpoint again")
    if strange:
        raise CheckpointError(
            f"{len(strange)} tensors belong to no part of AutoDIR, such as {', '.join(strange[:3])}; give the released "
            "checkpoint, or remove them"
        )
    return parts


def _renamed(kind: str, tensors: dict[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the tensors of a part with diffusers; raises CheckpointError for missing tensors and unused ones."""
    config = {**sizes, "class_embed_type": None, "addition_embed_type": None}
    given = dict(tensors)
    try:
        made = of_library(_RENAMING.format(kind))(given, config=config)
    except KeyError as error:
        raise CheckpointError(
            f"the tensor {error.args[0]} of the {kind} is missing; copy or fetch the checkpoint again"
        ) from error
    taken = {id(tensor) for tensor in made.values()}
    # Attention of the autoencoder is stored as convolutions, which are reshaped to new tensors.
    left = [name for name, tensor in tensors.items() if id(tensor) not in taken and ".mid.attn_" not in name]
    if left:
        raise CheckpointError(f"{len(left)} tensors of the {kind} have no place, such as {', '.join(left[:3])}")
    return made


# Sizes


def _numbers(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers that the group of `pattern` matches, sorted."""
    found = (re.match(pattern, name) for name in tensors)
    return sorted({int(one.group(1)) for one in found if one})


def _unet_sizes(tensors: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    base = tensors["input_blocks.0.0.weight"].shape[0]
    entries = _numbers(tensors, r"input_blocks\.(\d+)\.")
    channels, blocks, attended = [base], [0], [False]
    width = 0
    for entry in entries[1:]:
        if f"input_blocks.{entry}.0.op.weight" in tensors:
            channels.append(0)
            blocks.append(0)
            attended.append(False)
            continue
        channels[-1] = tensors[f"input_blocks.{entry}.0.in_layers.2.weight"].shape[0]
        blocks[-1] += 1
        key = tensors.get(f"input_blocks.{entry}.1.transformer_blocks.0.attn2.to_k.weight")
        if key is not None:
            attended[-1], width = True, key.shape[1]
    if len(set(blocks)) != 1 or not width:
        raise CheckpointError(f"the U-Net has {blocks} blocks on its levels; expected as many on each, and attention")
    down = ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attended]
    up = ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attended)]
    return {
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": blocks[0],
        "cross_attention_dim": width,
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "down_block_types": down,
        "up_block_types": up,
    }


def _autoencoder_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = _numbers(tensors, r"encoder\.down\.(\d+)\.")
    blocks = _numbers(tensors, r"encoder\.down\.0\.block\.(\d+)\.")
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["post_quant_conv.weight"].shape[1],
        "block_out_channels": [tensors[f"encoder.down.{one}.block.0.conv1.weight"].shape[0] for one in levels],
        "layers_per_block": len(blocks),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
    }


def _correction_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = {side: _numbers(tensors, rf"{side}\.(\d+)\.") for side in ("encoders", "decoders")}
    counts = {
        side: [len(_numbers(tensors, rf"{side}\.{level}\.(\d+)\.")) for level in numbers]
        for side, numbers in levels.items()
    }
    return {
        "width": tensors["intro.weight"].shape[0],
        "middle_blk_num": len(_numbers(tensors, r"middle_blks\.(\d+)\.")),
        "enc_blk_nums": counts["encoders"],
        "dec_blk_nums": counts["decoders"],
    }


def _assessor(
    tensors: Mapping[str, Tensor], text: Mapping[str, Any] | None, vision: Mapping[str, Any] | None, crop: int
) -> dict[str, Any]:
    words, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    seen = tensors["vision_model.embeddings.class_embedding"].shape[0]
    for name, given, found, published in (("text", text, width, CLIP_TEXT), ("vision", vision, seen, CLIP_VISION)):
        if given is None and found != published["hidden_size"]:
            raise CheckpointError(
                f"CLIP's {name} tower has {found} channels, the released one {published['hidden_size']}; this is "
                "another model, whose heads and layers the tensors do not show"
            )
    return {
        "text": dict(text or CLIP_TEXT),
        "vision": dict(vision or CLIP_VISION),
        "projection_dim": tensors["text_projection.weight"].shape[0],
        "vocab_size": words,
        "crop": crop,
    }


# The folder that `diffir weights convert` writes: a safetensors file per part, and the network's arguments as JSON.


def is_folder(path: Path) -> bool:
    """Whether a path is a converted folder."""
    try:
        return (path / CARD).is_file()
    except OSError:  # a folder without permission; reading it as a file raises an error that names the cause
        return False


def write_folder(
    tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], folder: Path, *, vocabulary: Path | None, source: str
) -> list[Path]:
    """Write the result of `converted`; `vocabulary` is CLIP's word list or tokenizer.json. The card is written last.

    Raises InputError for an invalid vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if vocabulary is not None:
        write_atomically(_tokenizer_json(vocabulary), folder / TOKENIZER)
    written, digests = [], {}
    for part, prefix in PARTS.items():
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        path = folder / f"{part}{SUFFIX}"
        save_atomically(own, path, save=partial(_write, {"part": part, "of": "AutoDIR"}))
        written.append(path)
        digests[path.name] = sha256_of(path)
    card = {
        "network": {"type": "AutoDIR", **arguments},
        "scale": 1,
        "made from": source,
        "files": digests,
        "made with": f"diffir_sr {__version__}",
        "licence": "not stated: AutoDIR was published without one; the diffusion is Stable Diffusion's (OpenRAIL-M)",
    }
    save_text(json.dumps(card, indent=1) + "\n", folder / CARD)
    return [*written, folder / CARD]


def _write(card: Mapping[str, Any], tensors: Any, path: str) -> None:
    write_card_file(tensors, card, path)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a converted folder with the names of our network, and its card.

    Nothing in the folder is executed. Raises CheckpointError, which names missing files.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        network = dict(card["network"])
        network["assessor"] = dict(network.get("assessor") or {})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: does not describe a network ({error}); convert the checkpoint again") from error
    absent = [f"{part}{SUFFIX}" for part in PARTS if not (folder / f"{part}{SUFFIX}").is_file()]
    if absent:
        raise CheckpointError(
            f"{folder.resolve()}: {', '.join(absent)} is missing; copy the whole folder, or convert the checkpoint "
            "again: diffir weights convert autodir.ckpt -o folder"
        )
    if (folder / TOKENIZER).is_file():
        network["assessor"]["tokenizer"] = str((folder / TOKENIZER).resolve())
    tensors: dict[str, Tensor] = {}
    for part, prefix in PARTS.items():
        tensors |= {f"{prefix}{name}": value for name, value in read_card_file(folder / f"{part}{SUFFIX}")[0].items()}
    return tensors, {**card, "network": network}


def _tokenizer_json(path: Path) -> bytes:
    """CLIP's tokenizer as tokenizer.json, converted from its word list (.txt.gz) if necessary."""
    if not path.is_file():
        raise InputError(f"--tokenizer: no such file: {path}")
    data = path.read_bytes()
    try:
        if data.startswith(b"\x1f\x8b"):
            lines = gzip.decompress(data).decode("utf-8").split("\n")[1 : _MERGES + 1]
            merges = [(first, second) for first, second in (line.split() for line in lines)]
            letters = _letters()
            words = [*letters, *(f"{one}</w>" for one in letters), *("".join(pair) for pair in merges)]
            words += ["<|startoftext|>", "<|endoftext|>"]
            vocab = {word: number for number, word in enumerate(words)}
            made = of_library("transformers:CLIPTokenizer")(vocab=vocab, merges=merges)
            return made.backend_tokenizer.to_str().encode()
        of_library("tokenizers:Tokenizer").from_str(data.decode("utf-8"))
    except InputError:
        raise
    except Exception as error:  # the libraries raise various exceptions for other files
        raise InputError(
            f"--tokenizer: {path} is neither CLIP's word list (bpe_simple_vocab_16e6.txt.gz) nor a tokenizer.json "
            f"({str(error).splitlines()[0][:120]})"
        ) from error
    return data


_MERGES = 49152 - 256 - 2  # lines of the word list that CLIP uses; the file is longer


def _letters() -> list[str]:
    """A printable character for every byte, printable bytes first: the byte alphabet of GPT-2 and CLIP."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]


# Encoder blocks of released networks that are tested with local means, and the side of their training patches.
_LOCAL = {(1, 1, 1, 28): 256}
_UNCONVERTED = "in the layout of its authors; write it as a folder first: diffir weights convert FILE -o FOLDER"
_CORRECTS = "which corrects what a diffusion restored and restores no picture by itself; give the folder of an AutoDIR"


def identify(tensors: Tensors, card: Mapping[str, Any]) -> Identity | None:
    """The AutoDIR, NAFNet or structure correction with these tensors, None for others.

    The weights do not show whether means are local (`train_size`): those of the released GoPro network are. Raises
    CheckpointError for weights of this family with impossible sizes.
    """
    if is_published(tensors):
        return Identity("AutoDIR", {}, "AutoDIR as released", refuses=_UNCONVERTED)
    if {f"{PARTS['assessor']}logit_scale", f"{PARTS['correction']}intro.weight"} <= set(tensors):
        return _system(tensors, card)
    if not {"intro.weight", "ending.weight", "encoders.0.0.sca.1.weight"} <= set(tensors):
        return None
    width, seen = tensors["intro.weight"].shape[:2]
    levels = [_children(tensors, part) for part in ("encoders", "decoders")]
    arguments: dict[str, Any] = {
        "width": width,
        "middle_blk_num": _children(tensors, "middle_blks"),
        "enc_blk_nums": [_children(tensors, f"encoders.{level}") for level in range(levels[0])],
        "dec_blk_nums": [_children(tensors, f"decoders.{level}") for level in range(levels[1])],
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
    """The whole system; the arguments of its parts are only in the card."""
    counts = {
        part: sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    facts = {"task": "restoration of unknown faults, one after the other"}
    facts |= {part: f"{count:,d} numbers" if count else "none (folded pixels)" for part, count in counts.items()}
    millions = sum(counts.values()) / 1e6
    title = f"AutoDIR, {millions:,.1f} million numbers"
    return Identity("AutoDIR", {}, title, refuses="" if "network" in card else NEEDS_CARD, facts=facts)


def _children(tensors: Tensors, prefix: str) -> int:
    """The number of numbered children of `prefix`."""
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
        "diffir_sr.losses:PSNRLoss",
        "diffir_sr.losses:FidelityLoss",
        "diffir_sr.losses:CategoryCrossEntropy",
    ),
    identify=identify,
    engines={"diffir_sr.archs.autodir_arch:AutoDIR": "diffir_sr.inference.autodir:AutoDIREngine"},
)
