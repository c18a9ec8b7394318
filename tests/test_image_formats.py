"""The decoders against files made bit by bit, and against a second decoder where that is right."""

import contextlib
import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
import tifffile
from image_files import GREY, PALETTE, PNG_KINDS, RGB, bmp, chunk, png_case
from PIL import Image, ImageCms

from diffir_sr.errors import InputError
from diffir_sr.files.images import decode, header, inspect, read_picture
from diffir_sr.files.metadata import with_png_chunks
from diffir_sr.files.picture import Picture, encode, encode_png, not_held
from diffir_sr.inference.inputs import load_input

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[40:76, 80:132])
RNG = np.random.default_rng(7)


def read(data):
    return read_picture(data, where="x")


def saved(image, form, **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def agrees(picture, colours, alpha=None):
    assert picture.colours.dtype == colours.dtype
    assert np.array_equal(picture.colours, colours)
    assert (picture.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(picture.alpha, alpha)


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), PNG_KINDS)
def test_png_of_every_kind_is_read_value_for_value(kind, depth, interlaced, tmp_path, capfd):
    for keyed, size in itertools.product((False, True), ((9, 11), (1, 1), (33, 2), (2, 33))):
        if keyed and kind not in (GREY, RGB, PALETTE):
            continue
        data, colours, alpha = png_case(kind, depth, size=size, keyed=keyed, interlaced=interlaced, pieces=2)
        agrees(read(data), colours, alpha)
        (tmp_path / "a.png").write_bytes(data)
        found = header(tmp_path / "a.png")
        assert (found.height, found.width, found.channels) == (*size, colours.shape[2])
        # What is written is read again, as the same kind.
        again = read(encode(read(data), "png"))
        agrees(again, colours, alpha)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", range(5))
def test_each_filter_of_png_alone(kind):
    data, colours, _ = png_case(RGB, 8, filters=(kind,))
    agrees(read(data), colours)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), colours)


def test_chunks_beside_the_pixels_change_no_value_and_print_nothing(capfd):
    odd = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"bKGD", bytes(6)) + chunk(b"sBIT", b"\5\5\5")
    odd += chunk(b"eXIf", b"no EXIF at all") + chunk(b"tEXt", b"no zero")
    data, colours, _ = png_case(RGB, 8, before=odd)
    picture = read(data)
    agrees(picture, colours)
    assert picture.notes == ("its EXIF is unreadable and left out",)
    assert capfd.readouterr().err == ""


def test_colour_signals_text_and_resolution_go_on_to_png_and_are_reported_for_others():
    carried = [
        (b"cICP", bytes([9, 16, 0, 1])), (b"mDCV", bytes(24)), (b"gAMA", struct.pack(">I", 45455)),
        (b"cHRM", bytes(32)), (b"sRGB", b"\0"), (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
        (b"tEXt", b"parameters\0a cat"), (b"zTXt", b"more\0\0" + zlib.compress(b"x")),
    ]  # fmt: skip
    data, _, _ = png_case(RGB, 16, before=b"".join(chunk(*one) for one in carried))
    picture = read(data)
    assert not_held(picture, "png") == []
    again = encode(picture, "png")
    for name, value in carried:
        assert chunk(name, value) in again
    lost = not_held(picture, "jpeg")
    assert "its colour space (cICP, mDCV, gAMA, cHRM, sRGB)" in lost
    assert "its text (parameters, more)" in lost
    assert "dpi" not in lost
    assert "dpi" in not_held(picture, "webp")


@pytest.mark.parametrize("chunk_name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
def test_a_damaged_chunk_that_pixels_need_is_a_fault(chunk_name):
    data, _, _ = png_case(PALETTE, 8, keyed=True)
    at = data.index(chunk_name) + (4 if chunk_name != b"IEND" else 6)
    harmed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    with pytest.raises(InputError, match="x: damaged or truncated"):
        decode(harmed, where="x")


def test_other_damaged_chunks_are_left_out_and_reported():
    data = with_png_chunks(encode_png(PHOTO), [(b"gAMA", bytes(4))])
    harmed = data.replace(b"gAMA\0\0", b"gAMA\0\1")
    assert read(harmed).notes == ("its chunk gAMA is damaged and left out",)
    assert np.array_equal(read(harmed).colours, PHOTO)


@pytest.mark.parametrize("harm", ["checksum", "half of the data", "too few rows", "filter", "no end"])
def test_damage_inside_whole_chunks_is_a_fault(harm):
    raw = b"".join(b"\0" + row.tobytes() for row in PHOTO)
    data = zlib.compress({"too few rows": raw[:900], "filter": b"\7" + raw[1:]}.get(harm, raw))
    data = {"checksum": data[:-1] + bytes([data[-1] ^ 1]), "half of the data": data[: len(data) // 2]}.get(harm, data)
    whole = encode_png(PHOTO)
    made = whole[:33] + chunk(b"IDAT", data) + (b"" if harm == "no end" else chunk(b"IEND"))
    with pytest.raises(InputError, match="x: damaged or truncated"):
        decode(made, where="x")


# BMP


WORDS = RNG.integers(0, 2**32, (5, 7), dtype=np.uint32)


def field(words, mask, top=255):
    most = 2 ** bin(mask).count("1") - 1
    values = (words & mask) >> ((mask & -mask).bit_length() - 1)
    return np.rint(values.astype(float) * top / most).astype(np.uint8 if top == 255 else np.uint16)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("head", [12, 40, 64, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8, 24])
def test_bmp_with_palettes_and_24_bits(bits, head, top_down):
    if top_down and head == 12:
        return  # whose heights have no sign
    if bits == 24:
        pixels = RNG.integers(0, 256, (5, 7, 3))
        made = bmp(pixels, bits=24, header=head, top_down=top_down)
        agrees(read(made), pixels[..., ::-1].astype(np.uint8))
        return
    palette = RNG.integers(0, 256, (2**bits, 3))
    indices = RNG.integers(0, 2**bits, (5, 7))
    made = bmp(indices, bits=bits, header=head, palette=palette.tolist(), top_down=top_down, gap=8)
    agrees(read(made), palette[indices].astype(np.uint8))


def test_bmp_with_a_grey_palette_is_grey():
    indices = RNG.integers(0, 256, (5, 7))
    picture = read(bmp(indices, bits=8, palette=[(value,) * 3 for value in range(256)]))
    agrees(picture, indices.astype(np.uint8)[..., None])


@pytest.mark.parametrize(
    ("bits", "masks", "top"),
    [
        (16, None, 255),  # 5-5-5 and one bit for nothing
        (16, (0xF800, 0x7E0, 0x1F), 255),
        (16, (0xF00, 0xF0, 0xF), 255),
        (16, (0x1F, 0x3E0, 0x7C00), 255),
        (32, None, 255),
        (32, (0xFF0000, 0xFF00, 0xFF), 255),
        (32, (0xFF000000, 0xFF0000, 0xFF00), 255),
        (32, (0x3FF00000, 0xFFC00, 0x3FF), 65535),
    ],
)
@pytest.mark.parametrize("head", [40, 124])
def test_bmp_fields_of_any_width_are_scaled_to_white_and_give_no_alpha(bits, masks, top, head):
    used = masks or ((0x7C00, 0x3E0, 0x1F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF))
    words = WORDS & (0xFFFF if bits == 16 else 0xFFFFFFFF)
    words[0, 0] = 2**bits - 1
    picture = read(bmp(words, bits=bits, masks=masks, header=head))
    agrees(picture, np.dstack([field(words, mask, top) for mask in used]))
    assert picture.colours[0, 0].tolist() == [top] * 3


@pytest.mark.parametrize(("head", "compression"), [(40, 6), (56, 3), (108, 3), (124, 3)])
def test_bmp_has_alpha_where_its_header_has_a_mask_for_it(head, compression):
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    picture = read(bmp(WORDS, bits=32, masks=masks, header=head, compression=compression))
    agrees(picture, np.dstack([field(WORDS, mask) for mask in masks[:3]]), field(WORDS, masks[3]))


def test_bmp_run_lengths_and_missing_rows():
    indices = np.repeat(np.arange(4), 6).reshape(4, 6)
    runs = b"".join(bytes([6, value, 0, 0]) for value in (3, 2, 1, 0)) + b"\0\1"
    palette = [(200, 10, 5), (1, 2, 3), (90, 90, 9), (255, 255, 255)] + [(0, 0, 0)] * 252
    made = bmp(indices, bits=8, palette=palette, compression=1)
    made = made[: struct.unpack_from("<I", made, 10)[0]] + runs
    agrees(read(made), np.array(palette, np.uint8)[indices])
    plain = bmp(indices, bits=8, palette=palette)
    with pytest.raises(InputError, match=r"damaged.*16 of 32 bytes of pixels"):
        decode(plain[:-16], where="x")


def test_ordinary_bmp_equals_a_second_decoder():
    for image in (PHOTO, PHOTO[..., 0]):
        data = saved(Image.fromarray(image), "BMP", dpi=(300, 300))
        agrees(read(data), image.reshape(*image.shape[:2], -1))
        assert read(data).metadata.dpi == pytest.approx((300, 300), rel=1e-3)


# JPEG


@pytest.mark.parametrize("how", [{}, dict(progressive=True), dict(subsampling=0), dict(restart_marker_rows=1)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_opencv(mode, how):
    data = saved(Image.fromarray(PHOTO).convert(mode), "JPEG", **how)
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    agrees(read(data), theirs[..., ::-1] if mode == "RGB" else theirs[..., None])


def test_every_warning_of_libjpeg_is_damage_unless_it_is_accepted(monkeypatch):
    whole = saved(Image.fromarray(skimage.data.astronaut()[:200, :200]), "JPEG", quality=90)
    marked = bytearray(whole)
    marked[len(whole) // 2 : len(whole) // 2 + 60] = b"\xff\xd3" * 30
    harmed = {"end put behind": whole[: len(whole) // 2] + b"\xff\xd9", "cut": whole[: len(whole) // 2]}
    harmed |= {"marked": bytes(marked)}
    for data in harmed.values():
        with pytest.raises(InputError, match="x: damaged or truncated.*JPEG"):
            decode(data, where="x")
    monkeypatch.setenv("DIFFIR_ACCEPT_DAMAGED", "1")
    for data in harmed.values():
        picture = read(data)
        assert picture.size == (200, 200)
        assert "which was accepted" in picture.notes[-1]
        assert np.array_equal(picture.colours[:64], read(whole).colours[:64])


def orientation_in(kind, turn):
    """A JPEG or PNG that tells its orientation in one of many ways."""
    exif = Image.Exif()
    exif[0x0112] = turn
    raw = exif.tobytes()
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'.encode()
    packet = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    plain = saved(Image.fromarray(PHOTO), "JPEG", quality=95)
    if kind == "webp":
        return saved(Image.fromarray(PHOTO), "WEBP", lossless=True, exif=exif)
    if kind == "tiff":
        return saved(Image.fromarray(PHOTO), "TIFF", tiffinfo={0x0112: turn})
    if kind.startswith("jpeg"):
        between = {"jpeg after others": b"\xff\xfe\0\5abc\xff\xee\0\6abcd", "jpeg with fill bytes": b"\xff" * 5}
        body = packet if kind == "jpeg xmp" else raw
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        return plain[:2] + between.get(kind, b"") + segment + plain[2:]
    whole = encode_png(PHOTO)
    digits = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n"
    made = {
        "png": chunk(b"eXIf", raw[6:]),
        "png raw": chunk(b"tEXt", b"Raw profile type exif\0" + digits),
        "png raw packed": chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(digits)),
        "png xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "png behind": chunk(b"eXIf", raw[6:]),
    }[kind]
    at = len(whole) - 12 if kind == "png behind" else 33
    return whole[:at] + made + whole[at:]


WAYS = ["jpeg", "jpeg after others", "jpeg with fill bytes", "jpeg xmp", "webp", "tiff", "png", "png raw"]
WAYS += ["png raw packed", "png xmp", "png behind"]


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("turn", [3, 5, 6, 8])
def test_every_reader_turns_pictures_alike_wherever_the_orientation_is_stored(kind, turn, tmp_path):
    data = orientation_in(kind, turn)
    size = PHOTO.shape[1::-1] if turn >= 5 else PHOTO.shape[:2]
    picture = read(data)
    assert picture.size == size
    assert inspect(data, where="x").height == size[0]
    assert decode(data, where="x").shape[:2] == size
    (tmp_path / "a").write_bytes(data)
    assert (header(tmp_path / "a").height, header(tmp_path / "a").width) == size
    opened = load_input(Image.open(io.BytesIO(data)), check=lambda *_: None)[0]
    assert np.array_equal(opened.colours, picture.colours)
    again = read(encode(picture, "png"))  # upright, and not turned once more
    assert np.array_equal(again.colours, picture.colours)


def test_odd_exif_costs_no_pixel_from_a_path_and_from_pillow():
    data = with_png_chunks(encode_png(PHOTO), [(b"eXIf", b"b'Exif\\x00\\x00MM\\x00*\\x00'")])
    for picture in (read(data), load_input(Image.open(io.BytesIO(data)), check=lambda *_: None)[0]):
        assert np.array_equal(picture.colours, PHOTO)
        assert picture.notes == ("its EXIF is unreadable and left out",)
        assert picture.exif is None


def cmyk(**how):
    return saved(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=100, subsampling=0, **how)


def test_cmyk_becomes_srgb_by_one_rule_and_is_reported(caplog):
    plain = read(cmyk())
    assert plain.notes == ("CMYK colours without a profile are converted to RGB by the plain formula",)
    assert np.abs(plain.colours.astype(int) - PHOTO).mean() < 4
    assert np.array_equal(decode(cmyk(), where="x"), plain.colours)
    opened = load_input(Image.open(io.BytesIO(cmyk())), check=lambda *_: None)[0]
    assert np.array_equal(opened.colours, plain.colours)
    useless = read(cmyk(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))
    assert "the embedded profile cannot be used" in useless.notes[0]
    assert useless.icc is None


# TIFF


def tiff(values, **how):
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **how)
    return file.getvalue()


LAYOUTS = [{}, dict(rowsperstrip=5), dict(tile=(16, 16)), dict(compression="zlib", predictor=True)]
LAYOUTS += [dict(compression=name) for name in ("lzw", "packbits", "zstd", "lzma")]
LAYOUTS += [dict(byteorder=">", compression="lzw"), dict(bigtiff=True)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiff_of_every_layout_is_read_value_for_value(kind, layout):
    values = RNG.integers(0, np.iinfo(kind).max, (20, 18, 4), dtype=kind, endpoint=True)
    agrees(read(tiff(values[..., :3], photometric="rgb", **layout)), values[..., :3])
    agrees(read(tiff(values[..., 0], photometric="minisblack", **layout)), values[..., :1])
    white = tiff(values[..., 0], photometric="miniswhite", **layout)
    agrees(read(white), np.iinfo(kind).max - values[..., :1])
    with_alpha = tiff(values, photometric="rgb", extrasamples=["unassalpha"], **layout)
    agrees(read(with_alpha), values[..., :3], values[..., 3])
    grey = tiff(values[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=[2], **layout)
    agrees(read(grey), values[..., :1], values[..., 1])
    planes = np.ascontiguousarray(np.moveaxis(values[..., :3], -1, 0))
    agrees(read(tiff(planes, photometric="rgb", planarconfig="separate", **layout)), values[..., :3])


def test_tiff_transparency_that_is_multiplied_in_is_divided_out_and_unnamed_channels_are_reported():
    alpha = np.full((4, 4), 128, np.uint8)
    values = np.dstack([np.full((4, 4, 3), 64, np.uint8), alpha])
    found = read(tiff(values, photometric="rgb", extrasamples=["assocalpha"]))
    assert found.colours[0, 0].tolist() == [128] * 3
    assert "divided" in found.notes[0]
    other = read(tiff(values, photometric="rgb", extrasamples=["unspecified"]))
    assert other.alpha is None
    assert "neither colour nor alpha" in other.notes[0]


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_tiff_of_odd_depths_is_scaled_to_white(bits):
    if bits == 1:
        values = RNG.integers(0, 2, (6, 10)).astype(bool)
        agrees(read(tiff(values, photometric="minisblack")), values[..., None] * np.uint8(255))
        return
    kind, top = (np.uint8, 255) if bits <= 8 else (np.uint16, 65535)
    values = RNG.integers(0, 2**bits, (6, 8)).astype(kind)
    rows = ((values[..., None].astype(int) >> np.arange(bits - 1, -1, -1)) & 1).reshape(6, -1).astype(np.uint8)
    strip = np.packbits(rows, axis=1).tobytes()
    tags = [(256, 8), (257, 6), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 6), (279, len(strip))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = struct.pack("<2sHI", b"II", 42, 8 + len(strip) + len(strip) % 2) + strip + b"\0" * (len(strip) % 2)
    data += struct.pack("<H", len(tags)) + table + bytes(4)
    expected = np.rint(values.astype(float) * top / (2**bits - 1)).astype(kind)
    agrees(read(data), expected[..., None])


def test_tiff_of_floats_is_read_in_0_to_1_and_stays_floats():
    values = RNG.random((6, 8, 3), dtype=np.float32)
    for given in (values, values.astype(np.float64), values.astype(np.float16)):
        picture = read(tiff(given, photometric="rgb"))
        agrees(picture, given.astype(np.float32))
        assert "in [0, 1]" in picture.notes[0]
        agrees(read(encode(picture, "tiff")), given.astype(np.float32))
    assert not_held(picture, "png") == ["more than 16 bits of its floats"]
    with pytest.raises(InputError, match=r"x: contains float32 values from .* expected \[0, 1\]"):
        decode(tiff(values * 255, photometric="rgb"), where="x")
    with pytest.raises(InputError, match="x: contains signed values of 16 bits"):
        decode(tiff(np.zeros((4, 4), np.int16)), where="x")


def test_tiff_palettes_cmyk_and_pages():
    palette = RNG.integers(0, 256, (3, 256), dtype=np.uint16) * np.uint16(257)
    indices = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
    coloured = tiff(indices, photometric="palette", colormap=palette)
    agrees(read(coloured), (palette.T[indices] // 257).astype(np.uint8))
    inks = np.asarray(Image.fromarray(PHOTO).convert("CMYK"))
    assert np.abs(read(tiff(inks, photometric="separated")).colours.astype(int) - PHOTO).max() <= 1
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(PHOTO, photometric="rgb", metadata=None)
        writer.write(PHOTO[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
    picture = read(file.getvalue())
    agrees(picture, PHOTO)
    assert "1 smaller page (a preview) left out" in picture.notes
    with pytest.raises(InputError, match="with several pages, 2 images"):
        decode(tiff(np.stack([PHOTO, PHOTO]), photometric="rgb"), where="x")


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "jpeg"])
def test_a_damaged_strip_of_tiff_is_a_fault(compression, monkeypatch):
    photo = np.ascontiguousarray(skimage.data.astronaut()[:96, :80])
    data = bytearray(tiff(photo, photometric="rgb", compression=compression, rowsperstrip=16))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        at, count = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    half = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    data[at : at + count] = bytes(count)
    for harmed in (bytes(data), bytes(half)):
        with pytest.raises(InputError, match="x: damaged or truncated"):
            decode(harmed, where="x")
    monkeypatch.setenv("DIFFIR_ACCEPT_DAMAGED", "1")
    found = decode(bytes(data), where="x")
    assert np.abs(found[:48].astype(int) - photo[:48]).mean() < 6
    assert not found[48:64].any()


def test_what_tiff_says_beside_its_pixels_goes_on_to_tiff():
    output = dict(resolution=(300, 300), resolutionunit="INCH", description="a cat", software="camera")
    picture = read(tiff(PHOTO, photometric="rgb", **output))
    assert not_held(picture, "tiff") == []
    with tifffile.TiffFile(io.BytesIO(encode(picture, "tiff"))) as file:
        tags = file.pages[0].tags
        assert (tags[270].value, tags[305].value) == ("a cat", "camera")
        assert tags[282].value == (300, 1)


# Others


def test_gif_avif_and_heic_are_read():
    grey = Image.fromarray(PHOTO).quantize(64)
    agrees(read(saved(grey, "GIF")), np.asarray(grey.convert("RGB")))
    data = saved(Image.fromarray(PHOTO), "AVIF", quality=95)
    agrees(read(data), np.asarray(Image.open(io.BytesIO(data))))
    frames = [Image.fromarray(np.roll(PHOTO, shift, axis=1)) for shift in (0, 9, 19)]
    for form in ("GIF", "PNG", "WEBP", "AVIF"):
        with pytest.raises(InputError, match="animated or with several pages, 3 images"):
            decode(saved(frames[0], form, save_all=True, append_images=frames[1:]), where="x")


def test_avif_of_10_bits_is_read_to_white():
    imagecodecs = pytest.importorskip("imagecodecs")
    data = imagecodecs.avif_encode(np.full((16, 16, 3), 1023, np.uint16), bitspersample=10)
    picture = read(bytes(data))
    assert picture.colours.dtype == np.uint16
    assert picture.colours.min() >= 65535 - 64 * 2


def test_heic_of_8_and_10_bits_is_read():
    pillow_heif = pytest.importorskip("pillow_heif")
    deep = RNG.integers(0, 1024, (32, 40, 3), dtype=np.uint16)
    image, file = pillow_heif.from_bytes("RGB;16", (40, 32), (deep << 6).tobytes()), io.BytesIO()
    image.save(file, quality=-1, chroma=444, matrix_coefficients=0)
    expected = np.rint(deep * (65535 / 1023)).astype(np.uint16)
    agrees(read(file.getvalue()), expected)


def test_content_decides_and_what_is_no_picture_is_called_what_it_is():
    assert inspect(saved(Image.fromarray(PHOTO), "JPEG"), where="a.png").format == "jpeg"
    for data, message in ((b"8BPS", "Photoshop"), (b"\0\0\0\x0cJXL \r\n", "JPEG XL"), (b"<!DOCTYPE html>", "HTML")):
        with pytest.raises(InputError, match=f"x: contains {message}"):
            inspect(data, where="x")


def test_webp_that_says_it_is_enormous_is_refused_in_a_sentence(monkeypatch):
    small = saved(Image.fromarray(PHOTO), "WEBP", lossless=True)
    bits = int.from_bytes(small[21:25], "little") & ~0xFFFFFFF | 13399 | 13399 << 14
    data = small[:21] + bits.to_bytes(4, "little") + small[25:]
    assert (inspect(data, where="x").height, inspect(data, where="x").width) == (13400, 13400)
    monkeypatch.setattr("diffir_sr.files.images.free_memory", lambda: 2**30)
    with pytest.raises(InputError, match=r"x: its 13400x13400 pixels need about 1.3 GiB, 1.0 GiB are free"):
        decode(data, where="x")


def test_too_little_memory_is_no_damage(monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("imagecodecs.png_decode", fails)
    with pytest.raises(InputError, match="x: out of memory while decoding"):
        decode(encode_png(PHOTO), where="x")


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "tiff"])
def test_xmp_is_carried_with_its_orientation_made_true(form):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:title="cat"/></x:xmpmeta>'
    picture = read(saved(Image.fromarray(PHOTO), "JPEG", xmp=xmp, comment=b"hello", dpi=(72, 72)))
    again = read(encode(picture, form))
    assert again.metadata.xmp == xmp.replace(b'"6"', b'"1"')
    assert again.size == PHOTO.shape[1::-1]
    assert ("its comment" in not_held(picture, form)) == (form != "jpeg")
    assert form == "webp" or again.metadata.dpi == pytest.approx((72, 72), abs=0.02)


def test_grey_with_alpha_stays_that_in_every_format_that_can():
    for kind in (np.uint8, np.uint16):
        values = RNG.integers(0, np.iinfo(kind).max, (6, 8, 2), dtype=kind)
        for form in ("png", "tiff"):
            agrees(read(encode(Picture(values[..., :1], values[..., 1]), form)), values[..., :1], values[..., 1])


def test_random_harm_never_ends_in_anything_but_a_sentence():
    whole = [
        encode_png(PHOTO),
        saved(Image.fromarray(PHOTO), "JPEG"),
        tiff(PHOTO, photometric="rgb", compression="lzw"),
    ]
    whole += [saved(Image.fromarray(PHOTO), form) for form in ("BMP", "WEBP", "GIF", "AVIF")]
    rng = np.random.default_rng(3)
    for data in whole:
        for _ in range(25):
            harmed = bytearray(data)
            for at in rng.integers(0, min(len(data), 400), 3):
                harmed[at] = rng.integers(256)
            with contextlib.suppress(InputError):  # and nothing else
                read(bytes(harmed[: rng.integers(20, len(harmed) + 1)]))


@pytest.mark.parametrize("tag", [256, 257, 262, 274])
def test_a_tiff_whose_numbers_are_several_is_reported_or_read(tag, tmp_path):
    image = Image.new("L", (12, 9), 7)
    image.save(tmp_path / "a.tif", tiffinfo={274: 1})
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = next(at for at in range(8, len(data)) if data[at : at + 2] == tag.to_bytes(2, "little") and data[at + 3] == 0)
    data[at + 4 : at + 8] = (2).to_bytes(4, "little")
    with contextlib.suppress(InputError):  # and nothing else
        assert read_picture(bytes(data), where="a.tif").colours.shape == (9, 12, 1)
