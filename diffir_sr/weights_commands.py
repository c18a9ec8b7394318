"""Parsers of `diffir models`, `diffir weights`, `diffir describe` and `diffir export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffir_sr.parsing import deferred

_ACTIONS = "diffir_sr.weights_actions"


def add_models_parser(commands: Any) -> None:
    """Add `diffir models`."""
    parser = commands.add_parser("models", help="list, show, fetch and verify weights by name")
    actions = parser.add_subparsers(required=True, metavar="list | show | fetch | verify")
    each = (
        ("list", "list_models", None, "list all named weights, and whether they are available"),
        ("show", "show", "one", "show all details of an entry, and where it is searched for"),
        ("fetch", "fetch", "one", "find a file, or download it"),
        ("verify", "verify", "any", "verify available files: checksums, tasks and scales"),
    )
    for name, function, names, what in each:
        action = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if names:
            action.add_argument("name", metavar="NAME", nargs=None if names == "one" else "?")
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=deferred(f"{_ACTIONS}:{function}"))


def add_weights_parser(commands: Any) -> None:
    """Add `diffir weights`: conversion of AutoDIR's checkpoint, and the older name of `diffir models fetch`."""
    what = "convert AutoDIR's released checkpoint; older name of 'diffir models fetch'"
    parser = commands.add_parser("weights", help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("name", metavar="convert | NAME", help="convert CHECKPOINT -o FOLDER, or a name to fetch")
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="autodir.ckpt; no code is executed"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="convert: the folder; VGG: also write its convolutions there"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="convert: CLIP's bpe_simple_vocab_16e6.txt.gz (in the package open_clip_torch) or tokenizer.json, which "
        "free prompts need",
    )
    parser.set_defaults(run=deferred(f"{_ACTIONS}:older_name"), json=False)


def add_describe_parser(commands: Any) -> None:
    """Add `diffir describe`."""
    parser = commands.add_parser("describe", help="describe a weights file")
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON, with the complete model card")
    parser.set_defaults(run=deferred(f"{_ACTIONS}:describe"))


def add_export_parser(commands: Any) -> None:
    """Add `diffir export`."""
    parser = commands.add_parser(
        "export",
        help="export a network to ONNX or TorchScript",
        description="Writes a network for other programs, with dynamic height and width and the scale, the required "
        "multiple of the sides and the model card as metadata. The file is compared with torch on images of three "
        "sizes; if a value differs by more than 1e-4, nothing is written.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="model.onnx, or model.pt")
    parser.add_argument("-m", "--model", metavar="NAME", help="name of a model (default: as for diffir restore)")
    parser.add_argument("-w", "--weights", type=Path, metavar="FILE", help="weights instead of --model")
    parser.add_argument("--format", choices=["onnx", "torchscript"], default="onnx")
    parser.add_argument(
        "--fixed-noise",
        action="store_true",
        help="DiffIR: the image is the only input, for programs that know no other; noise of --seed is inside",
    )
    parser.add_argument("--seed", type=int, default=0, help="--fixed-noise: its seed (0)")
    parser.add_argument(
        "--exporter",
        choices=["trace", "dynamo"],
        default="trace",
        help="ONNX: torch's exporter: by tracing (default, seconds), or through torch.export (minutes)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=deferred("diffir_sr.export:run"))
