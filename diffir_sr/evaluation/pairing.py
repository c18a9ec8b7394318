"""Which restored image belongs to which ground truth, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffir_sr.data.sources import Source, image_names, open_source, some
from diffir_sr.errors import InputError


@dataclass(frozen=True)
class Partners:
    """Names of one image in the folders of restored images, ground truth and, if given, masks."""

    restored: str
    gt: str


@dataclass(frozen=True)
class Sets:
    """Two sources and their pairs; `ending` is what restored names have after those of the ground truth."""

    restored: Source
    gt: Source
    pairs: list[Partners]
    ending: str


def pair_up(restored: str | Path, gt: str | Path, *, suffix: str | None = None, spare: int = 0) -> Sets:
    """Pair every image of two folders or LMDBs; raises InputError that lists what does not fit.

    A restored image has the name of its ground truth, or that and one ending which all of them share: BasicSR's
    validation writes `<name>_<experiment>.png`. `suffix` says which. Sizes are equal, or the ground truth is up to
    `spare` pixels larger at the bottom and the right.
    """
    sources = open_source(restored), open_source(gt)
    whole = {name: name for name in sources[1].names}
    # Where folders are nested, validation writes all results into one.
    flat = dict(zip(whole, image_names([f"{name}.png" for name in whole]), strict=True))
    for called in (whole, flat):
        ending = _ending(called, sources[0], suffix)
        if ending is not None:
            pairs = [Partners(stem + ending, name) for name, stem in called.items()]
            _check_spare_images(pairs, *sources)
            _check_sizes(pairs, *sources, spare=spare)
            return Sets(*sources, pairs, ending)
    raise _no_pairs(*sources, suffix)


def _ending(called: dict[str, str], restored: Source, suffix: str | None) -> str | None:
    """What follows the ground truth's names in the restored ones: '' if nothing, None if they are not there."""
    if suffix is not None:
        candidates = {f"_{suffix}", suffix}
    elif all(stem in restored for stem in called.values()):
        return ""
    else:
        candidates = _shared_endings(list(called.values()), restored.names)
    fitting = sorted(end for end in candidates if all(stem + end in restored for stem in called.values()))
    if len(fitting) > 1:
        raise InputError(
            f"restored images of {restored.path.resolve()} could belong to the ground truth by several endings: "
            f"{', '.join(fitting)}; say which with --suffix"
        )
    return fitting[0] if fitting else None


def _shared_endings(stems: list[str], names: list[str]) -> set[str]:
    shared: set[str] | None = None
    for stem in stems:
        endings = {name[len(stem) :] for name in names if name.startswith(stem)}
        shared = endings if shared is None else shared & endings
        if not shared:
            return set()
    return shared or set()


def _no_pairs(restored: Source, gt: Source, suffix: str | None) -> InputError:
    alone = [name for name in gt.names if not any(other.startswith(name) for other in restored.names)] or gt.names
    ending = "with one ending for all" if suffix is None else f"followed by {suffix!r} or {'_' + suffix!r}"
    return InputError(
        f"{len(alone)} of {len(gt.names)} images of gt {gt.path.resolve()} have no restored partner in "
        f"{restored.path.resolve()}: {some(alone)}; a restored image has its ground truth's name, or that {ending}; "
        f"found there: {some(restored.names)}"
    )


def _check_spare_images(pairs: list[Partners], restored: Source, gt: Source) -> None:
    known = {pair.restored for pair in pairs}
    extra = [name for name in restored.names if name not in known]
    if extra:
        raise InputError(
            f"{len(extra)} restored images of {restored.path.resolve()} have no ground truth in {gt.path.resolve()}: "
            f"{some(extra)}; remove them, or add their ground truth"
        )


def _check_sizes(pairs: list[Partners], restored: Source, gt: Source, *, spare: int) -> None:
    sizes = restored.sizes([pair.restored for pair in pairs]), gt.sizes([pair.gt for pair in pairs])
    wrong = []
    for pair in pairs:
        small, large = sizes[0][pair.restored], sizes[1][pair.gt]
        if not all(0 <= b - a <= spare for a, b in zip(small, large, strict=True)):
            wrong.append(f"{pair.gt}: restored {small[0]}x{small[1]}, gt {large[0]}x{large[1]}")
    if wrong:
        larger = f" or up to {spare} pixels larger" if spare else ""
        raise InputError(
            f"{len(wrong)} of {len(pairs)} pairs differ in size (height x width): {some(wrong)}; the ground truth has "
            f"to be as large as the restored image{larger}"
        )
