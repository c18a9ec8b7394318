"""Option files: read without running code and checked against everything that will read them."""

from diffir_sr.options.load import LoadedOptions, load_options

__all__ = ["LoadedOptions", "load_options"]
