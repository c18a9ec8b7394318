"""diffir_sr: train, evaluate and use DiffIR with BasicSR. Importing both registers its classes with BasicSR."""

import importlib
from typing import TYPE_CHECKING, Any

from diffir_sr import import_hook as _import_hook
from diffir_sr.errors import CheckpointError, DiffIRError, InputError, OptionError
from diffir_sr.version import __version__

if TYPE_CHECKING:
    from diffir_sr.inference.restorer import Restorer, load_restorer, restore
    from diffir_sr.plugins import load_plugins

_import_hook.install()

# Imported on first use: each needs torch or more.
_HOMES = {
    "Restorer": "diffir_sr.inference.restorer",
    "load_restorer": "diffir_sr.inference.restorer",
    "restore": "diffir_sr.inference.restorer",
    "load_plugins": "diffir_sr.plugins",
}
__all__ = [
    "CheckpointError",
    "DiffIRError",
    "InputError",
    "OptionError",
    "Restorer",
    "__version__",
    "load_plugins",
    "load_restorer",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
