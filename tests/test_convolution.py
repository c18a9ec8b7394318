"""Convolutions that choose how they compute: the numbers of torch's, whatever is chosen, and when what is."""

import copy

import pytest
import torch
import torch.nn.functional as F

from diffir_sr.archs import noise_level_unet_arch
from diffir_sr.archs.noise_level_unet_arch import Convolution, NoiseLevelUNet, as_product, transformed, winograd


@pytest.mark.parametrize(("count", "height", "width"), [(1, 16, 16), (2, 9, 14), (1, 1, 3), (3, 4, 33)])
@pytest.mark.parametrize("biased", [True, False])
def test_minimal_filtering_is_as_exact_as_a_direct_convolution(monkeypatch, count, height, width, biased):
    torch.manual_seed(0)
    x, weight = torch.randn(count, 160, height, width), torch.randn(136, 160, 3, 3) / (160 * 9) ** 0.5
    bias = torch.randn(136) if biased else None
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    direct = (F.conv2d(x, weight, bias, padding=1) - exact).abs().max()
    assert (as_product(x, weight, bias) - exact).abs().max() < max(2e-5, 4 * direct)
    for at_once in (1, 2**21):  # bands of one row of tiles, or of all
        monkeypatch.setattr(noise_level_unet_arch, "_AT_ONCE", at_once)
        made = winograd(x, transformed(weight), bias)
        assert made.shape == exact.shape
        assert (made - exact).abs().max() < max(2e-5, 4 * direct)


@pytest.fixture
def chosen(monkeypatch):
    """Counts how often minimal filtering is chosen."""
    calls = []
    monkeypatch.setattr(noise_level_unet_arch, "winograd", lambda *given: calls.append(1) or winograd(*given))
    return calls


def test_what_is_chosen_follows_channels_size_and_whether_anything_is_trained(chosen):
    torch.manual_seed(0)
    many, few = Convolution(128, 128, 3), Convolution(64, 128, 3)
    x = torch.randn(1, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    trained = many(x)
    assert not chosen
    with torch.no_grad():
        assert torch.allclose(many(x), trained, atol=2e-5)
        assert len(chosen) == 1
        few(x[:, :64]), many(x[..., :8, :8])
        with torch.autocast("cpu", torch.bfloat16):
            many(x)
        many.double()(x.double())
    assert len(chosen) == 1
    many.float().requires_grad_(False)
    many(x)
    assert len(chosen) == 2


def test_other_weights_are_seen(chosen):
    net = Convolution(128, 128, 3).requires_grad_(False)
    x = torch.randn(1, 128, 16, 16)
    first = net(x)
    other = copy.deepcopy(net)
    other.weight.mul_(2)
    net.load_state_dict({name: torch.zeros_like(weight) for name, weight in net.state_dict().items()})
    assert not net(x).any()
    assert torch.allclose(other(x) - other.bias[:, None, None], 2 * (first - other.bias[:, None, None]), atol=1e-4)
    assert len(chosen) == 3


def test_a_convolution_of_single_pixels_and_one_with_steps_are_torchs():
    x = torch.randn(2, 12, 9, 10)
    for kernel, stride in ((1, 1), (1, 2), (3, 2)):
        net = Convolution(12, 20, kernel, stride=stride).requires_grad_(False)
        expected = F.conv2d(x, net.weight.contiguous(), net.bias, stride=stride, padding=kernel // 2)
        for form in (torch.contiguous_format, torch.channels_last):
            assert torch.allclose(net(x.contiguous(memory_format=form)), expected, atol=1e-5)


def test_a_whole_network_restores_as_it_trains(chosen):
    torch.manual_seed(0)
    net = NoiseLevelUNet(
        inner_channel=64, channel_mults=(1, 2), res_blocks=1, norm_groups=8, attn_res=[8], image_size=16
    )
    x, level = torch.randn(1, 6, 48, 32), torch.rand(1)
    with torch.no_grad():
        fast = net(x, level)
    assert chosen
    assert (net(x, level) - fast).abs().max() < 2e-5
