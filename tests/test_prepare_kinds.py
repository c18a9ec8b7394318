"""`diffir prepare degrade --kind`: each kind does what its name says, a function of seed and name; labelled pairs."""

import json

import numpy as np
import pytest
import skimage.data

from diffir_sr.archs.autodir_assessor import CATEGORIES
from diffir_sr.cli import main
from diffir_sr.data.labelled_dataset import LabelledPairsDataset
from diffir_sr.errors import InputError
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.prepare.degrade import MODELS, degraded_by
from diffir_sr.prepare.jobs import DEGRADATION_KINDS

PHOTO = np.ascontiguousarray(skimage.data.astronaut()[40:200, 100:292])


def run(*arguments):
    return main(["prepare", "degrade", *map(str, arguments), "--jobs", "1"])


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture
def photos(tmp_path):
    put(tmp_path / "photos/a/cat.png", np.ascontiguousarray(skimage.data.chelsea()[60:160, 100:240]))
    put(tmp_path / "photos/astronaut.png", PHOTO)
    return tmp_path / "photos"


def many(kind, image=PHOTO, count=12):
    return [degraded_by(image, [kind], seed=seed, name="x").astype(float) for seed in range(count)]


def detail(image):
    return np.abs(np.diff(np.asarray(image, float).mean(axis=2), axis=1)).mean()


def test_the_kinds_are_the_categories_of_the_assessor():
    assert [kind.replace("-", " ") for kind in DEGRADATION_KINDS] == list(CATEGORIES[:-1])


@pytest.mark.parametrize("kind", DEGRADATION_KINDS)
def test_a_kind_is_a_function_of_seed_and_name_and_of_no_other_kind(kind):
    first = degraded_by(PHOTO, [kind], seed=0, name="x")
    assert first.shape == PHOTO.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, degraded_by(PHOTO, [kind], seed=0, name="x"))
    assert not np.array_equal(first, degraded_by(PHOTO, [kind], seed=1, name="x"))
    assert not np.array_equal(first, degraded_by(PHOTO, [kind], seed=0, name="y"))
    assert np.abs(first.astype(int) - PHOTO).mean() > 1
    both = degraded_by(PHOTO, ["underexposure", kind], seed=0, name="x")
    after = degraded_by(degraded_by(PHOTO, ["underexposure"], seed=0, name="x"), [kind], seed=0, name="x")
    assert np.abs(both.astype(int) - after).mean() < 1  # but for the rounding between the two
    grey = degraded_by(PHOTO[..., :1], [kind], seed=0, name="x")
    assert grey.shape == PHOTO.shape
    for height, width in ((1, 1), (5, 190), (33, 7)):
        assert degraded_by(PHOTO[:height, :width], [kind], seed=0, name="x").shape == (height, width, 3)


def test_noise_has_no_mean_and_blur_and_low_resolution_lose_detail():
    noisy, blurred, small = many("noise"), many("blur"), many("low-resolution")
    assert abs(np.mean(noisy) - PHOTO.mean()) < 8  # what is clipped, and shot noise in linear light
    assert all(detail(one) > 1.3 * detail(PHOTO) for one in noisy)
    assert all(detail(one) < 0.85 * detail(PHOTO) for one in (*blurred, *small))
    assert all(abs(one.mean() - PHOTO.mean()) < 6 for one in (*blurred, *small))


def test_rain_and_haze_brighten_underexposure_takes_stops_of_light():
    grey = np.full((96, 96, 3), 90, np.uint8)
    assert all((one >= 89.9).all() and one.max() > 120 for one in many("rain", grey))
    for hazy in many("haze", grey):
        assert (hazy > 90).all()
        assert hazy.std() < 60
    black = np.zeros((64, 64, 3), np.uint8)
    assert min(one.min() for one in many("haze", black)) > 0  # air light everywhere
    for dark in many("underexposure", np.full((64, 64, 3), 200, np.uint8)):
        stops = -np.log2(light(dark.mean()) / light(200))
        assert 1.9 < stops < 4.7


def light(value):
    value = value / 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def test_raindrops_change_some_places_and_leave_the_others():
    for wet in many("raindrop"):
        changed = np.abs(wet - PHOTO).max(axis=2) > 0
        assert 0.01 < changed.mean() < 0.7


def test_models_stay_in_floats_of_one_range_and_ask_their_generator_alone():
    image = PHOTO.astype(np.float32) / 255
    state = np.random.get_state()[1].copy()
    for model in MODELS.values():
        before = image.copy()
        made = model(image, np.random.default_rng(3))
        assert np.array_equal(before, image)
        assert np.isfinite(made).all()
    assert np.array_equal(state, np.random.get_state()[1])


def test_the_command_writes_labelled_pairs_that_follow_from_seed_and_name(photos, tmp_path, capsys):
    assert run(photos, "-o", tmp_path / "one", "--kind", "rain", "low-resolution") == 0
    assert run(photos, "-o", tmp_path / "two", "--kind", "all", "--dry-run") == 0
    assert "2 pairs to" in capsys.readouterr().out
    assert not (tmp_path / "two").exists()
    made = tree(tmp_path / "one")
    assert set(made) == {
        f"{kind}/{side}/{name}.png"
        for kind in ("rain", "low-resolution")
        for side in ("input", "target")
        for name in ("a/cat", "astronaut")
    }
    assert np.array_equal(decode(made["rain/target/astronaut.png"], where="x"), PHOTO)
    expected = degraded_by(PHOTO, ["rain"], seed=0, name="astronaut")
    assert np.array_equal(decode(made["rain/input/astronaut.png"], where="x"), expected)
    lines = (tmp_path / "one/rain/input.manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["parameters"] == {"kinds": ["rain"], "seed": 0, "count": 1}
    assert run(photos, "-o", tmp_path / "one", "--kind", "rain", "low-resolution", "--seed", "1") == 1
    assert "contains images made with other parameters" in capsys.readouterr().err
    assert run(photos, "-o", tmp_path / "both", "--kind", "rain", "underexposure", "--combine", "--count", "2") == 0
    assert len(tree(tmp_path / "both/rain+underexposure/input")) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "rain", "--scale", "4"], "--scale does not belong to --kind, which keeps the size"),
        (["--kind", "rain", "--count", "0"], "--count: expected 1 or more, got 0"),
        (["--combine"], "--combine and --count require --kind"),
    ],
)
def test_what_does_not_go_together_is_refused(photos, tmp_path, capsys, words, message):
    assert run(photos, "-o", tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err


# The dataset


def options(folder, **changes):
    kinds = ("rain", "low-resolution")
    return dict(
        phase="train", seed=3, gt_size=32, degradations=list(kinds),
        dataroot_lq=[str(folder / kind / "input") for kind in kinds],
        dataroot_gt=[str(folder / kind / "target") for kind in kinds],
    ) | changes  # fmt: skip


def test_samples_carry_their_label_and_some_are_clean(photos, tmp_path):
    assert run(photos, "-o", tmp_path / "pairs", "--kind", "rain", "low-resolution") == 0
    data = LabelledPairsDataset(options(tmp_path / "pairs", clean_share=0.5))
    data.draws_are_unique = True
    labels = [data[draw]["label"] for draw in range(200)]
    shares = [labels.count(CATEGORIES.index(name)) / 200 for name in ("no", "rain", "low resolution")]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.12)
    for draw in range(40):
        sample, again = data[draw], data[draw]
        assert sample["label"] == again["label"]
        assert (sample["lq"] == again["lq"]).all()
        assert (sample["lq"] == sample["gt"]).all() == (sample["label"] == CATEGORIES.index("no"))
    test = LabelledPairsDataset(options(tmp_path / "pairs", phase="val", clean_share=0.5))
    assert [sample["label"] for sample in test] == [2, 2, 5, 5]
    with pytest.raises(InputError, match="degradation 'rian' is unknown; did you mean rain"):
        LabelledPairsDataset(options(tmp_path / "pairs", degradations=["rian", "haze"]))
