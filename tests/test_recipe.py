"""`diffir recipe`: stages in order, checked before the first starts, killed and gone on with, failing with one word."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import yaml
from toy import run_training, train_options, write_options, write_pairs

from diffir_sr.cli import main
from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.processes import follow_leader
from diffir_sr.training import recipe as recipes
from diffir_sr.training.recipe import check_recipe, is_interrupted, read_recipe, run_recipe

REPO = Path(__file__).resolve().parents[1]
STAGES = ("s1", "s2", "gan")


def toy_options(stage, *, iterations=3):
    options = train_options(stage, iterations=iterations) | dict(val=None)
    if stage == "gan":
        options["network_d"]["num_feat"] = 4
    return options


def write_recipe(names=STAGES, *, iterations=3, **content):
    """Option files of toy stages, whose `path` names no file of another stage, and a recipe of them."""
    for stage in names:
        options = toy_options(stage, iterations=iterations)
        options["path"] = {"param_key_g": "params_ema"}
        write_options(options, f"toy_{stage}.yml")
    entries = [dict(name=stage, train=f"toy_{stage}.yml") for stage in names]
    file = Path("toy_recipe.yml")
    file.write_text(yaml.safe_dump({"name": "toy", "stages": entries, **content}))
    return file


class Forked:
    """Stands for subprocess.Popen: the same program in a copy of this process, which need not import it again."""

    def __init__(self, words, *, env, start_new_session):
        assert start_new_session
        self.pid, self.returncode = os.fork(), None
        if self.pid:
            return
        code = 99
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            os.environ |= env
            follow_leader()
            from diffir_sr.cli import basicsr_main

            assert words[:4] == [sys.executable, "-m", "diffir_sr", "basicsr"]
            code = basicsr_main(words[4:])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self):
        return self.returncode

    def wait(self):
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


@pytest.fixture
def _forks(monkeypatch):
    monkeypatch.setattr(recipes.subprocess, "Popen", Forked)


def begun(file, **arguments):
    """A recipe running in a process of its own."""
    child = os.fork()
    if not child:
        code = 99
        try:
            code = run_recipe(read_recipe(file), **arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def lines():
    """How many iterations of all stages are logged."""
    return sum(len(path.read_text().splitlines()) for path in Path("experiments").glob("toy_*/training.jsonl"))


def weights():
    found = Path("experiments").glob("toy_*/models/*.pth")
    return {f"{file.parts[1]}/{file.name}": file.read_bytes() for file in found}


@pytest.mark.usefixtures("_forks")
def test_a_recipe_killed_three_times_ends_with_the_bytes_of_the_commands_by_hand(tmp_path, monkeypatch):
    for name in ("by_hand", "killed"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_pairs("data", lmdb=False)
    file = write_recipe()
    draw = random.Random(0)
    for kill in range(3):
        child, enough = begun(file), 3 * kill + draw.randint(1, 2)
        while lines() < enough and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.01)
        stage = next(entry for entry in json.loads(Path("experiments/toy.recipe.json").read_text())["stages"].values()
                     if entry["process"])  # fmt: skip
        os.kill(stage["process"]["pid"] if kill == 1 else child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == (128 + signal.SIGKILL if kill == 1 else -signal.SIGKILL)
        assert is_interrupted(read_recipe(file))
    assert os.waitstatus_to_exitcode(os.waitpid(begun(file), 0)[1]) == 0
    assert not is_interrupted(read_recipe(file))
    killed = weights()
    monkeypatch.chdir(tmp_path / "by_hand")
    for stage in STAGES:
        assert run_training(toy_options(stage)) == 0
    by_hand = weights()
    assert len(by_hand) == 8
    assert killed.keys() >= by_hand.keys()  # a stage that loses its leader saves what it has, too
    assert [name for name in by_hand if killed[name] != by_hand[name]] == []


@pytest.mark.usefixtures("_forks")
def test_a_failing_stage_ends_the_recipe_with_its_exit_code_and_one_sentence(monkeypatch, capfd):
    write_pairs("data", lmdb=False)
    file = write_recipe(["s1", "s2"])
    Path("data/gt/p1.png").unlink()
    monkeypatch.setattr(recipes, "check_recipe", lambda recipe: None)  # it would tell before
    assert main(["recipe", str(file)]) == 1
    output = capfd.readouterr().err.splitlines()
    assert "Traceback" not in "".join(output)
    assert output[-1].startswith(f"error: stage s1 of {file} ended with exit code 1; what it said stands above")
    assert not Path("experiments/toy_s2").exists()


def test_finished_stages_are_not_run_again_and_changed_ones_are_reported(monkeypatch, capsys):
    write_pairs("data", lmdb=False)
    file = write_recipe(["s1", "s2"], iterations=1)
    ran = []

    def run(words, **_):
        from diffir_sr.cli import basicsr_main

        ran.append(words)
        return basicsr_main(words[1:])

    monkeypatch.setattr(recipes, "_run", run)
    assert main(["recipe", str(file)]) == 0
    assert [words[3] for words in ran] == ["toy_s1.yml", "toy_s2.yml"]
    assert ran[1][-2:] == [
        f"path:pretrain_network_{net}=experiments/toy_s1/models/net_g_latest.pth" for net in ("g", "S1")
    ]
    assert main(["recipe", str(file)]) == 0
    assert len(ran) == 2
    assert capsys.readouterr().out.count("done before") == 2
    # Stage 1 for longer: stage 2 began with other weights.
    assert main(["recipe", str(file), "--force_yml", "train:total_iter=2"]) == 1
    assert ran[2][:5] == ["basicsr", "train", "-opt", "toy_s1.yml", "--auto_resume"]
    assert "the weights that stage s2 began with have changed since" in capsys.readouterr().err
    assert main(["recipe", str(file), "--restart", "s2", "--force_yml", "train:total_iter=2"]) == 0
    assert len(ran) == 4
    assert len(list(Path("experiments").glob("toy_s2_archived_*/models/net_g_latest.pth"))) == 1
    # What is there without a record is not silently used.
    Path("experiments/toy.recipe.json").unlink()
    assert main(["recipe", str(file)]) == 1
    assert "that the recipe toy did not begin; --adopt goes on with it" in capsys.readouterr().err
    assert main(["recipe", str(file), "--adopt", "--force_yml", "train:total_iter=2"]) == 0
    assert all("--auto_resume" in words for words in ran[-2:])


def test_all_stages_are_checked_before_the_first_starts(capsys):
    write_pairs("data", lmdb=False)
    file = write_recipe()
    check_recipe(read_recipe(file))
    assert not Path("experiments").exists()
    assert main(["recipe", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("basicsr train -opt toy_") == 3
    wide = train_options("s2")
    wide["network_S1"]["dim"] = wide["network_g"]["dim"] = 16
    write_options(wide, "toy_s2.yml")
    lost = train_options("gan")
    lost["datasets"]["train"]["dataroot_gt"] = "nowhere"
    write_options(lost, "toy_gan.yml")
    assert main(["recipe", str(file)]) == 1
    output = capsys.readouterr().err
    assert "nothing was started" in output
    assert "stage s2: path.pretrain_network_" in output
    assert "experiments/toy_s1/models/net_g_latest.pth (of stage s1)" in output
    assert "stage gan: " in output
    assert "no such folder: nowhere" in output
    assert not Path("experiments").exists()


def test_a_disk_without_room_for_all_checkpoints_is_reported_before(monkeypatch):
    write_pairs("data", lmdb=False)
    file = write_recipe()
    monkeypatch.setattr(recipes, "free_bytes", lambda folder: 2**20)
    with pytest.raises(OptionError, match=r"the checkpoints of all stages take .* GiB free: free space, or save less"):
        check_recipe(read_recipe(file))


def test_checkpoints_take_the_room_that_was_foretold():
    write_pairs("data", lmdb=False)
    file = write_recipe(["s1", "gan"][:1])
    stage = read_recipe(file).stages[0]
    opt = recipes.prospective_options(stage.file)
    foretold = recipes.disk_bytes(opt, recipes.check_model(opt))
    assert run_training(toy_options("s1")) == 0
    written = sum(path.stat().st_size for path in Path("experiments/toy_s1").rglob("*.*") if path.suffix != ".log")
    assert 0.5 < foretold / written < 1.02  # files of so few numbers are half names and shapes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dict(stages=[dict(name="a")]), "expected one of train and test"),
        (dict(stages=[dict(train="none.yml")]), "no such option file"),
        (dict(stages=[dict(train="toy_s1.yml"), dict(train="toy_s1.yml")]), "is that of an earlier stage"),
        (dict(stages=[dict(train="toy_s1.yml", weights={"network_g": "b"})]), "no earlier training is called 'b'"),
        (dict(stages=[]), "stages"),
        (dict(stages=[dict(train="toy_s1.yml", weigths={})]), "did you mean 'weights'"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_with_its_place(content, message):
    file = write_recipe(["s1"], **content)
    with pytest.raises(OptionError, match=message) as error:
        read_recipe(file)
    assert str(error.value).startswith("toy_recipe.yml")


def test_options_of_a_stage_win_over_those_of_all_and_of_the_command_line():
    write_recipe(["s1"])
    entry = dict(train="toy_s1.yml", options=dict(train=dict(total_iter=9, scheduler=dict(milestones=[3, 5]))))
    file = write_recipe(["s1"], options=dict(manual_seed=4, train=dict(total_iter=8)), stages=[entry])
    stage = read_recipe(file, ["manual_seed=5"]).stages[0]
    opt = recipes.prospective_options(stage.file, stage.overrides) if write_pairs("data", lmdb=False) else None
    assert (opt["manual_seed"], opt["train"]["total_iter"]) == (5, 9)
    assert opt["train"]["scheduler"] == dict(type="MultiStepLR", milestones=[3, 5], gamma=0.5)


def test_an_unknown_stage_to_restart_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="no stage is called 's3'; there are: s1, s2, gan"):
        run_recipe(read_recipe(write_recipe()), restart="s3")


def test_a_foreign_record_is_refused():
    file = write_recipe(["s1"])
    Path("experiments").mkdir()
    Path("experiments/toy.recipe.json").write_text("[]")
    with pytest.raises(InputError, match="not the record of a recipe"):
        run_recipe(read_recipe(file))


def test_a_process_ends_when_its_leader_is_killed():
    """In real processes: the one that is led notes SIGTERM when its leader is gone."""
    led = (
        "import signal, time\nfrom diffir_sr.files.processes import follow_leader\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('told', 'w').close(), exit(0)))\n"
        "follow_leader()\nopen('ready', 'w').close()\ntime.sleep(60)\n"
    )
    leader = (
        "import os, subprocess, sys\nenvironment = os.environ | {'DIFFIR_LEADER': str(os.getpid())}\n"
        f"subprocess.Popen([sys.executable, '-c', {led!r}], env=environment).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", leader], env=os.environ | {"PYTHONPATH": str(REPO)})
    for file in ("ready", "told"):
        deadline = time.time() + 30
        while not Path(file).exists() and time.time() < deadline:
            time.sleep(0.02)
        assert Path(file).exists(), file
        process.kill()
        process.wait()
