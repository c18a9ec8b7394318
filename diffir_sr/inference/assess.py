"""`diffir assess`: the degradation of pictures by AutoDIR's assessor, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.parsing import add_accept_damaged

if TYPE_CHECKING:
    import numpy as np

    from diffir_sr.archs.autodir_arch import AutoDIR


def add_assess_parser(commands: Any) -> None:
    """Add `diffir assess`."""
    parser = commands.add_parser(
        "assess",
        help="name what is wrong with pictures (AutoDIR's assessor)",
        description="Prints the probabilities of noise, blur, rain, underexposure, haze, low resolution, raindrops and "
        "no degradation for each picture. The exit code is 1 if pictures could not be read.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files, folders, quoted globs")
    parser.add_argument(
        "-w", "--weights", type=Path, metavar="FILE", help="an AutoDIR: file or folder (default: the shipped model)"
    )
    parser.add_argument(
        "--view",
        choices=["center", "grid_mean", "grid_geometric"],
        help="assess the centre, or squares that cover the picture (default: the model's)",
    )
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="IN are folders made by 'diffir prepare degrade --kind': print the confusion table of the kinds and their "
        "ground truth as Markdown",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps, xpu")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write JSON to this file, or without a name to the terminal",
    )
    add_accept_damaged(parser)
    parser.set_defaults(run=_assess)


def _assess(args: argparse.Namespace) -> int:
    from diffir_sr.devices import device_of
    from diffir_sr.inference.files import plan_jobs
    from diffir_sr.weights.registry import find

    weights = args.weights or find("autodir").path
    network = load_assessor(weights).to(device_of(args.device))
    if args.view:
        network.assessor.view = args.view
    about: dict[str, Any] = {"weights": str(weights), "view": network.assessor.view}
    if args.pairs:
        counts = counted(network, [Path(folder) for folder in args.inputs])
        _write(args.json, about | counts, confusion_of(counts))
        return 0
    sources = [job.source for job in plan_jobs(args.inputs, "assessed") if job.source and not job.is_video]
    if not sources:
        raise InputError("no pictures among the inputs; name files or folders of pictures")
    found, failed = [], 0
    for source in sources:
        try:
            found.append({"picture": str(source), **_said(network, source)})
        except InputError as error:
            failed += 1
            found.append({"picture": str(source), "failed": str(error)})
            sys.stderr.write(f"failed: {error}\n")
    _write(args.json, {**about, "pictures": found}, _table(found))
    return 1 if failed else 0


def _write(target: str | None, about: dict[str, Any], table: str) -> None:
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    if target and target != "-":
        write_report(text, Path(target))
    sys.stdout.write(text if target == "-" else table)


def load_assessor(weights: Path) -> AutoDIR:
    """The AutoDIR in a file or folder; raises InputError for another network."""
    from diffir_sr.archs.autodir_arch import AutoDIR
    from diffir_sr.checkpoints import load_network

    network = load_network(weights).network
    if not isinstance(network, AutoDIR):
        raise InputError(f"{weights}: {type(network).__name__} has no assessor; give an AutoDIR")
    return network


def likelihoods_of(network: AutoDIR, colours: np.ndarray) -> dict[str, float]:
    """The probability of each category for a picture (H, W, 1 or 3), RGB, integers or floats in [0, 1]."""
    import torch

    from diffir_sr.archs.autodir_assessor import CATEGORIES
    from diffir_sr.data.arrays import to_tensor

    lq = to_tensor(colours)[None] if colours.dtype.kind == "u" else torch.from_numpy(colours).permute(2, 0, 1)[None]
    if lq.shape[1] == 1:
        lq = lq.expand(-1, 3, -1, -1)
    with torch.inference_mode():
        p = network(lq.to(next(network.parameters()).device)).squeeze(0).tolist()
    return dict(zip(CATEGORIES, p, strict=True))


def _said(network: AutoDIR, source: Path) -> dict[str, Any]:
    from diffir_sr.files.images import read_file
    from diffir_sr.inference.inputs import from_bytes
    from diffir_sr.inference.plain import check_fits_in_memory

    def check(height: int, width: int, where: str) -> None:
        check_fits_in_memory(height, width, scale=1, where=where)

    likely = likelihoods_of(network, from_bytes(read_file(source), where=str(source), check=check).colours)
    return {"category": max(likely, key=lambda name: likely[name]), "probabilities": likely}


def counted(network: AutoDIR, folders: list[Path]) -> dict[str, Any]:
    """Confusion counts of the kinds in folders of pairs; each ground truth is counted once, as "no"."""
    import torch

    from diffir_sr.archs.autodir_assessor import CATEGORIES, CLEAN
    from diffir_sr.data.sources import FolderSource

    known = {name: name.replace(" ", "-") for name in CATEGORIES if name != CLEAN}
    counts = torch.zeros(len(CATEGORIES), len(CATEGORIES), dtype=torch.long)
    truths: set[tuple[Path, str]] = set()
    for folder in folders:
        kinds = {name: folder / place for name, place in known.items() if (folder / place).is_dir()}
        if not kinds:
            raise InputError(
                f"{folder}: no folders named after kinds of degradation ({', '.join(known.values())}); make them with "
                f"'diffir prepare degrade photos -o {folder} --kind all'"
            )
        for kind, place in kinds.items():
            degraded, clean = FolderSource(place / "input"), FolderSource(place / "target")
            for name in degraded.names:
                said = _said(network, degraded.file(name))["category"]
                counts[CATEGORIES.index(kind), CATEGORIES.index(said)] += 1
            for name in clean.names:
                if (folder, name) not in truths:
                    truths.add((folder, name))
                    said = _said(network, clean.file(name))["category"]
                    counts[CATEGORIES.index(CLEAN), CATEGORIES.index(said)] += 1
    return {"categories": list(CATEGORIES), "rows are what is wrong, columns what was said": counts.tolist()}


def confusion_of(counts: dict[str, Any]) -> str:
    """The counts of `counted` as a Markdown table and a sentence."""
    import torch

    from diffir_sr.archs.autodir_assessor import confusion_table

    table = torch.tensor(counts["rows are what is wrong, columns what was said"])
    right, total = table.diagonal(), table.sum(dim=1)
    return (
        f"{confusion_table(table)}\n\n{right.sum() / total.sum().clamp(min=1):.1%} of {total.sum()} pictures are named "
        f"right; of {total[:-1].sum()} degraded ones {right[:-1].sum() / total[:-1].sum().clamp(min=1):.1%}, of "
        f"{total[-1]} ground truths {right[-1] / total[-1].clamp(min=1):.1%}\n"
    )


def _table(found: list[dict[str, Any]]) -> str:
    width = max(len(one["picture"]) for one in found)
    lines = []
    for one in found:
        if "failed" in one:
            lines.append(f"{one['picture']:<{width}}  could not be read")
            continue
        ranked = sorted(one["probabilities"].items(), key=lambda item: -item[1])
        others = ", ".join(f"{name} {p:.0%}" for name, p in ranked[1:3] if p >= 0.005)
        lines.append(f"{one['picture']:<{width}}  {ranked[0][0]:<14} {ranked[0][1]:>4.0%}  {others}".rstrip())
    return "\n".join(lines) + "\n"
