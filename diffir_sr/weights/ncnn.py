"""Networks of ncnn, a `.param` file with the graph and a `.bin` file with the weights, as PyTorch state dicts.

Two architectures are supported, those in which Real-ESRGAN is published: RRDBNet (ESRGAN) and SRVGGNetCompact. Kind,
order and shape of every layer are compared, and any other graph is refused. Source: ncnn's documentation of its
parameter and weight files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffir_sr.errors import CheckpointError

_MAGIC = "7767517"
_HALF, _SINGLE = 0x01306B47, 0  # the four bytes before the weights of a convolution
_DENSE = 5  # convolutions of a residual dense block
_BLOCKS = 3  # residual dense blocks of an RRDB
_AROUND = ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
_FREE = ("Input", "Split")  # layers that compute nothing


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    values: dict[int, str]

    def whole(self, key: int, default: int = 0) -> int:
        return int(self.values.get(key, default))


def graph_of(path: Path) -> Path | None:
    """`path` if it is a `.param` file, or the `.param` file next to it if it is a `.bin` file; None for other files."""
    candidate = path.with_suffix(".param") if path.suffix == ".bin" else path
    try:
        with candidate.open("rb") as file:
            return candidate if file.read(len(_MAGIC) + 1).split() == [_MAGIC.encode()] else None
    except OSError:
        return None


def read_ncnn(path: Path) -> dict[str, Tensor]:
    """The tensors of the network with the graph `path`, float32, with the names of BasicSR's architecture.

    Raises CheckpointError for damaged files, for weights other than float32 and float16, and for architectures other
    than RRDBNet x4 and SRVGGNetCompact.
    """
    layers = list(_layers(path))
    kinds = [layer.kind for layer in layers if layer.kind not in _FREE]
    if kinds[:1] == ["Convolution"] and "Concat" in kinds:
        names = _rrdb_names(path, layers)
    elif kinds[:2] == ["Convolution", "PReLU"]:
        names = _compact_names(path, layers)
    else:
        raise _foreign(path, f"begins with the layers {', '.join(kinds[:3])}")
    stored = _Numbers(path.with_suffix(".bin"))
    learned = [layer for layer in layers if layer.kind in ("Convolution", "PReLU")]
    tensors = {
        name: tensor for layer, name in zip(learned, names, strict=True) for name, tensor in stored.of(layer, name)
    }
    stored.check_end()
    _check_finite(path, tensors)
    return tensors


def _layers(path: Path) -> Iterator[_Layer]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:]
        count = int(lines[0].split()[0])
        rows = [line.split() for line in lines[1:] if line.strip()]
        if len(rows) != count:
            raise ValueError(f"{len(rows)} layers, {count} announced")
        for kind, name, inputs, outputs, *rest in rows:
            values = (part.split("=", 1) for part in rest[int(inputs) + int(outputs) :])
            yield _Layer(kind, name, {int(key): value for key, value in values})
    except OSError as error:
        raise CheckpointError(f"{path.resolve()}: cannot be read ({error.strerror})") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path.resolve()}: a damaged ncnn graph ({error}); fetch the .param and the .bin file again"
        ) from error


def _rrdb_names(path: Path, layers: list[_Layer]) -> list[str]:
    convolutions = [layer for layer in layers if layer.kind == "Convolution"]
    inner = len(convolutions) - len(_AROUND)
    blocks, rest = divmod(inner, _DENSE * _BLOCKS)
    if rest or blocks < 1:
        raise _foreign(path, f"has {len(convolutions)} convolutions, RRDBNet x4 {len(_AROUND)} and 15 per block")
    dense = [f"body.{block}.rdb{row + 1}.conv{k + 1}" for block in range(blocks) for row in range(3) for k in range(5)]
    order: list[str] = []
    expected: list[str] = []
    for name in ("conv_first", *dense, *_AROUND[1:]):
        expected += ["Interp"] if name.startswith("conv_up") else []
        expected.append("Convolution")
        order.append(name)
        if re.search(r"rdb\d\.conv[1-4]$", name):
            expected.append("Concat")
        elif name.endswith("conv5"):
            expected += ["Sum"] * (2 if "rdb3" in name else 1)
        elif name == "conv_body":
            expected.append("Sum")
    _check_kinds(path, layers, expected)
    active = [bool(re.search(r"rdb\d\.conv[1-4]$|conv_up|conv_hr", name)) for name in order]
    for layer, is_active in zip(convolutions, active, strict=True):
        slope = layer.values.get(-23310, "0,0").split(",")[-1]
        if (layer.whole(9) == 2) != is_active or (is_active and abs(float(slope) - 0.2) > 1e-6):
            raise _foreign(path, f"layer {layer.name} has another activation than RRDBNet's")
    for layer in (layer for layer in layers if layer.kind == "Interp"):
        if layer.whole(0) != 1 or {float(layer.values.get(key, 0)) for key in (1, 2)} != {2.0}:
            raise _foreign(path, f"layer {layer.name} is not a nearest-neighbour enlargement by 2")
    return order


def _compact_names(path: Path, layers: list[_Layer]) -> list[str]:
    learned = [layer for layer in layers if layer.kind in ("Convolution", "PReLU")]
    expected = ["Convolution", "PReLU"] * (len(learned) // 2) + ["Convolution", "PixelShuffle", "Interp", "Sum"]
    _check_kinds(path, layers, expected)
    shuffle, resize = (next(layer for layer in layers if layer.kind == kind) for kind in ("PixelShuffle", "Interp"))
    scales = {float(shuffle.whole(0)), *(float(resize.values.get(key, 0)) for key in (1, 2))}
    if len(scales) != 1 or resize.whole(0) != 1:
        raise _foreign(path, f"layer {resize.name} does not enlarge the input by the factor of the pixel shuffle")
    return [f"body.{index}" for index in range(len(learned))]


def _check_kinds(path: Path, layers: list[_Layer], expected: list[str]) -> None:
    sums = {"Eltwise": "Sum", "BinaryOp": "Sum"}
    found = [(layer, sums.get(layer.kind, layer.kind)) for layer in layers if layer.kind not in _FREE]
    for (layer, kind), wanted in zip(found, expected, strict=False):
        if kind != wanted:
            raise _foreign(path, f"layer {layer.name} is a {layer.kind}, expected a {wanted}")
    if len(found) != len(expected):
        raise _foreign(path, f"has {len(found)} computing layers, expected {len(expected)}")
    for layer, kind in found:
        is_sum = layer.whole(0) == (1 if layer.kind == "Eltwise" else 0)  # the numbers of addition
        if kind == "Sum" and not is_sum:
            raise _foreign(path, f"layer {layer.name} is not an addition")


class _Numbers:
    """The `.bin` file, read sequentially."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path.resolve()}: cannot be read ({error.strerror}); an ncnn network is two files, put its .bin "
                "file next to the .param file"
            ) from error
        self.at = 0

    def of(self, layer: _Layer, name: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one layer, (out, in, kernel, kernel) and (out,)."""
        width = layer.whole(0)
        if layer.kind == "PReLU":
            yield f"{name}.weight", self._take(width, np.dtype("<f4"))
            return
        kernel, length = layer.whole(1), layer.whole(6)
        inputs, rest = divmod(length, width * kernel * kernel) if width and kernel else (0, 1)
        square = layer.whole(11, kernel) == kernel and layer.whole(4) == kernel // 2
        if rest or not square or any(layer.whole(key, 1) != 1 for key in (2, 3, 7, 12, 13)):
            raise CheckpointError(f"{self.path.resolve()}: layer {layer.name} is not a plain convolution; {_WAY_OUT}")
        weight = self._take(length, self._type(layer))
        yield f"{name}.weight", weight.reshape(width, inputs, kernel, kernel)
        if layer.whole(5):
            yield f"{name}.bias", self._take(width, np.dtype("<f4"))

    def _type(self, layer: _Layer) -> np.dtype:
        flag = int.from_bytes(self._bytes(4), "little")
        if flag not in (_HALF, _SINGLE):
            raise CheckpointError(
                f"{self.path.resolve()}: layer {layer.name} contains quantized weights (flag {flag:#010x}); use the "
                "float32 or float16 form of this network"
            )
        return np.dtype("<f2" if flag == _HALF else "<f4")

    def _take(self, count: int, dtype: np.dtype) -> Tensor:
        values = np.frombuffer(self._bytes(count * dtype.itemsize), dtype).astype(np.float32)
        self.at += -self.at % 4  # every blob is padded to a multiple of four
        return torch.from_numpy(values)

    def _bytes(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        self.at += count
        if len(found) < count:
            raise CheckpointError(
                f"{self.path.resolve()}: {len(self.data):,d} bytes, truncated; fetch the .param and .bin file again"
            )
        return found

    def check_end(self) -> None:
        """Raise CheckpointError if the file contains more than the graph uses."""
        if self.at != len(self.data):
            raise CheckpointError(
                f"{self.path.resolve()}: {len(self.data):,d} bytes, but its graph needs {self.at:,d}; the .param and "
                "the .bin file belong to different networks"
            )


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path.resolve()}: {broken[0]} contains values that are not finite; fetch it again")


_WAY_OUT = "use the PyTorch weights from which it was converted"


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.resolve()}: an ncnn network, but neither RRDBNet x4 nor SRVGGNetCompact: {why}; {_WAY_OUT}"
    )
