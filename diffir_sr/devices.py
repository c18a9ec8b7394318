"""The device used for computing: any accelerator that torch reports, or the CPU."""

from __future__ import annotations

import torch

from diffir_sr.errors import InputError


def default_device() -> torch.device:
    """The accelerator of this machine (cuda, mps, xpu, ...) if torch finds one, else the CPU."""
    kind = _accelerator()
    return torch.device("cpu" if kind is None else kind)


def accelerator_count() -> int:
    """Number of accelerators of the kind of `default_device`; 0 if that is the CPU."""
    return 0 if _accelerator() is None else torch.accelerator.device_count()


def device_of(name: str) -> torch.device:
    """The device named auto, cpu, cuda, cuda:N, mps, xpu ...; raises InputError if this machine has no such device."""
    if name == "auto":
        return default_device()
    choices = f"choose {', '.join(_choices())}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is unknown; {choices}") from error
    if device.type == "cpu":
        return device
    count = accelerator_count() if device.type == _accelerator() else 0
    if (device.index or 0) >= count:
        raise InputError(f"device {name!r}: this machine has {count} of this kind; {choices}")
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, or float32 if it has no float64."""
    if device.type == "mps":
        return torch.float32
    if device.type == "xpu":
        properties = torch.xpu.get_device_properties(device)
        return torch.float64 if getattr(properties, "has_fp64", False) else torch.float32
    return torch.float64


def _accelerator() -> str | None:
    """The kind of accelerator that torch was built for and finds on this machine."""
    if not hasattr(torch, "accelerator"):  # torch before 2.6
        return "cuda" if torch.cuda.is_available() else None
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None else found.type


def _choices() -> list[str]:
    kind = _accelerator()
    if kind is None:
        return ["auto", "cpu"]
    return ["auto", "cpu", kind, *([f"{kind}:N"] if accelerator_count() > 1 else [])]
