"""Videos read through PyAV: what a file holds, and every frame once, upright, with its own time stamp."""

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
# What libavformat says of a file that ends before its container does; reading goes on to a regular end all the same.
_CUT_SHORT = re.compile(r"ended prematurely|partial file|truncat", re.IGNORECASE)
_MOST_FRAMES_PER_SECOND = 480  # beyond it a stated rate is the tick of a clock, as browsers write it
# Metadata of frames that a new encoder does not take over, by the names of PyAV.
_FRAME_DATA = {
    "A53_CC": "closed captions",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "STEREO3D": "the mark of stereoscopic frames",
    "SPHERICAL": "the mark of a spherical picture",
    "ICC_PROFILE": "the colour profile",
}


@dataclass(frozen=True)
class Video:
    """What the first frame and the header say; sizes are those of stored frames, before `turn` makes them upright.

    `turn` is (quarter turns counter-clockwise, mirrored left to right before them), or None where the frames are turned
    by another angle. `frames` is how many there are, `aspect` the width of a stored pixel over its height. `mastering`
    and `light` are ffmpeg's structures of HDR metadata.
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
        """The width of a pixel of upright frames over its height."""
        return 1 / self.aspect if self.aspect and self.turn and self.turn[0] % 2 else self.aspect


@dataclass(frozen=True)
class Frame:
    """One frame: its number, time stamp and duration in units of the video's time base (0: unknown).

    `rgb` (H, W, 3), or (H, W, 1) grey, upright, uint8 or uint16; None where it was not asked for.
    """

    number: int
    pts: int
    duration: int
    rgb: np.ndarray | None


def import_av() -> ModuleType:
    """PyAV; raises InputError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError("videos need PyAV, which is not installed; pip install 'diffir_sr[video]'") from error
    return av


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A container for reading; raises InputError where there is none in the file."""
    av = import_av()
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty (0 bytes); get the file again")
    try:
        with log_of_this_thread():  # for the words of an error
            # An absolute path, or a name such as http:a.mp4 would be taken for an address.
            container = av.open(str(path.absolute()), metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(f"{path}: no video is found in it ({words_of(error)}); check the file") from error
    with container:
        yield container


def words_of(error: Any) -> str:
    """What libav says of an error, in one line."""
    said = error.log[2].strip() if error.log and len(error.log) > 2 else ""
    return (said or str(error.strerror or error)).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def log_of_this_thread() -> Iterator[list[tuple[int, str, str]]]:
    """What libav says at level error in this thread meanwhile."""
    av = import_av()
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as said:
            yield said
    finally:
        av.logging.set_level(before)


def main_stream(container: Any, path: Path) -> Any:
    """The video track that is restored: the first that is no cover picture."""
    covers = import_av().stream.Disposition.attached_pic
    tracks = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not tracks:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{path}: no video track is found in it, only {held}; leave it out")
    if tracks[0].codec_context is None:
        raise InputError(
            f"{path}: this PyAV has no decoder for its video track; pip install -U av, or convert the file"
        )
    return tracks[0]


def probe(path: Path) -> Video:
    """What a video is, by its header, its first frame and its packets; raises InputError for what is not restored."""
    with opened(path) as container:
        stream = main_stream(container, path)
        with contextlib.closing(_decoded(container, stream, path, [])) as frames:
            frame = next(frames, None)
        if frame is None:
            raise InputError(f"{path}: no frame is in it; check the file")
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
    """How many packets are to be shown, one a frame with most codecs; raises InputError for a file that is cut short.

    Nothing is decoded, so that this is known before the first frame is restored.
    """
    with log_of_this_thread() as said, opened(path) as container:
        stream = main_stream(container, path)
        stated = len(stream.index_entries) if "mp4" in container.format.name else round(stream.frames * 0.98) - 2
        read, shown, end = 0, 0, 0
        try:
            for packet in container.demux(stream):
                read += packet.size > 0
                shown += packet.size > 0 and not packet.is_discard
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
        except import_av().FFmpegError as error:
            raise InputError(f"{path}: cannot be read after frame {read} ({words_of(error)}); get it whole") from error
        words = next((found.group() for _, _, text in said if (found := _CUT_SHORT.search(text))), None)
        if words:
            raise InputError(f"{path}: is cut short after frame {read} ({words}); get it whole")
        if read < stated:
            raise InputError(f"{path}: {read} frames found, {stated} stated by the file; it is cut short, get it whole")
        found_s, stated_s = float(end * stream.time_base), _stated_seconds(stream)
        if found_s < stated_s * 0.98 - 1:
            lengths = f"{found_s:.1f} s found, {stated_s:.1f} s stated by the file"
            raise InputError(f"{path}: {lengths}; it is cut short, get it whole")
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
    """The length that the file states of its pictures, 0 where it states none."""
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if found:
        return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
    return 0.0


def _turn(matrix: tuple[int, ...] | None) -> tuple[int, bool] | None:
    """The quarter turns (and mirroring before them) that a display matrix stands for; None: it is another turn.

    The matrix maps stored to shown places as (x, y) -> (a x + c y, b x + d y) with y downwards, in units of 2^-16.
    """
    if matrix is None:
        return 0, False
    a, b, c, d = (round(matrix[place] / 65536) if matrix[place] % 65536 == 0 else 2 for place in (0, 1, 3, 4))
    turns = {(1, 0, 0, 1): (0, False), (0, -1, 1, 0): (1, False), (-1, 0, 0, -1): (2, False), (0, 1, -1, 0): (3, False)}
    turns |= {(-1, 0, 0, 1): (0, True), (0, 1, 1, 0): (1, True), (1, 0, 0, -1): (2, True), (0, -1, -1, 0): (3, True)}
    return turns.get((a, b, c, d))


def _decoded(container: Any, stream: Any, path: Path, packets: list[int | None]) -> Generator[Any, None, None]:
    """Every frame that is to be shown; raises InputError at the first that the decoder finds damaged.

    The decoding time of every packet read is added to `packets`.
    """
    av = import_av()
    context = stream.codec_context
    # What it says must come from this thread, and errors be told with the frame at which they are.
    context.thread_count = 1
    context.options = {"err_detect": "explode"}
    number = 0
    try:
        with log_of_this_thread():  # or its errors would have no words
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
        said = f"cannot be decoded ({words_of(error)})"
        raise InputError(f"{_place(path, number, None)} {said}; get the file again") from error


def _place(path: Path, number: int, seconds: float | None) -> str:
    return f"{path}: frame {number}" + ("" if seconds is None else f" ({seconds:.3f} s)")


def read_frames(
    path: Path, video: Video, *, wanted: Callable[[int], bool], say: Callable[[str], None]
) -> Generator[Frame, None, None]:
    """All frames in the order of showing; only those `wanted` by their number are converted.

    Raises InputError for a damaged frame, another size in the middle, and time stamps that jump back.
    """
    last, length, moved, number = None, 0, 0, 0
    packets: list[int | None] = []
    has_stamps = False
    with opened(path) as container:
        stream = main_stream(container, path)
        for number, frame in enumerate(_decoded(container, stream, path, packets), start=1):
            if (frame.height, frame.width) != (video.height, video.width):
                size = f"{frame.height}x{frame.width} instead of {video.height}x{video.width}"
                raise InputError(f"{path}: frame {number - 1} has another size, {size}; cut the video there")
            pts = frame.pts
            has_stamps = has_stamps or pts is not None
            if pts is None and not has_stamps:  # a container that has times of decoding alone
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
    """The same items, made by a thread of its own, at most `count` ahead of the one that takes them."""
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
        except BaseException as error:  # told where the items are taken
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
