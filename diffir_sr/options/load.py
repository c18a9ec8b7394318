"""From an option file to checked options."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffir_sr.options.corrections import (
    set_defaults,
    settle_task,
    settle_window,
    warn_of_a_cold_start,
    warn_of_a_misleading_name,
    warn_of_dead_options,
)
from diffir_sr.options.files import apply_file_rules
from diffir_sr.options.hydra import refuse_hydra
from diffir_sr.options.overrides import apply_overrides
from diffir_sr.options.report import Report, fail_on_problems, found, told
from diffir_sr.options.rules import RULES, apply_rules
from diffir_sr.options.rules_data import apply_dataset_rules
from diffir_sr.options.source import Source, read_source
from diffir_sr.options.structure import check_structure, elsewhere
from diffir_sr.options.view import View


@dataclass(frozen=True)
class LoadedOptions:
    """Checked options, in the structure and with the names that BasicSR reads."""

    values: dict[str, Any]
    warnings: list[str]  # options without effect and corrections that were made, each with place and reason
    path: Path


def load_options(
    path: str | Path, is_train: bool = True, overrides: Iterable[str] = (), *, check_files: bool = True
) -> LoadedOptions:
    """The options of a file for `basicsr train` or, if not `is_train`, `basicsr test`.

    `overrides` are BasicSR's `--force_yml` entries, section:key=value. `check_files` says whether weights and
    data must be there. Imports the modules that `plugins` names. Raises OptionError with every problem found.
    """
    source = read_source(path)
    apply_overrides(source, overrides)
    _import_plugins(source, file=str(path))
    refuse_hydra(source.values, file=str(path))
    report = Report(elsewhere=elsewhere(source.values))
    values = copy.deepcopy(source.values)
    settle_task(values, report)
    values = check_structure(values, report, is_train=is_train)
    view = View(values, report, is_train=is_train)
    apply_rules(RULES, view, report)
    apply_dataset_rules(view, report)
    if check_files:
        apply_file_rules(view, report)
    fail_on_problems(report, source.places, file=str(path))
    settle_window(view, report)
    warn_of_dead_options(view, report)
    warn_of_a_misleading_name(view, report)
    warn_of_a_cold_start(view, report)
    set_defaults(values, scale=view.scale(), is_train=is_train)
    return LoadedOptions(values, told(report.warnings, source.places), Path(path))


def _import_plugins(source: Source, *, file: str) -> None:
    modules = source.values.get("plugins") or []
    if not isinstance(modules, list):  # the schema tells
        return
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind all else: a folder here must not hide an installed package
    report = Report()
    for index, module in enumerate(modules):
        if not isinstance(module, str):
            report.problem(("plugins", index), f"expected the name of a module (package.module), found {found(module)}")
            continue
        try:
            importlib.import_module(module)
        except Exception as error:
            report.problem(("plugins", index), f"plugin {module!r} cannot be imported: {type(error).__name__}: {error}")
    fail_on_problems(report, source.places, file=file)
