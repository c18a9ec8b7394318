"""Whether every training of an ablation can be what it is meant to be, told before the first one starts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffir_sr.ablation.plan import AblationFile, Run
from diffir_sr.errors import OptionError
from diffir_sr.options import load_options

_STAGE_OF = {"DiffIRS1": 1, "DiffIRS2": 2}


def check_runs(ablation: AblationFile, runs: Sequence[Run], *, file: Path) -> None:
    """Check the options of every variant and stage; raises one OptionError that tells all faults.

    Data and weights need not be there yet. `file` is that of the ablation, for the message.
    """
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            if run.seed != ablation.seeds[0]:  # the others differ in nothing else
                continue
            written = Path(folder) / f"{run.name}.yml"
            try:
                written.write_text(yaml.safe_dump(run.values, sort_keys=False, allow_unicode=True), encoding="utf-8")
                _check_purpose(load_options(written, check_files=False).values, ablation, run)
            except OptionError as error:
                said = str(error).replace(str(written), "merged options")
                faults.append(f"variant {run.variant!r}, stage {run.stage}: {said}")
    if faults:
        raise OptionError(f"{file}: {len(faults)} of its trainings cannot run:\n" + "\n".join(faults))


def _check_purpose(values: dict[str, Any], ablation: AblationFile, run: Run) -> None:
    kind = str((values.get("network_g") or {}).get("type"))
    if _STAGE_OF.get(kind, run.stage) != run.stage:
        recipe = ablation.stage_1 if run.stage == 1 else ablation.stage_2
        raise OptionError(
            f"its network is {kind}, of stage {_STAGE_OF[kind]}; stage_{run.stage} of the ablation names the recipe of "
            f"stage {run.stage}, found {recipe}"
        )
    measured = list((values.get("val") or {}).get("metrics") or {})
    if ablation.metric not in measured:
        raise OptionError(
            f"metric {ablation.metric!r} is not among val.metrics of {run.name}: {', '.join(measured) or 'none'}; "
            "name one of them, or add it under both.val.metrics"
        )
