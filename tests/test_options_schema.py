"""Sections against their schemas: unknown keys, wrong kinds, missing keys, and all problems in one message."""

import copy
import random
import re
from pathlib import Path

import pytest
import torch
from options_cases import ABSENT, GAN, REAL, STAGE_1, STAGE_2, TEST, changed, line_of, load, refusal

from diffir_sr.errors import OptionError
from diffir_sr.option_types import Section
from diffir_sr.options.recipes import recipe_names, recipes_folder
from diffir_sr.options.source import read_source


@pytest.mark.parametrize("options", [STAGE_1, STAGE_2, GAN, TEST])
def test_right_files_load_without_a_word(options):
    assert load(options).warnings == []


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("nam", "did you mean 'name'?"),
        ("train.total_iters", "did you mean 'total_iter'?"),
        ("train.Ema_Decay", "did you mean 'ema_decay'?"),
        ("val.metric", "did you mean 'metrics'?"),
        ("logger.save_freq", "did you mean 'save_checkpoint_freq'?"),
        (
            "logger.zzz",
            "known options here: keep_states, keep_states_every, print_freq, report, save_checkpoint_freq, trackio, "
            "use_tb_logger, wandb",
        ),
        ("logger.wandb.projekt", "did you mean 'project'?"),
        ("path.pretrain_network", "did you mean 'pretrain_network_g'?"),
        ("dist_params.ports", "did you mean 'port'?"),
        ("datasets.train.gtsize", "did you mean 'gt_size'?"),
        ("train.scheduler.milestone", "did you mean 'milestones'?"),
        ("train.mixing_augs.mix", "did you mean 'mixup'?"),
        ("total_iter", "it belongs under 'train'"),
        ("train.val_freq", "it belongs under 'val'"),
        ("val.total_iter", "it belongs under 'train'"),
        ("train.scale", "it belongs at the top level"),
        ("path.dataroot_gt", "it belongs under 'datasets.*'"),
        ("datasets.val.save_img", "it belongs under 'val'"),
        ("use_hflips", "did you mean 'use_hflip' under 'datasets.*'?"),
    ],
)
def test_unknown_keys_are_errors_with_a_hint(key, hint):
    message = refusal(changed(STAGE_1, {key: 98765}))
    assert message == f"run.yml:{line_of('98765')}: {key}: unknown option; {hint}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", 12, "expected text, found 12; put it in quotes"),
        ("name", True, "expected text, found true; put it in quotes"),
        ("name", "", "expected text, found '' (text)"),
        ("name", ["a"], "expected text, found the list ['a']"),
        ("scale", "four", "expected a whole number, found 'four' (text)"),
        ("scale", 0, "expected 1 or more, found 0"),
        ("num_gpu", "all", "expected 'auto' or a number of GPUs (0: use the CPU), found 'all' (text)"),
        ("num_gpu", -1, "expected 'auto' or a number of GPUs (0: use the CPU), found -1"),
        ("manual_seed", 1.5, "expected a whole number, found 1.5"),
        ("train.total_iter", None, "expected a whole number, found nothing (~)"),
        ("train.total_iter", True, "expected a whole number, found true"),
        ("train.ema_decay", 1.1, "expected 1 or less, found 1.1"),
        ("train.ema_decay", float("nan"), "expected a number, found nan"),
        ("train.clip_grad_norm", 0, "expected more than 0, found 0"),
        ("val.save_img", "yes please", "expected true or false, found 'yes please' (text)"),
        ("val.save_img", 1, "expected true or false, found 1"),
        ("val.metrics", [1], "expected a section (key: value), found the list [1]"),
        ("logger", 5, "expected a section (key: value), found 5"),
        ("train", "fast", "expected a section (key: value), found 'fast' (text)"),
        ("network_g", "DiffIRS1", "expected a section (key: value), found 'DiffIRS1' (text)"),
        ("datasets.val", None, "expected a section (key: value), found nothing (~)"),
        ("datasets.train.prefetch_mode", "gpu", "expected 'cpu' or 'cuda', found 'gpu' (text)"),
        ("datasets.train.dataroot_gt", 7, "expected a path or a list of paths, found 7"),
        ("path.resume_state", {"a": 1}, "expected text, found a section with keys a"),
        ("plugins", "mine", "expected a list, [a, b, ...], found 'mine' (text)"),
    ],
)
def test_wrong_kinds_tell_what_was_expected_and_found(key, value, expected):
    message = refusal(changed(STAGE_1, {key: value}))
    assert f": {key}: {expected}" in message


def test_an_element_of_a_list_has_its_own_place():
    message = refusal(changed(STAGE_1, {"train.scheduler.milestones": [10, "late"]}))
    assert message == (
        f"run.yml:{line_of('- late')}: train.scheduler.milestones[1]: expected a whole number, found 'late' (text)"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", 5), ("model_type", ["a"]), ("datasets.val.type", None), ("train.scheduler.type", ["a"])],
)
def test_a_wrong_type_is_reported_once(key, value):
    message = refusal(changed(STAGE_1, {key: value}))
    assert "\n" not in message
    assert f": {key}: " in message


def test_a_dataset_without_type_is_reported_once():
    message = refusal(changed(STAGE_1, {"datasets.val.type": ABSENT, "datasets.val.name": 5}))
    assert message.count("datasets.val.type: missing") == 1
    assert "datasets.val.name: expected text" in message


def test_an_empty_train_section_lacks_everything():
    message = refusal(changed(STAGE_1, {"train": {}}))
    for key in ("total_iter", "optim_g", "scheduler"):
        assert f": train.{key}: missing: " in message


@pytest.mark.parametrize(
    "key", ["plugins", "path", "logger", "dist_params", "network_d", "logger.wandb", "val.metrics"]
)
def test_optional_sections_may_be_nothing(key):
    assert load(changed(STAGE_1, {key: None})).warnings == []


def test_a_date_needs_quotes_says_the_message():
    message = refusal("name: 2024-01-02\n")
    assert "run.yml:1: name: expected text, found 2024-01-02; put it in quotes" in message


@pytest.mark.parametrize("key", ["name", "model_type", "datasets", "network_g"])
def test_missing_options_are_named(key):
    assert f"run.yml:1: {key}: missing: " in refusal(changed(STAGE_1, {key: ABSENT}), is_train=True)


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("train.total_iter", "train:"),
        ("train.optim_g", "train:"),
        ("train.scheduler", "train:"),
        ("datasets.val.dataroot_lq", "  val:"),
    ],
)
def test_options_missing_in_a_section_are_reported_at_the_section(key, section):
    message = refusal(changed(STAGE_1, {key: ABSENT}))
    line = Path("run.yml").read_text().splitlines().index(section) + 1
    assert message.startswith(f"run.yml:{line}: {key}: missing: ")


def test_every_problem_is_reported_at_once_in_the_order_of_the_lines():
    wrong = changed(
        STAGE_1,
        {"scale": "x", "network_g.dims": 8, "train.total_iter": "many", "val.val_frq": 3, "datasets.train.gt_size": 60},
    )
    first, *lines = refusal(wrong).splitlines()
    keys = [line.split(": ")[1] for line in lines]
    assert first == "run.yml: 5 problems"
    assert keys == ["scale", "datasets.train.gt_size", "network_g.dims", "train.total_iter", "val.val_frq"]
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == sorted(numbers)


def test_counts_given_as_floats_become_whole_numbers():
    values = load(changed(STAGE_1, {"val.val_freq": 5e3, "logger": {"print_freq": "1e2"}})).values
    assert (values["val"]["val_freq"], values["logger"]["print_freq"]) == (5000, 100)
    assert type(values["val"]["val_freq"]) is int


def test_published_keys_keep_their_names_values_and_order():
    values = load(STAGE_2).values
    assert list(values)[: len(STAGE_2)] == list(STAGE_2)
    assert values["network_g"] == STAGE_2["network_g"]
    assert values["datasets"]["train"].items() >= STAGE_2["datasets"]["train"].items()
    assert values["train"] == STAGE_2["train"]


@pytest.mark.parametrize("phase", ["training", "trains", "valid", "val_", "train_2"])
def test_phases_of_datasets_have_names(phase):
    assert f"datasets.{phase}: unknown phase of a dataset" in refusal(
        changed(STAGE_1, {f"datasets.{phase}": STAGE_1["datasets"]["val"]})
    )


def test_an_unknown_dataset_type_lists_the_known_ones_with_their_modules():
    message = refusal(changed(STAGE_1, {"datasets.val.type": "PairDataset"}))
    assert "datasets.val.type: no dataset is named 'PairDataset'; did you mean 'PairedDataset'? Known: " in message
    assert "PairedImageDataset (basicsr.data.paired_image_dataset)" in message
    assert "RealESRGANDataset (diffir_sr.data.realesrgan_dataset)" in message
    assert message.count("\n") == 0


@pytest.mark.parametrize("name", ["RealESRGANDataset", "RealESRGANDataset_basicsr"])
def test_the_degradation_options_are_known(name):
    options = changed(
        STAGE_1,
        {
            "datasets.train": {**REAL, "type": name},
            "gt_size": 256,
            "queue_size": 180,
            "gt_usm": False,
            "resize_prob": [0.2, 0.7, 0.1],
            "resize_range": [0.15, 1.5],
            "gaussian_noise_prob": 0.5,
            "noise_range": [1, 30],
            "poisson_scale_range": [0.05, 3],
            "gray_noise_prob": 0.4,
            "jpeg_range": [30, 95],
            "second_blur_prob": 0.8,
            "high_order_degradation": True,
        },
    )
    assert load(options).warnings == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("resize_prob", [0.5, 0.5], "expected three probabilities: enlarge, shrink, keep"),
        ("resize_prob2", [0.5, 0.5, 0.5], "expected probabilities that add up to 1 (the sum is 1.5)"),
        ("noise_range", [30, 1], "expected two numbers, the smaller first"),
        ("noise_range2", [1], "expected two numbers, the smaller first"),
        ("poisson_scale_range", 3, "expected a list, [a, b, ...], found 3"),
        ("gray_noise_prob", 40, "expected 1 or less, found 40"),
        ("jpeg_range[1]", [30, 950], "expected 100 or less, found 950"),
        ("resize_range[0]", [-1, 1], "expected more than 0, found -1"),
        ("queue_size", 0, "expected 1 or more, found 0"),
    ],
)
def test_degradation_values_have_limits(key, value, expected):
    message = refusal(changed(STAGE_1, {"datasets.train": REAL, "queue_size": 90, key.split("[")[0]: value}))
    assert f": {key}: {expected}" in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kernel_list", ["iso", "square"], "kernel_list[1]: expected 'iso', 'aniso', "),
        ("kernel_prob2", [0.4, 0.4], "kernel_prob2: expected probabilities that add up to 1 (the sum is 0.8)"),
        ("sinc_prob", 2, "sinc_prob: expected 1 or less, found 2"),
        ("blur_kernel_size", 8, "blur_kernel_size: expected "),
    ],
)
def test_kernel_options_have_limits(key, value, message):
    assert message in refusal(
        changed(STAGE_1, {"datasets.train": REAL, f"datasets.train.{key}": value, "queue_size": 90})
    )


def test_options_of_the_other_dataset_types_are_refused():
    assert "datasets.test.dataroot_gt: unknown option" in refusal(changed(TEST, {"datasets.test.dataroot_gt": "gt"}))


def test_basicsr_loader_options_are_known():
    extra = {"pin_memory": True, "persistent_workers": True, "prefetch_mode": "cpu", "num_prefetch_queue": 2}
    values = load(changed(STAGE_1, {f"datasets.train.{key}": value for key, value in extra.items()})).values
    assert values["datasets"]["train"].items() >= extra.items()


def test_other_networks_have_their_weights_options():
    options = changed(
        STAGE_1,
        {
            "network_e": {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 64},
            "path": {"pretrain_network_e": "e.pth", "param_key_e": "params", "strict_load_e": False},
        },
    )
    assert load(options).values["path"]["strict_load_e"] is False


@pytest.mark.parametrize("option", ["pretrain_network", "param_key", "strict_load"])
def test_weights_of_a_network_that_is_not_there_are_reported(option):
    message = refusal(changed(STAGE_1, {f"path.{option}_e": "e"}))
    assert message.endswith(f": path.{option}_e: there is no section network_e for this option")


def test_a_test_needs_no_train_section_and_may_have_half_of_one():
    assert load(changed(TEST, {"train": {"encoder_iter": 0}}), is_train=False).values["train"] == {"encoder_iter": 0}
    assert "train.total_iters: unknown option" in refusal(changed(TEST, {"train": {"total_iters": 1}}), is_train=False)


def _sections(section=Section):
    """Every section of the package, those inside others and of arguments too."""
    for derived in section.__subclasses__():
        if derived.__module__.startswith("diffir_sr."):
            yield derived
            yield from _sections(derived)


def test_every_option_is_described_by_one_sentence():
    for schema in _sections():
        for name, field in schema.model_fields.items():
            assert field.description, f"{schema.__name__}.{name}"
            assert field.description.endswith((".", "...")), f"{schema.__name__}.{name}"
            assert field.description[0].isupper() or field.description.split()[0].strip(",:").islower()


def test_no_section_takes_keys_that_it_does_not_name():
    assert all(schema.model_config["extra"] == "forbid" for schema in _sections())
    assert Section.model_config["extra"] == "forbid"


# Every option with every kind of wrong value

_WRONG_KINDS = ({"a": {"b": 1}}, [1, "a"])
_BAD = (None, -1, 0, 10**9, 10**30, "text", *_WRONG_KINDS)


def _leaves(value, keys=()):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*keys, key), inner
        if isinstance(inner, dict | list):
            yield from _leaves(inner, (*keys, key))


def _put(values, keys, value):
    place = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value


def _findings(values, **arguments):
    try:
        load(values, **arguments)
    except OptionError as error:
        return [line for line in str(error).splitlines() if not line.endswith(" problems")]
    return []


def test_no_value_of_any_option_ends_in_anything_but_findings_with_their_lines():
    folder = recipes_folder()
    recipes = {name: read_source(folder / f"{name}.yml").values for name in recipe_names(folder)}
    places = [(name, *leaf) for name, values in recipes.items() for leaf in _leaves(values)]
    draws, output = random.Random(5), 0
    for _ in range(70):
        (name, keys, before), bad = draws.choice(places), draws.choice(_BAD)
        values = copy.deepcopy(recipes[name])
        _put(values, keys, bad)
        is_train = "train" in recipes[name]["datasets"]
        findings = _findings(values, is_train=is_train)
        assert all(re.match(r"run\.yml:\d+: ", line) for line in findings), (name, keys, bad, findings)
        theirs = name.startswith("basicsr/") and keys[0].startswith("network_")  # their arguments have no kinds
        legal = theirs or isinstance(before, dict | list) or bad not in _WRONG_KINDS
        assert findings or legal, (name, keys, bad)
        output += bool(findings)
    assert output > 40


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train.pixel_opt.reduction",
            "none",
            "train.pixel_opt.reduction: expected 'mean' or 'sum', found 'none' (text)",
        ),
        (
            "train.optim_g.betas",
            [2, 0.9],
            "train.optim_g: Adam does not work with these options: ValueError: Invalid beta",
        ),
        (
            "train.optim_g.betas",
            [-0.1, 0.9],
            "train.optim_g: Adam does not work with these options: ValueError: Invalid",
        ),
        ("train.optim_g", {"type": "LBFGS"}, "train.optim_g: LBFGS does not work with these options: TypeError: "),
        ("train.optim_g.lr", True, "train.optim_g.lr: expected a number, found true"),
        ("val.metrics.psnr", None, "val.metrics.psnr: expected a section (key: value), found nothing (~); remove"),
        (
            "val.metrics.psnr.crop_border",
            None,
            "val.metrics.psnr.crop_border: expected a whole number, found nothing (~)",
        ),
        ("network_g", None, "network_g: missing: The restoration network."),
        ("network_g.n_encoder_res", 10**9, "network_g.n_encoder_res: expected 256 or less, found 1000000000"),
        (
            "network_g.heads",
            [1, 2, 4, 7],
            "network_g: DiffIRS1 cannot be built with these options: heads[3]: 7 does not ",
        ),
        ("network_g.dim", 0, "network_g.dim: expected 1 or more, found 0"),
        ("datasets.train.batch_size_per_gpu", 0, "datasets.train.batch_size_per_gpu: expected 1 or more, found 0"),
        ("datasets.train.gt_size", -64, "datasets.train.gt_size: expected 1 or more, found -64"),
        ("datasets.train.num_worker_per_gpu", 10**6, "num_worker_per_gpu: expected 1024 or less"),
        ("manual_seed", 2**32, "manual_seed: expected less than 4294901760, found 4294967296"),
        (
            "train.scheduler",
            {"type": "CosineAnnealingRestartLR", "periods": []},
            "train.scheduler.periods: expected 1 or",
        ),
        (
            "train.scheduler",
            {"type": "CosineAnnealingRestartLR", "periods": [0]},
            "train.scheduler.periods[0]: expected 1",
        ),
    ],
)
def test_values_that_would_end_in_a_traceback_are_refused(key, value, message):
    assert message in refusal(changed(STAGE_1, {key: value}))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 10**9},
            "num_block: expected 1,000,000 or less",
        ),
        (
            {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": "wide"},
            "network_g: EDSR cannot be built with these",
        ),
        ({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 5}, "network_g: EDSR cannot be built with these"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(network, message):
    assert message in refusal(changed(STAGE_1, {"model_type": "PlainModel", "network_g": network}))


def test_building_a_network_to_check_it_changes_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(changed(STAGE_1, {"network_g.dim": 24}))
    assert torch.equal(torch.rand(2), expected)


def test_the_layers_of_a_perceptual_loss_exist():
    loss = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1, "conv9_9": 1}}
    output = refusal(changed(STAGE_1, {"train.perceptual_opt": loss}))
    assert "train.perceptual_opt.layer_weights.conv9_9: vgg19 has no such layer; it has conv1_1, relu1_1" in output


_REAL = changed(STAGE_1, {"datasets.train": REAL, "queue_size": 90})


@pytest.mark.parametrize(
    ("options", "key", "value", "now"),
    [
        (STAGE_2, "network_S1.prior_sees", "both", ("network_S1", "prior_input", "lq_gt")),
        (STAGE_2, "network_g.retuned", True, ("network_g", "rescale_schedule", True)),
        (_REAL, "degrade_by", "image", (None, "degradation_sharing", "image")),
    ],
)
def test_earlier_names_are_taken_with_a_warning(options, key, value, now):
    loaded = load(changed(options, {key: value}))
    section, name, kept = now
    values = loaded.values[section] if section else loaded.values
    old = key.split(".")[-1]
    assert values[name] == kept
    assert old not in values
    output = f"run.yml:{line_of(f'{old}:')}: {key}: is now named {name}"
    assert output in loaded.warnings
    both = {key: value, f"{section}.{name}" if section else name: kept}
    assert f"{key}: unknown option" in refusal(changed(options, both))
    wrong = refusal(changed(options, {key: 5}))
    assert f"run.yml:{line_of(f'{old}:')}: " in wrong
