"""A list of the images of a folder, LMDB or shards in BasicSR's format: `name (h,w,c)` per line."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffir_sr.data.sources import FolderSource, ImageSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.files.images import header
from diffir_sr.prepare.jobs import examples, run_all, say


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise InputError if the list cannot be written because something else exists there."""
    if output.is_dir():
        raise InputError(f"{output.absolute()} is a folder; give a file, such as {output}/meta_info.txt")
    if output.exists() and not overwrite:
        raise InputError(f"{output.absolute()} exists; choose another name or give --overwrite")


def write_meta(source: ImageSource, output: Path, *, jobs: int) -> int:
    """Write relative path with extension and shape (channels without alpha) of every image; returns their number.

    Images of LMDBs and shards are listed as .png, which readers of such lists remove.
    """
    if isinstance(source, FolderSource):
        files = [source.file(name) for name in source.names]
        shapes = run_all(_shape, files, jobs=jobs, label="meta")
        names = [source.relative(name) for name in source.names]
        lines = [f"{name} {shape}\n" for name, shape in zip(names, shapes, strict=True)]
    else:
        lines = [f"{name}.png ({','.join(map(str, source.shape(name)))})\n" for name in source.names]
    write_report("".join(sorted(lines)), output)
    return len(lines)


def _shape(file: Path) -> str:
    found = header(file)
    return f"({found.height},{found.width},{found.channels})"


def command(args: argparse.Namespace) -> int:
    """`diffir prepare meta`."""
    source = open_source(args.input)
    check_output(args.output, overwrite=args.overwrite)
    if args.dry_run:
        paths = examples([Path(source.location(name)) for name in source.names])
        return say(f"would list {len(source.names)} images in {args.output}:{paths}")
    return say(f"{args.output}: {write_meta(source, args.output, jobs=args.jobs)} images")
