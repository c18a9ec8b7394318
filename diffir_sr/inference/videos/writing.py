"""Writing videos: encoders, and streams and metadata copied from the source."""

from __future__ import annotations

import contextlib
import heapq
import io
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffir_sr.errors import InputError
from diffir_sr.inference.videos.colours import FULL, LIMITED, TRANSFERS, Colours
from diffir_sr.inference.videos.reading import Video, import_av, main_stream, open_container, words_of

# Output containers by suffix, with libavformat's names; videos in other containers become .mkv.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
CONTAINERS |= {".ts": "mpegts", ".mts": "mpegts", ".m2ts": "mpegts", ".flv": "flv", ".3gp": "3gp"}
_HOLDS_HEVC = ("mp4", "mov", "matroska", "mpegts")
_LEAST_HEVC = 64  # pixels per side; below, x265 corrupts memory at 10 and 12 bits and crashes
# Codecs that a transport stream can store such that they are recognised.
_IN_TRANSPORT = ("mp2", "mp3", "aac", "ac3", "eac3", "dts", "truehd", "opus", "dvb_subtitle", "dvb_teletext")
# The output of H.264 depends on the number of threads, so it is fixed.
_THREADS = 4
# Rewritten by the muxer, or only valid for the packets of the source.
_NOT_CARRIED = ("encoder", "duration", "number_of_frames", "number_of_bytes", "bps", "major_brand", "minor_version")
_NOT_CARRIED += ("compatible_brands", "vendor_id", "alpha_mode")


@dataclass(frozen=True)
class Encoding:
    """All parameters of the encoded video track: `size` is (height, width), `aspect` the pixel aspect ratio.

    `rate` is frames per second, 0 if variable.
    """

    container: str
    codec: str
    colours: Colours
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None
    options: dict[str, str]


@dataclass(frozen=True)
class Packet:
    """Encoded data of one frame; `pts` and `duration` are in units of the time base of the encoding."""

    data: bytes
    pts: int
    duration: int
    is_key: bool


@dataclass
class Carried:
    """The tracks of the source to copy, by index, and descriptions of those left out."""

    tracks: list[int] = field(default_factory=list)
    covers: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


# Encoders


def choose(video: Video, suffix: str, *, scale: int, quality: int, where: str) -> tuple[Encoding, list[str]]:
    """The encoding of restored frames, and notes for the user.

    H.264 up to 8 bits and HEVC above, if the container supports it; VP9 and AV1 in WebM. Bit depth, chroma, range and
    colour description are kept. Raises InputError if this PyAV lacks the encoder.
    """
    container = CONTAINERS[suffix.lower()]
    height, width = (side * scale for side in video.size)
    hevc = container in _HOLDS_HEVC and min(height, width) >= _LEAST_HEVC
    odd = bool(height % 2 or width % 2)
    colours, notes = _colours_written(video, container, hevc=hevc, odd=odd, lossless=quality == 100)
    codec = _codec(container, colours, hevc=hevc)
    _check_encoder(codec, where)
    time_base = video.time_base
    rate = video.rate or Fraction(0)
    if codec == "libsvtav1":
        rate = min(video.rate or Fraction(30), Fraction(240))  # others are refused; it only affects rate control
    if container == "avi" and video.rate:
        time_base = 1 / rate  # AVI has only a frame rate, no time stamps
    encoding = Encoding(
        container,
        codec,
        colours,
        (height, width),
        time_base,
        rate,
        video.upright_aspect,
        _options(codec, colours, video, quality, container),
    )
    return encoding, notes + _notes(video, encoding)


def _colours_written(
    video: Video, container: str, *, hevc: bool, odd: bool, lossless: bool
) -> tuple[Colours, list[str]]:
    found, notes = video.colours, []
    bits = 8 if found.bits <= 8 else 10 if found.bits <= 10 else 12
    bits = bits if hevc else min(bits, 10)
    if bits < found.bits:
        notes.append(f"its {found.bits} bits per sample become {bits}")
    if found.kind == "rgb":
        if lossless and container in ("matroska", "mp4", "mov", "avi") and (bits == 8 or hevc):
            form = "rgb24" if bits == 8 else f"gbrp{bits}le"
            return replace(found, format=form, bits=bits, alpha=False, matrix=0), notes
        notes.append("its RGB becomes Y'CbCr 4:4:4 of BT.709")
        found = replace(found, kind="yuv", matrix=1, full=False, primaries=found.primaries, transfer=found.transfer)
    chroma = (1, 1) if found.kind == "grey" else found.chroma
    if container == "webm" and bits > 8 and chroma != (1, 1):
        chroma = (1, 1)
        notes.append("its chroma becomes 4:2:0, the only format of WebM's encoder above 8 bits")
    if chroma not in ((0, 0), (1, 0), (1, 1)):
        chroma = (1, 0) if chroma[1] == 0 else (0, 0) if chroma[0] == 0 else (1, 1)
    if odd and chroma != (0, 0) and container != "webm":
        chroma = (0, 0)
        notes.append("its odd size requires full-resolution chroma (4:4:4), which few players decode in hardware")
    name = {(0, 0): "yuv444p", (1, 0): "yuv422p", (1, 1): "yuv420p"}[chroma]
    form = name if bits == 8 else f"{name}{bits}le"
    return replace(found, format=form, kind="yuv", bits=bits, chroma=chroma, alpha=False), notes


def _codec(container: str, colours: Colours, *, hevc: bool) -> str:
    if container == "webm":
        return "libvpx-vp9" if colours.bits <= 8 else "libsvtav1"
    if colours.bits > 8 and hevc:
        return "libx265"
    return "libx264rgb" if colours.format == "rgb24" else "libx264"


def _check_encoder(codec: str, where: str) -> None:
    av = import_av()
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise InputError(
            f"{where}: this PyAV was built without the encoder {codec}; use its wheels, which include it: pip install "
            "--force-reinstall --only-binary av av"
        ) from error


def _options(codec: str, colours: Colours, video: Video, quality: int, container: str) -> dict[str, str]:
    """Constant quality: CRF 16 (VP9: 20) at quality 95, lossless at 100."""
    if codec == "libvpx-vp9":
        loss = {"lossless": "1"} if quality == 100 else {"crf": str(round(20 + (95 - quality) * 0.45)), "b": "0"}
        return {**loss, "row-mt": "1", "tile-columns": "2", "cpu-used": "2"}
    if codec == "libsvtav1":
        params = [f"lp={_THREADS}", *_hdr_parameters(video, "mastering-display", "content-light", units=(1, 1))]
        loss = {"crf": str(round(18 + (95 - quality) * 0.45))}
        params += ["lossless=1"] if quality == 100 else []
        return {**loss, "preset": "5", "svtav1-params": ":".join(params)}
    crf = str(round(16 + (95 - quality) * 0.35))
    if codec == "libx265":
        params = ["log-level=error", "frame-threads=2", *_hdr_parameters(video, "master-display", "max-cll")]
        params += ["lossless=1"] if quality == 100 else []
        return {"crf": crf, "x265-params": ":".join(params)}
    options = {"qp": "0"} if quality == 100 else {"crf": crf}
    options |= {"mbtree": "0"}  # mbtree reads uninitialised memory, so its output varies between runs
    options |= {"bf": "0"} if container == "avi" else {}
    params = _hdr_parameters(video, "mastering-display", "cll")
    return options | ({"x264-params": ":".join(params)} if params else {})


def _hdr_parameters(video: Video, mastering: str, light: str, *, units: tuple[int, int] = (50000, 10000)) -> list[str]:
    """Mastering display (SMPTE ST 2086) and content light levels in the format of encoders.

    `units` are the integer values for chromaticity 1 and for one candela per square metre.
    """
    found = []
    if video.mastering and video.mastering[20] and video.mastering[21]:
        numbers = video.mastering
        ratios = [Fraction(numbers[place], numbers[place + 1] or 1) for place in range(0, 20, 2)]
        scales = [units[0]] * 8 + [units[1]] * 2
        scaled = [float(value * unit) for value, unit in zip(ratios, scales, strict=True)]
        parts = [f"{value:.6f}".rstrip("0").rstrip(".") for value in scaled]
        red, green, blue, white = (f"({parts[place]},{parts[place + 1]})" for place in range(0, 8, 2))
        lowest, highest = parts[8:]
        found.append(f"{mastering}=G{green}B{blue}R{red}WP{white}L({highest},{lowest})")
    if video.light:
        found.append(f"{light}={video.light[0]},{video.light[1]}")
    return found


def _notes(video: Video, encoding: Encoding) -> list[str]:
    notes = []
    if video.interlaced:
        notes.append(
            "is interlaced: its two fields are restored as one frame and written as progressive; deinterlace it first"
        )
    if video.colours.alpha:
        notes.append("its transparency is left out")
    if video.colours.transfer in TRANSFERS:
        name = TRANSFERS[video.colours.transfer]
        notes.append(
            f"is HDR: its {name} values are restored as they are, although the network was trained on SDR images"
        )
    if (video.mastering or video.light) and encoding.codec == "libvpx-vp9":
        notes.append("its HDR metadata (mastering display, light levels) is left out")
    if video.frame_data:
        notes.append(f"left out of its frames: {', '.join(video.frame_data)}")
    if video.turn is None:
        notes.append("its rotation, not a multiple of 90 degrees, is left out")
    if encoding.container == "avi" and video.rate is None:
        notes.append("AVI has no variable frame rate; use the suffix .mkv to keep the time stamps")
    return notes


def _set_up(context: Any, encoding: Encoding) -> None:
    colours = encoding.colours
    context.height, context.width = encoding.size
    context.pix_fmt = colours.format
    context.time_base, context.framerate = encoding.time_base, encoding.rate
    if encoding.aspect:
        context.sample_aspect_ratio = encoding.aspect
    context.colorspace = colours.matrix
    context.color_range = FULL if colours.full else LIMITED
    context.color_primaries, context.color_trc = colours.primaries, colours.transfer
    context.thread_count = _THREADS
    context.options = dict(encoding.options)
    if encoding.codec == "libx265" and encoding.container in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # required by Apple's players


class Scheduling:
    """How the threads of an encoder are to be scheduled: as the thread that makes it.

    SVT-AV1 gives that thread and its own the highest real-time priority where it may, as root, some of them a while
    after it was opened. They would never give the processor to another process, the calling thread not even after the
    encoder is closed, and later threads inherit it.
    """

    _TASKS = Path("/proc/self/task")  # of Linux, which alone has this

    def __init__(self) -> None:
        self._before: set[str] = set()
        if self._TASKS.is_dir():
            self._policy, self._parameters = os.sched_getscheduler(0), os.sched_getparam(0)
            self._before = set(os.listdir(self._TASKS)) - {str(threading.get_native_id()), str(os.getpid())}

    def restore(self) -> None:
        """Schedule the main thread, this one, and those that began since, as this one was."""
        for number in set(os.listdir(self._TASKS)) - self._before if self._TASKS.is_dir() else ():
            with contextlib.suppress(OSError):  # it has ended
                if os.sched_getscheduler(int(number)) != self._policy:
                    os.sched_setscheduler(int(number), self._policy, self._parameters)


class Encoder:
    """Encodes one segment, independent of the previous and the next one."""

    def __init__(self, encoding: Encoding, where: str) -> None:
        av = import_av()
        self._where = where
        self._durations: dict[int, int] = {}
        self._packets: list[Packet] = []
        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints to the terminal otherwise
        self._context = av.CodecContext.create(encoding.codec, "w")
        _set_up(self._context, encoding)
        self._time_base = encoding.time_base
        if av.format.ContainerFormat(encoding.container, "w").flags & av.format.Flags.global_header.value:
            self._context.flags |= av.codec.context.Flags.global_header
        self._scheduling = Scheduling()
        try:
            self._context.open()
        except av.FFmpegError as error:
            height, width = encoding.size
            raise InputError(
                f"{where}: {encoding.codec} does not encode {width}x{height} {encoding.colours.format} "
                f"({words_of(error)}); choose another container or a smaller video"
            ) from error
        finally:
            self._scheduling.restore()

    def add(self, frame: Any, pts: int, duration: int) -> None:
        """Encode a frame, with increasing time stamps in units of the time base of the encoding."""
        self._durations[pts] = duration
        frame.pts, frame.time_base = pts, self._time_base
        self._keep(frame)

    def finish(self) -> list[Packet]:
        """All packets of the segment, in decoding order."""
        self._keep(None)
        return self._packets

    def _keep(self, frame: Any) -> None:
        av = import_av()
        try:
            for packet in self._context.encode(frame):
                duration = self._durations.pop(packet.pts, 0)
                self._packets.append(Packet(bytes(packet), packet.pts, duration, packet.is_keyframe))
        except av.FFmpegError as error:
            raise InputError(f"{self._where}: encoding failed ({words_of(error)})") from error
        finally:
            self._scheduling.restore()


# Other tracks


def plan_carried(path: Path, encoding: Encoding) -> Carried:
    """The tracks of the source that the container of the result supports."""
    av = import_av()
    carried = Carried()
    with open_container(path) as container:
        main = main_stream(container, path)
        for stream in container.streams:
            if stream.index == main.index or _made_anew(stream, container, encoding):
                continue
            if stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic:
                (carried.covers if encoding.container == "matroska" else carried.tracks).append(stream.index)
                if encoding.container not in ("matroska", "mp4", "mov"):
                    carried.tracks.pop()
                    carried.left_out.append(_in_words(stream, "cover picture"))
            elif stream.type == "video":
                carried.left_out.append(_in_words(stream, "further video track"))
            elif _can_hold(encoding, stream, container.format.name):
                carried.tracks.append(stream.index)
            else:
                carried.left_out.append(_in_words(stream))
        if container.chapters() and encoding.container not in ("matroska", "webm", "mp4", "mov"):
            carried.left_out.append(f"{len(container.chapters())} chapters")
    return carried


def _made_anew(stream: Any, container: Any, encoding: Encoding) -> bool:
    """Whether the muxer writes such a track itself: chapter titles, and timecode from the metadata of the video."""
    if stream.type != "data" or encoding.container not in ("mp4", "mov"):
        return False
    return "timecode" in stream.metadata or (stream.name == "bin_data" and bool(container.chapters()))


def _in_words(stream: Any, kind: str | None = None) -> str:
    kind = kind or {"audio": "sound track", "subtitle": "subtitle track"}.get(stream.type, f"{stream.type} track")
    about = [_codec_name(stream), stream.language, stream.metadata.get("title") or stream.metadata.get("filename")]
    details = ", ".join(part for part in about if part)
    return f"{kind} {stream.index}" + (f" ({details})" if details else "")


def _codec_name(stream: Any) -> str | None:
    context = stream.codec_context
    return context.name if context is not None else getattr(stream, "name", None)


def _can_hold(encoding: Encoding, stream: Any, source_format: str) -> bool:
    """Whether a container supports a track, tried with a file in memory that contains only this track."""
    av = import_av()
    if stream.type == "attachment":
        return encoding.container == "matroska"  # others drop it silently
    if encoding.container == "mpegts" != source_format and _codec_name(stream) not in _IN_TRANSPORT:
        return False  # it would accept any, as unreadable data
    try:
        with av.open(io.BytesIO(), "w", format=encoding.container) as trial:
            _add_copy(trial, stream)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def _add_copy(output: Any, stream: Any) -> Any:
    copy = output.add_stream_from_template(stream, opaque=True)
    copy.disposition = stream.disposition
    copy.metadata.update(_carried_metadata(stream.metadata))
    return copy


def _carried_metadata(given: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in given.items() if name.lower() not in _NOT_CARRIED}
    return {name: value for name, value in kept.items() if not name.startswith("_STATISTICS")}


# The file


def write_video(
    source: Path,
    file: IO[bytes],
    video: Video,
    encoding: Encoding,
    carried: Carried,
    packets: Iterable[Packet],
    stamps: np.ndarray,
) -> None:
    """Mux encoded frames with the streams copied from `source`.

    `stamps` are the time stamps of all packets in decoding order.
    """
    av = import_av()
    options = {"mpegts_m2ts_mode": "1"} if source.suffix.lower() == ".m2ts" and encoding.container == "mpegts" else {}
    with open_container(source) as container:
        if any(name.startswith("com.") for name in container.metadata) and encoding.container in ("mp4", "mov"):
            options["movflags"] = "use_metadata_tags"
        with av.open(file, "w", format=encoding.container, container_options=options) as output:
            output.flags |= av.container.Flags.bitexact.value  # no random numbers, no versions
            output.metadata.update(_carried_metadata(container.metadata))
            pictures, copies = _add_tracks(output, container, video, encoding, carried)
            for number in carried.covers:
                _add_cover(output, source, number)
            if container.chapters():
                output.set_chapters(container.chapters())
            scheduling = Scheduling()
            output.start_encoding()  # opens an encoder, of which the headers alone are needed
            scheduling.restore()
            timed = _timed(packets, stamps, pictures, encoding)
            others = _copied(container, copies)
            for _, _, packet in heapq.merge(timed, others, key=lambda entry: entry[:2]):
                output.mux_one(packet)


def _add_tracks(
    output: Any, container: Any, video: Video, encoding: Encoding, carried: Carried
) -> tuple[Any, dict[int, Any]]:
    """The tracks of the result in the order of the source."""
    copies, pictures = {}, None
    for stream in container.streams:
        if stream.index == video.index:
            pictures = output.add_stream(encoding.codec, rate=encoding.rate)
            _set_up(pictures.codec_context, encoding)
            pictures.time_base = encoding.time_base
            pictures.metadata.update(_carried_metadata(stream.metadata))
            pictures.disposition = stream.disposition
        elif stream.index in carried.tracks:
            copies[stream.index] = _add_copy(output, stream)
    return pictures, copies


def _add_cover(output: Any, source: Path, number: int) -> None:
    """A cover picture as an attachment, as usual in Matroska."""
    with open_container(source) as container:
        stream = container.streams[number]
        picture = next((bytes(packet) for packet in container.demux(stream) if packet.size), b"")
        suffix, kind = {"png": (".png", "image/png")}.get(_codec_name(stream) or "", (".jpg", "image/jpeg"))
        name = stream.metadata.get("filename", f"cover{suffix}")
        output.add_attachment(name, stream.metadata.get("mimetype", kind), picture)


Entry = tuple[float, int, Any]  # seconds of decoding, track, packet


def _timed(packets: Iterable[Packet], stamps: np.ndarray, stream: Any, encoding: Encoding) -> Iterator[Entry]:
    """Packets with decoding times: the sorted time stamps, shifted by the number of reordered frames."""
    av = import_av()
    order = np.sort(stamps)
    delay = int(max(np.arange(len(stamps)) - np.searchsorted(order, stamps))) if len(stamps) else 0
    step = max(1, int(order[1] - order[0])) if len(order) > 1 else 1
    for number, given in enumerate(packets):
        packet = av.Packet(given.data)
        packet.stream, packet.time_base = stream, encoding.time_base
        packet.pts, packet.duration, packet.is_keyframe = given.pts, given.duration, given.is_key
        packet.dts = int(order[number - delay]) if number >= delay else int(order[0]) - (delay - number) * step
        yield float(packet.dts * encoding.time_base), -1, packet


def _copied(container: Any, copies: dict[int, Any]) -> Iterator[Entry]:
    if not copies:
        return
    last: dict[int, int] = {}
    for packet in container.demux(*(container.streams[number] for number in copies)):
        if packet.dts is None and not packet.size:
            continue  # the end-of-stream marker for decoders
        number = packet.stream.index
        if packet.dts is None:
            packet.dts = packet.pts = last.get(number, -1) + 1 if packet.pts is None else packet.pts
        if number in last and packet.dts <= last[number]:
            packet.dts = last[number] + 1
            packet.pts = None if packet.pts is None else max(packet.pts, packet.dts)
        last[number] = packet.dts
        seconds = float(packet.dts * packet.time_base)
        packet.stream = copies[number]
        yield seconds, number, packet


def rebased(pts: int, time_base: Fraction, encoding: Encoding) -> int:
    """A time stamp in units of the time base of the encoding."""
    return pts if time_base == encoding.time_base else round(pts * time_base / encoding.time_base)
