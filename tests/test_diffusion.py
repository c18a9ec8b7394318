"""The shared core of diffusion: schedules, conversions, samplers against exact answers, levels, noise of pixels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffir_sr.diffusion.noise import IterationNoise, PictureNoise, WindowNoise
from diffir_sr.diffusion.sampling import (
    Sampling,
    Step,
    clean_from_eps,
    drawn_levels,
    eps_from_clean,
    levels_between,
    noised_to,
    q_sample,
    sampling_of,
    walk,
)
from diffir_sr.diffusion.schedule import Schedule, named_betas, schedule_constants, schedule_of
from diffir_sr.errors import OptionError

GOLDEN = Path(__file__).parent / "golden"
LINEAR = dict(schedule="linear", n_timestep=2000, linear_start=1e-6, linear_end=0.01)
SMALL = dict(sampler="ddpm", variance="fixed_small")
LARGE = dict(sampler="ddpm", variance="fixed_large")
MEAN, VARIANCE = 0.3, 0.25


def linear(steps, end, start=1e-6):
    return schedule_of(dict(schedule="linear", n_timestep=steps, linear_start=start, linear_end=end))


# Schedules


def schedule_cases():
    for path in sorted(GOLDEN.glob("sr3_schedules*.json")):
        for tag in json.loads(path.read_text())["schedules"]:
            yield pytest.param(path, tag, id=f"{path.stem}-{tag}")


@pytest.mark.parametrize(("path", "tag"), list(schedule_cases()))
def test_schedules_have_the_published_constants(path, tag):
    about = json.loads(path.read_text())["schedules"][tag]
    schedule = schedule_of({key: about[key] for key in ("schedule", "n_timestep", "linear_start", "linear_end")})
    at = slice(None) if about["indices"] == "all" else about["indices"]
    with np.load(path.with_suffix(".npz")) as golden:
        constants = schedule_constants(schedule.betas)
        assert set(about["buffers"]) <= set(constants)
        for name in about["buffers"]:
            assert np.allclose(constants[name].float()[at], golden[f"{tag}.{name}"], rtol=1e-6, atol=0), name
        if f"{tag}.level" in golden:
            levels = schedule.kept.sqrt().float()
            assert np.allclose(levels[1:][at], golden[f"{tag}.level"], rtol=1e-6, atol=0)
            assert np.allclose(levels[:-1][at], golden[f"{tag}.level_upper"], rtol=1e-6, atol=0)


def test_the_training_schedule_has_the_known_shares():
    kept = schedule_of(LINEAR).kept
    assert kept[1].item() == pytest.approx(0.999999, abs=1e-12)
    assert kept[1000].item() == pytest.approx(0.0817838, abs=1e-7)
    assert kept[2000].item() == pytest.approx(4.38598e-5, rel=1e-5)


def test_a_respaced_schedule_visits_levels_of_the_whole_and_ends_where_it_ends():
    whole = schedule_of(LINEAR)
    for steps in (1, 7, 100, 2000):
        part = whole.respaced(steps)
        assert part.steps == steps
        assert part.kept[-1].item() == pytest.approx(whole.kept[-1].item(), rel=1e-9)
        distance = (part.kept[:, None] - whole.kept[None]).abs().min(dim=1).values
        assert distance.max() < 1e-12
    assert whole.respaced(2000) is whole


def test_listed_betas_are_taken_as_they_are():
    betas = [0.1, 0.5, 0.9]
    for about in (betas, dict(betas=betas), dict(betas=["1e-1", 0.5, 0.9])):
        assert schedule_of(about).betas.tolist() == betas
    assert schedule_of(betas).kept.tolist() == pytest.approx([1, 0.9, 0.45, 0.045])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (LINEAR | dict(schedule="sine"), "schedule: expected one of linear, quad.*found 'sine'"),
        (LINEAR | dict(n_timestep=0), "n_timestep: expected a whole number of 1 or more, found 0"),
        (LINEAR | dict(n_timestep=True), "n_timestep: expected a whole number"),
        (LINEAR | dict(linear_end="high"), "linear_end: expected a number above 0 and up to 1, found 'high'"),
        (LINEAR | dict(linear_end=1.5), "linear_end: expected a number above 0 and up to 1, found 1.5"),
        (LINEAR | dict(linear_stop=1), "linear_stop: unknown option; known options: schedule"),
        (dict(betas=[0.1], n_timestep=1), "n_timestep: the betas are listed already"),
        (dict(betas=[]), "betas: expected a list"),
        ("linear", "betas: expected a list"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(about, message):
    with pytest.raises(OptionError, match=message):
        schedule_of(about)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(beta_schedule=LINEAR | dict(n_timestep=10)), "after its 10 steps 0.95 of the squared signal is left"),
        (dict(beta_schedule=dict(schedule="jsd", n_timestep=10)), "its last beta is 1"),
        (dict(steps=2001), "steps: expected 1 to 2000, which the schedule has, found 2001"),
        (dict(steps=0), "steps: expected 1 to 2000"),
    ],
)
def test_a_schedule_that_cannot_be_sampled_from_is_refused(how, message):
    with pytest.raises(OptionError, match=message):
        Sampling(**how).schedule(schedule_of(LINEAR))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(sampler="euler"), "sampler: expected one of ddpm, ddim, found 'euler'"),
        (dict(eta=0.5), "eta: belongs to sampler ddim"),
        (dict(sampler="ddim", eta=1.5), "eta: expected 0 .* to 1 .*found 1.5"),
        (dict(sampler="ddim", variance="fixed_small"), "variance: belongs to sampler ddpm"),
        (dict(variance="learned"), "variance: expected one of fixed_small, fixed_large"),
        (dict(steps=2.5), "steps: expected a whole number, found 2.5"),
        (dict(stepz=2), "sampling.stepz: unknown option; known options: steps"),
    ],
)
def test_sampling_options_that_cannot_be_are_refused(how, message):
    with pytest.raises(OptionError, match=message):
        sampling_of(how)


def test_changing_the_sampler_forgets_what_belonged_to_the_other():
    large = Sampling(variance="fixed_large", steps=10)
    assert large.changed(sampler="ddim", eta=0.5) == Sampling(sampler="ddim", eta=0.5, steps=10)
    assert large.changed() == large
    assert large.changed(steps=5).steps == 5
    assert large.changed(beta_schedule=[0.1, 0.99]).steps is None


# Samplers against exact answers: data N(0.3, 0.25) has a known best predictor, under which every sampler is affine.


def best_eps(x, kept):
    return math.sqrt(1 - kept) * (x - math.sqrt(kept) * MEAN) / (kept * VARIANCE + 1 - kept)


def exact_moments(schedule, sampling):
    """Mean and variance of the samples: the walk is affine in its draws, so unit draws one by one tell it all."""
    sources = schedule.steps if sampling.is_noisy else 1
    # Row 0 has no draws at all, row j has source j alone; the sources are x_T, then the noise of step T, T - 1, ...
    unit = torch.eye(sources, dtype=torch.float64)
    draws = torch.cat([unit.new_zeros(1, sources), unit])
    *_, x = walk(
        best_eps, draws[:, :1], schedule=schedule, sampling=sampling,
        noise=lambda t: draws[:, schedule.steps - t + 1, None],
    )  # fmt: skip
    return x[0].item(), (x[1:] - x[0]).square().sum().item()


@pytest.mark.parametrize(
    ("steps", "end", "large", "small", "ddim"),
    [
        (2000, 0.01, (0.299997, 0.250425), (0.299997, 0.248078), (0.299008, 0.249299)),
        (500, 0.02, (0.299509, 0.251210), (0.299509, 0.244734), (0.287914, 0.249211)),
        (100, 0.1, (0.299575, 0.256174), (0.299575, 0.226834), (0.288936, 0.240817)),
        (30, 0.3, (0.299514, 0.270829), (0.299514, 0.190405), (0.288764, 0.217510)),
        (10, 0.5, (0.296549, 0.304606), (0.296549, 0.142855), (0.273380, 0.177042)),
    ],
)
def test_samplers_give_the_exact_moments_of_a_gaussian(steps, end, large, small, ddim):
    schedule = linear(steps, end)
    assert exact_moments(schedule, Sampling(**LARGE)) == pytest.approx(large, abs=1e-6)
    assert exact_moments(schedule, Sampling(**SMALL)) == pytest.approx(small, abs=1e-6)
    assert exact_moments(schedule, Sampling(sampler="ddim", eta=0.0)) == pytest.approx(ddim, abs=1e-6)
    assert exact_moments(schedule, Sampling(sampler="ddim", eta=1.0)) == pytest.approx(small, abs=1e-6)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(bounds):
    generator = torch.Generator().manual_seed(0)
    schedule = linear(50, 0.3)
    shape = (2, 3, 4, 5)
    start, *noise = torch.randn(51, *shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(5, 5, generator=generator, dtype=torch.float64)

    def predict(x, kept):
        return torch.tanh(x @ mix + kept)

    how = dict(schedule=schedule, noise=lambda t: noise[t - 1], bounds=bounds)
    one = list(walk(predict, start, sampling=Sampling(**SMALL), **how))
    two = list(walk(predict, start, sampling=Sampling(sampler="ddim", eta=1.0), **how))
    assert len(one) == 50
    assert max((a - b).abs().max() for a, b in zip(one, two, strict=True)) < 1e-9


def test_a_walk_equals_the_textbook_in_other_words():
    """DDPM by its first form (eps to mean, no x_0) and DDIM by its ODE form, written independently."""
    schedule = linear(20, 0.4)
    start = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.randn(21, 3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def predict(x, kept):
        return torch.sin(3 * x) * kept + 0.2

    x = y = start
    abar = 1.0
    products = [abar := abar * (1 - beta) for beta in schedule.betas.tolist()]
    for t in range(20, 0, -1):
        beta, kept, before = schedule.betas[t - 1].item(), products[t - 1], products[t - 2] if t > 1 else 1.0
        x = (x - beta / math.sqrt(1 - kept) * predict(x, kept)) / math.sqrt(1 - beta)
        x = x + (math.sqrt(beta) * noise[t] if t > 1 else 0)
        # d(y / sqrt(abar)) = eps d(sqrt(1 / abar - 1)), by one Euler step
        slope = predict(y, kept)
        y = math.sqrt(before) * (y / math.sqrt(kept) + slope * (math.sqrt(1 / before - 1) - math.sqrt(1 / kept - 1)))
    *_, ddpm = walk(predict, start, schedule=schedule, sampling=Sampling(**LARGE), noise=lambda t: noise[t])
    *_, ddim = walk(predict, start, schedule=schedule, sampling=Sampling(sampler="ddim"), noise=lambda t: noise[t])
    assert torch.allclose(ddpm, x, atol=1e-9)
    assert torch.allclose(ddim, y, atol=1e-9)


def test_bounds_hold_for_each_guess_and_may_be_pictures():
    schedule = linear(10, 0.6)
    start = torch.full((2, 4), 30.0, dtype=torch.float64)
    low, high = torch.tensor([[-0.5], [-0.1]], dtype=torch.float64), torch.tensor([[0.5], [0.2]], dtype=torch.float64)
    for how in (Sampling(), Sampling(sampler="ddim")):
        *_, x = walk(
            lambda x, _: 0 * x, start, schedule=schedule, sampling=how, noise=lambda _: start, bounds=(low, high)
        )  # fmt: skip
        assert torch.allclose(x, high.expand(2, 4))
        *_, free = walk(
            lambda x, _: 0 * x, start, schedule=schedule, noise=lambda _: 0 * start, bounds=(low, high),
            sampling=Sampling(sampler=how.sampler, clip=False),
        )  # fmt: skip
        assert free.min() > 1


def test_conversions_are_inverse_to_each_other():
    step = Step(kept=0.3, before=0.4)
    x0, eps = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = q_sample(x0, eps, signal=math.sqrt(0.3), spread=math.sqrt(0.7))
    assert torch.allclose(step.clean(x, eps), x0)
    assert torch.allclose(eps_from_clean(x, x0, signal=math.sqrt(0.3), spread=math.sqrt(0.7)), eps)
    assert torch.allclose(clean_from_eps(x, eps, recip=0.3**-0.5, recip_minus=(1 / 0.3 - 1) ** 0.5), x0)
    assert step.beta == pytest.approx(0.25)
    assert not step.is_last
    assert Step(kept=0.9, before=1.0).posterior_variance == 0


# Levels


@pytest.mark.parametrize("space", ["gamma", "sqrt_gamma"])
def test_levels_lie_between_neighbours_evenly_in_their_own_space(space):
    schedule = linear(10, 0.5, start=1e-4)
    t, share = torch.tensor([1, 4, 10]), torch.tensor([0.25, 0.5, 1.0])
    ends = schedule.kept if space == "gamma" else schedule.kept.sqrt()
    expected = (1 - share) * ends[t - 1] + share * ends[t]
    assert torch.allclose(levels_between(schedule, t, share, space=space), expected.float())


@pytest.mark.parametrize("space", ["gamma", "sqrt_gamma"])
def test_drawn_levels_visit_every_step_alike(space):
    schedule = linear(4, 0.8, start=0.1)
    draws = IterationNoise(seed=0, iteration=1).normal((4000, 2), "level")
    levels = drawn_levels(schedule, draws, space=space)
    assert torch.equal(levels, drawn_levels(schedule, draws, space=space))
    ends = (schedule.kept if space == "gamma" else schedule.kept.sqrt()).float()
    counts = [((levels <= ends[t - 1]) & (levels > ends[t])).float().mean().item() for t in range(1, 5)]
    assert counts == pytest.approx([0.25] * 4, abs=0.03)
    shared = drawn_levels(schedule, draws, space=space, share_t=True)
    inside = [((shared <= ends[t - 1]) & (shared >= ends[t])).all().item() for t in range(1, 5)]
    assert inside.count(True) == 1
    assert len(shared.unique()) > 3900


def test_noised_pictures_keep_unit_variance_and_an_idle_network_has_the_known_loss():
    generator = torch.Generator().manual_seed(5)
    x0, eps = torch.randn(2, 8, 3, 100, 100, generator=generator)
    level = drawn_levels(schedule_of(LINEAR), torch.randn(8, 2, generator=generator), space="sqrt_gamma")
    for space in ("sqrt_gamma", "gamma"):
        variances = noised_to(x0, eps, level, space=space).var(dim=(1, 2, 3))
        assert torch.allclose(variances, torch.ones(8), atol=0.03)
    assert eps.abs().mean().item() == pytest.approx(0.797885, abs=2e-3)


# Noise tied to pixels


def test_noise_of_a_part_is_the_part_of_the_noise():
    lq = torch.rand(2, 3, 40, 60)
    noise = PictureNoise(lq, seed=4)
    whole = noise.normal((2, 3, 160, 240), "step 3")
    assert torch.equal(noise.normal((2, 3, 70, 66), "step 3"), whole[..., :70, :66])
    part = WindowNoise(noise, top=11, left=7, height=20, width=30)
    assert torch.equal(part.normal((2, 3, 80, 120), "step 3"), whole[..., 44:124, 28:148])
    assert torch.equal(part.normal((2, 3, 20, 30), "a"), noise.normal((2, 3, 40, 60), "a")[..., 11:31, 7:37])
    assert torch.equal(part.normal((2, 256)), noise.normal((2, 256)))
    values = noise.normal((2, 3, 300, 300), "large")
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    # Squares that are drawn apart are independent: no correlation with the neighbouring square.
    one, other = values[..., :64, :64].flatten(), values[..., :64, 64:128].flatten()
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.02


def test_betas_by_name_are_float64():
    assert named_betas("cosine", 4).dtype == torch.float64
    assert Schedule(torch.tensor([0.5], dtype=torch.float64)).steps == 1
