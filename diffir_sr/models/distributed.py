"""A network shared by several processes without a wrapper: equal at the start, equal gradients at each step."""

from __future__ import annotations

import torch
from torch import distributed, nn


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1


def broadcast_parameters(net: nn.Module) -> None:
    """Give the parameters and buffers of every rank the values of rank 0."""
    if not _alone():
        for tensor in net.state_dict().values():
            distributed.broadcast(tensor, 0)


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
