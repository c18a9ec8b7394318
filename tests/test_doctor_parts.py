"""The measures behind the doctor's findings: alignment, recognition, traces of JPEG."""

import time

import cv2
import numpy as np
import pytest
import skimage.data

from diffir_sr.doctor import images
from diffir_sr.doctor.images import (
    find_shift,
    has_jpeg_grid,
    landmarks,
    luma,
    near,
    near_within,
    perceptual_hash,
    shows_the_same,
    thumbnail,
)
from diffir_sr.prepare.downscale import smaller

COLOUR = ("astronaut", "chelsea", "coffee", "immunohistochemistry", "retina", "hubble_deep_field")
GREY = ("camera", "brick", "grass", "gravel", "moon")
PHOTOGRAPHS = COLOUR + GREY


def photo(name, multiple=4):
    image = getattr(skimage.data, name)()
    image = (image[..., None] if image.ndim == 2 else image[..., :3])[:720, :720]
    height, width = (side - side % multiple for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def as_jpeg(image, quality):
    back = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_UNCHANGED)
    return back.reshape(image.shape)


def moved(image, *, down, right):
    """The same picture lower and more to the right by parts of pixels."""
    map_of = np.array([[1, 0, right], [0, 1, down]], np.float32)
    size = image.shape[1], image.shape[0]
    return cv2.warpAffine(image, map_of, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).reshape(
        image.shape
    )


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_aligned_pairs_have_no_shift(name):
    gt = photo(name)
    for scale in (2, 4):
        for method in ("bicubic", "area", "lanczos"):
            found = find_shift(luma(smaller(gt, scale=scale, method=method)), luma(gt))
            assert found is not None
            assert found.length < 0.1


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("scale", [2, 4])
def test_a_shift_is_measured_to_a_tenth_of_a_pixel(name, scale):
    gt = photo(name)
    lq = smaller(moved(gt, down=-0.35 * scale, right=0.5 * scale), scale=scale)
    found = find_shift(luma(lq), luma(gt))
    assert found is not None
    assert found.down == pytest.approx(-0.35, abs=0.1)
    assert found.right == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_blur_jpeg_and_noise_are_not_taken_for_a_shift(name):
    gt, noise = photo(name), np.random.default_rng(0)
    blurred = cv2.GaussianBlur(gt, (0, 0), 2).reshape(gt.shape)
    small = smaller(gt, scale=4)
    noisy = (small + noise.normal(0, 25, small.shape)).clip(0, 255).astype(np.uint8)
    for lq in (blurred, as_jpeg(small, 30), noisy):
        found = find_shift(luma(lq), luma(gt))
        assert found is None or found.length < 0.2


def test_flat_noisy_or_tiny_images_give_no_finding():
    flat, rng = np.full((128, 128), 90, np.float32), np.random.default_rng(0)
    assert find_shift(flat, flat) is None
    assert find_shift(flat[:8, :8], flat[:32, :32]) is None
    noise = [flat + rng.normal(0, 10, flat.shape).astype(np.float32) for _ in range(2)]
    assert find_shift(*noise) is None


def test_two_different_movements_in_one_picture_are_not_one_shift():
    gt = luma(photo("astronaut"))
    left, right = (luma(moved(photo("astronaut"), down=0, right=shift)) for shift in (-2, 2))
    assert find_shift(np.hstack([left[:, :256], right[:, 256:]]), gt) is None


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(("factor", "quality"), [(1, 20), (0.5, 60), (0.25, 90), (2, 90)])
def test_a_picture_is_recognised_in_another_size_and_as_jpeg(name, factor, quality):
    image = photo(name)
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    changed = cv2.resize(image, None, fx=factor, fy=factor, interpolation=way)
    changed = as_jpeg(changed.reshape(*changed.shape[:2], -1), quality)
    one, other = luma(image), luma(changed)
    hashes = [np.array([perceptual_hash(grey)], np.uint64) for grey in (one, other)]
    assert list(near(*hashes)) == [(0, 0)]
    assert shows_the_same(thumbnail(one), thumbnail(other))


def test_different_pictures_and_parts_of_textures_are_not_one():
    parts = [luma(photo(name)) for name in PHOTOGRAPHS]
    for name in ("brick", "grass", "gravel"):
        grey = luma(photo(name))
        parts += [grey[y : y + 128, x : x + 128] for y in range(0, 384, 96) for x in range(0, 384, 96)]
    hashes = np.array([perceptual_hash(part) or 0 for part in parts], np.uint64)
    thumbs = [thumbnail(part) for part in parts]
    assert [pair for pair in near_within(hashes) if shows_the_same(thumbs[pair[0]], thumbs[pair[1]])] == []


def test_flat_pictures_have_no_hash_and_are_never_the_same():
    sky = np.full((64, 64), 200, np.float32)
    assert perceptual_hash(sky) is None
    assert not shows_the_same(thumbnail(sky), thumbnail(sky))


def test_near_hashes_are_those_that_counting_bits_finds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 700, dtype=np.uint64)
    for index in range(0, 700, 7):  # twins with up to 14 bits changed
        flips = rng.choice(64, size=index // 7 % 15, replace=False)
        hashes[index] = hashes[699 - index] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=0)
    plain = [int(number) for number in hashes]
    expected = [
        (one, other)
        for one in range(700)
        for other in range(one + 1, 700)
        if bin(plain[one] ^ plain[other]).count("1") <= 10
    ]
    assert sorted(near_within(hashes)) == expected
    assert len(expected) > 50


def test_old_numpy_counts_bits_as_well(monkeypatch):
    hashes = np.random.default_rng(0).integers(0, 2**64, 100, dtype=np.uint64)
    newest = list(near(hashes, hashes, bits=24))
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert list(near(hashes, hashes, bits=24)) == newest
    assert len(newest) > 100


def test_ten_thousand_hashes_are_compared_within_seconds():
    hashes = np.random.default_rng(0).integers(0, 2**64, 10_000, dtype=np.uint64)
    hashes[7000] = hashes[50] ^ np.uint64(0b111)
    start = time.perf_counter()
    found = list(near_within(hashes))
    assert (50, 7000) in found
    assert time.perf_counter() - start < 10  # about 0.2 s; a loop in Python would take a minute


def test_a_lossless_cut_keeps_the_landmarks_of_its_place():
    whole = photo("coffee")
    cut = np.ascontiguousarray(whole[101:301, 37:337])
    all_marks, marks = landmarks(whole), landmarks(cut)
    assert len(marks) >= 5
    assert np.isin(marks, all_marks).all()
    assert not np.isin(landmarks(photo("chelsea")), all_marks).any()
    assert not len(landmarks(np.full((300, 300, 3), 77, np.uint8)))


@pytest.mark.parametrize("name", ["astronaut", "camera", "coffee", "moon", "retina"])
def test_strong_jpeg_is_seen_wherever_the_picture_was_cut(name):
    image = photo(name)
    assert not has_jpeg_grid(luma(image))
    assert has_jpeg_grid(luma(as_jpeg(image, 60)[3:, 5:]))


@pytest.mark.parametrize("name", ["brick", "grass", "gravel", "chelsea", "immunohistochemistry"])
def test_textures_and_clean_pictures_are_not_taken_for_jpeg(name):
    assert not has_jpeg_grid(luma(photo(name)))
    assert not has_jpeg_grid(luma(smaller(photo(name), scale=2)))


@pytest.mark.parametrize("seed", range(3))
def test_an_index_finds_what_pair_by_pair_finds_in_the_same_order(seed, monkeypatch):
    draw = np.random.default_rng(seed)
    bits = int(draw.integers(0, 16))
    hashes = draw.integers(0, 2**64, 600, dtype=np.uint64)
    hashes[::3] &= np.uint64(0xFFFF << 24)  # crowded buckets
    changed = draw.permuted(np.tile(np.arange(64) < 2 * bits, (500, 1)), axis=1)  # around the limit, and far from it
    changed &= draw.random((500, 64)) < draw.random((500, 1))
    flips = np.packbits(changed, axis=1).view(np.uint64).ravel()
    hashes = np.concatenate([hashes, hashes[draw.integers(0, 600, 500)] ^ flips, hashes[:5], hashes[:5]])
    others = np.concatenate([hashes[draw.integers(0, len(hashes), 300)], draw.integers(0, 2**64, 50, dtype=np.uint64)])
    monkeypatch.setattr(images, "_AT_ONCE", 100_000)  # several rounds

    def both():
        return list(near(hashes, others, bits=bits)), list(near_within(hashes))

    expected = both()
    monkeypatch.setattr(images, "_MOST_PAIRWISE", 0)
    assert both() == expected
    assert len(expected[0]) >= 300
    assert near_within(hashes[:0]) is not None
    assert list(near_within(hashes[:0])) == list(near(hashes, others[:0])) == []
    for band in images._Index(others, bits).bands:  # the costs, which bound the memory, are those of each hash
        costs = band.costs(hashes)
        assert all(costs[place] == band.costs(hashes[place : place + 1])[0] for place in range(0, len(hashes), 97))
