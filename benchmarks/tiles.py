"""What tiles cost in fidelity: python benchmarks/tiles.py -w WEIGHTS [-o FILE].

Photographs are restored whole, by exact strips, by tiles that share the picture's prior, and by tiles that are pictures
of their own, which is the usual way. The error is the difference to the whole picture's result, in 8-bit levels. Its
step is how much it differs between neighbouring pixels on both sides of a tile's edge, root mean square; beside it the
same away from the edges. A seam is a step that is larger at the edges.
"""

import argparse
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np
import skimage.data
import torch
from setting import commit

from diffir_sr import load_restorer
from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.inference.plain import in_tiles, tile_starts
from diffir_sr.inference.strips.engine import StripEngine

PHOTOGRAPHS = {
    "chelsea": lambda: skimage.data.chelsea()[:300, :400],
    "coffee": lambda: skimage.data.coffee()[:300, :400],
    "rocket": lambda: skimage.data.rocket()[100:400, :400],
}
TILE = 96


def ways(network):
    """Name to (overlap, how a picture is restored); overlap None where there are no tiles."""

    def noise(lq):
        return PictureNoise(lq)

    plain = StripEngine(network, optimized=False)
    exact = StripEngine(network)

    def shared(overlap):
        engine = StripEngine(network, tile_mode="prior", tile=TILE, overlap=overlap)
        return lambda lq: engine(lq, noise=noise(lq))

    def apart(overlap):
        def one(lq, _):
            return exact(lq, noise=noise(lq))

        def tiled(lq):
            made = in_tiles(one, network.padded(lq), tile=TILE, overlap=overlap, scale=network.scale)
            return network.cropped(made, lq)

        return tiled

    return {
        "whole, plain network": (None, lambda lq: plain(lq, noise=noise(lq))),
        "exact strips": (None, lambda lq: exact(lq, noise=noise(lq))),
        "one prior, overlap 32": (32, shared(32)),
        "one prior, no overlap": (0, shared(0)),
        "tiles apart, overlap 32": (32, apart(32)),
        "tiles apart, no overlap": (0, apart(0)),
    }


def steps(error, scale, overlap):
    """Root mean square of the error's steps at tile edges and elsewhere, over both directions."""
    at, away = [], []
    for axis in (0, 1):
        moved = np.moveaxis(error, axis, 0)
        step = np.square(np.diff(moved, axis=0)).mean(axis=(1, 2))
        starts = tile_starts(moved.shape[0] // scale, tile=TILE, overlap=overlap)
        edges = {side for start in starts[1:] for side in (start * scale - 1, (start + overlap) * scale - 1)}
        at += [step[edge] for edge in edges]
        away += [value for index, value in enumerate(step) if index not in edges]
    return np.sqrt(np.mean(at)), np.sqrt(np.mean(away))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-w", "--weights", required=True, help="a stage-2 network for super-resolution or deblurring")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    restorer = load_restorer(args.weights, device="cpu")
    network = restorer.network
    rows = {}
    for name, load in PHOTOGRAPHS.items():
        lq = torch.from_numpy(np.ascontiguousarray(load().transpose(2, 0, 1)))[None].float() / 255
        whole = None
        for way, (overlap, run) in ways(network).items():
            started = time.perf_counter()
            made = run(lq)[0].permute(1, 2, 0).numpy().astype(np.float64) * 255
            seconds = time.perf_counter() - started
            whole = made if whole is None else whole
            error = made - whole
            at, away = steps(error, network.scale, 32 if overlap is None else overlap)
            rows.setdefault(way, []).append((np.square(error).mean(), np.abs(error).max(), at, away, seconds))
            print(name, way, rows[way][-1], flush=True)
    text = report(rows, args.weights, restorer)
    if args.output:
        args.output.write_text(text)
    print(text)


def report(rows, weights, restorer):
    lines = [
        "# What tiles cost",
        "",
        f"`python benchmarks/tiles.py -w {weights}`, {date.today()}, commit {commit()}, {platform.machine()}, torch "
        f"{torch.__version__}. {restorer.describe().splitlines()[0]}; tiles of {TILE} pixels; photographs: "
        f"{', '.join(PHOTOGRAPHS)}. Error against the whole picture's result, in 8-bit levels; "
        "steps at tile edges where the tiles are, or would be.",
        "",
        "| way | PSNR to whole | largest error | step at edges | step elsewhere | ratio | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, values in rows.items():
        square, largest, at, away, seconds = np.array(values).T
        psnr = 10 * np.log10(255**2 / square.mean()) if square.any() else float("inf")
        ratio = f"{at.mean() / away.mean():.2f}" if away.any() else ""
        lines.append(
            f"| {way} | {psnr:.1f} dB | {largest.max():.2g} | {at.mean():.2g} | {away.mean():.2g} | {ratio} | "
            f"{seconds.sum():.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
