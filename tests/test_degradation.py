"""The degradation and the masks: reproducible from a generator, and distributed as stated."""

import collections
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D

from diffir_sr.data import degradation as d
from diffir_sr.data.degradation import KINDS, KernelRanges, blur_kernel, final_kernel
from diffir_sr.data.masks import (
    EVALUATION,
    Boxes,
    MaskMix,
    Strokes,
    box_mask,
    evaluation_mask,
    mixed_mask,
    stroke_mask,
)
from diffir_sr.errors import InputError, OptionError


def photo(size=96, count=2):
    image = torch.from_numpy(skimage.data.astronaut()[:size, 150 : 150 + size].copy()).permute(2, 0, 1)[None] / 255
    return image.repeat(count, 1, 1, 1)


def kernels(count=2, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [[blur_kernel(rng, KernelRanges.from_options({}, step=1)) for _ in range(count)] for _ in range(2)]
    drawn.append([final_kernel(rng, final_sinc_prob=0.8) for _ in range(count)])
    names = ("kernel1", "kernel2", "sinc_kernel")
    return {name: torch.from_numpy(np.stack(values)) for name, values in zip(names, drawn, strict=True)}


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_degrading_depends_on_the_generator_alone(scale):
    degrade = d.Degradation(scale=scale)
    torch.manual_seed(0)
    first = degrade(photo(), **kernels(), rng=np.random.default_rng(3))
    torch.manual_seed(1)
    again = degrade(photo(), **kernels(), rng=np.random.default_rng(3))
    other = degrade(photo(), **kernels(), rng=np.random.default_rng(4))
    assert first.shape == (2, 3, 96 // scale, 96 // scale)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal((first * 255).round() * (1 / 255), first)
    assert first.min() >= 0
    assert first.max() <= 1


def test_degrading_leaves_global_generators_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    d.Degradation(scale=4)(photo(), **kernels(), rng=np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_degraded_photograph_is_still_that_photograph():
    degrade = d.Degradation(scale=2)
    small = torch.nn.functional.avg_pool2d(photo(), 2)
    for seed in range(6):
        lq = degrade(photo(), **kernels(seed=seed), rng=np.random.default_rng(seed))
        pair = np.corrcoef(lq[0].flatten().numpy(), small[0].flatten().numpy())[0, 1]
        assert 0.5 < pair < 0.9999


def test_without_noise_blur_and_resizing_only_jpeg_is_left():
    nothing = dict(blur_prob=0.0, resize_prob=(0, 0, 1), resize_range=(1, 1), gaussian_noise_prob=1.0)
    nothing |= dict(noise_range=(0, 0), poisson_scale_range=(0, 0), gray_noise_prob=0.0, jpeg_range=(95, 95))
    step = d.StepRanges(**nothing)
    pulse = torch.zeros(2, 21, 21)
    pulse[:, 10, 10] = 1
    same = dict(kernel1=pulse, kernel2=pulse, sinc_kernel=pulse)
    lq = d.Degradation(scale=1, first=step, second=step)(photo(), **same, rng=np.random.default_rng(0))
    jpeg = DiffJPEG(differentiable=False)
    expected = jpeg(jpeg(photo(), quality=torch.tensor([95.0, 95.0])).clamp(0, 1), quality=torch.tensor([95.0, 95.0]))
    assert torch.allclose(lq, (expected * 255).round().clamp(0, 255) / 255, atol=1.5 / 255)


def test_published_options_reach_every_field():
    opt = dict(
        resize_prob=[0, 1, 0], noise_range2=[3, 4], second_blur_prob=0.3, jpeg_range2=[50, 60], gray_noise_prob=0.9
    )
    first, second = d.ranges_from_options(opt)
    assert (first.resize_prob, first.gray_noise_prob, first.noise_range) == ((0, 1, 0), 0.9, (1, 30))
    assert (second.noise_range, second.blur_prob, second.jpeg_range) == ((3, 4), 0.3, (50, 60))
    assert d.ranges_from_options({}) == (d.FIRST, d.SECOND)


def test_resizing_goes_up_down_and_keeps_as_often_as_stated():
    rng = np.random.default_rng(0)
    factors = np.array([d._resize_factor(d.FIRST, rng) for _ in range(4000)])
    shares = [(factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean()]
    assert shares == pytest.approx([0.2, 0.7, 0.1], abs=0.03)
    assert factors.min() >= 0.15
    assert factors.max() <= 1.5
    assert factors[factors < 1].mean() == pytest.approx((0.15 + 1) / 2, abs=0.02)


def test_gaussian_noise_has_its_strength_and_is_grey_where_asked():
    x = torch.full((2, 3, 200, 200), 0.5)
    sigma, grey = torch.tensor([10.0, 25.0]).view(2, 1, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    noise = d.gaussian_noise(x, sigma=sigma, grey=grey, generator=torch.Generator().manual_seed(0))
    assert (noise[0].std() * 255).item() == pytest.approx(10, rel=0.02)
    assert (noise[1].std() * 255).item() == pytest.approx(25, rel=0.02)
    assert torch.equal(noise[1, 0], noise[1, 2])
    assert not torch.equal(noise[0, 0], noise[0, 2])


def test_poisson_noise_grows_with_the_root_of_brightness():
    ramp = (torch.arange(256.0) / 255).view(1, 1, 1, 256).expand(1, 3, 3000, 256)
    noise = d.poisson_noise(ramp, grey=torch.zeros(1, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    spread = noise[0, 0].std(0)
    assert noise.mean().abs() < 1e-3
    assert spread[0] == 0
    # 256 distinct values are 256 photons at full brightness: a deviation of 1 / sqrt(256) there.
    assert spread[255].item() == pytest.approx(1 / 16, rel=0.05)
    assert (spread[255] / spread[64]).item() == pytest.approx(2, rel=0.08)


def test_kernels_are_normalised_centred_and_of_the_published_sizes():
    rng = np.random.default_rng(0)
    place = np.arange(21) - 10
    for draw in [blur_kernel, lambda generator, _: final_kernel(generator, final_sinc_prob=0.8)] * 100:
        kernel = draw(rng, KernelRanges.from_options({}, step=1))
        assert kernel.shape == (21, 21)
        assert kernel.sum() == pytest.approx(1, abs=1e-4)
        assert abs((kernel.sum(0) * place).sum()) < 1e-3
        rows = np.flatnonzero(np.abs(kernel).sum(1) > 0)
        assert rows[0] == 20 - rows[-1]


def test_kernel_kinds_come_as_often_as_stated():
    counts = collections.Counter()
    published = KernelRanges.from_options({}, step=1)
    for kind in KINDS:
        only = replace(published, kernel_list=[kind], kernel_prob=[1.0], sinc_prob=0)
        round_ones = 0
        for seed in range(30):
            kernel = blur_kernel(np.random.default_rng(seed), only)
            round_ones += np.allclose(kernel, kernel.T, atol=1e-6)
        assert round_ones == 30 if not kind.endswith("aniso") else round_ones < 5
    pulses = sum(final_kernel(np.random.default_rng(seed), final_sinc_prob=0.8).max() == 1 for seed in range(1000))
    assert pulses == pytest.approx(200, abs=45)
    for seed in range(1500):
        counts[
            bool((blur_kernel(np.random.default_rng(seed), KernelRanges.from_options({}, step=1)) < -1e-7).any())
        ] += 1
    assert counts[True] / 1500 == pytest.approx(0.1, abs=0.03)  # only sinc filters are negative somewhere


def test_impossible_kernel_lists_are_refused():
    published = KernelRanges.from_options({}, step=1)
    with pytest.raises(OptionError, match="unknown box; known: iso"):
        replace(published, kernel_list=["box"], kernel_prob=[1])
    with pytest.raises(OptionError, match="add up to 1"):
        replace(published, kernel_list=["iso", "aniso"], kernel_prob=[0.5, 0.4])


def test_sides_that_the_scale_does_not_divide_are_refused():
    with pytest.raises(InputError, match="multiples of scale 4, got 95x95"):
        d.Degradation(scale=4)(photo()[..., :95, :95], **kernels(), rng=np.random.default_rng(0))


def test_the_pool_fills_then_exchanges_and_keeps_pairs_together():
    pool, rng = d.PairPool(6), np.random.default_rng(0)
    seen = []
    for step in range(30):
        values = torch.arange(2.0) + 2 * step
        lq, gt = pool.exchange(values.view(2, 1), values.view(2, 1) * 10, rng=rng)
        assert torch.equal(lq * 10, gt)
        seen.append(lq.flatten().tolist())
    assert seen[:3] == [[0, 1], [2, 3], [4, 5]]
    later = [value for pair in seen[3:] for value in pair]
    assert any(value % 2 != index % 2 for index, value in enumerate(later))
    assert len(set(later)) > 45
    with pytest.raises(InputError, match="queue_size 6 is not a multiple of the batch size 4"):
        pool.exchange(torch.zeros(4, 1), torch.zeros(4, 1), rng=rng)


def test_masks_follow_from_kind_size_seed_and_name():
    first = evaluation_mask("thick", size=256, seed=0, name="a.png")
    assert np.array_equal(first, evaluation_mask("thick", size=256, seed=0, name="a.png"))
    for change in (dict(kind="thin"), dict(seed=1), dict(name="b.png")):
        assert not np.array_equal(
            first, evaluation_mask(**(dict(kind="thick", size=256, seed=0, name="a.png") | change))
        )
    with pytest.raises(InputError, match="known: thick_256"):
        evaluation_mask("wide", size=256, seed=0, name="a")


@pytest.mark.parametrize("key", EVALUATION)
def test_evaluation_masks_are_binary_and_cover_at_most_half(key):
    kind, size = key.split("_")
    shares = []
    for index in range(25):
        mask = evaluation_mask(kind, size=int(size), seed=0, name=str(index))
        assert mask.shape == (int(size), int(size))
        assert set(np.unique(mask)) == {0, 1}
        shares.append(mask.mean())
    assert 0 < max(shares) <= 0.5
    assert 0.02 < np.mean(shares) < 0.45


def test_boxes_keep_their_sizes_and_margins():
    boxes = Boxes(min_times=1, max_times=1, min_size=30, max_size=60, margin=10)
    sides = []
    for seed in range(300):
        mask = box_mask(np.random.default_rng(seed), boxes, height=128, width=100)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        sides += [len(rows), len(columns)]
        assert rows[0] >= 10
        assert columns[0] >= 10
        assert rows[-1] < 118
        assert columns[-1] < 90
        assert mask.sum() == len(rows) * len(columns)
    assert min(sides) == 30
    assert max(sides) == 60
    with pytest.raises(InputError, match="too small for boxes"):
        box_mask(np.random.default_rng(0), boxes, height=40, width=40)


def test_wider_strokes_cover_more_and_mixing_follows_its_probability():
    def cover(width):
        rng = np.random.default_rng(0)
        strokes = Strokes(max_width=width)
        return np.mean([stroke_mask(rng, strokes, height=256, width=256).mean() for _ in range(40)])

    assert cover(10) < cover(50) < cover(100)
    never, always = (MaskMix(box_prob=p, boxes=Boxes(1, 1, 30, 30, 10)) for p in (0.0, 1.0))
    rng = np.random.default_rng(1)
    assert all(mixed_mask(rng, always, height=256, width=256).sum() == 900 for _ in range(10))
    assert sum(mixed_mask(rng, never, height=256, width=256).sum() == 900 for _ in range(10)) == 0


def test_the_blur_is_that_of_basicsr():
    kernel = kernels()["kernel1"]
    assert torch.equal(
        d._blurred(photo(), kernel, 1.0, np.random.default_rng(0)), filter2D(photo().contiguous(), kernel)
    )
    assert torch.equal(d._blurred(photo(), kernel, 0.0, np.random.default_rng(0)), photo())
