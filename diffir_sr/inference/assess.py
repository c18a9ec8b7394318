"""`diffir assess`: what an AutoDIR's assessor finds wrong with pictures, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_report
from diffir_sr.parsing import add_accept_damaged


def add_assess_parser(commands: Any) -> None:
    """Add `diffir assess`."""
    parser = commands.add_parser(
        "assess",
        help="name what is wrong with pictures (AutoDIR's assessor)",
        description="Tells the probability of noise, blur, rain, underexposure, haze, low resolution and raindrops for "
        "each picture, or that nothing is wrong. Exit code 1 where pictures could not be read.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files, folders, quoted globs")
    parser.add_argument("-w", "--weights", type=Path, required=True, metavar="FILE", help="an AutoDIR: file or folder")
    parser.add_argument(
        "--view", choices=["center", "grid_mean"], help="the middle alone, or squares all over (model's)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps, xpu")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="as JSON here; without a name to the terminal"
    )
    add_accept_damaged(parser)
    parser.set_defaults(run=_assess)


def _assess(args: argparse.Namespace) -> int:
    from diffir_sr.archs.autodir_arch import AutoDIR
    from diffir_sr.checkpoints import load_network
    from diffir_sr.devices import device_of
    from diffir_sr.inference.files import plan_jobs

    sources = [job.source for job in plan_jobs(args.inputs, "assessed") if job.source and not job.is_video]
    if not sources:
        raise InputError("no pictures among the inputs; name files or folders of pictures")
    network = load_network(args.weights).network
    if not isinstance(network, AutoDIR):
        raise InputError(f"{args.weights}: {type(network).__name__} has no assessor; give an AutoDIR")
    device = device_of(args.device)
    network = network.to(device)
    if args.view:
        network.assessor.view = args.view
    found, failed = [], 0
    for source in sources:
        try:
            found.append({"picture": str(source), **_said(network, source)})
        except InputError as error:
            failed += 1
            found.append({"picture": str(source), "failed": str(error)})
            sys.stderr.write(f"failed: {error}\n")
    about = {"weights": str(args.weights), "view": network.assessor.view, "pictures": found}
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    if args.json and args.json != "-":
        write_report(text, Path(args.json))
    sys.stdout.write(text if args.json == "-" else _table(found))
    return 1 if failed else 0


def _said(network: Any, source: Path) -> dict[str, Any]:
    import torch

    from diffir_sr.archs.autodir_assessor import CATEGORIES
    from diffir_sr.data.arrays import to_tensor
    from diffir_sr.files.images import read_file
    from diffir_sr.inference.inputs import from_bytes
    from diffir_sr.inference.plain import check_fits_in_memory

    def check(height: int, width: int, where: str) -> None:
        check_fits_in_memory(height, width, scale=1, where=where)

    colours = from_bytes(read_file(source), where=str(source), check=check).colours
    lq = to_tensor(colours)[None] if colours.dtype.kind == "u" else torch.from_numpy(colours).permute(2, 0, 1)[None]
    if lq.shape[1] == 1:
        lq = lq.expand(-1, 3, -1, -1)
    with torch.inference_mode():
        p = network(lq.to(next(network.parameters()).device)).squeeze(0).tolist()
    likely = dict(zip(CATEGORIES, p, strict=True))
    return {"category": max(likely, key=lambda name: likely[name]), "probabilities": likely}


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
