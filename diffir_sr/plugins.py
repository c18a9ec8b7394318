"""Plugins: packages that add archs, datasets, losses, metrics and models without changes to this one."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from diffir_sr.errors import OptionError

GROUP = "diffir_sr.plugins"
_loaded: set[tuple[str, str]] = set()


def load_plugins() -> list[str]:
    """Load every installed plugin of the entry-point group `diffir_sr.plugins` once; return their names.

    An entry point names a module whose import registers classes with BasicSR's registries, or a function that does so
    when called. Raises OptionError, which names the plugin, if one cannot be loaded.
    """
    found = list(entry_points(group=GROUP))
    for point in found:
        if (point.name, point.value) not in _loaded:
            _load(point)
            _loaded.add((point.name, point.value))
    return [point.name for point in found]


def _load(point: EntryPoint) -> None:
    package = point.dist.name if point.dist else "unknown package"
    try:
        thing = point.load()
        if callable(thing):
            thing()
    except Exception as error:
        raise OptionError(
            f"plugin {point.name!r} ({point.value}, of the installed package {package}) cannot be loaded: "
            f"{type(error).__name__}: {error}; fix it, or uninstall it with: pip uninstall {package}"
        ) from error
