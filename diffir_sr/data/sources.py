"""Where images come from: a folder or an LMDB, told apart by themselves and read alike."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from diffir_sr.data.images import SUFFIXES, decode, is_image_name, size_in_header
from diffir_sr.errors import InputError
from diffir_sr.lmdb_reading import SharedLmdb

_SAFE = "/-_~+=@:!"  # besides letters and digits; '.', '%', ',', brackets and blanks would break BasicSR's parser


def key_of(relative: str) -> str:
    """The LMDB key of a relative path without extension: ASCII, no dot, no blank; `name_of` undoes it."""
    return quote(relative.replace(os.sep, "/"), safe=_SAFE).replace(".", "%2E")


def name_of(key: str) -> str:
    """The relative path (without extension) that a key stands for."""
    return unquote(key)


class Source(ABC):
    """Named images. `names` are relative paths without extension, sorted; images are (H, W, C), see `decode`."""

    path: Path
    names: list[str]

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """The image; raises InputError that names the file where it is damaged."""

    @abstractmethod
    def size(self, name: str) -> tuple[int, int]:
        """(height, width), without decoding."""

    @abstractmethod
    def location(self, name: str) -> str:
        """The file path, or the key inside the LMDB: what `lq_path` and `gt_path` hold."""

    def __contains__(self, name: str) -> bool:
        return name in self._known

    @property
    def _known(self) -> frozenset[str]:
        if not hasattr(self, "_set"):
            self._set = frozenset(self.names)
        return self._set


class FolderSource(Source):
    """Image files under a folder, sub-folders included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        for file in sorted(path.rglob("*")):
            if is_image_name(file.name) and file.is_file():
                name = file.relative_to(path).with_suffix("").as_posix()
                if name in self._files:
                    raise InputError(
                        f"two images of {path.resolve()} have the same name: {self._files[name].name} and {file.name}; "
                        "rename or remove one"
                    )
                self._files[name] = file
        if not self._files:
            raise InputError(f"0 images under {path.resolve()}; looked for {' '.join(SUFFIXES)}; check the path")
        self.names = sorted(self._files)

    def file(self, name: str) -> Path:
        return self._files[name]

    def read(self, name: str) -> np.ndarray:
        return decode(self._files[name].read_bytes(), where=str(self._files[name]))

    def size(self, name: str) -> tuple[int, int]:
        return size_in_header(self._files[name])

    def location(self, name: str) -> str:
        return str(self._files[name])


class LmdbSource(Source):
    """Encoded images in an LMDB with BasicSR's meta_info.txt beside the data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, tuple[int, int]] = {}
        self._keys: dict[str, str] = {}
        self._data = SharedLmdb(path)
        meta = path / "meta_info.txt"
        if not meta.is_file():
            raise InputError(
                f"{path.resolve()}: this LMDB has no meta_info.txt, which lists its keys; build it again with: "
                f"diffir prepare lmdb FOLDER -o {path}"
            )
        for number, line in enumerate(meta.read_text().splitlines(), start=1):
            if line.strip():
                key, size = _parse_meta_line(line, where=f"{meta}:{number}")
                self._keys[name_of(key)] = key
                self._sizes[name_of(key)] = size
        if not self._keys:
            raise InputError(f"{meta.resolve()}: lists 0 images; build the LMDB again from a folder with images")
        self.names = sorted(self._keys)

    def read(self, name: str) -> np.ndarray:
        key = self._keys[name]
        with self._data.begin(buffers=True) as transaction:
            data = transaction.get(key.encode("ascii"))
            if data is None:
                raise InputError(
                    f"{self.path.resolve()}: meta_info.txt lists the key {key!r}, which the data does not hold; "
                    "build the LMDB again"
                )
            return decode(bytes(data), where=f"{self.path}[{key}]")

    def size(self, name: str) -> tuple[int, int]:
        return self._sizes[name]

    def location(self, name: str) -> str:
        return self._keys[name]


def _parse_meta_line(line: str, *, where: str) -> tuple[str, tuple[int, int]]:
    """`key.png (h,w,c) level` to key and (h, w); the extension is what follows the first dot, as BasicSR reads it."""
    try:
        shape = line[line.index("(") + 1 : line.index(")")]
        height, width = (int(number) for number in shape.split(",")[:2])
    except ValueError as error:
        raise InputError(f"{where}: expected 'key.png (height,width,channels) level', found {line!r}") from error
    return line[: line.index("(")].strip().split(".")[0], (height, width)


def is_lmdb(path: Path) -> bool:
    """Whether a path is meant as an LMDB: by its suffix, or because the data file is there."""
    return path.suffix == ".lmdb" or (path / "data.mdb").is_file()


def open_source(path: str | Path) -> Source:
    """The images at `path`; raises InputError where there is nothing, or nothing usable."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"no such folder or LMDB: {path.absolute()}; prepare it or correct the path")
    if not path.is_dir():
        raise InputError(f"{path.absolute()}: expected a folder of images or an LMDB folder, found a file")
    return LmdbSource(path) if is_lmdb(path) else FolderSource(path)
