"""Options without effect, corrections, and what is filled in."""

import pytest
from options_cases import ABSENT, GAN, REAL, STAGE_1, STAGE_2, TEST, changed, line_of, load, warnings

_WARM_UP = {
    "train.lr_encoder": 2e-4,
    "train.lr_sr": 2e-4,
    "train.gamma_encoder": 0.1,
    "train.gamma_sr": 0.5,
    "train.lr_decay_encoder": 60000,
    "train.lr_decay_sr": 600000,
}


@pytest.mark.parametrize(("scale", "multiple", "given"), [(4, 8, 8), (4, 8, 16), (2, 16, 16), (1, 32, 32)])
def test_window_size_is_reported_as_an_argument_of_the_network(scale, multiple, given):
    options = changed(STAGE_1, {"scale": scale, "network_g.scale": scale, "val.window_size": given})
    loaded = load(options)
    assert loaded.warnings == [
        f"run.yml:{line_of('window_size')}: val.window_size: has no effect: padding is a property of the network "
        f"(this one pads to multiples of {multiple})"
    ]
    assert loaded.values["val"]["window_size"] == given


@pytest.mark.parametrize(("scale", "multiple", "given"), [(2, 16, 8), (1, 32, 16), (4, 8, 20)])
def test_a_wrong_window_size_is_corrected(scale, multiple, given):
    loaded = load(changed(STAGE_1, {"scale": scale, "network_g.scale": scale, "val.window_size": given}))
    assert loaded.warnings == [
        f"run.yml:{line_of('window_size')}: val.window_size: corrected from {given} to {multiple}: padding is a "
        f"property of the network, which always pads to multiples of {multiple}"
    ]
    assert loaded.values["val"]["window_size"] == multiple


@pytest.mark.parametrize("name", ["mine_x2", "mine_x2_V2"])
def test_a_run_called_after_another_scale_is_reported(name):
    output = warnings(changed(STAGE_1, {"name": name}))
    assert output == {"name": "contains x2, but the scale is 4: results would mix with those of x2; rename it"}


@pytest.mark.parametrize("name", ["mine_x4", "mine_x4_V2", "x2", "mine_x25"])
def test_names_that_fit_the_scale_or_say_none_are_no_matter(name):
    assert warnings(changed(STAGE_1, {"name": name})) == {}


def test_the_gan_stage_has_no_warm_up_to_rule():
    output = warnings(changed(GAN, {**_WARM_UP, "train.encoder_iter": 10}))
    assert list(output) == ["train.lr_encoder"]
    assert output["train.lr_encoder"].startswith(
        "has no effect (also gamma_encoder, lr_decay_encoder): the GAN stage learns all parts from its start"
    )


def test_a_window_size_of_nothing_is_no_matter():
    assert warnings(changed(STAGE_1, {"val.window_size": None})) == {}


@pytest.mark.parametrize(("encoder_iter", "options"), [(0, STAGE_2), (ABSENT, STAGE_2), (0, GAN)])
def test_learning_rates_of_a_warm_up_that_is_none_have_no_effect(encoder_iter, options):
    if encoder_iter is not ABSENT:
        options = changed(options, {"train.encoder_iter": encoder_iter})
    output = warnings(changed(options, _WARM_UP))
    assert output == {
        "train.lr_encoder": "has no effect (also lr_sr, gamma_encoder, gamma_sr, lr_decay_encoder, lr_decay_sr): "
        "encoder_iter is 0, so train.scheduler rules the learning rate, as in the published super-resolution recipes"
    }


def test_learning_rates_of_a_warm_up_rule_when_there_is_one():
    assert warnings(changed(STAGE_2, {**_WARM_UP, "train.encoder_iter": 10})) == {}


def test_models_without_warm_up_tell_so():
    output = warnings(changed(STAGE_1, {"train.lr_sr": 1e-4}))
    assert output["train.lr_sr"].startswith(
        "has no effect: DiffIRS1Model does not read it (only DiffIRS2Model, DiffIRGANS2Model)"
    )


def test_refinement_blocks_for_inpainting_have_no_effect():
    network = {"type": "DiffIRS1", "task": "inpaint", "num_refinement_blocks": 4}
    output = warnings(changed(STAGE_1, {"network_g": network, "scale": 1}))
    assert output["network_g.num_refinement_blocks"].startswith(
        "has no effect: the inpainting network has no refinement"
    )
    assert warnings(changed(STAGE_1, {"network_g": {**network, "num_refinement_blocks": 0}, "scale": 1})) == {}


def test_degradation_options_without_degradation_have_no_effect():
    options = changed(STAGE_1, {"queue_size": 64, "gt_usm": False, "resize_prob": [0.2, 0.7, 0.1]})
    assert warnings(options) == {"queue_size": "has no effect (also resize_prob): only RealESRGANDataset reads it"}
    assert warnings(changed(options, {"datasets.train": REAL, "queue_size": 90})) == {}


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (STAGE_1, "gan_opt", {"type": "GANLoss", "gan_type": "vanilla"}),
        (STAGE_2, "optim_d", {"type": "Adam", "lr": 1e-4}),
        (STAGE_2, "net_d_iters", 2),
        (STAGE_1, "kd_opt", {"type": "KDLoss"}),
        (STAGE_1, "encoder_iter", 5),
    ],
)
def test_options_that_this_model_does_not_read_have_no_effect(options, key, value):
    output = warnings(changed(options, {f"train.{key}": value}))
    assert output[f"train.{key}"].startswith(f"has no effect: {options['model_type']} does not read it (only ")


def test_an_option_that_is_switched_off_needs_no_warning():
    assert warnings(changed(STAGE_1, {"train.gan_opt": None, "train.kd_opt": None, "train.encoder_iter": 0})) == {}


def test_mixing_has_no_effect_where_nothing_mixes():
    basicsr = {"model_type": "SRModel", "network_g": {"type": "MSRResNet", "upscale": 4}}
    mixing = {"train.mixing_augs": {"mixup": True, "mixup_beta": 1.2}}
    assert "train.mixing_augs" in warnings(changed(STAGE_1, {**basicsr, **mixing}))
    assert warnings(changed(STAGE_1, mixing)) == {}


def test_shuffling_cannot_be_switched_off():
    assert warnings(changed(STAGE_1, {"datasets.train.use_shuffle": True})) == {}
    output = warnings(changed(STAGE_1, {"datasets.train.use_shuffle": False}))
    assert output == {"datasets.train.use_shuffle": "has no effect: training data is always shuffled"}


def test_a_cold_start_of_stage_2_is_reported():
    output = warnings(changed(STAGE_2, {"path.pretrain_network_g": ABSENT}))
    assert output["path.pretrain_network_g"].startswith("not given: stage 2 starts from random weights")
    assert warnings(changed(STAGE_2, {"path.pretrain_network_g": ABSENT, "path.resume_state": "5.state"})) == {}


def test_a_published_deblurring_file_gets_its_task():
    data = {**STAGE_1["datasets"]["train"], "type": "DeblurPairedDataset", "geometric_augs": True}
    options = changed(
        STAGE_2, {"datasets.train": data, "network_g.scale": ABSENT, "network_S1.scale": ABSENT, "scale": 4}
    )
    loaded = load(options)
    assert loaded.values["network_g"]["task"] == loaded.values["network_S1"]["task"] == "deblur"
    assert loaded.values["scale"] == 1
    assert loaded.warnings == [
        f"run.yml:{line_of('scale: 4')}: scale: corrected from 4 to 1: deblurring does not change the size",
        f"run.yml:{line_of('network_g:')}: network_g: network_g.task and network_S1.task set to 'deblur', because a "
        "dataset is a DeblurPairedDataset and no scale is given",
    ]


def test_a_deblurring_dataset_does_not_overrule_what_is_said():
    data = {**STAGE_1["datasets"]["train"], "type": "DeblurPairedDataset"}
    for network in ({"scale": 4}, {"task": "sr", "scale": ABSENT}):
        changes = {f"network_g.{key}": value for key, value in network.items()}
        loaded = load(changed(STAGE_1, {"datasets.train": data, **changes}))
        assert (loaded.warnings, loaded.values["scale"]) == ([], 4)


def test_what_basicsr_reads_unasked_is_filled_in_for_training():
    values = load(changed(STAGE_1, {"val": ABSENT})).values
    assert (
        values["val"].items() >= {"val_freq": 5000, "save_img": False, "suffix": None, "pbar": True, "seed": 0}.items()
    )
    assert values["logger"].items() >= {"print_freq": 100, "save_checkpoint_freq": 5000, "use_tb_logger": False}.items()
    assert values["path"] == {"ignore_resume_networks": []}
    assert values["num_gpu"] == "auto"


def test_what_basicsr_reads_unasked_is_filled_in_for_testing():
    values = load(changed(TEST, {"path": ABSENT})).values
    assert (
        values["val"].items() >= {"val_freq": 5000, "save_img": True, "suffix": None, "pbar": True, "seed": 0}.items()
    )
    assert values["path"] == {}


def test_what_is_given_is_not_filled_in():
    changes = {"val": {"pbar": False, "seed": 7}, "logger": {"print_freq": 1}, "num_gpu": 0}
    values = load(changed(STAGE_1, changes)).values
    assert (values["val"]["pbar"], values["val"]["seed"], values["val"]["val_freq"]) == (False, 7, 5000)
    assert (values["logger"]["print_freq"], values["num_gpu"]) == (1, 0)


def test_validation_can_be_switched_off():
    assert load(changed(STAGE_1, {"val": None})).values["val"] is None


def test_the_scale_is_that_of_the_network():
    assert load(changed(STAGE_1, {"scale": ABSENT})).values["scale"] == 4
    assert load(changed(STAGE_1, {"scale": ABSENT, "network_g.scale": 2})).values["scale"] == 2


@pytest.mark.parametrize(
    ("gt", "lq", "backend"),
    [
        ("gt", "lq", {"type": "disk"}),
        ("gt.lmdb", "lq.lmdb", {"type": "lmdb"}),
        ("gt.lmdb/", "lq.lmdb", {"type": "lmdb"}),
        ("gt.lmdb", "lq", None),
    ],
)
def test_storage_follows_the_names_of_the_roots(gt, lq, backend):
    values = load(changed(STAGE_1, {"datasets.val.dataroot_gt": gt, "datasets.val.dataroot_lq": lq})).values
    assert values["datasets"]["val"].get("io_backend") == backend


def test_given_storage_is_kept():
    given = {"type": "lmdb", "readahead": True}
    roots = {"datasets.val.dataroot_gt": "a.lmdb", "datasets.val.dataroot_lq": "b.lmdb"}
    values = load(changed(STAGE_1, {**roots, "datasets.val.io_backend": given})).values
    assert values["datasets"]["val"]["io_backend"] == given


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (ABSENT, ["network_S1"]),
        (None, ["network_S1"]),
        ("network_S1", ["network_S1"]),
        ("network_d", ["network_d", "network_S1"]),
        (["network_S1", "network_d"], ["network_S1", "network_d"]),
    ],
)
def test_resuming_never_replaces_the_teacher(given, kept):
    options = STAGE_2 if given is ABSENT else changed(STAGE_2, {"path.ignore_resume_networks": given})
    assert load(options).values["path"]["ignore_resume_networks"] == kept


def test_without_a_teacher_nothing_is_ignored():
    options = changed(STAGE_1, {"path": {"ignore_resume_networks": "network_d"}})
    assert load(options).values["path"]["ignore_resume_networks"] == ["network_d"]


def test_the_teacher_s_averaged_weights_are_loaded_unless_said_otherwise():
    assert load(STAGE_2).values["path"]["param_key_S1"] == "params_ema"
    assert load(changed(STAGE_2, {"path.param_key_S1": "params"})).values["path"]["param_key_S1"] == "params"
    assert "param_key_S1" not in load(STAGE_1).values["path"]


def test_loading_changes_neither_file_nor_later_loads():
    options = changed(STAGE_2, {"val": ABSENT})
    first = load(options).values
    first["train"]["optim_g"].pop("type")
    assert load(options).values["train"]["optim_g"]["type"] == "Adam"
