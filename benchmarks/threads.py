"""An iteration of the quick start alone and beside two busy processes: python benchmarks/threads.py [-o FILE].

Each row is a way that OpenMP threads wait for each other; every measurement is a process of its own, since the runtime
reads its settings once. The busy processes count in Python, one thread each. The ways take turns.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from setting import REPO, commit, machine

from diffir_sr.cli import WAITING

ITERATIONS = 4
WAYS = {
    "the runtime's default (before)": {},
    "they sleep (now)": WAITING,
    "no other thread": {"OMP_NUM_THREADS": "1"},
}


def iterations():
    """Print the seconds of iterations in this process: a step of stage 2 of the quick start."""
    import torch
    import yaml

    from diffir_sr.archs.diffir_arch import DiffIRS2
    from diffir_sr.models.optimization import Acceleration, accelerate

    network = yaml.safe_load((REPO / "options/small/sr/network.yml").read_text())["network_g"]
    torch.manual_seed(0)
    net = DiffIRS2(task="sr", **network).train()
    accelerate(net, Acceleration.of({}), torch.device("cpu"))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    lq, gt, (prior, noise) = torch.rand(8, 3, 24, 24), torch.rand(8, 3, 96, 96), torch.randn(2, 8, 256)
    for index in range(ITERATIONS + 1):
        started = time.perf_counter()
        optimizer.zero_grad()
        image, priors = net(lq, prior, noise=noise)
        (torch.nn.functional.l1_loss(image, gt) + torch.nn.functional.l1_loss(priors[-1], prior)).backward()
        optimizer.step()
        if index:
            print(torch.get_num_threads(), time.perf_counter() - started, flush=True)


@contextlib.contextmanager
def busy(count):
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


def measured(settings, beside):
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    with busy(beside):
        command = [sys.executable, __file__, "--child"]
        done = subprocess.run(command, env=bare | settings, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return int(rows[0][0]), statistics.median(float(seconds) for _, seconds in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return iterations()
    found = {way: {0: [], 2: []} for way in WAYS}
    threads, load = {}, os.getloadavg()[0]
    for _ in range(args.turns):
        for beside in (0, 2):
            for way, settings in WAYS.items():
                threads[way], seconds = measured(settings, beside)
                found[way][beside].append(seconds)
                print(way, beside, seconds, file=sys.stderr, flush=True)
    lines = [
        "# Threads that wait: an iteration of the quick start",
        "",
        f"`python benchmarks/threads.py`, {date.today()}, commit {commit()}, {machine()}. Stage 2, batch 8, seconds: "
        f"median of {args.turns} processes of the median of {ITERATIONS} iterations. Load of the machine before the "
        f"first: {load:.1f}.",
        "",
        "| how threads wait | threads | alone | beside two busy processes |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way, times in found.items():
        cells = [f"{statistics.median(times[beside]):.2f}" for beside in (0, 2)]
        lines.append(f"| {way} | {threads[way]} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)
    return None


if __name__ == "__main__":
    main()
