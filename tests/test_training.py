"""The three stages train through `basicsr train`, resume, share gradients, and follow the published laws."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.models import build_model
from torch.utils._python_dispatch import TorchDispatchMode
from toy import S1, run_training, train_options, train_stages, trained, warm_up_law, write_options

from diffir_sr.cli import basicsr_main
from diffir_sr.models.optimization import build_scheduler, step_decay_rate
from diffir_sr.training.run import training_loader

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stage 1, stage 2 and the GAN phase, each trained for a few iterations from the one before."""
    return train_stages(tmp_path_factory.mktemp("stages"), dict(s1=4, s2=4, gan=4))


@pytest.fixture
def inside(stages, monkeypatch):
    monkeypatch.chdir(stages)
    return stages


def log_of(name):
    return [json.loads(line) for line in Path(f"experiments/{name}/training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["s1", "s2", "gan"])
def test_each_stage_trains_validates_and_saves(inside, stage):
    log = log_of(f"toy_{stage}")
    assert [row["iter"] for row in log] == [1, 2, 3, 4]
    expected = {"l_pix"} | ({"l_abs_3", "l_kd_3"} if stage != "s1" else set())
    expected |= {"l_g_gan", "l_d_real", "l_d_fake", "out_d_real", "out_d_fake"} if stage == "gan" else set()
    assert expected <= log[-1].keys()
    validation = Path(f"experiments/toy_{stage}/validation.jsonl").read_text()
    assert json.loads(validation.splitlines()[-1])["psnr"] > 5
    saved = trained(stage)
    assert saved["params"].keys() == saved["params_ema"].keys()
    assert any(not torch.equal(saved["params"][key], saved["params_ema"][key]) for key in saved["params"])


def test_the_log_shows_eta_versions_and_the_first_iteration(inside):
    log = next(Path("experiments/toy_s2").glob("*.log")).read_text()
    for part in ("eta:", "First iteration done", "torch ", "basicsr 1.4.2", "tensors from", "s/image"):
        assert part in log


@pytest.mark.parametrize(("given", "waiting"), [({}, "passive"), (dict(GOMP_SPINCOUNT="5"), None)])
def test_waiting_threads_give_up_the_core_unless_the_environment_says_otherwise(given, waiting):
    """OpenMP reads its settings when torch is imported, so they must be there before."""
    code = (
        "import os, sys\n"
        "from diffir_sr.cli import main\n"
        "main(['completion', 'bash'])\n"
        "print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'), os.environ.get('KMP_BLOCKTIME'))\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=bare | given, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == f"False {waiting} {waiting and 0}"


def test_the_first_line_of_a_log_shows_threads_and_how_they_wait(inside):
    log = next(Path("experiments/toy_s1").glob("*.log")).read_text()
    assert "devices: CPU, threads: 1 (waiting: passive)" in log


def test_workers_have_one_thread_each(inside):
    opt = train_options("s1") | dict(dist=False, rank=0, world_size=1, num_gpu=0)
    opt["datasets"]["train"] |= dict(num_worker_per_gpu=1, phase="train", scale=4)
    loader, _ = training_loader(opt)
    loader.collate_fn = lambda samples: (cv2.getNumThreads(), torch.get_num_threads(), np.random.get_state()[1][0])
    assert next(iter(loader)) == (1, 1, 0)  # seeded as BasicSR does it, too


def stage_2_model(stage="s2", **changes):
    opt = train_options(stage, **changes)
    opt |= dict(dist=False, rank=0, world_size=1, is_train=True)
    opt["path"] |= dict(log="log", models="models", training_states="states", visualization="pictures")
    return build_model(opt)


def batch(size=8, count=2):
    torch.manual_seed(1)
    return dict(lq=torch.rand(count, 3, size, size), gt=torch.rand(count, 3, 4 * size, 4 * size))


def test_stage_2_starts_from_the_averaged_body_and_its_own_average_is_equal(inside):
    model = stage_2_model()
    net, average = model.net_g.state_dict(), model.net_g_ema.state_dict()
    assert all(torch.equal(net[key], average[key]) for key in net)
    source = trained("s1")["params_ema"]
    assert all(torch.equal(net[key], source[key]) for key in net if key.startswith("G."))


def test_the_teacher_is_frozen_and_gets_no_gradient(inside):
    model = stage_2_model()
    before = copy.deepcopy(model.teacher.state_dict())
    model.feed_data(batch())
    model.optimize_parameters(1)
    assert not model.teacher.training
    assert all(weight.grad is None and not weight.requires_grad for weight in model.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.teacher.state_dict().items())


def test_the_kl_term_is_logged_and_not_optimised(inside):
    gradients = []
    for temperature in (0.15, 0.01):
        model = stage_2_model(kd_opt=dict(type="KDLoss", temperature=temperature))
        torch.manual_seed(0)
        for name, weight in model.net_g.named_parameters():
            weight.data = torch.full_like(weight, 0.01) if not name.startswith("G.") else weight.data
        model.feed_data(batch())
        losses, watched = model.compute_losses(1)
        sum(losses.values()).backward()
        gradients.append((watched["l_kd_3"].item(), model.net_g.condition.E[0].weight.grad.clone()))
    assert gradients[0][0] != gradients[1][0]
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_each_loss_of_the_gan_phase_reaches_the_generator(inside):
    model = stage_2_model("gan")
    model.feed_data(batch())
    losses, _ = model.compute_losses(1)
    assert set(losses) == {"l_pix", "l_abs_3", "l_g_gan"}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, [model.net_g.denoise.resmlp[0].weight], retain_graph=True)
        assert gradient.norm() > 0, name
    assert all(weight.grad is None for weight in model.adversary.net.parameters())


def test_the_discriminator_learns_to_tell_and_leaves_the_generator_alone(inside):
    model = stage_2_model("gan", optim_d=dict(type="Adam", lr=1e-2))
    data = batch(size=8)
    before = copy.deepcopy(model.net_g.state_dict())
    fake = torch.full_like(data["gt"], 0.5)
    first = model.adversary.train_step(data["gt"], fake)
    for _ in range(20):
        last = model.adversary.train_step(data["gt"], fake)
    assert last["l_d_fake"] + last["l_d_real"] < first["l_d_fake"] + first["l_d_real"]
    assert all(torch.equal(before[key], value) for key, value in model.net_g.state_dict().items())


def test_a_warm_up_trains_condition_and_denoiser_alone_then_everything(inside):
    model = stage_2_model(**warm_up_law(3))
    data, changed = batch(), {}
    for iteration in (1, 2, 3):
        before = copy.deepcopy(model.net_g.state_dict())
        model.update_learning_rate(iteration)
        model.feed_data(data)
        model.optimize_parameters(iteration)
        now = model.net_g.state_dict()
        changed[iteration] = {key.split(".")[0] for key in now if not torch.equal(now[key], before[key])}
    assert changed[1] == changed[2] == {"condition", "denoise", "diffusion"}
    assert changed[3] == {"G", "condition", "denoise", "diffusion"}
    assert all(weight.requires_grad for weight in model.net_g.parameters())


def test_manual_rates_follow_the_published_real_world_law():
    def rates(iteration):
        encoder = step_decay_rate(2e-4, gamma=0.1, every=60_000, iteration=iteration)
        body = step_decay_rate(2e-4, gamma=0.5, every=600_000, iteration=iteration - 100_000)
        return encoder if iteration < 100_000 else body

    known = {1: 2e-4, 59_999: 2e-4, 60_000: 2e-5, 99_999: 2e-5, 100_000: 2e-4, 699_999: 2e-4, 700_000: 1e-4}
    assert {iteration: rates(iteration) for iteration in known} == pytest.approx(known)


def test_a_warm_up_logs_its_own_rates_and_a_training_without_follows_the_scheduler(inside):
    assert run_training(train_options("s2", name="warm", iterations=6, **warm_up_law(4))) == 0
    assert [row["lrs"][0] for row in log_of("warm")] == pytest.approx([1e-3, 1e-4, 1e-4, 5e-4, 5e-4, 5e-4])
    assert "l_pix" not in log_of("warm")[0]
    assert "l_pix" in log_of("warm")[3]
    assert [row["lrs"][0] for row in log_of("toy_s2")] == pytest.approx([2e-4, 2e-4, 1e-4, 1e-4])


def test_the_deblurring_schedule_rises_restarts_and_falls_as_published():
    weight = torch.nn.Parameter(torch.zeros(1))
    opt = dict(periods=[92_000, 208_000], restart_weights=[1, 1], eta_mins=[2.85e-4, 1e-6])
    scheduler = build_scheduler(torch.optim.Adam([weight], lr=2e-4), dict(type="CosineAnnealingRestartCyclicLR", **opt))
    known = {0: 2e-4, 46_000: 2.425e-4, 92_000: 2.85e-4, 92_001: 2e-4, 300_000: 1e-6, 300_001: 1e-6}
    computed = {}
    for iteration in known:
        scheduler.last_epoch = iteration
        computed[iteration] = scheduler.get_lr()[0]
    assert computed == pytest.approx(known, rel=1e-6)


class ReadNumbers(TorchDispatchMode):
    """Notes every number that is read from a tensor (item, bool, float), for which a device would be waited for."""

    def __init__(self):
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        self.read += function.name() == "aten::_local_scalar_dense"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["s1", "s2", "gan"])
def test_no_number_is_read_between_two_lines_of_the_log(inside, stage):
    model = stage_2_model(stage, clip_grad_norm=0.1)
    model.opt["logger"]["print_freq"] = 3
    data = dict(lq=torch.rand(2, 3, 8, 8), gt=torch.rand(2, 3, 32, 32))
    for optimizer in model.optimizers:  # those of torch read their own counter, which lies on the CPU
        optimizer.step = lambda: None
    counts = []
    for iteration in (1, 2, 3):
        with ReadNumbers() as numbers:
            model.feed_data(data)
            model.optimize_parameters(iteration)
        counts.append(numbers.read)
    assert counts[:2] == [0, 0]
    assert counts[2] == len(model.get_current_log())
    assert {"grad_norm", "shift_r", "prior_spread"} <= model.get_current_log().keys()


def test_clipping_limits_the_step(inside):
    model = stage_2_model(clip_grad_norm=1e-3, optim_g=dict(type="SGD", lr=1.0))
    before = torch.cat([weight.detach().flatten().clone() for weight in model.net_g.parameters()])
    model.feed_data(batch())
    model.optimize_parameters(1)
    after = torch.cat([weight.detach().flatten() for weight in model.net_g.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


HALF = dict(autocast="bfloat16", checkpointing=True)


@pytest.mark.parametrize(("stage", "change"), [("s1", HALF), ("s2", {}), ("s2", warm_up_law(3)), ("gan", {})])
def test_a_resumed_training_equals_an_uninterrupted_one(inside, stage, change):
    whole, part = f"whole_{stage}{len(change)}", f"part_{stage}{len(change)}"
    assert run_training(train_options(stage, name=whole, iterations=6, **change)) == 0
    options = train_options(stage, name=part, iterations=2, **change)
    for total in (2, 4, 6):
        options["train"]["total_iter"] = total
        assert run_training(options, "--auto_resume") == 0
    first, second = trained(stage, whole), trained(stage, part)
    for kind in ("params", "params_ema"):
        assert all(torch.equal(first[kind][key], second[kind][key]) for key in first[kind])
    timing = {"time", "data_time"}
    logs = [[{key: row[key] for key in row.keys() - timing} for row in log_of(name)] for name in (whole, part)]
    assert logs[0] == logs[1]


def test_the_teacher_keeps_its_average_when_resuming(inside, monkeypatch):
    from diffir_sr.models import auxiliary

    asked = []
    read = auxiliary.read_weights
    monkeypatch.setattr(auxiliary, "read_weights", lambda path, key: asked.append(key) or read(path, key=key))
    options = train_options("s2", name="again", iterations=2)
    run_training(options)
    options["train"]["total_iter"] = 3
    assert run_training(options, "--auto_resume") == 0
    assert set(asked) == {"params_ema"}


def test_a_run_is_a_function_of_its_seed(inside):
    for name in ("one", "two"):
        assert run_training(train_options("s2", name=name, iterations=2)) == 0
    assert run_training(train_options("s2", name="three", iterations=2) | dict(manual_seed=5)) == 0
    first, second, third = (log_of(name)[-1]["l_pix"] for name in ("one", "two", "three"))
    assert first == second != third


def test_a_diverged_network_is_not_saved(inside, capsys):
    options = train_options("s1", name="diverged", iterations=2, optim_g=dict(type="SGD", lr=1e30))
    assert run_training(options) == 1
    assert list(Path("experiments/diverged/models").iterdir()) == []
    log = next(Path("experiments/diverged").glob("*.log")).read_text()
    assert "not finite" in log
    assert "learning rate" in log


@pytest.mark.parametrize("stage", ["s2", "gan"])
def test_stage_2_is_tested_without_ground_truth(inside, stage):
    options = dict(
        name=f"wogt_{stage}",
        model_type="DiffIRS2Model" if stage == "s2" else "DiffIRGANS2Model",
        scale=4,
        num_gpu=0,
        datasets=dict(test_1=dict(name="mine", type="SingleDataset", dataroot_lq="data/lq")),
        network_g=train_options("s2")["network_g"],
        path=dict(pretrain_network_g=f"experiments/toy_{stage}/models/net_g_latest.pth", param_key_g="params_ema"),
        val=dict(save_img=True, suffix="x4", metrics=train_options("s1")["val"]["metrics"]),
    )
    options["path"]["strict_load_g"] = True
    assert basicsr_main(["test", "-opt", write_options(options)]) == 0
    pictures = Path(f"results/wogt_{stage}/visualization/mine")
    assert sorted(path.name for path in pictures.iterdir()) == [f"p{index}_x4.png" for index in range(4)]
    first = {path.name: path.read_bytes() for path in pictures.iterdir()}
    assert basicsr_main(["test", "-opt", write_options(options | dict(manual_seed=9))]) == 0
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == first  # start noise is val.seed's


def test_tested_images_have_a_table_of_metrics(inside):
    options = train_options("s2")
    options["datasets"] = dict(test_1=options["datasets"]["val"])
    options["path"] = dict(pretrain_network_g="experiments/toy_s2/models/net_g_latest.pth", param_key_g="params_ema")
    keep = ("model_type", "scale", "num_gpu", "datasets", "network_g", "path")
    opt = {key: options[key] for key in keep} | dict(
        name="table", val=dict(save_img=False, **{"metrics": options["val"]["metrics"]})
    )
    assert basicsr_main(["test", "-opt", write_options(opt)]) == 0
    rows = Path("results/table/val.csv").read_text().splitlines()
    assert rows[0] == "image,psnr"
    values = [float(row.split(",")[1]) for row in rows[1:]]
    assert len(values) == 5
    assert values[-1] == pytest.approx(sum(values[:-1]) / 4, abs=1e-5)
    assert "Y, border 4" in next(Path("results/table").glob("*.log")).read_text()


def test_stage_1_is_not_tested_without_ground_truth(inside):
    options = dict(
        name="s1_wogt", model_type="DiffIRS1Model", scale=4, num_gpu=0, network_g=S1,
        datasets=dict(test_1=dict(name="mine", type="SingleDataset", dataroot_lq="data/lq")),
        path=dict(pretrain_network_g="experiments/toy_s1/models/net_g_latest.pth"), val=dict(save_img=True),
    )  # fmt: skip
    assert basicsr_main(["test", "-opt", write_options(options)]) == 1
    assert "stage-2" in next(Path("results/s1_wogt").glob("*.log")).read_text()


def environment():
    return os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(*arguments, program=("-m", "diffir_sr", "basicsr")):
    command = [sys.executable, *program, *arguments]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, env=environment(), stdout=pipe, stderr=both, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_goes_on_where_it_was(inside, number):
    name = f"killed_{number.name}"
    options = train_options("s1", name=name, iterations=100_000)
    options["logger"] |= dict(save_checkpoint_freq=5)
    options["val"]["val_freq"] = 100_000
    process = start("train", "-opt", write_options(options, f"{name}.yml"))
    states = Path(f"experiments/{name}/training_states")
    deadline = time.time() + 90
    while not list(states.glob("*.state")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), output
    last = max(int(path.stem) for path in states.glob("*.state"))
    assert last % 5 == 0 or number == signal.SIGTERM
    options["train"]["total_iter"] = last + 4
    assert run_training(options, "--auto_resume") == 0
    assert [row["iter"] for row in log_of(name)] == list(range(1, last + 5))


@pytest.mark.slow
def test_two_processes_keep_equal_weights_through_warm_up_and_after(inside):
    """Warm-up through the wrapped forward: the ranks see different data and must still agree."""
    options = train_options("s2", name="ranks", iterations=5, **warm_up_law(3))
    options["val"] = dict(val_freq=5, save_img=False, metrics=options["val"]["metrics"])
    write_options(options, "ranks.yml")
    code = (
        "import sys, torch, diffir_sr\n"
        "from diffir_sr.models.diffir_models import DiffIRS2Model as Model\n"
        "step = Model.optimize_parameters\n"
        "def watched(self, iteration):\n"
        "    step(self, iteration)\n"
        "    flat = torch.cat([w.detach().flatten() for w in self.get_bare_model(self.net_g).parameters()])\n"
        "    shown = [torch.zeros_like(flat) for _ in range(2)]\n"
        "    torch.distributed.all_gather(shown, flat)\n"
        "    data = [torch.zeros_like(self.lq) for _ in range(2)]\n"
        "    torch.distributed.all_gather(data, self.lq)\n"
        "    if self.opt['rank'] == 0:\n"
        "        print('GAP', iteration, (shown[0] - shown[1]).abs().max().item(), torch.equal(*data), flush=True)\n"
        "Model.optimize_parameters = watched\n"
        "from diffir_sr.cli import basicsr_main\n"
        "sys.exit(basicsr_main(['train', '-opt', 'ranks.yml', '--launcher', 'pytorch', *sys.argv[1:]]))\n"
    )
    Path("ranks.py").write_text(code)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "ranks.py", "--local-rank=0")
    process = start(program=launch)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    gaps = [line.split() for line in output.splitlines() if line.startswith("GAP")]
    assert [int(gap[1]) for gap in gaps] == [1, 2, 3, 4, 5]
    assert all(float(gap[2]) == 0 and gap[3] == "False" for gap in gaps), gaps
    assert "Validation val: 4 images" in output


def test_the_perceptual_loss_trains_on_given_weights(inside):
    tensors = {}
    for index, (out, into) in zip((0, 2, 5, 7), ((64, 3), (64, 64), (128, 64), (128, 128)), strict=True):
        tensors |= {
            f"features.{index}.weight": torch.randn(out, into, 3, 3) * 0.1,
            f"features.{index}.bias": torch.zeros(out),
        }
    sizes = ((256, 128), (256, 256), (256, 256), (512, 256), *[(512, 512)] * 5)
    for index, (out, into) in zip((10, 12, 14, 17, 19, 21, 24, 26, 28), sizes, strict=True):
        tensors |= {
            f"features.{index}.weight": torch.randn(out, into, 3, 3) * 0.02,
            f"features.{index}.bias": torch.zeros(out),
        }
    torch.save(tensors, "vgg16.pth")
    perceptual = dict(type="PerceptualLoss", layer_weights={"conv2_2": 1.0}, vgg_type="vgg16", vgg_path="vgg16.pth")
    options = train_options("gan", name="perceptual", iterations=2, perceptual_opt=perceptual)
    assert run_training(options) == 0
    assert log_of("perceptual")[-1]["l_percep"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stage", ["s1", "s2", "gan"])
def test_each_stage_trains_on_cuda(inside, stage):
    options = train_options(stage, name=f"cuda_{stage}", iterations=2) | dict(num_gpu=1)
    assert run_training(options) == 0
