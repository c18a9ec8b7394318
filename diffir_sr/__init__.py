"""diffir_sr: train, evaluate and use DiffIR with BasicSR. Importing it registers everything it adds to BasicSR."""

from typing import TYPE_CHECKING, Any

from diffir_sr import compat as _compat

_compat.apply()  # before the first import of basicsr, which fails without it

from diffir_sr import registration as _registration  # noqa: E402
from diffir_sr.errors import CheckpointError, DiffIRError, InputError, OptionError  # noqa: E402
from diffir_sr.plugins import load_plugins  # noqa: E402
from diffir_sr.version import __version__  # noqa: E402

if TYPE_CHECKING:
    from diffir_sr.inference.restorer import Restorer, load_restorer, restore

_registration.register()

_RESTORING = ("Restorer", "load_restorer", "restore")
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
    """What restores pictures is imported when it is asked for: trainings do without it."""
    if name not in _RESTORING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffir_sr.inference import restorer

    return getattr(restorer, name)
