"""What image files say before they are decoded, and how they are turned."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffir_sr.errors import InputError
from diffir_sr.files.images import decode, header
from diffir_sr.files.picture import encode_png

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[:48, :64])


def saved(image, kind, **how):
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **how)
    return data.getvalue()


def turned(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_opencv_and_so_basicsr_turns_them(orientation):
    data = saved(PHOTO, "JPEG", exif=turned(orientation))
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode(data, where="x"), theirs)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_header_shows_the_size_of_the_turned_image(kind, tmp_path):
    file = tmp_path / "a.x"
    file.write_bytes(saved(PHOTO, kind, exif=turned(6)))
    found = header(file)
    assert (found.height, found.width, found.channels) == decode(file.read_bytes(), where="x").shape == (64, 48, 3)


@pytest.mark.parametrize(
    ("image", "suffix", "channels"),
    [
        (PHOTO, ".png", 3),
        (PHOTO[..., 0], ".png", 1),
        (np.dstack([PHOTO, PHOTO[..., 0]]), ".png", 3),
        (PHOTO.astype(np.uint16), ".png", 3),
        (PHOTO.astype(np.uint16), ".tif", 3),
        (PHOTO[..., 0].astype(np.uint16), ".tif", 1),
        (PHOTO[..., 0], ".jpg", 1),
        (PHOTO, ".bmp", 3),
        (PHOTO, ".webp", 3),
    ],
)
def test_headers_agree_with_what_is_decoded(image, suffix, channels, tmp_path):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(cv2.imencode(suffix, image)[1].tobytes())
    found = header(file)
    assert (found.height, found.width, found.channels) == (48, 64, channels)
    assert decode(file.read_bytes(), where="x").shape[:2] == (48, 64)


@pytest.mark.parametrize("data", [cv2.imencode(".jpg", PHOTO)[1].tobytes(), encode_png(PHOTO)])
def test_what_follows_the_image_is_no_fault(data):
    film = bytes(20_000)  # moving photos of telephones
    assert np.array_equal(decode(data + film, where="x"), decode(data, where="x"))


def test_a_photo_cut_after_its_preview_is_cut_short():
    preview = saved(PHOTO[:16, :16], "JPEG")
    photo = saved(PHOTO, "JPEG", quality=95)
    segment = b"\xff\xe2" + (len(preview) + 2).to_bytes(2, "big") + preview
    whole = photo[:2] + segment + photo[2:]
    assert decode(whole, where="x").shape == PHOTO.shape
    for left in (len(segment) + 2, len(segment) + 700, len(whole) - 2):
        with pytest.raises(InputError, match=r"x: damaged or truncated.*(header is missing|Premature end)"):
            decode(whole[:left], where="x")


def test_a_file_that_is_no_image_is_named_by_its_header_too(tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("not an image")
    with pytest.raises(InputError, match=r"notes\.png: damaged or truncated, or not an image"):
        header(file)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        header(Path(tmp_path, "gone.png"))


def test_numbers_that_are_no_pixels_say_what_they_are():
    data = cv2.imencode(".tif", PHOTO.astype(np.float32))[1].tobytes()
    with pytest.raises(InputError, match="x: contains float32 values from 23 to 192, expected"):
        decode(data, where="x")
