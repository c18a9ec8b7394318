"""Examination of whole datasets: missing partners, mixed kinds, duplicates, test images in the training data."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffir_sr.data.pairs import degraded_name
from diffir_sr.data.sources import read_meta
from diffir_sr.doctor.findings import DoctorReport, Finding
from diffir_sr.doctor.images import Seen, Unit, examine, near, near_within, shows_the_same
from diffir_sr.doctor.storage import Storage, StoredImage, open_storage
from diffir_sr.doctor.targets import ExaminedSet
from diffir_sr.errors import InputError
from diffir_sr.files.images import without_suffix
from diffir_sr.inference.assess import likelihoods_of, load_assessor
from diffir_sr.prepare.jobs import stream

if TYPE_CHECKING:
    from diffir_sr.archs.autodir_arch import AutoDIR

_SAME_SHAPE = 0.03  # relative difference of width over height
_LEAST_LANDMARKS = 3
_LEAST_SHARE = 0.3  # of the landmarks of the smaller image
_MOST_NEAR = (
    100_000  # limit for examined pairs, so that a set with one image thousands of times does not fill the report
)


def compare_all(seen: Sequence[Seen], *, training: frozenset[str]) -> list[Finding]:
    """All findings about sets as a whole; `training` names the training datasets."""
    groups: dict[str, list[Seen]] = defaultdict(list)
    for image in seen:
        groups[group_of(image.dataset)].append(image)
    findings: list[Finding] = []
    for images in groups.values():
        findings += _mixtures(images)
        for role in ("gt", "lq"):  # separately, since a degraded image without partner looks like its ground truth
            findings += _duplicates([image for image in images if _is_picture(image) and image.role == role])
    pictures = [image for image in seen if _is_picture(image)]
    trained = [image for image in pictures if image.dataset in training]
    findings += _leaks(trained, [image for image in pictures if image.dataset not in training])
    return findings


def group_of(dataset: str) -> str:
    """The dataset that a source belongs to: train of `train #1`."""
    return dataset.partition(" #")[0]


def _is_picture(image: Seen) -> bool:
    """Whether an image can be recognised; constant images are reported already, and all look alike."""
    return image.is_main and image.role != "mask" and image.colours != "one colour"


def _mixtures(images: Sequence[Seen]) -> Iterator[Finding]:
    """Images that differ from most of their set and role in bit depth or colour."""
    by_role: dict[str, list[Seen]] = defaultdict(list)
    for image in images:
        by_role[image.role].append(image)
    for role, members in by_role.items():
        bits = Counter(image.bits for image in members)
        usual, count = bits.most_common(1)[0]
        for image in members if len(bits) > 1 else ():
            if image.bits != usual:
                found = f"{image.bits} bits; {count} of {len(members)} {role} images have {usual}"
                yield Finding("bit depth", image.where, found, image.dataset)
        coloured = sum(image.colours == "colour" for image in members)
        # For a degraded image, this is already reported for the ground truth.
        for image in members if coloured and role != "mask" else ():
            if image.colours.startswith("grey") and image.is_main:
                found = f"{image.colours}; {coloured} of {len(members)} {role} images have colour"
                yield Finding("grey", image.where, found, image.dataset)


def _duplicates(images: Sequence[Seen]) -> Iterator[Finding]:
    first: dict[bytes, Seen] = {}
    distinct = []
    for image in images:
        known = first.setdefault(image.digest, image)
        if known is image:
            distinct.append(image)
        else:
            yield Finding("duplicate", image.where, f"same pixels as {known.where}", image.dataset)
    hashed = [image for image in distinct if image.hash is not None]
    reported: set[int] = set()
    for count, (one, other) in enumerate(near_within(_hashes(hashed))):
        if count >= _MOST_NEAR:
            break
        if other not in reported and _same_picture(hashed[one], hashed[other]):
            reported.add(other)
            found = f"looks like {hashed[one].where}"
            yield Finding("near duplicate", hashed[other].where, found, hashed[other].dataset)


def _leaks(trained: Sequence[Seen], tested: Sequence[Seen]) -> Iterator[Finding]:
    """For each test image found in the training data: where, and how it was recognised."""
    if not trained or not tested:
        return
    hits: dict[int, dict[str, str]] = defaultdict(dict)
    by_digest: dict[bytes, list[Seen]] = defaultdict(list)
    for image in trained:
        by_digest[image.digest].append(image)
    for index, image in enumerate(tested):
        hits[index].update({known.where: "same pixels as" for known in by_digest.get(image.digest, ())})
    hashed = [image for image in trained if image.hash is not None]
    numbers = [index for index, image in enumerate(tested) if image.hash is not None]
    for test, train in near(_hashes([tested[index] for index in numbers]), _hashes(hashed)):
        if _same_picture(tested[numbers[test]], hashed[train]):
            hits[numbers[test]].setdefault(hashed[train].where, "looks like")
    for test, train in _cuts(tested, trained):
        hits[test].setdefault(trained[train].where, "shares a part, pixel for pixel, with")
    for index, found in sorted(hits.items()):
        if found:
            where, how = next(iter(found.items()))
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            image = tested[index]
            yield Finding("leak", image.where, f"{how} {where}{more}, which is in the training data", image.dataset)


def _cuts(tested: Sequence[Seen], trained: Sequence[Seen]) -> Iterator[tuple[int, int]]:
    """(test, training) indices of images with common landmarks: one is a crop of the other."""
    marks = np.concatenate([image.landmarks for image in tested])
    owners = np.repeat(np.arange(len(tested)), [len(image.landmarks) for image in tested])
    order = np.argsort(marks, kind="stable")
    marks, owners = marks[order], owners[order]
    for index, image in enumerate(trained):
        start, stop = (np.searchsorted(marks, image.landmarks, side=side) for side in ("left", "right"))
        if not np.any(stop > start):
            continue
        shared = Counter[int]()
        for one, other in zip(start.tolist(), stop.tolist(), strict=True):
            shared.update(owners[one:other].tolist())
        for test, count in shared.items():
            smaller = min(len(image.landmarks), len(tested[test].landmarks))
            if count >= max(_LEAST_LANDMARKS, _LEAST_SHARE * smaller):
                yield test, index


def _same_picture(one: Seen, other: Seen) -> bool:
    shapes = abs(one.aspect / other.aspect - 1) <= _SAME_SHAPE
    return shapes and shows_the_same(one.thumb, other.thumb)


def _hashes(images: Sequence[Seen]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([image.hash for image in images], np.uint64)


# Examining targets as a whole: every image is decoded once, in several processes.


def examine_data(
    targets: Sequence[ExaminedSet], *, jobs: int, known: Sequence[Finding] = (), assessor: Path | None = None
) -> DoctorReport:
    """Check every image of the targets individually, with its partners, and against all others.

    Memory grows by about a kilobyte per image. `known` findings open the report. `assessor`, an AutoDIR, looks at every
    ground truth, too; raises its errors before anything is examined.
    """
    start = time.monotonic()
    network = load_assessor(assessor) if assessor is not None else None
    report, seen, units = DoctorReport(findings=list(known)), list[Seen](), list[Unit]()
    # Crops matter only if there is both training and test data.
    both = len({target.training for target in targets}) == 2
    for target in targets:
        made = plan_units(target, with_landmarks=both)
        units += made.units
        report.findings += made.findings
        report.roots += made.roots
    for done in stream(examine, units, jobs=jobs, label="doctor"):
        seen += done.seen
        report.findings += done.findings
        report.images += done.images
        report.stored_bytes += done.stored_bytes
        report.shifts_measured += done.shift_measured
    report.pairs = sum({"lq", "gt"} <= unit.members.keys() for unit in units)
    if network is not None:
        report.findings += _degraded(network, units)
    report.findings += compare_all(seen, training=frozenset(target.name for target in targets if target.training))
    report.seconds = time.monotonic() - start
    return report


_CERTAIN = 0.5  # probability of one fault from which a ground truth is reported


def _degraded(network: AutoDIR, units: Sequence[Unit]) -> Iterator[Finding]:
    """Ground truths that an assessor finds damaged; what cannot be read has been reported already."""
    from diffir_sr.archs.autodir_assessor import CLEAN

    for unit in units:
        stored = unit.members.get("gt")
        if stored is None:
            continue
        try:
            pixels, _ = stored.pixels(stored.read())
        except InputError:
            continue
        likely = likelihoods_of(network, np.ascontiguousarray(pixels[..., : 1 if pixels.shape[2] < 3 else 3]))
        worst = max(likely, key=lambda name: likely[name])
        if worst != CLEAN and likely[worst] >= _CERTAIN:
            yield Finding("degraded", stored.where, f"{worst} ({likely[worst]:.0%})", unit.dataset)


# Which images of a target belong together, which have no partner, and which listed images do not exist.


@dataclass
class PlannedUnits:
    """The units of a target to examine, the problems found so far, and a line about each root."""

    units: list[Unit] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)


def plan_units(target: ExaminedSet, *, with_landmarks: bool) -> PlannedUnits:
    """Open the roots of a target and match their images by name; faults become findings, nothing raises."""
    stores = {role: open_storage(root, dataset=target.name) for role, root in target.roots.items()}
    made = PlannedUnits(findings=[finding for store in stores.values() for finding in store.findings])
    names, listed = _listed(target, stores[target.main], made)
    for role, store in stores.items():
        used = f"{len(names)} of {len(store.images)} (listed)" if listed and role == target.main else len(store.images)
        made.roots.append(f"{target.name}: {role} {target.roots[role]}, {used} images")
    others = {role: store for role, store in stores.items() if role != target.main}
    units = {name: {target.main: stores[target.main].images[name]} for name in names}
    loose: list[tuple[str, StoredImage]] = []
    for role, store in others.items():
        loose += _match(target, role, store, stores[target.main], units, made, whole=not listed)
    made.units = [_unit(target, members, target.main, with_landmarks) for members in units.values()]
    made.units += [_unit(target, {role: stored}, role, False) for role, stored in loose]
    return made


def _unit(target: ExaminedSet, members: dict[str, StoredImage], main: str, with_landmarks: bool) -> Unit:
    return Unit(
        members,
        main,
        target.name,
        scale=target.scale,
        crop_gt=not target.training,
        gt_size=target.gt_size,
        with_landmarks=with_landmarks,
    )


def _listed(target: ExaminedSet, store: Storage, made: PlannedUnits) -> tuple[list[str], bool]:
    """The names to use, and whether a list restricts them."""
    if not target.meta_info:
        return list(store.images), False
    path = Path(os.path.expanduser(target.meta_info))
    try:
        wanted = [without_suffix(line.name) for line in read_meta(path)]
    except InputError as error:
        made.findings.append(Finding("source", str(path), str(error), target.name))
        return list(store.images), False
    if store.images:
        made.findings += [
            Finding("meta_info", str(path), f"{name}: listed, but not under {store.root}", target.name)
            for name in wanted
            if name not in store.images
        ]
    repeated = [name for name, count in Counter(wanted).items() if count > 1]
    made.findings += [Finding("meta_info", str(path), f"{name}: listed twice", target.name) for name in repeated]
    return [name for name in dict.fromkeys(wanted) if name in store.images], True


def _match(
    target: ExaminedSet,
    role: str,
    store: Storage,
    main: Storage,
    units: dict[str, dict[str, StoredImage]],
    made: PlannedUnits,
    *,
    whole: bool,
) -> list[tuple[str, StoredImage]]:
    """Add partners to units; returns images that have none, with their role, to be examined alone."""
    try:
        partner = {name: degraded_name(name, target.template) if role == "lq" else name for name in units}
    except InputError as error:
        made.findings.append(Finding("options", target.name, str(error), target.name))
        partner = {}
    pool = role != "lq" and not any(name in store.images for name in partner.values())
    if not store.images or not main.images or pool or not partner:
        # Masks with other names are drawn at random; a root that failed has been reported already.
        return [(role, stored) for stored in store.images.values()]
    for name, wanted in partner.items():
        if wanted in store.images:
            units[name][role] = store.images[wanted]
        else:
            found = f"no {role} partner {wanted} under {store.root}"
            made.findings.append(Finding("partner", units[name][target.main].where, found, target.name))
    taken, spare = set(partner.values()), []
    for name, stored in store.images.items() if whole else ():
        if name not in taken:
            found = f"no {target.main} partner under {main.root}"
            made.findings.append(Finding("partner", stored.where, found, target.name))
            spare.append((role, stored))
    return spare
