"""Stage-2 networks out of weights files, alone or mixed: the dial between faithful and sharp."""

from __future__ import annotations

from pathlib import Path

import torch

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.cards import UNTOLD
from diffir_sr.checkpoints import Weights, fit, read_weights
from diffir_sr.describe import description, identity_of
from diffir_sr.errors import CheckpointError, InputError


def load_stage_2(path: Path) -> tuple[DiffIRS2, str]:
    """The network of a file, ready to evaluate, and its description; raises CheckpointError for another kind."""
    weights = read_weights(path)
    return _network(weights), description(weights)


def _network(weights: Weights) -> DiffIRS2:
    identity = identity_of(weights)
    if identity.stage != 2:
        raise CheckpointError(
            f"{weights.path.resolve()} is {identity}, which needs the true picture to restore; give the file of a "
            "stage-2 network (DiffIRS2Model or DiffIRGANS2Model wrote it)"
        )
    untold = {name: weights.card[name] for name in UNTOLD if name in weights.card}
    network = DiffIRS2(**identity.arguments, **untold)
    fit(network, weights, where="weights", strict=True)
    return network.eval().requires_grad_(False)


def blended(first: Path, second: Path, share: float) -> tuple[DiffIRS2, str]:
    """The network whose weights are (1 - share) of `first` and share of `second`, which must be of one make.

    Interpolating the weights of a network and of the same one fine-tuned with a discriminator trades fidelity for
    sharpness without steps (deep network interpolation, Wang et al. 2019).
    """
    if not 0 <= share <= 1:
        raise InputError(f"blend: expected a share from 0 ({first.name} alone) to 1 ({second.name} alone), got {share}")
    one, two = read_weights(first), read_weights(second)
    if identity_of(one) != identity_of(two):
        raise CheckpointError(
            f"blend: {first} is {identity_of(one)} and {second} is {identity_of(two)}; only weights of one network can "
            "be mixed, such as a stage 2 and the GAN training that started from it"
        )
    network, other = _network(one), _network(two)
    with torch.no_grad():
        for weight, towards in zip(network.parameters(), other.parameters(), strict=True):
            weight.lerp_(towards, share)
    return network, f"{description(one)}\n  blended: {share:g} of {second}"
