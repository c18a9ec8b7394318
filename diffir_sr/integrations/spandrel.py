"""DiffIR as an architecture of spandrel, which chaiNNer, ComfyUI, InvokeAI and others load networks with.

    import spandrel
    from diffir_sr.integrations.spandrel import install

    install()
    model = spandrel.ModelLoader().load_from_file("net_g.pth")
    restored = model(image)

Programs divide pictures into tiles and know nothing of noise, so the start noise is one fixed vector instead of a
function of the picture. Whole pictures are restored in strips within the free memory, which the model states (tiling
INTERNAL).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    MaskedImageModelDescriptor,
    ModelTiling,
)
from torch import Tensor

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.checkpoints import generator_in
from diffir_sr.diffusion.noise import GivenNoise, fixed_noise
from diffir_sr.errors import CheckpointError
from diffir_sr.families.base import Engine
from diffir_sr.families.diffir import identify
from diffir_sr.inference.plain import restore_image
from diffir_sr.inference.strips.engine import StripEngine
from diffir_sr.weights_files import bare_tensors

_TELLING = ("G.patch_embed.proj.weight", "G.latent.0.ffn.project_out.weight", "condition.E.0.weight")
_PREFIXES = ("", "generator.", "generatorS2.")  # the latter two in Lightning checkpoints of inpainting


class DiffIRArch(Architecture[DiffIRS2]):
    """Stage 2 of DiffIR, all tasks; stage 1 needs the ground truth and is not recognised.

    The weights do not show whether they predict noise (`prediction` eps) or draw noise in each step (`variance_noise`);
    both are taken as published: x0, and no noise.
    """

    def __init__(self) -> None:
        super().__init__(id="DiffIR", detect=_detect)

    def load(self, state_dict: Any) -> ImageModelDescriptor[DiffIRS2] | MaskedImageModelDescriptor[DiffIRS2]:
        """The model of a state dict; raises CheckpointError, which names the tensor, for impossible shapes."""
        tensors = bare_tensors(generator_in(state_dict), Path("the state dict"))
        identity = identify(tensors, {})
        if identity is None:
            raise CheckpointError("the shapes of these DiffIR tensors belong to no known task and scale")
        network = DiffIRS2(**identity.arguments).eval()
        arguments = identity.arguments
        blocks = "-".join(str(count) for count in arguments["num_blocks"])
        common: dict[str, Any] = {
            "architecture": self,
            "tags": [identity.task, f"{arguments['dim']}dim", f"{blocks}b"],
            "supports_half": False,
            "supports_bfloat16": False,
            "input_channels": 3,
            "output_channels": 3,
            "tiling": ModelTiling.INTERNAL,
        }
        run = _Runner()
        if "mask" in network.conditions:
            return MaskedImageModelDescriptor(network, tensors, purpose="Inpainting", call_fn=run.masked, **common)
        purpose = "SR" if network.scale > 1 else "Restoration"
        return ImageModelDescriptor(network, tensors, purpose=purpose, scale=network.scale, call_fn=run, **common)


def _detect(state_dict: Any) -> bool:
    return any(all(prefix + name in state_dict for name in _TELLING) for prefix in _PREFIXES)


class _Runner:
    """Calls the network through the engine of this package; the engine is made anew when the device changes."""

    def __init__(self) -> None:
        self._engine: StripEngine | None = None

    def __call__(self, network: DiffIRS2, image: Tensor) -> Tensor:
        """`image` (B, 3, H, W), or (B, 4, H, W) with the mask, in [0, 1], of any size."""
        noise = fixed_noise(network.prior_width).expand(len(image), -1)
        if self._engine is None or self._engine.device != image.device:
            self._engine = StripEngine(network, device=image.device)
        return restore_image(cast(Engine, self._engine), image, noise=GivenNoise(noise)).to(image)

    def masked(self, network: DiffIRS2, image: Tensor, mask: Tensor) -> Tensor:
        """`mask` (B, 1, H, W) is 1 for missing pixels; the others stay as they are."""
        made = self(network, torch.cat([image * (1 - mask), mask], dim=1))
        return torch.where(mask > 0.5, made, image)  # a new tensor: the caller clips it in place


def install(registry: ArchRegistry | None = None) -> None:
    """Add DiffIR to a registry, by default the one that `spandrel.ModelLoader` uses; again, nothing changes."""
    target = MAIN_REGISTRY if registry is None else registry
    target.add(ArchSupport.from_architecture(DiffIRArch()), ignore_duplicates=True)
