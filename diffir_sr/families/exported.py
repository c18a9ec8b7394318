"""Networks exported to ONNX as restoring networks, run by ONNX Runtime (extra `onnx`); written by `diffir export`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.geometry import with_mask
from diffir_sr.diffusion.noise import Noise
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.families.base import Identity

ONNX = "onnx"  # the layout of such weights in descriptions, and the suffix of their files
ENTRY = "diffir_card"  # key in the metadata of the file, which holds only strings
IMAGE, NOISE, OUTPUT = "input", "noise", "output"  # names of inputs and output
INSTALL = "pip install 'diffir_sr[onnx]'"


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model, by its name: the format has no signature."""
    return path.suffix.lower() == f".{ONNX}" and path.is_file()


def read_onnx(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a model and its card ({} if another program wrote it); CheckpointError for a damaged file."""
    onnx = _package("onnx", path)
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    except Exception as error:  # protobuf's, onnx's and those of its files of external data
        raise CheckpointError(
            f"{path.resolve()}: cannot be read as an ONNX model ({_line(error)}); export or copy it again"
        ) from error
    tensors = {name: torch.from_numpy(value.copy()) for name, value in stored.items() if value.dtype.kind == "f"}
    try:
        card = json.loads({one.key: one.value for one in model.metadata_props}.get(ENTRY, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{path.resolve()}: its model card ({ENTRY}) is not JSON ({error})") from error
    return tensors, card if isinstance(card, dict) else {}


def load_onnx(path: Path, card: Mapping[str, Any]) -> tuple[nn.Module, Identity]:
    """The network of an ONNX file; one that `diffir export` did not write is called with an image alone."""
    runtime = _package("onnxruntime", path)
    usable = [name for name in _PROVIDERS if name in runtime.get_available_providers()]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone; warnings are about the hardware of the runtime
    try:
        session = runtime.InferenceSession(str(path), options, providers=usable)
    except Exception as error:  # of the runtime, which has no public class for them
        raise CheckpointError(f"{path.resolve()}: ONNX Runtime cannot run it ({_line(error)})") from error
    identity = onnx_identity(path, card)
    if "export" in card:
        return ExportedNetwork(session, card["export"]), identity
    inputs = [one.name for one in session.get_inputs()]
    if len(inputs) != 1:
        raise CheckpointError(
            f"{path.resolve()}: has the inputs {', '.join(inputs)}; expected one, the image, or a file of diffir export"
        )
    return _CalledSession(session), identity


_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def onnx_identity(path: Path, card: Mapping[str, Any]) -> Identity:
    """What a model says of itself; raises CheckpointError if its card is not one of `diffir export`."""
    if "export" not in card:
        return Identity(arch="ONNX", arguments={}, title="ONNX model of another program, of unknown scale")
    export = card["export"]
    needed = {"title": str, "arch": str, "scale": int, "multiple_of": int, "channels": int, "padding": str}
    wrong = [
        name for name, kind in needed.items() if not isinstance(export, dict) or type(export.get(name)) is not kind
    ]
    if wrong or export["padding"] not in ("reflect", "zeros") or min(export["scale"], export["multiple_of"]) < 1:
        raise CheckpointError(
            f"{path.resolve()}: its card has no valid {', '.join(wrong) or 'sizes'} of the export; export it again"
        )
    noise = f"input of {export['noise_width']} values" if export.get("noise_width") else "none, or fixed inside"
    return Identity(
        arch=export["arch"],
        arguments=dict(export.get("arguments") or {}),
        title=f"{export['title']}, exported to ONNX",
        facts={
            "runs": "with ONNX Runtime, whole pictures in one piece, or tiles",
            "scale": str(export["scale"]),
            "sides": f"padded to multiples of {export['multiple_of']} ({export['padding']})",
            "noise": noise,
        },
    )


class _Session(nn.Module):
    """Calls a session, which computes in float32 and picks its device by itself."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def check_engine(self, *, dtype: torch.dtype, tiles: bool) -> None:
        """Raise OptionError for a number format other than float32."""
        if dtype != torch.float32:
            raise OptionError(f"dtype {str(dtype).removeprefix('torch.')}: exported networks compute in float32")

    def _run(self, feeds: Mapping[str, Tensor]) -> Tensor:
        arrays = {name: value.detach().cpu().float().contiguous().numpy() for name, value in feeds.items()}
        try:
            return torch.from_numpy(self._session.run(None, arrays)[0])
        except Exception as error:  # of the runtime, which has no public class for them
            sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
            raise InputError(f"ONNX Runtime cannot run the model on {sizes} ({_line(error)})") from error


class ExportedNetwork(_Session):
    """A network that `diffir export` wrote, described by the section `export` of its card."""

    def __init__(self, session: Any, export: Mapping[str, Any]) -> None:
        super().__init__(session)
        self.scale: int = export["scale"]
        # Zeros are what the network itself pads with, so they are added here and not by the engine.
        self._multiple: int = export["multiple_of"]
        self._pads_zeros = export["padding"] == "zeros"
        self.multiple_of = 1 if self._pads_zeros else self._multiple
        self.conditions = frozenset({"mask"} if export["channels"] == 4 else ())
        self.task: str | None = export.get("task")
        self.bytes_per_pixel: float | None = export.get("bytes_per_pixel")
        self._noise_width: int = export.get("noise_width") or 0

    def restore(self, lq: Tensor, *, noise: Noise, mask: Tensor | None = None) -> Tensor:
        """See `families.base.Restores`."""
        image = with_mask(lq, mask)
        height, width = image.shape[-2:]
        if self._pads_zeros:
            image = F.pad(image, (0, -width % self._multiple, 0, -height % self._multiple))
        rows = noise.normal((len(image), self._noise_width)).split(1) if self._noise_width else [None] * len(image)
        made = [
            self._run({IMAGE: one} if row is None else {IMAGE: one, NOISE: row})
            for one, row in zip(image.split(1), rows, strict=True)
        ]
        return torch.cat(made)[..., : height * self.scale, : width * self.scale].to(lq)


class _CalledSession(_Session):
    """A model of another program, called as net(lq); its scale and size rule are found by trying."""

    def forward(self, lq: Tensor) -> Tensor:
        name = self._session.get_inputs()[0].name
        return torch.cat([self._run({name: one}) for one in lq.split(1)]).to(lq)


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(f"{path.resolve()}: an ONNX model needs the package {name}: {INSTALL}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
