"""The tensors of a weights file as networks name and need them: plain names, ties undone, plain finite numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffir_sr.errors import CheckpointError

_WRAPPERS = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
# What a published stage-2 network holds under two names.
_TWINS = (("denoise.", "diffusion.model."), ("condition.", "diffusion.condition."))
_COUNT = "n_averaged"  # what torch's AveragedModel adds to the network inside
_DIFFIR = "G.patch_embed.proj.weight"
_COUNTER = "num_batches_tracked"


def bare(name: str) -> str:
    """The name of a tensor in the network itself, whatever the network was wrapped in when it was saved."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")  # a part was compiled


def plain(tensors: Mapping[str, Tensor], path: Path, *, ties: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The tensors under their bare names, those stored once and used twice under both; CheckpointError if unusable.

    `ties` gives the stored name for each name left out, as `safetensors.torch.save_model` notes it.
    """
    named: dict[str, Tensor] = {}
    averaged = any(name.startswith("module.") for name in tensors)
    for name, tensor in tensors.items():
        if name == _COUNT and averaged:
            continue
        if bare(name) in named:
            raise CheckpointError(f"{path.resolve()}: holds {bare(name)} twice, with and without a wrapper's name")
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
        return  # a network without a diffusion has one condition
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
        return "has a shape and no values (device meta); save the network after its values were loaded"
    if tensor.layout is not torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')}); {save} with .to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')}); {save} with .dequantize()"
    learned = name.endswith((".weight", ".bias")) or diffir
    if learned and not name.endswith(_COUNTER) and not tensor.is_floating_point():
        return f"holds {str(tensor.dtype).removeprefix('torch.')} where floating-point numbers are needed; {save}"
    if tensor.is_floating_point():
        values = tensor if tensor.element_size() > 1 else tensor.float()
        broken = values.isfinite().logical_not() if learned else values.isnan()
        if broken.any():
            return (
                f"holds {int(broken.sum()):,d} values of {tensor.numel():,d} that are not finite (NaN or infinite): "
                "the training diverged or the file is damaged; use an earlier checkpoint"
            )
    return None
