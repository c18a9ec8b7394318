"""Rules about datasets: patch sizes, loaders, storage, degradation."""

import pytest
from options_cases import ABSENT, REAL, STAGE_1, changed, load, problems

_SR = {"type": "MSRResNet", "upscale": 4}


@pytest.mark.parametrize(
    ("network", "scale", "multiple"),
    [
        ({"scale": 4}, 4, 32),
        ({"scale": 2}, 2, 32),
        ({"scale": 1}, 1, 32),
        ({"task": "deblur"}, 1, 8),
        ({"task": "inpaint"}, 1, 8),
    ],
)
def test_patches_suit_the_network(network, scale, multiple):
    base = changed(STAGE_1, {"network_g": {"type": "DiffIRS1", **network}, "scale": scale})
    for size in range(multiple, 130, multiple):
        assert load(changed(base, {"datasets.train.gt_size": size}))
    for size in {1, scale * 8 - 1, multiple - 1, multiple // 2, multiple + multiple // 2, 127}:
        output = problems(changed(base, {"datasets.train.gt_size": size}))
        assert output["datasets.train.gt_size"].startswith(
            f"{size} is not possible: at scale {scale}, degraded patches must"
        )
        assert f"choose a multiple of {multiple}, for example" in output["datasets.train.gt_size"]


def test_a_patch_that_does_not_fit_gets_two_that_do():
    output = problems(changed(STAGE_1, {"datasets.train.gt_size": 250}))["datasets.train.gt_size"]
    assert output == (
        "250 is not possible: at scale 4, degraded patches must have multiples of 8 pixels; choose a multiple of 32, "
        "for example 224 or 256"
    )


def test_other_networks_need_whole_pixels():
    options = changed(STAGE_1, {"model_type": "SRModel", "network_g": _SR})
    assert load(options).warnings == []
    output = problems(changed(options, {"datasets.train.gt_size": 66}))
    assert (
        "must have a whole number of pixels; choose a multiple of 4, for example 64 or 68"
        in output["datasets.train.gt_size"]
    )


def test_a_scale_is_needed_where_no_network_shows_it():
    output = problems(changed(STAGE_1, {"model_type": "SRModel", "network_g": _SR, "scale": ABSENT}))
    assert output["scale"].startswith("missing: datasets.train needs ")


def test_patches_of_real_images_are_cut_after_degradation():
    options = changed(STAGE_1, {"datasets.train": REAL, "gt_size": 256})
    assert load(options).warnings == []
    assert problems(changed(options, {"gt_size": 250}))["gt_size"].startswith("250 is not possible")


def test_growing_patches_are_checked_one_by_one():
    data = {**STAGE_1["datasets"]["train"], "type": "DeblurPairedDataset"}
    data |= {"mini_batch_sizes": [2, 1], "iters": [5, 5], "gt_sizes": [32, 49]}
    options = changed(STAGE_1, {"datasets.train": data, "network_g.scale": ABSENT, "scale": 1})
    assert list(problems(options)) == ["datasets.train.gt_sizes[1]"]
    output = problems(changed(options, {"datasets.train.gt_sizes": [32]}))
    assert output == {
        "datasets.train": "these lists must have the same length: mini_batch_sizes has 2, iters has 2, gt_sizes has 1"
    }


@pytest.mark.parametrize("key", ["batch_size_per_gpu", "num_worker_per_gpu", "gt_size"])
def test_training_data_needs_its_loader_options(key):
    assert problems(changed(STAGE_1, {f"datasets.train.{key}": ABSENT}))[f"datasets.train.{key}"].startswith(
        "missing: "
    )


def test_basicsr_pairs_need_their_flips():
    output = problems(changed(STAGE_1, {"datasets.train.type": "PairedImageDataset"}))
    assert list(output) == ["datasets.train.use_hflip", "datasets.train.use_rot"]


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"val.persistent_workers": True}, "val.persistent_workers", "only training has worker processes"),
        ({"train.persistent_workers": True, "train.num_worker_per_gpu": 0}, "train.persistent_workers", "needs num_w"),
        ({"train.prefetch_mode": "cuda"}, "train.prefetch_mode", "cuda needs pin_memory: true"),
        ({"val.io_backend": {"type": "lmdb"}}, "val.dataroot_gt", "io_backend is lmdb, but 'gt' does not end in .lmdb"),
        (
            {"val.io_backend": {"type": "disk"}, "val.dataroot_lq": "a.lmdb/"},
            "val.dataroot_lq",
            "io_backend is disk, but 'a.lmdb/' names an LMDB; remove io_backend",
        ),
        (
            {"val.type": "PairedImageDataset", "val.dataroot_gt": "gt.lmdb"},
            "val.dataroot_lq",
            "PairedImageDataset needs two folders or two LMDBs, found one of each",
        ),
        ({"train.source_weights": [1, 2]}, "train.source_weights", "2 weights for 1 sources"),
        ({"train.dataroot_gt": ["a", "b"]}, "train.dataroot_lq", "has 1 entries, but dataroot_gt has 2"),
        (
            {"train": {**REAL, "kernel_prob": [1.0]}},
            "train.kernel_prob",
            "1 probabilities for 2 kinds in kernel_list; give one per kind",
        ),
    ],
)
def test_datasets_are_consistent(changes, key, message):
    told_of = problems(changed(STAGE_1, {f"datasets.{name}": value for name, value in changes.items()}))
    assert told_of[f"datasets.{key}"].startswith(message)


def test_the_pool_of_pairs_is_a_multiple_of_the_batch():
    output = problems(changed(STAGE_1, {"datasets.train": REAL, "queue_size": 100}))
    assert output == {"queue_size": "100 is not a multiple of datasets.train.batch_size_per_gpu, which is 9"}


def test_a_wrong_dataset_does_not_hide_the_next_one():
    changes = {"datasets.train.persistent_workers": "maybe", "datasets.val.persistent_workers": True}
    assert set(problems(changed(STAGE_1, changes))) == set(changes)
