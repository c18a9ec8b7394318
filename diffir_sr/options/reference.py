"""The reference of all options: text for people and a JSON schema for editors, made from what is declared."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import create_model
from pydantic.fields import FieldInfo

from diffir_sr.families import declaring
from diffir_sr.option_types import Section
from diffir_sr.options.check import Declared, Known, arguments_of, declared, fields_of, is_built, nested_section
from diffir_sr.options.schema import (
    SCHEDULERS,
    AlertOptions,
    DistParams,
    IoBackend,
    Loader,
    LoggerOptions,
    Options,
    PathOptions,
    TrackioOptions,
    TrainLoop,
    ValOptions,
    WandbOptions,
    readers,
    standard_models,
    top_readers,
)

_REGISTRIES = {"network": ARCH_REGISTRY, "loss": LOSS_REGISTRY, "metric": METRIC_REGISTRY}
_INTRODUCTION = """# Options

Every option that a file for `basicsr train` or `basicsr test` may hold. This page is made from the code, by
`diffir options reference -o docs/options.md`. `diffir options schema -o FILE` writes a JSON schema for editors.

- A key that is not listed here is an error, and so is a value of the wrong kind. `diffir options check FILE`
  tells all of them at once, with their lines.
- "required" means that there is no default. `~` is nothing.
- Numbers may be written `5000`, `5e3`, `5.0e3` or `!!float 5e3`.
- `base: other.yml` builds on another file, `base: [one.yml, two.yml]` on several, of which the later wins: sections
  are merged, lists and single values replaced.
- On the command line, `--force_yml train:total_iter=1000 val:save_img=true` overrides a file.
- Networks, losses, metrics and optimizers take the arguments of their classes. A class of a plugin is checked
  in the same way, against its signature and its annotations. Datasets and models, this package's and those of
  plugins, say what they read with a class attribute `OPTIONS`; without it their keys pass unchecked, with a
  warning. `diffir_sr.option_types` describes it, and rules that classes may add.
- Networks are built and optimizers tried while a file is checked, so that what their classes refuse is told, too.
"""


def render_reference() -> str:
    """The reference as Markdown, one table per section."""
    parts = [_INTRODUCTION]
    parts += _table("Top level", Options)
    parts += _table("`datasets.train`, `val`, `val_<name>`, `test`, `test_<name>`: every type", Loader)
    for name, options in datasets().items():
        parts += _table(f"Datasets of type `{name}`", next(iter(reversed(options.known.values())))[0], options.known)
    parts += _table("`io_backend` of a dataset", IoBackend)
    parts += _nested("datasets.*", [known for options in datasets().values() for known in options.known.items()])
    parts += _table("`path`", PathOptions)
    parts += _frozen_networks()
    parts += _table("`train`: every model", TrainLoop)
    parts += _table("`train.alerts`", AlertOptions)
    parts += _grouped("`train`", readers(), without=TrainLoop)
    for section in dict.fromkeys(SCHEDULERS.values()):
        names = " or ".join(f"`{name}`" for name, other in SCHEDULERS.items() if other is section)
        parts += _table(f"`train.scheduler` of type {names}", section)
    parts += _nested("train", [(name, options.known[name]) for name, (options, _) in readers().items()])
    parts += _table("`val`", ValOptions)
    parts += _grouped("`val`", readers("VAL_OPTIONS"))
    parts += _table("`logger`", LoggerOptions)
    parts += _table("`logger.wandb`", WandbOptions)
    parts += _table("`logger.trackio`", TrackioOptions)
    parts += _table("`dist_params`", DistParams)
    parts += _grouped("Top level", top_readers())
    for kind, registry in _REGISTRIES.items():
        for name, target in registry:
            if arguments_of(target) and name == name.removesuffix("_basicsr"):
                parts += _constructor(kind, name, target)
    return "\n".join(parts)


def datasets() -> dict[str, Declared]:
    """What every registered dataset that declares its options reads beyond what all read; BasicSR's names bare."""
    found = {name.removesuffix("_basicsr"): declared(kind) for name, kind in DATASET_REGISTRY}
    return {name: options for name, options in found.items() if options.whole}


def json_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of option files, for completion and checks in editors."""
    top = {name: options.known[name] for name, (options, _) in top_readers().items()}
    schema = _model("Options", {**top, **fields_of(Options)}).model_json_schema()
    definitions = schema["$defs"]
    loaders = {name: {**fields_of(Loader), **options.known} for name, options in datasets().items()}
    definitions |= {name: _definition(name, known, definitions) for name, known in loaders.items()}
    train = {name: options.known[name] for name, (options, _) in readers().items()}
    definitions["TrainLoop"] = _definition("TrainLoop", {**train, **fields_of(TrainLoop)}, definitions)
    val = {name: options.known[name] for name, (options, _) in readers("VAL_OPTIONS").items()}
    definitions["ValOptions"] = _definition("ValOptions", {**val, **fields_of(ValOptions)}, definitions)
    definitions["TrainLoop"]["required"] = ["total_iter"]  # the others are needed by some models
    definitions["TrainLoop"]["patternProperties"] = {"^.*_opt$|^optim_": {"$ref": "#/$defs/Built"}}
    definitions["PathOptions"]["patternProperties"] = {"^(pretrain_network|param_key|strict_load)_": {}}
    choices = [
        {
            "if": {"properties": {"type": {"enum": [name, f"{name}_basicsr"]}}},
            "then": {"$ref": f"#/$defs/{name}"},
        }
        for name in loaders
    ]
    one = {"type": "object", "required": ["name", "type"], "allOf": choices}
    schema["properties"]["datasets"] = {
        "type": "object",
        "description": schema["properties"]["datasets"]["description"],
        "patternProperties": {"^(train|(val|test)(_.+)?)$": one},
        "additionalProperties": False,
    }
    schema["patternProperties"] = {"^network_": {"anyOf": [{"$ref": "#/$defs/Built"}, {"type": "null"}]}}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "diffir_sr option file"
    del schema["required"]  # what a file lacks, its base may have
    return schema


def _definition(name: str, known: Known, definitions: dict[str, Any]) -> dict[str, Any]:
    definition = _model(name, known).model_json_schema(ref_template="#/$defs/{model}")
    definitions |= definition.pop("$defs", {})
    return definition


def _model(name: str, known: Known) -> type[Section]:
    fields: dict[str, Any] = {}
    for option, (section, field) in known.items():
        info = section.model_fields[field]
        fields[option] = (info.annotation, info)
    return create_model(name, __base__=Section, **fields)


def _table(title: str, section: type[Section], known: Known | None = None, *, about: str = "") -> Iterator[str]:
    yield f"## {title}\n\n{about or inspect.getdoc(section)}\n"
    yield "| option | kind | default | meaning |\n|---|---|---|---|"
    for name, (owner, field) in (known or fields_of(section)).items():
        info = owner.model_fields[field]
        yield f"| `{name}` | {_kind(info)} | {_default(info)} | {_cell(info.description or '')} |"
    yield ""


def _grouped(
    where: str, several: dict[str, tuple[Declared, list[str]]], *, without: type[Section] | None = None
) -> Iterator[str]:
    """One table for each set of classes that read the same options."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, (options, names) in several.items():
        if without is None or name not in without.model_fields:
            groups.setdefault(tuple(names), {})[name] = options.known[name]
    for names, known in groups.items():
        listed = ", ".join(f"`{name}`" for name in names)
        yield from _table(f"{where}: {listed}", Section, known, about="Read by these alone; elsewhere without effect.")


def _nested(where: str, several: list[tuple[str, Any]]) -> Iterator[str]:
    """The sections inside sections that classes declare."""
    for name, (owner, field) in dict(several).items():
        section = nested_section(owner.model_fields[field])
        if section is not None:
            yield from _table(f"`{where}.{name}`", section)
            yield from _nested(f"{where}.{name}", list(fields_of(section).items()))


def _frozen_networks() -> Iterator[str]:
    yield "## Networks that are used and not trained\n"
    yield (
        "Each is described by a section `network_<x>` and has its weights at `path.pretrain_network_<x>`; "
        "`path.param_key_<x>` (default `params_ema`) is their entry in the file.\n"
    )
    yield "| section | models | meaning |\n|---|---|---|"
    found: dict[Any, list[str]] = {}
    for name, kind in standard_models().items():
        for helper in getattr(declaring(kind), "frozen_networks", ()):
            found.setdefault(helper, []).append(name)
    for helper, names in found.items():
        listed = ", ".join(f"`{name}`" for name in names)
        yield f"| `{helper.section}` | {listed} | {_cell(f'{helper.role[0].upper()}{helper.role[1:]}.')} |"
    yield ""


def _constructor(kind: str, name: str, target: Any) -> Iterator[str]:
    parameters = inspect.signature(target).parameters
    yield f"## {kind.capitalize()} `{name}`\n"
    yield "| option | kind | default | meaning |\n|---|---|---|---|"
    for argument, (section, field) in arguments_of(target).items():
        info = section.model_fields[field]
        default = parameters[argument].default if argument in parameters else info.default
        shown = "required" if default is inspect.Parameter.empty else _plain(default)
        yield f"| `{argument}` | {_kind(info)} | {shown} | {_cell(info.description or '')} |"
    yield ""


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _plain(field.default)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value == "":
        return "`~`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _kind(field: FieldInfo) -> str:
    if nested_section(field) or is_built(field):
        return "section"
    return _kind_of(field.annotation)


def _kind_of(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind_of(one) for one in inner if one is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is list:
        return f"list of {_kind_of(inner[0])}"
    if origin is dict:
        return "section"
    names = {str: "text", bool: "true or false", int: "whole number", float: "number"}
    return names.get(hint, "number or `auto`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")
