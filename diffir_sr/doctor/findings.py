"""Every kind of problem that can be found, with its severity and remedy, and the resulting exit code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """error: a run would fail or give wrong results; warning: needs a decision; note: for information."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Kind:
    """One kind of problem."""

    severity: Severity
    meaning: str
    remedy: str


E, W, N = Severity
KINDS: dict[str, Kind] = {
    "options": Kind(E, "invalid option file", "correct the option file, see 'diffir options check'"),
    "source": Kind(
        E,
        "a folder, LMDB or list that cannot be used; nothing in it was examined",
        "correct the path, or prepare the data again",
    ),
    "unreadable": Kind(
        E, "damaged or truncated file, or not an image", "copy the file again, or remove it and its partner"
    ),
    "partner": Kind(E, "image without a partner", "add or remove images, or correct filename_tmpl"),
    "scale": Kind(
        E,
        "sizes of a pair do not match the scale",
        "make the pairs with 'diffir prepare downscale --scale S --crop-gt DIR', or correct scale",
    ),
    "content": Kind(
        E, "the two images of a pair show different content", "check the names: one of the two is misnamed"
    ),
    "leak": Kind(E, "test image found in the training data", "remove it from the training data, or test on others"),
    "small": Kind(E, "smaller than the training patch", "lower gt_size, or remove the image"),
    "meta_info": Kind(E, "listed names that do not exist", "list them again with 'diffir prepare meta'"),
    "lmdb": Kind(E, "meta_info.txt and data of an LMDB differ", "build it again with 'diffir prepare lmdb'"),
    "manifest": Kind(E, "differs from what the manifest records", "prepare the data again"),
    "shift": Kind(
        W,
        "LQ and GT are misaligned by 0.3 LQ pixels or more",
        "downscale with 'diffir prepare downscale', which aligns pixel centres; strided and nearest-neighbour "
        "downscaling do not",
    ),
    "duplicate": Kind(W, "identical pixels twice in one set", "remove one of them"),
    "bit depth": Kind(W, "8-bit and 16-bit images mixed in one set", "convert with --to-8bit of 'diffir prepare'"),
    "grey": Kind(
        W,
        "greyscale images among colour images",
        "fine if intended; otherwise remove them or use the colour originals",
    ),
    "alpha": Kind(W, "transparency, which is dropped on reading", "remove the alpha channel, or check what it hides"),
    "converted": Kind(
        W,
        "values that are converted on reading, such as CMYK or floats",
        "store them as 8 or 16 bits, greyscale or sRGB",
    ),
    "constant": Kind(W, "a single colour: nothing to learn from", "remove it and its partner"),
    "mask levels": Kind(W, "a mask with more than two levels", "store masks as PNG with 0 and 255, never as JPEG"),
    "mask share": Kind(W, "a mask that covers nothing or everything", "remove it, or make the masks again"),
    "degraded": Kind(
        W,
        "the assessor finds something wrong with a ground truth (--assessor)",
        "look at it; remove it and its partner if it is damaged",
    ),
    "near duplicate": Kind(N, "nearly the same image twice in one set", "keep one, unless both are intended"),
    "jpeg traces": Kind(N, "steps every 8 pixels: was a JPEG", "look for an original that was never compressed"),
    "left out": Kind(N, "files of unsupported kinds", "convert them to PNG, or move them away"),
    "metadata": Kind(
        N,
        "unusual EXIF, chunks or pages, which are ignored",
        "nothing for training; check the program that wrote it",
    ),
    "turned": Kind(N, "rotated on reading, because of EXIF", "store it upright, since other programs ignore EXIF"),
}
EXIT_CODES = {Severity.ERROR: 1, Severity.WARNING: 3, Severity.NOTE: 0}


@dataclass(frozen=True)
class Finding:
    """One problem: its kind, the file, key or folder, what was found there, and in which dataset."""

    check: str
    where: str
    found: str
    dataset: str = ""

    @property
    def kind(self) -> Kind:
        return KINDS[self.check]

    @property
    def severity(self) -> Severity:
        return self.kind.severity


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if there is any error, else 3 if there is any warning, else 0."""
    worst = {finding.severity for finding in findings}
    return next((EXIT_CODES[severity] for severity in Severity if severity in worst), 0)
