"""How much the prior matters to the networks of an ablation: python scripts/prior_worth.py options/ablations/sr_x4.yml

Run it after `diffir ablate` with the same file, in the same folder. The trained reference of every seed restores the
held-out photographs with three priors: its own estimate, the teacher's (from the ground truth), and the estimate for
the next photograph, which is unrelated. The last row is a baseline without network: bicubic enlargement, or holes
filled with the mean colour. `--doc` inserts the table into a document.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import cast

import diffir_sr  # noqa: F401 - before basicsr, which it repairs

# isort: split
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from basicsr.data import build_dataset

from diffir_sr.ablation.study import Run, check_document, fill, plan_runs, read_ablation
from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.archs.geometry import pad_to_multiple
from diffir_sr.checkpoints import fitting, read_weights
from diffir_sr.diffusion.noise import picture_noise
from diffir_sr.models.validation import measure
from diffir_sr.options import load_options

KINDS = ("its own, estimated", "the teacher's", "the next photograph's", "no network: bicubic, or mean colour")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure how much the prior matters to the networks of an ablation.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--doc", type=Path)
    args = parser.parse_args(words)
    ablation = read_ablation(args.file)
    name = f"{ablation.name}, priors"
    if args.doc:
        check_document(args.doc, name)
    runs = [run for run in plan_runs(ablation, args.file.parent) if (run.stage, run.variant) == (2, ablation.reference)]
    runs = [run for run in runs if run.seed in (args.seeds or ablation.seeds)]
    with torch.inference_mode():
        rows = [measured(run, ablation.metric) for run in runs]
    table = [f"| prior | {ablation.metric}, mean of {len(rows)} seeds | deviation | against its own |"]
    table += ["| --- | ---: | ---: | ---: |"]
    for place, kind in enumerate(KINDS):
        values = [row[place] for row in rows]
        spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
        gap = f"{fmean(values) - fmean(row[0] for row in rows):+.3f}" if place else ""
        table.append(f"| {kind} | {fmean(values):.3f} | {spread} | {gap} |")
    text = "\n".join(table)
    sys.stdout.write(f"{text}\n")
    if args.doc:
        fill(args.doc, name, text)
    return 0


def measured(run: Run, metric: str) -> list[float]:
    """Means over the held-out photographs, one per entry of KINDS."""
    opt = load_options(Path("experiments") / "ablations" / f"{run.name}.yml", check_files=False).values
    net = cast(DiffIRS2, loaded(opt["network_g"], f"experiments/{run.name}/models/net_g_latest.pth"))
    teacher = cast(DiffIRS1, loaded(opt["network_S1"], opt["path"]["pretrain_network_S1"])).E
    dataset = build_dataset({**opt["datasets"]["val"], "phase": "val", "scale": opt["scale"]})
    samples = [dataset[index] for index in range(len(dataset))]
    lqs = [degraded(sample) for sample in samples]
    whole = [net.padded(lq) for lq in lqs]
    own = [net.encode(one, noise=picture_noise(lq, width=net.prior_width)) for one, lq in zip(whole, lqs, strict=True)]
    multiple = net.multiple_of * net.scale
    taught = [
        teacher(one, pad_to_multiple(sample["gt"][None], multiple_of=multiple))
        for one, sample in zip(whole, samples, strict=True)
    ]
    how = {metric: opt["val"]["metrics"][metric]}
    with_priors = [
        fmean(
            measure(pasted(net.cropped(net.restore_under(one, prior), lq), lq, sample), sample["gt"][None], how)[metric]
            for one, lq, sample, prior in zip(whole, lqs, samples, priors, strict=True)
        )
        for priors in (own, taught, own[1:] + own[:1])
    ]
    plain = fmean(measure(cheap(sample), sample["gt"][None], how)[metric] for sample in samples)
    return [*with_priors, plain]


def loaded(options: dict, weights: str) -> torch.nn.Module:
    net = build_network(dict(options))
    net.load_state_dict(fitting(net, read_weights(weights, key="params_ema"), where=weights, strict=True))
    return net.eval()


def degraded(sample: dict) -> torch.Tensor:
    if "mask" not in sample:
        return sample["lq"][None]
    return torch.cat([sample["gt"] * (1 - sample["mask"]), sample["mask"]])[None]


def cheap(sample: dict) -> torch.Tensor:
    """The baseline without network: bicubic enlargement, or holes filled with the mean colour of the known pixels."""
    if "mask" not in sample:
        size = sample["gt"].shape[-2:]
        return F.interpolate(sample["lq"][None], size=size, mode="bicubic", align_corners=False)
    known = 1 - sample["mask"]
    mean = (sample["gt"] * known).sum(dim=(1, 2), keepdim=True) / known.sum()
    return torch.where(known > 0.5, sample["gt"], mean)[None]


def pasted(restored: torch.Tensor, lq: torch.Tensor, sample: dict) -> torch.Tensor:
    """For inpainting, replace known pixels by those of the input."""
    return torch.where(lq[:, 3:] > 0.5, restored, lq[:, :3]) if "mask" in sample else restored


if __name__ == "__main__":
    sys.exit(main())
