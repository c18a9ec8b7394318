"""What a training shows: its progress line, and curves for TensorBoard, W&B and trackio."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
from toy import run_training, train_options, write_pairs

from diffir_sr.training.monitoring import ProgressLine, open_curves


def options(name="run", iterations=4, **log):
    made = train_options("s1", name=name, iterations=iterations)
    made["logger"] |= log
    made["val"]["val_freq"] = 2
    return made


def log_of(name="run"):
    return "".join(file.read_text() for file in sorted(Path(f"experiments/{name}").glob("*.log")))


def test_a_line_has_rate_time_left_data_time_memory_and_losses():
    write_pairs("data", lmdb=False)
    assert run_training(options()) == 0
    line = next(line for line in log_of().splitlines() if "iter:       3" in line)
    assert re.search(
        r"\[run\.\.\]\[epoch:  0, iter:       3, lr:\(1\.000e-04,\)\] \[eta: 0:00:\d\d, "
        r"time \(data\): \d+\.\d{3} \(\d+\.\d{3}\), memory: \d\.\d GB\] l_pix: \d",
        line,
    ), line
    assert "grad_norm: " in line
    assert "shift_r" not in line


def test_time_left_is_that_of_the_iterations_left(caplog, monkeypatch):
    now = iter([100.0, 160.0])
    monkeypatch.setattr("diffir_sr.training.monitoring.time.perf_counter", lambda: next(now))
    show = ProgressLine(dict(name="long_name", num_gpu=0, train=dict(total_iter=1000)), done=400)
    with caplog.at_level("INFO", logger="basicsr"):
        show(dict(epoch=3, iter=430, lrs=[1e-4, 2e-4], time=2.0, data_time=0.5, l_pix=0.125))
    assert "[long_..][epoch:  3, iter:     430, lr:(1.000e-04,2.000e-04,)] [eta: 0:19:00, time (data)" in caplog.text


def events(name):
    """(tag, step) of every scalar that TensorBoard would show."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(f"tb_logger/{name}")
    found.Reload()
    return {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_every_iteration_once_after_a_resumption():
    write_pairs("data", lmdb=False)
    assert run_training(options(iterations=3, use_tb_logger=True)) == 0  # its last state is that of iteration 2
    assert run_training(options(iterations=5, use_tb_logger=True), "--auto_resume") == 0
    shown = events("run")
    assert shown["losses/l_pix"] == shown["lr/0"] == shown["shift_g"] == [1, 2, 3, 4, 5]
    assert shown["metrics/val/psnr"] == [2, 4, 5]


class Service:
    """Stands for the module of a service and notes how it is called."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *given, **named: self.calls.append((name, given, named))

    def called(self, name):
        return [(given, named) for called, given, named in self.calls if called == name]


def test_weights_and_biases_gets_every_curve_and_goes_on_in_its_run(monkeypatch):
    write_pairs("data", lmdb=False)
    ids = []
    for iterations in (2, 4):
        monkeypatch.setitem(sys.modules, "wandb", service := Service())
        made = options(iterations=iterations, wandb=dict(project="mine"))
        assert run_training(made, "--auto_resume") == 0
        ((_, start),) = service.called("init")
        assert (start["project"], start["name"], start["resume"]) == ("mine", "run", "allow")
        json.dumps(start["config"])
        ids.append(start["id"])
        logged = [given[0] for given, _ in service.called("log")]
        assert [row["iteration"] for row in logged if "losses/l_pix" in row] == [iterations - 1, iterations]
        assert [row["iteration"] for row in logged if "metrics/val/psnr" in row] == [iterations]
        assert service.called("finish")
    assert ids[0] == ids[1] == Path("experiments/run/wandb_id.txt").read_text().strip()
    monkeypatch.setitem(sys.modules, "wandb", service := Service())
    assert run_training(options(iterations=1, wandb=dict(project="mine"))) == 0
    assert service.called("init")[0][1]["id"] != ids[0]


def test_trackio_gets_every_curve_and_goes_on_in_its_run(monkeypatch):
    write_pairs("data", lmdb=False)
    for iterations, resume in ((2, "never"), (4, "allow")):
        monkeypatch.setitem(sys.modules, "trackio", service := Service())
        made = options(iterations=iterations, trackio=dict(project="mine"))
        assert run_training(made, "--auto_resume") == 0
        ((_, start),) = service.called("init")
        assert (start["project"], start["name"], start["resume"]) == ("mine", "run", resume)
        steps = [named["step"] for given, named in service.called("log") if "losses/l_pix" in given[0]]
        assert steps == [iterations - 1, iterations]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_is_not_installed_is_one_sentence(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    write_pairs("data", lmdb=False)
    assert run_training(options(**{name: dict(project="mine")})) == 1
    assert re.search(rf"ERROR: logger\.{name}: needs the package {name}, .*pip install {name}\n", log_of())


def test_other_ranks_and_debugging_send_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    opt = dict(name="run", rank=1, logger=dict(print_freq=1, wandb=dict(project="mine")))
    assert open_curves(opt, new=True, done=0) is None
    assert open_curves(opt | dict(name="debug_run", rank=0), new=True, done=0) is None
    assert open_curves(opt | dict(rank=0, logger=dict(print_freq=1)), new=True, done=0) is None
