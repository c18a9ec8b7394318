"""Videos through ffmpeg's pipes: frames in, restored frames out, sound copied, no frame on disk."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from diffir_sr.errors import InputError

logger = logging.getLogger("diffir_sr.inference")
# What ffmpeg says of a file that ends before its container does; its exit code is 0 all the same.
_CUT_SHORT = re.compile(r"ended prematurely|partial file|truncat", re.IGNORECASE)
_LENGTH = rb"%s\s*: (\d+):(\d+):([\d.]+)"
_CODECS = {".webm": ["-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0"]}
_H264 = ["-c:v", "libx264", "-crf", "16", "-preset", "medium"]
_BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]


@dataclass(frozen=True)
class Video:
    """Size of the frames, turned upright, frames per second as ffmpeg writes them, and how many.

    `frames` follows from the stated length (0: unknown); `own_length` tells whether that is the pictures' own, or the
    whole file's, which sound may make longer. `aspect` is the width of a pixel over its height (0/1: unknown).
    """

    height: int
    width: int
    rate: str
    frames: int
    own_length: bool = False
    aspect: str = "0/1"

    @property
    def least_frames(self) -> int:
        """How many frames a whole file has at least; lengths are rounded, and the first frame may start late."""
        return int(self.frames * 0.98) - 2


def find_ffmpeg() -> str:
    """The program ffmpeg, of the system or of the package imageio-ffmpeg; raises InputError where there is none."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    with contextlib.suppress(ImportError, RuntimeError):
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    raise InputError("videos need ffmpeg, which is not there; install it, or: pip install 'diffir_sr[video]'")


def probe(path: Path) -> Video:
    """Size and rate, told by the header of ffmpeg's own simplest format, so that no ffprobe is needed."""
    command = [find_ffmpeg(), "-i", str(path), "-map", "0:v:0", "-frames:v", "1"]
    # That format holds neither RGB nor alpha beside full colours, and only its header is of interest.
    said = _run([*command, "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"])
    head = said.stdout[:200].split(b"\n")[0].decode("ascii", "replace")
    fields = {part[0]: part[1:] for part in head.split()[1:]}
    if not head.startswith("YUV4MPEG2") or not {"W", "H", "F"} <= fields.keys():
        raise InputError(f"{path}: ffmpeg finds no video in it ({_last_line(said.stderr)}); check the file")
    rate = fields["F"].replace(":", "/")
    seconds, own = _length(said.stderr)
    top, _, bottom = rate.partition("/")
    frames = round(seconds * int(top) / int(bottom or 1))
    aspect = fields.get("A", "0:1").replace(":", "/")
    return Video(int(fields["H"]), int(fields["W"]), rate, frames, own_length=own, aspect=aspect)


def _length(said: bytes) -> tuple[float, bool]:
    """Seconds by what ffmpeg says of a file (0: it does not know), and whether they are those of its pictures."""
    about = next((part for part in said.split(b"Stream #") if b": Video:" in part), b"")
    own = re.search(_LENGTH % b"DURATION", about)
    found = own or re.search(_LENGTH % b"Duration", said)
    if not found:
        return 0.0, False
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)), bool(own)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "no message"


def restore_video(
    source: Path, target: Path, video: Video, *, scale: int, restore: Callable[[np.ndarray], np.ndarray]
) -> int:
    """Restore every frame, (H, W, 3) uint8, into the new file `target` with the sound of the old; return how many.

    Raises InputError where ffmpeg fails on either side or the file turns out to be cut short; then, and when
    interrupted, no file stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with _reader(source, video) as frames, _writer(source, target, video, scale=scale) as sink:
            for frame in frames:
                sink(restore(frame))
                count += 1
        _check_count(count, video, source)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return count


def _check_count(count: int, video: Video, source: Path) -> None:
    if not count:
        raise InputError(f"{source}: ffmpeg read no frame; check the file")
    if count < video.least_frames:
        said = f"{source}: {count} frames read, about {video.frames} expected by the length that the file states"
        if video.own_length:
            raise InputError(f"{said}; it seems to be cut short, get it whole")
        logger.warning("%s; its sound may be longer than its pictures, or it is cut short.", said)


@contextlib.contextmanager
def _process(
    command: list[str], where: str, *, stdin: int, stdout: int, whole: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is ended when the block ends; its failure is an InputError with its own last words.

    With `whole` a file that it finds cut short is a failure, too.
    """
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would fill and block it
        # A session of its own: Ctrl-C is the parent's affair.
        with subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=errors, start_new_session=True) as child:
            try:
                yield child
            except BrokenPipeError:
                child.wait()
            except BaseException:
                child.kill()
                raise
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            code = child.wait()
        errors.seek(0)
        words = errors.read()
        if code:
            raise InputError(f"{where}: ffmpeg failed ({_last_line(words)})")
        if whole and (found := _CUT_SHORT.search(words.decode(errors="replace"))):
            raise InputError(f"{where}: the file is cut short (ffmpeg: {found.group()}); get it whole")


@contextlib.contextmanager
def _reader(source: Path, video: Video) -> Iterator[Iterator[np.ndarray]]:
    command = [find_ffmpeg(), "-v", "error", "-xerror", "-i", str(source), "-map", "0:v:0", "-r", video.rate]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with _process(command, str(source), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, whole=True) as child:
        assert child.stdout is not None
        yield _frames(child.stdout, video, source)


def _frames(pipe: IO[bytes], video: Video, source: Path) -> Iterator[np.ndarray]:
    size = video.height * video.width * 3
    while data := pipe.read(size):
        if len(data) < size:
            raise InputError(f"{source}: ffmpeg stopped in the middle of a frame; the file may be cut short")
        yield np.frombuffer(data, np.uint8).reshape(video.height, video.width, 3)


@contextlib.contextmanager
def _writer(source: Path, target: Path, video: Video, *, scale: int) -> Iterator[Callable[[np.ndarray], None]]:
    width, height = video.width * scale, video.height * scale
    layout = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
    command = [find_ffmpeg(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", video.rate, "-i", "-", "-i", str(source), "-map", "0:v", "-map", "1:a?", "-map_metadata", "1"]
    command += _CODECS.get(target.suffix.lower(), _H264)
    command += ["-vf", f"scale=out_color_matrix=bt709,setsar={video.aspect}", "-pix_fmt", layout, *_BT709]
    same_container = source.suffix.lower() == target.suffix.lower()
    command += [*(["-c:a", "copy"] if same_container else []), str(target)]
    with _process(command, str(target), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        pipe = child.stdin
        assert pipe is not None

        def write(frame: np.ndarray) -> None:
            if frame.shape != (height, width, 3):
                raise InputError(f"{source}: a frame of another size, {frame.shape[0]}x{frame.shape[1]}")
            pipe.write(frame.tobytes())

        yield write
