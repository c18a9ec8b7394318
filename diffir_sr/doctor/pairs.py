"""Which images of a target belong together, and those that have no partner or are not where a list says."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from diffir_sr.data.manifest import read_meta
from diffir_sr.data.pairs import degraded_name
from diffir_sr.doctor.findings import Finding
from diffir_sr.doctor.images import Unit
from diffir_sr.doctor.storage import Storage, StoredImage, open_storage
from diffir_sr.doctor.targets import ExaminedSet
from diffir_sr.errors import InputError
from diffir_sr.files.images import without_suffix


@dataclass
class PlannedUnits:
    """What to examine of a target, what was found before, and a line about each root."""

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
        # Masks under other names are a stock to draw from; a root that failed has been told already.
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
