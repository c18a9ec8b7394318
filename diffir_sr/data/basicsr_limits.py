"""What BasicSR's own dataset classes cannot read although ours can, said before they fail in their own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffir_sr.data.sources import FolderSource, LmdbSource, Source, some
from diffir_sr.errors import InputError
from diffir_sr.files.images import is_image_name


def check_basicsr_reads(
    sources: Sequence[Source], *, listed: bool, paired: Sequence[Sequence[str]] | None = None
) -> None:
    """Raise InputError unless BasicSR's Paired- or SingleImageDataset can read these sources.

    `listed`: a meta_info_file names the images. `paired`: for two folders, the names of each, partner by partner.
    """
    ours = "PairedDataset" if len(sources) > 1 else "SingleDataset"
    faults = [fault for source in sources for fault in _faults(source, listed=listed)]
    if len({type(source) for source in sources}) > 1:
        faults.append("one of lq and gt is a folder, the other an LMDB")
    if paired and not faults:
        faults += _different_suffixes(sources, paired)
    if faults:
        raise InputError(
            f"{ours.replace('Dataset', 'ImageDataset')}, which is BasicSR's, cannot read this data: "
            f"{'; '.join(faults)}; use type: {ours}, which can, or change the data"
        )


def _faults(source: Source, *, listed: bool) -> list[str]:
    if isinstance(source, LmdbSource):
        where = source.path.resolve()
        faults = [] if source.path.suffix == ".lmdb" else [f"the name of {where} does not end in .lmdb"]
        return [*faults, f"{where} holds bare pixels (--codec raw)"] if source.is_raw else faults
    nested = [name for name in source.names if "/" in name]
    blank = [name for name in source.names if " " in name]
    # Without a list it takes every file that is not hidden for an image.
    strange = [] if listed else _strange_files(source.path)
    where = source.path.resolve()
    faults = [f"images in sub-folders of {where}: {some(nested)}"] if nested else []
    faults += [f"names with blanks in its list, under {where}: {some(blank)}"] if blank and listed else []
    return faults + ([f"files that are no images in {where}: {some(strange)}"] if strange else [])


def _strange_files(folder: Path) -> list[str]:
    files = (path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(name for name in files if not is_image_name(name))


def _different_suffixes(sources: Sequence[Source], paired: Sequence[Sequence[str]]) -> list[str]:
    lq, gt = sources
    if not (isinstance(lq, FolderSource) and isinstance(gt, FolderSource)):
        return []
    files = [(lq.file(low).name, gt.file(high).name) for low, high in zip(*paired, strict=True)]
    other = [f"{low} and {high}" for low, high in files if Path(low).suffix != Path(high).suffix]
    return [f"partners with different extensions: {some(other)}"] if other else []
