"""Findings: every kind with its severity and remedy, the exit code, and a report as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


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
        "a folder, LMDB, shards or list that cannot be used; nothing in it was examined",
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
    "shards": Kind(E, "a shard differs from its index", "copy it again, or index it with 'diffir prepare index'"),
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


_SHOWN = 10


@dataclass
class DoctorReport:
    """All findings, and what was examined."""

    findings: list[Finding] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    images: int = 0
    pairs: int = 0
    shifts_measured: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)

    def counts(self) -> dict[str, int]:
        """Number of findings of each severity."""
        counts = Counter(finding.severity for finding in self.findings)
        return {severity.value: counts[severity] for severity in Severity}


def as_table(report: DoctorReport) -> str:
    """Every kind of problem found, worst first, with up to ten examples; then one line about what was checked."""
    lines = [*report.roots, ""]
    for check in sorted(KINDS, key=lambda check: list(Severity).index(KINDS[check].severity)):
        group = [finding for finding in report.findings if finding.check == check]
        if group:
            lines += _group(check, group)
    return "\n".join([*lines, summary(report), ""])


def _group(check: str, group: Sequence[Finding]) -> list[str]:
    kind, shown = KINDS[check], group[:_SHOWN]
    width = min(60, max(len(finding.where) for finding in shown))
    sets = Counter(finding.dataset for finding in group if finding.dataset)
    places = f" in {', '.join(f'{name} ({count})' for name, count in sets.items())}" if sets else ""
    lines = [f"{kind.severity.value:<8} {check}: {kind.meaning}: {len(group)}{places}"]
    for finding in shown:
        found = finding.found.replace("\n", "\n    ")
        lines.append(f"  {finding.where:<{width}}  {found}")
    if len(group) > _SHOWN:
        lines.append(f"  ... {len(group) - _SHOWN} more; --json lists all")
    return [*lines, f"  -> {kind.remedy}", ""]


def summary(report: DoctorReport) -> str:
    """Number of findings by severity, and how much was checked."""
    totals = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in report.counts().items())
    pairs = f", {report.pairs} pairs (alignment measurable in {report.shifts_measured})" if report.pairs else ""
    size = f"{report.stored_bytes / 2**20:.1f} MiB"
    return f"{totals}; checked {report.images} images{pairs}, {size} in {report.seconds:.1f} s"


def as_json(report: DoctorReport) -> dict[str, Any]:
    """The whole report, with every finding."""
    return {
        "counts": report.counts(),
        "exit_code": report.exit_code,
        "checked": {
            "roots": report.roots,
            "images": report.images,
            "pairs": report.pairs,
            "shifts_measured": report.shifts_measured,
            "bytes": report.stored_bytes,
            "seconds": round(report.seconds, 3),
        },
        "findings": [
            {
                "severity": finding.severity.value,
                "check": finding.check,
                "dataset": finding.dataset,
                "where": finding.where,
                "found": finding.found,
                "do": finding.kind.remedy,
            }
            for finding in report.findings
        ],
    }
