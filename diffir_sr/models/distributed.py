"""Several processes and one network: equal at the start, equal gradients at each step, a stop where values diverge."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diffir_sr.errors import InputError


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1


_control: tuple[Any, Any] | None = None  # the group of all ranks that this one belongs to, and this one


def control_group() -> Any:
    """All ranks over gloo: for agreements of the hosts, which wait for no device and may take a day.

    NCCL gives up where a rank waits for another's share of a validation. The first call must be made by all ranks.
    """
    global _control
    everyone = distributed.group.WORLD
    if _control is None or _control[0] is not everyone:
        _control = everyone, distributed.new_group(backend="gloo", timeout=timedelta(days=1))
    return _control[1]


def gathered(value: Any) -> list[Any]:
    """The values of all ranks in their order, on every rank."""
    if _alone():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=control_group())
    return values


def agreed(value: Any) -> Any:
    """The value that rank 0 has, on every rank: files change while others still look at them."""
    if _alone():
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0, group=control_group())
    return box[0]


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error says that another process of the training is gone: gloo, NCCL and the store say so in words."""
    words = ("closed by peer", "reset by peer", "gloo", "nccl", "processgroup", "tcpstore", "store->")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


def broadcast_parameters(net: nn.Module) -> None:
    """Give the parameters and buffers of every rank the values of rank 0."""
    if not _alone():
        for tensor in net.state_dict().values():
            distributed.broadcast(tensor, 0)


def exchange(net: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """While open, a wrapped `net` averages gradients over the ranks, if `wanted`; else each rank adds up its own."""
    if isinstance(net, DistributedDataParallel) and not wanted:
        return net.no_sync()
    return contextlib.nullcontext()


def average_gradients(net: nn.Module) -> None:
    """Replace the gradients of every rank by their mean over the ranks, in one message."""
    if _alone():
        return
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


# A training that has diverged is stopped, and must not take the place of its last good checkpoint.


_REMEDY = "go back to an earlier state with path.resume_state, with a lower learning rate or train.clip_grad_norm"


def refuse_broken_weights(net: nn.Module, current_iter: int) -> None:
    """Raise InputError that names the first weights that are not finite."""
    for name, weight in net.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"iteration {current_iter}: {name} holds values that are not finite, nothing was saved; {_REMEDY}"
            )
