"""The registry of named weights: those of this package (registry.yml) and those in lists of the user."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffir_sr.errors import OptionError

FOLDER = Path(__file__).parent  # shipped models are next to the registry
LISTS = "DIFFIR_MODELS"  # environment variable: lists of the user, separated as in PATH
TASK_TITLES = {
    "sr": "super-resolution of clean, bicubically downscaled images",
    "realsr": "super-resolution of real photographs",
    "deblur": "removal of motion blur",
    "inpaint": "inpainting of missing pixels",
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
    task: Literal["sr", "realsr", "deblur", "inpaint"] | None = None
    scale: int | None = Field(default=None, ge=1)
    card: str = ""
    paper: str = ""
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
