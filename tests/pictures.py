"""A tiny network with fixed weights, and small real pictures, for tests of restoring."""

import numpy as np
import skimage.data
import torch
from golden_cases import fill
from toy import S2

from diffir_sr.archs.diffir_arch import DiffIRS2

SMALL = {name: value for name, value in S2.items() if name != "type"}


def write_network(file="net.pth", *, stage="s2", **arguments):
    """Save a tiny stage-2 network whose weights follow from their names and `stage`."""
    network = DiffIRS2(**(SMALL | arguments))
    fill(network, stage)
    torch.save({"params_ema": network.state_dict()}, file)
    return str(file)


def photo(height=20, width=17, *, top=60, left=180):
    """A piece of a real photograph, RGB uint8."""
    return np.ascontiguousarray(skimage.data.astronaut()[top : top + height, left : left + width])
