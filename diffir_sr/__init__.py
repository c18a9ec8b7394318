"""diffir_sr: train, evaluate and use DiffIR with BasicSR. Importing it registers everything it adds to BasicSR."""

from diffir_sr import compat as _compat

_compat.apply()  # before the first import of basicsr, which fails without it

from diffir_sr import registration as _registration  # noqa: E402
from diffir_sr.errors import CheckpointError, DiffIRError, InputError, OptionError  # noqa: E402
from diffir_sr.plugins import load_plugins  # noqa: E402
from diffir_sr.version import __version__  # noqa: E402

_registration.register()

__all__ = ["CheckpointError", "DiffIRError", "InputError", "OptionError", "__version__", "load_plugins"]
