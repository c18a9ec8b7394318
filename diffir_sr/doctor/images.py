"""Examine one image, or one image with its partners: the work of one process, whose result is small."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from diffir_sr.data.masks import mask_values
from diffir_sr.doctor.findings import Finding
from diffir_sr.doctor.measures import find_shift, has_jpeg_grid, landmarks, luma, perceptual_hash, similarity, thumbnail
from diffir_sr.doctor.storage import StoredImage
from diffir_sr.errors import InputError
from diffir_sr.files.images import inspect
from diffir_sr.files.picture import as_bits

_FLAT = 2  # grey levels between the darkest and the brightest place of a picture that is one colour
_SHIFT_PX = 0.3  # of the degraded image
_OTHER_PICTURE = 0.3  # correlation below which partners show different pictures
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Unit:
    """Partners that belong together, by role; one of them is the main one, by which the picture is recognised."""

    members: dict[str, StoredImage]
    main: str
    dataset: str
    scale: int = 1
    crop_gt: bool = False  # the ground truth may be up to scale - 1 pixels larger
    gt_size: int | None = None
    with_landmarks: bool = False


@dataclass(frozen=True)
class Seen:
    """What is kept of an image: enough to tell it from all others."""

    where: str
    dataset: str
    role: str
    is_main: bool
    bits: int
    colours: str  # "grey", "grey as RGB", "colour", or "one colour" all over
    digest: bytes
    hash: int | None
    thumb: np.ndarray
    aspect: float
    landmarks: np.ndarray


@dataclass
class Examined:
    """The images of a unit, what is wrong with them, and what was measured."""

    seen: list[Seen] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    stored_bytes: int = 0
    images: int = 0
    shift_told: bool = False


def examine(unit: Unit) -> Examined:
    """Decode the members of a unit and check each alone and all together; faults are results, never raised."""
    done, pictures = Examined(images=len(unit.members)), {}

    def tell(check: str, stored: StoredImage, found: str) -> None:
        done.findings.append(Finding(check, stored.where, found, unit.dataset))

    for role in sorted(unit.members, key=lambda role: role != unit.main):
        stored = unit.members[role]
        if stored.is_absent:
            tell("lmdb", stored, "listed in meta_info.txt, but not in the data")
            continue
        try:
            data = stored.read()
            done.stored_bytes += len(data)
            image, notes = stored.pixels(data)
        except (InputError, OSError) as error:
            tell("unreadable", stored, str(error).removeprefix(f"{stored.where}: "))
            continue
        if image.dtype.kind == "f":
            image = as_bits(image, np.uint16)
        pictures[role] = image
        for note in notes:
            tell("converted", stored, note)
        for check, found in _faults_of_bytes(stored, data, image):
            tell(check, stored, found)
        grey = luma(image)
        for check, found in _faults_of_mask(image) if role == "mask" else _faults_of_picture(unit, role, image, grey):
            tell(check, stored, found)
        done.seen.append(_seen(unit, role, image, grey))
    if {"lq", "gt"} <= pictures.keys():
        _compare(unit, pictures["lq"], pictures["gt"], done, tell)
    if {"gt", "mask"} <= pictures.keys() and pictures["gt"].shape[:2] != pictures["mask"].shape[:2]:
        tell("scale", unit.members["mask"], f"mask {_size(pictures['mask'])}, gt {_size(pictures['gt'])}")
    return done


def _faults_of_bytes(stored: StoredImage, data: bytes, image: np.ndarray) -> Iterator[tuple[str, str]]:
    metadata = None if stored.raw is not None else inspect(data, where=stored.where).metadata
    if metadata is not None and metadata.turn != 1:
        yield "turned", f"EXIF orientation {metadata.turn}"
    for note in metadata.notes if metadata is not None else ():
        yield "metadata", note
    if stored.listed is not None and stored.listed != image.shape[:2]:
        high, wide = stored.listed
        yield "lmdb", f"meta_info.txt says {high}x{wide}, the image is {_size(image)}"
    if stored.sha256 is not None and hashlib.sha256(data).hexdigest() != stored.sha256:
        yield "manifest", f"other bytes than were made: sha256 is not {stored.sha256[:12]}..."


def _faults_of_mask(image: np.ndarray) -> Iterator[tuple[str, str]]:
    values, is_alpha = mask_values(image)
    levels = np.unique(values)
    if len(levels) > 2:
        shown = ", ".join(map(str, levels[:6].tolist())) + (", ..." if len(levels) > 6 else "")
        yield "mask levels", f"{len(levels)} levels: {shown}; expected 2"
    elif len(levels) == 1:
        yield "mask share", f"{levels[0]} all over, which is {'full' if levels[0] else 'empty'}"
    if image.shape[2] in (2, 4):
        yield "alpha", "a mask whose alpha is read, its colours being uniform" if is_alpha else "a mask with alpha"


def _faults_of_picture(unit: Unit, role: str, image: np.ndarray, grey: np.ndarray) -> Iterator[tuple[str, str]]:
    if image.shape[2] in (2, 4):
        clear = float((image[..., -1] != np.iinfo(image.dtype).max).mean())
        yield "alpha", f"alpha channel, {100 * clear:.0f} % of it not opaque"
    if role == "gt" and unit.gt_size and min(image.shape[:2]) < unit.gt_size:
        yield "small", f"{_size(image)}, gt_size is {unit.gt_size}"
    if role != unit.main:
        return
    if _is_flat(image):
        yield "constant", f"{'black' if grey.max() <= _FLAT else 'one colour'}, brightness {grey.mean():.0f} of 255"
    lossless = unit.members[role].key is not None or unit.members[role].path.suffix.lower() in _LOSSLESS
    if role == "gt" and lossless and has_jpeg_grid(grey):
        yield "jpeg traces", "steps on a grid of 8 x 8 pixels"


def _compare(
    unit: Unit, lq: np.ndarray, gt: np.ndarray, done: Examined, tell: Callable[[str, StoredImage, str], None]
) -> None:
    stored, (low, wide) = unit.members["gt"], lq.shape[:2]
    spare = [high - small * unit.scale for high, small in zip(gt.shape[:2], lq.shape[:2], strict=True)]
    if any(not 0 <= extra < (unit.scale if unit.crop_gt else 1) for extra in spare):
        expected = f"{low * unit.scale}x{wide * unit.scale}"
        tell("scale", stored, f"lq {_size(lq)}, gt {_size(gt)}; {expected} expected at scale {unit.scale}")
        return
    seen, true = luma(lq), luma(gt[: low * unit.scale, : wide * unit.scale])
    alike = similarity(thumbnail(seen), thumbnail(true))
    if alike is not None and alike < _OTHER_PICTURE:
        tell("content", stored, f"correlation with {unit.members['lq'].where} is {alike:.2f}")
        return
    shift = find_shift(seen, true)
    done.shift_told = shift is not None
    if shift is not None and shift.length >= _SHIFT_PX:
        text = f"lq lies {shift.down:+.2f} px lower, {shift.right:+.2f} px more to the right ({shift.length:.2f})"
        tell("shift", unit.members["lq"], text)


def _seen(unit: Unit, role: str, image: np.ndarray, grey: np.ndarray) -> Seen:
    main, stored = role == unit.main, unit.members[role]
    # Pixels, not bytes: the same picture may have been encoded twice.
    digest = hashlib.blake2b(repr((image.shape, image.dtype.str)).encode(), digest_size=16)
    if main:
        digest.update(np.ascontiguousarray(image).data)
    marks = landmarks(image) if main and unit.with_landmarks else np.empty(0, np.uint64)
    found = perceptual_hash(grey) if main else None
    return Seen(
        stored.where,
        unit.dataset,
        role,
        main,
        8 * image.dtype.itemsize,
        _colours(image),
        digest.digest(),
        found,
        thumbnail(grey),
        image.shape[1] / image.shape[0],
        marks,
    )


def _is_flat(image: np.ndarray) -> bool:
    colours = image[..., : 1 if image.shape[2] < 3 else 3]
    most = _FLAT * (257 if image.dtype == np.uint16 else 1)
    # Almost every picture shows by a few of its pixels that it is not.
    return all(_span(part) <= most for part in (colours[::16, ::16], colours))


def _span(colours: np.ndarray) -> int:
    return int((colours.max(axis=(0, 1)).astype(int) - colours.min(axis=(0, 1))).max())


def _colours(image: np.ndarray) -> str:
    if _is_flat(image):
        return "one colour"
    if image.shape[2] < 3:
        return "grey"
    same = all(np.array_equal(image[..., one], image[..., other]) for one, other in pairwise(range(3)))
    return "grey as RGB" if same else "colour"


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
