"""Implementation of `diffir models`, `diffir weights` and `diffir describe`; parsers are in `weights_commands`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.weights.download import sha256_of
from diffir_sr.weights.registry import TASK_TITLES, Entry, Place, check, entry_of, find, locate, places, registry

if TYPE_CHECKING:
    from diffir_sr.families.base import Identity

_KINDS = {"restorer": "Restoration models", "backbone": "Backbones of losses and metrics", "heads": "Metrics"}


def list_models(args: argparse.Namespace) -> int:
    """`diffir models list`."""
    entries = registry().values()
    if args.json:
        _write_json([_as_json(entry) for entry in entries])
        return 0
    width = max(len(entry.name) for entry in entries)
    for kind, title in _KINDS.items():
        sys.stdout.write(f"{title}\n")
        for entry in entries:
            if entry.kind == kind:
                sys.stdout.write(f"  {entry.name:<{width}}  {_state(entry):<14}  {entry.about}\n")
    return 0


def _state(entry: Entry) -> str:
    if locate(entry) is not None:
        return "here"
    if entry.urls:
        return "to fetch"
    if entry.packages:
        return "in a package"
    return "on a page" if entry.page else "not shipped" if entry.shipped else "nowhere"


def _as_json(entry: Entry) -> dict[str, Any]:
    place = locate(entry)
    where = {"path": str(place.path.resolve()), "place": place.name} if place else {"path": None, "place": None}
    return entry.model_dump(mode="json") | {"here": place is not None, **where}


def show(args: argparse.Namespace) -> int:
    """`diffir models show`."""
    from diffir_sr.checkpoints import description, read_weights

    entry = entry_of(args.name)
    place = locate(entry)
    weights = read_weights(place.path) if place is not None and entry.kind == "restorer" else None
    if args.json:
        _write_json(_as_json(entry) | ({} if weights is None else {"training": weights.card}))
        return 0
    task = {"task": f"{entry.task}, {TASK_TITLES[entry.task]}", "scale": entry.scale} if entry.task else {}
    known = {
        **task,
        "file": ", or ".join((entry.file, *entry.also)),
        "sha256": entry.sha256 or "not known",
        "size": f"{entry.size:,d} bytes" if entry.size else None,
        "licence": entry.licence,
        "addresses": ", ".join(entry.urls),
        "page": entry.page,
        "packages": "; ".join(f"{one.package} ({one.install})" for one in entry.packages),
        "more": entry.card,
        "listed in": entry.listed_in,
    }
    lines = [f"{entry.name}: {entry.about}", *(f"  {name}: {value}" for name, value in known.items() if value)]
    lines += ["searched in", *(f"  {_mark(one, place)} {one.path.absolute()} ({one.name})" for one in places(entry))]
    if weights is not None:
        lines += ["", description(weights)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _mark(one: Place, found: Place | None) -> str:
    return "->" if one == found else "  "


def fetch(args: argparse.Namespace) -> int:
    """`diffir models fetch`."""
    entry = entry_of(args.name)
    place = find(entry.name, fetch=True)
    if args.json:
        _write_json(_as_json(entry))
    else:
        sys.stdout.write(f"{entry.name}: {place.path.absolute()} ({place.name})\n")
    return 0


def verify(args: argparse.Namespace) -> int:
    """`diffir models verify`."""
    if args.name:
        find(args.name, fetch=False)
    entries = [entry_of(args.name)] if args.name else list(registry().values())
    results = [_verified(entry, place) for entry in entries if (place := locate(entry)) is not None]
    if args.json:
        _write_json(results)
    else:
        for result in results:
            sys.stdout.write(f"{result['state']:<7} {result['name']}: {result['path']}: {result['message']}\n")
    return 1 if any(result["state"] == "wrong" for result in results) else 0


def _verified(entry: Entry, place: Place) -> dict[str, str]:
    found = {"name": entry.name, "path": str(place.path.resolve())}
    try:
        check(place, entry)
        what = f", {_verified_identity(entry, place.path)}" if entry.kind == "restorer" else ""
    except CheckpointError as error:
        return {**found, "state": "wrong", "message": str(error)}
    known = f"sha256 {place.sha256}" if place.sha256 else f"no checksum known, computed {sha256_of(place.path)}"
    return {**found, "state": "ok" if place.sha256 else "unknown", "message": f"{known}{what}"}


def _verified_identity(entry: Entry, path: Path) -> Identity:
    """The identity of the network; raises CheckpointError if task and scale are not those of the entry."""
    from diffir_sr.checkpoints import identity_of, read_weights

    identity = identity_of(read_weights(path))
    task = "sr" if entry.task == "realsr" else entry.task
    for name, expected in (("task", task), ("scale", entry.scale)):
        found = identity.arguments.get(name, expected)
        if found != expected:
            raise CheckpointError(f"{path}: is {identity}, but {entry.name} is for {name} {expected}")
    return identity


def _write_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def older_name(args: argparse.Namespace) -> int:
    """`diffir weights`."""
    from diffir_sr.files.atomic import save_atomically
    from diffir_sr.weights.backbones import features_of

    if args.name == "convert":
        return _convert(args)
    if args.checkpoint is not None or args.tokenizer is not None:
        raise OptionError(f"only 'diffir weights convert' takes a checkpoint and --tokenizer, not {args.name!r}")
    sys.stderr.write(
        f"'diffir weights {args.name}' is now 'diffir models fetch {args.name}'; losses and metrics find the file "
        "by themselves\n"
    )
    if args.output is None:
        return fetch(args)
    if entry_of(args.name).kind != "backbone":
        raise OptionError(f"-o: only backbones can be converted, and {args.name} is not a backbone")
    tensors, _ = features_of(args.name)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(tensors, args.output)
    sys.stdout.write(f"{args.output}: {sum(name.endswith('.weight') for name in tensors)} convolutions\n")
    return 0


def _convert(args: argparse.Namespace) -> int:
    if args.checkpoint is None or args.output is None:
        raise OptionError("expected: diffir weights convert CHECKPOINT -o FOLDER")
    from diffir_sr.checkpoints import read_weights
    from diffir_sr.families.autodir import converted, is_published, write_folder

    weights = read_weights(args.checkpoint)
    if not is_published(weights.tensors):
        names = ", ".join(list(weights.tensors)[:3])
        raise CheckpointError(
            f"{args.checkpoint.resolve()}: is not AutoDIR's released checkpoint, whose tensors begin with "
            f"model.diffusion_model. and model_assessment.clipmodel. (its own: {names}, ...)"
        )
    tensors, arguments = converted(weights.tensors)
    written = write_folder(tensors, arguments, args.output, vocabulary=args.tokenizer, source=args.checkpoint.name)
    count = sum(tensor.numel() for tensor in tensors.values())
    words = "" if args.tokenizer else "; without --tokenizer it takes no prompts of your own"
    sys.stdout.write(f"{args.output}: {len(written)} files, {count:,d} numbers{words}\n")
    return 0


def describe(args: argparse.Namespace) -> int:
    """`diffir describe`."""
    from diffir_sr.checkpoints import description, facts, read_weights
    from diffir_sr.data.sources import shards_at

    for path in (args.file, args.file.parent) if args.file.suffix == ".tar" else (args.file,):
        if shards_at(path):
            raise InputError(f"{args.file}: shards of images, not weights; to examine them: diffir doctor data {path}")
    weights = read_weights(args.file)
    if args.json:
        _write_json(facts(weights))
    else:
        sys.stdout.write(description(weights) + "\n")
    return 0
