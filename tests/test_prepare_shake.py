"""`diffir prepare shake`: paths are smooth and centred, exposures are means of frames in linear light."""

import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from diffir_sr.cli import main
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.shake import camera_path, exposure


@pytest.fixture
def photos(tmp_path):
    for name, image in {"a/cat": skimage.data.chelsea(), "cup": skimage.data.coffee()}.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.ascontiguousarray(image[60:160, 100:240])))
    return tmp_path / "photos"


def run(*arguments):
    return main(["prepare", "shake", *map(str, arguments), "--jobs", "1"])


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("length", [0.0, 0.5, 4.0, 30.0])
def test_a_path_is_centred_smooth_and_as_long_as_asked(length):
    for seed in range(5):
        path = camera_path(np.random.default_rng(seed), length=length)
        steps = np.diff(path, axis=0)
        assert np.allclose(path.mean(axis=0), 0, atol=1e-9)
        assert np.isclose(np.linalg.norm(steps, axis=1).sum(), length)
        if length >= 4:  # turns are small against the steps themselves
            assert np.linalg.norm(np.diff(steps, axis=0), axis=1).mean() < np.linalg.norm(steps, axis=1).mean()


def test_an_exposure_is_the_mean_of_moved_frames_in_linear_light():
    photo = skimage.data.astronaut()[:80, 150:230]
    path = camera_path(np.random.default_rng(3), length=6)
    x = photo / 255
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    frames = [ndimage.shift(light, (dy, dx, 0), order=1, mode="mirror") for dx, dy in path]
    mean = np.mean(frames, axis=0)
    expected = np.where(mean <= 0.0031308, mean * 12.92, 1.055 * mean ** (1 / 2.4) - 0.055) * 255
    inside = (slice(8, -8), slice(8, -8))
    assert np.abs(exposure(photo, path).astype(float) - expected)[inside].max() < 0.51
    assert np.abs(photo.astype(float) - expected)[inside].mean() > 2


def test_light_is_kept_and_nothing_moves_without_a_path():
    photo = skimage.data.astronaut()[:64, :64]
    assert np.array_equal(exposure(photo, np.zeros((2, 2))), photo)
    grey = np.full((40, 40, 1), 77, np.uint8)
    assert np.array_equal(exposure(grey, camera_path(np.random.default_rng(0), length=9)), grey)


def test_pairs_follow_from_seed_and_name_alone(photos, tmp_path):
    assert run(photos, "-o", tmp_path / "one", "--length", 3, 6, "--count", 2) == 0
    (photos / "cup.png").rename(tmp_path / "cup.png")
    assert run(photos, "-o", tmp_path / "two", "--length", 3, 6, "--count", 2) == 0
    assert run(photos, "-o", tmp_path / "three", "--length", 3, 6, "--count", 2, "--seed", 1) == 0
    one, two, three = (tree(tmp_path / name) for name in ("one", "two", "three"))
    assert set(one) - set(two) == {f"{side}/cup_{number}.png" for side in ("input", "target") for number in (0, 1)}
    assert all(one[name] == two[name] for name in two)
    assert all((two[name] == three[name]) == name.startswith("target") for name in two)
    assert two["input/a/cat_0.png"] != two["input/a/cat_1.png"]


def test_a_pair_is_aligned_and_without_invented_borders(photos, tmp_path):
    assert run(photos, "-o", tmp_path / "out", "--length", 5, 5) == 0
    blurred, sharp = (
        decode((tmp_path / "out" / side / "cup.png").read_bytes(), where=side).astype(float)
        for side in ("input", "target")
    )
    photo = decode((photos / "cup.png").read_bytes(), where="cup")
    assert np.array_equal(sharp, photo[6:-6, 6:-6])

    def unlike(dy, dx):
        return np.square(np.roll(blurred, (dy, dx), (0, 1)) - sharp)[4:-4, 4:-4].mean()

    assert min((unlike(dy, dx), dy, dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2))[1:] == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", 6, 3], "--length: expected two numbers of pixels, 0 to 100, the smaller first; got 6.0, 3.0"),
        (["--length", 3, 60], "2 images of"),
        (["--count", 0], "--count: expected 1 or more, got 0"),
        (["--seed", -1], "--seed: expected 0 or more, got -1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(photos, tmp_path, capsys, arguments, message):
    assert run(photos, "-o", tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_parameters_are_not_mixed_into_a_folder(photos, tmp_path, capsys):
    assert run(photos, "-o", tmp_path / "out", "--length", 3, 6) == 0
    assert run(photos, "-o", tmp_path / "out", "--length", 3, 7) == 1
    assert "made with other parameters" in capsys.readouterr().err
