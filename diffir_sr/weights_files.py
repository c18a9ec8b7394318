"""Weights files: reading them safely, and safetensors with an embedded model card (network, training, licence).

The format is detected by content, refusals name the cause, and no code is executed.
"""

from __future__ import annotations

import _compat_pickle
import json
import os
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffir_sr.errors import CheckpointError

FETCH = "copy or fetch it again"
_HEAD = 4096  # bytes that distinguish formats
_LFS = b"version https://git-lfs"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch.save wrote before PyTorch 1.6
_LARGEST_HEADER = 100_000_000  # of a safetensors file, by its specification

# First bytes of other kinds of files, their names, and what to do.
_FOREIGN = (
    (b"GGUF", "a GGUF file of quantized weights", "convert it to safetensors, or fetch the PyTorch weights"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 (Keras) file", "fetch the PyTorch weights"),
    (b"\x93NUMPY", "a NumPy array", "save a state dict of tensors with torch.save"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and use the weights file inside"),
    (b"BZh", "a bzip2 archive", "unpack it and use the weights file inside"),
    (b"\xfd7zXZ", "an xz archive", "unpack it and use the weights file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and use the weights file inside"),
    (b"Rar!", "a RAR archive", "unpack it and use the weights file inside"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it and use the weights file inside"),
    (b"\x89PNG", "a PNG image", "give a weights file"),
    (b"\xff\xd8\xff", "a JPEG image", "give a weights file"),
    (b"%PDF", "a PDF document", "give a weights file"),
)


class StandIn:
    """Replaces objects of the classes that a weights file names; stores nothing and does nothing."""

    origin = ""  # the class named in the file

    def __new__(cls, *_: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _StandInDict(StandIn):
    def __new__(cls, *_: Any) -> Any:
        return {}  # torch's restricted unpickler only fills plain dictionaries


def check_reachable(path: Path) -> None:
    """Raise CheckpointError unless `path` is a file that is not empty."""
    try:
        if path.is_dir():
            inside = sorted(file.name for file in path.iterdir() if file.suffix in (".pth", ".safetensors", ".ckpt"))
            found = f"it contains {', '.join(inside[:3])}" if inside else "it contains none"
            raise CheckpointError(f"{path.resolve()}: a folder; give the weights file inside ({found})")
        if not path.is_file():
            raise CheckpointError(
                f"no such weights file: {path.resolve()}; train the stage that writes it, or correct the path"
            )
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path.resolve()}: an empty file (0 bytes); {FETCH}")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be accessed ({error.strerror}); check its permissions") from error


def is_safetensors(path: Path) -> bool:
    """Whether the content, regardless of the name, is that of a safetensors file."""
    head = _head(path)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER


def read_pickled(path: Path, *, kind: str = "PyTorch weights file") -> Any:
    """The content of a file written by torch.save, on the CPU; objects other than tensors are replaced by StandIn.

    No code in the file is executed. Raises CheckpointError, which says what the file is; `kind` is the expected kind.
    """
    refuse_foreign(path, kind=kind)
    named = _unknown_globals(path, kind=kind)
    stand_ins: list[Any] = [(_stand_in(name), name) for name in sorted(named)]
    try:
        # As an open file: given a path, torch would decide by the suffix.
        with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "is blocked" in str(error):
            raise CheckpointError(
                f"{path.resolve()}: requests system code ({', '.join(sorted(named)[:3])}), which weights never need; "
                "do not use it, fetch the weights from a trusted source"
            ) from error
        if named:
            raise CheckpointError(
                f"{path.resolve()}: contains Python objects that cannot be read without executing code "
                f"({', '.join(sorted(named)[:3])}); save only its state dict: torch.save(model.state_dict(), FILE)"
            ) from error
        if "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path.resolve()}: a pickle that is damaged or of another protocol than torch.save's default (2), the "
                f"only one that is read without executing code; save it without pickle_protocol, or {FETCH}"
            ) from error
        raise _unreadable(path, kind, why_unreadable(error)) from error
    except OSError as error:
        raise _unreadable(path, kind, error.strerror or str(error)) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, MemoryError) as error:
        raise _unreadable(path, kind, f"damaged or truncated: {why_unreadable(error)}") from error


def refuse_foreign(path: Path, *, kind: str) -> None:
    """Raise CheckpointError, which says what a file is, unless it is a pickle or an archive of torch.save."""
    head, place = _head(path), path.resolve()
    text = head.lstrip().lower()
    if head.startswith(_LFS):
        oid = next((line[4:].decode() for line in head.splitlines() if line.startswith(b"oid ")), "without oid")
        raise CheckpointError(
            f"{place}: a Git LFS pointer ({oid}), not the weights; run `git lfs pull` in its repository"
        )
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or (text.startswith(b"<?xml") and b"<html" in text):
        raise CheckpointError(
            f"{place}: a web page (HTML): the download page was saved instead of the file; follow its download "
            "link, or fetch the file with a client of that site"
        )
    if text.startswith((b"<?xml", b"{")) and not is_safetensors(path):
        answer = " ".join(head[:80].decode(errors="replace").split())
        raise CheckpointError(
            f"{place}: text, possibly an error message of a server ({answer}...); fetch the weights again"
        )
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{place}: {what}, not a {kind}; {remedy}")
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{place}: a tar archive ({_members(path)}), not a {kind}; unpack it and use the weights file inside"
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        _refuse_foreign_zip(path, kind)
    elif _is_onnx(path, head):
        raise CheckpointError(
            f"{place}: an ONNX file, which contains a graph to run, not a {kind}; use the weights it was exported from"
        )
    elif not head.startswith(b"\x80"):
        start = head[:8].hex(" ")
        raise _unreadable(path, kind, f"unknown format, its first bytes are {start}")


def _refuse_foreign_zip(path: Path, kind: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        size = path.stat().st_size
        raise _unreadable(
            path, kind, f"truncated or damaged: {size:,d} bytes without the directory at its end"
        ) from error
    except OSError as error:
        raise _unreadable(path, kind, error.strerror or str(error)) from error
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if not pickles:
        held = ", ".join(names[:3]) or "nothing"
        raise CheckpointError(
            f"{path.resolve()}: a zip archive that contains {held}, not a {kind}; unpack it and use the weights file "
            "inside"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path.resolve()}: a TorchScript archive, which contains code to run, not a {kind}; if you trust it, "
            "save only its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )


def _unknown_globals(path: Path, *, kind: str) -> set[str]:
    """Classes and functions named in the pickle that torch does not need for plain tensors."""
    known = torch._weights_only_unpickler._get_allowed_globals()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(inside) as file:
                    return {name for name in _globals_of(file) if name not in known}
        with path.open("rb") as file:
            if not _is_magic(file):
                raise CheckpointError(
                    f"{path.resolve()}: a plain Python pickle, which can contain code and is not read; if you trust "
                    "it, save its tensors with torch.save"
                )
            return {name for _ in range(3) for name in _globals_of(file) if name not in known}
    except (ValueError, EOFError, zipfile.BadZipFile, LookupError, NotImplementedError, MemoryError) as error:
        raise _unreadable(path, kind, f"damaged or truncated: {str(error) or type(error).__name__}") from error
    except OSError as error:
        raise _unreadable(path, kind, error.strerror or str(error)) from error


def _globals_of(file: IO[bytes]) -> set[str]:
    """Names of classes and functions in the next pickle of a file, which is parsed but not executed."""
    found: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            # Old pickles of torch.save use some module names of Python 2.
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            found.add(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}")
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return found


def _is_magic(file: IO[bytes]) -> bool:
    return _TORCH_MAGIC in [argument for _, argument, _ in pickletools.genops(file)]  # to its end: others follow


def _stand_in(origin: str) -> type[StandIn]:
    kind = _StandInDict if origin.lower().endswith("dict") else StandIn
    return type(origin.rpartition(".")[2], (kind,), {"origin": origin})  # pyright: ignore[reportReturnType] - it is a subclass


def objects_in(content: Any) -> list[str]:
    """Classes of the objects in the content of a file, down to the second level."""
    values = [content]
    for _ in range(2):
        values += [inner for value in values if isinstance(value, Mapping) for inner in value.values()]
    return sorted({value.origin for value in values if isinstance(value, StandIn)})


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"{path.resolve()}: cannot be read ({error.strerror}); check its permissions") from error


def _members(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            return ", ".join(member.name for _, member in zip(range(3), archive, strict=False))
    except (tarfile.TarError, OSError):
        return "damaged"


def _is_onnx(path: Path, head: bytes) -> bool:
    # Protobuf: field 1 is the version of the format, and the next is the producer, the opset or the graph.
    return path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"))


def _unreadable(path: Path, kind: str, why: str) -> CheckpointError:
    return CheckpointError(f"{path.resolve()}: not a readable {kind} ({why}); {FETCH}")


def why_unreadable(error: Exception) -> str:
    """Why `torch.load` refused a file, in one line; its own message advises to execute the code inside."""
    if isinstance(error, pickle.UnpicklingError):
        return "damaged, or it contains more than plain tensors"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# Normalising the tensors of a weights file: names without wrappers, ties resolved, finite floating-point values.


_WRAPPERS = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
# Tensors that published stage-2 networks store under two names.
_TWINS = (("denoise.", "diffusion.model."), ("condition.", "diffusion.condition."))
_COUNT = "n_averaged"  # added by torch's AveragedModel
_DIFFIR = "G.patch_embed.proj.weight"
_COUNTER = "num_batches_tracked"


def bare(name: str) -> str:
    """The name of a tensor in the network itself, without the prefixes of wrappers."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")  # only a part was compiled


def bare_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, ties: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """The tensors under their bare names, shared ones under both names; CheckpointError if unusable.

    `ties` maps each omitted name to the stored one, as recorded by `safetensors.torch.save_model`.
    """
    named: dict[str, Tensor] = {}
    averaged = any(name.startswith("module.") for name in tensors)
    for name, tensor in tensors.items():
        if name == _COUNT and averaged:
            continue
        if bare(name) in named:
            raise CheckpointError(
                f"{path.resolve()}: contains {bare(name)} twice, with and without the prefix of a wrapper"
            )
        named[bare(name)] = tensor
    for name, stored in (ties or {}).items():
        if bare(stored) in named:
            named.setdefault(bare(name), named[bare(stored)])
    _fill_twins(named)
    for name, tensor in named.items():
        _check(name, tensor, path, diffir=_DIFFIR in named)
    return named


def _fill_twins(named: dict[str, Tensor]) -> None:
    if not any(name.startswith(_TWINS[0]) for name in named):
        return  # a network without diffusion has one condition encoder
    for here, there in (*_TWINS, *(pair[::-1] for pair in _TWINS)):
        stored = {name.removeprefix(here): tensor for name, tensor in named.items() if name.startswith(here)}
        if stored and not any(name.startswith(there) for name in named):
            named |= {there + name: tensor for name, tensor in stored.items()}


def _check(name: str, tensor: Tensor, path: Path, *, diffir: bool) -> None:
    what = _unusable(name, tensor, diffir=diffir)
    if what:
        raise CheckpointError(f"{path.resolve()}: the tensor {name} {what}")


def _unusable(name: str, tensor: Tensor, *, diffir: bool) -> str | None:
    save = "save it as a plain float tensor"
    if tensor.is_meta:
        return "has a shape but no values (device meta); save the network after loading its values"
    if tensor.layout is not torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')}); {save} with .to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')}); {save} with .dequantize()"
    learned = name.endswith((".weight", ".bias")) or diffir
    if learned and not name.endswith(_COUNTER) and not tensor.is_floating_point():
        return f"contains {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers; {save}"
    if tensor.is_floating_point():
        values = tensor if tensor.element_size() > 1 else tensor.float()
        broken = values.isfinite().logical_not() if learned else values.isnan()
        if broken.any():
            return (
                f"contains {int(broken.sum()):,d} values of {tensor.numel():,d} that are not finite (NaN or infinite): "
                "the training diverged or the file is damaged; use an earlier checkpoint"
            )
    return None


SUFFIX = ".safetensors"
_ENTRY = "diffir_card"  # key in the metadata of the file, which holds only strings


def write_card_file(tensors: Mapping[str, Tensor], card: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write tensors and their card."""
    # Stage-2 networks hold some tensors under two names, and the format does not allow sharing.
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    data = save(apart, metadata={"format": "pt", _ENTRY: json.dumps(dict(card))})
    Path(path).write_bytes(_in_order(data))


def _in_order(data: bytes) -> bytes:
    """The same file with the entries of its metadata sorted; the library writes them in random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def read_card_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors on the CPU and the card ({} if there is none); raises CheckpointError for a damaged file."""
    tensors, card, _ = read_stored(path)
    return tensors, card


def read_stored(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors on the CPU, card, and the other entries of the metadata; raises CheckpointError for a damaged file.

    In a file written by `safetensors.torch.save_model`, the other entries map each omitted tensor to its stored name.
    """
    try:
        path.open("rb").close()  # for a file without read permission, safetensors reports that it does not exist
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.resolve()}: not a readable safetensors file ({str(error).splitlines()[0]}); copy or fetch it again"
        ) from error
    return tensors, _card(metadata.pop(_ENTRY, "{}"), path), metadata


def _card(text: str, path: Path) -> dict[str, Any]:
    remedy = "write the card again, or remove it from the metadata of the file"
    try:
        card = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path.resolve()}: its model card ({_ENTRY}) is not JSON ({error}); {remedy}") from error
    if not isinstance(card, dict):
        raise CheckpointError(
            f"{path.resolve()}: its model card ({_ENTRY}) is a JSON {type(card).__name__}, not an object; {remedy}"
        )
    return card


def training_card(
    opt: Mapping[str, Any], *, weights: str, iteration: int, metrics: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """The card of a network saved by a training with these options."""
    train = (opt.get("datasets") or {}).get("train") or {}
    network = opt.get("network_g") or {}
    data = {key: train[key] for key in ("name", "type", "dataroot_gt", "dataroot_lq") if train.get(key)}
    return {
        "name": opt["name"],
        "model": opt["model_type"],
        "network": dict(network),
        "scale": opt.get("scale"),
        "weights": weights,
        "iterations": iteration,
        "data": data,
        "metrics": dict(metrics),
        "licence": opt.get("licence") or "not stated",
        "made with": f"diffir_sr {version}, torch {torch.__version__}",
    }


def as_plain_data(value: Any) -> Any:
    """Values as YAML and JSON support them: anything that is neither text nor a number becomes text."""
    if isinstance(value, Mapping):
        return {str(key): as_plain_data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_plain_data(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
