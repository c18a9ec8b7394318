"""Many clients at one `diffir serve`: python benchmarks/serve_load.py [--clients 8] [--pictures 200] [-o FILE].

Starts a server on loopback. Each client restores its share of the pictures one after the other, each with a seed of its
own, and every result is compared byte for byte with what `diffir restore` writes for the same picture and seed. Memory
of the server, its threads and its folder are watched. Then all clients send twice as many requests at once as may wait:
what is refused must be refused with the sentence, and the rest must be right. Exits with 1 if anything was lost or
mixed up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

import numpy as np
import psutil
import torch
from gradio_client import Client, handle_file
from setting import commit, machine

from diffir_sr.cli import main as diffir
from diffir_sr.files.picture import encode_png

SEEDS = 3
WAITING = 8
PATIENCE = 120  # seconds for one request: other work may hold the machine
FULL = "restorations are waiting already"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Pictures of different content and size."""
    source = np.random.default_rng(0)
    made = []
    for number in range(count):
        height, width = source.integers(16, 48, 2)
        path = folder / f"seed{number % SEEDS}" / f"p{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(source.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        made.append(path)
    return made


def expected(folder: Path, target: Path) -> None:
    """What `diffir restore` writes."""
    for path in folder.iterdir():
        words = ["restore", str(path), "-o", str(target / path.name), "--seed", path.name.removeprefix("seed")]
        with contextlib.redirect_stdout(io.StringIO()):
            assert diffir(words) == 0


class Server:
    """`diffir serve` in a process of its own, watched."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        words = ["serve", "--max-waiting", str(WAITING), "--device", "cpu"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffir_sr", *words],
            stdout=subprocess.PIPE,
            stderr=(folder.parent / "server.log").open("w"),
            text=True,
            env=os.environ | {"TMPDIR": str(folder)},
            # A shell lets what it starts in the background ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[0]
        self.known = psutil.Process(self.process.pid)
        self.memory: list[int] = []
        self.threads: list[int] = []
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            self.memory.append(self.known.memory_info().rss)
            self.threads.append(self.known.num_threads())

    def disk(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def tasks(self) -> list[str]:
        return [path.name for path in self.folder.glob("*/tasks/*")]

    def end(self) -> int:
        """Interrupt it as Ctrl-C does; returns its exit code."""
        self._ended.set()
        self._watch.join()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)


def ask(client: Client, path: Path, truth: Path) -> tuple[str, float]:
    """right, wrong, refused or another error; seconds."""
    started = time.monotonic()
    seed = int(path.parent.name.removeprefix("seed"))
    try:
        _, _, result, _ = client.predict(images=[handle_file(path)], seed=seed, api_name="/restore")
    except Exception as error:  # noqa: BLE001 - every kind is counted
        return "refused" if FULL in str(error) else f"{type(error).__name__}: {error}", time.monotonic() - started
    wanted = (truth / path.parent.name / path.name).read_bytes()
    return "right" if Path(result).read_bytes() == wanted else "wrong", time.monotonic() - started


def share(address: str, paths: list[Path], truth: Path) -> list[tuple[str, float]]:
    """What one client gets for its pictures, one after the other."""
    client = Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE})
    return [ask(client, path, truth) for path in paths]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Many clients at one diffir serve, each result compared.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pictures(folder / "in", args.pictures)
        expected(folder / "in", folder / "truth")
        server = Server(folder / "server")
        try:
            started = time.monotonic()
            with ThreadPoolExecutor(args.clients) as pool:
                work = [
                    pool.submit(share, server.address, paths[client :: args.clients], folder / "truth")
                    for client in range(args.clients)
                ]
                answers = [answer for one in work for answer in one.result()]
            seconds = time.monotonic() - started
            warm, last = server.memory[len(server.memory) // 4], server.memory[-1]
            crowd = 2 * WAITING
            with ThreadPoolExecutor(crowd) as pool:  # all at once
                clients = list(
                    pool.map(
                        lambda _: Client(server.address, verbose=False, httpx_kwargs={"timeout": PATIENCE}),
                        range(crowd),
                    )
                )
                chosen = [paths[number % len(paths)] for number in range(crowd)]
                flood = list(pool.map(ask, clients, chosen, [folder / "truth"] * crowd))
            left, disk = server.tasks(), server.disk()
        finally:
            code = server.end()
        remains = list((folder / "server").glob("diffir_serve_*"))
    counts, flooded = Counter(word for word, _ in answers), Counter(word for word, _ in flood)
    waits = np.array([each for _, each in answers])
    rows = {
        "results right, of all": f"{counts['right']} of {len(paths)}",
        "pictures a second": f"{len(paths) / seconds:.2f}",
        "seconds for a picture: median, 95 %, longest": (
            f"{np.median(waits):.2f}, {np.quantile(waits, 0.95):.2f}, {waits.max():.2f}"
        ),
        "memory of the server, MiB: after a quarter, at the end, most": (
            f"{warm / 2**20:.0f}, {last / 2**20:.0f}, {max(server.memory) / 2**20:.0f}"
        ),
        "threads at most": str(max(server.threads)),
        "files in its folder at the end, MiB": f"{disk / 2**20:.1f}",
        f"{crowd} requests at once where {WAITING} may wait": ", ".join(
            f"{count} {word}" for word, count in sorted(flooded.items())
        ),
    }
    text = "\n".join(
        [
            "# Many clients at one server",
            "",
            f"`python benchmarks/serve_load.py --clients {args.clients} --pictures {args.pictures}`, {date.today()}, "
            f"commit {commit()}, torch {torch.__version__}, {machine()}, other work beside it.",
            "",
            "| | |",
            "| --- | ---: |",
            *(f"| {what} | {found} |" for what, found in rows.items()),
            "",
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text)
    faults = [word for word in counts if word != "right"]
    faults += [word for word in flooded if word not in ("right", "refused")]
    faults += [f"tasks left: {left}"] if left else []
    faults += [f"left in the temporary folder: {remains}"] if remains else []
    faults += [f"exit code {code}"] if code not in (0, 130) else []
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
