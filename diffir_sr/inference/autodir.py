"""Inference with AutoDIR within a memory limit, whole or with tiles of latents, and the trace of its rounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffir_sr.archs.autodir_arch import AutoDIR, Round
from diffir_sr.errors import OptionError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.picture import contact_sheet, encode_png, enlarged
from diffir_sr.inference.plain import LivingBytes, PlainEngine, PlainPlan


class AutoDIREngine(PlainEngine):
    """`PlainEngine` whose tiles are applied inside the network, since every round assesses the whole picture.

    Memory is measured with one call of each part. With offloading, the parts stay in the CPU's memory, and each is
    moved to the accelerator while it runs.
    """

    def __init__(self, network: AutoDIR, *, tile_mode: str = "exact", **how: Any) -> None:
        how.pop("optimized", None)
        super().__init__(network, tiles=tile_mode != "exact", **how)
        self._system = network
        network.tile = None if self._tile is None else (self._tile, self._overlap)
        self._network_tile, self._tile = self._tile, None

    def _placed(self, network: nn.Module) -> nn.Module:
        if not getattr(network, "offload", False):
            return super()._placed(network)
        if self.device.type == "cpu":
            raise OptionError("offload: no accelerator is used, so everything is in the CPU's memory; leave it out")
        return network.to("cpu")

    def plan(self, height: int, width: int) -> PlainPlan:
        planned = super().plan(height, width)
        return PlainPlan(height, width, self._network_tile, planned.bytes)

    @torch.inference_mode()
    def _measured(self) -> float:
        system = self._system
        side = -(-48 // system.multiple_of) * system.multiple_of
        device = next(system.parameters()).device  # the CPU's where parts are offloaded
        image = torch.zeros(1, 3, side, side, device=device)
        with LivingBytes() as living, torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            condition = system.diffusion.condition(image)
            context = system.assessor.text([""], mask_pads=True)[0]
            noisy = condition.new_zeros(1, system.diffusion.channels, *condition.shape[-2:])
            system.diffusion(noisy, condition, torch.zeros(1, device=device), context)
            system.correction(image, system.diffusion.pictures(noisy))
        return living.peak / side**2


# The trace of a picture


def trace_of(network: nn.Module) -> Trace:
    """A `Trace` of the network; raises OptionError for networks without rounds."""
    if not isinstance(network, AutoDIR):
        raise OptionError(f"--trace: {type(network).__name__} restores without rounds; leave it out")
    return Trace(network)


class Trace:
    """Collects the rounds of each picture that the network restores, until it is closed."""

    def __init__(self, network: AutoDIR) -> None:
        self.rounds: list[Round] = []
        self._network, self._before = network, network.watch
        network.watch = self._add

    def _add(self, one: Round) -> None:
        self.rounds.append(one)
        if self._before is not None:
            self._before(one)

    def close(self) -> None:
        """Restore the previous callback of the network."""
        self._network.watch = self._before

    def take(self) -> list[Round]:
        """The rounds since the last call, which are then forgotten."""
        rounds = self.rounds[:]
        self.rounds.clear()
        return rounds


def write_trace(rounds: Sequence[Round], target: Path, settings: dict[str, Any]) -> None:
    """Write <name>.trace.json, and <name>.trace.png with the picture before and after each round, beside a result."""
    about = [
        {
            "round": one.number,
            "category": one.category,
            "prompt": one.prompt,
            "probability": one.probabilities.get(one.category or "") if one.category else None,
            "probabilities": dict(one.probabilities),
            "applied": one.after is not one.before,
            "note": one.note,
        }
        for one in rounds
    ]
    text = json.dumps({"picture": target.name, "settings": settings, "rounds": about}, indent=1, ensure_ascii=False)
    write_atomically((text + "\n").encode(), target.with_name(f"{target.stem}.trace.json"))
    tiles = [("as given", _shown(rounds[0].before)), *(tile for one in rounds for tile in round_tiles(one))]
    sheet = contact_sheet(tiles, columns=min(len(tiles), 5))
    write_atomically(encode_png(sheet), target.with_name(f"{target.stem}.trace.png"))


_SHOWN = 256  # pixels of the longer side


def round_tiles(one: Round, *, side: int = _SHOWN) -> list[tuple[str, np.ndarray]]:
    """The category and the pictures of a round, as labelled pictures (H, W, 3) uint8 of at most `side` pixels."""
    p = one.probabilities.get(one.category or "")
    likely = f" {p:.0%}" if p is not None else ""
    name = f"{one.number}: {one.category or one.prompt}{likely}"
    if one.after is one.before:
        return [(name, _shown(one.before, side))]
    return [(f"{name}, diffusion", _shown(one.made, side)), (f"{name}, result", _shown(one.after, side))]


def _shown(image: torch.Tensor, side: int = _SHOWN) -> np.ndarray:
    values = ((image[0].float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    step = -(-max(values.shape[:2]) // side)
    small = values[::step, ::step]
    return np.ascontiguousarray(enlarged(small, max(1, side // max(small.shape[:2])) if step == 1 else 1))
