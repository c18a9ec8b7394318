"""A training that has diverged is stopped, and must not take the place of its last good checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from diffir_sr.errors import InputError

_REMEDY = "go back to an earlier state with path.resume_state, with a lower learning rate or train.clip_grad_norm"


def refuse_broken_values(values: Mapping[str, float], current_iter: int) -> None:
    """Raise InputError that names the values that are not finite."""
    broken = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if broken:
        raise InputError(
            f"iteration {current_iter}: {', '.join(broken)} is not finite, the training has diverged; {_REMEDY}"
        )


def refuse_broken_weights(net: nn.Module, current_iter: int) -> None:
    """Raise InputError that names the first weights that are not finite."""
    for name, weight in net.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"iteration {current_iter}: {name} holds values that are not finite, nothing was saved; {_REMEDY}"
            )
