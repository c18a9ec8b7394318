"""Option files: read without executing code, and checked against the classes that will read them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffir_sr.options.load import LoadedOptions, load_options

__all__ = ["LoadedOptions", "load_options"]


def __getattr__(name: str) -> Any:
    """Import on first use: checking needs BasicSR, listing recipes and adding parsers does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diffir_sr.options import load

    return getattr(load, name)
