"""Small option files for tests: a right one for each kind of run, and functions that change and load them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffir_sr.errors import OptionError
from diffir_sr.options import LoadedOptions, load_options

ABSENT = object()
FILE = "run.yml"
_NETWORK = {"scale": 4, "dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
_PAIRS = {"type": "PairedDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"}
_ADAM = {"type": "Adam", "lr": 0.0002, "betas": [0.9, 0.99]}

STAGE_1: dict[str, Any] = {
    "name": "run",
    "model_type": "DiffIRS1Model",
    "scale": 4,
    "datasets": {
        "train": {"name": "photos", **_PAIRS, "gt_size": 64, "batch_size_per_gpu": 2, "num_worker_per_gpu": 1},
        "val": {"name": "few", **_PAIRS},
    },
    "network_g": {"type": "DiffIRS1", **_NETWORK},
    "train": {
        "total_iter": 100,
        "optim_g": _ADAM,
        "scheduler": {"type": "MultiStepLR", "milestones": [50], "gamma": 0.5},
        "pixel_opt": {"type": "L1Loss"},
    },
    "val": {"val_freq": 50, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
}
STAGE_2: dict[str, Any] = {
    **STAGE_1,
    "model_type": "DiffIRS2Model",
    "network_g": {"type": "DiffIRS2", **_NETWORK},
    "network_S1": {"type": "DiffIRS1", **_NETWORK},
    "path": {"pretrain_network_g": "stage_1.pth", "pretrain_network_S1": "stage_1.pth"},
    "train": {**STAGE_1["train"], "kd_opt": {"type": "KDLoss"}},
}
GAN: dict[str, Any] = {
    **STAGE_2,
    "model_type": "DiffIRGANS2Model",
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3},
    "path": {"pretrain_network_g": "stage_2.pth", "pretrain_network_S1": "stage_1.pth"},
    "train": {**STAGE_2["train"], "optim_d": _ADAM, "gan_opt": {"type": "GANLoss", "gan_type": "vanilla"}},
}
TEST: dict[str, Any] = {
    "name": "run",
    "model_type": "DiffIRS2Model",
    "datasets": {"test": {"name": "few", "type": "SingleDataset", "dataroot_lq": "lq"}},
    "network_g": {"type": "DiffIRS2", **_NETWORK},
    "path": {"pretrain_network_g": "net_g.pth"},
}
REAL: dict[str, Any] = {
    "name": "real",
    "type": "RealESRGANDataset",
    "dataroot_gt": "gt",
    "meta_info": "list.txt",
    "use_hflip": True,
    "use_rot": False,
    "batch_size_per_gpu": 9,
    "num_worker_per_gpu": 1,
    "final_sinc_prob": 0.8,
    **{
        f"{key}{ending}": value
        for ending in ("", "2")
        for key, value in {
            "blur_kernel_size": 21,
            "kernel_list": ["iso", "aniso"],
            "kernel_prob": [0.4, 0.6],
            "sinc_prob": 0.1,
            "blur_sigma": [0.2, 3],
            "betag_range": [0.5, 4],
            "betap_range": [1, 2],
        }.items()
    },
}


def changed(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of options in which each 'section.key' has a new value or is ABSENT."""
    options = copy.deepcopy(options)
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = options
        for section in sections:
            place = place.setdefault(section, {})
        if value is ABSENT:
            del place[key]
        else:
            place[key] = copy.deepcopy(value)
    return options


def load(options: dict[str, Any] | str, **arguments: Any) -> LoadedOptions:
    """Write options to a file in the current folder and load it, without asking for weights and data."""
    text = options if isinstance(options, str) else yaml.safe_dump(options, sort_keys=False)
    Path(FILE).write_text(text)
    if "is_train" not in arguments:
        arguments["is_train"] = "train:" in text
    return load_options(FILE, **{"check_files": False, **arguments})


def refusal(options: dict[str, Any] | str, **arguments: Any) -> str:
    """The message with which loading such a file fails."""
    with pytest.raises(OptionError) as caught:
        load(options, **arguments)
    return str(caught.value)


def line_of(text: str, *, file: str = FILE) -> int:
    """The line of a file, counted from 1, that holds a text."""
    lines = Path(file).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def problems(options: dict[str, Any] | str, **arguments: Any) -> dict[str, str]:
    """{key: text} of every problem that such a file has."""
    lines = [line for line in refusal(options, **arguments).splitlines() if not line.endswith(" problems")]
    return dict(line.split(": ", 2)[1:] for line in lines)


def warnings(options: dict[str, Any], **arguments: Any) -> dict[str, str]:
    """{key: text} of every warning that such a file gets."""
    return dict(warning.split(": ", 2)[1:] for warning in load(options, **arguments).warnings)


def register(monkeypatch: pytest.MonkeyPatch, registry: Any, name: str) -> None:
    """Let a registry know an empty class for the time of a test, unless it knows one of that name."""
    if name not in registry:
        monkeypatch.setattr(registry, "_obj_map", {**registry._obj_map, name: type(name, (), {})})
