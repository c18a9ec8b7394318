"""Colours of restored videos: depth, matrix, range, chroma and HDR, in the file's description and in the values."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import film, pieces, said_of, write_small

from diffir_sr.cli import main

# Kr and Kb of ITU-T H.273 table 4, by matrix number.
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def restore(*words, change=False, scale=1):
    return main(["restore", *words, "-w", write_small("net.safetensors", change=change, scale=scale)])


def codes_of(rgb, bits, matrix, full):
    """YCbCr code values (3, H, W) of RGB in [0, 1], H.273 equations 20 to 58, written down once more."""
    kr, kb = WEIGHTS[matrix]
    y = rgb @ np.array([kr, 1 - kr - kb, kb])
    cb, cr = (rgb[..., 2] - y) / (2 - 2 * kb), (rgb[..., 0] - y) / (2 - 2 * kr)
    if full:
        scaled = [y * (2**bits - 1), cb * (2**bits - 1) + 2 ** (bits - 1), cr * (2**bits - 1) + 2 ** (bits - 1)]
    else:
        unit = 2 ** (bits - 8)
        scaled = [unit * (219 * y + 16), unit * (224 * cb + 128), unit * (224 * cr + 128)]
    return np.rint(np.clip(scaled, 0, 2**bits - 1))


def frame_of(codes, form, bits):
    """A frame whose planes hold given code values."""
    height, width = codes[0].shape
    frame = av.VideoFrame(width, height, form)
    kind = np.dtype(np.uint8 if bits == 8 else "<u2")
    for plane, values in zip(frame.planes, codes, strict=True):
        padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // kind.itemsize), kind)
        padded[: plane.height, : plane.width] = values[: plane.height, : plane.width]
        plane.update(padded.tobytes())
    return frame


def codes_in(file):
    """The code values of the first frame's planes."""
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        kind = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else "<u2")
        return [
            np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)[: plane.height, : plane.width]
            for plane in frame.planes
        ]


def described(matrix, full, primaries=2, transfer=2):
    def set_up(stream):
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        context.color_primaries, context.color_trc = primaries, transfer

    return set_up


@pytest.mark.parametrize("matrix", sorted(WEIGHTS))
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_the_network_sees_the_colours_that_the_file_means(monkeypatch, bits, full, matrix):
    """The network's input against the equations of the standard; its output is what came in, so are the codes."""
    rgb = np.random.default_rng(bits + matrix).random((64, 96, 3))
    rgb[0], rgb[1], rgb[2] = 0, 1, 0.5
    codes = codes_of(rgb, bits, matrix, full)
    form = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
    frames = [frame_of(codes, form, bits)]
    film("in.mkv", codec="ffv1", size=(64, 96), form=form, set_up=described(matrix, full), frames=frames)
    seen = []
    from diffir_sr.inference.restorer import Restorer

    run = Restorer.run

    def watched(self, lq, noise):
        seen.append(lq[0].permute(1, 2, 0).numpy())
        return run(self, lq, noise)

    monkeypatch.setattr(Restorer, "run", watched)
    assert restore("in.mkv", "-o", "out", "--quality", "100") == 0
    # Rounded codes, and for 8 bits rounded RGB, is all that may differ: a chroma code weighs up to 2 * (1 - kb).
    assert np.abs(seen[0] - rgb).max() < 2.2 / (2**bits - 1) * (1 if full else 256 / 219)
    assert np.abs(seen[0][1] - 1).max() < 1e-3
    found = said_of("out/in.mkv")
    assert (found["form"].replace("j", ""), found["full"]) == (form, full)
    assert found["matrix"] == matrix
    for made, given in zip(codes_in("out/in.mkv"), codes, strict=True):
        assert np.abs(made.astype(int) - given).max() <= 1


@pytest.mark.parametrize(
    "form", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv422p12le", "gray10le"]
)
def test_depth_and_chroma_stay(form):
    bits = 8 if form.endswith("p") else int(form[-4:-2])
    codes = codes_of(np.full((64, 96, 3), (0.8, 0.4, 0.2)), bits, 1, False)
    codes = codes[:1] if form.startswith("gray") else codes
    frames = [frame_of(codes, form, bits)]
    film("in.mkv", codec="ffv1", size=(64, 96), form=form, set_up=described(1, False, 1, 1), frames=frames)
    assert restore("in.mkv", "-o", "out", "--quality", "100", scale=2) == 0
    found = said_of("out/in.mkv")
    assert found["form"] == form.replace("gray", "yuv420p")
    assert found["size"] == (128, 192)
    assert (found["matrix"], found["primaries"], found["transfer"], found["full"]) == (1, 1, 1, False)
    for made, given in zip(codes_in("out/in.mkv"), codes, strict=False):
        assert np.abs(made.astype(int) - given[0, 0]).max() <= 1


@pytest.mark.parametrize(("height", "matrix"), [(480, 6), (576, 6), (720, 1)])
def test_what_is_not_described_is_taken_as_players_take_it_and_then_described(height, matrix):
    codes = codes_of(np.full((height, 64, 3), (0.9, 0.1, 0.2)), 8, matrix, False)
    film("in.mkv", codec="ffv1", size=(height, 64), form="yuv444p", frames=[frame_of(codes, "yuv444p", 8)])
    assert restore("in.mkv", "-o", "out", scale=2) == 0
    found = said_of("out/in.mkv")
    assert (found["matrix"], found["full"], found["primaries"], found["transfer"]) == (matrix, False, 2, 2)
    for made, given in zip(codes_in("out/in.mkv"), codes, strict=True):
        assert abs(made.mean() - given[0, 0]) <= 1


def hdr_film(file, *, transfer=16):
    """HEVC Main 10 as a camera or a grading suite writes it: BT.2020, PQ or HLG, with metadata of the display."""
    mastering = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
    codes = codes_of(np.full((64, 96, 3), (0.5, 0.4, 0.3)), 10, 9, False)
    film(
        file,
        size=(64, 96),
        codec="libx265",
        form="yuv420p10le",
        set_up=described(9, False, 9, transfer),
        frames=[frame_of(codes, "yuv420p10le", 10)] * 3,
        options={"x265-params": f"log-level=error:{mastering}"},
    )
    return codes


def metadata_of(file):
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        return {one.type.name: bytes(one) for one in frame.side_data}


@pytest.mark.parametrize(("suffix", "transfer"), [("mkv", 16), ("mp4", 18), ("mov", 16), ("ts", 16), ("webm", 16)])
def test_hdr_stays_hdr(capsys, suffix, transfer):
    given = "mkv" if suffix == "webm" else suffix
    codes = hdr_film(f"in.{given}", transfer=transfer)
    assert restore(f"in.{given}", "-o", f"out/in.{suffix}") == 0
    assert f"is HDR: its {'PQ' if transfer == 16 else 'HLG'} values are restored as they are" in capsys.readouterr().err
    found = said_of(f"out/in.{suffix}")
    assert (found["form"], found["codec"]) == ("yuv420p10le", "libdav1d" if suffix == "webm" else "hevc")
    assert (found["matrix"], found["primaries"], found["transfer"], found["full"]) == (9, 9, transfer, False)
    assert abs(codes_in(f"out/in.{suffix}")[0].mean() - codes[0][0, 0]) < 2
    held = metadata_of(f"out/in.{suffix}")
    numbers = struct.unpack("=22i", held["MASTERING_DISPLAY_METADATA"])
    values = [numbers[place] / numbers[place + 1] for place in range(0, 20, 2)]
    assert values == pytest.approx([0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329, 0.005, 1000], abs=2e-5)
    assert struct.unpack("=2I", held["CONTENT_LIGHT_LEVEL"]) == (1000, 400)


def test_ten_bits_where_the_container_holds_no_hevc():
    hdr_film("in.mkv")
    assert restore("in.mkv", "-o", "out.flv") == 0
    assert said_of("out.flv")["form"] == "yuv420p10le"


@pytest.mark.parametrize(
    ("codec", "form", "file", "message"),
    [
        ("ffv1", "yuva420p", "clear.mkv", "its transparency is left out"),
        ("prores_ks", "yuva444p10le", "clear.mov", "its transparency is left out"),
        ("qtrle", "argb", "clear.mov", "its transparency is left out"),
        ("ffv1", "gbrp16le", "deep.mkv", "its 16 bits per sample become 10"),
        ("ffv1", "bgr0", "rgb.mkv", "its RGB becomes Y'CbCr 4:4:4 of BT.709"),
        ("rawvideo", "bgr24", "raw.avi", "its RGB becomes Y'CbCr 4:4:4 of BT.709"),
        ("ffv1", "yuv411p", "dv.mkv", None),
        ("mjpeg", "yuvj420p", "motion.avi", None),
        ("libvpx-vp9", "yuva420p", "clear.webm", "its transparency is left out"),
    ],
)
def test_alpha_rgb_and_rare_formats_are_restored_and_reported(capsys, codec, form, file, message):
    with_alpha = [av.VideoFrame.from_ndarray(np.dstack([piece, piece[..., 0]]), "rgba") for piece in pieces(2)]
    film(file, codec=codec, form=form, frames=with_alpha, time_base=Fraction(1, 10))
    assert restore(file, "-o", "out") == 0
    output = capsys.readouterr().err
    assert message in output if message else "become" not in output
    with av.open(f"out/{file}") as container:
        for one, other in zip(container.decode(video=0), pieces(2), strict=True):
            assert np.abs(one.to_ndarray(format="rgb24").astype(int) - other).mean() < 12
    if form == "yuvj420p":
        assert said_of(f"out/{file}")["full"]


def test_interlaced_material_is_reported(capsys):
    film(
        "in.mkv",
        codec="mpeg2video",
        rate=25,
        time_base=Fraction(1, 25),
        options={"flags": "+ildct+ilme", "b": "2000000"},
        set_up=lambda stream: setattr(stream.codec_context, "field_order", 2),
    )
    assert restore("in.mkv", "-o", "out") == 0
    assert "in.mkv: is interlaced: its two fields are restored as one frame" in capsys.readouterr().err
    assert Path("out/in.mkv").exists()


def test_a_small_video_of_many_bits_is_written_by_the_encoder_that_survives_it(capsys):
    film("in.mkv", 3, codec="ffv1", form="yuv422p12le")
    assert restore("in.mkv", "-o", "out") == 0
    assert "in.mkv: its 12 bits per sample become 10" in capsys.readouterr().err
    assert (said_of("out/in.mkv")["codec"], said_of("out/in.mkv")["form"]) == ("h264", "yuv422p10le")


def test_colours_that_are_not_converted_are_refused(capsys):
    film("in.mkv", 2, codec="ffv1", form="yuv444p10le", set_up=described(14, False, 9, 16))
    assert restore("in.mkv", "-o", "out") == 1
    output = capsys.readouterr().err
    assert "in.mkv: its colours are coded as ICtCp, which is not supported; convert it to BT.709 first" in output
    assert not any(Path("out").glob("*in*"))
