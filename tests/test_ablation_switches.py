"""The switches of the paper's ablations: what each changes, trained through `basicsr train`, read back from weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from toy import S1, S2, run_training, train_options, write_pairs

from diffir_sr.checkpoints import identify
from diffir_sr.diffusion.sampling import PriorDiffusion
from diffir_sr.diffusion.schedule import PUBLISHED_SIGNAL, rescaled_end, scaled_linear_betas
from diffir_sr.errors import OptionError
from diffir_sr.inference.restorer import load_restorer
from diffir_sr.losses import KDLoss


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("switches")
    before = os.getcwd()
    os.chdir(root)
    try:
        write_pairs("data", lmdb=False)
        assert run_training(train_options("s1", iterations=2)) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


VARIANTS = {
    "no_diffusion": dict(network=dict(use_diffusion=False)),
    "separate": dict(train=dict(diffusion_training="separate")),
    "variance_noise": dict(network=dict(variance_noise=True)),
    "l2": dict(kd=dict(criterion="l2")),
    "kl": dict(kd=dict(criterion="kl")),
    "one_step": dict(network=dict(timesteps=1, rescale_schedule=True)),
    "many_steps": dict(network=dict(timesteps=32, rescale_schedule=True)),
    "eps": dict(network=dict(prediction="eps")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_trains_validates_and_restores(inside, variant):
    change = VARIANTS[variant]
    options = train_options("s2", name=variant, iterations=2, **change.get("train", {}))
    options["network_g"] |= change.get("network", {})
    options["train"]["kd_opt"] |= change.get("kd", {})
    assert run_training(options) == 0
    log = json.loads(Path(f"experiments/{variant}/training.jsonl").read_text().splitlines()[-1])
    names = {"no_diffusion": "l_abs_0", "separate": "l_abs_0", "l2": "l_sq_3", "kl": "l_kl_3"}
    names |= {"one_step": "l_abs_0", "many_steps": "l_abs_31"}
    assert names.get(variant, "l_abs_3") in log
    restorer = load_restorer(f"experiments/{variant}/models/net_g_latest.safetensors")
    for name, value in change.get("network", {}).items():
        kept = getattr(restorer.network if name == "use_diffusion" else restorer.network.diffusion, name, value)
        assert kept == value
    assert restorer("data/lq/p0.png").colours.shape == (64, 64, 3)


@pytest.mark.parametrize(("sees", "width"), [("gt", 256), ("lq_gt", 64), ("gt", 32)])
def test_other_priors_train_in_both_stages_and_are_read_back(inside, sees, width):
    name = f"{sees}{width}"
    first = train_options("s1", name=f"first_{name}", iterations=2)
    first["network_g"] |= dict(prior_input=sees, prior_width=width)
    assert run_training(first) == 0
    second = train_options("s2", name=f"second_{name}", iterations=2)
    second["network_g"] |= dict(prior_width=width)
    second["network_S1"] |= dict(prior_input=sees, prior_width=width)
    start = f"experiments/first_{name}/models/net_g_latest.pth"
    second["path"] |= dict(pretrain_network_g=start, pretrain_network_S1=start)
    assert run_training(second) == 0
    found = identify(torch.load(start, weights_only=True)["params"])
    assert found.arguments.get("prior_input", "lq_gt") == sees
    assert found.arguments.get("prior_width", 256) == width
    assert load_restorer(f"experiments/second_{name}/models/net_g_latest.pth")("data/lq/p0.png").colours.any()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 16, 32])
def test_a_rescaled_schedule_ends_in_as_much_noise_as_the_published_one(steps):
    start, end = rescaled_end(steps, start=0.1)
    left = torch.cumprod(1 - scaled_linear_betas(steps, start=start, end=end), 0)
    assert left[-1].item() == pytest.approx(PUBLISHED_SIGNAL, rel=1e-6)
    if steps == 4:
        assert (start, end) == pytest.approx((0.1, 0.99), abs=1e-6)


def test_what_is_not_said_is_the_published_network():
    torch.manual_seed(0)
    plain = build_network(dict(S2))
    torch.manual_seed(0)
    output = build_network(
        dict(S2, use_diffusion=True, variance_noise=False, rescale_schedule=False, prior_width=256, prediction="x0")
    )
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), output.state_dict().values(), strict=True)
    )
    assert (
        build_network(dict(S1)).state_dict().keys() == build_network(dict(S1, prior_input="lq_gt")).state_dict().keys()
    )


class Constant(torch.nn.Module):
    """A denoiser that knows the prior."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, noisy, step, condition):
        return self.value.expand_as(noisy)


def diffusion(value, **change):
    arguments = dict(timesteps=4, linear_start=0.1, linear_end=0.99) | change
    return PriorDiffusion(model=Constant(value), condition=torch.nn.Identity(), **arguments)


def test_variance_noise_follows_from_the_start_and_has_the_posterior_variance():
    start, value = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(8)
    noisy, quiet = diffusion(value, variance_noise=True), diffusion(value)
    first, again = noisy.sample(start, start), noisy.sample(start[:3], start[:3])
    assert all(torch.equal(one[:3], other) for one, other in zip(first, again, strict=True))
    added = first[0] - quiet.sample(start, start)[0]
    assert added.var().item() == pytest.approx(noisy.posterior_variance[3].item(), rel=0.03)
    assert torch.equal(first[-1], torch.zeros_like(start))  # the last step adds nothing


@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_a_single_step_is_noised_as_its_step_says(prediction):
    prior, noise = torch.randn(2, 8), torch.randn(2, 8)
    step = torch.tensor([0, 3])
    exact = diffusion(prior if prediction == "x0" else noise, prediction=prediction)
    exact.model.forward = lambda noisy, *_: prior if prediction == "x0" else noise
    assert torch.allclose(exact.predict_x0(prior, noise, step, prior), prior, atol=1e-5)


def test_training_apart_gives_the_image_no_hold_on_the_estimator():
    torch.manual_seed(0)
    net = build_network(dict(S2)).train()
    lq, prior, noise = torch.rand(2, 3, 16, 16), torch.rand(2, 256), torch.randn(2, 256)
    image, (guess,) = net(lq, prior, noise=noise, step=torch.tensor([0, 2]))
    estimator = [*net.condition.parameters(), *net.denoise.parameters()]
    assert all(slope is None for slope in torch.autograd.grad(image.sum(), estimator, allow_unused=True))
    assert all(slope.norm() > 0 for slope in torch.autograd.grad(guess.square().sum(), estimator))
    joint, _ = net(lq, prior, noise=noise)
    assert all(slope.norm() > 0 for slope in torch.autograd.grad(joint.sum(), estimator))


@pytest.mark.parametrize("criterion", ["l1", "l2", "kl"])
def test_the_distance_of_priors_is_the_one_asked_for(criterion):
    teacher, estimate = torch.randn(3, 16), torch.randn(3, 16, requires_grad=True)
    watched, distance = KDLoss(loss_weight=2.0, criterion=criterion)(teacher, estimate)
    p, q = (torch.softmax(prior / 0.15, dim=1) for prior in (teacher, estimate))
    expected = {
        "l1": (teacher - estimate).abs().mean(),
        "l2": (teacher - estimate).square().mean(),
        "kl": (p * (p.log() - q.log())).sum(dim=1).mean(),
    }[criterion]
    assert distance.item() == pytest.approx(2 * expected.item(), rel=1e-4)
    assert not watched.requires_grad
    assert torch.autograd.grad(distance, estimate)[0].norm() > 0


def test_unknown_choices_are_refused():
    with pytest.raises(OptionError, match="criterion: expected l1, l2 or kl, got 'l3'"):
        KDLoss(criterion="l3")
    with pytest.raises(OptionError, match="prior_input: expected 'lq_gt' or 'gt', got 'lq'"):
        build_network(dict(S1, prior_input="lq"))
    with pytest.raises(OptionError, match="prior_width: expected a multiple of 4, got 30"):
        build_network(dict(S1, prior_width=30))
