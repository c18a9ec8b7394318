"""Reading videos with PyAV: the properties of a file, and every frame once, upright, with its time stamp."""

from __future__ import annotations

import contextlib
import queue
import re
import struct
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.inference.videos.colours import Colours, colours_of, to_rgb

Item = TypeVar("Item")
# Messages of libavformat for a truncated file, which is otherwise read to a regular end.
_CUT_SHORT = re.compile(r"ended prematurely|partial file|truncat", re.IGNORECASE)
_MOST_FRAMES_PER_SECOND = 480  # higher stated rates are clock ticks, as written by browsers
# Metadata of frames that is not passed to the encoder, by PyAV's names.
_FRAME_DATA = {
    "A53_CC": "closed captions",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "STEREO3D": "stereoscopic metadata",
    "SPHERICAL": "spherical metadata",
    "ICC_PROFILE": "the colour profile",
}


@dataclass(frozen=True)
class Video:
    """Properties from the first frame and the header; sizes are those of stored frames, before `turn` is applied.

    `turn` is (quarter turns counter-clockwise, whether mirrored horizontally before), or None for other angles.
    `frames` is the number of frames, `aspect` the pixel aspect ratio of stored frames (width / height). `mastering` and
    `light` are ffmpeg's structures of HDR metadata.
    """

    index: int
    height: int
    width: int
    colours: Colours
    time_base: Fraction
    rate: Fraction | None
    frames: int
    aspect: Fraction | None
    turn: tuple[int, bool] | None
    interlaced: bool
    mastering: tuple[int, ...] | None
    light: tuple[int, ...] | None
    frame_data: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of upright frames."""
        return (self.width, self.height) if self.turn and self.turn[0] % 2 else (self.height, self.width)

    @property
    def upright_aspect(self) -> Fraction | None:
        """The pixel aspect ratio (width / height) of upright frames."""
        return 1 / self.aspect if self.aspect and self.turn and self.turn[0] % 2 else self.aspect


@dataclass(frozen=True)
class Frame:
    """One frame: its number, time stamp and duration in units of the time base of the video (0: unknown).

    `rgb` (H, W, 3), or (H, W, 1) grey, upright, uint8 or uint16; None if it was not requested.
    """

    number: int
    pts: int
    duration: int
    rgb: np.ndarray | None


def import_av() -> ModuleType:
    """The module PyAV; raises InputError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError("videos need PyAV, which is not installed; pip install 'diffir_sr[video]'") from error
    return av


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[Any]:
    """A container for reading; raises InputError if the file has none."""
    av = import_av()
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty (0 bytes); get the file again")
    try:
        with log_of_this_thread():  # for error messages
            # An absolute path, since a name such as http:a.mp4 would be treated as an address.
            container = av.open(str(path.absolute()), metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(f"{path}: contains no video ({words_of(error)}); check the file") from error
    with container:
        yield container


def words_of(error: Any) -> str:
    """The message of libav about an error, in one line."""
    text = error.log[2].strip() if error.log and len(error.log) > 2 else ""
    return (text or str(error.strerror or error)).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def log_of_this_thread() -> Iterator[list[tuple[int, str, str]]]:
    """Collects libav's messages of level error in this thread."""
    av = import_av()
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as log:
            yield log
    finally:
        av.logging.set_level(before)


def main_stream(container: Any, path: Path) -> Any:
    """The video track to restore: the first one that is not a cover picture."""
    covers = import_av().stream.Disposition.attached_pic
    tracks = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not tracks:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{path}: contains no video track, only {held}; leave it out")
    if tracks[0].codec_context is None:
        raise InputError(
            f"{path}: this PyAV has no decoder for its video track; pip install -U av, or convert the file"
        )
    return tracks[0]


def probe(path: Path) -> Video:
    """Properties of a video, from header, first frame and packets; raises InputError for unsupported videos."""
    with open_container(path) as container:
        stream = main_stream(container, path)
        with contextlib.closing(_decoded(container, stream, path, [])) as frames:
            frame = next(frames, None)
        if frame is None:
            raise InputError(f"{path}: contains no frames; check the file")
        data = {one.type.name: bytes(one) for one in frame.side_data}
        colours = colours_of(frame, str(path))
        return Video(
            index=stream.index,
            height=frame.height,
            width=frame.width,
            colours=replace(colours, alpha=colours.alpha or stream.metadata.get("alpha_mode") == "1"),
            time_base=stream.time_base,
            rate=_rate(stream),
            frames=_count_whole(path),
            aspect=_aspect(stream),
            turn=_turn(_integers(data.get("DISPLAYMATRIX"), 9)),
            interlaced=frame.interlaced_frame,
            mastering=_integers(data.get("MASTERING_DISPLAY_METADATA"), 22),
            light=_integers(data.get("CONTENT_LIGHT_LEVEL"), 2),
            frame_data=tuple(dict.fromkeys(word for name, word in _FRAME_DATA.items() if name in data)),
        )


def _count_whole(path: Path) -> int:
    """Number of packets to show, one per frame for most codecs; raises InputError for a truncated file.

    Nothing is decoded, so this is known before the first frame is restored.
    """
    with log_of_this_thread() as log, open_container(path) as container:
        stream = main_stream(container, path)
        stated = len(stream.index_entries) if "mp4" in container.format.name else round(stream.frames * 0.98) - 2
        read, shown, end = 0, 0, 0
        try:
            for packet in container.demux(stream):
                read += packet.size > 0
                shown += packet.size > 0 and not packet.is_discard
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
        except import_av().FFmpegError as error:
            raise InputError(
                f"{path}: cannot be read after frame {read} ({words_of(error)}); get the complete file"
            ) from error
        words = next((found.group() for _, _, text in log if (found := _CUT_SHORT.search(text))), None)
        if words:
            raise InputError(f"{path}: is truncated after frame {read} ({words}); get the complete file")
        if read < stated:
            raise InputError(
                f"{path}: {read} frames found, but the file states {stated}; it is truncated, get the complete file"
            )
        found_s, stated_s = float(end * stream.time_base), _stated_seconds(stream)
        if found_s < stated_s * 0.98 - 1:
            lengths = f"{found_s:.1f} s found, but the file states {stated_s:.1f} s"
            raise InputError(f"{path}: {lengths}; it is truncated, get the complete file")
        return shown


def _integers(data: bytes | None, count: int) -> tuple[int, ...] | None:
    return None if data is None or len(data) < 4 * count else struct.unpack(f"={count}i", data[: 4 * count])


def _aspect(stream: Any) -> Fraction | None:
    found = stream.sample_aspect_ratio
    return found if found else None  # 0 stands for unknown


def _rate(stream: Any) -> Fraction | None:
    stated = (stream.average_rate, stream.guessed_rate)
    return next((rate for rate in stated if rate and 0 < rate <= _MOST_FRAMES_PER_SECOND), None)


def _stated_seconds(stream: Any) -> float:
    """The stated duration of the video track, 0 if there is none."""
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if found:
        return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    return 0.0


def _turn(matrix: tuple[int, ...] | None) -> tuple[int, bool] | None:
    """The quarter turns (and mirroring before them) of a display matrix; None for other transformations.

    The matrix maps stored to displayed positions as (x, y) -> (a x + c y, b x + d y) with y downwards, in units of
    2^-16.
    """
    if matrix is None:
        return 0, False
    a, b, c, d = (round(matrix[place] / 65536) if matrix[place] % 65536 == 0 else 2 for place in (0, 1, 3, 4))
    turns = {(1, 0, 0, 1): (0, False), (0, -1, 1, 0): (1, False), (-1, 0, 0, -1): (2, False), (0, 1, -1, 0): (3, False)}
    turns |= {(-1, 0, 0, 1): (0, True), (0, 1, 1, 0): (1, True), (1, 0, 0, -1): (2, True), (0, -1, -1, 0): (3, True)}
    return turns.get((a, b, c, d))


def _decoded(container: Any, stream: Any, path: Path, packets: list[int | None]) -> Generator[Any, None, None]:
    """All displayed frames; raises InputError at the first damaged one.

    The decoding time of every packet read is appended to `packets`.
    """
    av = import_av()
    context = stream.codec_context
    # A single decoding thread, so that messages arrive in this thread and errors are reported with their frame.
    context.thread_count = 1
    context.options = {"err_detect": "explode"}
    number = 0
    try:
        with log_of_this_thread():  # otherwise its errors would have no message
            for packet in container.demux(stream):
                if packet.size:
                    packets.append(packet.dts)
                damaged = packet.is_corrupt
                for frame in packet.decode():
                    if damaged or frame.is_corrupt:
                        raise InputError(f"{_place(path, number, frame.time)} is damaged; get the file again")
                    yield frame
                    number += 1
                if damaged:
                    raise InputError(f"{_place(path, number, None)} is damaged; get the file again")
    except av.FFmpegError as error:
        fault = f"cannot be decoded ({words_of(error)})"
        raise InputError(f"{_place(path, number, None)} {fault}; get the file again") from error


def _place(path: Path, number: int, seconds: float | None) -> str:
    return f"{path}: frame {number}" + ("" if seconds is None else f" ({seconds:.3f} s)")


def read_frames(
    path: Path, video: Video, *, wanted: Callable[[int], bool], say: Callable[[str], None]
) -> Generator[Frame, None, None]:
    """All frames in display order; only those `wanted` by their number are converted.

    Raises InputError for damaged frames, changes of size, and time stamps that jump back.
    """
    last, length, moved, number = None, 0, 0, 0
    packets: list[int | None] = []
    has_stamps = False
    with open_container(path) as container:
        stream = main_stream(container, path)
        for number, frame in enumerate(_decoded(container, stream, path, packets), start=1):
            if (frame.height, frame.width) != (video.height, video.width):
                size = f"{frame.height}x{frame.width} instead of {video.height}x{video.width}"
                raise InputError(f"{path}: frame {number - 1} has another size, {size}; split the video there")
            pts = frame.pts
            has_stamps = has_stamps or pts is not None
            if pts is None and not has_stamps:  # a container with decoding times only
                pts = packets[number - 1] if number <= len(packets) else None
            if last is not None:
                pts = last + max(length, 1) if pts is None else pts
                if pts <= last:
                    if (last - pts) * video.time_base > 1:
                        raise InputError(f"{path}: time stamps jump back at frame {number - 1}; rewrite its container")
                    pts, moved = last + 1, moved + 1
            pts = 0 if pts is None else pts
            last, length = pts, frame.duration or length
            rgb = _upright(to_rgb(frame, video.colours), video.turn) if wanted(number - 1) else None
            yield Frame(number - 1, pts, frame.duration, rgb)
    if moved:
        say(f"{path}: {moved} of its {number} frames have the time stamp of another; they come one tick later")


def _upright(rgb: np.ndarray, turn: tuple[int, bool] | None) -> np.ndarray:
    if turn in (None, (0, False)):
        return rgb
    assert turn is not None
    return np.ascontiguousarray(np.rot90(rgb[:, ::-1] if turn[1] else rgb, turn[0]))


def made_ahead(items: Generator[Item, None, None], count: int = 2) -> Generator[Item, None, None]:
    """The same items, produced by a separate thread, at most `count` ahead of the consumer."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(count)
    stopped = threading.Event()

    def put(entry: tuple[str, Any]) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                made.put(entry, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(("item", item))
                if stopped.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # raised again in the consumer
            put(("error", error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="video frames", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = made.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        stopped.set()
        thread.join()
