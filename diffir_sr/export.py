"""`diffir export`: writes a network as ONNX or TorchScript, if it then computes what torch computes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.archs.nafnet_arch import NAFNet
from diffir_sr.checkpoints import Loaded, load_network
from diffir_sr.diffusion.noise import fixed_noise
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.families.exported import ENTRY, IMAGE, INSTALL, NOISE, OUTPUT
from diffir_sr.families.spandrel import SpandrelNetwork
from diffir_sr.files.atomic import replacing
from diffir_sr.inference.plain import CalledNetwork, LivingBytes, as_restoring
from diffir_sr.version import __version__
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights.registry import choose
from diffir_sr.weights_files import as_plain_data

LARGEST_DIFFERENCE = 1e-4  # of values in [0, 1]
SUFFIXES = {"onnx": (".onnx",), "torchscript": (".pt", ".ts", ".torchscript")}
_OPSET = {"trace": 17, "dynamo": 20}
_SIDE = 16  # pixels: least side of the images that are compared


@dataclass(frozen=True)
class Exportable:
    """What is written: a graph of an image (1, C, H, W) and, with `noise_width`, noise (1, D)."""

    graph: nn.Module
    channels: int  # 4: masked RGB and the mask
    scale: int
    multiple_of: int
    padding: str = "reflect"  # what the caller adds to reach the multiple: reflect or zeros
    noise_width: int = 0
    least_side: int = 1

    def inputs(self, tall: int, wide: int) -> tuple[Tensor, ...]:
        """Random inputs; sides in steps of `multiple_of` beyond the least side."""
        side = max(_SIDE, self.least_side)
        least = -(-side // self.multiple_of)
        height, width = ((least + more) * self.multiple_of for more in (tall, wide))
        source = torch.Generator().manual_seed(1000 * tall + wide)
        image = torch.rand(1, self.channels, height, width, generator=source)
        if self.channels == 4:
            image[:, 3] = image[:, 3].round()
            image[:, :3] *= 1 - image[:, 3:]
        return (image, torch.randn(1, self.noise_width, generator=source)) if self.noise_width else (image,)


_COMPARED = ((0, 0), (1, 3), (5, 2))  # steps beyond the least side; the network is traced at other sizes
_TRACED = (2, 1)


class _WithNoise(nn.Module):
    def __init__(self, network: DiffIRS2) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor, noise: Tensor) -> Tensor:  # noqa: A002 - the name in the file
        return self.network.restore_under(input, self.network.encode(input, noise=noise))


class _WithFixedNoise(nn.Module):
    def __init__(self, network: DiffIRS2, noise: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("noise", noise)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in the file
        return self.network.restore_under(input, self.network.encode(input, noise=cast(Tensor, self.noise)))


def exportable(network: nn.Module, *, fixed_seed: int | None = None) -> Exportable:
    """How a network is exported; with `fixed_seed`, DiffIR gets noise of this seed inside instead of as an input.

    Raises OptionError for networks that are more than one function of image and noise.
    """
    name = type(network).__name__
    if type(network) is DiffIRS2:
        if network.use_diffusion and network.diffusion.variance_noise:
            raise OptionError(f"{name} with variance_noise draws noise from a hash in each step; it is not exported")
        fixed = fixed_seed is not None or not network.use_diffusion
        noise = fixed_noise(network.prior_width, seed=fixed_seed or 0)
        return Exportable(
            _WithFixedNoise(network, noise) if fixed else _WithNoise(network),
            channels=network.geometry.channels,
            scale=network.scale,
            multiple_of=network.multiple_of,
            noise_width=0 if fixed else network.prior_width,
        )
    if type(network) is NAFNet:
        multiple = 2 ** len(network.encoders)
        return Exportable(network, channels=3, scale=1, multiple_of=multiple, padding="zeros")
    if isinstance(network, SpandrelNetwork):
        return _of_spandrel(network)
    restoring = as_restoring(network)
    if not isinstance(restoring, CalledNetwork):
        raise OptionError(
            f"{name} samples in a loop of its own, or needs more than an image; DiffIR stage 2, NAFNet and networks "
            "called as net(lq) are exported"
        )
    return Exportable(network, channels=3, scale=restoring.scale, multiple_of=restoring.multiple_of)


def _of_spandrel(network: SpandrelNetwork) -> Exportable:
    size, title = network.size_requirements, network.title
    if network.conditions or network.by_colour or size.square:
        raise OptionError(f"{title} needs a mask, single colours or square images; it is not exported")
    return Exportable(
        network.net, channels=3, scale=network.scale, multiple_of=size.multiple_of, least_side=size.minimum
    )


def export(
    loaded: Loaded,
    path: Path,
    *,
    form: str = "onnx",
    fixed_seed: int | None = None,
    exporter: str = "trace",
) -> float:
    """Write the network to `path` and return its largest difference from torch, in values of [0, 1].

    `form` is onnx or torchscript. Height and width are dynamic, in multiples of `multiple_of` of the metadata; the
    batch is 1. The file is run on images of three sizes and compared with torch before it gets its name. Raises
    CheckpointError, leaving no file, if the network cannot be exported or a value differs by more than 1e-4.
    """
    what = exportable(loaded.network, fixed_seed=fixed_seed)
    wanted = [(inputs, what.graph(*inputs)) for inputs in (what.inputs(*steps) for steps in _COMPARED)]
    expected = {(1, 3, inputs[0].shape[2] * what.scale, inputs[0].shape[3] * what.scale) for inputs, _ in wanted}
    if {tuple(made.shape) for _, made in wanted} != expected:
        raise CheckpointError(
            f"{loaded.weights.path}: {loaded.identity} does not enlarge by {what.scale} at every size"
        )
    card = _card(loaded, what, form=form, fixed_seed=fixed_seed)
    with replacing(path, suffix=path.suffix) as partial:
        try:
            with warnings.catch_warnings(), _silenced("torch.onnx", "onnxscript", "onnx_ir"):
                warnings.simplefilter("ignore")  # of the exporters, about themselves; the comparison counts
                if form == "onnx":
                    _write_onnx(what, card, partial, exporter=exporter)
                    run = _onnx_run(partial)
                else:
                    traced = torch.jit.trace(what.graph, what.inputs(*_TRACED), check_trace=False)
                    torch.jit.save(traced, str(partial), _extra_files={ENTRY: json.dumps(card)})
                    run = torch.jit.load(str(partial))
                largest = max(_difference(run, inputs, made) for inputs, made in wanted)
        except (InputError, CheckpointError):
            raise
        except Exception as error:  # the exporters and runtimes raise errors of many kinds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise CheckpointError(
                f"{loaded.weights.path}: {loaded.identity} cannot be exported to {form} ({reason}); nothing was written"
            ) from error
        if not largest <= LARGEST_DIFFERENCE:  # so that NaN is refused, too
            raise CheckpointError(
                f"{path}: the exported network differs from torch by {largest:.2g} on images of three sizes, more than "
                f"{LARGEST_DIFFERENCE:g}; nothing was written; try the other --exporter, or other versions of torch "
                "and onnxscript"
            )
    return largest


def _difference(run: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Tensor) -> float:
    made = run(*inputs)
    return (made - wanted).abs().max().item() if made.shape == wanted.shape else float("inf")


def _card(loaded: Loaded, what: Exportable, *, form: str, fixed_seed: int | None) -> dict[str, Any]:
    """The card of the weights, and the section `export` that describes the file."""
    inputs = what.inputs(2, 2)
    with LivingBytes() as living:
        what.graph(*inputs)
    section = {
        "title": str(loaded.identity),
        "arch": loaded.identity.arch,
        "arguments": loaded.identity.arguments,
        "format": form,
        "scale": what.scale,
        "multiple_of": what.multiple_of,
        "padding": what.padding,
        "channels": what.channels,
        "noise_width": what.noise_width,
        "fixed_noise": None if what.noise_width or fixed_seed is None else f"seed {fixed_seed}",
        "task": getattr(loaded.network, "task", None),
        "bytes_per_pixel": living.peak / (inputs[0].shape[2] * inputs[0].shape[3]),
        "source_sha256": sha256_of(loaded.weights.path) if loaded.weights.path.is_file() else None,
        "made with": f"diffir_sr {__version__}, torch {torch.__version__}",
    }
    return as_plain_data({**loaded.weights.card, "export": section})


def _write_onnx(what: Exportable, card: dict[str, Any], path: Path, *, exporter: str) -> None:
    onnx = importlib.import_module("onnx")
    inputs = what.inputs(*_TRACED)
    named: dict[str, Any] = {"input_names": [IMAGE, NOISE][: len(inputs)], "output_names": [OUTPUT]}
    if exporter == "trace":
        named["dynamic_axes"] = {IMAGE: {2: "height", 3: "width"}, OUTPUT: {2: "new_height", 3: "new_width"}}
        torch.onnx.export(what.graph, inputs, str(path), dynamo=False, opset_version=_OPSET[exporter], **named)
        model = onnx.load(str(path))
    else:
        most = 2**15 // what.multiple_of
        sides = {
            2 + axis: what.multiple_of * torch.export.Dim(name, min=1, max=most)
            for axis, name in enumerate(("rows", "columns"))
        }
        named["dynamic_shapes"] = (sides, None)[: len(inputs)]
        program = torch.onnx.export(
            what.graph, inputs, dynamo=True, opset_version=_OPSET[exporter], verbose=False, **named
        )
        model = cast(Any, program).model_proto
    export = card["export"]
    facts = {name: str(export[name]) for name in ("scale", "multiple_of", "padding", "title")}
    onnx.helper.set_model_props(model, {**facts, ENTRY: json.dumps(card)})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _onnx_run(path: Path) -> Callable[..., Tensor]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Loggers that say nothing below an error meanwhile."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def run(args: argparse.Namespace) -> int:
    """`diffir export`."""
    path: Path = args.output
    if path.suffix.lower() not in SUFFIXES[args.format]:
        raise InputError(f"-o {path}: expected a name that ends in {' or '.join(SUFFIXES[args.format])}")
    if path.exists() and not args.overwrite:
        raise InputError(f"{path} exists and is not overwritten; use --overwrite, or choose another name")
    needed = ("onnx", "onnxruntime", "onnxscript") if args.format == "onnx" else ()
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise InputError(f"an export to ONNX needs {' and '.join(absent)}: {INSTALL}")
    chosen = choose(args.weights, args.model, dashes="--")
    loaded = load_network(chosen.path)
    with torch.no_grad():
        largest = export(
            loaded,
            path,
            form=args.format,
            fixed_seed=args.seed if args.fixed_noise else None,
            exporter=args.exporter,
        )
    sys.stdout.write(
        f"{path}: {loaded.identity}, {path.stat().st_size / 2**20:.1f} MiB; largest difference from torch on three "
        f"sizes: {largest:.1g}\n"
    )
    return 0
