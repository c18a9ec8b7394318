"""A training step in its forms against the plain one: python benchmarks/training.py [-o FILE].

Stage 2 with pixel and prior loss, backward and Adam, on the golden networks of the paper's size and on the small x4
network. The forms take turns in one process, so that what else the machine does meets all of them; time is processor
time of one thread, and the factor is the median of the factors of each turn. Memory is what the forward
pass keeps for the backward pass, weights included.
"""

import argparse
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import diffir_sr  # noqa: E402, F401 - repairs basicsr, which the next imports

# isort: split
from golden_cases import fill, load_case  # noqa: E402
from setting import commit, machine  # noqa: E402

from diffir_sr.archs.diffir_arch import DiffIRS2  # noqa: E402
from diffir_sr.losses.diffir_losses import KDLoss  # noqa: E402
from diffir_sr.models.optimization import Acceleration, accelerate, in_precision  # noqa: E402

SMALL = dict(dim=24, num_blocks=[2, 1, 1, 1], num_refinement_blocks=2, heads=[1, 2, 4, 8], n_encoder_res=2)
SMALL |= dict(ffn_expansion_factor=2.2, LayerNorm_type="BiasFree")
TASKS = {"small sr x4": ("sr", 8, 24), "sr x4": ("sr", 2, 48), "deblur": ("deblur", 2, 128)}  # task, batch, LQ pixels
FORMS = {
    "plain": Acceleration(form="plain"),
    "fast": Acceleration(form="fast"),
    "fast, checkpointing": Acceleration(form="fast", checkpointing=True),
    "plain, bfloat16": Acceleration(form="plain", autocast="bfloat16"),
    "fast, bfloat16": Acceleration(form="fast", autocast="bfloat16"),
}
CPU = torch.device("cpu")


class Step:
    """One step of a task, on the same batch and from the same weights every time (learning rate 0)."""

    def __init__(self, name):
        task, self.batch, side = TASKS[name]
        arguments = (
            SMALL if name.startswith("small") else load_case(f"{name.replace(' ', '_')}_paper")[0]["arch_kwargs"]
        )
        self.net = DiffIRS2(task=task, **arguments).train()
        fill(self.net, "s2.")
        torch.manual_seed(0)
        self.lq = torch.rand(self.batch, 3, side, side)
        self.gt = torch.rand(self.batch, 3, side * self.net.scale, side * self.net.scale)
        self.prior, self.noise = torch.randn(2, self.batch, 256)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.0, betas=(0.9, 0.99))

    def __call__(self, train):
        """Seconds, bytes kept for the backward pass, loss."""
        accelerate(self.net, train, CPU)
        self.optimizer.zero_grad()
        kept = {}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        started = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            image, priors = in_precision(lambda: self.net(self.lq, self.prior, noise=self.noise), train.autocast, CPU)
        loss = torch.nn.functional.l1_loss(image, self.gt) + KDLoss()(self.prior, priors[-1])[1]
        loss.backward()
        self.optimizer.step()
        return time.process_time() - started, sum(kept.values()), loss.item()


def measured(name, turns):
    step = Step(name)
    found = {form: [] for form in FORMS}
    for train in FORMS.values():
        step(train)
    for _ in range(turns):
        for form, train in FORMS.items():
            found[form].append(step(train))
            print(name, form, found[form][-1], file=sys.stderr, flush=True)
    rows = []
    for form, turn in found.items():
        seconds = statistics.median(one[0] for one in turn)
        factor = statistics.median(plain[0] / one[0] for plain, one in zip(found["plain"], turn, strict=True))
        apart = abs(turn[-1][2] - found["plain"][-1][2])
        bytes_kept = statistics.median(one[1] for one in turn)
        rows.append((name, form, seconds, 1 / seconds, step.batch / seconds, factor, bytes_kept / 2**20, apart))
    return rows


def table(rows):
    head = ["task", "form", "seconds", "it/s", "images/s", "times faster", "MiB kept", "loss off by"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, form, *numbers in rows:
        shown = "{:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.0f} | {:.0e}".format(*numbers)
        lines.append(f"| {name} | {form} | {shown} |")
    return "\n".join(lines)


def chart(rows, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 2.8), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        of = [row for row in rows if row[0] == name][::-1]
        axis.barh([row[1] for row in of], [row[5] for row in of])
        axis.set(title=name, xlabel="times faster than plain")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="write the table there, the chart beside it")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.tasks:
        rows += measured(name, args.turns)
        words = " ".join(["python", "benchmarks/training.py", *sys.argv[1:]])
        text = f"# Training: a step of stage 2 in its forms\n\n{date.today()}, commit {commit()}, {machine()}, one "
        text += f"thread, processor time, torch {torch.__version__}\n\n`{words}`\n\n{table(rows)}\n"
        if args.output:
            chart(rows, args.output.with_suffix(".png"))
            args.output.write_text(f"{text}\n![times faster]({args.output.with_suffix('.png').name})\n")
    print(text)


if __name__ == "__main__":
    main()
