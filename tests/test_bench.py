"""`diffir bench`: the paper's tables as data, rows that are measured as `evaluate` does, cost, and --check."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden_cases import fill
from pictures import SMALL
from test_metrics_perceptual import needs_weights
from test_options_bench import BENCHMARKS, PROTOCOLS, stand_in

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.cli import main
from diffir_sr.evaluation.bench import PeakMemory, network_method, paper_rows, paper_tables, simple_methods
from diffir_sr.files.picture import encode_png


@pytest.fixture(autouse=True)
def homes(monkeypatch, tmp_path):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("DIFFIR_OFFLINE", "1")


def bench(capsys, *words, benchmark="stand_in.yml"):
    code = main(["bench", benchmark, "--device", "cpu", *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_every_benchmark_of_the_options_but_set5_has_the_paper_s_row_of_diffir():
    for _, (protocol, _, datasets, numbers) in BENCHMARKS.items():
        printed = []
        for dataset in datasets:
            row = paper_rows(dataset).get("DiffIR_S2", {})
            assert set(row) <= {*PROTOCOLS[protocol], "fid"}
            printed += list(row.values())
        assert printed == [float(number) for number in numbers]


def test_the_tables_hold_what_the_paper_says_of_them_in_words():
    """Gains over others that its text gives."""
    assert len(paper_tables()) == 4
    for name, gain in (("DIV2K100", 0.0151), ("Urban100", 0.0089)):
        rows = paper_rows(name)
        assert rows["BebyGAN"]["lpips_alex"] - rows["DiffIR_S2"]["lpips_alex"] == pytest.approx(gain)
    for name, gain in (("Places-thick", 0.2706), ("CelebA-HQ-thick", 0.5583)):
        rows = paper_rows(name)
        assert rows["LaMa"]["fid"] - rows["DiffIR_S2"]["fid"] == pytest.approx(gain)
    for name, gain in (("GoPro", 0.28), ("HIDE", 0.33)):
        rows = paper_rows(name)
        assert rows["DiffIR_S2"]["psnr"] - rows["Restormer"]["psnr"] == pytest.approx(gain)


def measured(folder, dataset):
    content = json.loads(Path(folder, "bench.json").read_text())
    return {one["name"]: one["sets"][dataset] for one in content["methods"]}, content


def test_a_network_stands_beside_simple_methods_and_the_paper(capsys):
    run = stand_in("GoPro")
    code, output = bench(capsys)
    assert code == 0, output
    found, content = measured(Path("results/bench") / run, "GoPro")
    assert list(found) == ["input as it is", "net.pth"]
    (method,) = (one for one in content["methods"] if one["name"] == "net.pth")
    assert method["paper_row"] == "DiffIR_S2"
    assert method["parameters"] > 0
    assert method["macs"] > 0
    cell = found["net.pth"]
    assert cell["paper"] == {"psnr": 33.20, "ssim_matlab": 0.963}
    assert cell["difference"]["psnr"] == pytest.approx(cell["measured"]["psnr"] - 33.20)
    assert set(cell["images"]) == {"p0.png", "p1.png"}
    assert "| Restormer | – | 32.92 | – |" in output
    assert f"{cell['measured']['psnr']:.2f} | 33.20 | {cell['difference']['psnr']:+.2f}" in output
    assert {path.name for path in (Path("results/bench") / run).iterdir()} == {"bench.md", "bench.json", "bench.png"}
    assert Path("results/bench", run, "bench.md").read_text() in output
    # The same values as those of restoring and evaluating.
    assert main(["restore", "data/lq", "-o", "restored", "-w", "net.pth", "--device", "cpu"]) == 0
    command = ["evaluate", "restored", "data/gt", "--preset", "deblur", "--json", "again.json"]
    assert main(command) == 0
    again = json.loads(Path("again.json").read_text())["mean"]
    assert cell["measured"] == pytest.approx(again, abs=1e-6)


def test_check_fails_where_values_are_apart_and_never_without_a_comparison(capsys):
    run = stand_in("GoPro")
    code, output = bench(capsys, "--check", "--no-picture", "--limit", "1")
    assert code == 1
    assert "check: GoPro, net.pth: psnr is" in output
    assert bench(capsys, "--check", "--no-picture", "--tolerance", "psnr=99", "ssim_matlab=1")[0] == 0
    earlier = f"results/bench/{run}/bench.json"
    Path(earlier).rename("earlier.json")
    assert bench(capsys, "--check", "--no-picture", "--against", "earlier.json", "--tolerance", "psnr=0.0001")[0] == 0
    altered = json.loads(Path("earlier.json").read_text())
    altered["methods"][0]["sets"]["GoPro"]["measured"]["psnr"] += 1
    Path("altered.json").write_text(json.dumps(altered))
    code, output = bench(capsys, "--check", "--no-picture", "--against", "altered.json")
    assert code == 1
    assert "input as it is: psnr is" in output
    assert "altered.json" in output
    Path("data/lq/p0.png").write_bytes(encode_png(cv2.imread("data/gt/p0.png")[..., ::-1]))
    code, output = bench(capsys, "--check", "--no-picture", "--against", "earlier.json")
    assert code == 1
    assert "was measured on other images of GoPro" in output


def test_what_cannot_be_compared_or_measured_is_reported(capsys):
    stand_in("GoPro")
    for words, message in (
        (("--against", "x.json"), "require --check"),
        (("--check", "--against", "x.json", "--no-picture"), "not a result of diffir bench"),
        (("--tolerance", "psnr=0.1"), "require --check"),
        (("--check", "--tolerance", "psnr"), "METRIC=VALUE"),
        (("--limit", "0"), "expected 1 or more images"),
        (("--model", "sr_x4"), "sr_x4: this benchmark has images without masks, scale 1"),
        (("--model", "nothing"), "no weights are named 'nothing'"),
        (("--weights", "net.pth", "net.pth"), "several weights have this file name"),
    ):
        code, output = bench(capsys, *words)
        assert code == 1
        assert message in output
    network = DiffIRS2(**(SMALL | dict(task="deblur", scale=1, LayerNorm_type="WithBias")))
    fill(network, "s2")
    torch.save({"params": network.state_dict()}, "mine.pth")
    Path("named.yml").write_text("base: stand_in.yml\ndatasets: {test_1: {name: Mine}}\n")
    code, output = bench(capsys, "--check", "--no-picture", "--weights", "mine.pth", benchmark="named.yml")
    assert code == 1
    assert "none of these methods has a value to compare with" in output


def test_simple_methods_enlarge_and_fill():
    lq = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    for method in simple_methods(scale=4, takes_mask=False):
        assert method.restore(lq).shape == (1, 3, 36, 28), method.name
    flat = torch.full((1, 3, 16, 16), 100 / 255)
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 5:9, 5:9] = 1
    for method in simple_methods(scale=1, takes_mask=True):
        filled = method.restore(torch.cat([flat * (1 - hole), hole], dim=1))
        assert torch.allclose(filled, flat, atol=2.01 / 255), method.name  # Telea rounds


def test_multiplications_are_those_of_the_paper():
    """0.74 T of super-resolution x4 on 256 pixels, as the paper's table of real-world super-resolution prints."""
    network = DiffIRS2(
        task="sr", scale=4, n_encoder_res=9, dim=64, num_blocks=[13, 1, 1, 1], num_refinement_blocks=13,
        heads=[1, 2, 4, 8], ffn_expansion_factor=2.2, bias=False, LayerNorm_type="BiasFree",
    )  # fmt: skip
    torch.save({"params": network.state_dict()}, "paper.pth")
    method = network_method("paper.pth", None, seed=0, device="cpu", scale=4, takes_mask=False)
    assert method.uncounted == ""
    assert method.macs == pytest.approx(0.74e12, rel=0.03)
    assert (method.paper, method.sha256 != "") == ("DiffIR_S2", True)


def test_peak_memory_is_what_was_taken_at_most():
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    if memory.added() is None:
        pytest.skip("this system does not tell")
    np.ones(2**28, np.uint8)  # given back at once
    assert 0.98 * 2**28 <= memory.added() < 1.1 * 2**28


@needs_weights
def test_inpainting_keeps_known_pixels_and_says_that_fid_is_absent(capsys):
    run = stand_in("CelebA-HQ")
    code, output = bench(capsys, "--limit", "1", "--no-picture")
    assert code == 0, output
    found, content = measured(Path("results/bench") / run, "CelebA-HQ-thick")
    assert list(found) == ["OpenCV Telea", "OpenCV Navier-Stokes", "net.pth"]
    assert "FID, which is in the paper's table, is not measured" in output
    assert found["net.pth"]["paper"] == {"fid": 5.1440, "lpips_vgg": 0.0918}
    assert set(found["net.pth"]["difference"]) == {"lpips_vgg"}
    assert {name: facts["images"] for name, facts in content["sets"].items()} == dict.fromkeys(content["sets"], 1)
