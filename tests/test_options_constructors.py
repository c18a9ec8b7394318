"""Networks, losses, metrics, optimizers and schedulers against what will be called."""

import pytest
from options_cases import ABSENT, GAN, STAGE_1, STAGE_2, changed, line_of, load, refusal


def test_an_unknown_argument_of_a_network_gets_the_nearest_name():
    message = refusal(changed(STAGE_2, {"network_g.timestep": 4}))
    assert message == f"run.yml:{line_of('timestep:')}: network_g.timestep: unknown option; did you mean 'timesteps'?"


def test_an_argument_of_a_network_at_the_top_level_is_led_home():
    assert "timesteps: unknown option; it belongs under 'network_g'" in refusal(changed(STAGE_2, {"timesteps": 4}))


def test_an_unknown_network_lists_all_with_their_modules():
    message = refusal(changed(STAGE_1, {"network_g.type": "diffirs3"}))
    assert "network_g.type: no arch is named 'diffirs3'; did you mean 'DiffIRS" in message
    assert "DiffIRS1 (diffir_sr.archs.diffir_arch)" in message
    assert "RRDBNet (basicsr.archs.rrdbnet_arch)" in message


def test_a_network_needs_a_type():
    assert "network_g.type: missing: the name of an arch" in refusal(changed(STAGE_1, {"network_g.type": ABSENT}))


def test_an_empty_network_section_needs_a_type():
    assert "network_g.type: missing" in refusal(changed(STAGE_1, {"network_g": {}}))


def test_a_type_must_be_a_name():
    assert "network_g.type: expected the name of an arch, found 7" in refusal(changed(STAGE_1, {"network_g.type": 7}))


def test_values_of_arguments_follow_the_annotation():
    message = refusal(changed(STAGE_1, {"network_g.dim": "wide", "network_g.heads": [1, "two", 4, 8]}))
    assert "network_g.dim: expected a whole number, found 'wide' (text)" in message
    assert f"run.yml:{line_of('- two')}: network_g.heads[1]: expected a whole number, found 'two' (text)" in message


def test_whole_numbers_given_as_floats_become_whole():
    values = load(changed(STAGE_1, {"network_g.dim": 8.0})).values
    assert type(values["network_g"]["dim"]) is int


@pytest.mark.parametrize("name", ["UNetDiscriminatorSN", "UNetDiscriminatorSN_basicsr"])
def test_names_are_right_with_and_without_basicsr_suffix(name):
    assert load(changed(GAN, {"network_d.type": name})).values["network_d"]["type"] == name


def test_a_missing_argument_is_named():
    message = refusal(changed(GAN, {"network_d.num_in_ch": ABSENT}))
    assert message == f"run.yml:{line_of('network_d:')}: network_d.num_in_ch: missing: UNetDiscriminatorSN needs it"


def test_an_unknown_loss_lists_the_known_ones():
    message = refusal(changed(STAGE_1, {"train.pixel_opt.type": "L1Los"}))
    assert "train.pixel_opt.type: no loss is named 'L1Los'; did you mean 'L1Loss'? Known: " in message
    assert "KDLoss (diffir_sr.losses)" in message


def test_a_loss_without_type_is_reported():
    assert "train.pixel_opt.type: missing: the name of a loss" in refusal(
        changed(STAGE_1, {"train.pixel_opt": {"loss_weight": 1.0}})
    )


def test_a_loss_may_be_switched_off():
    assert load(changed(GAN, {"train.perceptual_opt": None})).values["train"]["perceptual_opt"] is None


@pytest.mark.parametrize(
    ("key", "hint"), [("pixl_opt", "did you mean 'pixel_opt'?"), ("percep_opt", "did you mean 'perceptual_opt'?")]
)
def test_a_loss_that_the_model_does_not_read_is_unknown(key, hint):
    message = refusal(changed(STAGE_1, {f"train.{key}": {"type": "L1Loss"}}))
    assert message.endswith(f": train.{key}: unknown option; {hint}")


def test_the_perceptual_loss_may_name_the_file_of_its_weights():
    loss = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_path": "vgg.pth"}
    assert load(changed(STAGE_1, {"train.perceptual_opt": loss})).warnings == []
    assert "perceptual_opt.vgg_path: expected text, found 3" in refusal(
        changed(STAGE_1, {"train.perceptual_opt": {**loss, "vgg_path": 3}})
    )
    assert "pixel_opt.vgg_path: unknown option" in refusal(changed(STAGE_1, {"train.pixel_opt": loss}))


def test_metrics_do_not_swallow_mistakes():
    message = refusal(changed(STAGE_1, {"val.metrics.psnr.test_y_chanel": True}))
    assert message.endswith(": val.metrics.psnr.test_y_chanel: unknown option; did you mean 'test_y_channel'?")


def test_metrics_say_which_direction_is_better():
    assert load(changed(STAGE_1, {"val.metrics.psnr.better": "higher"})).warnings == []
    message = refusal(changed(STAGE_1, {"val.metrics.psnr.better": "more"}))
    assert message.endswith(": val.metrics.psnr.better: expected 'higher' or 'lower', found 'more' (text)")


def test_a_metric_must_be_a_section():
    assert "val.metrics.psnr: expected a section" in refusal(changed(STAGE_1, {"val.metrics.psnr": "calculate_psnr"}))


def test_an_unknown_metric_lists_the_known_ones():
    message = refusal(changed(STAGE_1, {"val.metrics.psnr.type": "psnr"}))
    assert "no metric is named 'psnr'; " in message
    assert "calculate_psnr (basicsr.metrics.psnr_ssim)" in message


def test_optimizers_are_those_of_torch():
    optimizer = {"type": "AdamW", "lr": "1e-4", "betas": [0.9, 0.999], "weight_decay": 0.01}
    values = load(changed(STAGE_1, {"train.optim_g": optimizer})).values
    assert values["train"]["optim_g"]["lr"] == 1e-4
    message = refusal(changed(STAGE_1, {"train.optim_g.type": "Adaam"}))
    assert "train.optim_g.type: torch.optim has no optimizer 'Adaam'; did you mean 'Adam'? Known: " in message
    assert "SGD" in message


@pytest.mark.parametrize("name", ["Optimizer", "lr_scheduler", None, ABSENT])
def test_what_is_no_optimizer_is_refused(name):
    assert "train.optim_g.type: torch.optim has no optimizer" in refusal(changed(STAGE_1, {"train.optim_g.type": name}))


def test_arguments_of_optimizers_are_checked():
    message = refusal(changed(STAGE_1, {"train.optim_g.beta": [0.9, 0.99], "train.optim_g.lr": "fast"}))
    assert "train.optim_g.beta: unknown option; did you mean 'betas'?" in message
    assert "train.optim_g.lr: expected a number, found 'fast' (text)" in message
    assert "train.optim_g.params: unknown option" in refusal(changed(STAGE_1, {"train.optim_g.params": []}))


def test_schedulers_are_known_by_name():
    message = refusal(changed(STAGE_1, {"train.scheduler.type": "MultistepLRs"}))
    assert "train.scheduler.type: no scheduler is named 'MultistepLRs'; did you mean 'MultiStepLR'? Known: " in message


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "MultiStepRestartLR", "milestones": [50], "restarts": [0, 20], "restart_weights": [1, 1]}, None),
        ({"type": "CosineAnnealingRestartLR", "periods": [60, 40], "restart_weights": [1, 1], "eta_min": 1e-7}, None),
        ({"type": "CosineAnnealingRestartCyclicLR", "periods": [100], "eta_mins": [1e-6]}, None),
        ({"type": "CosineAnnealingRestartLR", "periods": [100], "eta_mins": [0]}, "eta_mins: unknown option"),
        ({"type": "CosineAnnealingRestartCyclicLR", "eta_mins": [0]}, "periods: missing: "),
        ({"type": "MultiStepLR", "milestones": 50}, "milestones: expected a list, [a, b, ...], found 50"),
    ],
)
def test_each_scheduler_has_its_own_options(scheduler, message):
    options = changed(STAGE_1, {"train.scheduler": scheduler})
    if message is None:
        assert load(options).warnings == []
    else:
        assert f"train.scheduler.{message}" in refusal(options)


def test_an_unknown_model_lists_the_known_ones():
    message = refusal(changed(STAGE_1, {"model_type": "DiffIRModel"}))
    assert "run.yml:2: model_type: no model is named 'DiffIRModel'; did you mean 'DiffIRS" in message
    assert "SRModel (basicsr.models.sr_model)" in message
