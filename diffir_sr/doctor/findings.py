"""What can be found: every kind of fault with its weight and its remedy, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """error: a run would fail or its results be wrong; warning: worth a decision; note: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    severity: Severity
    meaning: str
    remedy: str


E, W, N = Severity
KINDS: dict[str, Kind] = {
    "options": Kind(E, "the option file itself is wrong", "correct the option file, see 'diffir options check'"),
    "source": Kind(
        E,
        "a folder, LMDB or list cannot be used, and nothing of it was examined",
        "correct the path, or prepare the data again",
    ),
    "unreadable": Kind(E, "damaged, cut short or no image", "copy the file again, or remove it and its partner"),
    "partner": Kind(E, "an image without its partner", "add or remove images, or correct filename_tmpl"),
    "scale": Kind(
        E,
        "partners whose sizes do not fit",
        "make the pairs with 'diffir prepare downscale --scale S --crop-gt DIR', or correct scale",
    ),
    "content": Kind(E, "partners that show different pictures", "check the names: one of the two is misnamed"),
    "leak": Kind(E, "a test picture is in the training data", "remove it from the training data, or test on others"),
    "small": Kind(E, "smaller than the training patch", "lower gt_size, or remove the image"),
    "meta_info": Kind(E, "listed names that do not exist", "list them again with 'diffir prepare meta'"),
    "lmdb": Kind(E, "an LMDB whose list and data differ", "build it again with 'diffir prepare lmdb'"),
    "manifest": Kind(E, "not what the manifest says was made", "prepare the data again"),
    "shift": Kind(
        W,
        "degraded image beside its ground truth by 0.3 of its pixels or more",
        "downscale with 'diffir prepare downscale', whose pixel centres are aligned; strided and nearest ones are not",
    ),
    "duplicate": Kind(W, "the same pixels twice in one set", "remove one of them"),
    "bit depth": Kind(W, "8 and 16 bits mixed in one set", "convert with --to-8bit of 'diffir prepare'"),
    "grey": Kind(W, "grey pictures among colour ones", "fine if meant; else remove them or take the colour originals"),
    "alpha": Kind(W, "transparency, which is dropped on reading", "remove the alpha channel, or check what it hides"),
    "converted": Kind(
        W, "values that reading converts, such as CMYK or floats", "store what is meant: 8 or 16 bits, grey or sRGB"
    ),
    "constant": Kind(W, "one colour all over: nothing to learn from", "remove it and its partner"),
    "mask levels": Kind(W, "a mask of more than two levels", "store masks as PNG of 0 and 255, never as JPEG"),
    "mask share": Kind(W, "a mask that covers nothing or everything", "remove it, or make masks again"),
    "near duplicate": Kind(N, "almost the same picture twice in one set", "keep one, unless both are meant"),
    "jpeg traces": Kind(N, "steps every 8 pixels: was a JPEG", "look for an original that was never compressed"),
    "left out": Kind(N, "pictures of kinds that are not read", "convert them to PNG, or move them away"),
    "metadata": Kind(N, "odd EXIF, chunks or pages, which are left out", "none for training; see what wrote it"),
    "turned": Kind(N, "turned by EXIF when read", "store it upright, since other programs ignore EXIF"),
}
EXIT_CODES = {Severity.ERROR: 1, Severity.WARNING: 3, Severity.NOTE: 0}


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, the file, key or folder, what was found there, and in which set."""

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
    """1 with any error, else 3 with any warning, else 0."""
    worst = {finding.severity for finding in findings}
    return next((EXIT_CODES[severity] for severity in Severity if severity in worst), 0)
