"""The families of networks in this package; a new family is added to `FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffir_sr.families.autodir import AUTODIR
from diffir_sr.families.base import Family, Identity, Tensors
from diffir_sr.families.basicsr import BASICSR
from diffir_sr.families.diffir import DIFFIR
from diffir_sr.families.spandrel import SPANDREL
from diffir_sr.families.sr3 import DVSR, SR3
from diffir_sr.import_hook import imported

FAMILIES: tuple[Family, ...] = (DIFFIR, SR3, DVSR, AUTODIR, SPANDREL, BASICSR)


def identify(tensors: Tensors, card: Mapping[str, Any] | None = None) -> Identity | None:
    """The identity of the network with these tensors, from the family that recognises them, or None."""
    found = (family.identify(tensors, card or {}) for family in FAMILIES if family.identify is not None)
    return next((identity for identity in found if identity is not None), None)


def load_foreign(tensors: Tensors, card: Mapping[str, Any]) -> tuple[nn.Module, Identity] | None:
    """A network with these weights, built by a family that does this itself; None if none does."""
    built = (family.load(tensors, card) for family in FAMILIES if family.load is not None)
    return next((found for found in built if found is not None), None)


def fast_engine(network: nn.Module) -> Any | None:
    """The engine class of a family for exactly this class of network, or None."""
    kind = f"{type(network).__module__}:{type(network).__qualname__}"
    named = next((family.engines[kind] for family in FAMILIES if kind in family.engines), None)
    return None if named is None else imported(named)


def declaring(kind: Any) -> Any:
    """The object that declares the options of a class or function: its substitute, or else itself."""
    name = f"{getattr(kind, '__module__', '')}:{getattr(kind, '__qualname__', '')}"
    named = next((family.stand_ins[name] for family in FAMILIES if name in family.stand_ins), None)
    return kind if named is None else imported(named)
