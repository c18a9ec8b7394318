"""The golden cases: fixed weights, fixed inputs, and the numbers that the published networks make of them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from basicsr.archs import build_network

GOLDEN = Path(__file__).parent / "golden"
TINY = ["sr_x4_tiny", "sr_x2_tiny", "sr_x1_tiny", "deblur_tiny", "inpaint_tiny"]
PAPER = ["sr_x4_paper", "deblur_paper", "inpaint_paper"]
STAGE_2_ONLY = ("timesteps", "n_denoise_res", "linear_start", "linear_end")


def load_case(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return facts, arrays


def worst(computed, golden):
    """The largest absolute difference."""
    return (computed - golden).abs().max().item()


def fill_plain(net, prefix):
    """As `fill`, for networks whose names say less: one-dimensional weights are scales, other values offsets."""
    total = 0.0
    for key, weight in net.named_parameters():
        values = np.random.default_rng(zlib.crc32((prefix + key).encode())).standard_normal(tuple(weight.shape))
        values = values.astype(np.float32)
        if weight.ndim == 1:
            values = 1 + np.float32(0.1) * values if key.endswith("weight") else np.float32(0.05) * values
        else:
            values = values / np.float32(np.sqrt(np.prod(weight.shape[1:])))
        weight.data.copy_(torch.from_numpy(values))
        total += values.astype(np.float64).sum()
    return total


def fill(net, stage):
    """Give every parameter the values that follow from its own name; return their sum."""
    total = 0.0
    for key, weight in net.named_parameters():
        shape = tuple(weight.shape)
        values = np.random.default_rng(zlib.crc32((stage + key).encode())).standard_normal(shape).astype(np.float32)
        if key.endswith("temperature"):
            values = 1 + 0.1 * values
        elif len(shape) == 1:
            values = 1 + 0.1 * values if key.endswith("body.weight") else 0.05 * values
        else:
            values = values / np.float32(np.sqrt(np.prod(shape[1:])))
        values = values.astype(np.float32)
        total += values.astype(np.float64).sum()
        weight.data.copy_(torch.from_numpy(values))
    return total


def build_stages(name, facts):
    task = name.split("_")[0]
    kwargs = facts["arch_kwargs"]
    first = {key: value for key, value in kwargs.items() if key not in STAGE_2_ONLY}
    return (
        build_network(dict(type="DiffIRS1", task=task, **first)),
        build_network(dict(type="DiffIRS2", task=task, **kwargs)),
    )
