"""Videos by `diffir restore` and `Restorer`: every frame once with its time, colours, tracks, damage, going on."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import film, pieces, said_of, shown, times, tracks, write_small
from pictures import photo

from diffir_sr import load_restorer
from diffir_sr.cli import main
from diffir_sr.errors import InputError
from diffir_sr.inference.videos.writing import Scheduling

LOSSLESS = ("--quality", "100")


def restore(*words, weights=None):
    return main(["restore", *words, "-w", weights or write_small("net.safetensors")])


def files(folder):
    found = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "restored.jsonl")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def psnr(one, other):
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


# Frames


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_without_loss_every_frame_is_what_the_picture_of_it_becomes(scale):
    weights = write_small("net.safetensors", scale=scale)
    film("in.mkv", codec="ffv1", form="bgr0")
    assert restore("in.mkv", "-o", "out", *LOSSLESS, weights=weights) == 0
    alone = load_restorer(weights)(pieces(8))
    made = shown("out/in.mkv")
    assert len(made) == 8
    for one, other in zip(made, alone, strict=True):
        assert np.array_equal(one, other)
    assert files("out") == ["in.mkv"]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "mkv", "webm", "avi", "ts", "m2ts", "flv", "3gp"])
def test_every_container_gives_the_frames_within_the_codecs_loss(capsys, suffix):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    film(f"in.{suffix}", 12, codec=codec, time_base=Fraction(1, 10), rate=10, options={"b": "2000000"})
    weights = write_small("net.safetensors", scale=2)
    assert restore(f"in.{suffix}", "-o", "out", weights=weights) == 0, capsys.readouterr().err
    assert "left out" not in capsys.readouterr().err
    before, after = times(f"in.{suffix}"), times(f"out/in.{suffix}")
    assert len(after) == 12
    assert before == after
    for one, other in zip(shown(f"out/in.{suffix}"), load_restorer(weights)(shown(f"in.{suffix}")), strict=True):
        assert psnr(one, other) > 30


def test_containers_that_are_not_written_become_matroska(capsys):
    film("in.wmv", codec="wmv2")
    Path("folder").mkdir()
    Path("in.wmv").rename("folder/in.wmv")
    assert restore("folder", "-o", "out") == 0
    assert files("out") == ["in.wmv.mkv"]
    assert restore("folder", "-o", "out.wmv") == 1
    assert "-o out.wmv: cannot write wmv; use one of the suffixes .mp4" in capsys.readouterr().err
    assert len(shown("out/in.wmv.mkv")) == 8


# Time


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "mov"])
@pytest.mark.parametrize(("start", "form"), [(0, "yuv420p"), (2503, "yuv420p"), (7, "yuv420p10le")])
def test_a_variable_frame_rate_stays_variable_and_the_start_stays(suffix, start, form):
    """As a browser's recorder writes it: a clock of 1000 ticks a second, frames when there are some."""
    stamps = [start + tick for tick in (0, 46, 75, 104, 133, 134, 500, 529, 1700)]
    codec = ("libvpx-vp9" if form == "yuv420p" else "libsvtav1") if suffix == "webm" else "libx264"
    film(
        f"in.{suffix}",
        9,
        size=(64, 96),
        codec=codec,
        form=form,
        stamps=stamps,
        rate=100 if codec == "libsvtav1" else 1000,
    )
    assert restore(f"in.{suffix}", "-o", "out") == 0
    assert times(f"out/in.{suffix}") == times(f"in.{suffix}") == [Fraction(stamp, 1000) for stamp in stamps]


def test_frames_that_are_reordered_keep_their_times_over_segments(monkeypatch):
    """B-frames in the source and in the result, whose segments are shortened to 5 frames."""
    monkeypatch.setattr("diffir_sr.inference.videos.restoring._SEGMENT_FRAMES", (5, 5))
    stamps = [0, 40, 80, 110, 150, 151, 300, 340, 380, 420, 460, 900, 940]
    film("in.mp4", 13, stamps=stamps, options={"bf": "3", "b-pyramid": "normal", "b-adapt": "0"})
    assert restore("in.mp4", "-o", "out") == 0
    assert times("out/in.mp4") == [Fraction(stamp, 1000) for stamp in stamps]
    for one, other in zip(shown("out/in.mp4"), load_restorer("net.safetensors")(shown("in.mp4")), strict=True):
        assert psnr(one, other) > 30


def test_times_before_zero_and_an_edit_list_that_hides_frames():
    """A file cut without encoding it anew: three frames before its start are decoded, and not shown."""
    film("whole.mp4", 12, time_base=Fraction(1, 10), options={"g": "12", "bf": "0"})
    with av.open("whole.mp4") as source, av.open("in.mp4", "w", container_options={"avoid_negative_ts": "0"}) as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = (value - 3 * packet.duration for value in (packet.pts, packet.dts))
                packet.stream = copy
                output.mux_one(packet)
    assert restore("in.mp4", "-o", "out") == 0
    before = times("in.mp4")
    assert len(before) == 9
    assert times("out/in.mp4") == before
    for one, other in zip(shown("out/in.mp4"), load_restorer("net.safetensors")(shown("in.mp4")), strict=True):
        assert psnr(one, other) > 30


def test_two_frames_of_one_time_come_one_tick_apart(capsys):
    film("whole.mkv", 4, codec="ffv1", form="bgr0", stamps=[0, 50, 100, 150])
    with av.open("whole.mkv") as source, av.open("in.mkv", "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = 50 if packet.pts == 100 else packet.pts
                packet.stream = copy
                output.mux_one(packet)
    assert [float(second) for second in times("in.mkv")] == [0, 0.05, 0.05, 0.15]
    assert restore("in.mkv", "-o", "out") == 0
    assert [float(second) for second in times("out/in.mkv")] == [0, 0.05, 0.051, 0.15]
    assert "1 of its 4 frames have the time stamp of another" in capsys.readouterr().err


# Size


@pytest.mark.parametrize("degrees", [90, 180, 270, 45])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_videos_come_out_upright(capsys, degrees, mirrored):
    def turn(stream):
        stream.set_display_rotation(degrees, hflip=mirrored)
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    film("in.mp4", 2, set_up=turn, options={"crf": "4"})
    assert restore("in.mp4", "-o", "out") == 0
    if degrees == 45:
        assert "its rotation, not a multiple of 90 degrees, is left out" in capsys.readouterr().err
        return
    found = said_of("out/in.mp4")
    sideways = degrees != 180
    assert found["rotation"] == 0
    assert found["size"] == ((48, 32) if sideways else (32, 48))
    assert found["aspect"] == (Fraction(3, 4) if sideways else Fraction(4, 3))
    stored = shown("in.mp4")[0]
    # FFmpeg's own words: a counter-clockwise turn, and a mirror after it.
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    expected = load_restorer("net.safetensors")(np.ascontiguousarray(upright))
    assert psnr(shown("out/in.mp4")[0], expected) > 35


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_an_odd_size_stays_odd(capsys, suffix):
    codec, form = ("libvpx-vp9", "yuv420p") if suffix == "webm" else ("ffv1", "yuv420p")
    film(f"in.{suffix}", 3, size=(31, 45), codec=codec, form=form)
    assert restore(f"in.{suffix}", "-o", "out") == 0
    found = said_of(f"out/in.{suffix}")
    assert found["size"] == (31, 45)
    assert found["form"] == ("yuv420p" if suffix == "webm" else "yuv444p")
    assert ("odd size" in capsys.readouterr().err) == (suffix == "mkv")
    weights = write_small("x2.safetensors", scale=2)
    assert restore(f"in.{suffix}", "-o", "out2", weights=weights) == 0
    assert said_of(f"out2/in.{suffix}")["size"] == (62, 90)
    assert said_of(f"out2/in.{suffix}")["form"] == "yuv420p"


def test_pixels_that_are_not_square_stay_so():
    film("in.mkv", 2, set_up=lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(16, 11)))
    assert restore("in.mkv", "-o", "out") == 0
    assert said_of("out/in.mkv")["aspect"] == Fraction(16, 11)


# Tracks


def sine(rate=48000, seconds=0.8):
    """Sound of given length, as frames of 1024 samples."""
    for start in range(0, int(rate * seconds), 1024):
        wave = np.sin(np.arange(start, start + 1024) / 20)[None].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2, axis=0), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def sound(output, codec, language, title=None, *, disposition=0):
    track = output.add_stream(codec, rate=48000)
    track.metadata.update({"language": language} | ({"title": title} if title else {}))
    track.disposition = disposition
    frames = list(sine())
    if codec == "libopus":
        frames = [resampled for frame in frames for resampled in av.AudioResampler("s16", "stereo").resample(frame)]
    packets = [packet for frame in frames for packet in track.encode(frame)]
    return track, [*packets, *track.encode()]


def words(output, codec, language, texts):
    """A subtitle track: (milliseconds, length, text) each."""
    track = output.add_stream(codec)
    track.metadata["language"] = language
    track.codec_context.subtitle_header = ASS_HEADER
    packets = []
    for start, length, text in texts:
        packet = av.Packet(text)
        packet.pts = packet.dts = start
        packet.duration, packet.time_base = length, Fraction(1, 1000)
        packets.append(packet)
    return track, packets


ASS_HEADER = b"""[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r
Format: Name, Fontname, Fontsize\r\nStyle: Default,Some Font,20\r\n\r\n[Events]\r
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"""
CHAPTERS = [
    {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "Where it begins"}},
    {"id": 2, "start": 400, "end": 800, "time_base": Fraction(1, 1000), "metadata": {"title": "Ende"}},
]


def chapters(file):
    with av.open(str(file)) as container:
        return [
            (one["start"] * one["time_base"], one["end"] * one["time_base"], one["metadata"]["title"])
            for one in container.chapters()
        ]


def metadata(file):
    with av.open(str(file)) as container:
        dispositions = [int(stream.disposition) for stream in container.streams]
        return {name.lower(): value for name, value in container.metadata.items()}, dispositions


def test_matroska_with_everything(capsys):
    font = bytes(range(256)) * 8

    def others(output):
        output.metadata.update({"title": "A film", "comment": "made for a test"})
        output.set_chapters(CHAPTERS)
        line = b"0,0,Default,,0,0,0,,Words in {\\i1}style"
        further = [
            sound(output, "aac", "eng"),
            sound(output, "libopus", "deu", "Kommentar", disposition=8),
            sound(output, "flac", "fra"),
            words(output, "subrip", "eng", [(100, 300, b"Words"), (500, 200, b"More")]),
            words(output, "ass", "ger", [(150, 300, line)]),
        ]
        output.add_attachment("some.ttf", "font/ttf", font)
        return further

    film("in.mkv", 8, others=others)
    assert restore("in.mkv", "-o", "out") == 0
    assert "left out" not in capsys.readouterr().err
    assert tracks("out/in.mkv") == tracks("in.mkv")
    held, _ = tracks("out/in.mkv")
    assert [kind for kind, *_ in held] == ["video", "audio", "audio", "audio", "subtitle", "subtitle", "attachment"]
    assert ("audio", "opus", "deu", "Kommentar") in held
    half, whole = Fraction(2, 5), Fraction(4, 5)
    assert chapters("out/in.mkv") == chapters("in.mkv") == [(0, half, "Where it begins"), (half, whole, "Ende")]
    about, dispositions = metadata("out/in.mkv")
    assert (about["title"], about["comment"]) == ("A film", "made for a test")
    assert dispositions == metadata("in.mkv")[1]
    with av.open("out/in.mkv") as container:
        assert container.streams[6].data == font
        assert container.streams[5].codec_context.extradata.strip() == ASS_HEADER.strip()
    assert times("out/in.mkv") == times("in.mkv")


def test_mp4_with_three_sounds_text_and_chapters(capsys):
    def others(output):
        output.metadata.update({"title": "A film", "creation_time": "2020-02-03T04:05:06.000000Z"})
        output.set_chapters(CHAPTERS)
        return [
            sound(output, "aac", "eng"),
            sound(output, "aac", "deu"),
            sound(output, "ac3", "fra"),
            words(output, "mov_text", "eng", [(100, 300, b"\x00\x05Words"), (500, 200, b"\x00\x04More")]),
        ]

    film("in.mp4", 8, others=others)
    assert restore("in.mp4", "-o", "out") == 0
    assert "left out" not in capsys.readouterr().err
    before, after = tracks("in.mp4"), tracks("out/in.mp4")
    assert after[0] == before[0]
    assert after[1] == before[1]
    assert chapters("out/in.mp4") == chapters("in.mp4")
    about, dispositions = metadata("out/in.mp4")
    assert (about["title"], about["creation_time"]) == ("A film", "2020-02-03T04:05:06.000000Z")
    assert dispositions == metadata("in.mp4")[1]
    assert times("out/in.mp4") == times("in.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("start", [0, 700])
def test_sound_and_pictures_stay_in_time(suffix, start):
    def others(output):
        track, packets = sound(output, "aac", "eng")
        for packet in packets:
            packet.pts, packet.dts = packet.pts + 48 * start, packet.dts + 48 * start
        return [(track, packets)]

    film(f"in.{suffix}", 8, stamps=[1000 + 100 * number for number in range(8)], others=others)
    assert restore(f"in.{suffix}", "-o", "out") == 0
    (_, before), (_, after) = tracks(f"in.{suffix}"), tracks(f"out/in.{suffix}")
    assert after == before
    assert times(f"out/in.{suffix}") == times(f"in.{suffix}")


def test_what_a_container_does_not_hold_is_named(capsys):
    def others(output):
        output.set_chapters(CHAPTERS)
        further = [sound(output, "aac", "eng", "Main"), words(output, "subrip", "fra", [(100, 300, b"Mots")])]
        output.add_attachment("some.ttf", "font/ttf", b"a font")
        return further

    film("in.mkv", 4, others=others)
    assert restore("in.mkv", "-o", "out.webm") == 0
    printed = capsys.readouterr().err
    assert "webm does not support its sound track 1 (aac, eng, Main), subtitle track 2 (" in printed
    assert "attachment track 3 (" in printed
    assert [kind for kind, *_ in tracks("out.webm")[0]] == ["video"]
    assert chapters("out.webm") == chapters("in.mkv")
    assert restore("in.mkv", "-o", "out.avi") == 0
    assert "2 chapters: left out" in capsys.readouterr().err
    assert [kind for kind, *_ in tracks("out.avi")[0]] == ["video", "audio"]


def test_timecode_and_cover_stay_and_further_pictures_are_named(capsys):
    def second(output):
        track = output.add_stream("libx264", rate=10, width=32, height=32)
        frames = [av.VideoFrame.from_ndarray(piece, "rgb24") for piece in pieces(2, 32, 32)]
        packets = []
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += track.encode(frame)
        return [(track, [*packets, *track.encode()])]

    film("two.mkv", 4, others=second)
    assert restore("two.mkv", "-o", "out") == 0
    assert "mkv does not support its further video track 1 (h264" in capsys.readouterr().err
    film("in.mov", 4, set_up=lambda stream: stream.metadata.update({"timecode": "01:02:03:04"}))
    assert restore("in.mov", "-o", "out") == 0
    assert "left out" not in capsys.readouterr().err
    with av.open("out/in.mov") as container:
        assert [stream.metadata.get("timecode") for stream in container.streams] == ["01:02:03:4"] * 2  # 10 a second


# Files that are none, or not whole


def test_files_without_a_video_are_reported_in_a_sentence(capsys):
    Path("in").mkdir()
    Path("in/empty.mp4").write_bytes(b"")
    Path("in/text.mp4").write_bytes(b"no video")
    with av.open("in/sound.mkv", "w") as output:
        track, packets = sound(output, "aac", "eng")
        output.mux(packets)
    film("in/whole.mkv", 1)
    assert restore("in", "-o", "out") == 1
    printed = capsys.readouterr()
    assert "in/empty.mp4: is empty (0 bytes); get the file again" in printed.err
    assert "in/text.mp4: contains no video (moov atom not found); check the file" in printed.err
    assert "in/sound.mkv: contains no video track, only audio; leave it out" in printed.err
    assert "1 restored, 3 failed" in printed.out
    assert files("out") == ["whole.mkv"]
    assert len(shown("out/whole.mkv")) == 1


def test_sound_with_a_cover_is_no_video_and_a_videos_cover_stays(capsys):
    picture = av.VideoFrame.from_ndarray(photo(32, 32), "rgb24")

    def cover(output):
        track = output.add_stream("png", rate=1, width=32, height=32, pix_fmt="rgb24")
        track.disposition = 1024
        picture.pts = 0
        return [(track, [*track.encode(picture), *track.encode()])]

    with av.open("song.mp4", "w") as output:
        track, packets = sound(output, "aac", "eng")
        ((image, pictures),) = cover(output)
        for packet in pictures:
            packet.stream = image
            output.mux_one(packet)
        output.mux(packets)
    assert restore("song.mp4", "-o", "out") == 1
    assert "song.mp4: contains no video track, only audio, video" in capsys.readouterr().err
    film("in.mp4", 4, others=cover)
    for name in ("out/in.mp4", "out/in.mkv"):
        assert restore("in.mp4", "-o", name) == 0
        assert "left out" not in capsys.readouterr().err
        with av.open(name) as container:
            held = container.streams[1]
            assert held.type == "attachment" or int(held.disposition) & 1024
    assert len(shown("out/in.mkv")) == 4


@pytest.mark.parametrize(
    ("file", "codec"),
    [
        ("cut.mkv", "libx264"),
        ("cut.webm", "libvpx-vp9"),
        ("cut.mp4", "libx264"),
        ("cut.avi", "mpeg4"),
    ],
)
def test_a_video_that_ends_early_though_its_start_reads_well_is_refused(capsys, file, codec):
    film(
        file, 60, codec=codec, options={"g": "10"}, container={"movflags": "faststart"} if file.endswith("4") else None
    )
    whole = Path(file).read_bytes()
    Path("in").mkdir()
    Path("in", file).write_bytes(whole[: len(whole) * 2 // 3])
    assert restore("in", "-o", "out") == 1
    output = capsys.readouterr()
    assert f"in/{file}: " in output.err
    assert "is truncated" in output.err or "is damaged" in output.err or "cannot be decoded" in output.err
    assert "Traceback" not in output.err
    assert "0 restored, 1 failed" in output.out
    assert not files("out")


def test_a_damaged_frame_is_named_and_nothing_half_written_stays(capsys):
    film("in.mkv", 40, options={"g": "40", "bf": "0"})
    with av.open("in.mkv") as container:
        sizes = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(Path("in.mkv").read_bytes())
    place, size = sizes[25]
    data[place + size // 2 : place + size] = bytes(size - size // 2)
    Path("bad.mkv").write_bytes(data)
    assert restore("bad.mkv", "-o", "out") == 1
    output = capsys.readouterr().err
    assert "bad.mkv: frame 2" in output
    assert "cannot be decoded (" in output or "is damaged" in output
    assert "get the file again" in output
    assert not files("out")


def test_another_size_in_the_middle_is_reported_with_its_frame(capsys):
    for size in (32, 40):
        film(f"{size}.h264", 5, size=(size, 48), options={"bf": "0"})
    Path("joined.h264").write_bytes(Path("32.h264").read_bytes() + Path("40.h264").read_bytes())
    with av.open("joined.h264") as source, av.open("in.ts", "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.pts = packet.dts = number * 3600
            packet.time_base = Fraction(1, 90000)
            packet.stream = copy
            output.mux_one(packet)
    assert restore("in.ts", "-o", "out") == 1
    assert "in.ts: frame 5 has another size, 40x48 instead of 32x48; split the video there" in capsys.readouterr().err
    assert not files("out")


def test_without_pyav_a_video_says_what_to_install(monkeypatch, capsys):
    film("in.mkv", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    assert restore("in.mkv", "-o", "out") == 1
    assert "videos need PyAV, which is not installed; pip install 'diffir_sr[video]'" in capsys.readouterr().err
    assert not files("out")


def test_an_encoder_that_is_not_built_in_is_reported(monkeypatch, capsys):
    film("in.mkv", 2)
    made = av.codec.Codec

    def codec(name, mode):
        return made("libx264_that_is_not" if name == "libx264" else name, mode)

    monkeypatch.setattr(av.codec, "Codec", codec)
    assert restore("in.mkv", "-o", "out") == 1
    assert "in.mkv: this PyAV was built without the encoder libx264; use its wheels" in capsys.readouterr().err


def test_a_network_that_fills_holes_and_samples_take_no_video(capsys):
    film("in.mkv", 2)
    assert restore("in.mkv", "-o", "out", "--samples", "3") == 1
    assert "in.mkv: a video is restored once, without a mask, into a file" in capsys.readouterr().err


# Going on


def start(*words):
    """The command in a process of its own, forked so that torch is not imported again."""

    def run():
        with Path("says.txt").open("a") as file:
            sys.stderr = sys.stdout = file
            code = main(["restore", *words])
        os._exit(code)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def slow(monkeypatch, seconds):
    """Let each frame take a while, so that a signal meets a run at work."""
    from diffir_sr.inference.restorer import Restorer

    run = Restorer.run

    def slower(self, lq, noise):
        time.sleep(seconds)
        return run(self, lq, noise)

    monkeypatch.setattr(Restorer, "run", slower)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("mp4", "libx264"), ("webm", "libvpx-vp9")])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_at_its_next_frame_to_the_same_bytes(monkeypatch, capsys, suffix, codec, number):
    monkeypatch.setattr("diffir_sr.inference.videos.restoring._SEGMENT_FRAMES", (7, 7))
    weights = write_small("net.safetensors", scale=2)
    film(f"in.{suffix}", 30, codec=codec, others=lambda output: [sound(output, "libopus", "eng")])
    with monkeypatch.context() as patch:
        slow(patch, 0.03)
        for least in (3, 17):
            child = start(f"in.{suffix}", "-o", "out", "-w", weights)
            frames = Path(f"out/.in.{suffix}.partial-video")
            while not restored(frames) >= least:
                assert child.is_alive()
                time.sleep(0.005)
            os.kill(child.pid, number)
            child.join()
            assert child.exitcode == (130 if number == signal.SIGINT else -9)
            assert not Path(f"out/in.{suffix}").exists()
            done = restored(frames)
    assert "Traceback" not in Path("says.txt").read_text()
    if number == signal.SIGKILL:  # what it was writing at that moment
        for path in frames.iterdir():
            if path.name in ("frames", "packets"):
                path.write_bytes(path.read_bytes() + b"half a record")
    capsys.readouterr()
    assert restore(f"in.{suffix}", "-o", "out", weights=weights) == 0
    assert f"continues after frame {done - 1}, restored by an earlier run" in capsys.readouterr().err
    assert restore(f"in.{suffix}", "-o", "straight", weights=weights) == 0
    assert Path(f"out/in.{suffix}").read_bytes() == Path(f"straight/in.{suffix}").read_bytes()
    assert files("out") == files("straight") == [f"in.{suffix}"]
    assert times(f"out/in.{suffix}") == times(f"in.{suffix}")


def restored(folder):
    """How many frames a run at work has put away, told by the sizes of its records."""
    count = segments = 0
    for name in ("packets", "frames"):
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        while len(data) >= 28:
            flags, length = np.frombuffer(data[16:24], "<u4")
            whole = len(data) >= 28 + length
            if name == "packets":
                segments += bool(flags & 2)
                count += not flags & 2
            else:  # those of a segment whose packets are all there may not be removed yet
                count += bool(whole and flags == segments)
            data = data[28 + length :]
    return count


def test_python_restores_a_video_with_progress_that_can_stop_it(caplog):
    film("in.mkv", 12)
    restorer = load_restorer(write_small("net.safetensors"))
    calls = []

    def stop_after_five(done, total):
        calls.append((done, total))
        return done < 5

    outcome = restorer.video("in.mkv", "made/out.mp4", progress=stop_after_five)
    assert (outcome.frames, outcome.stopped) == (5, True)
    assert calls == [(number, 12) for number in range(1, 6)]
    assert not Path("made/out.mp4").exists()
    outcome = restorer.video("in.mkv", "made/out.mp4")
    assert (outcome.frames, outcome.resumed, outcome.stopped) == (12, 5, False)
    assert "continues after frame 4, restored by an earlier run" in caplog.text
    assert times("made/out.mp4") == times("in.mkv")
    assert files("made") == ["out.mp4"]
    with pytest.raises(InputError, match=r"made/out\.mp4 exists and is not overwritten"):
        restorer.video("in.mkv", "made/out.mp4")
    restorer.video("in.mkv", "made/out.mp4", overwrite=True)
    with pytest.raises(InputError, match=r"out\.wmv: cannot write wmv"):
        restorer.video("in.mkv", "out.wmv")


def test_files_with_progress_stop_within_a_video():
    film("in/a.mkv".replace("in/", ""), 6)
    restorer = load_restorer(write_small("net.safetensors"))
    calls = []

    def stop(done, total, file):
        calls.append((done, total, file.name))
        return len(calls) < 4

    outcome = restorer.files(["a.mkv"], "out", progress=stop)
    assert (outcome.restored, outcome.stopped) == (0, True)
    assert calls == [(0, 1, "a.mkv")] * 4
    outcome = restorer.files(["a.mkv"], "out")
    assert (outcome.restored, outcome.stopped) == (1, False)
    assert restorer.files(["a.mkv"], "out").kept == 1


def test_what_other_weights_or_another_source_left_is_not_gone_on_with(capsys):
    film("in.mkv", 8)
    restorer = load_restorer(write_small("net.safetensors"))
    restorer.video("in.mkv", "out/in.mkv", progress=lambda done, total: done < 5)
    assert restore("in.mkv", "-o", "out", *LOSSLESS, weights=write_small("other.safetensors", change=False)) == 0
    assert "goes on" not in capsys.readouterr().err
    assert restore("in.mkv", "-o", "fresh", *LOSSLESS, weights="other.safetensors") == 0
    assert np.array_equal(shown("out/in.mkv"), shown("fresh/in.mkv"))


def test_two_processes_do_not_restore_one_video(monkeypatch, capsys):
    film("in.mkv", 20)
    weights = write_small("net.safetensors")
    with monkeypatch.context() as patch:
        slow(patch, 0.05)
        child = start("in.mkv", "-o", "out", "-w", weights)
    while not restored(Path("out/.in.mkv.partial-video")):
        assert child.is_alive()
        time.sleep(0.005)
    assert restore("in.mkv", "-o", "out", weights=weights) == 1
    assert f"out/in.mkv: process {child.pid} is restoring it; wait for it" in capsys.readouterr().err
    child.join()
    assert child.exitcode == 0
    assert restore("in.mkv", "-o", "out", weights=weights) == 0
    assert "0 restored, 1 kept" in capsys.readouterr().out


@pytest.mark.parametrize("write", ["frames", "result"])
def test_a_full_disk_ends_the_run_in_words_and_the_next_goes_on(monkeypatch, capsys, write):
    film("in.mkv", 8)
    real, calls = Path.open, []

    def full(self, mode="r", *arguments, **named):
        if self.name == write and mode != "rb":
            calls.append(self)
            if len(calls) > 4 or write == "result":
                raise OSError(28, "No space left on device", str(self))
        return real(self, mode, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        assert restore("in.mkv", "-o", "out") == 1
    output = capsys.readouterr().err
    assert (
        "out/in.mkv: No space left on device; 0 restored so far; free disk space and run the same command again"
        in output
    )
    assert "Traceback" not in output
    assert not Path("out/in.mkv").exists()
    assert restore("in.mkv", "-o", "out") == 0
    assert "continues after frame" in capsys.readouterr().err
    assert files("out") == ["in.mkv"]


def test_a_long_name_is_restored():
    name = "n" * 240 + ".mkv"
    film(name, 2)
    assert restore(name, "-o", "out") == 0
    assert files("out") == [name]


def test_an_encoder_leaves_the_scheduling_of_threads_alone():
    """SVT-AV1 makes them real-time threads as root; the policy for batches, which anybody may set, stands in for it."""
    stop, numbers = threading.Event(), []

    def wait():
        numbers.append(threading.get_native_id())
        stop.wait()

    scheduling = Scheduling()
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    thread = threading.Thread(target=wait)
    thread.start()
    while not numbers:
        time.sleep(0.01)
    assert os.sched_getscheduler(numbers[0]) == os.SCHED_BATCH
    scheduling.restore()
    assert {os.sched_getscheduler(number) for number in (0, numbers[0])} == {os.SCHED_OTHER}
    stop.set()
    thread.join()
    film("in.webm", 2, size=(64, 64), codec="libsvtav1", form="yuv420p10le", rate=100)
    assert restore("in.webm", "-o", "out") == 0
    policies = {os.sched_getscheduler(int(number)) for number in os.listdir("/proc/self/task")}
    assert policies == {os.SCHED_OTHER}
