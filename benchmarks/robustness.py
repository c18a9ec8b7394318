"""Damaged files through the commands that read them: python benchmarks/robustness.py [-n 2000] [--seed 0] [-o NAME].

Each case is a good file of one kind, damaged by seeded chance (cut, bits flipped, blocks zeroed, replaced, doubled or
left out, bytes put in), and a command that reads it. Child processes do many cases one after the other; the one that
leads them gives each case a time limit and finds out when a child dies. NAME.json gets a row per fault, NAME.md the
counts. What counts:

    refused     the command says in a sentence what is wrong (exit code 1, or findings of `diffir doctor`)
    accepted    the command works: the damage is harmless, or cannot be seen
    unhandled   an exception that no command should let through
    hang        no end after the time limit
    half        a refused or accepted case leaves a temporary file, or a result that cannot be decoded
    killed      the process died by a signal
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from setting import commit, machine

NETWORK = dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 2, 4, 8], n_encoder_res=1)
NETWORK |= dict(ffn_expansion_factor=2.0, LayerNorm_type="BiasFree", timesteps=4, n_denoise_res=1)
NETWORK |= dict(linear_start=0.1, linear_end=0.99)
OUTCOMES = ("refused", "accepted", "unhandled", "hang", "half", "killed")


def make_good(folder):
    """Good files of every kind under `folder`; gives {kind: paths}."""
    photo = Image.fromarray(skimage.data.astronaut()[60:92, 180:220])
    alpha = photo.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.linspace(0, 255, 32 * 40).astype(np.uint8).reshape(32, 40)))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    made = {
        "rgb.png": (photo, {}),
        "alpha.png": (alpha, {}),
        "palette.png": (photo.quantize(16), {}),
        "grey16.png": (deep, {}),
        "baseline.jpg": (photo, {"quality": 90}),
        "progressive.jpg": (photo, {"quality": 90, "progressive": True}),
        "grey.jpg": (photo.convert("L"), {}),
        "lossy.webp": (photo, {"quality": 80}),
        "lossless.webp": (alpha, {"lossless": True}),
        "rgb.bmp": (photo, {}),
        "palette.bmp": (photo.quantize(16), {}),
        "plain.tif": (photo, {}),
        "lzw.tif": (photo, {"compression": "tiff_lzw"}),
        "deflate.tif": (deep, {"compression": "tiff_adobe_deflate"}),
    }
    (folder / "pictures").mkdir()
    pictures = []
    for name, (image, options) in made.items():
        image.save(folder / "pictures" / name, **options)
        pictures.append(folder / "pictures" / name)
    kinds = {"picture": pictures, "checkpoint": make_weights(folder), "LMDB": make_lmdbs(folder, photo)}
    mask = np.zeros((32, 40), np.uint8)
    mask[8:20, 10:30] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    kinds["mask"] = [folder / "mask.png"]
    (folder / "meta_info.txt").write_text("".join(f"p{number}.png (32,40,3)\n" for number in range(3)))
    kinds["meta_info"] = [folder / "meta_info.txt", folder / "cut.manifest.jsonl"]
    kinds["options"] = make_options(folder)
    if importlib.util.find_spec("av"):
        kinds["video"] = make_videos(folder, photo)
    return kinds


def make_weights(folder):
    """Weights of a tiny network for x1, as .pth and .safetensors; and of one for inpainting."""
    import torch
    from safetensors.torch import save_file

    from diffir_sr.archs.diffir_arch import DiffIRS2

    torch.manual_seed(0)
    weights = DiffIRS2(scale=1, **NETWORK).state_dict()
    torch.save({"params_ema": weights}, folder / "net.pth")
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, folder / "net.safetensors")
    torch.save({"params_ema": DiffIRS2(scale=1, task="inpaint", **NETWORK).state_dict()}, folder / "fill.pth")
    return [folder / "net.pth", folder / "net.safetensors"]


def make_lmdbs(folder, photo):
    from diffir_sr.cli import main

    (folder / "gt").mkdir()
    for number in range(3):
        photo.rotate(90 * number, expand=False).save(folder / "gt" / f"p{number}.png")
    for codec in ("png", "raw"):
        words = ["prepare", "lmdb", str(folder / "gt"), "-o", str(folder / f"{codec}.lmdb"), "--codec", codec]
        assert main([*words, "--jobs", "1"]) == 0
    assert main(["prepare", "subimages", str(folder / "gt"), "-o", str(folder / "cut"), "--size", "32"]) == 0
    return [folder / f"{codec}.lmdb" / name for codec in ("png", "raw") for name in ("data.mdb", "meta_info.txt")]


def make_options(folder):
    from diffir_sr.cli import main
    from diffir_sr.options.recipes import recipe_names, recipes_folder

    names = [name for name in recipe_names(recipes_folder()) if Path(name).name.startswith("train")]
    chosen = [names[index * len(names) // 4] for index in range(4)]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["options", "copy", *chosen, "-o", str(folder / "options")]) == 0
    return [path for path in sorted((folder / "options").rglob("*.yml")) if path.name.startswith("train")]


def make_videos(folder, photo):
    import av

    paths = []
    for name, codec in (("a.mp4", "mpeg4"), ("b.mkv", "ffv1")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=5)
            stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
            for turn in range(4):
                frame = av.VideoFrame.from_ndarray(np.roll(np.asarray(photo), turn, axis=1), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        paths.append(folder / name)
    return paths


def damage(data, rng):
    """The bytes with one to three damages of one kind, and its name."""
    data = bytearray(data)
    kind = rng.choice(("cut", "flip", "flip", "zero", "replace", "double", "leave out", "put in"))
    for _ in range(1 if kind == "cut" else rng.choice((1, 1, 3))):
        at = rng.randrange(max(1, len(data)))
        size = rng.choice((1, 4, 64, 1024))
        if kind == "cut":
            del data[at:]
        elif kind == "flip":
            for _ in range(rng.choice((1, 1, 8, 64)) if data else 0):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "zero":
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == "replace":
            data[at : at + size] = rng.randbytes(len(data[at : at + size]))
        elif kind == "double":
            data[at:at] = data[at : at + size]
        elif kind == "leave out":
            del data[at : at + size]
        else:
            data[at:at] = rng.randbytes(size)
    return bytes(data), kind


def words_of(kind, good, bad, here, seed):
    """The command that reads the damaged file `bad` (the good one is beside it in `good`), and where results go."""
    net, out = str(good / "net.pth"), str(here / "out")
    if kind == "picture":
        folder = str(bad.parent)
        return random.Random(seed).choice(
            (
                ["restore", str(bad), "-o", out, "-w", net],
                ["restore", str(bad), "-o", out, "-w", net],
                ["doctor", "data", folder, "--jobs", "1"],
                ["prepare", "downscale", folder, "-o", out, "--scale", "2", "--jobs", "1"],
                ["prepare", "lmdb", folder, "-o", f"{out}.lmdb", "--jobs", "1"],
                ["prepare", "meta", folder, "-o", f"{out}.txt", "--jobs", "1"],
            )
        )
    if kind == "video":
        return ["restore", str(bad), "-o", out, "-w", net]
    if kind == "mask":
        picture = str(good / "gt" / "p0.png")
        return ["restore", picture, "-o", out, "-w", str(good / "fill.pth"), "--mask", str(bad)]
    if kind == "checkpoint":
        picture = str(good / "gt" / "p0.png")
        return random.Random(seed).choice((["describe", str(bad)], ["restore", picture, "-o", out, "-w", str(bad)]))
    if kind == "options":
        return ["options", "check", "--no-files", str(bad)]
    if kind == "LMDB":
        root = str(bad.parent)
        return random.Random(seed).choice(
            (["doctor", "data", root, "--jobs", "1"], ["prepare", "meta", root, "-o", f"{out}.txt", "--jobs", "1"])
        )
    if bad.suffix == ".jsonl":
        return ["doctor", "data", str(here / "cut"), "--jobs", "1"]
    return ["doctor", "data", "--gt", str(good / "gt"), "--meta-info", str(bad), "--jobs", "1"]


def place(kind, source, data, here):
    """Put the damaged file where its command looks for it."""
    if kind == "LMDB":
        shutil.copytree(source.parent, here / source.parent.name)
        bad = here / source.parent.name / source.name
    elif source.suffix == ".jsonl":
        shutil.copytree(source.parent / "cut", here / "cut")
        bad = here / source.name
    elif kind == "options":  # what it is based on lies around it
        root = next(one for one in source.parents if one.name == "options")
        shutil.copytree(root, here / "options")
        bad = here / "options" / source.relative_to(root)
    else:
        bad = here / "in" / source.name
        bad.parent.mkdir(parents=True)
    bad.write_bytes(data)
    return bad


def left_half(here):
    """A temporary file, or a result that cannot be read; None if all that is there is whole."""
    for path in here.rglob("*"):
        if ".partial-" in path.name or path.name.endswith(".lock"):
            return path.name
        if path.is_file() and path.relative_to(here).parts[0] == "out" and path.suffix in (".png", ".jpg", ".bmp"):
            try:
                with Image.open(path) as image:
                    image.load()
            except Exception as error:
                return f"{path.name}: {error}"
    return None


def attempt(kind, good, source, seed):
    """One case: its outcome, the damage, the command and what was said; seeds below 0 leave the file as it is."""
    from diffir_sr.cli import CRASHED, main

    data, how = source.read_bytes(), "none"
    if seed >= 0:
        data, how = damage(data, random.Random(seed))
    with tempfile.TemporaryDirectory(dir=good.parent) as name:
        here = Path(name)
        bad = place(kind, source, data, here)
        words = words_of(kind, good, bad, here, seed)
        before = Path.cwd()
        os.chdir(here)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(words)
        except BaseException as error:
            return "unhandled", how, words, f"{type(error).__name__}: {error}"[:300]
        finally:
            os.chdir(before)
        message = (err.getvalue() + out.getvalue()).replace(str(here), "").strip()
        if code == CRASHED:
            return "unhandled", how, words, message[-500:].splitlines()[0]
        if half := left_half(here):
            return "half", how, words, half
        # The doctor's 3 is for warnings: a grey picture, another depth.
        return (
            "accepted" if code == 0 or (words[0] == "doctor" and code == 3) else "refused",
            how,
            words,
            message[-200:],
        )


def work(good, pipe):
    """A child: does the cases that it is sent, until it is sent None."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    # What C libraries say to the terminal themselves is not of interest.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        while (case := pipe.recv()) is not None:
            pipe.send(attempt(case[1], good, case[2], case[3]))


class Child:
    """A process that does cases, replaced when it dies or hangs."""

    def __init__(self, good):
        self.good = good
        self.case = None
        self.begin()

    def begin(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(self.good, other), daemon=True)
        self.process.start()
        other.close()

    def give(self, case):
        self.case, self.since = case, time.monotonic()
        self.pipe.send(case)

    def ask(self, limit):
        """The outcome of the case that was given, or None while it is at work."""
        try:
            if self.pipe.poll(0.02):
                return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            self.begin()
            return "killed", "", [], f"exit code {code}"
        if time.monotonic() - self.since > limit:
            self.process.kill()
            self.process.join()
            self.begin()
            return "hang", "", [], f"more than {limit:g} s"
        return None


def run(cases, good, *, workers, limit):
    """(case, outcome) of all cases."""
    waiting = iter(cases)
    children = [Child(good) for _ in range(workers)]
    for child in children:
        child.pipe.send((0, "picture", good / "pictures" / "rgb.png", -1))  # imports; not counted
        child.pipe.poll(600)
        child.pipe.recv()
    busy = [child for child in children if (case := next(waiting, None)) and not child.give(case)]
    while busy:
        for child in list(busy):
            if (outcome := child.ask(limit)) is None:
                continue
            yield child.case, outcome
            if case := next(waiting, None):
                child.give(case)
            else:
                child.pipe.send(None)
                busy.remove(child)


def report(rows, seconds, args):
    """The table of counts, and every fault with the seed that makes it again."""
    counts = Counter((kind, outcome) for kind, outcome, *_ in rows)
    kinds = list(dict.fromkeys(kind for kind, *_ in rows))
    lines = [
        "# Damaged files",
        "",
        f"`python benchmarks/robustness.py -n {args.number} --seed {args.seed}`, {date.today()}, commit {commit()}, "
        f"{machine()}, Python {platform.python_version()}; {len(rows):,} files in {seconds:,.0f} s. What the columns "
        "mean is said in the script; a row per fault is in the JSON beside this.",
        "",
        f"| kind | files | {' | '.join(OUTCOMES)} |",
        f"| --- | {' | '.join('---:' for _ in range(len(OUTCOMES) + 1))} |",
    ]
    for kind in [*kinds, "all"]:
        found = [sum(counts[one, outcome] for one in (kinds if kind == "all" else [kind])) for outcome in OUTCOMES]
        lines.append(f"| {kind} | {sum(found)} | {' | '.join(map(str, found))} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60, help="seconds for a case")
    parser.add_argument("--control", action="store_true", help="first see that all good files are accepted")
    parser.add_argument("--kind", help="this kind alone")
    parser.add_argument("-o", "--output", type=Path, help="name of the results without suffix")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        good = Path(name) / "good"
        good.mkdir()
        kinds = make_good(good)
        chosen = [args.kind] if args.kind else ["picture", "picture", *kinds]  # pictures have the most formats
        # A command that refuses good files would look robust.
        controls = [(0, kind, path, -seed) for kind in kinds for path in kinds[kind] for seed in range(1, 5)]
        controls = controls if args.control else []
        for case, (outcome, _, words, message) in run(controls, good, workers=args.workers, limit=600):
            if outcome != "accepted":
                sys.exit(f"a good {case[2].name} is {outcome} by {' '.join(words)}: {message}")
        cases = []
        for number in range(args.number):
            kind, seed = chosen[number % len(chosen)], args.seed * 1_000_000 + number
            cases.append((number, kind, random.Random(f"{seed} source").choice(kinds[kind]), seed))
        started, rows = time.perf_counter(), []
        for (_, kind, source, seed), (outcome, how, words, message) in run(
            cases, good, workers=args.workers, limit=args.limit
        ):
            rows.append((kind, outcome, source.name, seed, how, " ".join(words[:2]), message.replace(name, "")))
            if outcome not in ("refused", "accepted"):
                print(*rows[-1], flush=True)
        lines = report(rows, time.perf_counter() - started, args)
    print("\n".join(lines))
    if args.output:
        args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
        names = ("kind", "outcome", "file", "seed", "damage", "command", "message")
        faults = [dict(zip(names, row, strict=True)) for row in rows if row[1] not in ("refused", "accepted")]
        counts = Counter(f"{kind}: {outcome}" for kind, outcome, *_ in rows)
        content = {"commit": commit(), "number": args.number, "seed": args.seed, "counts": counts, "faults": faults}
        args.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(any(outcome not in ("refused", "accepted") for _, outcome, *_ in rows))


if __name__ == "__main__":
    main()
