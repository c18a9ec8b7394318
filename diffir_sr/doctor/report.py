"""Findings as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffir_sr.doctor.environment import Fact
from diffir_sr.doctor.environment import exit_code as exit_code_of_facts
from diffir_sr.doctor.findings import KINDS, Finding, Severity, exit_code

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


def facts_as_table(found: Sequence[Fact]) -> str:
    """One line per fact; for facts with a severity, another line says what to do."""
    width = max(len(fact.name) for fact in found if not fact.name.startswith("disk "))
    lines = []
    for fact in found:
        mark = f"{fact.severity.value}: " if fact.severity else ""
        lines.append(f"{fact.name:<{width}}  {mark}{fact.value}")
        lines += [f"{'':<{width}}  -> {fact.do}"] if fact.do else []
    return "\n".join([*lines, ""])


def facts_as_json(found: Sequence[Fact]) -> dict[str, Any]:
    """The same for programs."""
    listed = [
        {"name": fact.name, "value": fact.value, "severity": fact.severity and fact.severity.value, "do": fact.do}
        for fact in found
    ]
    return {"exit_code": exit_code_of_facts(found), "facts": listed}
