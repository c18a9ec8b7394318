"""Make a shipped weights file of a trained one: python scripts/ship_model.py WEIGHTS CARD.yml -o FILE.

Every tensor is stored once and in float16, apart from the constants of the diffusion's schedule; the model card is what
the training wrote, with the entries of CARD.yml and the means of a `diffir evaluate --json` or `diffir bench`. Restores
a picture with both files and refuses if they differ by more than rounding. Prints the lines for the registry.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import yaml

from diffir_sr import load_restorer
from diffir_sr.diffusion.schedule import schedule_constants
from diffir_sr.weights_files import read_card_file, write_card_file

MOST = 2e-3  # of 1: how far a picture may move by rounding the weights; half a step of 8 bits


def stored(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as they are shipped: no second copies, float16 but for the schedule."""
    schedule = {f"diffusion.{name}" for name in schedule_constants(torch.full((4,), 0.1, dtype=torch.float64))}
    # DiffIR's walk holds its prior encoder and its denoiser once more.
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name in schedule or not name.startswith(("diffusion.condition.", "diffusion.model."))
    }
    return {
        name: tensor.half() if tensor.is_floating_point() and name not in schedule else tensor
        for name, tensor in kept.items()
    }


def measured(found: dict[str, Any], weights: Path) -> dict[str, dict[str, float]]:
    """Means of each metric, by what they are of."""
    if "methods" not in found:
        means = {f"{found['images']} held-out photographs": found["mean"]}
    else:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        rows = [row for row in found["methods"] if row["sha256"] == digest]
        if not rows:
            raise SystemExit(f"{weights}: its sha256 is not among the weights that were measured")
        sizes = {name: one["images"] for name, one in found["sets"].items()}
        means = {f"{sizes[name]} photographs, {name}": one["measured"] for name, one in rows[0]["sets"].items()}
    return {of: {name: round(value, 4) for name, value in mean.items()} for of, mean in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path, help=".safetensors that a training wrote")
    parser.add_argument("card", type=Path, help="entries of the model card (YAML)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--measured", type=Path, help="what `diffir evaluate --json` wrote, or bench.json")
    args = parser.parse_args()
    tensors, card = read_card_file(args.weights)
    card |= yaml.safe_load(args.card.read_text())["card"]
    card["weights"] = f"{card['weights']}, stored in float16"
    if args.measured:
        card["metrics"] = measured(json.loads(args.measured.read_text()), args.weights)
    write_card_file(stored(tensors), card, args.output)

    task = card.get("task")  # AutoDIR has none
    picture = np.ascontiguousarray(skimage.data.coffee()[:96, :128]).astype(np.float32) / 255
    mask = np.zeros(picture.shape[:2], bool)
    mask[40:50, 20:90] = True
    asked = {"mask": mask} if task == "inpaint" else {}
    whole, rounded = (load_restorer(file, device="cpu")(picture, **asked) for file in (args.weights, args.output))
    moved = float(np.abs(whole - rounded).max())
    if moved > 10 * MOST or float(np.abs(whole - rounded).mean()) > MOST:
        args.output.unlink()
        raise SystemExit(f"{args.output}: rounding moves a picture by up to {moved:.4f} of 1; nothing is kept")
    data = args.output.read_bytes()
    sys.stdout.write(f"{args.output}: {len(data):,d} bytes, moves a picture by {moved:.5f} of 1 at most\n")
    sys.stdout.write(f"  sha256: {hashlib.sha256(data).hexdigest()}\n")


if __name__ == "__main__":
    main()
