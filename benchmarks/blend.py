"""The dial between faithful and sharp: python benchmarks/blend.py -w S2 -g S2_GAN LQ GT [-o FILE].

Restores the pictures of LQ with `--blend S2_GAN SHARE` for shares from 0 to 1 and measures them against GT by the
super-resolution protocol: PSNR on Y, and LPIPS. A chart goes beside FILE.
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

SHARES = [index / 10 for index in range(11)]


def pictures(lq, gt):
    for path in sorted(Path(lq).iterdir()):
        if is_image_name(path.name):
            yield path, np.asarray(load_picture(Path(gt) / path.name))


def load_picture(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-w", "--weights", required=True, help="stage 2")
    parser.add_argument("-g", "--gan", required=True, help="the GAN training that started from it")
    parser.add_argument("lq")
    parser.add_argument("gt")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for share in SHARES:
        restorer = load_restorer(args.weights, blend=(args.gan, share))
        psnr, perceived = [], []
        for path, gt in pictures(args.lq, args.gt):
            made = restorer(str(path)).colours
            gt = gt[: made.shape[0], : made.shape[1]]
            both = as_unit_tensor(made), as_unit_tensor(gt)
            psnr.append(float(psnr_of(*both, border=restorer.scale, luma=True)))
            perceived.append(float(lpips(*both, net="alex")))
        rows.append((share, float(np.mean(psnr)), float(np.mean(perceived))))
        print(*rows[-1], flush=True)
    text = report(rows, args, len(psnr))
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
        "| share of the GAN weights | PSNR, dB | LPIPS |",
        "| ---: | ---: | ---: |",
        *(f"| {share:.1f} | {psnr:.2f} | {perceived:.4f} |" for share, psnr, perceived in rows),
    ]
    if args.output:
        lines += ["", f"![PSNR and LPIPS over the share]({args.output.with_suffix('.png').name})"]
    return "\n".join(lines) + "\n"


def chart(rows, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, psnr, perceived = zip(*rows, strict=True)
    figure, axis = pyplot.subplots(figsize=(5.5, 3.8), layout="constrained")
    axis.plot(perceived, psnr, marker="o")
    for share, x, y in zip(SHARES, perceived, psnr, strict=True):
        if share in (0, 0.2, 0.4, 0.6, 0.8, 1):
            axis.annotate(f"{share:g}", (x, y), textcoords="offset points", xytext=(5, 5))
    axis.set(xlabel="LPIPS (smaller is nearer to what eyes see)", ylabel="PSNR, dB", title="share of the GAN weights")
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
