"""Datasets of every task: what a draw shows, and that nothing but seed and draw number changes it."""

import collections
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch.utils.data import DataLoader

from diffir_sr.cli import main
from diffir_sr.data.checks import check_dataset_options
from diffir_sr.data.draws import Draw, DrawSampler, GrowingBatchSampler, Mixture, curriculum_from_options
from diffir_sr.data.inpaint_dataset import Distortions, InpaintDataset
from diffir_sr.data.pairs import DeblurPairedDataset, PairedDataset
from diffir_sr.data.realesrgan_dataset import RealESRGANDataset, RealESRGANPairedDataset
from diffir_sr.data.sources import Entry, Manifest, open_source, write_manifest
from diffir_sr.data.transport import SharedBatches
from diffir_sr.errors import InputError
from diffir_sr.files.picture import encode_png

PHOTO = skimage.data.astronaut()


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.ascontiguousarray(image)))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Photographs cut into folders: gt and lq (same size), masks, and LMDBs and shards of gt and lq."""
    root = tmp_path_factory.mktemp("trees")
    for index in range(5):
        cut = PHOTO[60 * index : 60 * index + 96, 50 * index : 50 * index + 112]
        write(root / "gt" / f"p{index}.png", cut)
        write(root / "lq" / f"p{index}.png", cv2.GaussianBlur(cut, (0, 0), 2))
        mask = np.zeros((96, 112, 1), np.uint8)
        mask[10 * index : 10 * index + 20, 30:60] = 255
        write(root / "masks" / f"p{index}.png", mask)
    for name in ("gt", "lq"):
        command = ["prepare", "lmdb", str(root / name), "-o", str(root / f"{name}.lmdb"), "--codec", "raw"]
        assert main([*command, "--jobs", "1"]) == 0
        for codec in ("keep", "raw"):
            command = ["prepare", "shards", str(root / name), "-o", str(root / f"{name}.{codec}"), "--codec", codec]
            assert main([*command, "--jobs", "1", "--shard-size", "100kB"]) == 0
    return root


def options(kind, trees, *, ending="", **more):
    roots = {"dataroot_gt": str(trees / f"gt{ending}"), "gt_size": 32, "phase": "train", "scale": 1, "seed": 3}
    roots |= {"use_hflip": True, "use_rot": True}
    if kind in (PairedDataset, DeblurPairedDataset):
        roots |= {"dataroot_lq": str(trees / f"lq{ending}")}
    return kind, {"type": kind.__name__, **roots, **more}


CASES = [
    (PairedDataset, {}),
    (DeblurPairedDataset, {"geometric_augs": True, "iters": [3, 9], "gt_sizes": [16, 32], "mini_batch_sizes": [2, 1]}),
    (RealESRGANDataset, {"crop_pad_size": 64}),
    (InpaintDataset, {"mask_gen": {"irregular_kwargs": {"max_width": 8, "max_len": 20}, "box_proba": 0}}),
    (InpaintDataset, {"augment": "distortions", "mask_kind": "thin"}),
]


def plain(batches):
    """What a loader gave, by image path and content, as comparable values."""
    return [
        {key: value.tolist() if torch.is_tensor(value) else list(value) for key, value in batch.items()}
        for batch in batches
    ]


def loaded(kind, opt, *, workers=0, rank=0, world_size=1, ratio=4, epoch=1):
    dataset = kind(opt)
    sampler = DrawSampler(dataset, ratio=ratio, rank=rank, world_size=world_size, seed=7)
    if dataset.__dict__.get("curriculum"):
        growing = GrowingBatchSampler(sampler, dataset.curriculum)
        loader = DataLoader(dataset, batch_sampler=growing, num_workers=workers, collate_fn=SharedBatches())
        return plain(itertools.islice(loader, 8))
    sampler.start_at(epoch)
    how = dict(batch_size=2, sampler=sampler, num_workers=workers, drop_last=True, collate_fn=SharedBatches())
    return plain(DataLoader(dataset, **how))


@pytest.mark.parametrize(("kind", "more"), CASES)
def test_workers_change_nothing(trees, kind, more):
    kind, opt = options(kind, trees, **more)
    alone = loaded(kind, opt)
    assert len(alone) >= 6
    assert loaded(kind, opt, workers=2) == alone
    assert loaded(kind, opt, workers=4) == alone


@pytest.mark.parametrize(("kind", "more"), [case for case in CASES if "iters" not in case[1]])
def test_two_ranks_share_what_one_shows(trees, kind, more):
    kind, opt = options(kind, trees, **more)

    def samples(batches):
        keys = batches[0].keys()
        return sorted(json.dumps({key: batch[key][index] for key in keys}) for batch in batches for index in range(2))

    shared = [batch for rank in range(2) for batch in loaded(kind, opt, rank=rank, world_size=2)]
    assert samples(shared) == samples(loaded(kind, opt))


@pytest.mark.parametrize(("kind", "more"), CASES)
def test_folders_raw_lmdbs_and_shards_show_the_same(trees, kind, more):
    folders = loaded(*options(kind, trees, **more))
    for ending in (".lmdb", ".keep", ".raw"):
        for files, keys in zip(folders, loaded(*options(kind, trees, ending=ending, **more)), strict=True):
            # Keys in place of paths, so that only pictures and masks are compared.
            assert files.keys() == keys.keys()
            assert all(files[key] == keys[key] for key in files if "path" not in key)


@pytest.mark.parametrize(("kind", "more"), CASES)
@pytest.mark.parametrize("ending", [".lmdb", ".keep"])
def test_bytes_hold_what_floats_hold(trees, kind, more, ending):
    kind, opt = options(kind, trees, ending=ending, **more)
    floats, stored = kind(opt), kind(opt)
    stored.give_bytes()
    for dataset in (floats, stored):
        dataset.draws_are_unique = True
    for draw in range(6):
        for key in {"lq", "gt", "mask"} & floats[draw].keys():
            assert stored[draw][key].dtype == torch.uint8
            unit = 1 if key == "mask" else 1 / 255
            assert torch.equal(stored[draw][key].float() * unit, floats[draw][key])


# Several sources


def test_sources_have_their_shares_and_images_come_equally_often():
    mixture = Mixture([30, 5, 7], [1, 2, 1])
    size = len(mixture)
    assert size == 42
    seen = collections.Counter(mixture.locate(draw) for draw in range(size * 60))
    shares = [sum(count for (source, _), count in seen.items() if source == place) for place in range(3)]
    assert np.allclose(np.array(shares) / (size * 60), [0.25, 0.5, 0.25], atol=1 / size)
    for place, images in enumerate((30, 5, 7)):
        counts = [seen[place, image] for image in range(images)]
        assert max(counts) - min(counts) <= max(1, 0.1 * max(counts))


def test_without_weights_every_image_comes_once_in_a_pass():
    mixture = Mixture([3, 4])
    assert [mixture.locate(draw) for draw in range(7)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize(("weights", "message"), [([1], "1 numbers for 2 sources"), ([1, 0], "above 0")])
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        Mixture([2, 2], weights)


def test_a_list_of_roots_mixes_pairs(trees):
    kind, opt = options(PairedDataset, trees)
    two = [opt["dataroot_gt"], str(trees / "gt.lmdb")], [opt["dataroot_lq"], str(trees / "lq.lmdb")]
    dataset = kind({**opt, "dataroot_gt": two[0], "dataroot_lq": two[1], "source_weights": [1, 4]})
    assert len(dataset) == 10
    from_files = sum("/" in dataset[draw]["gt_path"] for draw in range(10))
    assert from_files == 2
    with pytest.raises(InputError, match="dataroot_lq has 1 entries, but dataroot_gt has 2"):
        kind({**opt, "dataroot_gt": two[0]})


# Lists


def test_a_list_or_manifest_is_a_root(trees, tmp_path):
    (trees / "gt" / "few.txt").write_text("p1.png (96,112,3)\np3.png\n")
    assert open_source(trees / "gt" / "few.txt").names == ["p1", "p3"]
    (trees / "gt" / "few.txt").unlink()
    for place, names in ((trees / "gt", ["p0.png", "p4.png"]), (trees / "gt.lmdb", ["p0", "p4"])):
        entries = [Entry(name, "x", (96, 112, 3), 1, "0") for name in names]
        path = write_manifest(place, Manifest("subimages", {}, "x", "1", entries))
        assert open_source(path).names == ["p0", "p4"]
        assert open_source(place, meta_info=path).names == ["p0", "p4"]
        path.unlink()
    with pytest.raises(InputError, match="expected a folder of images, an LMDB folder, or a list"):
        open_source(trees / "gt" / "p0.png")


def test_a_manifest_that_was_cut_short_is_refused(trees, tmp_path):
    entries = [Entry(f"p{index}.png", "x", (96, 112, 3), 1, "0") for index in range(3)]
    path = write_manifest(tmp_path / "gt", Manifest("subimages", {}, "x", "1", entries))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    write(tmp_path / "gt" / "p0.png", PHOTO[:8, :8])
    with pytest.raises(InputError, match="cannot be read as a manifest .*2 of 3 images"):
        open_source(path)


# Progressive patches

DEBLUR = {"gt_size": 512, "batch_size_per_gpu": 8, "mini_batch_sizes": [8, 4, 2, 2, 1, 1]}
DEBLUR |= {"iters": [92000, 80000, 38000, 33000, 33000, 24000], "gt_sizes": [192, 256, 320, 384, 464, 512]}


def test_phases_are_the_published_ones():
    curriculum = curriculum_from_options(DEBLUR)
    found = [(curriculum.at(i).gt_size, curriculum.at(i).batch) for i in (1, 92000, 92001, 172001, 276000, 300001)]
    assert found == [(192, 8), (192, 8), (256, 4), (320, 2), (464, 1), (512, 1)]


def test_samples_used_are_the_sum_of_the_batches():
    curriculum = curriculum_from_options({**DEBLUR, "iters": [4, 3, 2, 2, 1, 1]})
    used = 0
    for iteration in range(1, 40):
        assert curriculum.drawn_before(iteration) == used
        used += curriculum.at(iteration).batch


def test_growing_batches_go_on_where_they_stopped(trees):
    kind, opt = options(DeblurPairedDataset, trees, iters=[3, 4, 5], gt_sizes=[8, 16, 32], mini_batch_sizes=[4, 2, 1])
    dataset = kind(opt)

    def batches(done, count):
        sampler = GrowingBatchSampler(DrawSampler(dataset, ratio=1, rank=0, world_size=1, seed=0), dataset.curriculum)
        sampler.start_after(done)
        return list(itertools.islice(sampler, count))

    whole = batches(0, 20)
    assert [(len(batch), batch[0].gt_size) for batch in whole[:8]] == [(4, 8)] * 3 + [(2, 16)] * 4 + [(1, 32)]
    for done in range(1, 20):
        assert batches(done, 20 - done) == whole[done:]
    shown = collections.Counter(dataset.mixture.locate(draw.number) for batch in whole for draw in batch)
    assert max(shown.values()) - min(shown.values()) <= 1
    assert dataset[Draw(3, 16)]["gt"].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt_sizes": [192, 256, 320, 384, 464, 640]}, "gt_sizes: 640 is larger than gt_size, which is 512"),
        ({"mini_batch_sizes": [9, 4, 2, 2, 1, 1]}, "mini_batch_sizes: 9 is larger than batch_size_per_gpu"),
        ({"iters": [1]}, "three lists of the same length: iters has 1, gt_sizes has 6, mini_batch_sizes has 6"),
    ],
)
def test_phases_that_cannot_be_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        curriculum_from_options({**DEBLUR, **change})


def test_blurred_and_sharp_patches_stay_together_in_all_eight_symmetries(trees):
    kind, opt = options(DeblurPairedDataset, trees, geometric_augs=True, gt_size=96)
    dataset = kind({**opt, "dataroot_lq": opt["dataroot_gt"]})
    dataset.draws_are_unique = True
    image = torch.from_numpy(PHOTO[:96, :112].copy()).permute(2, 0, 1).float() / 255
    seen = set()
    for draw in range(0, 400, 5):  # always the first image
        sample = dataset[draw]
        assert torch.equal(sample["lq"], sample["gt"])
        for flip, turns in itertools.product((False, True), range(4)):
            back = torch.rot90(sample["gt"], -turns, (1, 2))
            back = back.flip(2) if flip else back
            if any(torch.allclose(back, image[:, :, left : left + 96]) for left in range(17)):
                seen.add((flip, turns))
    assert len(seen) == 8


def test_small_images_are_reflected_to_the_patch(trees):
    kind, opt = options(DeblurPairedDataset, trees, gt_size=128)
    sample = kind(opt)[0]
    assert sample["gt"].shape == (3, 128, 128)
    expected = np.pad(PHOTO[:96, :112], ((0, 32), (0, 16), (0, 0)), mode="symmetric")
    assert torch.allclose(sample["gt"], torch.from_numpy(expected).permute(2, 0, 1).float() / 255)


# Real-world


def test_crops_of_small_images_are_mirrored(trees):
    kind, opt = options(RealESRGANDataset, trees, use_hflip=False, use_rot=False, crop_pad_size=112)
    sample = kind(opt)[0]
    expected = np.pad(PHOTO[:96, :112], ((0, 16), (0, 0), (0, 0)), mode="reflect")
    assert torch.allclose(sample["gt"], torch.from_numpy(expected).permute(2, 0, 1).float() / 255)
    assert all(np.isclose(sample[name].sum(), 1) for name in ("kernel1", "kernel2", "sinc_kernel"))


def test_the_largest_kernel_is_as_asked(trees):
    kind, opt = options(RealESRGANDataset, trees, blur_kernel_size=7, blur_kernel_size2=9, crop_pad_size=64)
    dataset = kind(opt)
    for draw in range(20):
        margin = dataset[draw]["kernel1"].clone()
        margin[7:14, 7:14] = 0
        assert margin.abs().sum() == 0


def test_own_pairs_may_be_listed(trees, tmp_path):
    listing = tmp_path / "pairs.txt"
    listing.write_text("p0.png, p1.png\np2.png, p3.png\n")
    kind, opt = options(PairedDataset, trees)
    dataset = RealESRGANPairedDataset({**opt, "meta_info": str(listing)})
    assert [(pair.gt, pair.lq) for pair in dataset.sources[0].pairs] == [("p0", "p1"), ("p2", "p3")]
    gt = Path(opt["dataroot_gt"]).absolute()
    listing.write_bytes(
        f"\ufeff./p0.png, .\\p1.png\r\n{gt}/p2.png, p3.png\r\n".encode()
    )  # as editors and systems write
    dataset = RealESRGANPairedDataset({**opt, "meta_info": str(listing)})
    assert [(pair.gt, pair.lq) for pair in dataset.sources[0].pairs] == [("p0", "p1"), ("p2", "p3")]
    listing.write_text("p0.png p1.png\n")
    with pytest.raises(InputError, match=r"expected lines 'gt.png, lq.png', found 'p0.png p1.png'"):
        RealESRGANPairedDataset({**opt, "meta_info": str(listing)})
    listing.write_text("p0.png, p9.png\n")
    with pytest.raises(InputError, match="1 listed images are not under .*p9"):
        RealESRGANPairedDataset({**opt, "meta_info": str(listing)})


# Holes


def test_given_masks_are_binary_and_grow(trees):
    _, opt = options(InpaintDataset, trees, phase="val", dataroot_mask=str(trees / "masks"))
    sample = InpaintDataset(opt)[2]
    expected = torch.zeros(1, 96, 112)
    expected[:, 20:40, 30:60] = 1
    assert torch.equal(sample["mask"], expected)
    expected[:, 17:43, 27:63] = 1
    assert torch.equal(InpaintDataset({**opt, "mask_dilate": 3})[2]["mask"], expected)


def test_evaluation_masks_follow_from_seed_and_name_alone(trees):
    _, opt = options(InpaintDataset, trees, phase="val", mask_kind="thin")
    masks = [sample["mask"] for sample in InpaintDataset(opt)]
    again = InpaintDataset(opt)
    assert all(torch.equal(again[index]["mask"], masks[index]) for index in (3, 0, 4))
    assert not torch.equal(masks[0], masks[1])
    other = InpaintDataset({**opt, "seed": 4})
    assert not torch.equal(other[0]["mask"], masks[0])
    assert all(0 < mask.mean() <= 0.5 for mask in masks)


def test_images_without_ground_truth_need_masks(trees):
    _, opt = options(InpaintDataset, trees, phase="test")
    bare = {**opt, "dataroot_gt": None, "dataroot_lq": str(trees / "gt")}
    with pytest.raises(InputError, match="dataroot_mask is not given"):
        InpaintDataset(bare)
    sample = InpaintDataset({**bare, "dataroot_mask": str(trees / "masks")})[0]
    assert set(sample) == {"lq", "mask", "gt_path", "lq_path"}


def test_a_mask_of_another_size_or_name_is_reported(trees, tmp_path):
    _, opt = options(InpaintDataset, trees, phase="val", dataroot_mask=str(tmp_path / "masks"))
    for index in range(5):
        write(tmp_path / "masks" / f"p{index}.png", np.zeros((96, 112 - index, 1), np.uint8))
    with pytest.raises(InputError, match=r"4 images have wrong sizes: .*p1.png: 96x112, its mask 96x111"):
        check_dataset_options(opt)
    (tmp_path / "masks" / "p3.png").unlink()
    with pytest.raises(InputError, match="1 images have no mask of the same name under .*: p3"):
        check_dataset_options(opt)


def test_holes_that_fit_no_small_image_end_in_a_message(trees, tmp_path):
    write(tmp_path / "small" / "a.png", PHOTO[:12, :12])
    _, opt = options(InpaintDataset, trees, phase="val", mask_kind="thick", dataroot_gt=str(tmp_path / "small"))
    with pytest.raises(InputError, match="too small for such holes|too small for boxes"):
        InpaintDataset(opt)[0]


# Distortions


def test_a_distortion_shows_the_photograph():
    rng = np.random.default_rng(0)
    made = [Distortions()(PHOTO, size=128, rng=rng) for _ in range(60)]
    assert all(image.shape == (128, 128, 3) and image.dtype == np.uint8 for image in made)
    still = Distortions(perspective=0, scale=(1, 1), rotate=0, shear=0, lens=0, brightness=0, contrast=0, hsv=(0, 0, 0))
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(30):
        image = still(PHOTO, size=128, rng=rng)
        score = cv2.matchTemplate(PHOTO, image, cv2.TM_SQDIFF_NORMED).min()
        found += score < 1e-3
    assert 8 <= found <= 22  # the others have had their contrast equalised


def test_distortions_enlarge_small_images_by_mirroring():
    image = Distortions()(PHOTO[:40, :50], size=64, rng=np.random.default_rng(5))
    assert image.shape == (64, 64, 3)
    assert image.std() > 5


def distorted_plainly(steps, image, *, size, rng):
    """The published steps with whole maps and float pictures, as one would write them down."""
    height, width = image.shape[:2]
    high, wide = max(height, size), max(width, size)
    top, left = int(rng.integers(high - size + 1)), int(rng.integers(wide - size + 1))
    x, y = np.meshgrid(np.arange(size, dtype=np.float64) + left, np.arange(size, dtype=np.float64) + top)
    if rng.random() < 0.5:
        k, shift_x, shift_y = (rng.uniform(-steps.lens, steps.lens) for _ in range(3))
        centre_x, centre_y = wide * (0.5 + shift_x), high * (0.5 + shift_y)
        dx, dy = (x - centre_x) / wide, (y - centre_y) / wide
        r2 = dx * dx + dy * dy
        factor = (1 + k * r2 + k * r2 * r2) * wide
        x, y = centre_x + dx * factor, centre_y + dy * factor
    x, y = x - (wide - width) // 2, y - (high - height) // 2
    warp = steps._warp(height, width, rng)
    u, v, w = (a * x + (b * y + c) for a, b, c in np.linalg.inv(np.eye(3) if warp is None else warp))
    maps = ((one / w).astype(np.float32) for one in (u, v))
    image = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.5:
        light = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        equalise = cv2.createCLAHE(clipLimit=rng.uniform(1, 4), tileGridSize=(8, 8))
        light[..., 0] = equalise.apply(np.ascontiguousarray(light[..., 0]))
        image = cv2.cvtColor(light, cv2.COLOR_LAB2RGB)
    if rng.random() < 0.5:
        gain, lift = 1 + rng.uniform(-steps.contrast, steps.contrast), rng.uniform(-steps.brightness, steps.brightness)
        image = (image * gain + lift * 255).round().clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        hue, saturation, value = (rng.uniform(-limit, limit) for limit in steps.hsv)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + round(hue)) % 180
        hsv[..., 1:] = (hsv[..., 1:] + (saturation, value)).clip(0, 255)
        image = cv2.cvtColor(hsv.round().astype(np.uint8), cv2.COLOR_HSV2RGB)
    return image


@pytest.mark.parametrize("shape", [(96, 96), (128, 200), (50, 40)])
def test_distortions_in_few_passes_are_the_plain_ones_to_the_bit(shape):
    image = np.ascontiguousarray(PHOTO[: shape[0], : shape[1]])
    for seed in range(60):
        plain, fast = (np.random.default_rng(seed) for _ in range(2))
        wanted = distorted_plainly(Distortions(), image, size=96, rng=plain)
        assert np.array_equal(Distortions()(image, size=96, rng=fast), wanted)
        assert plain.bit_generator.state == fast.bit_generator.state
