"""What to examine: the datasets of an option file, of any type, or folders, LMDBs and shards given by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffir_sr.doctor.findings import Finding
from diffir_sr.errors import OptionError
from diffir_sr.options.load import load_options
from diffir_sr.options.source import read_source

_ROOT = "dataroot_"
_LISTS = ("meta_info_file", "meta_info")


@dataclass(frozen=True)
class ExaminedSet:
    """One dataset, or one of its mixed sources: a root for each role (gt, lq, mask)."""

    name: str
    roots: dict[str, str]
    training: bool
    scale: int = 1
    template: str = "{}"
    meta_info: str | None = None
    gt_size: int | None = None

    @property
    def main(self) -> str:
        """The role examined as the image itself: the ground truth if there is one."""
        return next((role for role in ("gt", "lq") if role in self.roots), next(iter(self.roots)))


@dataclass
class ExaminedSets:
    """The sets to examine, and problems in their description."""

    targets: list[ExaminedSet] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def targets_of_options(path: Path, *, scale: int | None = None) -> ExaminedSets:
    """The datasets of an option file; its problems become findings, unless it cannot be read (OptionError)."""
    values, found = read_source(path).values, ExaminedSets()
    datasets = values.get("datasets")
    if not isinstance(datasets, dict) or not datasets:
        raise OptionError(f"{path}: no section 'datasets', so there is no data to examine; name folders instead")
    try:
        values = load_options(path, is_train="train" in datasets, check_files=False).values
    except OptionError as error:
        found.findings.append(Finding("options", str(path), str(error)))
    for name, section in values["datasets"].items():
        if isinstance(section, dict):
            _add_dataset(found, name, section, values, scale=scale, file=path)
    if not found.targets:
        raise OptionError(f"{path}: no dataset has an option {_ROOT}gt or {_ROOT}lq, so there is no data to examine")
    return found


def _add_dataset(
    found: ExaminedSets,
    name: str,
    section: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    scale: int | None,
    file: Path,
) -> None:
    training = name == "train"
    sources = list(_sources(section))
    for index, source in enumerate(sources):
        roots = dict(_roots(source))
        if not roots:
            continue
        merged = {**section, **source}
        found.targets.append(
            ExaminedSet(
                name=name if len(sources) == 1 else f"{name} #{index + 1}",
                roots=roots,
                training=training,
                scale=scale or _count(merged.get("scale")) or _scale(values, roots),
                template=str(merged.get("filename_tmpl") or "{}"),
                meta_info=_list_of(merged, roots),
                gt_size=_patch(section, values) if training else None,
            )
        )
    lengths = {len(value) for key, value in section.items() if key.startswith(_ROOT) and isinstance(value, list)}
    if len(lengths) > 1:
        found.findings.append(
            Finding("options", str(file), f"datasets.{name}: lists of roots differ in length: {sorted(lengths)}")
        )


def _sources(section: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The section itself, or one mapping per mixed source: from lists of roots, or from a list of mappings."""
    lists = {key: value for key, value in section.items() if key.startswith(_ROOT) and isinstance(value, list)}
    nested = [
        entry
        for value in section.values()
        if isinstance(value, list)
        for entry in value
        if isinstance(entry, dict) and any(key.startswith(_ROOT) for key in entry)
    ]
    if lists:
        for index in range(max(map(len, lists.values()))):
            yield {key: value[index] for key, value in lists.items() if index < len(value)}
    if nested or not lists:
        yield from nested or [section]


def _roots(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in source.items():
        if isinstance(value, dict):
            value = value.get("path") or value.get("root")
        if key.startswith(_ROOT) and value:
            yield key.removeprefix(_ROOT), str(value)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _scale(values: Mapping[str, Any], roots: Mapping[str, str]) -> int:
    network = values.get("network_g")
    own = network.get("scale") if isinstance(network, dict) else None
    return (_count(values.get("scale")) or _count(own) or 1) if "lq" in roots else 1


def _list_of(section: Mapping[str, Any], roots: Mapping[str, str]) -> str | None:
    if section.get("type") == "PairedImageDataset" and all(root.endswith(".lmdb") for root in roots.values()):
        return None  # for LMDBs, BasicSR's class uses every key
    return next((str(section[key]) for key in _LISTS if section.get(key)), None)


def _patch(section: Mapping[str, Any], values: Mapping[str, Any]) -> int | None:
    growing = section.get("gt_sizes")
    sizes = [section.get("gt_size"), values.get("gt_size"), *(growing if isinstance(growing, list) else [])]
    return max((size for size in map(_count, sizes) if size), default=None)
