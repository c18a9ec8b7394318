"""Restoring against the network as it is trained: python benchmarks/inference.py [-o FILE].

Every cell is a process of its own: network of the paper's size, random weights (the golden ones, which are harder on
rounding than trained ones), a photograph; seconds are the best of several runs after a warm-up, memory is what the run
adds to the process that holds the network (on CUDA: max_memory_allocated). RRDBNet, the network of Real-ESRGAN, stands
beside as BasicSR runs it; onnxruntime is the network as `diffir export` writes it. A chart of time and memory over
sizes goes beside FILE.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import skimage.data
import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import diffir_sr  # noqa: E402, F401 - repairs basicsr, which the next imports

# isort: split
from basicsr.archs.rrdbnet_arch import RRDBNet  # noqa: E402
from golden_cases import fill, load_case  # noqa: E402
from setting import commit, processor  # noqa: E402

from diffir_sr.archs.diffir_arch import DiffIRS2  # noqa: E402
from diffir_sr.checkpoints import load_network  # noqa: E402
from diffir_sr.diffusion.noise import PictureNoise  # noqa: E402
from diffir_sr.export import export  # noqa: E402
from diffir_sr.inference.plain import PlainEngine  # noqa: E402
from diffir_sr.inference.strips.engine import StripEngine  # noqa: E402
from diffir_sr.weights_files import write_card_file  # noqa: E402

TASKS = {"sr x4": "sr_x4_paper", "deblur": "deblur_paper", "inpaint": "inpaint_paper"}
FORMS = ("plain", "optimized", "bfloat16")
ALL = (*FORMS, "onnxruntime", "RRDBNet")
SIZES = {"sr x4": (64, 128, 256, 512, 1024), "deblur": (256, 512), "inpaint": (256, 512)}
LARGEST_PLAIN = 512  # pixels of a side; a larger one would take minutes and tens of GiB


def picture(channels, height, width):
    """A photograph, repeated to the size; a square in every 64 is missing where the network takes a mask."""
    photo = skimage.data.astronaut().astype(np.float32) / 255
    tiled = np.tile(photo, (-(-height // 512), -(-width // 512), 1))[:height, :width]
    lq = torch.from_numpy(tiled.transpose(2, 0, 1).copy())[None]
    if channels == 3:
        return lq
    mask = torch.zeros((1, 1, height, width))
    mask[:, :, [row for row in range(height) if row % 64 < 24]] = 1
    mask[:, :, :, [column for column in range(width) if column % 64 >= 24]] = 0
    return torch.cat([lq * (1 - mask), mask], dim=1)


def runner(task, form, device):
    """What restores a picture, the channels that it takes, and the bytes that it plans with (None: no plan)."""
    if form == "RRDBNet":
        torch.manual_seed(0)
        network = RRDBNet(3, 3, scale=4).eval().to(device)
        return lambda lq: torch.inference_mode()(network)(lq.to(device)).cpu(), 3, lambda *size: None
    name = TASKS[task]
    facts, _ = load_case(name)
    network = DiffIRS2(task=name.split("_")[0], **facts["arch_kwargs"]).eval().requires_grad_(False)
    fill(network, "s2")
    if form == "onnxruntime":
        return exported(network)
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    engine = StripEngine(network, device=device, dtype=dtype, optimized=form != "plain")
    return (
        lambda lq: engine(lq, noise=PictureNoise(lq)),
        network.geometry.channels,
        lambda *size: engine.plan(*size).bytes if engine.optimized else None,
    )


def exported(network):
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        weights, file = Path(folder) / "net.safetensors", Path(folder) / "net.onnx"
        write_card_file(network.state_dict(), {}, weights)
        export(load_network(weights), file)
        engine = PlainEngine(load_network(file).network)
    channels = network.geometry.channels

    def run(lq):
        mask = {"mask": lq[:, 3:]} if channels == 4 else {}
        return engine(lq[:, :3], noise=PictureNoise(lq), **mask)

    return run, channels, lambda height, width: engine.plan(height, width).bytes


class Memory:
    """What a run adds to the process, at its highest."""

    def __init__(self, device):
        self.cuda = device.startswith("cuda")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
            self.before = self.line("VmRSS")

    @staticmethod
    def line(name):
        text = Path("/proc/self/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024

    def added(self):
        return (torch.cuda.max_memory_allocated() if self.cuda else self.line("VmHWM")) - self.before


def cell(task, form, height, width, device, save):
    run, channels, plan = runner(task, form, device)
    lq = picture(channels, height, width)
    run(lq[:, :, :64, :64])
    memory = Memory(device)
    seconds = []
    while len(seconds) < 3 and sum(seconds) < 20:
        started = time.perf_counter()
        made = run(lq)
        seconds.append(time.perf_counter() - started)
    np.save(save, made.numpy())
    found = dict(task=task, form=form, height=height, width=width, seconds=min(seconds), memory=memory.added())
    return found | dict(planned=plan(height, width))


def measured(task, form, height, width, device, folder):
    file = Path(folder) / f"{task}_{form}_{height}.npy"
    words = [sys.executable, __file__, "--cell", task, form, str(height), str(width), str(file), "--device", device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} {form} {height}x{width} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    reference = file.with_name(f"{task}_plain_{height}.npy")
    if form != "RRDBNet" and reference.exists():
        difference = np.load(file).astype(np.float64) - np.load(reference)
        found |= dict(largest=float(np.abs(difference).max()), psnr=decibels(np.square(difference).mean()))
    print(found, file=sys.stderr, flush=True)
    return found


def decibels(mean_square):
    return 10 * np.log10(1 / mean_square) if mean_square else float("inf")


def table(rows):
    lines = [
        "| task | input | form | seconds | times faster | MiB | planned | share of plain | error | PSNR to plain |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        plain = next((one for one in rows if same(one, row) and one["form"] == "plain"), None)
        faster, share, largest, psnr = "", "", "", ""
        if plain and row["form"] != "plain":
            faster = f"{plain['seconds'] / row['seconds']:.2f}"
            share = f"{row['memory'] / plain['memory']:.0%}"
        if "largest" in row and row["form"] != "plain":
            largest, psnr = f"{row['largest']:.1e}", f"{row['psnr']:.1f} dB"
        planned = f"{row['planned'] / 2**20:.0f}" if row["planned"] else ""
        size = f"{row['height']} x {row['width']}"
        lines.append(
            f"| {row['task']} | {size} | {row['form']} | {row['seconds']:.2f} | {faster} | "
            f"{row['memory'] / 2**20:.0f} | {planned} | {share} | {largest} | {psnr} |"
        )
    return "\n".join(lines)


def same(one, other):
    return all(one[name] == other[name] for name in ("task", "height", "width"))


def chart(rows, file):
    """Seconds and memory over the pixels of the input; linear growth is a line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for form in FORMS:
        of = [row for row in rows if row["form"] == form and row["task"] == "sr x4"]
        pixels = [row["height"] * row["width"] for row in of]
        axes[0].loglog(pixels, [row["seconds"] for row in of], marker="o", label=form)
        axes[1].loglog(pixels, [row["memory"] / 2**20 for row in of], marker="o", label=form)
    for axis, name in zip(axes, ("seconds", "memory of the run, MiB"), strict=True):
        axis.set(xlabel="pixels of the input", ylabel=name)
        low, high = axis.get_ylim()
        wide = np.array(axis.get_xlim())
        axis.plot(wide, low * wide / wide[0], color="0.7", linestyle=":", label="linear")
        axis.set_ylim(low, high)
        axis.set_xlim(wide)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("DiffIR x4 of the paper's size")
    figure.savefig(file, dpi=110)


def machine(device):
    where = torch.cuda.get_device_name() if device.startswith("cuda") else processor()
    return (
        f"{date.today()}, commit {commit()}, {where}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}"
    )


def cells(device, largest, forms, tasks):
    for task, sizes in SIZES.items():
        if task not in tasks:
            continue
        for size in sizes:
            for form in forms:
                if (
                    size <= largest
                    and (form not in ("plain", "onnxruntime") or size <= LARGEST_PLAIN)
                    and form != "RRDBNet"
                ):
                    yield task, form, size, size
            if task == "sr x4" and size == 256 and "RRDBNet" in forms:
                yield task, "RRDBNet", size, size
    if device.startswith("cuda"):  # the input that papers on efficiency take
        yield from (("sr x4", form, 480, 640) for form in forms)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="write the table there, the chart beside it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--largest", type=int, default=1024, help="leave out larger sides (default 1024)")
    parser.add_argument("--forms", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--cell", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        task, form, height, width, file = args.cell
        print(json.dumps(cell(task, form, int(height), int(width), args.device, file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(*one, args.device, folder) for one in cells(args.device, args.largest, args.forms, args.tasks)]
    text = f"# Restoring: the inference form against the plain network\n\n{machine(args.device)}\n\n`{command()}`\n\n"
    text += f"{table(rows)}\n"
    if args.output:
        if set(FORMS) <= set(args.forms) and "sr x4" in args.tasks:
            chart(rows, args.output.with_suffix(".png"))
            text += f"\n![time and memory over sizes]({args.output.with_suffix('.png').name})\n"
        args.output.write_text(text)
    print(text)


def command():
    return " ".join(["python", "benchmarks/inference.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
