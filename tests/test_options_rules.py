"""Rules about more than one option, and about files that must be there."""

from pathlib import Path

import pytest
from basicsr.utils import registry
from options_cases import ABSENT, GAN, REAL, STAGE_1, STAGE_2, TEST, changed, load, refusal

from diffir_sr.errors import OptionError
from diffir_sr.options import load_options

_SR = {"type": "MSRResNet", "upscale": 4}
_SRGAN = {**GAN, "model_type": "SRGANModel", "network_g": _SR}


def _problems(options, **arguments):
    """{key: text} of every problem."""
    lines = [line for line in refusal(options, **arguments).splitlines() if not line.endswith(" problems")]
    return dict(line.split(": ", 2)[1:] for line in lines)


@pytest.fixture
def deblur_data(monkeypatch):
    """A dataset class under the published name, as one that reads blurred images registers it."""
    if "DeblurPairedDataset" not in registry.DATASET_REGISTRY:
        known = {**registry.DATASET_REGISTRY._obj_map, "DeblurPairedDataset": type("DeblurPairedDataset", (), {})}
        monkeypatch.setattr(registry.DATASET_REGISTRY, "_obj_map", known)


@pytest.mark.parametrize(
    ("options", "network", "wanted"), [(STAGE_1, "DiffIRS2", "DiffIRS1"), (STAGE_2, "DiffIRS1", "DiffIRS2")]
)
def test_a_model_needs_the_network_of_its_stage(options, network, wanted):
    told = _problems(changed(options, {"network_g.type": network}))
    assert told["network_g.type"] == f"{options['model_type']} works on a {wanted} network, found {network!r}"


def test_a_test_needs_the_network_of_its_stage_too():
    told = _problems(changed(TEST, {"network_g": {"type": "DiffIRS1"}}), is_train=False)
    assert told == {"network_g.type": "DiffIRS2Model works on a DiffIRS2 network, found 'DiffIRS1'"}


def test_the_teacher_is_a_stage_1_network():
    told = _problems(changed(STAGE_2, {"network_S1.type": "DiffIRS2"}))
    assert told == {"network_S1.type": "the teacher of stage 2 is a DiffIRS1 network, found 'DiffIRS2'"}


@pytest.mark.parametrize("options", [STAGE_2, GAN])
def test_stage_2_learns_from_a_teacher(options):
    told = _problems(changed(options, {"network_S1": ABSENT, "path.pretrain_network_S1": None}))
    assert told["network_S1"].startswith(f"missing: {options['model_type']} learns from stage 1; give the network")
    assert told["path.pretrain_network_S1"].startswith("missing: ")


def test_a_test_of_stage_2_needs_no_teacher():
    assert load(TEST).warnings == []


def test_a_gan_needs_a_start():
    told = _problems(changed(GAN, {"path.pretrain_network_g": ABSENT}))
    assert told == {
        "path.pretrain_network_g": "missing: the GAN stage needs a stage-2 start; give the weights of a "
        "DiffIRS2Model training"
    }


def test_a_gan_that_is_resumed_needs_no_start():
    assert load(changed(GAN, {"path.pretrain_network_g": ABSENT, "path.resume_state": "5.state"})).warnings == []


@pytest.mark.parametrize("options", [GAN, _SRGAN])
def test_a_gan_needs_a_discriminator(options):
    told = _problems(changed(options, {"network_d": ABSENT, "train.gan_opt": ABSENT, "train.optim_d": ABSENT}))
    assert set(told) == {"network_d", "train.gan_opt", "train.optim_d"}
    assert told["network_d"] == f"missing: {options['model_type']} trains against a discriminator"


@pytest.mark.parametrize("options", [STAGE_1, STAGE_2, GAN])
def test_a_training_without_a_loss_is_told(options):
    told = _problems(changed(options, {"train.pixel_opt": None}))
    assert told == {"train.pixel_opt": "missing: neither pixel_opt nor perceptual_opt is given; nothing is learnt"}


def test_the_warm_up_needs_its_learning_rates():
    given = {"train.encoder_iter": 10, "train.lr_sr": 1e-4, "train.gamma_sr": 0.5, "train.lr_decay_sr": 5}
    assert load(changed(GAN, given)).warnings == []
    told = _problems(changed(STAGE_2, given))
    assert list(told) == ["train.lr_encoder", "train.gamma_encoder", "train.lr_decay_encoder"]


@pytest.mark.parametrize(
    ("network", "where", "told"),
    [
        ({"scale": 3}, "network_g.scale", "scale 3 is not possible for task 'sr'; possible: 1, 2, 4"),
        ({"task": "dehaze", "scale": ABSENT}, "network_g.task", "task 'dehaze' is unknown; known tasks: "),
        ({"task": "deblur"}, "network_g.scale", "scale 4 is not possible for task 'deblur'; possible: 1"),
    ],
)
def test_a_geometry_must_exist(network, where, told):
    problems = _problems(changed(STAGE_1, {f"network_g.{key}": value for key, value in network.items()}))
    assert problems[where].startswith(told)


def test_teacher_and_student_share_their_geometry():
    told = _problems(changed(STAGE_2, {"network_S1.scale": 2}))
    assert told == {
        "network_S1": "teacher and student differ: task 'sr', scale 2 here, task 'sr', scale 4 in network_g"
    }


def test_both_scales_must_be_the_same():
    told = _problems(changed(STAGE_1, {"scale": 2}))
    assert told == {"scale": "2 here, but network_g.scale is 4; make both the same"}


def test_a_network_without_scale_is_for_4():
    options = changed(STAGE_1, {"network_g.scale": ABSENT})
    assert load(options).warnings == []
    told = _problems(changed(options, {"scale": 2}))
    assert told == {
        "scale": "2 here, but network_g restores at scale 4 (task 'sr', no scale given); make both the same"
    }


@pytest.mark.parametrize("task", ["deblur", "inpaint"])
def test_other_tasks_do_not_change_the_size(task):
    network = {"type": "DiffIRS1", "task": task, "num_refinement_blocks": 0}
    options = changed(STAGE_1, {"network_g": network, "scale": 1})
    assert load(options).warnings == []
    assert _problems(changed(options, {"scale": 4}))["scale"].startswith("4 here, but network_g restores at scale 1")


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
        told = _problems(changed(base, {"datasets.train.gt_size": size}))
        assert told["datasets.train.gt_size"].startswith(
            f"{size} does not fit: at scale {scale}, degraded patches must"
        )
        assert f"choose a multiple of {multiple}, for example" in told["datasets.train.gt_size"]


def test_a_patch_that_does_not_fit_gets_two_that_do():
    told = _problems(changed(STAGE_1, {"datasets.train.gt_size": 250}))["datasets.train.gt_size"]
    assert told == (
        "250 does not fit: at scale 4, degraded patches must have multiples of 8 pixels; choose a multiple of 32, "
        "for example 224 or 256"
    )


def test_other_networks_need_whole_pixels():
    options = changed(STAGE_1, {"model_type": "SRModel", "network_g": _SR})
    assert load(options).warnings == []
    told = _problems(changed(options, {"datasets.train.gt_size": 66}))
    assert (
        "must have a whole number of pixels; choose a multiple of 4, for example 64 or 68"
        in told["datasets.train.gt_size"]
    )


def test_a_scale_is_needed_where_no_network_tells_it():
    told = _problems(changed(STAGE_1, {"model_type": "SRModel", "network_g": _SR, "scale": ABSENT}))
    assert told["scale"].startswith("missing: datasets.train needs ")


def test_patches_of_real_images_are_cut_after_degradation():
    options = changed(STAGE_1, {"datasets.train": REAL, "gt_size": 256})
    assert load(options).warnings == []
    assert _problems(changed(options, {"gt_size": 250}))["gt_size"].startswith("250 does not fit")


def test_growing_patches_are_checked_one_by_one(deblur_data):
    data = {**STAGE_1["datasets"]["train"], "type": "DeblurPairedDataset"}
    data |= {"mini_batch_sizes": [2, 1], "iters": [5, 5], "gt_sizes": [32, 49]}
    options = changed(STAGE_1, {"datasets.train": data, "network_g.scale": ABSENT, "scale": 1})
    assert list(_problems(options)) == ["datasets.train.gt_sizes[1]"]
    told = _problems(changed(options, {"datasets.train.gt_sizes": [32]}))
    assert told == {
        "datasets.train": "these lists must be of one length: mini_batch_sizes has 2, iters has 2, gt_sizes has 1"
    }


@pytest.mark.parametrize("key", ["batch_size_per_gpu", "num_worker_per_gpu", "gt_size"])
def test_training_data_needs_its_loader_options(key):
    assert _problems(changed(STAGE_1, {f"datasets.train.{key}": ABSENT}))[f"datasets.train.{key}"].startswith(
        "missing: "
    )


def test_basicsr_pairs_need_their_flips():
    told = _problems(changed(STAGE_1, {"datasets.train.type": "PairedImageDataset"}))
    assert list(told) == ["datasets.train.use_hflip", "datasets.train.use_rot"]


def test_a_training_needs_training_data():
    told = _problems(changed(STAGE_1, {"datasets.train": ABSENT}), is_train=True)
    assert told == {"datasets.train": "missing: there is nothing to train on"}


def test_a_training_does_not_test():
    told = _problems(changed(STAGE_1, {"datasets.test_1": STAGE_1["datasets"]["val"]}))
    assert told == {"datasets.test_1": "test datasets are for `basicsr test`; in a training, call it val_<name>"}


def test_a_test_does_not_train():
    told = _problems(changed(TEST, {"datasets": {"train": STAGE_1["datasets"]["train"]}, "scale": 4}), is_train=False)
    assert told["datasets.train"].startswith("this is an option file for `basicsr train`")


def test_a_test_may_call_its_datasets_val():
    assert load(changed(TEST, {"datasets": {"val_1": TEST["datasets"]["test"]}})).warnings == []


def test_a_test_needs_data():
    assert _problems(changed(TEST, {"datasets": {}}), is_train=False) == {
        "datasets": "there is nothing to test; give a dataset test_<name>"
    }


def test_a_training_needs_a_train_section():
    told = _problems(changed(STAGE_1, {"train": ABSENT}), is_train=True)
    assert told == {"train": "missing: a training needs losses, an optimizer and total_iter"}


def test_basicsr_models_have_one_optimizer_and_fewer_schedulers():
    cyclic = {"type": "CosineAnnealingRestartCyclicLR", "periods": [100]}
    options = changed(STAGE_1, {"model_type": "SRModel", "network_g": _SR})
    told = _problems(changed(options, {"train.optim_g.type": "AdamW", "train.scheduler": cyclic}))
    assert told == {
        "train.optim_g.type": "BasicSR's SRModel knows Adam alone, found 'AdamW'",
        "train.scheduler.type": "BasicSR's SRModel has no CosineAnnealingRestartCyclicLR",
    }


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ({"type": "MultiStepLR", "milestones": [1, 2], "restarts": [0, 5]}, "restarts has 2, restart_weights has 1"),
        ({"type": "CosineAnnealingRestartLR", "periods": [60, 60]}, "periods has 2, restart_weights has 1"),
        (
            {"type": "CosineAnnealingRestartCyclicLR", "periods": [60, 60], "restart_weights": [1, 1]},
            "periods has 2, restart_weights has 2, eta_mins has 1",
        ),
    ],
)
def test_lists_of_a_schedule_have_one_length(scheduler, told):
    problems = _problems(changed(STAGE_1, {"train.scheduler": scheduler}))
    assert problems == {"train.scheduler": f"these lists must be of one length: {told}"}


@pytest.mark.parametrize("kind", ["CosineAnnealingRestartLR", "CosineAnnealingRestartCyclicLR"])
def test_a_schedule_lasts_as_long_as_the_training(kind):
    options = changed(STAGE_1, {"train.scheduler": {"type": kind, "periods": [100]}})
    assert load(options).warnings == []
    told = _problems(changed(options, {"train.total_iter": 101}))
    assert told == {
        "train.scheduler.periods": "they end at iteration 100, but total_iter is 101; make them last as long"
    }


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"val.persistent_workers": True}, "val.persistent_workers", "only training has reader processes"),
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
        ({"train": {**REAL, "meta_info": None}}, "train.meta_info", "missing: the text file that lists the images"),
        (
            {"train": {**REAL, "kernel_prob": [1.0]}},
            "train.kernel_prob",
            "1 chances for 2 kinds in kernel_list; give one for each",
        ),
    ],
)
def test_datasets_are_consistent(changes, key, told):
    problems = _problems(changed(STAGE_1, {f"datasets.{name}": value for name, value in changes.items()}))
    assert problems[f"datasets.{key}"].startswith(told)


def test_the_pool_of_pairs_is_a_multiple_of_the_batch():
    told = _problems(changed(STAGE_1, {"datasets.train": REAL, "queue_size": 100}))
    assert told == {"queue_size": "100 is no multiple of datasets.train.batch_size_per_gpu, which is 9"}


def test_weights_and_biases_copies_the_log_of_tensorboard():
    logger = {"use_tb_logger": True, "wandb": {"project": "p", "resume_id": None}}
    assert load(changed(STAGE_1, {"logger": logger})).warnings == []
    told = _problems(changed(STAGE_1, {"logger": {**logger, "use_tb_logger": False}}))
    assert told == {"logger.wandb.project": "needs logger.use_tb_logger: true, whose log it copies"}


def test_a_rule_says_nothing_about_values_that_are_wrong_anyway():
    wrong = {"network_g.scale": "four", "train.scheduler.milestones": "x", "datasets.train.gt_size": "big"}
    assert set(_problems(changed(STAGE_1, wrong))) == set(wrong)


def test_a_wrong_dataset_does_not_hide_the_next_one():
    changes = {"datasets.train.persistent_workers": "maybe", "datasets.val.persistent_workers": True}
    assert set(_problems(changed(STAGE_1, changes))) == set(changes)


def _with_files(options, *, folders=("gt", "lq"), files=("stage_1.pth", "stage_2.pth", "net_g.pth")):
    for folder in folders:
        Path(folder).mkdir()
    for file in files:
        Path(file).touch()
    return options


@pytest.mark.parametrize("options", [STAGE_1, STAGE_2, GAN, TEST])
def test_files_that_are_there_are_found(options):
    assert load(_with_files(options), check_files=True).warnings == []


@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        (STAGE_2, "pretrain_network_g", "stage 1 makes it: basicsr train -opt options/train_DiffIRS1_x4.yml"),
        (STAGE_2, "pretrain_network_S1", "stage 1 makes it: basicsr train -opt options/train_DiffIRS1_x4.yml"),
        (GAN, "pretrain_network_g", "stage 2 makes it: basicsr train -opt options/train_DiffIRS2_x4.yml"),
        (GAN, "pretrain_network_S1", "stage 1 makes it: basicsr train -opt options/train_DiffIRS1_x4.yml"),
        (GAN, "pretrain_network_d", "the GAN stage makes it: basicsr train -opt options/train_DiffIRS2_GAN_x4.yml"),
        (STAGE_1, "pretrain_network_g", "correct the path, or remove the option to start without"),
        (TEST, "pretrain_network_g", "stage 2 makes it: basicsr train -opt options/train_DiffIRS2_x4.yml"),
    ],
)
def test_missing_weights_tell_what_makes_them(options, key, told, tmp_path):
    options = changed(_with_files(options), {f"path.{key}": "nowhere/net.pth"})
    problems = _problems(options, check_files=True)
    assert problems == {f"path.{key}": f"no such file: nowhere/net.pth (current folder: {tmp_path}); {told}"}


def test_missing_weights_of_another_task_name_the_model():
    network = {"type": "DiffIRS2", "task": "deblur"}
    options = changed(_with_files(TEST), {"network_g": network, "path.pretrain_network_g": "/nowhere/net.pth"})
    assert _problems(options, check_files=True) == {
        "path.pretrain_network_g": "no such file: /nowhere/net.pth; stage 2 makes it (model_type DiffIRS2Model)"
    }


def test_a_test_does_not_look_for_the_teacher():
    teacher = {"network_S1": STAGE_2["network_S1"], "path.pretrain_network_S1": "nowhere.pth"}
    assert load(changed(_with_files(TEST), teacher), check_files=True).warnings == []


def test_resuming_looks_for_state_and_teacher_alone():
    path = {"path.pretrain_network_g": "nowhere.pth", "path.resume_state": "5.state"}
    options = changed(_with_files(STAGE_2), path)
    assert list(_problems(options, check_files=True)) == ["path.resume_state"]
    Path("5.state").touch()
    assert load(options, check_files=True)


def test_missing_data_is_told_for_every_dataset(tmp_path):
    options = changed(_with_files(STAGE_1, folders=["lq"]), {"datasets.val.dataroot_lq": "lq.lmdb"})
    there = f"(current folder: {tmp_path}); datasets/README.md says how to prepare data"
    assert _problems(options, check_files=True) == {
        "datasets.train.dataroot_gt": f"no such folder: gt {there}",
        "datasets.val.dataroot_gt": f"no such folder: gt {there}",
        "datasets.val.dataroot_lq": f"no such LMDB: lq.lmdb {there}",
    }


def test_missing_lists_and_vgg_weights_are_told():
    loss = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_path": "vgg.pth"}
    changes = {"datasets.train.meta_info_file": "list.txt", "train.perceptual_opt": loss}
    told = _problems(changed(_with_files(STAGE_1), changes), check_files=True)
    assert set(told) == {"datasets.train.meta_info_file", "train.perceptual_opt.vgg_path"}


def test_the_home_folder_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    _with_files(TEST)
    options = changed(TEST, {"path.pretrain_network_g": "~/net_g.pth", "datasets.test.dataroot_lq": "~/lq"})
    assert load(options, check_files=True)


def test_files_are_looked_for_by_default():
    load(TEST)
    with pytest.raises(OptionError, match="path.pretrain_network_g: no such file: net_g.pth"):
        load_options("run.yml", is_train=False)
