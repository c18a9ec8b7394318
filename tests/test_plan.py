"""`diffir plan`: memory as the machine then measures it, cost as counted, what is missing, what does not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from toy import ADAM, S1, train_options, write_options, write_pairs

from diffir_sr.cli import main
from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.training import plan as plans
from diffir_sr.training.cost import multiplications, peak_of_step, process_peak
from diffir_sr.training.plan import plan_training
from diffir_sr.training.run import checkpoint_bytes, moments_of, quiet, write_stand_in

CPU = torch.device("cpu")


def completed(options):
    for key in [key for key in options["path"] if key.startswith("pretrain_network_")]:
        section = key.removeprefix("pretrain_")
        write_stand_in(options[section], Path(f"{section}.pth"))
        options["path"][key] = f"{section}.pth"
    options |= dict(dist=False, rank=0, world_size=1, is_train=True)
    options["logger"]["print_freq"] = 2**62
    options["path"] |= dict(log="log", models="models", training_states="states", visualization="pictures")
    return options


def batch(count, size):
    return dict(lq=torch.rand(count, 3, size // 4, size // 4), gt=torch.rand(count, 3, size, size))


MEASURE = """
import json, sys, torch
from pathlib import Path
import diffir_sr
from basicsr.models import build_model
from diffir_sr.training import plan as plans
torch.set_num_threads(1)

def status(line):
    text = Path("/proc/self/status").read_text()
    return int(next(one for one in text.splitlines() if one.startswith(line)).split()[1]) * 1024

options, data = json.loads(Path("measured.json").read_text()), torch.load("batch.pt")
before = plans._base()
Path("/proc/self/clear_refs").write_text("5")
model = build_model(options)
for iteration in range(1, 4):
    model.feed_data(data)
    model.optimize_parameters(iteration)
Path("measured.json").write_text(json.dumps([before, status("VmHWM")]))
"""


def measured(options, data):
    """Bytes before, and at most, of a process that trains for three iterations."""
    Path("measured.json").write_text(json.dumps(options))
    torch.save(data, "batch.pt")
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return json.loads(Path("measured.json").read_text())


def plain_options():
    options = train_options("s1")
    options["model_type"] = "PlainModel"
    options["network_g"] = dict(type="EDSR", num_in_ch=3, num_out_ch=3, num_feat=32, num_block=8, upscale=4)
    return options


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the memory counters of Linux")
@pytest.mark.parametrize(
    ("kind", "count", "size"), [("s1", 40, 64), ("s2", 40, 64), ("gan", 40, 64), ("plain", 64, 96)]
)
def test_a_step_takes_the_memory_that_was_foreseen(kind, count, size):
    options = completed(plain_options() if kind == "plain" else train_options(kind))
    data = batch(count, size)
    with quiet():
        base, peak = measured(options, data)
        model = build_model(options)
        model.feed_data(data)
        tensors = peak_of_step(model, 4, moments=moments_of)
    foreseen = process_peak(tensors, base, CPU)
    assert peak - base > 120 * 2**20  # what is compared is the step, not the process around it
    assert abs(foreseen - peak) < 0.1 * peak, (foreseen, peak, base)
    assert abs(foreseen - peak) < 0.35 * (peak - base), (foreseen, peak, base)


def test_the_papers_network_has_the_papers_multiplications():
    options = load_options(recipes_folder() / "train_DiffIRS2_x4.yml", check_files=False).values["network_g"]
    count, why = multiplications(build_network(options).eval())
    assert not why
    assert count / 1e12 == pytest.approx(0.72, abs=0.005)


def test_a_convolution_is_counted_by_hand():
    class Three(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x):
            return self.layer(x)

    assert multiplications(Three()) == (256 * 256 * 3 * 5 * 9, "")


def test_a_counted_network_still_computes():
    class Caching(torch.nn.Module):
        cached = None

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            if self.cached is None:
                self.cached = torch.ones(3, 1, 1)
            return self.layer(x) * self.cached

    unet = dict(inner_channel=8, norm_groups=4, channel_mults=(1, 2), attn_res=(), res_blocks=1)
    walking = build_network(dict(type="SR3", scale=2, sampling=dict(steps=2, sampler="ddim"), **unet)).eval()
    for net in (Caching(), walking):
        count, why = multiplications(net)
        assert count, why
        lq = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            made = net(lq) if isinstance(net, Caching) else net.restore(lq, noise=PictureNoise(lq))
        assert bool(made.isfinite().all())
    assert "FakeTensor" not in repr(walking.visited_schedule.kept)


def test_a_plan_shows_cost_and_what_is_missing(capsys):
    write_pairs("data", lmdb=False)
    options = train_options("s2", iterations=4)
    write_options(options, "s2.yml")
    assert main(["plan", "-opt", "s2.yml", "--json"]) == 0
    (output,) = json.loads(capsys.readouterr().out)
    assert output["name"] == "toy_s2"
    assert [line.split(": ")[1] for line in output["missing"]] == [
        "path.pretrain_network_S1",
        "path.pretrain_network_g",
    ]
    assert output["parameters"]["network_g"] == sum(
        one.numel() for one in build_network(options["network_g"]).parameters()
    )
    assert output["checkpoints"] == 2
    assert output["disk"] > 2 * output["checkpoint_bytes"]
    assert 0 < output["step_seconds"] < 60
    assert output["hours"] * 3600 > 4 * output["step_seconds"]
    assert output["data_seconds"] > 0
    assert output["validation_seconds"] > 0
    assert set(output["data_bytes"]) == {"data/gt", "data/lq"}
    assert output["notes"] == []
    assert not Path("experiments").exists()
    assert main(["plan", "-opt", "s2.yml"]) == 0
    assert "missing: s2.yml:" in capsys.readouterr().out


def test_the_stages_of_a_recipe_are_planned_with_what_they_hand_on(capsys):
    write_pairs("data", lmdb=False)
    for stage in ("s1", "s2"):
        write_options(train_options(stage), f"{stage}.yml")
    Path("chain.yml").write_text("name: chain\nstages:\n  - {train: s1.yml}\n  - {train: s2.yml}\n")
    assert main(["plan", "-opt", "chain.yml", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in record] == ["toy_s1", "toy_s2"]
    assert [one["missing"] for one in record] == [[], []]


@pytest.mark.parametrize(("share", "text"), [(0.0, "not even one sample fits"), (0.93, "of 4 samples")])
def test_too_little_memory_is_reported_and_not_tried(monkeypatch, share, text):
    write_pairs("data", lmdb=False)
    options = train_options("s1")
    options["datasets"]["train"] |= dict(batch_size_per_gpu=4, gt_size=64)
    write_options(options, "s1.yml")
    whole = plan_training(Path("s1.yml"))
    assert not whole.warnings
    base = plans._base()
    wanted = base + (whole.memory - base) * share
    monkeypatch.setattr(plans, "_free", lambda device: int(wanted / 0.9 - base))
    output = plan_training(Path("s1.yml"))
    assert any("too little memory: a step takes" in line for line in output.warnings)
    assert any(text in line for line in output.notes)
    assert (output.step_seconds is None) == (share == 0.0)


def test_a_schedule_that_does_not_go_with_its_length_is_reported():
    write_pairs("data", lmdb=False)
    options = train_options("s1", scheduler=dict(type="MultiStepLR", milestones=[2, 9], gamma=0.5))
    options["logger"]["save_checkpoint_freq"] = 5
    write_options(options, "s1.yml")
    output = "\n".join(plan_training(Path("s1.yml")).warnings)
    assert "milestones 9 lie beyond total_iter 4" in output
    assert "save_checkpoint_freq: 5 is more than total_iter 4" in output
    cosine = dict(type="CosineAnnealingRestartLR", periods=[6], eta_min=1e-6)
    write_options(train_options("s1", scheduler=cosine), "s1.yml")
    assert "training ends before its end" in "\n".join(plan_training(Path("s1.yml")).warnings)


def test_moments_are_those_that_an_optimizer_makes():
    weight = torch.nn.Parameter(torch.zeros(2))
    for kind, count in ((torch.optim.Adam, 2), (torch.optim.AdamW, 2), (torch.optim.SGD, 0), (torch.optim.RMSprop, 1)):
        assert moments_of(kind([weight], lr=0.1)) == count
    assert moments_of(torch.optim.SGD([weight], lr=0.1, momentum=0.9)) == 1


def test_a_state_takes_two_moments_of_every_weight():
    model = build_model(completed(train_options("s1", optim_g=ADAM)))
    count = sum(weight.numel() for weight in build_network(dict(S1)).parameters())
    assert checkpoint_bytes(model)["state"] == 2 * 4 * count
