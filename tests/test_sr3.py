"""SR3: the published numbers, keys and files; training, restoring, cascades."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from diffir_sr.archs.noise_level_unet_arch import LevelEmbedding, NoiseLevelUNet
from diffir_sr.archs.sr3_arch import SR3, SR3Regression
from diffir_sr.diffusion.noise import START, PictureNoise
from diffir_sr.diffusion.sampling import Sampling, levels_between, noised_to, walk
from diffir_sr.diffusion.schedule import schedule_of
from diffir_sr.errors import InputError, OptionError

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("sr3_*.npz") if not path.stem.startswith("sr3_schedules"))
OUTPUT, SMALL_OUTPUT, AFTER, LOSS, GRADIENT = 1e-4, 1e-5, 2e-3, 1e-4, 1e-3


def worst(computed, golden):
    return (computed - golden).abs().max().item()


def fill(net, prefix):
    """Give every parameter the values that follow from its published name; return their sum."""
    total = 0.0
    for key, weight in net.named_parameters():
        values = np.random.default_rng(zlib.crc32((prefix + key).encode())).standard_normal(tuple(weight.shape))
        values = values.astype(np.float32)
        if weight.ndim == 1:
            values = 1 + np.float32(0.1) * values if key.endswith("weight") else np.float32(0.05) * values
        else:
            values = values / np.float32(math.sqrt(np.prod(weight.shape[1:])))
        weight.data.copy_(torch.from_numpy(values))
        total += values.astype(np.float64).sum()
    return total


class Golden:
    """One golden case, and the network that it is about."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        unet = {key: value for key, value in self.facts["unet"].items() if key not in ("in_channel", "out_channel")}
        assert unet.pop("with_noise_level_emb")
        self.net = SR3(scale=1, preset="janspiry", **unet, beta_schedule=self.facts["train_schedule"])
        self.unet = self.net.denoise_fn
        self.sum = fill(self.net, self.facts["weight_prefix"])


@pytest.fixture(params=CASES)
def golden(request):
    return Golden(request.param)


def test_there_are_golden_cases():
    assert {"sr3_tiny_a", "sr3_tiny_b"} <= set(CASES)


def test_weights_filled_by_name_have_the_published_sum(golden):
    assert golden.sum == pytest.approx(golden.facts["weight_checksum"], rel=1e-6)
    assert sum(weight.numel() for weight in golden.net.parameters()) == golden.facts["n_params"]


def test_the_state_dict_is_the_published_one_without_its_buffers(golden):
    shapes = {key: list(value.shape) for key, value in golden.net.state_dict().items()}
    theirs = {key: shape for key, shape in golden.facts["state_dict"].items() if key not in golden.facts["buffers"]}
    assert list(shapes.items()) == list(theirs.items())
    assert set(golden.facts["buffers"]) == SR3.computed_tensors


@torch.no_grad()
def test_the_network_computes_the_published_output(golden):
    x, level = golden.arrays["x"], golden.arrays["level"]
    assert worst(golden.unet(x, level), golden.arrays["unet_out"]) < OUTPUT
    for weight in golden.net.parameters():
        if weight.ndim > 1:
            weight.mul_(0.02)
    assert worst(golden.unet(x, level), golden.arrays["unet_out_small"]) < SMALL_OUTPUT


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_three_adam_steps_have_the_published_losses_and_gradients(golden, loss):
    facts, arrays = golden.facts, golden.arrays
    schedule = golden.net.trained_schedule
    optimizer = torch.optim.Adam(golden.net.parameters(), lr=facts["adam_lr"])
    distance = torch.nn.functional.l1_loss if loss == "l1" else torch.nn.functional.mse_loss
    for step, (t, share) in enumerate(zip(facts["train_t"], facts["train_u"], strict=True)):
        level = levels_between(
            schedule, torch.full((len(share),), t), torch.tensor(share, dtype=torch.float64), space="sqrt_gamma"
        )
        assert torch.allclose(level, arrays["train_levels"][step], rtol=1e-6, atol=0)
        noise = arrays["train_noise"][step]
        noisy = noised_to(arrays["hr"], noise, level, space="sqrt_gamma")
        if step == 0:
            assert worst(noisy, arrays["x_noisy"]) < 1e-6
        made = golden.unet(torch.cat([arrays["sr"], noisy], dim=1), level)
        value = distance(made, noise)
        optimizer.zero_grad()
        value.backward()
        assert value.item() == pytest.approx(facts[f"losses_{loss}"][step], rel=LOSS)
        if step == 0:
            norms = {name: weight.grad.norm().item() for name, weight in golden.net.named_parameters()}
            expected = facts[f"grad_norms_{loss}"]
            assert norms == pytest.approx(expected, rel=GRADIENT, abs=1e-6 * max(expected.values()))
        optimizer.step()
    with torch.no_grad():
        made = golden.unet(arrays["x"], arrays["level"])
    assert worst(made, arrays[f"unet_out_after_3_steps_{loss}"]) < AFTER


@torch.no_grad()
def test_single_reverse_steps_are_the_published_ones(golden):
    facts, arrays = golden.facts, golden.arrays
    schedule = schedule_of(facts["sample_schedule"])
    for index, t in enumerate(facts["p_sample_t"]):
        level = schedule.kept[t + 1].sqrt().item()
        assert level == pytest.approx(facts["p_sample_level"][index], rel=1e-6)
        x, seen = arrays["p_sample_x"][index], []
        noise = arrays["p_sample_noise"][index] if t else None

        def predict(x, kept, seen=seen):
            eps = golden.unet(torch.cat([arrays["sr"], x], dim=1), torch.full((len(x),), math.sqrt(kept)))
            seen.append(eps)
            return eps

        for clip, name in ((True, "p_sample_out"), (False, "p_sample_out_noclip")):
            part = type(schedule)(schedule.betas[: t + 1])  # whose first reverse step is the one from t
            made = next(walk(predict, x, schedule=part, sampling=Sampling(clip=clip), bounds=(-1, 1), noise=lambda _: noise))  # fmt: skip  # noqa: E501, B023
            assert worst(made, arrays[name][index]) < OUTPUT
        assert worst(seen[0], arrays["p_sample_eps"][index]) < OUTPUT


class ChainNoise:
    """The noise of a golden chain by the names that a network asks for."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.steps = len(arrays["chain_steps"])

    def normal(self, shape, name=START):
        if name == START:
            return self.arrays["chain_x_T"]
        return self.arrays["chain_noise"][self.steps - int(name.removeprefix("step "))]


@torch.no_grad()
def test_restoring_walks_the_published_chain_and_returns_every_picture(golden):
    golden.net.eval().sampling = Sampling(beta_schedule=golden.facts["sample_schedule"])
    noise = ChainNoise(golden.arrays)
    made = golden.net.restore((golden.arrays["sr"] + 1) / 2, noise=noise)
    assert worst(2 * made - 1, golden.arrays["chain_out"]) < OUTPUT
    assert len(made) == len(golden.arrays["sr"]) > 1

    def predict(x, kept):
        return golden.unet(torch.cat([golden.arrays["sr"], x], dim=1), torch.full((len(x),), math.sqrt(kept)))

    steps = walk(
        predict, noise.normal(()), schedule=schedule_of(golden.facts["sample_schedule"]), sampling=Sampling(),
        noise=lambda t: noise.normal((), f"step {t}"), bounds=(-1, 1),
    )  # fmt: skip
    for made, expected in zip(steps, golden.arrays["chain_steps"], strict=True):
        assert worst(made, expected) < OUTPUT


# The published configurations, without numbers (device meta)


def published():
    for path in sorted(GOLDEN.glob("sr3_published_keys*.json")):
        for name, about in json.loads(path.read_text()).items():
            yield pytest.param(about, id=f"{path.stem}-{name}")


@pytest.mark.parametrize("about", list(published()))
def test_published_networks_have_their_keys_shapes_and_number_of_weights(about):
    unet = dict(about["unet"], norm_groups=about["norm_groups"], image_size=about["diffusion"]["image_size"])
    unet["channel_mults"] = unet.pop("channel_multiplier")
    with torch.device("meta"):
        net = NoiseLevelUNet(preset="janspiry", **unet)
    assert sum(weight.numel() for weight in net.parameters()) == about["n_params"]
    shapes = {f"denoise_fn.{key}": list(value.shape) for key, value in net.state_dict().items()}
    theirs = {key: shape for key, shape in about["state_dict"].items() if key.startswith("denoise_fn.")}
    assert list(shapes.items()) == list(theirs.items())
    assert set(about["state_dict"]) - set(theirs) == SR3.computed_tensors


@pytest.mark.parametrize(
    ("base", "mults", "blocks", "size", "millions"),
    [
        (128, (1, 2, 4, 8, 8), 3, 128, 564.5),
        (128, (1, 2, 4, 4, 8, 8), 3, 256, 621.5),
        (64, (1, 2, 4, 8, 8, 16, 16), 3, 512, 614.2),
        (16, (1, 2, 4, 8, 16, 32, 32, 32), 2, 1024, 150.2),
    ],
)
def test_networks_of_the_paper_have_about_the_stated_number_of_weights(base, mults, blocks, size, millions):
    with torch.device("meta"):
        net = NoiseLevelUNet(
            preset="sr3_paper", inner_channel=base, channel_mults=mults, res_blocks=blocks, image_size=size
        )
    assert sum(weight.numel() for weight in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_levels_are_embedded_as_sines_then_cosines():
    embedded = LevelEmbedding(8, scale=1.0)(torch.tensor([1.0, 0.5]))
    assert embedded[0, 0].item() == pytest.approx(0.841471, abs=1e-6)
    assert embedded[0, 4].item() == pytest.approx(0.540302, abs=1e-6)
    assert embedded[1, 1].item() == pytest.approx(math.sin(0.5 * 1e4**-0.25), abs=1e-6)
    scaled = LevelEmbedding(8, scale=5000.0)(torch.tensor([1.0]))
    assert scaled[0, 0].item() == pytest.approx(math.sin(5000.0), abs=1e-3)
    with pytest.raises(OptionError, match="inner_channel: expected an even number"):
        LevelEmbedding(7, scale=1.0)


# Small networks

TINY = dict(inner_channel=8, norm_groups=4, channel_mults=[1, 2], attn_res=[8], res_blocks=1, image_size=16)
SCHEDULE = dict(schedule="linear", n_timestep=100, linear_start=1e-4, linear_end=0.1)
PRESETS = ["janspiry", "sr3_paper", "dvsr"]


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    net = SR3(**(dict(scale=4, beta_schedule=SCHEDULE, sampling=dict(steps=3)) | TINY | changes)).eval()
    with torch.no_grad():
        for weight in net.parameters():  # so that no block is the identity
            weight.add_(0.05 * torch.randn_like(weight))
    return net.requires_grad_(False)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_restores_and_is_reached_by_every_gradient(preset):
    net = tiny(preset=preset).requires_grad_(True)
    lq = torch.rand(2, 3, 4, 6)
    made = net.restore(lq, noise=PictureNoise(lq))
    assert made.shape == (2, 3, 16, 24)
    net(lq, torch.randn(2, 3, 16, 24), torch.rand(2)).square().sum().backward()
    idle = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    assert idle == []


def test_blocks_of_the_paper_start_as_the_identity_and_orthogonal_starts_keep_that():
    net = NoiseLevelUNet(preset="sr3_paper", **TINY)
    net.initialise()
    x, level = torch.randn(1, 6, 16, 16), torch.rand(1)
    block = net.downs[1].res_block
    assert torch.allclose(block(net.downs[0](x), net.noise_level_mlp(level)), net.downs[0](x) * math.sqrt(0.5))
    published = NoiseLevelUNet(preset="janspiry", **TINY)
    published.initialise()
    weight = published.downs[1].res_block.block1.block[3].weight.flatten(1)
    assert torch.allclose(weight @ weight.T, torch.eye(len(weight)), atol=1e-5)


def test_the_degraded_picture_is_enlarged_as_pillow_does_it():
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    lq = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    theirs = np.asarray(Image.fromarray(picture).resize((56, 44), Image.Resampling.BICUBIC)).astype(int)
    made = (tiny(cond_resize="pil").upscaled(lq) + 1) / 2 * 255
    ours = made[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - np.rint(ours)).max() < 1e-3
    assert np.abs(np.rint(ours) - theirs).max() <= 1
    assert (np.rint(ours) != theirs).mean() < 0.01
    free = (tiny().upscaled(lq) + 1) / 2 * 255
    assert 0.1 < (free - made).abs().mean() < 1  # on noise, of which much is clipped on the way


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(preset="google"), "preset: expected one of janspiry, sr3_paper, dvsr, found 'google'"),
        (dict(norm_groups=3), "norm_groups: 3 groups do not divide 8 channels"),
        (dict(channel_mults=[]), "channel_mults: expected one number above 0 or more"),
        (dict(res_blocks=0), "res_blocks: expected 1 or more, found 0"),
        (dict(cond_resize="lanczos"), "cond_resize: expected one of bicubic, pil"),
        (dict(scale=0), "scale: expected 1 or more"),
        (dict(level_space="log"), "level_space: expected one of gamma, sqrt_gamma"),
        (dict(sampling=dict(steps=101)), "steps: expected 1 to 100"),
        (dict(beta_schedule=SCHEDULE | dict(linear_end=0.01)), "of the squared signal is left"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, said):
    with pytest.raises(OptionError, match=said):
        SR3(**(dict(beta_schedule=SCHEDULE) | TINY | change))


def test_inputs_that_cannot_be_are_refused():
    net = tiny(channel_mults=[1, 2, 4])
    with pytest.raises(InputError, match="expected sides that divide by 4"):
        net.denoise_fn(torch.zeros(1, 6, 8, 10), torch.ones(1))
    with pytest.raises(InputError, match=r"level: expected a noise level \(B,\), found none"):
        net.denoise_fn(torch.zeros(1, 6, 8, 8))
    with pytest.raises(InputError, match="level: expected no noise level"):
        SR3Regression(**TINY).regress_fn(torch.zeros(1, 3, 8, 8), torch.ones(1))
