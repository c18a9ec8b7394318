"""Restoring a video frame by frame, such that after any interruption the next run continues at the next frame.

Frames are encoded in segments of a fixed number of frames. A folder next to the result, `.NAME.partial-video`, contains
the packets of complete segments, and the restored frames of the current segment as passed to the encoder. The next run
uses both, so the result is byte-identical to that of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import partial_prefix
from diffir_sr.files.processes import is_running
from diffir_sr.inference.videos.colours import from_rgb
from diffir_sr.inference.videos.reading import Video, import_av, made_ahead, probe, read_frames, words_of
from diffir_sr.inference.videos.writing import (
    Carried,
    Encoder,
    Encoding,
    Packet,
    choose,
    plan_carried,
    rebased,
    write_video,
)

_SEGMENT_BYTES = 2**28  # of restored frames stored on the disk before they are encoded
_SEGMENT_FRAMES = (24, 240)
_HEAD = struct.Struct("<qqIII")  # time stamp, duration, flags, length of the data, its CRC-32
_KEY, _END = 1, 2  # flags of packets: a key frame, the end of a segment


@dataclass(frozen=True)
class VideoOutcome:
    """The outcome for a video: frames in the result, frames restored by earlier runs, whether it was stopped."""

    frames: int
    resumed: int
    stopped: bool = False


class Unfinished:
    """The folder of an unfinished result."""

    def __init__(self, target: Path, about: Mapping[str, object]) -> None:
        """Continue from an earlier run with the same `about`, or begin.

        Raises InputError if another process is working on the same result.
        """
        self.folder = unfinished_folder(target)
        self.result = self.folder / "result"
        self._packets = self.folder / "packets"
        self._frames = self.folder / "frames"
        self._owner = self.folder / "process"
        self.segments: list[tuple[int, int]] = []  # frames of each complete segment, start of its packets
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take(target)
        known = json.dumps(about, sort_keys=True, default=str)
        note = self.folder / "about.json"
        if not note.exists() or note.read_text(encoding="utf-8") != known:
            for path in (self._packets, self._frames, self.result, note):
                path.unlink(missing_ok=True)
            note.write_text(known, encoding="utf-8")
        self._size = self._read_segments()

    def _take(self, target: Path) -> None:
        owner = self._owner.read_text(encoding="ascii") if self._owner.exists() else ""
        if owner.isdigit() and int(owner) != os.getpid() and is_running(int(owner)):
            raise InputError(f"{target}: process {owner} is restoring it; wait for it, or remove {self.folder}")
        self._owner.write_text(str(os.getpid()), encoding="ascii")

    @property
    def done(self) -> int:
        """Number of frames in complete segments."""
        return sum(frames for frames, _ in self.segments)

    def _read_segments(self) -> int:
        """List the complete segments; returns their end."""
        end, frames = 0, 0
        with contextlib.suppress(FileNotFoundError), self._packets.open("rb") as file:
            start = 0
            for _, _, flags, _ in _records(file):
                if flags & _END:
                    self.segments.append((frames, start))
                    start = end = file.tell()
                    frames = 0
                else:
                    frames += 1
        return end

    def frames(self, layout: list[int]) -> Iterator[tuple[int, int, list[bytes]]]:
        """Restored frames of the current segment from an earlier run: time stamp, duration, planes."""
        end = 0
        with contextlib.suppress(FileNotFoundError), self._frames.open("rb") as file:
            for pts, duration, flags, data in _records(file):
                if flags != len(self.segments) or len(data) != sum(layout):
                    break  # of a segment that is complete by now
                end = file.tell()
                bounds = np.cumsum([0, *layout])
                yield pts, duration, [data[here:there] for here, there in zip(bounds[:-1], bounds[1:], strict=True)]
        if self._frames.exists():
            os.truncate(self._frames, end)

    def keep_frame(self, pts: int, duration: int, planes: list[bytes]) -> None:
        """Add a restored frame to the current segment."""
        data = b"".join(planes)
        with self._frames.open("ab") as file:
            file.write(_HEAD.pack(pts, duration, len(self.segments), len(data), zlib.crc32(data)) + data)

    def close_segment(self, packets: list[Packet]) -> None:
        """Add the packets of a complete segment, whose frames are then no longer needed."""
        with self._packets.open("ab") as file:
            file.truncate(self._size)
            file.seek(self._size)
            for packet in packets:
                head = _HEAD.pack(
                    packet.pts, packet.duration, _KEY * packet.is_key, len(packet.data), zlib.crc32(packet.data)
                )
                file.write(head + packet.data)
            file.write(_HEAD.pack(0, 0, _END, 0, 0))
            file.flush()
            os.fsync(file.fileno())  # before the frames are removed
            self.segments.append((len(packets), self._size))
            self._size = file.tell()
        self._frames.unlink(missing_ok=True)

    def packets(self) -> Iterator[Packet]:
        """All packets of complete segments."""
        with self._packets.open("rb") as file:
            for pts, duration, flags, data in _records(file):
                if not flags & _END:
                    yield Packet(data, pts, duration, bool(flags & _KEY))

    def leave(self) -> None:
        """Keep the finished part for the next run."""
        for path in (self.result, self._owner):
            path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def unfinished_folder(target: Path) -> Path:
    """The folder for the finished part of a result; never longer than file systems allow."""
    return target.with_name(f"{partial_prefix(target.name)}video")


def _records(file: Any) -> Iterator[tuple[int, int, int, bytes]]:
    """Complete records from the current position of the file: time stamp, duration, flags, data."""
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        pts, duration, flags, length, check = _HEAD.unpack(head)
        data = file.read(length)
        if len(data) < length or zlib.crc32(data) != check:
            return
        yield pts, duration, flags, data


def restore_video(
    source: Path,
    target: Path,
    restore: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    scale: int,
    quality: int,
    settings: Mapping[str, object],
    check: Callable[[int, int], None],
    say: Callable[[str], None],
    progress: Callable[[int, int], bool | None],
    finish: Callable[[Path], None],
) -> VideoOutcome:
    """Restore every frame of `source`; `finish(file)` gets the complete file, to be renamed to `target`.

    `restore(frame, first frame)` maps (H, W, 3 or 1) uint8 or uint16. `settings` are all other settings that determine
    the result; a partial result with different settings is not continued. `check(height, width)` may raise.
    `progress(frames done, total frames or 0)` is called after each frame; returning False stops the work, and the next
    call continues there, as after a kill. Raises InputError if a file cannot be read or written, and then removes the
    partial result; after other errors it is kept for the next call.
    """
    video = probe(source)
    check(*video.size)
    encoding, notes = choose(video, target.suffix, scale=scale, quality=quality, where=str(source))
    Encoder(encoding, str(source)).finish()  # unsupported encodings fail before the first frame is restored
    carried = plan_carried(source, encoding)
    notes += (
        [f"{target.suffix[1:]} does not support its {', '.join(carried.left_out)}: left out"]
        if carried.left_out
        else []
    )
    about = {**settings, "encoding": asdict(encoding), "libraries": import_av().library_versions}
    unfinished = Unfinished(target, about)
    for note in notes:
        say(f"{source}: {note}")
    work = _Work(source, video, encoding, unfinished, restore, say=say)
    try:
        count, resumed, stopped = work.run(progress)
        if not stopped:
            _write(source, video, encoding, carried, unfinished)
            finish(unfinished.result)
    except InputError:
        unfinished.forget()
        raise
    except BaseException:  # a full disk, lack of memory, Ctrl-C: resumable
        unfinished.leave()
        raise
    if stopped:
        unfinished.leave()
    else:
        unfinished.forget()
    return VideoOutcome(count, resumed, stopped)


def _write(source: Path, video: Video, encoding: Encoding, carried: Carried, unfinished: Unfinished) -> None:
    av = import_av()
    stamps = np.fromiter((packet.pts for packet in unfinished.packets()), np.int64)
    try:
        with unfinished.result.open("wb") as file:
            write_video(source, file, video, encoding, carried, unfinished.packets(), stamps)
            file.flush()
            os.fsync(file.fileno())
    except av.FFmpegError as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(unfinished.result)) from error
        raise InputError(f"{source}: its result cannot be written ({words_of(error)}); use the suffix .mkv") from error


class _Work:
    """The loop over the frames of a video."""

    def __init__(
        self,
        source: Path,
        video: Video,
        encoding: Encoding,
        unfinished: Unfinished,
        restore: Callable[[np.ndarray, np.ndarray], np.ndarray],
        *,
        say: Callable[[str], None],
    ) -> None:
        self._source, self._video, self._encoding = source, video, encoding
        self._unfinished, self._restore, self._say = unfinished, restore, say
        self._layout = [plane.buffer_size for plane in self._empty_frame().planes]
        least, most = _SEGMENT_FRAMES
        self._per_segment = min(most, max(least, _SEGMENT_BYTES // sum(self._layout)))
        self._encoder: Encoder | None = None
        self._in_segment = 0

    def _empty_frame(self) -> Any:
        height, width = self._encoding.size
        return import_av().VideoFrame(width, height, self._encoding.colours.format)

    def run(self, progress: Callable[[int, int], bool | None]) -> tuple[int, int, bool]:
        """Restore the remaining frames; returns frames done, frames done before, whether it was stopped."""
        done = self._unfinished.done
        for pts, duration, planes in self._unfinished.frames(self._layout):
            frame = self._empty_frame()
            for plane, data in zip(frame.planes, planes, strict=True):
                plane.update(data)
            self._encode(frame, pts, duration)
            done += 1
        resumed = done
        if resumed:
            self._say(f"{self._source}: continues after frame {resumed - 1}, restored by an earlier run")
        frames = read_frames(
            self._source, self._video, wanted=lambda number: number == 0 or number >= resumed, say=self._say
        )
        first, last = None, None
        with ThreadPoolExecutor(1, "video encoder") as pool, contextlib.closing(made_ahead(frames)) as ahead:
            encoded: Future[None] | None = None
            try:
                for frame in ahead:
                    first = frame.rgb if first is None else first
                    pts = rebased(frame.pts, self._video.time_base, self._encoding)
                    last = pts = pts if last is None else max(pts, last + 1)
                    if frame.number < resumed:
                        continue
                    assert frame.rgb is not None
                    assert first is not None
                    made = self._restore(frame.rgb, first)
                    if encoded is not None:
                        encoded.result()
                    duration = rebased(frame.duration, self._video.time_base, self._encoding)
                    encoded = pool.submit(self._keep, made, pts, duration)
                    done += 1
                    if progress(done, self._video.frames) is False:
                        return done, resumed, True
            finally:
                if encoded is not None:
                    encoded.result()
        self._close_segment()
        return done, resumed, False

    def _keep(self, made: np.ndarray, pts: int, duration: int) -> None:
        frame = from_rgb(made, self._encoding.colours)
        self._unfinished.keep_frame(pts, duration, [bytes(plane) for plane in frame.planes])
        self._encode(frame, pts, duration)

    def _encode(self, frame: Any, pts: int, duration: int) -> None:
        if self._encoder is None:
            self._encoder = Encoder(self._encoding, str(self._source))
        self._encoder.add(frame, pts, duration)
        self._in_segment += 1
        if self._in_segment == self._per_segment:
            self._close_segment()

    def _close_segment(self) -> None:
        if self._encoder is not None:
            self._unfinished.close_segment(self._encoder.finish())
            self._encoder, self._in_segment = None, 0
