"""Checks, before a run, that the data of a dataset section can be used; substitutes for BasicSR's own classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from basicsr.utils.registry import DATASET_REGISTRY
from pydantic import Field

from diffir_sr.data.pairs import find_pairs
from diffir_sr.data.sources import (
    FolderSource,
    ImageSource,
    LmdbSource,
    ShardSource,
    check_backend,
    is_lmdb,
    open_source,
    roots_of,
    some,
)
from diffir_sr.errors import InputError
from diffir_sr.families import declaring
from diffir_sr.files.images import is_image_name
from diffir_sr.option_types import Found, Number, Positive, Section, Small, View


def check_dataset_options(opt: Mapping[str, Any]) -> None:
    """Raise InputError unless the data of a section can be used; datasets without a check pass."""
    known = dict(iter(DATASET_REGISTRY))
    check = getattr(declaring(known.get(opt.get("type"))), "check_options", None)
    if check is not None:
        check(opt)


class NormalisedOptions(Section):
    """Options of BasicSR's datasets for processing images."""

    mean: list[Number] | None = Field(None, min_length=3, max_length=3, description="Mean of R, G, B to subtract.")
    std: list[Positive] | None = Field(
        None, min_length=3, max_length=3, description="Standard deviation of R, G, B to divide by."
    )
    color: Literal["y"] | None = Field(None, description="y: luma only.")


class SingleImageOptions(NormalisedOptions):
    """BasicSR's images without ground truth, as in published test files."""

    dataroot_lq: str = Field(description="Folder or LMDB of the images.")
    meta_info_file: str = Field("", description="Text file that lists the images to use; by default all.")


class PairedImageOptions(NormalisedOptions):
    """BasicSR's pairs of images, as in published files."""

    dataroot_gt: str = Field(description="Folder or LMDB of the ground truth.")
    dataroot_lq: str = Field(description="Folder or LMDB of the degraded images.")
    meta_info_file: str | None = Field(None, description="Text file that lists the images to use; by default all.")
    filename_tmpl: str = Field(
        "{}", description="Name of a degraded image, with {} for the name of the ground truth, such as {}x4."
    )
    gt_size: Small | None = Field(None, description="Side of training patches in pixels; required in datasets.train.")
    use_hflip: bool = Field(False, description="Whether patches are randomly mirrored; required in datasets.train.")
    use_rot: bool = Field(False, description="Whether patches are randomly rotated; required in datasets.train.")


def same_storage(view: View, at: tuple[str, ...]) -> Found:
    """BasicSR's pairs are in two folders or two LMDBs."""
    kinds = {_names_lmdb(view.get(*at, root)) for root in ("dataroot_gt", "dataroot_lq") if view.has(*at, root)}
    if not view.has(*at, "io_backend", "type") and len(kinds) > 1:
        yield (*at, "dataroot_lq"), f"{view.get(*at, 'type')} needs two folders or two LMDBs, found one of each"


def _names_lmdb(root: str) -> bool:
    return root.rstrip("/\\").endswith(".lmdb")


class SingleImages:
    """Checks for BasicSR's SingleImageDataset, whose own messages name neither path nor remedy."""

    OPTIONS: ClassVar[Any] = SingleImageOptions

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Raise InputError unless the data of a section can be used."""
        check_backend(opt)
        source = open_source(roots_of(opt, "dataroot_lq")[0], meta_info=opt.get("meta_info_file"))
        check_basicsr_reads([source], listed=bool(opt.get("meta_info_file")))


class PairedImages:
    """Checks for BasicSR's PairedImageDataset."""

    OPTIONS: ClassVar[Any] = PairedImageOptions
    RULES = (same_storage,)
    NEEDED_IN_TRAINING = ("gt_size", "use_hflip", "use_rot")
    NEEDS_SCALE = True

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Raise InputError unless the data of a section can be used."""
        roots = roots_of(opt, "dataroot_lq")[0], roots_of(opt, "dataroot_gt")[0]
        check_backend(opt)
        options, training = PairedImageOptions.of(opt), opt.get("phase") == "train"
        # For LMDBs, BasicSR's class uses every key unchanged.
        plain = all(is_lmdb(Path(os.path.expanduser(root))) for root in roots)
        found = find_pairs(
            *roots,
            scale=int(opt.get("scale") or 1),
            filename_tmpl="{}" if plain else options.filename_tmpl,
            meta_info=None if plain else options.meta_info_file,
            gt_size=options.gt_size if training else None,
            crop_gt=not training,
        )
        names = [[pair.lq for pair in found.pairs], [pair.gt for pair in found.pairs]]
        check_basicsr_reads([found.lq, found.gt], listed=bool(options.meta_info_file), paired=names)


# Data that BasicSR's own dataset classes cannot read although ours can, reported before they fail.


def check_basicsr_reads(
    sources: Sequence[ImageSource], *, listed: bool, paired: Sequence[Sequence[str]] | None = None
) -> None:
    """Raise InputError unless BasicSR's Paired- or SingleImageDataset can read these sources.

    `listed`: whether a meta_info_file lists the images. `paired`: for two folders, the names of the partners.
    """
    ours = "PairedDataset" if len(sources) > 1 else "SingleDataset"
    faults = [fault for source in sources for fault in _faults(source, listed=listed)]
    if len({type(source) for source in sources}) > 1:
        faults.append(f"lq is {sources[0].kind}, gt is {sources[1].kind}")
    if paired and not faults:
        faults += _different_suffixes(sources, paired)
    if faults:
        raise InputError(
            f"{ours.replace('Dataset', 'ImageDataset')}, which is BasicSR's, cannot read this data: "
            f"{'; '.join(faults)}; use type: {ours}, which can, or change the data"
        )


def _faults(source: ImageSource, *, listed: bool) -> list[str]:
    if isinstance(source, ShardSource):
        return [f"{source.path.resolve()} is {source.kind}"]
    if isinstance(source, LmdbSource):
        where = source.path.resolve()
        faults = [] if source.path.suffix == ".lmdb" else [f"the name of {where} does not end in .lmdb"]
        return [*faults, f"{where} contains raw pixels (--codec raw)"] if source.is_raw else faults
    nested = [name for name in source.names if "/" in name]
    blank = [name for name in source.names if " " in name]
    # Without a list, it treats every file that is not hidden as an image.
    strange = [] if listed else _strange_files(source.path)
    where = source.path.resolve()
    faults = [f"images in sub-folders of {where}: {some(nested)}"] if nested else []
    faults += [f"names with spaces in its list, under {where}: {some(blank)}"] if blank and listed else []
    return faults + ([f"files that are not images in {where}: {some(strange)}"] if strange else [])


def _strange_files(folder: Path) -> list[str]:
    files = (path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(name for name in files if not is_image_name(name))


def _different_suffixes(sources: Sequence[ImageSource], paired: Sequence[Sequence[str]]) -> list[str]:
    lq, gt = sources
    if not (isinstance(lq, FolderSource) and isinstance(gt, FolderSource)):
        return []
    files = [(lq.file(low).name, gt.file(high).name) for low, high in zip(*paired, strict=True)]
    other = [f"{low} and {high}" for low, high in files if Path(low).suffix != Path(high).suffix]
    return [f"partners with different extensions: {some(other)}"] if other else []
