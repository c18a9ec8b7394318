"""Cut large images into overlapping squares, so that a training reads no more of a file than it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffir_sr.data.images import decode, encode_png, write_atomically
from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.prepare.jobs import run_all


@dataclass(frozen=True)
class Cut:
    """One image and the squares to cut out of it."""

    file: Path
    outputs: tuple[tuple[Path, int, int], ...]  # path, top, left
    size: int
    compress_level: int


def starts(length: int, *, size: int, step: int, threshold: int) -> list[int]:
    """Where squares begin along one axis, as BasicSR's script: every `step`, and one flush with the end if more
    than `threshold` pixels are left over."""
    places = list(range(0, length - size + 1, step))
    if length - (places[-1] + size) > threshold:
        places.append(length - size)
    return places


def plan(source: FolderSource, output: Path, *, size: int, step: int, threshold: int, compress_level: int) -> list[Cut]:
    """What to cut; raises InputError that lists all images smaller than a square. Files `<name>_s001.png` on."""
    if size < 1 or step < 1 or threshold < 0:
        raise InputError(f"size and step must be 1 or more, threshold 0 or more; got {size}, {step}, {threshold}")
    cuts, small = [], []
    for name in source.names:
        height, width = source.size(name)
        if min(height, width) < size:
            small.append(f"{source.file(name)}: {height}x{width}")
            continue
        corners = [
            (top, left)
            for top in starts(height, size=size, step=step, threshold=threshold)
            for left in starts(width, size=size, step=step, threshold=threshold)
        ]
        outputs = tuple(
            (output / f"{name}_s{number:03d}.png", top, left) for number, (top, left) in enumerate(corners, start=1)
        )
        cuts.append(Cut(source.file(name), outputs, size, compress_level))
    if small:
        more = f", ... ({len(small) - 10} more)" if len(small) > 10 else ""
        raise InputError(
            f"{len(small)} images are smaller than a {size}-pixel square: {', '.join(small[:10])}{more}; "
            "lower --size or remove them"
        )
    return cuts


def run(cuts: list[Cut], *, jobs: int, overwrite: bool) -> tuple[int, int]:
    """Cut; (written, kept) counts of squares. Squares that exist are kept unless `overwrite`."""
    counts = run_all(_cut_all if overwrite else _cut_missing, cuts, jobs=jobs, label="sub-images")
    written = sum(counts)
    return written, sum(len(cut.outputs) for cut in cuts) - written


def _cut_missing(cut: Cut) -> int:
    return _cut(cut, [output for output in cut.outputs if not output[0].exists()])


def _cut_all(cut: Cut) -> int:
    return _cut(cut, list(cut.outputs))


def _cut(cut: Cut, outputs: list[tuple[Path, int, int]]) -> int:
    if outputs:
        image = decode(cut.file.read_bytes(), where=str(cut.file))
        for path, top, left in outputs:
            square = image[top : top + cut.size, left : left + cut.size]
            write_atomically(encode_png(square, compress_level=cut.compress_level), path)
    return len(outputs)
