"""Metrics as entries of `val.metrics`: what option files may say, and what BasicSR then calls."""

import numpy as np
import pytest
import skimage.data
import torch
from basicsr.metrics import calculate_metric
from options_cases import STAGE_1, changed, load, refusal
from test_metrics_perceptual import needs_weights

from diffir_sr import metrics
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.metrics import check_metrics, dists, lpips, protocol, ssim
from diffir_sr.models.validation import measure
from diffir_sr.training.run import check_weights

PHOTO = skimage.data.coffee()[:72, :80]
SOFT = np.roll(PHOTO, 1, axis=1)


def called(**opt):
    return calculate_metric({"img": SOFT[..., ::-1], "img2": PHOTO[..., ::-1]}, opt)


def tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("kind", ["calculate_lpips", "calculate_dists", "calculate_niqe"])
def test_the_best_distance_of_a_run_is_the_lowest(kind):
    opt = {"type": kind, "crop_border": 4}
    loaded = load(changed(STAGE_1, {"val.metrics": {"m": opt}}))
    assert loaded.warnings == []
    assert loaded.values["val"]["metrics"]["m"] == opt | {"better": "lower"}
    higher = load(changed(STAGE_1, {"val.metrics": {"m": opt | {"better": "higher"}}}))
    assert higher.values["val"]["metrics"]["m"]["better"] == "higher"


def test_mistakes_in_perceptual_metrics_are_found_before_a_run():
    wrong = refusal(changed(STAGE_1, {"val.metrics": {"m": {"type": "calculate_lpips", "net": "squeeze"}}}))
    assert "val.metrics.m.net: expected 'alex' or 'vgg', found 'squeeze'" in wrong
    unknown = refusal(changed(STAGE_1, {"val.metrics": {"m": {"type": "calculate_dists", "test_y_channel": True}}}))
    assert "val.metrics.m.test_y_channel: unknown option" in unknown


@needs_weights
def test_basicsr_gets_the_values_of_the_pure_functions():
    inner = [tensor(image[4:-4, 4:-4]) for image in (SOFT, PHOTO)]
    vgg = called(type="calculate_lpips", crop_border=4, net="vgg", better="lower")
    assert vgg == pytest.approx(lpips(*inner, net="vgg").item(), abs=1e-6)
    assert called(type="calculate_dists", crop_border=4) == pytest.approx(dists(*inner).item(), abs=1e-6)
    assert called(type="calculate_ssim_matlab") == ssim(SOFT, PHOTO, convention="matlab")
    assert called(type="calculate_ssim_matlab", test_y_channel=True) == ssim(
        SOFT, PHOTO, luma=True, convention="matlab"
    )


def test_a_border_that_leaves_nothing_is_an_error():
    with pytest.raises(InputError, match="its shorter side has 72 pixels, this metric needs 73"):
        called(type="calculate_ssim_matlab", crop_border=36)


def test_the_protocol_names_channel_border_and_variant():
    assert protocol(dict(type="calculate_psnr", crop_border=4, test_y_channel=True)) == "Y, border 4"
    assert protocol(dict(type="calculate_lpips", net="vgg")) == "RGB, border 0, net vgg"
    assert protocol(dict(type="calculate_niqe", crop_border=0)) == "Y, border 0"
    assert protocol(dict(type="calculate_ssim_matlab")) == "RGB, border 0, MATLAB's, window over channels too"


@pytest.mark.parametrize(("name", "pinned"), [("astronaut", 3.07), ("coffee", 4.12)])
def test_niqe_of_photographs_is_the_pinned_one(name, pinned):
    image = getattr(skimage.data, name)()
    found = calculate_metric({"img": image[..., ::-1]}, dict(type="calculate_niqe", crop_border=0, better="lower"))
    assert found == pytest.approx(pinned, abs=0.006)


def test_a_run_does_not_begin_without_the_weights_of_its_metrics():
    opt = {"model_type": "SRModel", "val": {"metrics": {"far": {"type": "calculate_lpips", "backbone": "mine.pth"}}}}
    with pytest.raises(CheckpointError, match=r"val.metrics.far: backbone: no such file: .*mine.pth"):
        check_weights(opt)
    opt["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
    check_weights(opt)


@needs_weights
def test_loading_a_metric_does_not_change_what_a_training_draws():
    metrics._lpips_network.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_metrics({"far": {"type": "calculate_lpips"}, "texture": {"type": "calculate_dists"}})
    assert torch.equal(torch.rand(3), expected)


def test_without_ground_truth_what_needs_none_is_measured():
    image = tensor(skimage.data.astronaut())
    metrics = {
        "psnr": {"type": "calculate_psnr", "crop_border": 0},
        "niqe": {"type": "calculate_niqe", "crop_border": 0, "better": "lower"},
    }
    alone = measure(image, None, metrics)
    assert alone == {"niqe": pytest.approx(3.07, abs=0.006)}
    assert measure(image, image, metrics) == alone | {"psnr": float("inf")}
