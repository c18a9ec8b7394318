"""What AutoDIR's loop costs beside its networks, in time and in memory: python benchmarks/autodir_loop.py.

Restores a photograph with the shipped model in two fixed rounds. Time is processor time of one thread: of the whole
call, and within the calls of text tower, image tower, U-Net and correction. Memory is that of tensors which operations
make: the peak of the whole call, and the largest peak of a single call of one part; with --offload, only that part's
weights are on the accelerator beside them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import skimage.data
import torch
from setting import commit, machine

from diffir_sr import load_restorer
from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.inference.plain import LivingBytes

RESULT = Path(__file__).parent / "results" / "autodir_loop.md"


def watched(parts, clock):
    """Call `clock` with the name of a part when it starts, and with None when it ends."""
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: clock(name))
        part.register_forward_hook(lambda *_: clock(None))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-w", "--weights", type=Path, help="an AutoDIR (default: the shipped one)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = {"weights": args.weights} if args.weights else {"model": "autodir"}
    net = load_restorer(**given, device="cpu").network
    net.adjust(degradations=["underexposure", "rain"])
    picture = np.ascontiguousarray(skimage.data.coffee()[: args.side, : args.side])
    lq = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    clip = net.assessor.clipmodel
    parts = {"text": clip.text_model, "image": clip.vision_model, "unet": net.diffusion.unet, "scm": net.correction}

    spent, started = dict.fromkeys(parts, 0.0), [("", 0.0)]

    def clock(name):
        now = time.process_time()
        if name is None:
            spent[started[0][0]] += now - started[0][1]
        else:
            started[0] = name, now

    living, peaks, before = LivingBytes(), dict.fromkeys(parts, 0), [("", 0)]

    def weigh(name):
        if name is None:
            peaks[before[0][0]] = max(peaks[before[0][0]], living.peak - before[0][1])
            whole[0] = max(whole[0], living.peak)
        else:
            whole[0] = max(whole[0], living.peak)
            before[0], living.peak = (name, living.now), living.now

    def restore():
        # The plan is fixed, so that both runs do the same; the assessor is asked once per round, as without a plan.
        for _ in range(2):
            net(lq)
        net.restore(lq, noise=PictureNoise(lq))

    doing = [lambda name: None]
    watched(parts, lambda name: doing[0](name))
    with torch.inference_mode():
        restore()
        doing[0] = clock
        begin = time.process_time()
        for _ in range(args.repeats):
            restore()
        total = time.process_time() - begin
        doing[0], whole = weigh, [0]
        with living:
            restore()
        whole[0] = max(whole[0], living.peak)
    bare = sum(spent.values())
    weights = {name: sum(one.nbytes for one in part.parameters()) for name, part in parts.items()}
    rows = [
        f"| {name} | {spent[name] / args.repeats:.3f} | {weights[name] / 2**20:.1f} | {peaks[name] / 2**20:.1f} |"
        for name in parts
    ]
    RESULT.write_text(
        f"""# What the loop of AutoDIR costs

Two rounds of {net.restore_settings.steps} steps on {args.side} x {args.side} pixels, one thread, {args.repeats} runs
({machine()}; {commit()}).

| part | s per picture | weights, MiB | activations of one call, MiB |
| --- | --: | --: | --: |
{chr(10).join(rows)}
| whole | {total / args.repeats:.3f} | {sum(weights.values()) / 2**20:.1f} | {whole[0] / 2**20:.1f} |

The loop takes {(total - bare) / bare:.2%} more time than its networks. With `--offload`, weights of one part at a time
and the activations are on the accelerator: {(max(weights.values()) + whole[0]) / 2**20:.1f} MiB at most, and
{(max(weights.values()) + max(peaks.values())) / 2**20:.1f} MiB for the largest part by itself.
"""
    )
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
