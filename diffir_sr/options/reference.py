"""The reference of all options: text for people and a JSON schema for editors, made from the schemas."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from pydantic.fields import FieldInfo

from diffir_sr.options.arguments import ARGUMENTS
from diffir_sr.options.constructors import find
from diffir_sr.options.fields import Built, Section
from diffir_sr.options.schema_data import DATASETS, BoxMasks, IoBackend, IrregularMasks, Loader, MaskGenerator
from diffir_sr.options.schema_top import (
    Degradation,
    DistParams,
    LoggerOptions,
    Options,
    PathOptions,
    ValOptions,
    WandbOptions,
)
from diffir_sr.options.schema_train import SCHEDULERS, MixingAugs, TrainOptions
from diffir_sr.options.sections import nested_section

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
  in the same way, against its signature and its annotations. Datasets and models of plugins say what they take
  with a class attribute `OPTIONS` (a pydantic model, or names); without it their keys pass unchecked, with a
  warning.
"""


def render_reference() -> str:
    """The reference as Markdown, one table per section."""
    parts = [_INTRODUCTION]
    parts += _section("Top level", Options, leave_out=Degradation)
    parts += _section("`datasets.train`, `val`, `val_<name>`, `test`, `test_<name>`: every type", Loader)
    for name, schema in DATASETS.items():
        parts += _section(f"Datasets of type `{name}`", schema, leave_out=Loader)
    parts += _section("`io_backend` of a dataset", IoBackend)
    parts += _section("`mask_gen` of an InpaintDataset", MaskGenerator)
    parts += _section("`mask_gen.irregular_kwargs`", IrregularMasks)
    parts += _section("`mask_gen.box_kwargs`", BoxMasks)
    parts += _section("`path`", PathOptions)
    parts += _section("`train`", TrainOptions)
    for schema in dict.fromkeys(SCHEDULERS.values()):
        names = " or ".join(f"`{name}`" for name, other in SCHEDULERS.items() if other is schema)
        parts += _section(f"`train.scheduler` of type {names}", schema)
    parts += _section("`train.mixing_augs`", MixingAugs)
    parts += _section("`val`", ValOptions)
    parts += _section("`logger`", LoggerOptions)
    parts += _section("`logger.wandb`", WandbOptions)
    parts += _section("`dist_params`", DistParams)
    parts += _section("Top level, real-world super-resolution", Degradation)
    for (kind, name), arguments in ARGUMENTS.items():
        parts += _constructor(kind, name, arguments)
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of option files, for completion and checks in editors."""
    schema = Options.model_json_schema()
    definitions = schema["$defs"]
    definitions |= {name: _definition(model, definitions) for name, model in DATASETS.items()}
    definitions["TrainOptions"]["patternProperties"] = {"^.*_opt$|^optim_": {"$ref": "#/$defs/Built"}}
    definitions["PathOptions"]["patternProperties"] = {"^(pretrain_network|param_key|strict_load)_": {}}
    choices = [
        {
            "if": {"properties": {"type": {"enum": [name, f"{name}_basicsr"]}}},
            "then": {"$ref": f"#/$defs/{name}"},
        }
        for name in DATASETS
    ]
    one = {"type": "object", "required": ["name", "type"], "allOf": choices}
    schema["properties"]["datasets"] = {
        "type": "object",
        "description": schema["properties"]["datasets"]["description"],
        "patternProperties": {"^(train|(val|test)(_.+)?)$": one},
        "additionalProperties": False,
    }
    schema["patternProperties"] = {"^network_": {"$ref": "#/$defs/Built"}}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "diffir_sr option file"
    if "base" in Options.model_fields:  # what a file lacks, its base may have
        del schema["required"]
    return schema


def _definition(model: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    definition = model.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= definition.pop("$defs", {})
    return definition


def _section(title: str, schema: type[Section], *, leave_out: type[Section] | None = None) -> Iterator[str]:
    inherited = set(leave_out.model_fields) if leave_out else set()
    yield f"## {title}\n\n{inspect.getdoc(schema)}\n"
    yield "| option | kind | default | meaning |\n|---|---|---|---|"
    for name, field in schema.model_fields.items():
        if name not in inherited:
            yield f"| `{name}` | {_kind(field)} | {_default(field)} | {_cell(field.description or '')} |"
    yield ""


def _constructor(kind: str, name: str, sentences: dict[str, str]) -> Iterator[str]:
    target = find(_REGISTRIES[kind], name)
    parameters = inspect.signature(target).parameters if target else {}
    yield f"## {kind.capitalize()} `{name}`\n"
    yield "| option | default | meaning |\n|---|---|---|"
    for argument, sentence in sentences.items():
        default = parameters[argument].default if argument in parameters else None
        shown = "required" if default is inspect.Parameter.empty else _plain(default)
        yield f"| `{argument}` | {shown} | {_cell(sentence)} |"
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
    if nested_section(field) or Built in (field.annotation, *typing.get_args(field.annotation)):
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
