"""The dial between faithful and sharp: python benchmarks/blend.py -w S2 -g S2_GAN LQ GT [-o FILE].

Restores the pictures of LQ with `--blend S2_GAN SHARE` for shares from 0 to 1 and measures them against GT by the
super-resolution protocol: PSNR on Y, and LPIPS. For comparison, the same shares of the two results are mixed pixel by
pixel, which takes two restorations. S2 and S2_GAN are files or names of models. A chart goes beside FILE.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np
import torch
from setting import commit

from diffir_sr import load_restorer
from diffir_sr.files.images import is_image_name
from diffir_sr.metrics import as_unit_tensor, lpips
from diffir_sr.metrics import psnr as psnr_of
from diffir_sr.weights.registry import registry

SHARES = [index / 10 for index in range(11)]


def pictures(lq, gt):
    for path in sorted(Path(lq).iterdir()):
        if is_image_name(path.name):
            yield path, np.asarray(load_picture(Path(gt) / path.name))


def load_picture(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def restorer_of(name, **how):
    return load_restorer(model=name, **how) if name in registry() else load_restorer(name, **how)


def measured(made, truth, scale):
    """Mean PSNR and LPIPS."""
    psnr, perceived = [], []
    for image, gt in zip(made, truth, strict=True):
        both = as_unit_tensor(image), as_unit_tensor(np.ascontiguousarray(gt[: image.shape[0], : image.shape[1]]))
        psnr.append(float(psnr_of(*both, border=scale, luma=True)))
        perceived.append(float(lpips(*both, net="alex")))
    return float(np.mean(psnr)), float(np.mean(perceived))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-w", "--weights", required=True, help="stage 2")
    parser.add_argument("-g", "--gan", required=True, help="the GAN training that started from it")
    parser.add_argument("lq")
    parser.add_argument("gt")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    found = list(pictures(args.lq, args.gt))
    faithful, sharp = (
        [end(str(path)).colours for path, _ in found] for end in map(restorer_of, (args.weights, args.gan))
    )
    rows = []
    for share in SHARES:
        restorer = restorer_of(args.weights, blend=(args.gan, share))
        by_weights = [restorer(str(path)).colours for path, _ in found]
        by_pixels = [
            np.rint((1 - share) * one.astype(float) + share * two).astype(one.dtype)
            for one, two in zip(faithful, sharp, strict=True)
        ]
        truth = [gt for _, gt in found]
        rows.append((share, *measured(by_weights, truth, restorer.scale), *measured(by_pixels, truth, restorer.scale)))
        print(*rows[-1], flush=True)
    text = report(rows, args, len(found))
    if args.output:
        chart(rows, args.output.with_suffix(".png"))
        args.output.write_text(text)
    print(text)


def report(rows, args, count):
    lines = [
        "# The dial between faithful and sharp",
        "",
        f"`python benchmarks/blend.py -w {args.weights} -g {args.gan} {args.lq} {args.gt}`, {date.today()}, commit "
        f"{commit()}, torch {torch.__version__}, {count} pictures. PSNR on Y, border of the scale; LPIPS (AlexNet).",
        "",
        "| share of the GAN | PSNR, dB (weights) | LPIPS (weights) | PSNR, dB (pixels) | LPIPS (pixels) |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(f"| {share:.1f} | {a:.2f} | {b:.4f} | {c:.2f} | {d:.4f} |" for share, a, b, c, d in rows),
    ]
    if args.output:
        lines += ["", f"![PSNR and LPIPS over the share]({args.output.with_suffix('.png').name})"]
    return "\n".join(lines) + "\n"


def chart(rows, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, psnr, perceived, psnr_pixels, perceived_pixels = zip(*rows, strict=True)
    figure, axis = pyplot.subplots(figsize=(5.5, 3.8), layout="constrained")
    axis.plot(perceived, psnr, marker="o", label="weights interpolated (--blend)")
    axis.plot(perceived_pixels, psnr_pixels, marker=".", linestyle="--", label="results mixed pixel by pixel")
    axis.legend()
    for share, x, y in zip(SHARES, perceived, psnr, strict=True):
        if share in (0, 0.2, 0.4, 0.6, 0.8, 1):
            axis.annotate(f"{share:g}", (x, y), textcoords="offset points", xytext=(5, 5))
    axis.set(xlabel="LPIPS (smaller is nearer to what eyes see)", ylabel="PSNR, dB", title="share of the GAN weights")
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
