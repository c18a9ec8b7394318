"""The jobs of a command line, their journal of written results, and their division into shards."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diffir_sr.devices import accelerator_count, default_device, device_of
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically
from diffir_sr.files.decoders import format_of_content
from diffir_sr.files.images import SUFFIXES, is_image_name, is_picture_not_read, without_suffix
from diffir_sr.files.picture import FORMATS
from diffir_sr.files.shards import is_shards
from diffir_sr.inference.inputs import is_mask_of_another

logger = logging.getLogger("diffir_sr.inference")
# Videos: the first group is also written; videos of the second become .mkv.
_WRITTEN = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".ts", ".mts", ".m2ts", ".flv", ".3gp")
VIDEOS = (*_WRITTEN, ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".ogv", ".3g2", ".mxf", ".f4v", ".divx", ".rm", ".rmvb")
STREAM = "-"
SUFFIX_OF = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
_NOT_WRITTEN = (".gif", ".heic", ".heif", ".hif", ".avif", ".jp2", ".jxl", ".exr", ".hdr", ".psd", ".pdf", ".npy")
_OTHER_VIDEOS = (".swf", ".y4m", ".h264", ".h265", ".hevc", ".264", ".265", ".ivf", ".amv", ".dv", ".wtv")
_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """One image or video: its source and the target of its result; None is standard input or output."""

    source: Path | None
    target: Path | None
    relative: str  # relative to its input folder, or the bare name

    @property
    def is_video(self) -> bool:
        return self.source is not None and is_video(self.source)

    def __str__(self) -> str:
        return "standard input" if self.source is None else str(self.source)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def is_restored(name: str) -> bool:
    """Whether a file of this name is a supported image or video."""
    return is_image_name(name) or (is_video(Path(name)) and not Path(name).name.startswith("."))


def plan_jobs(inputs: Sequence[str], output: str, *, form: str | None = None, mask: str | None = None) -> list[Job]:
    """Jobs for files, folders (keeping their structure), globs and '-', sorted within each input.

    `form` is the requested format (a key of SUFFIX_OF); by default a result has the format of its input. `output` is a
    folder, or for a single input a file name with a known suffix, or '-'. If `mask` is a file or folder, masks among
    the images are skipped. Raises InputError for inputs that do not exist.
    """
    try:
        return _planned(inputs, os.path.expanduser(output), form, mask)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be accessed ({error.strerror}); check its permissions") from error


def _planned(inputs: Sequence[str], output: str, form: str | None, mask: str | None) -> list[Job]:
    if STREAM in inputs:
        return [_stream(inputs, output)]
    found = list(dict.fromkeys(file for given in inputs for file in input_files(given)))
    found = found if mask is None else _without_masks(found, Path(os.path.expanduser(mask)))
    if output == STREAM:
        if len(found) != 1 or is_video(found[0][0]):
            raise InputError(f"-o -: standard output takes one image, found {len(found)} inputs; give a folder")
        return [Job(found[0][0], None, found[0][1])]
    target = Path(output)
    if _names_a_file(target, found):
        _check_suffix(target, form)
        return _never_in_place([Job(found[0][0], target, found[0][1])])
    check_apart(inputs, target)
    names = _distinct([result_name(relative, form) for _, relative in found], [path for path, _ in found], form)
    jobs = [Job(path, target / name, relative) for (path, relative), name in zip(found, names, strict=True)]
    return _never_in_place(jobs)


def _without_masks(found: list[tuple[Path, str]], mask: Path) -> list[tuple[Path, str]]:
    """The images that are not masks, by the names of masks in LaMa's layout or because they are in `mask`."""
    if not mask.exists():
        return found
    stems = {without_suffix(str(path)) for path, _ in found}
    kept = [one for one in found if not (is_mask_of_another(str(one[0]), stems) or _same_file(one[0], mask))]
    if not kept:
        return found
    known = set(kept)
    masks = [relative for one, relative in found if (one, relative) not in known]
    if masks:
        logger.warning("%d masks among the images are not restored: %s.", len(masks), _some(masks))
    return kept


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else "")


def _tell_left_out(where: str, names: Sequence[str]) -> None:
    """Warn about files that look like images or videos by their names, but are not supported."""
    alike = [name for name in names if is_picture_not_read(name) or name.lower().endswith(_OTHER_VIDEOS)]
    if alike:
        logger.warning("%s: %d files of unsupported kinds are left out: %s.", where, len(alike), _some(alike))


def _check_suffix(target: Path, form: str | None) -> None:
    expected = FORMATS.get(target.suffix.lower())
    if form and expected and expected != FORMATS[SUFFIX_OF[form]]:
        raise InputError(f"-o {target}: requests {expected}, --format {form}; leave one of them out")


def _never_in_place(jobs: list[Job]) -> list[Job]:
    for job in jobs:
        if job.source and job.target and job.source.resolve() == job.target.resolve():
            raise InputError(f"{job.source}: the result would replace the input; choose another folder")
    return jobs


def _stream(inputs: Sequence[str], output: str) -> Job:
    if len(inputs) > 1:
        raise InputError("-: standard input is a single image; give no other inputs")
    target = None if output == STREAM else Path(output)
    if target is not None and target.suffix.lower() not in FORMATS:
        raise InputError(f"-o {output}: the result of standard input needs a file name such as out.png, or '-'")
    return Job(None, target, "stdin")


def input_files(given: str) -> Iterator[tuple[Path, str]]:
    """The files of one argument, each with its path relative to the folder given.

    Raises InputError if there are none, and warns about images and videos of unsupported kinds.
    """
    path = Path(os.path.expanduser(given))
    if path.is_dir():
        everything = sorted(_under(path))
        names = [name for name in everything if is_restored(name) or (path / name).is_dir()]
        known = set(names)
        _tell_left_out(str(path), [name for name in everything if name not in known])
        if not names and is_shards(path):
            raise InputError(f"{path.resolve()}: a folder of shards; unpack their images first: tar -xf FILE -C FOLDER")
        if not names:
            raise InputError(f"{path.resolve()}: no images or videos; supported: {' '.join((*SUFFIXES, *VIDEOS))}")
        yield from ((path / name, name) for name in names)
    elif path.exists():
        if path.suffix.lower() not in SUFFIXES and not is_video(path) and format_of_content(path) is None:
            raise InputError(
                f"{path}: neither an image nor a video by name or content; supported: {' '.join((*SUFFIXES, *VIDEOS))}"
            )
        yield path, path.name
    elif glob.has_magic(given):
        matches = sorted(glob.glob(str(path), recursive=True))
        fitting = [Path(match) for match in matches if Path(match).suffix.lower() in (*SUFFIXES, *VIDEOS)]
        _tell_left_out(given, matches)
        if not fitting:
            raise InputError(f"{given}: matches no image or video (and {len(matches)} other files)")
        yield from ((match, match.name) for match in fitting)
    else:
        raise InputError(f"{path.absolute()}: no such file or folder; correct the path")


def _under(folder: Path) -> Iterator[str]:
    """Files that are not hidden, and folders that cannot be listed, which fail as jobs without stopping the others.

    Raises the OSError of `folder` itself.
    """
    locked: list[str] = []

    def keep(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        locked.append(Path(error.filename).relative_to(folder).as_posix())

    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=keep):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            wanted = (name for name in files if name[0] != ".")
            yield from (Path(here, name).relative_to(folder).as_posix() for name in wanted)
        seen.add(real)
    yield from locked


def _names_a_file(target: Path, found: Sequence[tuple[Path, str]]) -> bool:
    known = target.suffix.lower() in (*FORMATS, *VIDEOS)
    if target.suffix.lower() in _NOT_WRITTEN and not target.is_dir():
        raise InputError(
            f"-o {target}: cannot write {target.suffix[1:]}; give a folder, or a suffix of {' '.join(FORMATS)}"
        )
    if not known or target.is_dir():
        return False
    if is_video(target) and target.suffix.lower() not in _WRITTEN:
        raise InputError(f"-o {target}: cannot write {target.suffix[1:]}; use one of the suffixes {' '.join(_WRITTEN)}")
    if len(found) > 1:
        raise InputError(f"-o {target}: one file name for {len(found)} inputs; give a folder")
    if is_video(found[0][0]) != is_video(target):
        raise InputError(f"-o {target}: videos become videos and images become images; change the suffix")
    return True


def result_name(relative: str, form: str | None) -> str:
    """The name of a result: that of its input, with another suffix appended if requested or needed."""
    path = PurePosixPath(relative)
    if is_video(Path(relative)) and path.suffix.lower() not in _WRITTEN:
        return f"{relative}.mkv"
    if form is None and not is_video(Path(relative)) and path.suffix.lower() not in FORMATS:
        return f"{relative}.png"
    if form is None or is_video(Path(relative)) or FORMATS.get(path.suffix.lower()) == FORMATS[SUFFIX_OF[form]]:
        return relative
    return relative + SUFFIX_OF[form]


def _distinct(names: list[str], sources: list[Path], form: str | None) -> list[str]:
    """`names`, prefixed with the folders of their sources (and finally numbered) if two would collide.

    Case is ignored, as on many file systems.
    """
    counts = Counter(name.casefold() for name in names)
    doubled = [path for path, name in zip(sources, names, strict=True) if counts[name.casefold()] > 1]
    taken = {name.casefold() for name in names if counts[name.casefold()] == 1}
    root = os.path.commonpath([path.resolve().parent for path in doubled]) if doubled else ""
    chosen = []
    for name, source in zip(names, sources, strict=True):
        if counts[name.casefold()] > 1:
            name = result_name(source.resolve().relative_to(root).as_posix(), form)
            name = _numbered(name, taken)
            taken.add(name.casefold())
        chosen.append(name)
    return chosen


def _numbered(name: str, taken: set[str]) -> str:
    path, number, free = PurePosixPath(name), 1, name
    while free.casefold() in taken:
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    return free


def check_apart(inputs: Sequence[str], output: Path) -> None:
    """Raise InputError if `output` is one of the input folders or inside it."""
    for given in inputs:
        folder = Path(os.path.expanduser(given))
        if folder.is_dir() and folder.resolve() in (output.resolve(), *output.resolve().parents):
            raise InputError(
                f"-o {output}: is the input folder {folder} or inside it, so results would be restored again "
                "the next time; choose a folder next to it"
            )


# The journal of results and their inputs, so that an interrupted run can continue and foreign files do not count as
# done.


NAME = "restored.jsonl"


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """The digest of the content of a file."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**22):
            found.update(piece)
    return found.hexdigest()


class Journal:
    """A line of JSON per written file in `<folder>/restored.jsonl`: output, its digest, digest of the input, settings.

    A line is written before its file gets its final name, so that a run killed in between makes that file again. With
    `overwrite`, results of other runs are replaced, but results with the same settings are kept. Without a folder
    nothing is recorded, and existing files are an error. Lines are written to the journal `name`; those of all journals
    in the folder count.
    """

    def __init__(
        self, folder: Path | None, settings: Mapping[str, object], *, overwrite: bool = False, name: str = NAME
    ) -> None:
        self.folder = folder
        self._journal = name
        self.overwrite = overwrite
        self._settings = dict(settings)
        self._lines: dict[str, dict[str, object]] = {}
        self._torn = False
        if folder is not None:
            text = _text_of(folder / name)
            self._torn = not text.endswith("\n") and text != ""
            for other in journals_in(folder):
                if other.name != name:
                    self._lines |= entries_of(other)
            self._lines |= _entries(text)

    def is_done(self, target: Path, source: str) -> bool:
        """Whether `target` already is the result of this run for the input with digest `source`.

        Raises InputError if it is a different file.
        """
        if not target.exists():
            return False
        entry = self._lines.get(self._name(target)) if self.folder is not None else None
        ours = entry is not None and entry["sha"] == digest_of_file(target)
        same = ours and entry is not None and entry["source"] == source and entry["settings"] == self._settings
        if same or self.overwrite:
            return same
        if not ours or entry is None:
            raise InputError(
                f"{target} exists and was not made by this run; use --overwrite to replace it, or choose another name"
            )
        differing = "another input" if entry["source"] != source else "other settings or weights"
        raise InputError(
            f"{target} exists, made from {differing}; use --overwrite to replace it, or choose another folder"
        )

    def write(self, target: Path, data: bytes, *, source: str, seconds: float) -> None:
        """Write a result atomically, after its line in the journal."""
        self.note(target, digest(data), source=source, seconds=seconds)
        write_atomically(data, target)

    def note(self, target: Path, sha: str, *, source: str, seconds: float) -> None:
        """Add the line of a file that is about to get its final name."""
        if self.folder is None:
            return
        entry = {"output": self._name(target), "sha": sha, "source": source, "seconds": round(seconds, 3)}
        entry |= {"settings": self._settings}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / self._journal).open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + json.dumps(entry) + "\n")
        self._torn = False
        self._lines[self._name(target)] = entry

    def _name(self, target: Path) -> str:
        return name_in_folder(target, self.folder or Path())


def name_in_folder(target: Path, folder: Path) -> str:
    """The name of a result in the journal of `folder`."""
    return os.path.relpath(target, folder).replace(os.sep, "/")


def journals_in(folder: Path) -> list[Path]:
    """The journals of a folder: that of whole runs, and those of shards, in this order."""
    stem, suffix = Path(NAME).stem, Path(NAME).suffix
    named = re.compile(rf"{re.escape(stem)}(\.\d+-of-\d+)?{re.escape(suffix)}")
    try:
        return sorted(
            (path for path in folder.iterdir() if named.fullmatch(path.name)), key=lambda path: path.name != NAME
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def entries_of(journal: Path) -> dict[str, dict[str, object]]:
    """The entries of a journal by the names of results; raises InputError if it cannot be read."""
    return _entries(_text_of(journal))


def _entries(text: str) -> dict[str, dict[str, object]]:
    known = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a killed run may leave an incomplete line
            entry = json.loads(line)
            if all(isinstance(entry[key], str) for key in ("output", "sha", "source")) and "settings" in entry:
                known[entry["output"]] = entry
    return known


def _text_of(journal: Path) -> str:
    try:
        return journal.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 text: {error.reason}"
        raise InputError(
            f"{journal}: the journal of restored files cannot be read ({why}); nothing was restored; fix its "
            "permissions or move it away (files in the folder then count as foreign), or choose another "
            "folder"
        ) from error


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def journal(self) -> str:
        """The name of the journal of this part."""
        return f"{Path(NAME).stem}.{self.number}-of-{self.count}{Path(NAME).suffix}"

    def has(self, job: Job) -> bool:
        """Whether a job belongs to this part: a function of its relative name alone."""
        key = hashlib.blake2b(job.relative.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(key, "little") % self.count == self.number - 1

    def divided(self, parts: int) -> list[Shard]:
        """The parts of this part: together they have its jobs."""
        return [Shard(self.number + self.count * part, self.count * parts) for part in range(parts)]


def shard_of(text: str) -> Shard:
    """The part named by "I/N"; raises InputError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard: expected I/N with I from 1 to N, such as 3/16, got {text!r}")
    return Shard(int(found[1]), int(found[2]))


def devices_of(text: str) -> list[str]:
    """The devices of --devices: all accelerators of this machine, or a list such as cuda:0,cuda:2."""
    if text != "all":
        return [str(device_of(name)) for name in text.split(",")]
    count = accelerator_count()
    return [f"{default_device().type}:{number}" for number in range(count)] or ["cpu"]


def restore_on(devices: Sequence[str], words: Sequence[str], shard: Shard) -> list[int]:
    """Run `diffir restore` with the arguments `words` once per device, each on its part; returns the exit codes.

    The processes end with this one, also if it is interrupted; what they finished is in their journals.
    """
    running = []
    try:
        for device, part in zip(devices, shard.divided(len(devices)), strict=True):
            mine = ["--devices", "", "--device", device, "--shard", str(part)]  # the last ones count
            running.append(subprocess.Popen([sys.executable, "-m", "diffir_sr", "restore", *words, *mine]))
        return [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


@dataclass(frozen=True)
class Merged:
    """What a merged journal has: results in all, of how many journals, and inputs without a result."""

    results: int
    journals: int
    missing: list[str]


def merge(output: Path, jobs: Sequence[Job]) -> Merged:
    """Merge the journals of all parts in `output` into one, and find the jobs without a result in it.

    Raises InputError, changing nothing, if parts were restored with different settings or weights.
    """
    paths = journals_in(output)
    merged: dict[str, dict[str, object]] = {}
    sizes, made = {}, {}
    for path in paths:
        sizes[path] = path.stat().st_size
        for name, entry in entries_of(path).items():
            made.setdefault(json.dumps(entry["settings"], sort_keys=True), path.name)
            merged[name] = entry
    if len(made) > 1:
        raise InputError(
            f"{output}: {' and '.join(list(made.values())[:2])} have results of different settings or weights; restore "
            "one of them again with --overwrite, or merge them in folders of their own"
        )
    lines = [json.dumps(merged[name]) for name in sorted(merged)]
    if lines:
        write_atomically("".join(f"{line}\n" for line in lines).encode(), output / NAME)
    for path in paths:
        # A part that is still being restored adds lines; its journal stays for the next merge.
        if path.name != NAME and path.stat().st_size == sizes[path]:
            path.unlink()
    targets = [(job, job.target) for job in jobs if job.target is not None]
    missing = [
        str(job)
        for job, target in targets
        if name_in_folder(target, output) not in merged or not os.path.exists(target)
    ]
    return Merged(len(merged), len(paths), missing)
