"""The search for a schedule: cells, what they share, the front, the files that it writes and who reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_dvsr import TINY, Known, options, tiny
from test_sr3 import carded
from toy import run_training

from diffir_sr import load_restorer
from diffir_sr.archs.dvsr_arch import DvSR
from diffir_sr.cli import basicsr_main, main
from diffir_sr.diffusion.sampling import read_schedule
from diffir_sr.errors import InputError, OptionError
from diffir_sr.evaluation.bench import Picture
from diffir_sr.evaluation.schedule_search import as_csv, default_objective, draw, front, read_csv, schedule_file, search
from diffir_sr.inference.plain import engine_for
from diffir_sr.models.sr3_model import SearchGrid

PSNR = dict(type="calculate_psnr", crop_border=0, test_y_channel=False, better="higher")
METRICS = {"psnr": PSNR, "ssim": PSNR | dict(type="calculate_ssim")}


def grid(**changes):
    small = dict(steps=[2, 3], linear_end=[0.05, 0.9, 0.999], samplers=["ddpm", "ddim"], eta=[0.0], samples=[1, 2])
    return SearchGrid.model_validate(small | changes)


def pictures(count=2):
    torch.manual_seed(0)
    drawn = [torch.rand(1, 3, 12, 16) for _ in range(count)]
    return [(f"set {number}", Picture(f"{number}.png", one, one.flip(3))) for number, one in enumerate(drawn)]


def test_the_front_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    for size, levels in ((1, 3), (40, 5), (60, 1000)):
        points = [tuple(map(float, point)) for point in rng.integers(0, levels, (size, 2))]

        def beaten(point, points=points):
            return any(all(np.less_equal(other, point)) and other != point for other in points)

        assert front(points) == [not beaten(point) for point in points]
    assert front([]) == []


def test_every_cell_is_measured_with_one_first_guess_per_picture(tmp_path):
    net, guesses, calls = tiny(), [], []
    net.init_predictor.register_forward_hook(lambda *_: guesses.append(1))
    net.denoiser.register_forward_hook(lambda *_: calls.append(1))
    before = net.sampling
    engine = engine_for(net)
    engine.plan(12, 16)
    guesses.clear(), calls.clear()
    found = search(engine, pictures(), grid(), METRICS, objective="psnr", record=tmp_path / "record.jsonl", about="x")
    # 2 or 3 steps to 0.05 or 0.9 do not end in noise; two samplers, 1 or 2 samples are left.
    cells = [(2, 0.999), (3, 0.999)]
    assert {(row["steps"], row["linear_end"]) for row in found.rows} == set(cells)
    assert len(found.rows) == len(cells) * 2 * 2
    assert len(found.skipped) == 4
    assert "of the squared signal is left" in found.skipped[0]
    assert len(guesses) == 2
    assert len(calls) == 2 * (1 + 2 * 2 * sum(steps for steps, _ in cells))  # one step before, two samplers and samples
    assert net.sampling == before
    # What a row holds is what restoring gives.
    row = next(row for row in found.rows if row["sampler"] == "ddpm" and row["samples"] == 2)
    assert row["network_calls"] == 2 * row["steps"]
    assert row["seconds"] > 0
    # Stopped and started again, nothing is measured twice; other weights are.
    again = search(engine, pictures(), grid(), METRICS, objective="psnr", record=tmp_path / "record.jsonl", about="x")
    assert len(guesses) == 2
    assert as_csv(again) == as_csv(found)
    search(engine, pictures(1), grid(), METRICS, objective="psnr", record=tmp_path / "record.jsonl", about="y")
    assert len(guesses) == 3


def test_csv_holds_what_was_found_and_the_best_is_what_restoring_then_does(tmp_path):
    net = tiny()
    found = search(engine_for(net), pictures(1), grid(eta=[0.0, 1.0]), METRICS, objective="psnr")
    rows = read_csv(as_csv(found))
    assert rows == sorted(found.rows, key=lambda row: -row["psnr"])
    assert rows[0] == {**found.best, "front": True}
    assert any(row["front"] for row in rows)
    assert all(row["psnr"] <= found.best["psnr"] for row in found.rows)
    draw(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(schedule_file(found, grid(), about={})))
    chosen = read_schedule(path)
    assert chosen.samples == found.best["samples"]
    net.sampling = net.sampling.changed(**chosen.changes)
    assert net.sampling.beta_schedule["linear_end"] == found.best["linear_end"]
    assert net.visited_schedule.steps == found.best["steps"]
    assert net.sampling.sampler == found.best["sampler"]


def test_without_a_second_metric_cost_is_the_other_axis():
    found = search(engine_for(tiny()), pictures(1), grid(samplers=["ddim"]), {"psnr": PSNR}, objective="psnr")
    assert found.axes == ("psnr", "network_calls")
    fewest = min(row["network_calls"] for row in found.rows)
    assert any(row["front"] and row["network_calls"] == fewest for row in found.rows)
    lower = {"psnr": PSNR, "lpips": dict(type="calculate_lpips", better="lower")}
    assert default_objective(lower) == "lpips"
    assert default_objective({"psnr": PSNR}) == "psnr"


def test_few_steps_are_closer_and_many_are_more_real_on_a_known_posterior(monkeypatch):
    """x ~ N(0, 1) is seen as y = x + n: the best first guess is y/2, what is left has variance 1/2."""
    net = DvSR(**TINY, sampling=dict(clip=False)).requires_grad_(False)
    net.denoiser = Known(0.5)
    net.init_predictor.forward = lambda blurred: blurred / 2
    x, n = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        "diffir_sr.evaluation.schedule_search.measure",
        lambda made, gt, _: {"error": (made - gt).square().mean().item() * 4, "variance": made.var().item() * 4},
    )
    metrics = {"error": dict(better="lower"), "variance": dict(better="higher")}
    wide = grid(steps=[10, 500], linear_end=[0.02, 0.9], samplers=["ddpm"], samples=[1, 4])
    picture = Picture("toy", (x + n + 1) / 2, (x + 1) / 2)
    found = search(engine_for(net), [("toy", picture)], wide, metrics, objective="error")
    by = {(row["steps"], row["linear_end"], row["samples"]): row for row in found.rows}
    few, many = by[10, 0.9, 1], by[500, 0.02, 1]
    assert few["error"] < many["error"]
    assert abs(many["variance"] - 1) < abs(few["variance"] - 1)
    assert by[10, 0.9, 4]["error"] < few["error"]
    assert by[500, 0.02, 4]["error"] == pytest.approx(0.5 * (1 + 1 / 4), rel=0.05)


def test_the_command_searches_and_its_schedule_is_restored_and_validated_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = options(name="dv")
    assert run_training(asked) == 0
    weights = "experiments/dv/models/net_g_latest.safetensors"
    small = dict(steps=[3], linear_end=[0.5, 0.999], samplers=["ddpm"], samples=[1, 2])
    test = dict(
        name="look",
        model_type="DvSRModel",
        scale=1,
        num_gpu=0,
        manual_seed=0,
        datasets=dict(test_1=asked["datasets"]["val"]),
        network_g=asked["network_g"],
        path=dict(pretrain_network_g=weights),
        val=dict(save_img=False, metrics=dict(psnr=asked["val"]["metrics"]["psnr"])),
        search=small,
    )
    Path("look.yml").write_text(json.dumps(test))
    capsys.readouterr()
    assert main(["search-schedule", "-opt", "look.yml", "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert "1 cells of the grid are skipped" in output.err
    assert "schedule.json" in output.out
    folder = Path("results/search/look")
    rows = read_csv((folder / "search.csv").read_text())
    assert len(rows) == 2
    chosen = json.loads((folder / "schedule.json").read_text())
    assert chosen["sampling"]["beta_schedule"]["linear_end"] == 0.999
    # Samples of the file are averaged, unless the command says otherwise.
    assert main(["restore", "data/lq", "-o", "a", "-w", weights, "--schedule", str(folder / "schedule.json")]) == 0
    how = ["--steps", "3", "--sampler", "ddpm", "--variance", "fixed_small"]
    chosen["samples"] = 2
    Path("two.json").write_text(json.dumps(chosen))
    assert main(["restore", "data/lq", "-o", "b", "-w", weights, "--schedule", "two.json"]) == 0
    assert main(["restore", "data/lq", "-o", "c", "-w", weights, "--schedule", "two.json", "--samples", "1", *how]) == 0
    assert sorted(path.name for path in Path("b").glob("*.png")) == ["p0.png", "p1.png", "p2.png", "p3.png"]
    restorer = load_restorer(weights, schedule="two.json", device="cpu")
    lq, made = (np.array(Image.open(path)) for path in ("data/lq/p0.png", "b/p0.png"))
    assert np.array_equal(restorer.average(lq, 2), made)
    assert np.array_equal(restorer(lq), np.array(Image.open("c/p0.png")))
    assert not np.array_equal(np.array(Image.open("c/p0.png")), made)
    # Validation, too.
    Path("val.yml").write_text(json.dumps(test | dict(val=test["val"] | dict(schedule="two.json", save_img=True))))
    assert basicsr_main(["test", "-opt", "val.yml"]) == 0
    shown = next(Path("results/look").rglob("p0*.png"))
    assert np.array_equal(np.array(Image.open(shown)), made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        ("[1]", "expected an object with the key sampling"),
        (dict(sampling=dict(stepps=3)), "sampling.stepps: unknown option"),
        (dict(sampling=dict(steps=3), samples=0), "samples: expected a whole number of 1 or more"),
        (
            dict(sampling=dict(beta_schedule=dict(schedule="linear", n_timestep=2, linear_start=1e-6, linear_end=0.1))),
            "of the squared signal is left",
        ),  # fmt: skip  # noqa: E501
        (dict(sampling=dict(steps=7, beta_schedule=[0.5, 0.9, 0.9])), "steps: expected 1 to 3"),
        (dict(sampling=dict(sampler="ddpm", eta=0.5)), "eta: belongs to sampler ddim"),
    ],
)
def test_a_schedule_that_cannot_be_is_reported_by_command_and_validation(
    tmp_path, monkeypatch, capsys, content, message
):
    monkeypatch.chdir(tmp_path)
    path, _ = carded(tmp_path)
    if content is not None:
        Path("s.json").write_text(content if isinstance(content, str) else json.dumps(content))
    Path("lq").mkdir()
    Path("lq/a.png").write_bytes(b"")
    assert main(["restore", "lq", "-o", "out", "-w", str(path), "--schedule", "s.json"]) == 1
    output = capsys.readouterr().err.strip()
    assert message in output
    assert "s.json" in output
    assert "\n" not in output
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        read_schedule("s.json")


def test_searches_that_cannot_be_are_refused():
    engine = engine_for(tiny())
    one = pictures(1)
    with pytest.raises(OptionError, match="none of the grid's cells can be sampled from; the first: linear, 2 steps"):
        search(engine, one, grid(linear_end=[0.05]), METRICS, objective="psnr")
    with pytest.raises(OptionError, match=r"objective: expected one of val.metrics \(psnr, ssim\), found 'lpips'"):
        search(engine, one, grid(), METRICS, objective="lpips")
    with pytest.raises(InputError, match="no pictures"):
        search(engine, [], grid(), METRICS, objective="psnr")
    with pytest.raises(OptionError, match="100 steps|expected 1 to 100"):
        search(engine, one, grid(schedules=["trained"], steps=[101]), METRICS, objective="psnr")
    plain = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
    with pytest.raises(OptionError, match="Conv2d restores without a sampler"):
        search(engine_for(plain), one, grid(), METRICS, objective="psnr")
    with pytest.raises(OptionError, match="steps"):
        SearchGrid.of(dict(steps=[0]))
