"""Networks out of weights files, alone or mixed: the dial between faithful and sharp."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diffir_sr.checkpoints import load_network
from diffir_sr.describe import description
from diffir_sr.errors import CheckpointError, InputError


def interpolated(first: Path, second: Path, share: float) -> tuple[nn.Module, str]:
    """The network whose weights are (1 - share) of `first` and share of `second`, which must be of one make.

    Interpolating the weights of a network and of the same one fine-tuned with a discriminator trades fidelity for
    sharpness without steps (deep network interpolation, Wang et al. 2019).
    """
    if not 0 <= share <= 1:
        raise InputError(f"blend: expected a share from 0 ({first.name} alone) to 1 ({second.name} alone), got {share}")
    one, two = load_network(first), load_network(second)
    shapes = [[(name, weight.shape) for name, weight in net.network.named_parameters()] for net in (one, two)]
    makes = [(net.identity.arch, net.identity.arguments) for net in (one, two)]
    if makes[0] != makes[1] or shapes[0] != shapes[1]:
        raise CheckpointError(
            f"blend: {first} is {one.identity} and {second} is {two.identity}; only weights of one network can "
            "be mixed, such as a stage 2 and the GAN training that started from it"
        )
    with torch.no_grad():
        for weight, towards in zip(one.network.parameters(), two.network.parameters(), strict=True):
            weight.lerp_(towards, share)
    return one.network, f"{description(one.weights, one.identity)}\n  blended: {share:g} of {second}"
