"""What was written where and from what, so that an interrupted run goes on and nothing foreign is taken for done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically

NAME = "restored.jsonl"


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """The digest of a file's content, read in pieces."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**22):
            found.update(piece)
    return found.hexdigest()


class Journal:
    """One line of JSON per written file in `<folder>/restored.jsonl`: output, its digest, input's digest, settings.

    A line is written before its file gets its name, so that a run that is killed in between does that file again.
    With `overwrite`, what other runs made is made again; what this very run would make is kept all the same. Without
    a folder nothing is noted, and what exists is an error.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, object], *, overwrite: bool = False) -> None:
        self.folder = folder
        self.overwrite = overwrite
        self._settings = dict(settings)
        self._lines: dict[str, dict[str, object]] = {}
        self._torn = False
        if folder is not None:
            text = _text_of(folder / NAME)
            self._torn = not text.endswith("\n") and text != ""
            self._lines = dict(self._entries(text))

    @staticmethod
    def _entries(text: str) -> list[tuple[str, dict[str, object]]]:
        known = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a killed run leaves half a line
                entry = json.loads(line)
                if all(isinstance(entry[key], str) for key in ("output", "sha", "source")) and "settings" in entry:
                    known.append((entry["output"], entry))
        return known

    def is_done(self, target: Path, source: str) -> bool:
        """Whether `target` is what this run would make of the input with digest `source`.

        Raises InputError where something else has its name.
        """
        if not target.exists():
            return False
        entry = self._lines.get(self._name(target)) if self.folder is not None else None
        ours = entry is not None and entry["sha"] == digest_of_file(target)
        same = ours and entry is not None and entry["source"] == source and entry["settings"] == self._settings
        if same or self.overwrite:
            return same
        if not ours or entry is None:
            raise InputError(f"{target} exists and is not of this run; --overwrite replaces it, or choose another name")
        differing = "another picture" if entry["source"] != source else "other settings or weights"
        raise InputError(f"{target} exists, made from {differing}; --overwrite makes it again, or choose a folder")

    def write(self, target: Path, data: bytes, *, source: str, seconds: float) -> None:
        """Write a result whole, its line first."""
        self.note(target, digest(data), source=source, seconds=seconds)
        write_atomically(data, target)

    def note(self, target: Path, sha: str, *, source: str, seconds: float) -> None:
        """Add the line of a file that is about to get its name."""
        if self.folder is None:
            return
        entry = {"output": self._name(target), "sha": sha, "source": source, "seconds": round(seconds, 3)}
        entry |= {"settings": self._settings}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / NAME).open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + json.dumps(entry) + "\n")
        self._torn = False
        self._lines[self._name(target)] = entry

    def _name(self, target: Path) -> str:
        return os.path.relpath(target, self.folder).replace(os.sep, "/")


def _text_of(journal: Path) -> str:
    try:
        return journal.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 text: {error.reason}"
        raise InputError(
            f"{journal}: the record of what was restored here cannot be read ({why}); nothing was restored; mend its "
            "permissions or move it away (what is in the folder then counts as not of this run), or choose another "
            "folder"
        ) from error
