"""DiffIR, SR3 and DvSR at equal parameters and equal training time: python benchmarks/pixel_space_compared.py.

Trains the sides of options/ablations/pixel_space, each for --minutes of computing time on one thread (stages share
them), measures them with `diffir bench`, and writes docs/pixel_space.md with a picture for each task. Iterations are
as many as fit, by the time that the first ones take. Started again, it goes on. Needs the data of `diffir quickstart`
(tasks sr and deblur).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from setting import commit, machine

REPO = Path(__file__).resolve().parents[1]
RECIPES = Path("options/ablations/pixel_space")
SIDES = {
    "sr": {"DiffIR": ("DiffIR_S1", "DiffIR_S2"), "SR3": ("SR3",), "SR3Regression": ("SR3Regression",)},
    "deblur": {"DiffIR": ("DiffIR_S1", "DiffIR_S2"), "DvSR": ("DvSR",), "DvSRRegression": ("DvSRRegression",)},
}
TITLES = {"sr": "Super-resolution x4", "deblur": "Motion deblurring"}
LIMITS = """What these numbers cannot say: trainings of minutes on seven photographs rank how soon a network is of use,
not how good it becomes; published trainings are ten thousand times as long. Two photographs are measured, so a tenth of
a decibel means nothing. LPIPS prefers detail, PSNR its absence; a sample cannot win both. Seconds are of a CPU, on
which diffusion of pixels pays for every step; a GPU shifts them, the MACs stay.
"""
MEASURED = (4, 12)  # iterations of the two runs whose difference gives the time of one


def train(recipe, name, iterations):
    """Train, and return what computing it took, in seconds."""
    words = [sys.executable, "-m", "diffir_sr", "basicsr", "train", "-opt", str(recipe), "--auto_resume", "--force_yml"]
    words += [f"name={name}", f"train:total_iter={iterations}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_of_one(recipe):
    spent = []
    for iterations in MEASURED:
        name = f"pixel_space_timed_{iterations}"
        shutil.rmtree(Path("experiments", name), ignore_errors=True)
        spent.append(train(recipe, name, iterations))
        shutil.rmtree(Path("experiments", name))
    return (spent[1] - spent[0]) / (MEASURED[1] - MEASURED[0])


def trained(task, stages, minutes):
    """The weights of a side, and what is said of its training."""
    plans = []
    for stage in stages:
        recipe, name = RECIPES / f"{task}_{stage}.yml", f"pixel_space_{task}_{stage}"
        plan = Path("experiments", f"{name}.json")
        if plan.is_file():
            found = json.loads(plan.read_text())
        else:
            one = time_of_one(recipe)
            found = {"seconds_each": one, "iterations": max(1, int(60 * minutes / len(stages) / one))}
            plan.write_text(json.dumps(found))
        if "spent" not in found:
            found["spent"] = train(recipe, name, found["iterations"])
            plan.write_text(json.dumps(found))
        plans.append(found)
        print(name, found, flush=True)
    weights = Path("experiments", f"pixel_space_{task}_{stages[-1]}", "models", "net_g_latest.safetensors")
    return weights, plans


def main():
    parser = argparse.ArgumentParser(description="DiffIR beside SR3 and DvSR, equally large and equally long trained")
    parser.add_argument("--minutes", type=float, default=10, help="computing time of each side (10)")
    parser.add_argument("--task", choices=list(SIDES), nargs="+", default=list(SIDES))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pixel_space.md"))
    args = parser.parse_args()
    os.chdir(REPO)
    os.environ["OMP_NUM_THREADS"] = "1"
    Path("experiments").mkdir(exist_ok=True)
    text = [
        "# Diffusion of a prior beside diffusion of pixels\n",
        f"`python benchmarks/pixel_space_compared.py --minutes {args.minutes:g}`, {date.today()}, commit {commit()},",
        f"one thread of {machine()}. About a million parameters on every side, {args.minutes:g} minutes of computing",
        "for each training, the same photographs, patches, rate and averaging of weights.\n",
        LIMITS,
    ]
    for task in args.task:
        folder = Path("results/pixel_space", task)
        named, rows = [], []
        for side, stages in SIDES[task].items():
            weights, plans = trained(task, stages, args.minutes)
            named.append(folder / "weights" / f"{side}.safetensors")
            named[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(weights, named[-1])
            counts = " + ".join(str(plan["iterations"]) for plan in plans)
            rows.append(f"| {side} | {counts} | {sum(plan['spent'] for plan in plans) / 60:.1f} |")
        bench = [sys.executable, "-m", "diffir_sr", "bench", str(RECIPES / f"bench_{task}.yml"), "--device", "cpu"]
        subprocess.run([*bench, "-w", *map(str, named), "-o", str(folder)], check=True)
        picture = args.output.with_name(f"{args.output.stem}_{task}.png")
        shutil.copyfile(folder / "bench.png", picture)
        busy = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        load = f"Seconds are of the clock, under a load average of {busy}.\n"
        table = [line for line in (folder / "bench.md").read_text().splitlines() if line.startswith("|")]
        text += [f"## {TITLES[task]}\n", load, *table[: table.index("| weights | sha256 | what they are |")], ""]
        text += ["| side | iterations | minutes of computing |", "| --- | --: | --: |", *rows, ""]
        text += [f"![PSNR against seconds per picture]({picture.name})", ""]
    args.output.write_text("\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
