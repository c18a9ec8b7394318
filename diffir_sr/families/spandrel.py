"""Networks of other projects, recognised and built by spandrel (extra `peers`): Real-ESRGAN, SwinIR, LaMa, ..."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffir_sr.diffusion.noise import Noise
from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.families.base import Family, Identity, Tensors

logger = logging.getLogger("diffir_sr.inference")
_MORE = "spandrel_extra_arches"
INSTALL = "pip install 'diffir_sr[peers]'"


class SpandrelNetwork(nn.Module):
    """A spandrel model as a restoring network. Its descriptor pads by the architecture's own size rule.

    Networks of one colour channel restore red, green and blue one by one.
    """

    multiple_of = 1

    def __init__(self, descriptor: Any, *, fills_holes: bool) -> None:
        super().__init__()
        self.net: nn.Module = descriptor.model
        self._descriptor = descriptor
        self.scale = int(descriptor.scale)
        self.conditions = frozenset({"mask"} if fills_holes else ())
        self.by_colour: bool = descriptor.input_channels == 1
        self.size_requirements: Any = descriptor.size_requirements
        self.title: str = descriptor.architecture.name

    def restore(self, lq: Tensor, *, noise: Noise, mask: Tensor | None = None) -> Tensor:
        """See `families.base.Restores`."""
        if mask is not None:
            holes = (mask > 0.5).to(lq)  # descriptors accept only 0 and 1, and one image at a time
            return torch.cat([self._descriptor(*one) for one in zip(lq.split(1), holes.split(1), strict=True)])
        pictures = lq.flatten(0, 1)[:, None] if self.by_colour else lq
        made = torch.cat([self._descriptor(one) for one in pictures.split(1)])
        return made.reshape(len(lq), 3, *made.shape[-2:])

    def check_engine(self, *, dtype: torch.dtype, tiles: bool) -> None:
        """Raise OptionError for a number format or tiles unsupported by this architecture according to spandrel."""
        name, tiling = self._descriptor.architecture.name, self._descriptor.tiling.name
        works = {torch.float16: self._descriptor.supports_half, torch.bfloat16: self._descriptor.supports_bfloat16}
        if not works.get(dtype, True):
            raise OptionError(f"{name} does not work in {str(dtype).removeprefix('torch.')}; take float32")
        if tiles and tiling == "INTERNAL":
            raise OptionError(f"{name} divides pictures by itself; leave tiles out")
        if tiles and tiling == "DISCOURAGED":
            logger.warning("%s looks at whole pictures; results in tiles can differ from one tile to the next.", name)


def load(tensors: Tensors, card: Mapping[str, Any]) -> tuple[nn.Module, Identity] | None:
    """The network that spandrel recognises in a state dict, or None. Raises CheckpointError for unsupported kinds."""
    if importlib.util.find_spec("spandrel") is None:
        return None
    from spandrel import ImageModelDescriptor, MaskedImageModelDescriptor, UnsupportedModelError

    registry, descriptor = _registry(), None
    # Reading a Lightning file drops the prefix by which LaMa is recognised.
    for candidate in (dict(tensors), {f"generator.{name}": tensor for name, tensor in tensors.items()}):
        try:
            descriptor = registry.load(candidate)
            break
        except UnsupportedModelError:
            continue
        except Exception as error:  # constructors of other projects raise all kinds of errors for unexpected sizes
            raise CheckpointError(
                f"spandrel recognises an architecture and cannot build it ({_line(error)})"
            ) from error
    if descriptor is None:
        return None
    name = descriptor.architecture.name
    if not isinstance(descriptor, ImageModelDescriptor | MaskedImageModelDescriptor):
        raise CheckpointError(f"{name} is for {descriptor.purpose}, which is not restored here")
    if descriptor.purpose == "FaceSR":
        raise CheckpointError(f"{name} restores aligned faces alone; give the weights of a network for whole pictures")
    if descriptor.input_channels not in (1, 3) or descriptor.output_channels != descriptor.input_channels:
        channels = f"{descriptor.input_channels} to {descriptor.output_channels} channels"
        raise CheckpointError(f"{name} maps {channels}; networks of colours (3 to 3) or of one (1 to 1) are restored")
    network = SpandrelNetwork(descriptor, fills_holes=isinstance(descriptor, MaskedImageModelDescriptor))
    return network.eval().requires_grad_(False), _identity(descriptor, network)


def _registry() -> Any:
    """The architectures of spandrel and, if installed, those that its authors package separately for their licences."""
    registry = importlib.import_module("spandrel").MAIN_REGISTRY.copy()
    if importlib.util.find_spec(_MORE) is not None:
        registry.add(*importlib.import_module(_MORE).EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def _identity(descriptor: Any, network: SpandrelNetwork) -> Identity:
    name, tags = descriptor.architecture.name, ", ".join(descriptor.tags)
    scale = f" x{network.scale}" if network.scale != 1 else ""
    requirements = descriptor.size_requirements
    return Identity(
        arch=name,
        arguments=dict(getattr(descriptor.model, "hyperparameters", {})),
        title=f"{name}{scale}{f' ({tags})' if tags else ''}",
        facts={
            "architecture": f"{name}, recognised by spandrel",
            "scale": str(network.scale),
            "purpose": str(descriptor.purpose),
            "size": tags or "not named",
            "sides": f"padded to multiples of {requirements.multiple_of}, at least {requirements.minimum} pixels",
            "licence of the weights": "not stated in the file; ask who published it",
        },
    )


def missing() -> str:
    """What to do about weights that no family recognises, as part of a sentence."""
    if importlib.util.find_spec("spandrel") is None:
        return f"weights of other projects (Real-ESRGAN, SwinIR, LaMa, ...) need spandrel: {INSTALL}"
    more = f"; Restormer, MPRNet and others are in {_MORE} (pip install {_MORE}; some forbid commercial use)"
    return f"spandrel does not know it either{'' if importlib.util.find_spec(_MORE) else more}"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


SPANDREL = Family(name="spandrel", load=load)
