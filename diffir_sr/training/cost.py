"""What a network and a training step cost, found on shapes alone: multiplications and memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.families.base import Restores, WalksInSteps
from diffir_sr.inference.plain import LivingBytes

COUNTED_SIDE = 256  # pixels of the input for which multiplications are counted, as in the paper's table
_RUNTIME = 112 * 2**20  # bytes that a running training adds: generated code, buffers of threads, loading and saving


def multiplications(network: nn.Module, *, one_step: bool = False) -> tuple[float | None, str]:
    """Multiply-additions of matrix products and convolutions for an input of COUNTED_SIDE, or why there is no number.

    A network that restores in steps is counted with all of them, or with `one_step`.
    """
    noise = PictureNoise(torch.zeros(1, 3, 8, 8))
    try:
        network = copy.deepcopy(network)  # what it caches in this run has no values
        shapes, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
        with shapes, _LivingOnShapes(), counter, torch.no_grad():
            lq = torch.zeros(1, 3, COUNTED_SIDE, COUNTED_SIDE, device=next(network.parameters()).device)
            if isinstance(network, Restores):
                side = COUNTED_SIDE * network.scale
                given = {"mask": lq[:, :1], "gt": torch.zeros(1, 3, side, side, device=lq.device)}
                conditions = {name: given[name] for name in network.conditions}
                in_steps = one_step and isinstance(network, WalksInSteps)
                restore: Any = network.restore_in_one_step if in_steps else network.restore
                restore(lq, noise=noise, **conditions)
            else:
                network(lq)
    except Exception as error:  # whatever a network does that needs values, not shapes
        return None, _why(error)
    return counter.get_total_flops() / 2, ""


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# Memory of a training step: every tensor that lives, counted while the step runs on shapes.


class _LivingOnShapes(LivingBytes):
    """LivingBytes for tensors without values: replaces the operations that need values or have no form on shapes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # a number for the log; there are none on shapes
            return torch.zeros((), dtype=args[0].dtype).item()
        if func is torch.ops.aten.mkldnn_convolution.default:  # has no form on shapes; its memory is the same
            x, weight, bias, padding, stride, dilation, groups = args
            func = torch.ops.aten.convolution.default
            args = (x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
        made = super().__torch_dispatch__(func, types, args, kwargs)
        self.peak = max(self.peak, self.now + _copies(func, args, made))
        return made


def _copies(func: Any, args: tuple[Any, ...], made: Any) -> int:
    """Bytes of the copies that a convolution on a CPU makes of pictures, for as long as it computes.

    oneDNN computes in blocks of channels: pictures are copied into this order, and results out of it, unless their
    channels are last. The gradients of input and weights, one after the other, take a copy of the input or its
    gradient, and one of the gradient of the output.
    """
    forward = func is torch.ops.aten.convolution.default
    if not forward and func is not torch.ops.aten.convolution_backward.default:
        return 0
    pictures = (args[0], made) if forward else (args[0], args[1])
    return sum(
        one.untyped_storage().nbytes() if one.is_contiguous() and one.device.type == "cpu" and one.shape[1] > 3 else 0
        for one in pictures
    )


def peak_of_step(model: Any, iteration: int, *, moments: Callable[[Any], int]) -> int:
    """Bytes of tensors that live in a training step of `model` at most: weights, averages, moments, activations.

    `model` is a BasicSR model that has been fed with a batch; its tensors become ones without values, so it is of no
    use afterwards. `moments` gives the tensors that an optimizer keeps for each weight.
    """
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    living = _LivingOnShapes()
    for tensor in _emptied(model, shapes):
        living.count(tensor)
    kept = []
    for optimizer in model.optimizers:
        count = moments(optimizer)
        with shapes:
            for group in optimizer.param_groups:
                kept += [torch.empty_like(weight) for weight in group["params"] for _ in range(count)]
        optimizer.step = lambda *_, **__: None  # it makes the moments, which are there
    for tensor in kept:
        living.count(tensor)
    with shapes, living:
        model.optimize_parameters(iteration)
    return living.peak


def _emptied(model: Any, shapes: FakeTensorMode) -> Iterator[Tensor]:
    """Put tensors without values in the place of all that a model holds; gives them."""
    memo: dict[int, Tensor] = {}
    originals: list[Tensor] = []  # their numbers must not be given to others meanwhile

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in memo:
            with shapes:
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
                if isinstance(tensor, nn.Parameter):
                    made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            originals.append(tensor)
            memo[id(tensor)], memo[id(made)] = made, made
        return memo[id(tensor)]

    for module in _modules(vars(model).values()):
        held: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = empty(tensor)
    for name, value in list(vars(model).items()):
        if isinstance(value, Tensor):
            setattr(model, name, empty(value))
    for optimizer in model.optimizers:
        for group in optimizer.param_groups:
            group["params"] = [empty(weight) for weight in group["params"]]
    yield from {id(tensor): tensor for tensor in memo.values()}.values()


def _modules(values: Any, depth: int = 3) -> Iterator[nn.Module]:
    """All modules among values, in their lists and dictionaries, and in plain objects of this package."""
    for value in values:
        if isinstance(value, nn.Module):
            yield from value.modules()
        elif depth and isinstance(value, dict):
            yield from _modules(value.values(), depth - 1)
        elif depth and isinstance(value, list | tuple):
            yield from _modules(value, depth - 1)
        elif depth and type(value).__module__.startswith("diffir_sr.models") and hasattr(value, "__dict__"):
            yield from _modules(vars(value).values(), depth - 1)


def process_peak(tensors: int, base: int, device: torch.device) -> int:
    """Bytes that a training takes at most: of the process on a CPU, of the device's memory elsewhere.

    `base` is what the process has before any network; `tensors` what `peak_of_step` gives.
    """
    return tensors + base + _RUNTIME if device.type == "cpu" else tensors


def copied_batch(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The first `count` samples of a batch."""
    return {
        key: value[:count].clone()
        if isinstance(value, Tensor)
        else copy.copy(value[:count])
        if isinstance(value, list)
        else value
        for key, value in batch.items()
    }
