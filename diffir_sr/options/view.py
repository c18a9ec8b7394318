"""What the rules see of an option file: checked values, without those that have a problem already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from diffir_sr.archs.geometry import TaskGeometry, geometry_of
from diffir_sr.errors import OptionError
from diffir_sr.options.constructors import find
from diffir_sr.options.report import Report

STAGES = ("DiffIRS1", "DiffIRS2")
MISSING: Any = object()


class InvalidValue(Exception):  # noqa: N818 - a signal, not an error: the rule has nothing to say
    """A rule asked for a value that has a problem of its own."""


class View:
    """Read access to options for rules that look at more than one of them."""

    def __init__(self, values: dict[str, Any], report: Report, *, is_train: bool) -> None:
        self.values = values
        self.is_train = is_train
        self._report = report

    @property
    def model(self) -> Any:
        """The model type. Raises InvalidValue if there is no such model."""
        return self.get("model_type")

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value, or `default` where it is absent or ~. Raises InvalidValue if it has a problem."""
        if self._report.touches(keys):
            raise InvalidValue
        value = self._at(keys)
        return default if value is MISSING or value is None else value

    def has(self, *keys: str) -> bool:
        """Whether the key is there and not ~, right or wrong."""
        return self._at(keys) not in (MISSING, None)

    def datasets(self, *, phase: str | None = None) -> Iterator[tuple[str, str]]:
        """(name, type without BasicSR's suffix) of each dataset, or of one phase: train, val or test."""
        for name, options in (self._at(("datasets",)) if self.has("datasets") else {}).items():
            if isinstance(options, dict) and phase in (None, name.split("_")[0]):
                yield name, str(options.get("type")).removesuffix("_basicsr")

    def stage(self, network: str) -> str | None:
        """'DiffIRS1' or 'DiffIRS2' if the network is of this kind or derived from it, else None."""
        arch = find(ARCH_REGISTRY, self.get(network, "type"))
        names = [kind.__name__ for kind in getattr(arch, "__mro__", ())]
        return next((stage for stage in STAGES if stage in names), None)

    def geometry(self, network: str = "network_g") -> TaskGeometry | None:
        """The geometry of a DiffIR network; None for others. Raises InvalidValue if it has none."""
        if self.stage(network) is None:
            return None
        try:
            return geometry_of(self.task(network), self.get(network, "scale"))
        except OptionError:
            raise InvalidValue from None

    def task(self, network: str = "network_g") -> str:
        """What a DiffIR network restores: sr, deblur or inpaint."""
        return self.get(network, "task", default="sr")

    def scale(self) -> int | None:
        """Output size over input size, as the network has it or else as the file says."""
        geometry = self.geometry()
        return geometry.scale if geometry else self.get("scale")

    def _at(self, keys: tuple[str, ...]) -> Any:
        value: Any = self.values
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return MISSING
            value = value[key]
        return value
