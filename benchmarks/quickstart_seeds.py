"""Run the quick start for several seeds and write what it reached: python benchmarks/quickstart_seeds.py 0 1 2.

Writes benchmarks/results/quickstart.md, or quickstart_TASK.md with --task. About eight minutes a seed on two cores.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from setting import commit, machine

REPO = Path(__file__).resolve().parents[1]


def run(seed, name, task):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "diffir_sr", "quickstart", "--task", task, "--seed", str(seed)]
        subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(REPO)}, check=True)
        minutes = (time.perf_counter() - start) / 60
        return minutes, Path(folder, "results", name, "summary.md").read_text()


def main():
    parser = argparse.ArgumentParser(description="Run the quick start of a task for several seeds.")
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--task", default="sr", choices=["sr", "realsr", "deblur", "inpaint"])
    args = parser.parse_args()
    name = "quickstart" if args.task == "sr" else f"quickstart_{args.task}"
    parts = [
        "# The quick start on several seeds" + ("" if args.task == "sr" else f": {args.task}"),
        "",
        f"`python benchmarks/quickstart_seeds.py {' '.join(sys.argv[1:])}`, {date.today()}, commit {commit()}, "
        f"{machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}.",
    ]
    for seed in args.seeds:
        minutes, summary = run(seed, name, args.task)
        parts += ["", f"## Seed {seed}, {minutes:.1f} minutes", "", summary.strip()]
        (REPO / "benchmarks/results").mkdir(exist_ok=True)
        (REPO / f"benchmarks/results/{name}.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
