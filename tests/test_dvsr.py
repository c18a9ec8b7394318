"""DvSR: sizes, what patches see, where gradients go, samples of a known posterior, training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toy import run_training, train_options, trained, write_pairs

from diffir_sr import load_restorer
from diffir_sr.archs.dvsr_arch import DvSR
from diffir_sr.archs.noise_level_unet_arch import Convolution, NoiseLevelUNet
from diffir_sr.checkpoints import load_network
from diffir_sr.cli import main
from diffir_sr.diffusion.noise import PictureNoise, StackedNoise
from diffir_sr.diffusion.sampling import Sampling, drawn_levels, walk
from diffir_sr.diffusion.schedule import schedule_of
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.inference.plain import engine_for, restore_samples

SCHEDULE = dict(schedule="linear", n_timestep=100, linear_start=1e-6, linear_end=0.1)
TINY = dict(predictor_channel=8, denoiser_channel=8, channel_mults=[1, 2], res_blocks=1, beta_schedule=SCHEDULE)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    net = DvSR(**(TINY | dict(sampling=dict(steps=3)) | changes)).eval()
    with torch.no_grad():
        for weight in net.parameters():  # so that no block is the identity, and no guess the picture
            weight.add_(0.05 * torch.randn_like(weight))
    return net.requires_grad_(False)


def test_the_networks_have_the_known_number_of_weights():
    with torch.device("meta"):
        net = DvSR()
        single = NoiseLevelUNet(preset="dvsr", inner_channel=64, channel_mults=(1, 2, 3, 4), res_blocks=3)
        counts = [sum(weight.numel() for weight in part.parameters()) for part in (net.init_predictor, net.denoiser, single)]  # fmt: skip  # noqa: E501
        assert net.multiple_of == 8
    assert counts == [26_757_059, 6_800_515, 27_177_219]


@torch.no_grad()
def test_a_patch_sees_what_the_whole_picture_sees():
    x, level = torch.randn(1, 6, 256, 256), torch.tensor([0.5])

    def difference(preset):
        torch.manual_seed(0)
        net = NoiseLevelUNet(
            preset=preset, inner_channel=8, norm_groups=4, channel_mults=[1, 2], res_blocks=1, attn_res=[]
        )
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        if preset == "janspiry":
            net.mid[0] = net.mid[1]  # without attention, so that normalising alone is left
        whole, part = net(x, level), net(x[..., 48:208, 48:208], level)
        return (whole[..., 112:144, 112:144] - part[..., 64:96, 64:96]).abs().max().item()

    assert difference("dvsr") < 1e-5
    assert difference("janspiry") > 1e-3


def test_the_first_guess_learns_through_the_noisy_residual_alone():
    lq, gt = torch.rand(2, 2, 3, 16, 16)
    eps, level = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 0.9])
    net = tiny().requires_grad_(True)
    found, first = net(lq, gt, eps, level)
    (found - eps).abs().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in net.parameters())
    cut = tiny().requires_grad_(True)
    predictor = cut.init_predictor.forward
    cut.init_predictor.forward = lambda blurred: predictor(blurred).detach()
    found, _ = cut(lq, gt, eps, level)
    (found - eps).abs().mean().backward()
    assert all(weight.grad is None for weight in cut.init_predictor.parameters())


class Known(nn.Module):
    """A denoiser by formula: the best one for a residual of mean 0 and variance `variance` (gamma levels)."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance

    def forward(self, x, level):
        kept = level[:, None, None, None]
        return (1 - kept).sqrt() * x[:, 3:] / (kept * self.variance + 1 - kept)


def test_a_perfect_guess_leaves_nothing_but_the_noise_to_find():
    net = DvSR(**TINY)
    net.denoiser = Known(0.0)
    net.init_predictor.forward = lambda blurred: blurred
    gt, eps = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    found, _ = net(gt, gt, eps, torch.tensor([0.3, 0.8]))
    assert (found - eps).abs().max() < 1e-5


def variance_drawn(schedule, sampling):
    """Exact variance of what the known denoiser of a residual of variance 1/2 draws: unit draws one by one."""
    unit = torch.eye(schedule.steps, dtype=torch.float64)

    def predict(x, kept):
        return math.sqrt(1 - kept) * x / (kept * 0.5 + 1 - kept)

    steps = schedule.steps
    *_, x = walk(
        predict, unit[:, :1], schedule=schedule, sampling=sampling, noise=lambda t: unit[:, steps - t + 1, None]
    )
    return x.square().sum().item()


@pytest.mark.parametrize("how", [dict(sampler="ddpm"), dict(sampler="ddim", eta=1.0), dict(sampler="ddim", eta=0.0)])
def test_averages_of_samples_come_near_to_the_mean_of_a_known_posterior(how):
    """x ~ N(0, 1), y = x + n: the posterior's mean is y/2, its variance 1/2, and N samples average to 1/2 + v/N."""
    net = DvSR(**TINY, sampling=how | dict(steps=50, clip=False))
    net.denoiser = Known(0.5)
    net.init_predictor.forward = lambda blurred: blurred / 2
    generator = torch.Generator().manual_seed(0)
    x, n = torch.randn(2, 1, 3, 80, 80, generator=generator)
    lq = ((x + n) + 1) / 2
    noises = [PictureNoise(lq, sample=sample) for sample in range(8)]
    made = 2 * net.restore(lq.expand(8, -1, -1, -1), noise=StackedNoise(noises)) - 1
    variance = variance_drawn(net.visited_schedule, net.sampling)
    assert variance == pytest.approx(0.5, abs=0.08)
    for count in (1, 2, 4, 8):
        error = (made[:count].mean(dim=0) - x[0]).square().mean().item()
        assert error == pytest.approx(0.5 + variance / count, rel=0.035)


def test_samples_share_their_first_guess_and_stay_in_range():
    net, calls = tiny(), []
    net.init_predictor.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    lq, other = torch.rand(1, 3, 12, 16), torch.rand(2, 3, 12, 16)
    one = net.restore(lq, noise=PictureNoise(lq))
    noises = [PictureNoise(lq, sample=sample) for sample in range(3)]
    for tiles, guesses in (("exact", 1), ("tiles", 4)):
        engine = engine_for(net, tile_mode=tiles, tile=10, overlap=2)
        engine.plan(12, 16)  # measures memory, once
        for together in (1, 2):
            calls.clear()
            several = torch.cat([*restore_samples(engine, lq, noises=noises, together=together)])
            assert calls == [1] * guesses
            assert not torch.allclose(several[1], several[2], atol=1e-3)
            assert several.min() > -1e-5
            assert several.max() < 1 + 1e-5
            if tiles == "exact":
                assert (several[:1] - one).abs().max() < 1e-5
    both = engine_for(net)(other, noise=PictureNoise(other))
    assert calls[-1] == 2
    assert (both[1:] - engine_for(net)(other[1:], noise=PictureNoise(other[1:]))).abs().max() < 1e-5


def test_any_size_restores_whole_and_in_tiles():
    net = tiny(cond_on_init=True, sampling=dict(steps=2))
    lq = torch.rand(1, 3, 37, 51)
    noise = PictureNoise(lq)
    whole = engine_for(net)(lq, noise=noise)
    assert whole.shape == lq.shape
    tiled = engine_for(net, tile_mode="tiles", tile=32, overlap=8)(lq, noise=noise)
    assert (tiled - whole).abs().mean() < 0.02
    with pytest.raises(InputError, match="1x51 pixels are less than one pixel of the deepest level"):
        engine_for(net)(lq[:, :, :1], noise=noise)


def trained_on_blur(net, *, iterations, lr):
    """The losses of a joint training on blurred squares, and the squared errors of the guess and of the blur."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    kernel = torch.ones(3, 1, 1, 7) / 7

    def pairs(count):
        gt = nn.functional.interpolate(torch.rand(count, 3, 4, 4), scale_factor=3, mode="nearest")
        return nn.functional.conv2d(nn.functional.pad(gt, (3, 3, 0, 0), mode="replicate"), kernel, groups=3), gt

    losses = []
    for _ in range(iterations):
        lq, gt = pairs(8)
        eps = torch.randn_like(gt)
        level = drawn_levels(net.trained_schedule, torch.randn(8, 2), space=net.level_space)
        found, _ = net(lq, gt, eps, level)
        loss = (found - eps).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    lq, gt = pairs(32)
    with torch.no_grad():
        guess = (net.predict_initial(2 * lq - 1) + 1) / 2
    return losses, (guess - gt).square().mean().item(), (lq - gt).square().mean().item()


def test_the_first_guess_becomes_a_deblurrer_although_no_loss_asks_for_it():
    torch.manual_seed(0)
    net = DvSR(**(TINY | dict(predictor_channel=16, channel_mults=[1])), level_scale=100.0)
    losses, guess, blur = trained_on_blur(net, iterations=300, lr=3e-3)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert guess < 0.85 * blur


SHORT = dict(guess_from_input=True, residual_std=0.3, level_scale=10.0)


def test_a_known_residual_std_moves_the_guess_towards_the_truth_from_the_first_steps():
    errors = {}
    for name, changes in {"paper": {}, "short": SHORT}.items():
        torch.manual_seed(0)
        net = DvSR(**(TINY | dict(predictor_channel=16, channel_mults=[1], guess_from_input=True) | changes))
        net.initialise()
        _, guess, blur = trained_on_blur(net, iterations=60, lr=3e-3)
        errors[name] = guess / blur
    assert errors["short"] < 0.95
    assert errors["paper"] > 1  # at first


def test_a_residual_std_scales_the_residual_and_starts_at_the_best_linear_estimate():
    net = DvSR(**TINY, **SHORT)
    net.initialise()
    lq, gt, eps = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    level = torch.tensor([0.3, 0.8])
    found, first = net(lq, gt, eps, level)
    kept = level[:, None, None, None]
    noisy = kept.sqrt() * (2 * gt - 1 - first) / 0.3 + (1 - kept).sqrt() * eps
    assert (found - (1 - kept).sqrt() * noisy).abs().max() < 1e-6
    assert (first - (2 * lq - 1)).abs().max() == 0
    # What it draws then is the guess and noise of that spread: with a whole schedule of the noise level as it is.
    net.sampling = Sampling(steps=100, clip=False)
    blurred = torch.full((1, 3, 64, 64), 0.5)
    with torch.no_grad():
        made = net.eval().restore(blurred, noise=PictureNoise(blurred))
    assert made.std().item() == pytest.approx(0.3 / 2, rel=0.1)
    with pytest.raises(OptionError, match="residual_std: expected a number above 0, found 0"):
        DvSR(residual_std=0)


def test_a_narrow_strided_convolution_has_the_gradients_of_a_product():
    """Of channels-last images, with which torch's own crashes."""
    torch.manual_seed(0)
    ours = Convolution(12, 12, 1, stride=2)
    x = torch.randn(8, 12, 48, 48).to(memory_format=torch.channels_last).requires_grad_(True)
    plain, weight = x.detach().clone().requires_grad_(True), ours.weight.detach().flatten(1).requires_grad_(True)
    assert ours.bias is not None
    bias = ours.bias.detach()[:, None, None]
    made, known = ours(x), torch.einsum("nchw,oc->nohw", plain[..., ::2, ::2], weight) + bias
    grown = torch.randn_like(known)
    made.backward(grown)
    known.backward(grown)
    assert (made - known).abs().max() < 1e-5
    assert (x.grad - plain.grad).abs().max() < 1e-5
    assert (ours.weight.grad.flatten(1) - weight.grad).abs().max() < 1e-2


# Training and files


def options(name="toy_dvsr", **network):
    write_pairs("data", scale=1, lmdb=False)
    found = train_options("s1", name=name, iterations=4)
    about = dict(type="DvSR", sampling=dict(steps=3), **TINY)
    return found | dict(model_type="DvSRModel", scale=1, network_g=about | network)


def test_a_training_validates_resumes_and_its_file_restores_and_averages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = options()
    assert run_training(whole) == 0
    log = next(Path("experiments/toy_dvsr").glob("*.log")).read_text()
    assert "first_guess" in log
    broken = options("broken")
    broken["train"] = broken["train"] | dict(total_iter=2)
    assert run_training(broken) == 0
    broken["train"]["total_iter"] = 4
    assert run_training(broken, "--auto_resume") == 0
    one, two = trained("", "toy_dvsr"), trained("", "broken")
    for part in ("params", "params_ema"):
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])

    weights = "experiments/toy_dvsr/models/net_g_latest.safetensors"
    capsys.readouterr()
    assert main(["describe", weights]) == 0
    assert "DvSR, base 8 and 8, multipliers 1,2" in capsys.readouterr().out
    command = ["restore", "data/lq", "-w", weights, "--device", "cpu"]
    assert main([*command, "-o", "one"]) == 0
    assert main([*command, "-o", "mean", "--samples", "3", "--average"]) == 0
    picture = np.asarray(Image.open("data/lq/p0.png"))
    mean = load_restorer(weights, device="cpu").average(picture, 3)
    assert np.array_equal(np.asarray(Image.open("mean/p0.png")), mean)
    assert not np.array_equal(np.asarray(Image.open("one/p0.png")), mean)
    with pytest.raises(CheckpointError, match="DvSR, .* whose schedule and other options its tensors do not show"):
        load_network("experiments/toy_dvsr/models/net_g_latest.pth")


def test_the_predictor_alone_trains_as_a_regression(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = options("regression")
    about = {name: value for name, value in TINY.items() if name not in ("denoiser_channel", "beta_schedule")}
    found |= dict(model_type="DvSRRegressionModel", network_g=dict(type="DvSRPredictor", **about))
    found["train"]["pixel_opt"] = dict(type="MSELoss")
    assert run_training(found) == 0
    weights = "experiments/regression/models/net_g_latest.safetensors"
    assert main(["restore", "data/lq", "-o", "out", "-w", weights, "--device", "cpu"]) == 0
    with pytest.raises(OptionError, match="steps: DvSRPredictor has no sampler"):
        load_restorer(weights, sampling=dict(steps=2))
    capsys.readouterr()
    wrong = found | dict(network_g=dict(type="DvSR", **TINY))
    assert run_training(wrong) == 1
    assert "DvSRRegressionModel trains a DvSRPredictor, found DvSR" in capsys.readouterr().err


def test_sampling_is_that_of_the_core():
    net = tiny()
    net.sampling = net.sampling.changed(sampler="ddim", steps=5)
    assert net.visited_schedule.steps == 5
    assert net.visited_schedule.kept[-1].item() == pytest.approx(schedule_of(SCHEDULE).kept[-1].item())
    with pytest.raises(OptionError, match="steps: expected 1 to 100"):
        net.sampling = Sampling(steps=101)
