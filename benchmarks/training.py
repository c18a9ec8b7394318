"""A training step in its forms against the plain one: python benchmarks/training.py [-o FILE].

A whole step of a stage: forward, losses, backward and Adam, on the golden networks of the paper's size and on the small
x4 network. Stage "gan" is stage 2 with the features of a VGG19 (untrained: its weights cost no time) compared, a U-Net
discriminator's judgement, and the discriminator's own step. The forms take turns in one process, so that what else the
machine does meets all of them; time is processor time of one thread, and the factor is the median of the factors of
each turn. Peak memory is what a step adds to what the process holds before it (weights, optimizer, batch).
"""

import argparse
import ctypes
import gc
import os
import re
import shlex
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
import torchvision

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import diffir_sr  # noqa: E402, F401 - repairs basicsr, which the next imports

# isort: split
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN  # noqa: E402
from basicsr.losses.gan_loss import GANLoss  # noqa: E402
from golden_cases import fill, load_case  # noqa: E402
from setting import commit, machine  # noqa: E402

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2  # noqa: E402
from diffir_sr.losses import KDLoss  # noqa: E402
from diffir_sr.models.auxiliary import Discriminator  # noqa: E402
from diffir_sr.models.optimization import (  # noqa: E402
    Acceleration,
    accelerate,
    channels_last,
    compiler_fault,
    half_precision_fault,
    in_precision,
)

SMALL = dict(dim=24, num_blocks=[2, 1, 1, 1], num_refinement_blocks=2, heads=[1, 2, 4, 8], n_encoder_res=2)
SMALL |= dict(ffn_expansion_factor=2.2, LayerNorm_type="BiasFree")
CPU = torch.device("cpu")


def paper(case):
    return lambda: load_case(case)[0]["arch_kwargs"]


# Task, arguments of the network, batch, pixels of a side of the degraded picture.
STAGES = ("1", "2", "gan")
TASKS = {
    "small sr x4": ("sr", lambda: SMALL, 8, 24),
    "sr x4": ("sr", paper("sr_x4_paper"), 2, 48),
    "deblur": ("deblur", paper("deblur_paper"), 2, 128),
    "inpaint": ("inpaint", paper("inpaint_paper"), 2, 128),
}
FORMS = {
    "plain": {},
    "plain, channels_last": dict(channels_last=True),
    "plain, compile": dict(compile=True),
    "plain, checkpointing": dict(checkpointing=True),
    "plain, bfloat16": dict(autocast="bfloat16"),
    "fast": dict(form="fast"),
    "fast, checkpointing": dict(form="fast", checkpointing=True),
    "fast, bfloat16": dict(form="fast", autocast="bfloat16"),
    "fast, bfloat16, checkpointing": dict(form="fast", autocast="bfloat16", checkpointing=True),
}


def possible(form):
    """The options of a form, or None with a word to the reader where this machine cannot compute it."""
    options = Acceleration.model_validate(dict(form="plain") | FORMS[form])
    fault = half_precision_fault(options.autocast, CPU) if options.autocast != "none" else None
    fault = fault or (compiler_fault(CPU) if options.compile else None)
    if fault:
        print(f"{form}: left out, {fault}", file=sys.stderr)
    return None if fault else options


class Step:
    """One step of a task and stage, on the same batch and from the same weights every time (learning rate 0)."""

    def __init__(self, name, stage):
        task, arguments, self.batch, side = TASKS[name]
        arguments = arguments()
        if stage == "1":
            own = ("timesteps", "n_denoise_res", "linear_start", "linear_end")
            self.net = DiffIRS1(task=task, **{key: value for key, value in arguments.items() if key not in own})
        else:
            self.net = DiffIRS2(task=task, **arguments)
        fill(self.net.train(), f"s{1 if stage == '1' else 2}.")
        torch.manual_seed(0)
        self.lq = torch.rand(self.batch, self.net.geometry.channels, side, side)
        self.gt = torch.rand(self.batch, 3, side * self.net.scale, side * self.net.scale)
        self.prior, self.noise = torch.randn(2, self.batch, 256)
        self.stage = stage
        self.optimizer = self.still(self.net)
        if stage == "gan":
            net = UNetDiscriminatorSN(3)
            self.adversary = Discriminator(net, loss=GANLoss("vanilla", loss_weight=0.1), optimizer=self.still(net))
            self.vgg = torchvision.models.vgg19(weights=None).features[:35].eval().requires_grad_(False)

    @staticmethod
    def still(net):
        return torch.optim.Adam(net.parameters(), lr=0.0, betas=(0.9, 0.99))

    def __call__(self, options):
        """Seconds and loss."""
        self.optimizer.zero_grad()
        lq, gt = channels_last((self.lq, self.gt)) if options.channels_last else (self.lq, self.gt)
        started = time.process_time()
        if self.stage == "1":
            image, _ = in_precision(lambda: self.net(lq, gt), options.autocast, CPU)
            loss = torch.nn.functional.l1_loss(image, gt)
        else:
            image, priors = in_precision(lambda: self.net(lq, self.prior, noise=self.noise), options.autocast, CPU)
            loss = torch.nn.functional.l1_loss(image, gt) + KDLoss()(self.prior, priors[-1])[1]
        if self.stage == "gan":
            loss = (
                loss + torch.nn.functional.l1_loss(self.vgg(image), self.vgg(gt)) + self.adversary.generator_loss(image)
            )
        loss.backward()
        self.optimizer.step()
        if self.stage == "gan":
            self.adversary.train_step(gt, image.detach())
        return time.process_time() - started, loss.item()


def memory(key):
    """VmRSS or VmHWM, the memory that this process holds or held at most, bytes."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def peak_of(step, options):
    """Bytes that a step adds at most."""
    step.optimizer.zero_grad()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step(options)
    return memory("VmHWM") - before


def prepared(name, stage, forms):
    """For each form, how to take a step in it and its options."""
    shared, made = Step(name, stage), {}
    for form, options in forms.items():
        # What these two change stays changed: they have a network of their own.
        own = options.compile or options.channels_last
        step = Step(name, stage) if own else shared
        if options.channels_last:
            step.net.to(memory_format=torch.channels_last)
        if own:
            accelerate(step.net, options, CPU)
        made[form] = step, options
    return made


def measured(name, stage, forms, turns):
    steps, found, peaks = prepared(name, stage, forms), {form: [] for form in forms}, {}

    def taken(form, act):
        step, options = steps[form]
        if not (options.compile or options.channels_last):
            accelerate(step.net, options, CPU)
        made = act(step, options)
        print(name, stage, form, made, file=sys.stderr, flush=True)
        return made

    for form, (step, options) in steps.items():
        if not step.optimizer.state or options.compile:
            taken(form, Step.__call__)  # makes the states of Adam, compiles
        peaks[form] = taken(form, peak_of)
    for _ in range(turns):
        for form in forms:
            found[form].append(taken(form, Step.__call__))
    rows = []
    for form, turn in found.items():
        seconds = statistics.median(one[0] for one in turn)
        factor = statistics.median(plain[0] / one[0] for plain, one in zip(found["plain"], turn, strict=True))
        apart = abs(turn[-1][1] - found["plain"][-1][1])
        share = peaks[form] / peaks["plain"]
        batch = steps[form][0].batch
        speed = (seconds, 1 / seconds, batch / seconds, factor)
        rows.append((f"{name}, stage {stage}", form, *speed, peaks[form] / 2**20, share, apart))
    return rows


def table(rows):
    head = ["task", "form", "seconds", "it/s", "images/s", "times faster", "peak MiB", "share of plain", "loss off by"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, form, *numbers in rows:
        shown = "{:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.0f} | {:.2f} | {:.0e}".format(*numbers)
        lines.append(f"| {name} | {form} | {shown} |")
    return "\n".join(lines)


def chart(rows, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = pyplot.subplots(len(names), 2, figsize=(11, 2.3 * len(names)), layout="constrained", squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        of = [row for row in rows if row[0] == name][::-1]
        for axis, column, label in ((left, 5, "times faster than plain"), (right, 6, "peak memory of a step, MiB")):
            axis.barh([row[1] for row in of], [row[column] for row in of])
            axis.set(title=name, xlabel=label)
            axis.grid(axis="x", alpha=0.3)
        right.set_yticklabels([])
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="write the table there, the chart beside it")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="beside plain")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = dict.fromkeys(["plain", *args.forms])
    forms = {form: options for form in chosen if (options := possible(form))}
    command = shlex.join(["python", "benchmarks/training.py", *sys.argv[1:]])
    load = f"{os.getloadavg()[2]:.0f} processes wanted a core in the quarter of an hour before"
    where = f"{date.today()}, commit {commit()}, {machine()}, one thread, processor time, torch {torch.__version__}"
    rows, text = [], ""
    for name in args.tasks:
        for stage in args.stages:
            if stage == "gan" and "sr" not in name:
                continue  # the recipes of deblurring and inpainting have other adversaries or none
            rows += measured(name, stage, forms, args.turns)
            text = f"# Training: a step in its forms\n\n{where}; {load}\n\n`{command}`\n\n{table(rows)}\n"
            if args.output:
                chart(rows, args.output.with_suffix(".png"))
                args.output.write_text(f"{text}\n![speed and memory]({args.output.with_suffix('.png').name})\n")
    print(text)


if __name__ == "__main__":
    main()
