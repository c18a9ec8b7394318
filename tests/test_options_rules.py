"""Rules about more than one option: networks, stages, scales, phases, schedules."""

import pytest
from options_cases import ABSENT, GAN, STAGE_1, STAGE_2, TEST, changed, load, problems

from diffir_sr.options.schema import default_at

_SR = {"type": "MSRResNet", "upscale": 4}
_SRGAN = {**GAN, "model_type": "SRGANModel", "network_g": _SR}


@pytest.mark.parametrize(
    ("options", "network", "wanted"), [(STAGE_1, "DiffIRS2", "DiffIRS1"), (STAGE_2, "DiffIRS1", "DiffIRS2")]
)
def test_a_model_needs_the_network_of_its_stage(options, network, wanted):
    output = problems(changed(options, {"network_g.type": network}))
    assert output["network_g.type"] == f"{options['model_type']} works on a {wanted} network, found {network!r}"


def test_a_test_needs_the_network_of_its_stage_too():
    output = problems(changed(TEST, {"network_g": {"type": "DiffIRS1"}}), is_train=False)
    assert output == {"network_g.type": "DiffIRS2Model works on a DiffIRS2 network, found 'DiffIRS1'"}


def test_the_teacher_is_a_stage_1_network():
    output = problems(changed(STAGE_2, {"network_S1.type": "DiffIRS2"}))
    assert output == {
        "network_S1.type": "stage 2 learns from a stage-1 network: expected a DiffIRS1 network, found 'DiffIRS2'"
    }


@pytest.mark.parametrize("options", [STAGE_2, GAN])
def test_stage_2_learns_from_a_teacher(options):
    output = problems(changed(options, {"network_S1": ABSENT, "path.pretrain_network_S1": None}))
    assert output["network_S1"].startswith(
        "missing: stage 2 learns from a stage-1 network; give the options that the network was trained with"
    )
    assert output["path.pretrain_network_S1"].startswith("missing: ")


def test_a_test_of_stage_2_needs_no_teacher():
    assert load(TEST).warnings == []


def test_a_gan_needs_a_start():
    output = problems(changed(GAN, {"path.pretrain_network_g": ABSENT}))
    assert output == {
        "path.pretrain_network_g": "missing: the GAN stage needs a stage-2 start; give the weights of a "
        "DiffIRS2Model training"
    }


def test_a_gan_that_is_resumed_needs_no_start():
    assert load(changed(GAN, {"path.pretrain_network_g": ABSENT, "path.resume_state": "5.state"})).warnings == []


@pytest.mark.parametrize("options", [GAN, _SRGAN])
def test_a_gan_needs_a_discriminator(options):
    output = problems(changed(options, {"network_d": ABSENT, "train.gan_opt": ABSENT, "train.optim_d": ABSENT}))
    assert set(output) == {"network_d", "train.gan_opt", "train.optim_d"}
    assert output["network_d"] == f"missing: {options['model_type']} trains against a discriminator"


@pytest.mark.parametrize("options", [STAGE_1, STAGE_2, GAN])
def test_a_training_without_a_loss_is_reported(options):
    output = problems(changed(options, {"train.pixel_opt": None}))
    assert output == {"train.pixel_opt": "missing: neither pixel_opt nor perceptual_opt is given; nothing is learnt"}


def test_the_warm_up_needs_its_learning_rates():
    given = {"train.encoder_iter": 10, "train.lr_sr": 1e-4, "train.gamma_sr": 0.5, "train.lr_decay_sr": 5}
    assert load(changed(GAN, given)).warnings == []
    output = problems(changed(STAGE_2, given))
    assert list(output) == ["train.lr_encoder", "train.gamma_encoder", "train.lr_decay_encoder"]


@pytest.mark.parametrize(
    ("network", "where", "message"),
    [
        ({"scale": 3}, "network_g.scale", "scale 3 is not possible for task 'sr'; possible: 1, 2, 4"),
        ({"task": "dehaze", "scale": ABSENT}, "network_g.task", "task 'dehaze' is unknown; known tasks: "),
        ({"task": "deblur"}, "network_g.scale", "scale 4 is not possible for task 'deblur'; possible: 1"),
    ],
)
def test_a_geometry_must_exist(network, where, message):
    told_of = problems(changed(STAGE_1, {f"network_g.{key}": value for key, value in network.items()}))
    assert told_of[where].startswith(message)


def test_teacher_and_student_share_their_geometry():
    output = problems(changed(STAGE_2, {"network_S1.scale": 2}))
    assert output == {
        "network_S1": "teacher and student differ: task 'sr', scale 2 here, task 'sr', scale 4 in network_g"
    }


def test_both_scales_must_be_the_same():
    output = problems(changed(STAGE_1, {"scale": 2}))
    assert output == {"scale": "2 here, but network_g.scale is 4; make both the same"}


def test_a_network_without_scale_is_for_4():
    options = changed(STAGE_1, {"network_g.scale": ABSENT})
    assert load(options).warnings == []
    output = problems(changed(options, {"scale": 2}))
    assert output == {"scale": "2 here, but network_g has scale 4 (by default); make both the same"}


@pytest.mark.parametrize("task", ["deblur", "inpaint"])
def test_other_tasks_do_not_change_the_size(task):
    network = {"type": "DiffIRS1", "task": task, "num_refinement_blocks": 0}
    options = changed(STAGE_1, {"network_g": network, "scale": 1})
    assert load(options).warnings == []
    assert problems(changed(options, {"scale": 4}))["scale"].startswith("4 here, but network_g has scale 1")


def test_a_training_needs_training_data():
    output = problems(changed(STAGE_1, {"datasets.train": ABSENT}), is_train=True)
    assert output == {"datasets.train": "missing: there is nothing to train on"}


def test_a_training_does_not_test():
    output = problems(changed(STAGE_1, {"datasets.test_1": STAGE_1["datasets"]["val"]}))
    assert output == {"datasets.test_1": "test datasets are for `basicsr test`; in a training, name it val_<name>"}


def test_a_test_does_not_train():
    output = problems(changed(TEST, {"datasets": {"train": STAGE_1["datasets"]["train"]}, "scale": 4}), is_train=False)
    assert output["datasets.train"].startswith("this is an option file for `basicsr train`")


def test_a_test_may_call_its_datasets_val():
    assert load(changed(TEST, {"datasets": {"val_1": TEST["datasets"]["test"]}})).warnings == []


def test_a_test_needs_data():
    assert problems(changed(TEST, {"datasets": {}}), is_train=False) == {
        "datasets": "there is nothing to test; give a dataset test_<name>"
    }


def test_a_training_needs_a_train_section():
    output = problems(changed(STAGE_1, {"train": ABSENT}), is_train=True)
    assert output == {"train": "missing: a training needs losses, an optimizer and total_iter"}


def test_basicsr_models_have_one_optimizer_and_fewer_schedulers():
    cyclic = {"type": "CosineAnnealingRestartCyclicLR", "periods": [100]}
    options = changed(STAGE_1, {"model_type": "SRModel", "network_g": _SR})
    output = problems(changed(options, {"train.optim_g.type": "AdamW", "train.scheduler": cyclic}))
    assert output == {
        "train.optim_g.type": "BasicSR's SRModel knows Adam alone, found 'AdamW'",
        "train.scheduler.type": "BasicSR's SRModel has no CosineAnnealingRestartCyclicLR",
    }


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "MultiStepLR", "milestones": [1, 2], "restarts": [0, 5]}, "restarts has 2, restart_weights has 1"),
        ({"type": "CosineAnnealingRestartLR", "periods": [60, 60]}, "periods has 2, restart_weights has 1"),
        (
            {"type": "CosineAnnealingRestartCyclicLR", "periods": [60, 60], "restart_weights": [1, 1]},
            "periods has 2, restart_weights has 2, eta_mins has 1",
        ),
    ],
)
def test_lists_of_a_schedule_have_one_length(scheduler, message):
    told_of = problems(changed(STAGE_1, {"train.scheduler": scheduler}))
    assert told_of == {"train.scheduler": f"these lists must have the same length: {message}"}


@pytest.mark.parametrize("kind", ["CosineAnnealingRestartLR", "CosineAnnealingRestartCyclicLR"])
def test_a_schedule_lasts_as_long_as_the_training(kind):
    options = changed(STAGE_1, {"train.scheduler": {"type": kind, "periods": [100]}})
    assert load(options).warnings == []
    output = problems(changed(options, {"train.total_iter": 101}))
    assert output == {
        "train.scheduler.periods": "they end at iteration 100, but total_iter is 101; extend them to total_iter"
    }


def test_a_rule_says_nothing_about_values_that_are_wrong_anyway():
    wrong = {"network_g.scale": "four", "train.scheduler.milestones": "x", "datasets.train.gt_size": "big"}
    assert set(problems(changed(STAGE_1, wrong))) == set(wrong)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("num_gpu",), "auto"),
        (("train", "encoder_iter"), 0),
        (("val", "pbar"), True),
        (("path", "strict_load_g"), True),
        (("network_g", "task"), "sr"),  # of the constructor
        (("datasets", "train", "use_shuffle"), True),
        (("datasets", "val", "mask_gen", "box_proba"), 1.0),  # of a section inside
        (("train", "pixel_opt", "reduction"), "mean"),
        (("train", "optim_g", "lr"), 0.001),
        (("train", "scheduler", "gamma"), 0.1),
        (("train", "total_iter"), None),  # must be given
        (("datasets", "val", "no_such_option"), None),
        (("logger", "print_freq"), 100),
    ],
)
def test_an_option_that_is_left_out_has_the_default_that_its_class_declares(keys, expected):
    import diffir_sr.registration  # noqa: F401

    values = {
        "model_type": "DiffIRS2Model",
        "network_g": {"type": "DiffIRS2"},
        "datasets": {"train": {"type": "PairedDataset"}, "val": {"type": "InpaintDataset", "mask_gen": {}}},
        "train": {
            "pixel_opt": {"type": "L1Loss"},
            "optim_g": {"type": "Adam"},
            "scheduler": {"type": "MultiStepLR"},
        },
    }
    assert default_at(values, keys) == expected
