"""Reading the data file of an LMDB with ordinary reads, so that a damaged file can never crash the process.

LMDB itself maps the file into memory and trusts it. If a page is missing (a truncated copy, a flipped bit in a page
number, a file that shrinks while a training reads it, a failing disk), accessing it raises SIGBUS, which cannot be
turned into an error message. Here, every page comes from a read that can fail, and is checked before use: its number
and kind must be as expected, and everything it refers to must lie inside the page and the file. Nothing has to be
closed before a fork, and readers of the same file share nothing.

Supports the formats of LMDB 0.9 and 1.0 on 64-bit little-endian machines, with a single table of keys and values, as
BasicSR writes. Layout of 0.9, with sizes in bytes (in 1.0, a transaction number of 8 follows the page number, offsets
are relative to the end of the header, and values begin at even offsets):

    page    number 8, pad 2, flags 2, then lower 2, upper 2 (of an overflow page: pages 4), then places of nodes, 2 each
    meta    magic 4, version 4, address 8, map size 8, two tables of 48 (free pages, main), last page 8, transaction 8
    table   page size 4 (of the first), flags 2, depth 2, branch, leaf and overflow pages 8 each, entries 8, root 8
    node    size or child, low 2 and high 2, flags 2 (of a branch: the child's upper 16 bits), key size 2, key, value
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from diffir_sr.errors import InputError

_MAGIC = (0xBEEFC0DE).to_bytes(4, "little")
_VERSIONS = {16: 1, 24: 3}  # bytes of a page header, and the corresponding version of the format
_META = struct.Struct("<IIQQ48s48sQQ")
_TABLE = struct.Struct("<IHHQQQQQ")
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE, _DIRTY = 1, 2, 4, 8, 16
_ELSEWHERE = 1  # flag of a node whose value is on overflow pages
_NO_PAGE = 2**64 - 1
_DEEPEST = 32
_KEPT = 4096  # cached pages of the tree per process: 16 MiB, the keys of about 200,000 images


class Value(NamedTuple):
    """Location of a value in the file: first byte, number of bytes, and whether it has its own pages."""

    start: int
    size: int
    is_apart: bool


class _BrokenError(Exception):
    """Describes what is wrong with the file."""


class _Page(NamedTuple):
    """A branch or leaf page: its number, kind and bytes, and the offsets of its nodes."""

    number: int
    kind: int
    data: bytes
    nodes: tuple[int, ...]

    def key(self, index: int) -> bytes:
        """The key of a node; raises _BrokenError if it extends beyond the page."""
        at = self.nodes[index]
        size = int.from_bytes(self.data[at + 6 : at + 8], "little")
        if at + _NODE.size + size > len(self.data):
            raise _BrokenError(f"page {self.number}: a key extends beyond its page")
        return self.data[at + 8 : at + 8 + size]


class LmdbFile:
    """The values of an LMDB by key; opened at the first read, picklable, safe for many threads and processes.

    A file that changes in place is reopened. Every method raises InputError, with path and remedy, for a file that is
    truncated, damaged, unreadable or of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = self.path / "data.mdb"
        self._opened: _Opened | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return LmdbFile, (self.path,)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if the key does not exist."""
        with self._told():
            opened = self._current()
            value = opened.find(key)
            return None if value is None else opened.read(value.start, value.size)

    def find(self, key: bytes) -> Value | None:
        """The location of the value of a key, for `read_at`; None if the key does not exist."""
        with self._told():
            return self._current().find(key)

    def read_at(self, start: int, size: int) -> bytes:
        """Bytes of the file, part of a located value."""
        with self._told():
            return self._current().read(start, size)

    def all_keys(self) -> list[bytes]:
        """All keys, sorted, after checking every page of the tree and that every value lies inside the file.

        Also raises InputError if keys are out of order or their number differs from that in the header.
        """
        with self._told():
            return self._current().all_keys()

    def check(self) -> None:
        """Raise InputError unless all keys are reachable and all values lie inside the file; runs once per file."""
        with self._told():
            identity = self._current().identity
            if identity not in _checked:
                self.all_keys()
                _checked.add(identity)

    def _current(self) -> _Opened:
        opened = self._opened
        if opened is None or opened.identity != _identity(opened.handle):
            self._opened = opened = _Opened(self.file)
        return opened

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except _BrokenError as broken:
            raise InputError(
                f"{self.file.absolute()}: {broken}; copy the LMDB again, or build it again with 'diffir prepare lmdb'"
            ) from broken
        except OSError as error:
            raise InputError(
                f"{self.file.absolute()}: cannot be read ({error.strerror or error}); check permissions and the disk"
            ) from error


_checked: set[tuple[int, ...]] = set()  # files that passed the check, by identity


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Opened:
    """A snapshot of an open file: its newest complete state, and the cached pages of its tree."""

    def __init__(self, path: Path) -> None:
        self.handle = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this object
        self.identity = _identity(self.handle)
        self.size = self.identity[2]
        self._seeking = threading.Lock()
        head = self.read(0, 64)
        self._header = head.find(_MAGIC)
        if self._header not in _VERSIONS:
            raise _BrokenError(_unknown(head, self._header))
        self._pages_from = self._header if self._header == 24 else 0  # base of the offsets of nodes
        metas = [self._meta(self.read(0, self._header + _META.size))]
        self._page_size = metas[0][1]
        metas.append(self._meta(self.read(self._page_size, self._header + _META.size)))
        if metas[1][1] != self._page_size:
            raise _BrokenError(f"its two headers state pages of {self._page_size} and of {metas[1][1]} bytes")
        _, _, self._last, main = max(metas, key=lambda meta: meta[0])
        _, flags, self._depth, self._branches, self._leaves, _, self._entries, self._root = _TABLE.unpack(main)
        if flags & 0x7FFF:
            raise _BrokenError(f"contains other kinds of tables (flags {flags:#x}) than LMDBs of images")
        if self._depth > _DEEPEST or self._last >= 2**48:
            raise _BrokenError("its header is damaged")
        self._known: dict[int, _Page] = {}

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.handle.close()

    def _meta(self, data: bytes) -> tuple[int, int, int, bytes]:
        """(transaction, page size, last page, main table) of a header page."""
        magic, version, _, _, free, main, last, transaction = _META.unpack_from(data, self._header)
        (size,) = struct.unpack_from("<I", free)
        flags = int.from_bytes(data[self._header - 6 : self._header - 4], "little")
        if magic != int.from_bytes(_MAGIC, "little") or not flags & _META_PAGE:
            raise _BrokenError("one of its two headers is damaged")
        if version != _VERSIONS[self._header]:
            raise _BrokenError(f"version {version} of the format, expected {_VERSIONS[self._header]}")
        if not 256 <= size <= 2**16 or size & (size - 1):
            raise _BrokenError(f"its header states pages of {size} bytes")
        return transaction, size, last, main

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the file; raises _BrokenError if they do not exist."""
        if start + size > self.size:
            raise _BrokenError(f"truncated: byte {start + size:,d} is needed, the file has {self.size:,d}")
        if hasattr(os, "pread"):
            data = os.pread(self.handle.fileno(), size, start)
        else:  # Windows: one file position per open file
            with self._seeking:
                self.handle.seek(start)
                data = self.handle.read(size)
        while 0 < len(data) < size:  # systems read at most about 2 GiB at once
            more = self.read(start + len(data), size - len(data))
            data += more
        if len(data) < size:
            raise _BrokenError(f"truncated while reading: byte {start + size:,d} no longer exists")
        return data

    def _page(self, number: int, kind: int) -> _Page:
        """A branch or leaf page; raises _BrokenError if it is not as expected."""
        known = self._known.get(number)
        if known is not None and known.kind == kind:
            return known
        self._check_number(number)
        data = self.read(number * self._page_size, self._page_size)
        header = self._header
        flags, lower, upper = struct.unpack_from("<HHH", data, header - 6)
        if int.from_bytes(data[:8], "little") != number or flags & ~_DIRTY != kind:
            raise _BrokenError(f"page {number} is not as the previous pages say")
        base = self._pages_from
        count = (lower + base - header) // 2
        if lower + base < header or upper + base > len(data) or lower > upper or count < 1:
            raise _BrokenError(f"page {number} is damaged")
        nodes = tuple(place + base for place in struct.unpack_from(f"<{count}H", data, header))
        if min(nodes) < upper + base or max(nodes) + _NODE.size > len(data):
            raise _BrokenError(f"page {number}: a node lies outside its page")
        page = _Page(number, kind, data, nodes)
        if len(self._known) < _KEPT:
            self._known[number] = page
        return page

    def _check_number(self, number: int) -> None:
        if not 2 <= number <= self._last:
            raise _BrokenError(f"page {number} is referenced, but the pages range from 2 to {self._last}")

    def _child(self, page: _Page, index: int) -> int:
        low, high, top, _ = _NODE.unpack_from(page.data, page.nodes[index])
        return low | high << 16 | top << 32

    def _value(self, page: _Page, index: int) -> Value:
        """The location of the value of a leaf node; inside the file."""
        at = page.nodes[index]
        low, high, flags, key_size = _NODE.unpack_from(page.data, at)
        size, start = low | high << 16, at + _NODE.size + key_size
        start += start & 1 if self._pages_from else 0
        if flags & ~_ELSEWHERE:
            raise _BrokenError("contains nested tables, unlike LMDBs of images")
        if start + (8 if flags else size) > len(page.data):
            raise _BrokenError(f"page {page.number}: a value extends beyond its page")
        if not flags:
            return Value(page.number * self._page_size + start, size, is_apart=False)
        number = int.from_bytes(page.data[start : start + 8], "little")
        self._check_number(number)
        pages = -(-(self._header + size) // self._page_size)
        if number + pages - 1 > self._last:
            raise _BrokenError(f"page {page.number}: a value of {size:,d} bytes extends beyond the last page")
        end = number * self._page_size + self._header + size
        if end > self.size:
            raise _BrokenError(f"truncated: byte {end:,d} is needed, the file has {self.size:,d}")
        return Value(number * self._page_size + self._header, size, is_apart=True)

    def _check_overflow(self, value: Value) -> None:
        """Raise _BrokenError if the pages are not those of a value."""
        place = value.start - self._header
        head = self.read(place, self._header)
        number, flags = int.from_bytes(head[:8], "little"), int.from_bytes(head[-6:-4], "little")
        pages = int.from_bytes(head[-4:], "little")
        if number != place // self._page_size or flags & ~_DIRTY != _OVERFLOW:
            raise _BrokenError(f"page {place // self._page_size} is not as the previous pages say")
        if pages < -(-(self._header + value.size) // self._page_size):
            raise _BrokenError(f"page {number}: {pages} pages are too few for {value.size:,d} bytes")

    def find(self, key: bytes) -> Value | None:
        """The value of a key, its pages checked."""
        if self._root == _NO_PAGE:
            return None
        number = self._root
        for _ in range(self._depth - 1):
            page = self._page(number, _BRANCH)
            # The first node has no key: it covers all keys smaller than that of the second.
            index = bisect.bisect_right(range(1, len(page.nodes)), key, key=page.key)
            number = self._child(page, index)
        page = self._page(number, _LEAF)
        index = bisect.bisect_left(range(len(page.nodes)), key, key=page.key)
        if index == len(page.nodes) or page.key(index) != key:
            return None
        value = self._value(page, index)
        if value.is_apart:
            self._check_overflow(value)
        return value

    def all_keys(self) -> list[bytes]:
        """All keys; raises _BrokenError if the tree is inconsistent."""
        keys: list[bytes] = []
        if self._root != _NO_PAGE:
            seen: set[int] = set()
            for page in self._below(self._root, self._depth, seen):
                for index in range(len(page.nodes)):
                    keys.append(page.key(index))
                    self._value(page, index)
        if len(keys) != self._entries:
            raise _BrokenError(f"{len(keys):,d} of {self._entries:,d} values exist")
        if any(one >= other for one, other in zip(keys, keys[1:], strict=False)):
            raise _BrokenError("its keys are out of order")
        return keys

    def _below(self, number: int, depth: int, seen: set[int]) -> Iterator[_Page]:
        """The leaves under a page, each once."""
        if number in seen or len(seen) > self._branches + self._leaves or depth < 1:
            raise _BrokenError(f"page {number} is referenced twice")
        seen.add(number)
        if depth == 1:
            yield self._page(number, _LEAF)
            return
        page = self._page(number, _BRANCH)
        for index in range(len(page.nodes)):
            yield from self._below(self._child(page, index), depth - 1, seen)


def _unknown(head: bytes, place: int) -> str:
    """Describes a file that does not begin like an LMDB of a 64-bit little-endian machine."""
    if not head.strip(b"\0"):
        return "empty"
    if place == 12 or _MAGIC[::-1] in head:
        return "an LMDB of a machine with another word size or byte order, which is not supported"
    return "not the data file of an LMDB"
