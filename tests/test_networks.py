"""Sizes, costs and properties of the networks that no golden number shows."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.archs.geometry import geometry_of, pad_to_multiple
from diffir_sr.archs.layers import modulate
from diffir_sr.diffusion.noise import picture_noise
from diffir_sr.diffusion.sampling import PriorDiffusion
from diffir_sr.errors import InputError, OptionError

SR = dict(dim=64, num_blocks=[13, 1, 1, 1], num_refinement_blocks=13, heads=[1, 2, 4, 8])
SR |= dict(ffn_expansion_factor=2.2, bias=False, LayerNorm_type="BiasFree", n_encoder_res=9)
DEBLUR = dict(SR, dim=48, num_blocks=[3, 5, 6, 6], num_refinement_blocks=4, ffn_expansion_factor=2)
DEBLUR |= dict(LayerNorm_type="WithBias", n_encoder_res=5, task="deblur")
INPAINT = dict(DEBLUR, dim=52, num_blocks=[1, 1, 1, 9], ffn_expansion_factor=1.8, task="inpaint", inp_channels=4)
PUBLISHED = {
    "sr_x4": (dict(SR, scale=4), 24_801_478, 23_459_142, 24_971_206, 64, 45.163),
    "sr_x2": (dict(SR, scale=2), 24_811_846, 23_464_326, 24_981_574, 128, 45.205),
    "sr_x1": (dict(SR, scale=1), 24_853_318, 23_485_062, 25_023_046, 256, 45.375),
    "deblur": (DEBLUR, 26_742_206, 25_669_374, 26_911_934, 256, 120.990),
    "inpaint": (INPAINT, 26_232_746, 25_150_698, 26_402_474, 256, 50.558),
    "inpaint_big": (
        dict(INPAINT, num_blocks=[1, 1, 1, 20], n_encoder_res=8),
        49_313_194, 48_009_578, 49_482_922, 512, 282.154,
    ),
}  # fmt: skip
TINY = dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, n_encoder_res=1, LayerNorm_type="BiasFree")


def count(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_costs_are_the_published_ones(name):
    arguments, stage_1, body, stage_2, side, gmacs = PUBLISHED[name]
    with torch.device("meta"):
        s1, s2 = DiffIRS1(**arguments), DiffIRS2(**arguments)
        assert (count(s1), count(s1.G), count(s2)) == (stage_1, body, stage_2)
        lq = torch.empty(1, s2.geometry.channels, side, side)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            s2.eval()(lq, noise=torch.empty(1, 256))
    assert round(counter.get_total_flops() / 2e9, 3) == gmacs


@pytest.mark.parametrize(
    ("scale", "side", "out"), [(4, 16, 64), (2, 16, 32), (1, 32, 32), (4, 5, 20), (2, 21, 42), (1, 1, 1)]
)
def test_a_restored_image_has_the_scaled_size_whatever_its_sides(scale, side, out):
    net = DiffIRS2(scale=scale, **TINY).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, side, side + 2)).shape == (1, 3, out, out + 2 * scale)


def test_padding_mirrors_and_repeats_only_what_cannot_be_mirrored():
    image = torch.arange(3.0).reshape(1, 1, 1, 3)
    assert pad_to_multiple(image, multiple_of=8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 0, 0, 0]
    assert pad_to_multiple(image, multiple_of=8).shape == (1, 1, 8, 8)
    whole = torch.rand(1, 3, 16, 8)
    assert pad_to_multiple(whole, multiple_of=8) is whole


def test_padding_is_applied_once_and_equals_restoring_the_padded_image():
    net = DiffIRS2(**TINY).eval()
    lq, noise = torch.rand(1, 3, 13, 10), torch.randn(1, 256)
    with torch.no_grad():
        assert torch.equal(net(lq, noise=noise), net(net.padded(lq), noise=noise)[..., :52, :40])


@pytest.mark.parametrize("task", ["sr", "deblur", "inpaint"])
def test_every_parameter_receives_a_gradient(task):
    s2 = DiffIRS2(task=task, **TINY)
    side = s2.multiple_of
    lq = torch.rand(2, s2.geometry.channels, side, side)
    image, trajectory = s2(lq, torch.randn(2, 256), noise=torch.randn(2, 256))
    (image.square().mean() + trajectory[-1].square().mean()).backward()
    assert [name for name, weight in s2.named_parameters() if weight.grad is None] == []


def test_a_constant_denoiser_gives_its_constant_from_any_noise():
    def constant(noisy, step, condition):
        return torch.full_like(noisy, 0.7)

    class Constant(torch.nn.Module):
        forward = staticmethod(constant)

    diffusion = PriorDiffusion(
        model=Constant(), condition=torch.nn.Identity(), timesteps=4, linear_start=0.1, linear_end=0.99
    )
    trajectory = diffusion.sample(torch.randn(3, 256) * 100, torch.zeros(3, 256))
    assert torch.allclose(trajectory[-1], torch.full((3, 256), 0.7))


def test_predicting_the_noise_finds_the_clean_prior_that_was_noised():
    prior, noise = torch.randn(2, 256), torch.randn(2, 256)

    class KnowsTheNoise(torch.nn.Module):
        def forward(self, noisy, step, condition):
            t = int(step[0])
            kept = diffusion.sqrt_alphas_cumprod[t]
            return (noisy - kept * prior) / diffusion.sqrt_one_minus_alphas_cumprod[t]

    diffusion = PriorDiffusion(
        model=KnowsTheNoise(), condition=torch.nn.Identity(), timesteps=4, linear_start=0.1, linear_end=0.99,
        prediction="eps",
    )  # fmt: skip
    assert torch.allclose(diffusion.sample(diffusion.q_sample(prior, noise), prior)[-1], prior, atol=1e-5)


def test_unit_gain_and_zero_shift_modulate_nothing():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(modulate(x, torch.cat([torch.ones(2, 5), torch.zeros(2, 5)], 1)), x)


def test_results_do_not_depend_on_batch_size_order_or_call():
    net = DiffIRS2(**TINY).eval()
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        together = net(images)
        alone = torch.cat([net(image[None]) for image in images])
        assert torch.allclose(together, alone, atol=1e-5)
        assert torch.equal(net(images), together)


def test_the_start_noise_is_the_pictures_own_and_touches_no_global_generator():
    pictures = torch.rand(3, 3, 40, 8)
    before = torch.get_rng_state()
    rows = picture_noise(pictures, width=256, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(picture_noise(pictures.flip(0), width=256, seed=3), rows.flip(0))
    assert torch.equal(picture_noise(pictures[1:2], width=256, seed=3)[0], rows[1])
    others = picture_noise(pictures, width=256, seed=4), picture_noise(pictures, width=256, seed=3, sample=1)
    for other in (rows.roll(1, 0), *others):
        assert not (other == rows).all(1).any()


def test_the_start_noise_follows_8_and_16_bit_content_not_its_arithmetic():
    levels = torch.arange(256).repeat(3).reshape(1, 3, 16, 16)
    ways = [levels.float() / 255, levels.float() * (1 / 255), levels.double() / 255, (levels * 257).float() / 65535]
    rows = [picture_noise(way, width=8) for way in ways]
    assert all(torch.equal(row, rows[0]) for row in rows)


def test_training_without_noise_or_prior_says_what_is_needed():
    net = DiffIRS2(**TINY)
    with pytest.raises(InputError, match="noise="):
        net(torch.rand(1, 3, 8, 8), torch.randn(1, 256))
    with pytest.raises(InputError, match="stage-1 prior"):
        net(torch.rand(1, 3, 8, 8), noise=torch.randn(1, 256))


def test_wrong_shapes_are_refused_with_both_shapes():
    with pytest.raises(InputError, match=r"multiples of 16 pixels, got 24x24"):
        DiffIRS2(scale=2, **TINY)(torch.rand(1, 3, 24, 24), torch.randn(1, 256), noise=torch.randn(1, 256))
    with pytest.raises(InputError, match=r"\(batch, 3, height, width\), got \(1, 1, 8, 8\)"):
        DiffIRS2(**TINY).eval()(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match=r"expected 32x32 \(lq x 4\), got 16x16"):
        DiffIRS1(**TINY).eval()(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(task="colour"), "known tasks: sr, deblur, inpaint"),
        (dict(scale=3), "possible: 1, 2, 4"),
        (dict(task="deblur", scale=4), "possible: 1"),
        (dict(LayerNorm_type="None"), "BiasFree, WithBias"),
        (dict(heads=[3, 2, 4, 8]), "does not divide"),
        (dict(inp_channels=5), "leave the option out"),
        (dict(prediction="v"), "'x0' or 'eps'"),
    ],
)
def test_impossible_arguments_are_refused_by_name(change, message):
    with pytest.raises(OptionError, match=message):
        DiffIRS2(**(TINY | change))


def test_frames_give_the_published_multiples():
    known = {("sr", 4): 8, ("sr", 2): 16, ("sr", 1): 32, ("deblur", 1): 8, ("inpaint", 1): 8}
    assert {key: geometry_of(*key).multiple_of for key in known} == known
