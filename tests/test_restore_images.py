"""Image files through a restorer: formats, depths, profiles, EXIF, and what each kind of bad file is told."""

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import photo, write_network
from PIL import Image, ImageCms

from diffir_sr import load_restorer
from diffir_sr.cli import main
from diffir_sr.errors import InputError
from diffir_sr.files.images import inspect, read_picture
from diffir_sr.files.picture import Picture, encode, encode_png, not_held
from diffir_sr.inference import plain as room

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def restorer():
    return load_restorer(write_network(task="deblur"))


def reopened(data):
    return read_picture(data, where="made")


@pytest.mark.parametrize("form", ["png", "tiff"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_written_without_loss_is_read_again(form, kind, channels):
    top = np.iinfo(kind).max
    values = np.random.default_rng(channels).integers(0, top, (5, 7, channels), dtype=kind, endpoint=True)
    alpha = values[..., -1] if channels in (2, 4) else None
    colours = values[..., : 3 if channels > 2 else 1]
    again = reopened(encode(Picture(colours, alpha, PROFILE), form))
    assert np.array_equal(again.colours, colours)
    assert (again.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(again.alpha, alpha)
    assert again.icc == (None if form == "png" and channels < 3 else PROFILE)  # grey PNG may have grey profiles alone
    assert again.colours.dtype == kind


def test_other_readers_understand_our_tiff_and_png():
    deep = np.random.default_rng(0).integers(0, 65535, (6, 5, 3), dtype=np.uint16)
    tiff = encode(Picture(deep, None, PROFILE), "tiff")
    assert np.array_equal(cv2.imdecode(np.frombuffer(tiff, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1], deep)
    small = encode(Picture(photo(), None, PROFILE), "tiff")
    with Image.open(io.BytesIO(small)) as image:
        assert np.array_equal(np.asarray(image), photo())
        assert image.info["icc_profile"] == PROFILE
    with Image.open(io.BytesIO(encode(Picture(photo(), None, PROFILE), "png"))) as image:
        image.verify()
        assert image.info["icc_profile"] == PROFILE


@pytest.mark.parametrize(
    ("suffix", "mode", "close"),
    [
        *(("png", mode, 0) for mode in ("L", "LA", "RGB", "RGBA", "P", "1")),
        *(("jpg", mode, 9) for mode in ("L", "RGB")),
        *(("webp", mode, 30) for mode in ("RGB", "RGBA")),
        *(("tif", mode, 0) for mode in ("L", "LA", "RGB", "RGBA")),
        *(("bmp", mode, 0) for mode in ("L", "RGB")),
    ],
)
def test_a_file_keeps_its_format_and_its_kind_of_colour(restorer, suffix, mode, close):
    image = Image.fromarray(photo()).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(photo(left=90)[..., 0]))
    image.save(f"p.{suffix}")
    made = restorer(f"p.{suffix}")
    made.save(f"made.{suffix}")
    assert made.colours.shape[2] == (1 if mode in ("L", "LA", "1") else 3)
    assert (made.alpha is not None) == (mode in ("LA", "RGBA"))
    again = read_picture(Path(f"made.{suffix}").read_bytes(), where="made")
    assert again.format == made.format
    assert np.abs(again.colours.astype(int) - made.colours).mean() <= close


def test_a_turned_photo_is_restored_upright_with_its_profile_and_date(restorer):
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2023:10:02 10:00:00"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    for suffix, how in (("jpg", dict(quality=95)), ("png", {}), ("webp", dict(lossless=True))):
        name = f"p.{suffix}"
        Image.fromarray(photo(20, 12)).save(name, exif=exif, icc_profile=PROFILE, **how)
        made = restorer(name)
        assert made.size == (12, 20)
        made.save("made.png", overwrite=True)
        made.save(f"made.{suffix}", overwrite=True)
        for file in ("made.png", f"made.{suffix}"):
            with Image.open(file) as image:
                assert image.info["icc_profile"] == PROFILE
                assert 0x0112 not in image.getexif()
                assert image.getexif()[0x0132] == "2023:10:02 10:00:00"
                assert image.getexif().get_ifd(0x8769)[0x829A] == 0.01
    turned = restorer(Image.open("p.png"))
    assert turned.size == (20, 12)
    assert np.array_equal(np.asarray(turned), restorer("p.png").colours)


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (70, 3), (2, 9)])
def test_tiny_and_flat_pictures_are_restored(size):
    assert load_restorer(write_network())(photo(*size)).shape == (4 * size[0], 4 * size[1], 3)


def frames(form):
    file, pictures = io.BytesIO(), [Image.fromarray(photo(left=left)) for left in (170, 180)]
    pictures[0].save(file, form, save_all=True, append_images=pictures[1:])
    return file.getvalue()


def test_bad_files_are_refused_in_one_sentence(restorer):
    whole = encode_png(photo())
    jpeg = io.BytesIO()
    Image.fromarray(photo(200, 200, top=0)).save(jpeg, "JPEG")
    real = cv2.imencode(".tiff", photo().astype(np.float32))[1].tobytes()
    lab = io.BytesIO()
    Image.fromarray(photo()).convert("LAB").save(lab, "TIFF")
    faults = {
        "empty.png": (b"", "the file is empty"),
        "cut.png": (whole[: len(whole) // 2], "damaged or truncated"),
        "cut.jpg": (jpeg.getvalue()[:2000], "damaged or truncated"),
        "head.jpg": (b"\xff\xd8\xff\xe0", "damaged or truncated"),
        "text.png": (b"<html>not found</html>", "contains HTML, expected PNG, JPEG, WebP, TIFF or BMP"),
        "print.tif": (lab.getvalue(), "contains CIELAB colours, expected grey or RGB"),
        "film.png": (frames("PNG"), "animated or with several pages, 2 images"),
        "film.webp": (frames("WEBP"), "2 images"),
        "pages.tif": (frames("TIFF"), "2 images"),
        "real.tif": (real, "contains float32 values from .* expected .0, 1."),
    }
    for name, (data, message) in faults.items():
        Path(name).write_bytes(data)
        with pytest.raises(InputError, match=message) as refused:
            restorer(name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_an_enormous_picture_is_refused_before_it_is_decoded(restorer, monkeypatch):
    # 30,000 x 30,000 pixels of one value: 100 KB as a file.
    header = encode_png(np.zeros((1, 1, 3), np.uint8))
    side = (30_000).to_bytes(4, "big")
    chunk = b"IHDR" + side + side + header[24:29]
    data = header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[33:]
    monkeypatch.setattr(room, "free_memory", lambda: 4 * 2**30)
    Path("huge.png").write_bytes(data)
    with pytest.raises(InputError, match=r"huge.png: 30000x30000 restored.*GiB are free; split it into parts"):
        restorer("huge.png")


def test_what_a_format_cannot_hold_is_reported_or_refused():
    deep = Picture(photo().astype(np.uint16) * 257, None, PROFILE, b"Exif\0\0x")
    assert not_held(deep, "png") == []
    assert not_held(deep, "bmp") == ["the lower 8 of its 16 bits", "the colour profile", "EXIF"]
    assert np.abs(reopened(encode(deep, "bmp")).colours.astype(int) - photo()).max() == 0
    with pytest.raises(InputError, match="jpeg does not support the transparency"):
        encode(Picture(photo(), photo()[..., 0]), "jpeg")
    with pytest.raises(InputError, match="webp allows at most 16383 pixels"):
        encode(Picture(np.zeros((1, 16384, 3), np.uint8)), "webp")


def test_a_preview_in_a_photo_is_not_taken_for_a_second_picture():
    file = io.BytesIO()
    pictures = [Image.fromarray(photo()), Image.fromarray(photo(left=100))]
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:])
    assert inspect(file.getvalue(), where="phone.jpg").width == 17


def with_exif(form, exif, **how):
    file = io.BytesIO()
    Image.fromarray(photo()).save(file, form, exif=exif, **how)
    return file.getvalue()


@pytest.mark.parametrize("form", ["jpeg", "webp", "png"])
def test_the_place_where_a_photograph_was_taken_is_kept(form):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8825).update({1: "N", 2: (10.0, 20.0, 30.0)})
    exif.get_ifd(0x8769).update({0x829A: 0.5, 0xA002: 7})
    again = encode(reopened(with_exif(form, exif)), form)
    with Image.open(io.BytesIO(again)) as image:
        found = image.getexif()
        assert found[0x010F] == "maker"
        assert found.get_ifd(0x8825) == {1: "N", 2: (10.0, 20.0, 30.0)}
        assert found.get_ifd(0x8769) == {0x829A: 0.5}


def test_exif_that_is_too_long_for_jpeg_is_left_out_and_said():
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    picture = reopened(with_exif("png", exif))
    assert not_held(picture, "png") == []
    assert not_held(picture, "jpeg") == ["EXIF of this size"]
    assert np.array_equal(reopened(encode(picture, "jpeg", quality=100)).size, photo().shape[:2])


def test_a_photograph_larger_than_pillow_trusts_is_turned_all_the_same(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = with_exif("jpeg", exif)
    high, wide = photo().shape[:2]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert inspect(data, where="large").height == wide
    assert reopened(data).size == (wide, high)


@pytest.mark.parametrize("form", ["jpeg", "webp", "bmp", "png", "tiff"])
@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (1, 1, 3), (1, 1, 1), (1, 9, 1)])
def test_pictures_one_pixel_thin_keep_shape_and_colours(form, shape):
    picture = Picture(np.full(shape, 200, np.uint8))
    again = reopened(encode(picture, form))
    assert again.size == shape[:2]
    assert np.abs(again.colours.astype(int) - 200).max() <= 3


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_grey_png_with_a_transparent_value_keeps_it(kind):
    grey = np.arange(12, dtype=kind).reshape(3, 4)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "png", transparency=5)
    picture = reopened(file.getvalue())
    assert picture.colours.shape[2] == 1
    assert np.array_equal(picture.alpha == 0, grey == 5)
    assert picture.alpha.max() == np.iinfo(kind).max


def test_bmp_is_refused_for_transparency_which_its_readers_do_not_see():
    with pytest.raises(InputError, match="bmp does not support the transparency"):
        encode(Picture(photo(), np.full(photo().shape[:2], 9, np.uint8)), "bmp")


def test_iptc_is_left_out_and_said_for_what_it_is(capsys):
    file = io.BytesIO()
    Image.fromarray(photo(16)).save(file, "jpeg")
    caption = b"Photoshop 3.0\x008BIM\x04\x04\x00\x00\x00\x00\x00\x0e\x1c\x02\x78\x00\x09A caption"
    data = file.getvalue()
    Path("a.jpg").write_bytes(data[:2] + b"\xff\xed" + (len(caption) + 2).to_bytes(2, "big") + caption + data[2:])
    assert main(["restore", "a.jpg", "-o", "out", "-w", str(write_network(task="deblur", scale=1))]) == 0
    output = capsys.readouterr().err
    assert "a.jpg: its IPTC is left out" in output
    assert "does not support" not in output
