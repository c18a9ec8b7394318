"""Examination of one image, alone and with its partners: pixels, fingerprints, alignment, traces of JPEG.

This is the work of a worker process, and its result is small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise

import cv2
import numpy as np

from diffir_sr.data.masks import mask_values
from diffir_sr.doctor.findings import Finding
from diffir_sr.doctor.storage import StoredImage
from diffir_sr.errors import InputError
from diffir_sr.files.images import inspect
from diffir_sr.files.picture import as_bits
from diffir_sr.files.shards import DIFFERS

_FLAT = 2  # largest range of grey levels in an image of a single colour
_SHIFT_PX = 0.3  # of the degraded image
_OTHER_PICTURE = 0.3  # correlation below which partners show different content


@dataclass(frozen=True)
class Unit:
    """Partners by role; the main one is used to recognise the image."""

    members: dict[str, StoredImage]
    main: str
    dataset: str
    scale: int = 1
    crop_gt: bool = False  # whether the ground truth may be up to scale - 1 pixels larger
    gt_size: int | None = None
    with_landmarks: bool = False


@dataclass(frozen=True)
class Seen:
    """What is kept of an image: enough to distinguish it from all others."""

    where: str
    dataset: str
    role: str
    is_main: bool
    bits: int
    colours: str  # "grey", "grey as RGB", "colour", or "one colour" (constant)
    digest: bytes
    hash: int | None
    thumb: np.ndarray
    aspect: float
    landmarks: np.ndarray


@dataclass
class Examined:
    """The images of a unit, their problems, and what was measured."""

    seen: list[Seen] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    stored_bytes: int = 0
    images: int = 0
    shift_measured: bool = False


def examine(unit: Unit) -> Examined:
    """Decode the members of a unit and check them individually and together; problems are returned, never raised."""
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
        check, listing = ("lmdb", "meta_info.txt") if stored.span is None else ("shards", "its index")
        yield check, f"{listing} says {high}x{wide}, the image is {_size(image)}"
    if stored.sha256 is None or hashlib.sha256(data).hexdigest() == stored.sha256:
        return
    if stored.span is not None:
        yield "shards", DIFFERS
    else:
        yield "manifest", f"the file has changed since it was made: sha256 is not {stored.sha256[:12]}..."


def _faults_of_mask(image: np.ndarray) -> Iterator[tuple[str, str]]:
    values, is_alpha = mask_values(image)
    levels = np.unique(values)
    if len(levels) > 2:
        shown = ", ".join(map(str, levels[:6].tolist())) + (", ..." if len(levels) > 6 else "")
        yield "mask levels", f"{len(levels)} levels: {shown}; expected 2"
    elif len(levels) == 1:
        yield "mask share", f"{levels[0]} everywhere, so the mask is {'full' if levels[0] else 'empty'}"
    if image.shape[2] in (2, 4):
        yield "alpha", "a mask with uniform colours, so its alpha is used" if is_alpha else "a mask with alpha"


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
    if role == "gt" and unit.members[role].is_lossless and has_jpeg_grid(grey):
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
    done.shift_measured = shift is not None
    if shift is not None and shift.length >= _SHIFT_PX:
        text = f"lq is shifted by {shift.down:+.2f} px down, {shift.right:+.2f} px right ({shift.length:.2f})"
        tell("shift", unit.members["lq"], text)


def _seen(unit: Unit, role: str, image: np.ndarray, grey: np.ndarray) -> Seen:
    main, stored = role == unit.main, unit.members[role]
    # Pixels, not bytes: the same image may have been encoded differently.
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
    # For most images, a few pixels are enough to rule this out.
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


# Measurements on single images and pairs: shifts, fingerprints, traces of JPEG.


_LARGEST_TILE = 128
_SMALLEST_TILE = 24
_LEAST_SHIFT_CONTRAST = 2.0  # grey levels (deviation) inside a tile
_FINE = 20  # steps per pixel in the search for the peak
_HIGHEST = 0.25  # cycles per pixel; above it, degraded image and ground truth have little in common
_AGREE_PX = 0.15  # largest deviation of tiles from their median
_TILES_PER_AXIS = 3


@dataclass(frozen=True)
class Shift:
    """Shift of the degraded image against its ground truth, downwards and to the right, in degraded pixels."""

    down: float
    right: float

    @property
    def length(self) -> float:
        return float(np.hypot(self.down, self.right))


def find_shift(lq: np.ndarray, gt: np.ndarray) -> Shift | None:
    """The shift between brightness (H, W) and ground truth (H * scale, W * scale); None if it cannot be measured.

    Phase correlation of the degraded image with the area-averaged ground truth, tile by tile. The shift is measurable
    if two thirds of the tiles have detail and agree; with motion blur, noise or flat areas they do not.
    """
    height, width = lq.shape
    low = cv2.resize(gt, (width, height), interpolation=cv2.INTER_AREA) if gt.shape != lq.shape else gt
    side = min(_LARGEST_TILE, max(_SMALLEST_TILE, min(height, width) // 2))
    if min(height, width) < side:
        return None
    found = [
        _tile_shift(lq[y : y + side, x : x + side], low[y : y + side, x : x + side])
        for y in _starts(height, side)
        for x in _starts(width, side)
    ]
    known = np.array([shift for shift in found if shift is not None]).reshape(-1, 2)
    if len(known) < 2 or 3 * len(known) < 2 * len(found):
        return None
    middle = np.median(known, axis=0)
    agree = np.abs(known - middle).max(axis=1) <= _AGREE_PX
    if 3 * agree.sum() < 2 * len(found):
        return None
    down, right = known[agree].mean(axis=0)
    return Shift(float(down), float(right))


def _starts(length: int, side: int) -> list[int]:
    return sorted({round(step * (length - side) / (_TILES_PER_AXIS - 1)) for step in range(_TILES_PER_AXIS)})


def _tile_shift(lq: np.ndarray, gt: np.ndarray) -> tuple[float, float] | None:
    if min(lq.std(), gt.std()) < _LEAST_SHIFT_CONTRAST:
        return None
    side = len(lq)
    window = np.outer(np.hanning(side), np.hanning(side))
    spectra = [np.fft.fft2((tile - np.average(tile, weights=window)) * window) for tile in (lq, gt)]
    cross = spectra[0] * spectra[1].conj()
    frequency = np.fft.fftfreq(side)
    band = np.hypot(frequency[:, None], frequency[None]) <= _HIGHEST
    band[0, 0] = False
    # The square root keeps noise at weak frequencies from dominating, as it would with pure phases.
    weighed = np.where(band, cross / np.sqrt(np.abs(cross) + 1e-12), 0)
    coarse = np.fft.ifft2(weighed).real
    peak = np.array(np.unravel_index(int(np.argmax(coarse)), coarse.shape), np.float64)
    peak = np.where(peak > side // 2, peak - side, peak)
    if np.abs(peak).max() > side // 4:
        return None
    return _refined(weighed, frequency, peak)


def _refined(weighed: np.ndarray, frequency: np.ndarray, peak: np.ndarray) -> tuple[float, float]:
    """The maximum of the correlation within a pixel of its coarse peak (matrix DFT, Guizar-Sicairos 2008)."""
    steps = np.arange(-_FINE, _FINE + 1) / _FINE
    rows, columns = (np.exp(2j * np.pi * np.outer(at + steps, frequency)) for at in peak)
    fine = (rows @ weighed @ columns.T).real
    down, right = np.unravel_index(np.argmax(fine), fine.shape)
    return float(peak[0] + steps[down]), float(peak[1] + steps[right])


# Fingerprints of images, and the search for similar ones.


_SIDE = 32  # side of the downscaled image that is hashed
_LOW = 8  # frequencies per axis in the hash
THUMB = 16
_LEAST_CONTRAST = 4.0  # grey levels (deviation) below which a downscaled image is too flat
_WINDOW = 8  # side in pixels of the area described by a landmark
_ONE_IN = 2**12  # one in so many positions becomes a landmark
_BLOCK = 512
_NEAR_BITS = 10  # of 64: changed by JPEG, rescaling and rounding; different images differ in about 32
_ALIKE = 0.985  # correlation of thumbnails of the same image: 0.99 after JPEG of quality 20 or at a quarter of the size


def luma(image: np.ndarray) -> np.ndarray:
    """Brightness of (H, W, C), C of 1, 3 or 4, as float32 (H, W) in grey levels, 0 to 255."""
    scale = np.float32(255 / 65535 if image.dtype == np.uint16 else 1)
    if image.shape[2] < 3:
        return image[..., 0].astype(np.float32) * scale
    return image[..., :3].astype(np.float32) @ (np.array([0.299, 0.587, 0.114], np.float32) * scale)


def perceptual_hash(grey: np.ndarray) -> int | None:
    """64 bits that survive rescaling and JPEG: signs of low frequencies of (H, W); None for a flat image.

    The frequencies are those of a DCT of the image downscaled to 32 x 32, each compared with their median.
    """
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if float(small.std()) < _LEAST_CONTRAST:
        return None
    low = cv2.dct(small)[: _LOW + 1, : _LOW + 1].ravel()[1 : 8 * 8 + 1]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """(H, W) as uint8 (16, 16), to distinguish images with similar hashes."""
    return cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).round().clip(0, 255).astype(np.uint8)


def similarity(one: np.ndarray, other: np.ndarray) -> float | None:
    """Correlation of two thumbnails, -1 to 1; None if one of them is too flat."""
    first, second = (thumb.astype(np.float64).ravel() - thumb.mean() for thumb in (one, other))
    if min(first.std(), second.std()) < _LEAST_CONTRAST:
        return None
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def near(hashes: np.ndarray, others: np.ndarray, *, bits: int = _NEAR_BITS) -> Iterator[tuple[int, int]]:
    """Index pairs of uint64 hashes, (N,) and (M,), that differ in at most `bits` of their 64 bits, in order."""
    if len(hashes) * len(others) > _MOST_PAIRWISE:
        yield from _Index(others, bits).near(hashes)
        return
    for start in range(0, len(hashes), _BLOCK):
        apart = _differing_bits(hashes[start : start + _BLOCK, None] ^ others[None])
        rows, columns = np.nonzero(apart <= bits)
        yield from zip((rows + start).tolist(), columns.tolist(), strict=True)


def near_within(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Index pairs (earlier, later) within one array, as found by `near`, each once."""
    if len(hashes) ** 2 > _MOST_PAIRWISE:
        yield from _Index(hashes, _NEAR_BITS).near(hashes, later=True)
        return
    for start in range(0, len(hashes), _BLOCK):
        stop = start + _BLOCK
        for one, other in near(hashes[start:stop], hashes[start:]):
            if one < other:
                yield one + start, other + start


_MOST_PAIRWISE = 20_000**2  # comparisons; above it, an index is faster
_AT_ONCE = 2**25  # comparisons of hashes in one step, which bounds the memory
_ROWS_AT_ONCE = 2**16  # hashes whose candidates are counted in one step


class _Index:
    """Hashes by bands of their bits: multi-index hashing (Norouzi, Punjani and Fleet 2012).

    Two hashes that differ in at most `bits` bits differ in few of the bits of at least one band: if the allowances of
    the bands, each plus one, add up to bits + 1, no pair is missed. So the hashes that are compared with a given one
    are those in few buckets.
    """

    def __init__(self, hashes: np.ndarray, bits: int) -> None:
        self.hashes, self.bits = hashes, bits
        count = max(2, round(64 / np.log2(max(len(hashes), 2**10))))
        cuts = np.linspace(0, 64, count + 1).round().astype(int).tolist()
        shares = np.diff(np.linspace(0, bits + 1, count + 1).round().astype(int)).tolist()
        self.bands = [
            _Band(hashes, shift, end - shift, share - 1)
            for (shift, end), share in zip(pairwise(cuts), shares, strict=True)
            if share
        ]

    def near(self, hashes: np.ndarray, *, later: bool = False) -> Iterator[tuple[int, int]]:
        """The pairs of `hashes` with those of the index, in order; with `later`, only with those of higher number."""
        for first in range(0, len(hashes), _ROWS_AT_ONCE):
            block = hashes[first : first + _ROWS_AT_ONCE]
            ends = np.cumsum(np.sum([band.costs(block) for band in self.bands], axis=0))
            start = 0
            while start < len(block):
                before = ends[start - 1] if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, side="right")))
                rows, columns = self._near(block[start:stop], first + start)
                if later:
                    rows, columns = rows[columns > rows], columns[columns > rows]
                order = np.lexsort((columns, rows))
                yield from zip(rows[order].tolist(), columns[order].tolist(), strict=True)
                start = stop

    def _near(self, hashes: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for number, band in enumerate(self.bands):
            for rows, columns in band.close(hashes, self.bits):
                apart = hashes[rows] ^ self.hashes[columns]
                for earlier in self.bands[:number]:  # a pair counts in the first band in which it is close
                    fresh = _differing_bits(apart & earlier.mask) > earlier.allowance
                    rows, columns, apart = rows[fresh], columns[fresh], apart[fresh]
                found.append((rows + start, columns))
        rows, columns = (np.concatenate(side) for side in zip(*found, strict=True))
        return rows, columns


class _Band:
    """The hashes in buckets by `width` of their bits from `shift` on."""

    def __init__(self, hashes: np.ndarray, shift: int, width: int, allowance: int) -> None:
        self.allowance, self._shift, self._width = allowance, np.uint64(shift), width
        self.mask = np.uint64(((1 << width) - 1) << shift)
        keys = self._keys(hashes)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = hashes[self._order]  # in the order of the buckets, so that a bucket is read in one go
        self._counts = np.bincount(keys, minlength=1 << width).astype(np.int32)
        self._starts = (np.cumsum(self._counts) - self._counts).astype(np.int32)
        self._flips = [
            np.int32(sum(1 << bit for bit in chosen))
            for flipped in range(allowance + 1)
            for chosen in combinations(range(width), flipped)
        ]

    def _keys(self, hashes: np.ndarray) -> np.ndarray:
        return ((hashes & self.mask) >> self._shift).astype(np.int32)

    def costs(self, hashes: np.ndarray) -> np.ndarray:
        """The number of candidates of each hash."""
        keys = self._keys(hashes)
        order = np.argsort(keys, kind="stable")  # neighbours look into neighbouring buckets
        keys, total = keys[order], np.zeros(len(keys), np.int64)
        for flip in self._flips:
            total += self._counts[keys ^ flip]
        costs = np.empty_like(total)
        costs[order] = total
        return costs

    def close(self, hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Index pairs of `hashes` and those of the index that differ in at most `bits` bits, few of them in the band.

        A table of pairs for each way to differ in the band.
        """
        keys = self._keys(hashes)
        order = np.argsort(keys, kind="stable")
        keys, hashes = keys[order], hashes[order]
        for flip in self._flips:
            buckets = keys ^ flip
            counts = self._counts[buckets]
            ends = np.cumsum(counts)
            if not (total := int(ends[-1])):
                continue
            places = np.repeat(self._starts[buckets] - (ends - counts), counts)
            places += np.arange(total)
            apart = np.repeat(hashes, counts)
            apart ^= self._sorted[places]
            pairs = np.flatnonzero(_differing_bits(apart) <= bits)
            if len(pairs):
                rows = np.searchsorted(ends, pairs, side="right")
                yield order[rows], self._order[places[pairs]]


def shows_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two thumbnails show the same image; False for flat ones."""
    alike = similarity(one, other)
    return alike is not None and alike >= _ALIKE


def _differing_bits(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    return _bits_of_16()[words.view(np.uint16)].reshape(*words.shape, 4).sum(axis=-1, dtype=np.uint8)


@cache
def _bits_of_16() -> np.ndarray:
    return np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
        axis=1, dtype=np.uint8
    )


def landmarks(image: np.ndarray) -> np.ndarray:
    """Hashes (uint64, sorted, unique) of about one in 4096 positions of (H, W, C), selected by their content.

    A lossless crop of an image has the same landmarks, because both select the same positions. Rescaled, rotated or
    JPEG-compressed crops do not.
    """
    height, width = (side - _WINDOW + 1 for side in image.shape[:2])
    if height < 1 or width < 1:
        return np.empty(0, np.uint64)
    colours = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    wide = colours.astype(np.uint64)
    mixed = wide[..., 0] * np.uint64(0x10001) + wide[..., 1] * np.uint64(0x101) + wide[..., 2]
    rows = np.zeros((mixed.shape[0], width), np.uint64)
    for shift in range(_WINDOW):
        rows *= np.uint64(0x9E3779B97F4A7C15)
        rows += mixed[:, shift : shift + width]
    whole = np.zeros((height, width), np.uint64)
    for shift in range(_WINDOW):
        whole *= np.uint64(0xC2B2AE3D27D4EB4F)
        whole += rows[shift : shift + height]
    whole ^= whole >> np.uint64(29)
    whole *= np.uint64(0xBF58476D1CE4E5B9)
    chosen = np.flatnonzero(whole >> np.uint64(52) == 0)
    marks, first = np.unique(
        whole.ravel()[chosen], return_index=True
    )  # a flat area gives one landmark, however large it is
    places = zip(*(where.tolist() for where in np.unravel_index(chosen[first], whole.shape)), strict=True)
    windows = (colours[y : y + _WINDOW, x : x + _WINDOW, 1] for y, x in places)
    return marks[[float(window.std()) >= _LEAST_CONTRAST for window in windows]]


# Whether a losslessly stored image was a JPEG before: edges on a grid of 8 x 8 pixels.


_GRID = 8
_LEAST_SIDE = 64
_LARGEST = 1024  # examined pixels per axis
_LEAST_EXCESS = 0.05  # excess of edges on the grid over edges elsewhere, as a share of positions
_LEAST_DEVIATIONS = 8.0  # standard deviations above chance


def has_jpeg_grid(grey: np.ndarray) -> bool:
    """Whether brightness (H, W) has steps every 8 pixels along both axes, as left by strong JPEG compression.

    A step between two pixels counts if it is larger than those before and after it. It goes undetected after mild
    compression (quality 90 and more), in dense texture, and after rescaling.
    """
    if min(grey.shape) < _LEAST_SIDE:
        return False
    part = grey[:_LARGEST, :_LARGEST]
    return _stands_out(part) and _stands_out(part.T)


def _stands_out(grey: np.ndarray) -> bool:
    steps = np.abs(np.diff(grey, axis=1))
    edge = 2 * steps[:, 1:-1] > steps[:, :-2] + steps[:, 2:] + 1.0
    columns = edge.shape[1] // _GRID * _GRID
    shares = edge[:, :columns].reshape(len(edge), -1, _GRID).mean(axis=(0, 1))
    place = int(np.argmax(shares))
    others = np.delete(shares, place)
    excess = shares[place] - others.max()
    expected = float(others.mean())
    deviation = np.sqrt(max(expected * (1 - expected), 1e-6) * _GRID / edge[:, :columns].size)
    return bool(excess >= _LEAST_EXCESS and excess >= _LEAST_DEVIATIONS * deviation)
