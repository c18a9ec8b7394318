"""Whether a restored picture fits into memory, told before anything large is allocated."""

from __future__ import annotations

import torch

from diffir_sr.errors import InputError
from diffir_sr.files.machine import free_memory

_PER_INPUT_PIXEL = 24  # bytes: decoded twice over, and as float32
_PER_OUTPUT_PIXEL = 24  # float32 twice over while it is clipped and rounded; its bytes; the file


def check_fits_in_memory(height: int, width: int, *, scale: int, where: str, available: int | None = None) -> None:
    """Raise InputError where input and result alone (the network has its own plan) exceed the memory that is free."""
    available = free_memory() if available is None else available
    needed = height * width * (_PER_INPUT_PIXEL + _PER_OUTPUT_PIXEL * scale * scale)
    if needed > available:
        raise InputError(
            f"{where}: {height}x{width} restored to {height * scale}x{width * scale} needs about "
            f"{needed / 2**30:.1f} GiB for the pictures alone, {available / 2**30:.1f} GiB are free; cut it into parts"
        )


def available(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()
