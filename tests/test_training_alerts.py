"""Alerts: injected failures are caught, named and survived; nothing poisoned stays; all of it resumes exactly."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from toy import S1, files_of, killed_at, rows, run_training, train_options, write_pairs

from diffir_sr.models.diffir_models import DiffIRS1Model, prior_spread
from diffir_sr.models.restoration_model import RestorationModel
from diffir_sr.training import monitoring
from diffir_sr.training.monitoring import (
    Alert,
    Watch,
    broken_part,
    course_from,
    record_rollback,
    scaled_rates,
    too_soon,
)
from diffir_sr.training.states import last_good, prune, remove_after


def log_of(name):
    return "".join(file.read_text() for file in sorted(Path(f"experiments/{name}").glob("*.log")))


def alerts_of(name):
    return [json.loads(line) for line in Path(f"experiments/{name}/alerts.jsonl").read_text().splitlines()]


def options(name, *, iterations=12, **alerts):
    made = train_options("s1", name=name, iterations=iterations, form="plain", alerts=dict(start=0) | alerts)
    made["val"]["val_freq"] = 4
    return made


def is_cut(model):
    """Whether a rollback has lowered the rate; what is injected below then stays away."""
    return model.optimizers[0].param_groups[0]["lr"] < 0.9 * model.rate_of_the_schedule


@pytest.fixture
def injected(monkeypatch):
    """`injected(do)` calls do(model, iteration) before every step whose learning rate was not cut."""
    steps, rates = RestorationModel.optimize_parameters, RestorationModel.update_learning_rate

    def inject(do):
        def update(self, current_iter, warmup_iter=-1):
            rates(self, current_iter, warmup_iter=warmup_iter)
            self.rate_of_the_schedule = self.optimizers[0].param_groups[0]["lr"]

        def step(self, current_iter):
            group = self.optimizers[0].param_groups[0]
            rate = group["lr"]
            if not is_cut(self):
                do(self, current_iter)
            steps(self, current_iter)
            group["lr"] = rate

        monkeypatch.setattr(RestorationModel, "update_learning_rate", update)
        monkeypatch.setattr(RestorationModel, "optimize_parameters", step)

    return inject


def nan_at(iteration):
    """NaN out of one attention, in one iteration."""

    def do(model, current_iter):
        part = model.get_bare_model(model.net_g).G.latent[0].attn
        part.forward = (
            (lambda x, *more: type(part).forward(part, x * math.nan, *more))
            if current_iter == iteration
            else type(part).forward.__get__(part)
        )

    return do


def test_nan_is_named_and_survived_and_a_killed_run_ends_alike(injected):
    injected(nan_at(7))
    write_pairs("data", lmdb=False)
    assert run_training(options("whole")) == 0
    (alert,) = alerts_of("whole")
    assert (alert["iter"], alert["from"], alert["lr_factor"], alert["rollbacks"]) == (7, 4, 0.5, 1)
    assert "it began in iteration 7, in the output of net_g.G.latent.0.attn" in alert["message"]
    assert "(loss: l_pix)" in alert["message"]
    assert "Going back to the state of iteration 4, with 0.5 times the learning rates" in log_of("whole")
    lines = rows("whole", "training.jsonl")
    assert [line["iter"] for line in lines] == list(range(1, 13))
    assert [line["lrs"] for line in lines[3:5]] == [[1e-4], [5e-5]]
    assert all(math.isfinite(line["l_pix"]) for line in lines)

    draw, kills = random.Random(0), 0
    while kills < 6 and killed_at(draw.randint(10, 40), lambda: run_training(options("part1"), "--auto_resume")):
        kills += 1
    assert kills > 2
    assert run_training(options("part1"), "--auto_resume") == 0
    assert rows("part1", "training.jsonl") == lines
    assert rows("part1", "validation.jsonl") == rows("whole", "validation.jsonl")
    assert alerts_of("part1") == [alert]
    assert files_of("part1") == files_of("whole")


def test_a_hundred_times_the_learning_rate_is_survived(injected, monkeypatch):
    def too_fast(model, current_iter):
        if current_iter > 9:
            model.optimizers[0].param_groups[0]["lr"] *= 100

    monkeypatch.setattr(monitoring, "_HISTORY", 8)
    injected(too_fast)
    write_pairs("data", lmdb=False)
    assert run_training(options("fast", iterations=18)) == 0
    (alert,) = alerts_of("fast")
    assert alert["alert"] == "leap"
    assert 9 < alert["iter"] < 18
    lines = rows("fast", "training.jsonl")
    assert lines[-1]["l_pix"] < 2 * lines[8]["l_pix"]


def test_a_frozen_prior_encoder_is_survived(injected):
    def freeze(model, current_iter):
        model.get_bare_model(model.net_g).E.requires_grad_(current_iter < 5)

    injected(freeze)
    write_pairs("data", lmdb=False)
    assert run_training(options("frozen", patience=4)) == 0
    (alert,) = alerts_of("frozen")
    assert (alert["alert"], alert["iter"], alert["from"]) == ("dead prior", 8, 2)
    assert rows("frozen", "training.jsonl")[-1]["grad_norm_prior"] > 0


def test_a_second_alert_soon_ends_the_run_with_its_last_good_state(monkeypatch, capsys):
    steps = RestorationModel.optimize_parameters

    def step(self, current_iter):
        nan_at(7)(self, current_iter)
        steps(self, current_iter)

    monkeypatch.setattr(RestorationModel, "optimize_parameters", step)
    write_pairs("data", lmdb=False)
    assert run_training(options("again")) == 1
    output = log_of("again").splitlines()[-1]
    assert "ERROR: iteration 7: l_pix, " in output
    assert "the training has diverged (again within 10,000 iterations of the alert after iteration 7)" in output
    assert "The last good state is 4.state: go on from it with --auto_resume and a lower learning rate" in output
    assert max(int(file.stem) for file in Path("experiments/again/training_states").glob("*.state")) == 4
    weights = torch.load("experiments/again/models/net_g_4.pth", weights_only=True)["params"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(("action", "code"), [("stop", 1), ("warn", 1)])
def test_values_that_are_not_finite_end_a_run_without_rollback(monkeypatch, action, code):
    steps = RestorationModel.optimize_parameters
    monkeypatch.setattr(RestorationModel, "optimize_parameters", lambda self, i: (nan_at(2)(self, i), steps(self, i)))
    write_pairs("data", lmdb=False)
    assert run_training(options("stopped", iterations=3, action=action)) == code
    assert f"(train.alerts.action is {action})" in log_of("stopped")
    assert not Path("experiments/stopped/alerts.jsonl").exists()
    assert not list(Path("experiments/stopped/models").iterdir())


# What raises an alert, as a function of the records.


class Records:
    """A run that exists as its records alone."""

    def __init__(self, **alerts):
        self.opt = dict(
            name="run", rank=0, train=dict(alerts=dict(start=0) | alerts), path=dict(log="."),
            logger=dict(print_freq=10), val=dict(metrics=dict(psnr=dict(type="calculate_psnr"))),
        )  # fmt: skip
        self.watch = Watch(self.opt)
        self.iteration = 0

    def log(self, **values):
        self.iteration += 10
        row = dict(epoch=0, iter=self.iteration, lrs=[1e-4], time=1.0, data_time=9.0, **values)
        return self.watch.logged(row)


def first(run, values, count):
    """(line, alert) of the first of `count` lines of `values(line)` that raises one."""
    return next(((line, alert) for line in range(1, count + 1) if (alert := run.log(**values(line)))), None)


def noisy(line):
    return dict(l_pix=0.1 + 0.01 * math.sin(12.9 * line**2), grad_norm=1 + 0.2 * math.cos(7.7 * line**2))


def test_noise_raises_no_alert_and_leaps_do():
    for name, value in (("l_pix", 0.3), ("grad_norm", 12.0)):
        run = Records()
        assert first(run, noisy, 200) is None
        alert = run.log(**noisy(1) | {name: value})
        assert (alert.kind, alert.iteration, alert.since) == ("leap", 2010, 2000)
        assert alert.message.startswith(f"{name} leapt to")
        assert Records(loss_zscore=None, grad_zscore=None).log(**{name: value}) is None


def test_a_new_phase_with_other_losses_has_a_history_of_its_own():
    run = Records()
    assert first(run, lambda line: dict(l_abs_3=0.1, grad_norm=0.01), 60) is None
    assert first(run, lambda line: dict(l_abs_3=0.1, l_pix=0.2, grad_norm=5.0), 60) is None


WRONG = {
    "discriminator win": dict(l_d_real=1e-3, l_d_fake=2e-3),
    "colour shift": dict(shift_r=0.0, shift_g=-0.06, shift_b=0.01),
    "dead prior": dict(prior_spread=1e-8, grad_norm_prior=0.2),
    "prior mismatch": dict(prior_cosine=0.3),
}
RIGHT = {
    "discriminator win": dict(l_d_real=-9.0, l_d_fake=-8.0),  # of a critic (WGAN), which has no end
    "colour shift": dict(shift_r=0.04, shift_g=-0.04, shift_b=0.04),
    "dead prior": dict(prior_spread=1e-3, grad_norm_prior=1e-9),
    "prior mismatch": dict(prior_cosine=0.9),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_lasts_is_an_alert_since_it_began(kind):
    run = Records(patience=5)
    assert first(run, lambda line: WRONG[kind] if line % 5 else RIGHT[kind], 40) is None
    line, alert = first(run, lambda line: WRONG[kind], 10)
    assert (line, alert.kind) == (5, kind)
    assert alert.since == alert.iteration - 50
    assert first(Records(start=10_000, patience=5), lambda line: WRONG[kind], 40) is None


def test_psnr_that_collapses_leads_back_to_before_it():
    run = Records()
    values = [(100, 25.0), (200, 28.0), (300, 24.0), (400, 22.9)]
    for iteration, value in values:
        with open("validation.jsonl", "a") as file:
            file.write(json.dumps({"iter": iteration, "dataset": "val", "psnr": value}) + "\n")
        alert = run.watch.validated(iteration)
        assert bool(alert) == (iteration == 400)
    assert alert.message == "psnr of val fell to 22.90 dB from 28.00 dB"
    assert alert.since == 301


def test_the_history_of_a_resumed_run_is_that_of_an_unbroken_one():
    run = Records()
    for line in range(1, 30):
        assert run.log(**noisy(line)) is None
        row = dict(epoch=0, iter=run.iteration, lrs=[1e-4], time=1.0, data_time=9.0, **noisy(line))
        with open("training.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    resumed = Records()
    resumed.iteration = run.iteration
    assert resumed.log(l_pix=0.25, grad_norm=1.0) == run.log(l_pix=0.25, grad_norm=1.0) != None  # noqa: E711


def test_the_course_is_that_of_the_last_rollback_before_a_state():
    run = Records(min_interval=500)
    assert too_soon(run.opt, Alert("leap", "", 700, 691)) is None
    record_rollback(run.opt, Alert("leap", "", 700, 691), done=600)
    assert "again within 500 iterations of the alert after iteration 700" in too_soon(
        run.opt, Alert("leap", "", 1199, 1)
    )
    assert too_soon(run.opt, Alert("leap", "", 1200, 1)) is None
    record_rollback(run.opt, Alert("leap", "", 1300, 1291), done=1200)
    courses = [course_from(run.opt, done) for done in (0, 599, 600, 1199, 1200, 5000)]
    assert [(one.rollbacks, one.lr_factor) for one in courses] == [
        (0, 1),
        (0, 1),
        (1, 0.5),
        (1, 0.5),
        (2, 0.25),
        (2, 0.25),
    ]


def test_rates_are_scaled_for_a_step_and_come_back_to_the_bit():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones(1)
    with scaled_rates([optimizer], 0.3):
        optimizer.step()
    assert weight.item() == pytest.approx(0.97)
    assert optimizer.param_groups[0]["lr"] == 0.1


# States.


def touch_states(*iterations):
    states, models = Path("training_states"), Path("models")
    for folder in (states, models):
        folder.mkdir(exist_ok=True)
    for number in iterations:
        for name in (".state", "_options.json", "_sums_0.json", "_sums_1.json", "_pool_0.pt"):
            (states / f"{number}{name}").touch()
        for name in ("net_g", "net_d"):
            (models / f"{name}_{number}.pth").touch()
        (models / f"net_g_{number}.safetensors").touch()
    (models / "net_g_latest.pth").touch()
    return dict(rank=0, path=dict(training_states=str(states), models=str(models)), logger={})


@pytest.mark.parametrize(("rule", "kept"), [
    (dict(), [3000, 4000, 5000, 6000, 7000]),
    (dict(keep_states=2), [6000, 7000]),
    (dict(keep_states=2, keep_states_every=2500), [5000, 6000, 7000]),
    (dict(keep_states=None), [1000, 2000, 3000, 4000, 5000, 6000, 7000]),
])  # fmt: skip
def test_states_stay_by_rule_with_all_that_belongs_to_them(rule, kept):
    opt = touch_states(*range(1000, 8000, 1000)) | dict(logger=dict(print_freq=1, **rule))
    Path("training_states/500_options.json").touch()  # of a state whose removal was killed
    Path("training_states/8000_options.json").touch()  # of one that is being written
    prune(opt)
    left = sorted(int(file.name.split(".")[0]) for file in Path("training_states").glob("*.state"))
    assert left == kept
    assert len(list(Path("training_states").iterdir())) == 5 * len(kept) + (1 if rule.get("keep_states", 5) else 2)
    assert len(list(Path("models").iterdir())) == 3 * 7 + 1


def test_what_came_after_the_last_good_state_goes():
    opt = touch_states(1000, 2000, 3000)
    assert [last_good(opt, before=one) for one in (9999, 3000, 2001, 1000, 1)] == [3000, 2000, 2000, 1000, 1000]
    remove_after(opt, 1000)
    assert {file.name.split(".")[0] for file in Path("training_states").glob("*.state")} == {"1000"}
    names = {"net_g_1000.pth", "net_d_1000.pth", "net_g_1000.safetensors", "net_g_latest.pth"}
    assert {file.name for file in Path("models").iterdir()} == names
    assert last_good(touch_states() | dict(path=dict(training_states="none")), before=5) == 0


def test_every_part_of_a_model_is_looked_at():
    write_pairs("data", lmdb=False)
    assert run_training(options("run", iterations=1)) == 0
    made = options("run")
    made |= dict(network_g=dict(S1), dist=False, rank=0, world_size=1, is_train=True, auto_resume=False)
    made["path"] |= dict(models="m", training_states="t", log="l", experiments_root="e")
    model = DiffIRS1Model(made)
    model.feed_data(dict(lq=torch.rand(2, 3, 8, 8), gt=torch.rand(2, 3, 32, 32)))
    model.optimize_parameters(2)
    assert broken_part(model) is None
    average = dict(model.net_g_ema.named_parameters())
    moments = next(iter(model.optimizer_g.state.values()))
    for place, tensor in (
        ("E.E.0.weight of net_g_ema", average["E.E.0.weight"]),
        ("exp_avg of optimizer 1", moments["exp_avg"]),
    ):
        kept = tensor.clone()
        tensor.data.view(-1)[-1] = math.inf
        assert broken_part(model) == place
        tensor.data.copy_(kept)
    model._sums = {"l_pix": (torch.tensor(math.nan), 3)}
    assert broken_part(model) == "l_pix"


def test_priors_that_differ_have_a_spread():
    prior = torch.tensor([[1.0, 2.0], [1.0, -2.0]])
    assert prior_spread(prior)["prior_spread"].item() == pytest.approx((0 + 4) / 2 / ((1 + 4 + 1 + 4) / 4))
    assert prior_spread(prior[:1].expand(4, 2))["prior_spread"].item() == 0
    assert prior_spread(prior[:1]) == {}
