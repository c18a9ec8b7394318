"""Examine the data of targets as a whole: everything is decoded once, in several processes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from diffir_sr.doctor.findings import Finding
from diffir_sr.doctor.images import Seen, Unit, examine
from diffir_sr.doctor.pairs import plan
from diffir_sr.doctor.report import Report
from diffir_sr.doctor.sets import compare_all
from diffir_sr.doctor.targets import Target
from diffir_sr.prepare.jobs import stream


def examine_data(targets: Sequence[Target], *, jobs: int, known: Sequence[Finding] = ()) -> Report:
    """Check every image of the targets alone, with its partners, and against all others.

    Memory grows by about a kilobyte per image. `known` findings open the report.
    """
    start = time.monotonic()
    report, seen, units = Report(findings=list(known)), list[Seen](), list[Unit]()
    # Only where there is training and test data can one have been cut out of the other.
    both = len({target.training for target in targets}) == 2
    for target in targets:
        made = plan(target, with_landmarks=both)
        units += made.units
        report.findings += made.findings
        report.roots += made.roots
    for done in stream(examine, units, jobs=jobs, label="doctor"):
        seen += done.seen
        report.findings += done.findings
        report.images += done.images
        report.stored_bytes += done.stored_bytes
        report.shifts_told += done.shift_told
    report.pairs = sum({"lq", "gt"} <= unit.members.keys() for unit in units)
    report.findings += compare_all(seen, training=frozenset(target.name for target in targets if target.training))
    report.seconds = time.monotonic() - start
    return report
