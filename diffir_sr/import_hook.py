"""Connects this package to BasicSR when BasicSR is imported, so that importing this package stays light."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NAME = "basicsr"


def install() -> None:
    """Connect when BasicSR is imported, immediately if it already is; a second call does nothing."""
    if _NAME in sys.modules:
        _connect()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds BasicSR as Python would, and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Patches BasicSR before and after its own import, and adds this package's names to its registries."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        compat = importlib.import_module("diffir_sr.compat")
        for patch in compat.BEFORE:
            patch.make()
        self._loader.exec_module(module)
        _connect()


_connected = False


def _connect() -> None:
    global _connected
    if _connected:
        return
    _connected = True
    for patch in importlib.import_module("diffir_sr.compat").AFTER:
        patch.make()
    importlib.import_module("diffir_sr.registration").register()


def imported(name: str) -> Any:
    """The object named by "module:name"; imports its module."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
