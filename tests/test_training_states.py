"""Training states: foreign and damaged ones refused by name, changed options listed, finished runs left alone."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from toy import ADAM, run_training, train_options, train_stages

from diffir_sr.errors import CheckpointError
from diffir_sr.training.states import read_state

STATES = Path("experiments/toy_s1/training_states")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A stage 1 of four iterations, saved after the second and the fourth, and a stage 2."""
    return train_stages(tmp_path_factory.mktemp("states"), dict(s1=4, s2=2), lmdb=False)


@pytest.fixture
def inside(stages, tmp_path, monkeypatch):
    """A copy of the stages, so that each test may damage its own."""
    shutil.copytree(stages, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")


def log_of(name="toy_s1"):
    """The newest log of a run."""
    return max(Path(f"experiments/{name}").glob("*.log"), key=lambda file: file.stat().st_mtime_ns).read_text()


def change(**entries):
    state = torch.load(STATES / "4.state", weights_only=True)
    state |= entries
    torch.save(state, "changed.state")
    return "changed.state"


def state_of():
    return torch.load(STATES / "4.state", weights_only=True)


def broken_moments(change_one):
    state = copy.deepcopy(state_of()["optimizers"])
    change_one(state[0]["state"])
    return state


DAMAGED = {
    "iter as text": (lambda: dict(iter="four"), r"iter of the training state is 'four', expected int"),
    "negative iter": (lambda: dict(iter=-4), "iter of the training state is -4"),
    "optimizers as text": (
        lambda: dict(optimizers="Adam"),
        "optimizers of the training state is 'Adam', expected list",
    ),
    "no groups": (lambda: dict(optimizers=[{"state": {}}]), "optimizer 1 of the training state is damaged"),
    "moments of NaN": (
        lambda: dict(optimizers=broken_moments(lambda one: one[0]["exp_avg"].fill_(float("nan")))),
        "optimizer 1: exp_avg of parameter 0 holds values that are not finite",
    ),
    "moments as text": (
        lambda: dict(optimizers=broken_moments(lambda one: one[0].update(exp_avg="x"))),
        "exp_avg of parameter 0 is a str",
    ),
    "moments as a number": (
        lambda: dict(optimizers=broken_moments(lambda one: one.update({0: 3}))),
        "the moments of parameter 0 are damaged",
    ),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_state_is_refused_with_what_is_amiss(inside, fault):
    entries, cause = DAMAGED[fault]
    with pytest.raises(CheckpointError, match=rf"changed\.state: {'.*' if 'iter' not in fault else ''}{cause}"):
        read_state(Path(change(**entries())))


@pytest.mark.parametrize("key", ["epoch", "iter", "optimizers", "schedulers"])
def test_a_missing_entry_is_named(inside, key):
    state = state_of()
    del state[key]
    torch.save(state, "part.state")
    with pytest.raises(CheckpointError, match=rf"part\.state: the training state lacks '{key}'"):
        read_state(Path("part.state"))


def test_files_of_other_kinds_are_called_by_their_names(inside):
    data = (STATES / "4.state").read_bytes()
    Path("cut.state").write_bytes(data[: len(data) // 2])
    Path("empty.state").touch()
    Path("page.state").write_text("<html></html>")
    torch.save([1, 2], "list.state")
    for name, cause in {
        "cut.state": r"not a readable training state \(truncated",
        "empty.state": "an empty file",
        "page.state": "a web page",
        "list.state": "not a training state but a list",
        "experiments/toy_s1/models/net_g_4.pth": "holds params, params_ema; weights belong to path.pretrain",
        "absent.state": "no such file",
    }.items():
        with pytest.raises(CheckpointError, match=cause):
            read_state(Path(name))


def resumed_from(state, capsys, options=None):
    """The message that ends a run which should go on from `state`."""
    options = options or train_options("s1", iterations=6)
    options["path"]["resume_state"] = str(state)
    assert run_training(options) == 1
    return capsys.readouterr().err + log_of(options["name"])


def test_a_state_of_another_stage_or_optimizer_is_refused(inside, capsys):
    foreign = torch.load("experiments/toy_s2/training_states/2.state", weights_only=True) | dict(iter=4)
    torch.save(foreign, "s2.state")
    output = resumed_from("s2.state", capsys)
    assert re.search(r"s2\.state: the optimizer \(Adam\) of DiffIRS1Model of these options trains groups of", output)
    two = state_of()["optimizers"] * 2
    output = resumed_from(change(optimizers=two), capsys)
    assert "a training state with 2 optimizers, and DiffIRS1Model of these options needs 1" in output
    sgd = train_options("s1", iterations=6, optim_g=dict(type="SGD", lr=1e-3, momentum=0.9))
    output = resumed_from(STATES / "4.state", capsys, sgd)
    assert "the optimizer (SGD) of DiffIRS1Model of these options is another kind" in output
    cosine = dict(type="CosineAnnealingRestartLR", periods=[9], restart_weights=[1], eta_min=1e-7)
    output = resumed_from(STATES / "4.state", capsys, train_options("s1", iterations=6, scheduler=cosine))
    assert "was written with another scheduler than the CosineAnnealingRestartLR" in output


@pytest.mark.parametrize("change_one", [
    lambda one: one[0].update(exp_avg=torch.zeros(3)),
    lambda one: one[0].pop("exp_avg_sq"),
])  # fmt: skip
def test_moments_that_do_not_belong_to_the_weights_are_refused(inside, capsys, change_one):
    output = resumed_from(change(optimizers=broken_moments(change_one)), capsys)
    assert re.search(r"exp_avg of parameter 0 has the shape \(3,\)|parameter 0 lacks exp_avg_sq", output)
    assert "Traceback" not in output


@pytest.mark.parametrize("victim", ["training_states/4.state", "models/net_g_4.pth"])
def test_a_damaged_newest_state_is_reported_and_the_one_before_it_used(inside, victim):
    path = Path("experiments/toy_s1") / victim
    whole = torch.load("experiments/toy_s1/models/net_g_4.pth", weights_only=True)
    path.write_bytes(path.read_bytes()[:5000])
    assert run_training(train_options("s1"), "--auto_resume") == 0
    log = log_of()
    assert re.search(rf"{path.name}: not a readable .* passed over, the state before it is used", log)
    assert "Resuming after iteration 2" in log
    again = torch.load("experiments/toy_s1/models/net_g_4.pth", weights_only=True)
    assert all(torch.equal(whole["params"][key], again["params"][key]) for key in whole["params"])


def test_a_run_whose_states_are_all_damaged_does_not_begin_anew(inside, capsys):
    for file in STATES.glob("*.state"):
        file.write_bytes(b"")
    assert run_training(train_options("s1"), "--auto_resume") == 1
    assert "none of 2 training states can be used" in capsys.readouterr().err
    assert Path("experiments/toy_s1/models/net_g_4.pth").is_file()


def test_what_changed_since_is_reported_with_what_takes_effect(inside):
    options = train_options("s1", iterations=6, optim_g=ADAM | dict(lr=1e-3), pixel_opt=dict(type="MSELoss"))
    options["train"]["scheduler"] = dict(type="MultiStepLR", milestones=[5], gamma=0.5)
    options["datasets"]["train"] |= dict(batch_size_per_gpu=4)
    options["manual_seed"] = 7
    assert run_training(options, "--auto_resume") == 0
    log = log_of()
    for name, values, effect in (
        ("train.optim_g.lr", "0.0002 when the state was written, 0.001 now", "without effect"),
        ("train.scheduler.milestones", r"\[2\] when the state was written, \[5\] now", "without effect"),
        ("train.total_iter", "4 when the state was written, 6 now", "takes effect"),
        ("train.pixel_opt.type", "L1Loss when the state was written, MSELoss now", "takes effect"),
        ("datasets.train.batch_size_per_gpu", "2 when the state was written, 4 now", "takes effect .* order"),
        ("manual_seed", "0 when the state was written, 7 now", "takes effect .* order"),
    ):
        assert re.search(rf"Changed option {name}: {values}; {effect}", log), name
    rates = re.findall(r"lr:\(([0-9.e-]+)", log)
    assert {float(rate) for rate in rates} == {1e-4}  # what is said to be without effect has none


def test_a_schedule_that_is_reset_is_that_of_the_file_at_this_iteration(inside):
    changed = dict(optim_g=ADAM | dict(lr=1e-3), warmup_iter=3)
    changed["scheduler"] = dict(type="CosineAnnealingRestartLR", periods=[8], restart_weights=[1], eta_min=1e-6)
    assert run_training(train_options("s1", name="anew", iterations=6, **changed)) == 0
    Path("experiments/toy_s1/alerts.jsonl").write_text(
        json.dumps({"iter": 4, "from": 2, "alert": "leap", "message": "", "rollbacks": 1, "lr_factor": 0.5}) + "\n"
    )
    options = train_options("s1", iterations=6, **changed)
    assert run_training(options, "--auto_resume", "--reset-schedule") == 0
    log = log_of()
    assert "Changed option train.optim_g.lr: 0.0002 when the state was written, 0.001 now; takes effect" in log
    assert "The learning rates and their schedule are those of the options at iteration 4" in log

    def rates(name):
        lines = Path(f"experiments/{name}/training.jsonl").read_text().splitlines()
        return {row["iter"]: row["lrs"] for row in map(json.loads, lines) if row["iter"] > 4}

    assert rates("toy_s1") == rates("anew")
    assert len(rates("anew")) == 2
    options["train"]["total_iter"] = 7  # and from its states it goes on without being told again
    assert run_training(options, "--auto_resume") == 0
    assert "Changed option train.optim_g" not in log_of()
    assert rates("toy_s1")[7] < rates("toy_s1")[6]


def test_unchanged_options_are_no_news(inside):
    options = train_options("s1", iterations=4)
    options["path"]["resume_state"] = str(STATES / "2.state")
    assert run_training(options) == 0
    assert "Changed option" not in log_of()


@pytest.mark.parametrize(("total", "message"), [
    (3, r"train\.total_iter is 3, and toy_s1 is at iteration 4: nothing to do"),
    (4, r"All 4 iterations of toy_s1 are done: nothing to do"),
])  # fmt: skip
def test_a_training_that_is_done_ends_well_without_work(inside, total, message):
    def content():
        files = [file for file in Path("experiments/toy_s1").rglob("*") if file.suffix not in ("", ".log", ".yml")]
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = content()
    assert (
        run_training(train_options("s1", iterations=total) | dict(val=train_options("s1")["val"]), "--auto_resume") == 0
    )
    assert re.search(message, log_of())
    assert content() == before
    assert "Network:" not in log_of()


def test_a_training_that_is_shortened_gets_its_final_networks(inside):
    models = Path("experiments/toy_s1/models")
    trained = {file.suffix: file.read_bytes() for file in models.glob("net_g_4.*")}
    for file in models.glob("*_latest.*"):
        file.unlink()
    assert run_training(train_options("s1", iterations=3), "--auto_resume") == 0
    assert "toy_s1 is at iteration 4: its networks become the final ones" in log_of()
    assert {file.suffix: file.read_bytes() for file in models.glob("net_g_latest.*")} == trained
    assert not list(models.glob("net_g_3.*"))


@pytest.mark.parametrize(("launcher", "given", "missing"), [
    ("slurm", {}, "SLURM_PROCID, SLURM_NTASKS, SLURM_NODELIST"),
    ("slurm", {"SLURM_PROCID": "0"}, "SLURM_NTASKS, SLURM_NODELIST"),
    ("pytorch", {}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
    ("pytorch", {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "WORLD_SIZE"),
])  # fmt: skip
def test_a_launcher_that_did_not_start_this_process_is_one_sentence(
    inside, monkeypatch, capsys, launcher, given, missing
):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run_training(train_options("s1"), "--launcher", launcher) == 1
    output = capsys.readouterr().err
    assert re.fullmatch(rf"error: --launcher {launcher}: .*\(no {missing} in the environment\).*\n", output), output


def test_a_rank_that_is_no_number_is_named(inside, monkeypatch, capsys):
    for name, value in dict(RANK="zero", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    assert run_training(train_options("s1"), "--launcher", "pytorch") == 1
    assert "RANK in the environment is 'zero', no number" in capsys.readouterr().err
