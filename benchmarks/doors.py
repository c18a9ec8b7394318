"""What a command costs before it does anything: python benchmarks/doors.py [-o FILE].

CPU seconds and peak memory of commands that need no network, beside those of Python itself and of importing torch.
"""

import argparse
import resource
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median

from setting import commit, machine

SCRIPTS = Path(sys.executable).parent
ROWS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "diffir --version": [SCRIPTS / "diffir", "--version"],
    "diffir --help": [SCRIPTS / "diffir", "--help"],
    "diffir restor (misspelt)": [SCRIPTS / "diffir", "restor"],
    "diffir completion bash": [SCRIPTS / "diffir", "completion", "bash"],
    "diffir restore --help": [SCRIPTS / "diffir", "restore", "--help"],
    "diffir prepare --help": [SCRIPTS / "diffir", "prepare", "--help"],
    "basicsr --version": [SCRIPTS / "basicsr", "--version"],
    "python -c 'import diffir_sr'": [sys.executable, "-c", "import diffir_sr"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}
MEASURED = (
    "import resource, subprocess, sys\n"
    "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "print(used.ru_utime + used.ru_stime, used.ru_maxrss)\n"
)


def cost(words, repeats=5):
    """CPU seconds (median) and peak MB of a command; a process of its own keeps the peaks apart."""
    runs = []
    for _ in range(repeats):
        measured = subprocess.check_output([sys.executable, "-c", MEASURED, *map(str, words)], text=True).split()
        runs.append((float(measured[0]), int(measured[1]) / 1024))
    return median(run[0] for run in runs), max(run[1] for run in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    lines = ["# Doors", "", f"`python benchmarks/doors.py`, {date.today()}, {commit()}, {machine()}.", ""]
    lines += ["| command | CPU seconds | peak memory (MB) |", "| --- | --: | --: |"]
    for name, words in ROWS.items():
        seconds, peak = cost(words)
        lines.append(f"| `{name}` | {seconds:.2f} | {peak:.0f} |")
    text = "\n".join(lines) + "\n"
    if args.output:
        args.output.write_text(text)
    print(text)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
