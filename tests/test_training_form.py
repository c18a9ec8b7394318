"""The training form of the networks computes what the plain form does: outputs, losses and every gradient."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.archs.dirformer import _tail
from diffir_sr.archs.layers import Block, Level
from diffir_sr.archs.training_form import (
    _Attention,
    _FeedForward,
    _joined,
    _Run,
    level_in_training,
    tail_in_training,
)
from diffir_sr.models.optimization import Acceleration, accelerate, in_precision


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def scattered(module):
    """The module in float64 with weights that are all different, none of them a neutral start."""
    module.double()
    for weight in module.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    return module


def same(plain, fast, inputs, tolerance=1e-9):
    """Whether two results of `inputs` are equal and pass on equal gradients, relative to the largest value."""
    pairs = [(plain, fast)]
    back = torch.randn_like(plain)
    gradients = [torch.autograd.grad(made, inputs, back, retain_graph=True) for made in (plain, fast)]
    pairs += zip(*gradients, strict=True)
    return all((one - other).abs().max() <= tolerance * one.abs().max() for one, other in pairs)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def expanded(channels, wide, bias):
    """What goes into an expansion of two samples, 3 x 2 pixels."""
    biases = (drawn(wide), drawn(wide)) if bias else (None, None)
    shapes = (2, 6, channels), (2, channels), (2, channels)
    return *(drawn(*shape) for shape in shapes), drawn(wide, channels), biases[0], drawn(wide, 1, 3, 3), biases[1]


@pytest.mark.parametrize("frugal", [False, True])
@pytest.mark.parametrize(("heads", "surplus", "bias", "centred"), [(1, 2, True, True), (2, 0, False, False)])
def test_gradients_of_attention_are_its_derivatives(frugal, heads, surplus, bias, centred):
    run, inputs = _Run(3, torch.float64, frugal), expanded(4, 12 + 3 * surplus, bias)
    assert gradcheck(lambda *given: _Attention.apply(run, centred, *given), (drawn(heads, 1, 1), drawn(4, 4), *inputs))


@pytest.mark.parametrize("frugal", [False, True])
@pytest.mark.parametrize(("bias", "centred"), [(True, True), (False, False)])
def test_gradients_of_the_feed_forward_are_its_derivatives(frugal, bias, centred):
    run, inputs = _Run(3, torch.float64, frugal), expanded(4, 6, bias)
    assert gradcheck(lambda *given: _FeedForward.apply(run, centred, *given), (drawn(4, 3), *inputs))


def test_channels_that_are_zero_everywhere_have_finite_gradients():
    x, gain, shift, matrix, _, taps, _ = expanded(4, 12, bias=False)
    with torch.no_grad():
        matrix[1] = 0
    run, temperature, out = _Run(3, torch.float64, False), drawn(1, 1, 1), drawn(4, 4)
    made = _Attention.apply(run, True, temperature, out, x, gain, shift, matrix, None, taps, None)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(made.sum(), [x, matrix, taps, temperature]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 2, 5), (2, 11, 5)])
def test_a_level_is_that_of_the_plain_form(bias, norm_bias, batch, height, width):
    options = dict(heads=3, expansion=2.2, bias=bias, norm_bias=norm_bias, prior_width=16)
    level = scattered(Level([Block(12, **options) for _ in range(2)]))
    x, prior = drawn(batch, 12, height, width), drawn(batch, 16)
    fast = level_in_training(level, x, prior)
    assert same(level(x, prior), fast, [x, prior, *level.parameters()])


@pytest.mark.parametrize("frugal", [False, True])
def test_a_level_can_be_used_twice_and_gone_back_through_twice(frugal):
    level = scattered(Level([Block(8, heads=2, expansion=2, bias=False, norm_bias=False, prior_width=16)]))
    inputs = [drawn(2, 8, 4, 4), drawn(2, 16), *level.parameters()]
    x, prior = inputs[:2]
    level.checkpointing = frugal
    fast = level_in_training(level, level_in_training(level, x, prior), prior)
    assert same(level(level(x, prior), prior), fast, inputs)
    again = [torch.autograd.grad(fast.sum(), inputs, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*again, strict=True))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (2, 2), (3, 7)])
def test_the_tail_as_one_convolution_is_exact_up_to_the_edge(height, width):
    tail = scattered(_tail(6))
    x = drawn(2, 6, height, width)
    assert same(tail(x), tail_in_training(tail, x), [x, *tail.parameters()])


def test_two_convolutions_joined_are_wrong_at_the_edge_alone():
    # Without the correction of the edge the test above would have to fail.
    tail = scattered(_tail(6))
    second, third = tail[0][2], tail[1]
    weight, bias = _joined((second.weight, second.bias), (third.weight, third.bias))
    x = drawn(1, 6, 6, 6)
    joined = torch.pixel_shuffle(torch.conv2d(x, weight, bias, padding=2), 2)
    wrong = ((joined - third(torch.pixel_shuffle(second(x), 2))).abs() > 1e-9).any(dim=1)[0]
    assert wrong.sum() == 4 * 12 - 4
    assert not wrong[1:-1, 1:-1].any()


SMALL = dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, n_encoder_res=1, heads=[1, 2, 4, 8])
TASKS = [("sr", 4, "BiasFree"), ("sr", 2, "WithBias"), ("deblur", None, "WithBias"), ("inpaint", None, "WithBias")]


@pytest.mark.parametrize(("task", "scale", "norm"), TASKS)
def test_whole_networks_have_the_plain_outputs_and_gradients(task, scale, norm):
    s1, s2 = (
        scattered(kind(task=task, scale=scale, LayerNorm_type=norm, **SMALL)).train() for kind in (DiffIRS1, DiffIRS2)
    )
    side, channels = s2.multiple_of, s2.geometry.channels
    lq, gt = drawn(2, channels, side, side), drawn(2, 3, side * s2.scale, side * s2.scale)
    for net, arguments in ((s1, (lq, gt)), (s2, (lq, drawn(2, 256)))):
        noise = {"noise": drawn(2, 256)} if net is s2 else {}
        made = []
        for fast in (False, True):
            net.G.fast_training = fast
            made.append(net(*arguments, **noise)[0])
        assert not torch.equal(*made)  # two forms, not one
        assert same(*made, [*net.parameters()])


def test_only_training_takes_the_fast_form():
    net = DiffIRS2(**SMALL).eval()
    lq, noise = torch.rand(1, 3, 8, 8), torch.randn(1, 256)
    with torch.no_grad():
        plain = net(lq, noise=noise)
        net.G.fast_training = True
        assert torch.equal(net(lq, noise=noise), plain)


def noted(kept, tensor):
    """Notes what the backward of the forward pass at hand keeps, by its place in memory."""
    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


@pytest.mark.parametrize("fast", [False, True])
def test_checkpointing_keeps_less_and_changes_no_bit(fast):
    net = scattered(DiffIRS1(**dict(SMALL, num_blocks=[3, 1, 1, 1]))).train()
    net.G.fast_training = fast
    lq, gt, found = drawn(1, 3, 32, 32), drawn(1, 3, 128, 128), []
    for checkpointing in (False, True):
        options = Acceleration(form="fast" if fast else "plain", checkpointing=checkpointing)
        accelerate(net, options, torch.device("cpu"))
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(partial(noted, kept), lambda tensor: tensor):
            image = net(lq, gt)[0]
        for weight in net.parameters():
            kept.pop(weight.untyped_storage().data_ptr(), None)
        found.append((image, torch.autograd.grad(image.square().sum(), [*net.parameters()]), sum(kept.values())))
    (image, gradients, much), (again, others, little) = found
    assert torch.equal(image, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert little < 0.5 * much


@pytest.mark.parametrize("fast", [False, True])
def test_half_precision_stays_near_and_leaves_the_diffusion_alone(fast):
    torch.manual_seed(0)
    net = DiffIRS2(**SMALL).train()
    net.G.fast_training = fast
    lq, prior, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 256), torch.randn(2, 256)
    exact, priors = net(lq, prior, noise=noise)
    half, halves = in_precision(lambda: net(lq, prior, noise=noise), "bfloat16", torch.device("cpu"))
    assert half.dtype == halves[-1].dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.02
    assert (halves[-1] - priors[-1]).abs().max() < 0.02
    half.mean().backward()
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in net.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        walked = net.diffusion.sample(noise, prior)
    assert all(torch.equal(one, other) for one, other in zip(walked, net.diffusion.sample(noise, prior), strict=True))
