"""The inference form against the network it is made from: any size, task and strip; memory; tiles."""

import random

import pytest
import torch
from golden_cases import fill
from pictures import SMALL

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.diffusion.noise import PictureNoise, picture_noise
from diffir_sr.errors import InputError, OptionError
from diffir_sr.failures import out_of_memory
from diffir_sr.inference.strips import body as blocks_module
from diffir_sr.inference.strips import engine as engine_module
from diffir_sr.inference.strips.body import block_rows
from diffir_sr.inference.strips.engine import StripEngine

CPU_REFUSAL = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
)
KINDS = {
    "x4": dict(task="sr", scale=4),
    "x2": dict(task="sr", scale=2),
    "x1": dict(task="sr", scale=1),
    "x4 with biases": dict(task="sr", scale=4, bias=True, LayerNorm_type="WithBias", dim=12, ffn_expansion_factor=2.66),
    "deblur": dict(task="deblur", LayerNorm_type="WithBias"),
    "inpaint": dict(task="inpaint", LayerNorm_type="WithBias"),
    "no diffusion": dict(task="sr", scale=4, use_diffusion=False),
    "no blocks": dict(task="sr", scale=4, num_blocks=[1, 0, 0, 0], num_refinement_blocks=0),
}


def network_of(kind):
    network = DiffIRS2(**(SMALL | KINDS[kind])).eval().requires_grad_(False)
    fill(network, "s2")
    return network


def picture_for(network, height, width, *, seed=0):
    """Noise, which shows a misplaced row at once, and a mask where the network takes one."""
    picture = torch.rand((1, network.geometry.channels, height, width), generator=torch.Generator().manual_seed(seed))
    if picture.shape[1] == 4:
        picture[:, 3] = (picture[:, 3] > 0.7).float()
        picture[:, :3] *= 1 - picture[:, 3:]
    return picture


@torch.inference_mode()
def plain(network, lq):
    return network(lq, noise=picture_noise(lq, width=256))


def optimised(network, lq, **how):
    return StripEngine(network, **how)(lq, noise=PictureNoise(lq))


@pytest.mark.parametrize("kind", KINDS)
def test_strips_of_any_height_give_what_the_network_gives(kind):
    network = network_of(kind)
    chance = random.Random(kind)
    sizes = [(1, 1), (3, 50), (50, 3), (37, 29), *((chance.randint(2, 90), chance.randint(2, 90)) for _ in range(3))]
    for height, width in sizes:
        lq = picture_for(network, height, width)
        expected = plain(network, lq)
        assert expected.std() > 0.01
        for strip in (1, chance.randint(2, 40), 1000):
            made = optimised(network, lq, strip=strip)
            assert made.shape == expected.shape
            assert (made - expected).abs().max() <= 1e-5, (height, width, strip)


@pytest.mark.parametrize("kind", ["x4", "deblur", "inpaint"])
def test_a_wide_picture_in_blocks_of_two_rows(kind):
    network = network_of(kind)
    lq = picture_for(network, 21, 1500)
    assert block_rows(1500) == 2
    assert (optimised(network, lq, strip=2) - plain(network, lq)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["x4", "x2", "deblur", "inpaint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_do_not_depend_on_strips(kind, dtype):
    network = network_of(kind)
    lq = picture_for(network, 203, 72)
    whole = optimised(network, lq, strip=1000, dtype=dtype)
    for strip in (1, 60, 150):
        assert torch.equal(optimised(network, lq, strip=strip, dtype=dtype), whole)


def test_the_network_itself_is_left_as_it_was():
    network = network_of("x4")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lq = picture_for(network, 30, 30)
    seen = lq.clone()
    optimised(network, lq)
    assert torch.equal(lq, seen)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_constant_picture_shows_no_seam(level):
    network = network_of("x4")
    lq = torch.full((1, 3, 240, 224), level)
    made = optimised(network, lq, strip=1)[:, :, 384:-384, 384:-384]
    # The network's own pattern has a period of 8 input pixels. Away from the border anything else would be a seam.
    patches = made.unfold(2, 32, 32).unfold(3, 32, 32)
    assert patches.shape[2:4] == (6, 4)
    assert (patches - patches[:, :, :1, :1]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_REFUSAL)], ids=["cuda", "cpu"]
)
@pytest.mark.parametrize("failing", [1, 3])
def test_out_of_memory_shrinks_the_strips_and_changes_no_byte(monkeypatch, caplog, error, failing):
    network = network_of("deblur")
    lq = picture_for(network, 240, 64)
    expected = optimised(network, lq, strip=1000)
    convolve, calls = blocks_module.convolve, []

    def refusing(rows, *args, **kwargs):
        if rows.shape[2] > 70:
            calls.append(rows)
            if len(calls) == failing:
                raise error
        return convolve(rows, *args, **kwargs)

    monkeypatch.setattr(blocks_module, "convolve", refusing)
    assert torch.equal(optimised(network, lq, strip=128), expected)
    assert len(calls) >= failing
    assert "restarting the image in strips of 64 of 240 rows" in caplog.text


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch):
    network = network_of("x4")
    for error in (
        RuntimeError("shapes cannot be multiplied"),
        RuntimeError("memory format not supported"),
        ValueError("x"),
    ):
        assert not out_of_memory(error)

        def failing(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(engine_module, "condition", failing)
        with pytest.raises(type(error), match=str(error)):
            optimised(network, picture_for(network, 16, 16))


def test_memory_that_is_never_enough_is_reported(monkeypatch):
    network = network_of("x4")

    def failing(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module, "condition", failing)
    with pytest.raises(InputError, match="40x30 pixels do not fit even in strips of"):
        optimised(network, picture_for(network, 40, 30))


def test_a_limit_narrows_the_strips_before_anything_runs():
    engine = StripEngine(network_of("deblur"))
    free = engine.plan(2000, 400)
    least = StripEngine(network_of("deblur"), strip=1).plan(2000, 400)
    assert least.rows < free.rows
    limit = (least.bytes + free.bytes) // 2
    tight = StripEngine(network_of("deblur"), memory_limit=limit).plan(2000, 400)
    assert least.rows <= tight.rows < free.rows
    assert tight.bytes <= limit
    with pytest.raises(InputError, match=r"2000x400 pixels need about .* narrowest strips, 0 MiB are allowed"):
        StripEngine(network_of("deblur"), memory_limit=1000).plan(2000, 400)


def test_a_batch_is_its_pictures():
    network = network_of("x4")
    lq = torch.cat([picture_for(network, 18, 25, seed=seed) for seed in range(3)])
    together = optimised(network, lq)
    for index in range(3):
        assert torch.equal(together[index : index + 1], optimised(network, lq[index : index + 1]))


def test_the_plain_form_is_the_network():
    network = network_of("x4")
    lq = picture_for(network, 18, 25)
    assert torch.equal(optimised(network, lq, optimized=False), plain(network, lq))


def test_bfloat16_stays_close():
    for kind in ("x4", "deblur", "inpaint"):
        network = network_of(kind)
        lq = picture_for(network, 64, 48)
        expected = plain(network, lq)
        error = (optimised(network, lq, dtype=torch.bfloat16) - expected).square().mean()
        assert 10 * torch.log10(expected.clamp(0, 1).max() ** 2 / error) > 45


def test_tiles_under_one_prior_cover_the_picture_and_know_its_prior():
    network = network_of("x4")
    lq = picture_for(network, 90, 75)
    noise = picture_noise(lq, width=256)
    tiled = StripEngine(network, tile_mode="prior", tile=32, overlap=8)
    exact = StripEngine(network)
    assert torch.equal(tiled.prior(lq, noise=noise), exact.prior(lq, noise=noise))
    made = tiled(lq, noise=PictureNoise(lq))
    assert made.shape == (1, 3, 360, 300)
    corner = exact.restore(lq[:, :, :32, :32], exact.prior(lq, noise=noise))
    assert torch.allclose(made[:, :, : 4 * 24, : 4 * 24], corner[:, :, : 4 * 24, : 4 * 24], atol=1e-6)
    # Between tiles each pixel lies between what the two make of it.
    right = exact.restore(lq[:, :, :32, 24:56], exact.prior(lq, noise=noise))
    both = torch.stack([corner[:, :, :96, 96:], right[:, :, :96, :32]])
    seam = made[:, :, :96, 96:128]
    assert ((seam >= both.amin(0) - 1e-5) & (seam <= both.amax(0) + 1e-5)).all()
    assert not torch.allclose(seam, both[0], atol=1e-3)
    # Where one tile holds all, nothing is lost.
    one = StripEngine(network, tile_mode="prior", tile=128, overlap=8)
    assert torch.allclose(one(lq, noise=PictureNoise(lq)), exact(lq, noise=PictureNoise(lq)), atol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(tile_mode="fast"), "expected one of exact, prior, got 'fast'"),
        (dict(tile_mode="prior", tile=16, overlap=10), "at least twice the overlap of 10"),
        (dict(tile_mode="prior", overlap=-1), "overlap: expected 0 pixels or more, got -1"),
        (dict(tile_mode="prior", tile=0, overlap=0), "tile: expected 1 pixel or more, got 0"),
        (dict(memory_limit=float("nan")), "more than 0 bytes, got nan"),
        (dict(strip=0), "expected 1 row or more, got 0"),
        (dict(memory_limit=0), "more than 0 bytes"),
    ],
)
def test_wrong_settings_are_reported(how, message):
    with pytest.raises(OptionError, match=message):
        StripEngine(network_of("x4"), **how)
