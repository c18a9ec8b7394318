"""Named weights: those of this package (registry.yml) and of lists of the user, and the search for their files.

The search has one order, checks sums, and lists in its error all places searched: the file given by the user; the
folders in DIFFIR_WEIGHTS; experiments/pretrained_models of the project; the cache of this package; the caches of torch
and of the Hub; Python packages that contain the file; the shipped models; a download.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.weights.download import HUB, download, hub_cached, sha256_of

FOLDER = Path(__file__).parent  # shipped models are next to the registry
LISTS = "DIFFIR_MODELS"  # environment variable: lists of the user, separated as in PATH
TASK_TITLES = {
    "sr": "super-resolution of clean, bicubically downscaled images",
    "realsr": "super-resolution of real photographs",
    "deblur": "removal of motion blur",
    "inpaint": "inpainting of missing pixels",
    "all": "removal of unknown degradations",
}
_Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{8,64})?$")]
_Url = Annotated[str, Field(pattern="^(https?|hf)://.+/.+")]
_FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Packaged(_Strict):
    """A Python package that contains a weights file, at the path `file`; `install` is the command to install it."""

    package: str
    file: str
    sha256: _Sha256 = ""
    install: str


class Entry(_Strict):
    """A named weights file; the fields are explained at the top of registry.yml."""

    name: str
    about: str
    kind: Literal["restorer", "backbone", "heads"] = "restorer"
    file: _FileName
    also: tuple[_FileName, ...] = ()
    sha256: _Sha256 = ""
    size: int | None = Field(default=None, gt=0)  # bytes
    urls: tuple[_Url, ...] = ()
    page: str = ""
    packages: tuple[Packaged, ...] = ()
    torch_cache: str = ""  # path under TORCH_HOME used by other programs
    licence: str = "not stated"
    task: Literal["sr", "realsr", "deblur", "inpaint", "all"] | None = None
    scale: int | None = Field(default=None, ge=1)
    card: str = ""
    paper: str = ""
    sharper: str = ""  # the model trained on from this one with a discriminator, to interpolate with
    instead: str = ""  # an alternative that does not need it, for the message if it is not available
    shipped: bool = False
    listed_in: str = "diffir_sr"

    @property
    def takes_mask(self) -> bool:
        """Whether the model needs masks of the missing pixels."""
        return self.task == "inpaint"


def registry() -> dict[str, Entry]:
    """All entries by name; lists of the user come last and override those of this package.

    Raises OptionError, which names the list, the entry and the field, for an invalid list.
    """
    found = dict(_own())
    for path in user_lists():
        found |= _read(path, listed_in=str(path))
    return found


def entry_of(name: str, *, kind: str | None = None) -> Entry:
    """The entry with this name; raises OptionError, which suggests similar names, if there is none."""
    known = {one: entry for one, entry in registry().items() if kind is None or entry.kind == kind}
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise OptionError(f"no weights are named {name!r}; {hint}known: {', '.join(known)} (diffir models list)")
    return known[name]


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names similar to `name`, the most similar first."""
    names = list(known)
    begun = [one for one in names if one.startswith(name)] if name else []
    return (begun + [one for one in difflib.get_close_matches(name, names, n=3, cutoff=0.5) if one not in begun])[:3]


def user_lists() -> list[Path]:
    """Lists of the user: those in DIFFIR_MODELS, else models.yml in the configuration folder, if it exists."""
    named = [Path(os.path.expanduser(part)) for part in os.environ.get(LISTS, "").split(os.pathsep) if part]
    if named:
        return named
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    default = Path(os.path.expanduser(home)) / "diffir_sr" / "models.yml"
    return [default] if default.is_file() else []


@cache
def _own() -> dict[str, Entry]:
    return _read(FOLDER / "registry.yml", listed_in="diffir_sr")


def _read(path: Path, *, listed_in: str) -> dict[str, Entry]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"{path}: this list of models cannot be read ({error.strerror}); correct {LISTS} or the file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: this list of models is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path}: a list of models is 'name: {{about: ..., file: ...}}', found {content!r:.60}")
    return {str(name): _entry(str(name), fields, path, listed_in) for name, fields in content.items()}


def _entry(name: str, fields: object, path: Path, listed_in: str) -> Entry:
    if not isinstance(fields, dict):
        raise OptionError(f"{path}: {name}: expected fields such as about and file, found {fields!r:.60}")
    try:
        return Entry.model_validate({**fields, "name": name, "listed_in": listed_in})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        near = nearest(field, Entry.model_fields) if first["type"] == "extra_forbidden" else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"{path}: {name}.{field}: {first['msg'].lower()}{hint}") from error


FOLDERS = "DIFFIR_WEIGHTS"  # environment variable: folders with weights, separated as in PATH
PROJECT_FOLDER = Path("experiments/pretrained_models")
# Default models: the first available one is used.
_DEFAULTS, _DEFAULT_WITH_MASK = ("realsr_x4", "sr_x4"), "inpaint"


@dataclass(frozen=True)
class Place:
    """A place to search; `sha256` is the required checksum of the file there, or its beginning, or ''."""

    path: Path
    name: str
    sha256: str = ""
    package: Packaged | None = None


def cache_folder() -> Path:
    """The folder for downloads: diffir_sr/weights under XDG_CACHE_HOME, by default under ~/.cache."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "diffir_sr" / "weights"


def places(entry: Entry, *, given: str | os.PathLike[str] | None = None, option: str = "path") -> list[Place]:
    """The places to search before a download, in order; `given` is the file named by `option`."""
    return list(_places(entry, given, option))


def _places(entry: Entry, given: str | os.PathLike[str] | None, option: str) -> Iterator[Place]:
    if given:
        yield Place(Path(os.path.expanduser(given)), option)
    folders = [
        (Path(os.path.expanduser(part)), FOLDERS) for part in os.environ.get(FOLDERS, "").split(os.pathsep) if part
    ]
    folders += [(PROJECT_FOLDER, "the project's folder of weights"), (cache_folder(), "the cache of diffir_sr")]
    for folder, name in folders:
        yield Place(folder / entry.file, name, entry.sha256)
        yield from (Place(folder / other, name) for other in entry.also)
    hub = Path(torch.hub.get_dir())
    if not entry.shipped:
        yield Place(hub / "checkpoints" / entry.file, "the torch hub cache", entry.sha256)
    if entry.torch_cache:
        yield Place(hub.parent / entry.torch_cache, "the torch cache", entry.sha256)
    for url in entry.urls:
        cached = hub_cached(url) if url.startswith(HUB) else None
        if cached is not None:
            yield Place(cached, "the Hub's cache", entry.sha256)
    for packaged in entry.packages:
        folder = package_folder(packaged.package)
        if folder is not None:
            yield Place(folder / packaged.file, f"the package {packaged.package}", packaged.sha256, packaged)
    if entry.shipped:
        yield Place(FOLDER / entry.file, "shipped with diffir_sr", entry.sha256)


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, without importing it; None if it is not installed."""
    found = importlib.util.find_spec(package)
    locations = found.submodule_search_locations if found is not None else None
    return Path(next(iter(locations))) if locations else None


def locate(entry: Entry) -> Place | None:
    """The first place where the file exists, without checking its content; None if there is none."""
    return next((place for place in places(entry) if place.path.is_file()), None)


def find(
    name: str, *, given: str | os.PathLike[str] | None = None, option: str = "path", fetch: bool | None = None
) -> Place:
    """The file of the entry `name`, with verified checksum, downloaded if necessary.

    `given` (the file named by `option`) is used as it is, without fallback. `fetch` None downloads only files with a
    known checksum. Raises OptionError for an unknown name, and CheckpointError for a wrong checksum, naming the file,
    or if the file is not found, listing the places, the addresses and what to do.
    """
    entry = entry_of(name)
    if given:
        path = Path(os.path.expanduser(given))
        if not path.is_file():
            raise CheckpointError(f"{option}: no such file: {path.absolute()}")
        return Place(path, option)
    place = locate(entry)
    if place is not None:
        check(place, entry)
        return place
    refusals = []
    for url in entry.urls if (bool(entry.sha256) if fetch is None else fetch) else ():
        try:
            target = cache_folder() / entry.file
            return Place(download(url, target, sha256=entry.sha256, size=entry.size), "downloaded", entry.sha256)
        except CheckpointError as error:
            refusals.append(str(error))
    raise CheckpointError(_not_found(entry, refusals, option))


@dataclass(frozen=True)
class Chosen:
    """The weights file to restore with; `entry` is the named model, None for a file given by path."""

    path: Path
    entry: Entry | None = None
    by_default: bool = False


def choose(
    weights: str | os.PathLike[str] | None = None,
    model: str | None = None,
    *,
    masked: bool | None = None,
    dashes: str = "",
) -> Chosen:
    """Choose the weights to restore with: a file, a named model, or the default model.

    The default is realsr_x4 if available, else sr_x4; with masks, inpaint. `masked`: whether images come with a mask,
    or None if unknown. `dashes` precede the option names in messages. Raises InputError if both are given or the model
    does not suit the images, OptionError for an unknown name, CheckpointError if the file of the model is not
    available.
    """
    if weights is None:
        return _choose_model(model, masked=masked)
    path = Path(weights)
    if model is not None:
        both = f"{dashes}weights {path} and {dashes}model {model}"
        raise InputError(f"{both}: give only one of them")
    if str(path) in registry() and not Path(os.path.expanduser(path)).exists():
        raise InputError(f"{dashes}weights {path}: no such file, but there is a model of this name: use {dashes}model")
    return Chosen(path)


def _choose_model(name: str | None, *, masked: bool | None) -> Chosen:
    entry = entry_of(name or _default_model(masked=bool(masked)), kind="restorer")
    subject = f"model {entry.name} is for {TASK_TITLES[entry.task]}" if entry.task else f"model {entry.name}"
    if masked and entry.task and not entry.takes_mask:
        raise InputError(
            f"{subject} and takes no mask; leave the mask out, or choose one that does: {_such(masks=True)}"
        )
    if masked is False and entry.takes_mask:
        raise InputError(f"{subject}; give a mask of the missing pixels, or choose another model: {_such(masks=False)}")
    return Chosen(find(entry.name).path, entry, by_default=name is None)


def _default_model(*, masked: bool) -> str:
    if masked:
        return _DEFAULT_WITH_MASK
    return next((name for name in _DEFAULTS if locate(entry_of(name)) is not None), _DEFAULTS[-1])


def _such(*, masks: bool) -> str:
    found = [entry for entry in registry().values() if entry.kind == "restorer" and entry.takes_mask == masks]
    here = [entry for entry in found if locate(entry) is not None]
    return ", ".join(entry.name for entry in here or found)


def check(place: Place, entry: Entry) -> None:
    """Raise CheckpointError, which names the file, if its checksum is not the known one."""
    if not place.sha256:
        return
    try:
        status = place.path.stat()
        digest = _digest(place.path.absolute(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{place.path.absolute()}: cannot be read ({error.strerror})") from error
    if digest.startswith(place.sha256):
        return
    if place.package is not None:
        remedy = f"reinstall it: {place.package.install}"
    elif place.path.parent == FOLDER:
        remedy = "install diffir_sr again"
    else:
        remedy = "remove it, or rename it if it is your own"
    raise CheckpointError(
        f"{place.path.absolute()} ({place.name}): not the weights {entry.name}: sha256 is {digest}, expected "
        f"{place.sha256}; {remedy}"
    )


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """The checksum of a file, cached until the file changes."""
    return sha256_of(path)


def _not_found(entry: Entry, refusals: list[str], option: str) -> str:
    tried = "".join(f"\n  {place.path.absolute()} ({place.name}): not found" for place in places(entry))
    tried += "".join(
        f"\n  the package {one.package}: not installed; {one.install}"
        for one in entry.packages
        if package_folder(one.package) is None
    )
    tried += "".join(f"\n  {refusal}" for refusal in refusals)
    return f"weights {entry.name} not found ({entry.about}); searched{tried}\n{_way_to_get(entry, refusals, option)}"


def _way_to_get(entry: Entry, refusals: list[str], option: str) -> str:
    named = f", or set {option}" if option != "path" else ""
    put = f"put it as {entry.file} into {cache_folder()} or {PROJECT_FOLDER.absolute()}{named}"
    ways = []
    if entry.urls and refusals:
        ways.append(f"On a machine with network access, download {entry.urls[0]} and {put}")
    elif entry.urls:
        ways.append(f"Fetch it with: diffir models fetch {entry.name}; or download {entry.urls[0]} and {put}")
    elif entry.page:
        ways.append(f"It is published at {entry.page}: download it there with a browser and {put}")
    elif entry.shipped:
        ways.append(
            "This release of diffir_sr does not ship it; upgrade (pip install -U diffir_sr), or choose another model "
            "(diffir models list)"
        )
    if entry.instead:
        ways.append(f"Or {entry.instead}")
    return "\n".join(ways) or f"If you have it, {put}"
