"""`diffir ablate`: variants are trained alike, compared seed by seed, and reported with the paper's words."""

import json
import re
import runpy
from datetime import date
from pathlib import Path

import pytest
import yaml
from toy import train_options, write_options, write_pairs

from diffir_sr.ablation.commands import _last
from diffir_sr.ablation.study import Found, against, check_document, marks, plan_runs, read_ablation, shown_range
from diffir_sr.cli import main
from diffir_sr.errors import InputError, OptionError
from diffir_sr.options.recipes import recipes_folder

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs("data", lmdb=False)
    for stage in ("s1", "s2"):
        write_options(train_options(stage), f"{stage}.yml")
    ablation = dict(
        name="toy",
        about="Two ways.",
        stage_1="s1.yml",
        stage_2="s2.yml",
        seeds=[0, 1],
        iterations=2,
        metric="psnr",
        reference="joint",
        paper="Joint is better.",
        both=dict(val=dict(val_freq=2)),
        variants=dict(joint=dict(paper="shipped"), plain=dict(stage_2=dict(network_g=dict(use_diffusion=False)))),
    )
    Path("toy.yml").write_text(yaml.safe_dump(ablation))
    return ablation


def test_variants_are_trained_measured_and_reported(small, capsys):
    small["seeds"] = [0]
    Path("toy.yml").write_text(yaml.safe_dump(small))
    assert main(["ablate", "toy.yml", "--doc", "found.md"]) == 1  # told before anything is trained
    assert "found.md: expected the lines" in capsys.readouterr().err
    assert not Path("experiments").exists()
    begin, end = marks("toy")
    Path("found.md").write_text(f"# Found\n\n{begin}\nold\n{end}\n\nWhat it means.\n")
    assert main(["ablate", "toy.yml"]) == 0
    report = Path("results/ablate_toy/report.md").read_text()
    results = json.loads(Path("results/ablate_toy/results.json").read_text())
    assert set(results) == {"stage 1", "joint", "plain"}
    for variant, values in results.items():
        for seed, value in enumerate(values):
            run = f"ablate_toy_S1_plain_s{seed}" if variant == "stage 1" else f"ablate_toy_{variant}_s{seed}"
            last = Path(f"experiments/{run}/validation.jsonl").read_text().splitlines()[-1]
            assert json.loads(last)["psnr"] == value
    mean = results["plain"][0]
    assert f"| plain | {mean:.3f} |" in report
    assert "| shipped |" in report
    assert "Paper: Joint is better." in report
    assert Path("results/ablate_toy/plot.png").stat().st_size > 5000
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("experiments").rglob("net_g_latest.pth")}
    assert main(["ablate", "toy.yml", "--doc", "found.md"]) == 0  # nothing is trained twice
    assert {path: path.stat().st_mtime_ns for path in Path("experiments").rglob("net_g_latest.pth")} == before
    assert "[1/" not in capsys.readouterr().out
    document = Path("found.md").read_text()
    table = report.partition("\n\n")[2].replace("(plot.png)", "(found/toy.png)").strip()
    assert document == f"# Found\n\n{begin}\n\n{table}\n\n{end}\n\nWhat it means.\n"
    assert Path("found/toy.png").read_bytes() == Path("results/ablate_toy/plot.png").read_bytes()
    assert runpy.run_path(str(SCRIPTS / "prior_worth.py"))["main"](["toy.yml"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows][:3] == ["| its own, estimated", "| the teacher's", "| the next photograph's"]
    assert "bicubic" in rows[3][0]
    assert rows[0][1] == f"{results['joint'][0]:.3f}"  # what the ablation measured
    assert main(["ablate", "toy.yml", "--iterations", "3"]) == 1
    assert "an earlier run with this name had other options" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{begin}", "{end}\n{begin}", "{begin}{begin}{end}"])
def test_a_document_without_its_marks_is_reported(text):
    begin, end = marks("toy")
    Path("found.md").write_text(text.format(begin=begin, end=end))
    with pytest.raises(InputError, match="to insert the report between them; they do not occur once each"):
        check_document(Path("found.md"), "toy")


def test_a_stage_1_that_does_not_change_is_shared(small):
    small["variants"]["own"] = dict(stage_1=dict(network_g=dict(prior_input="gt")))
    Path("toy.yml").write_text(yaml.safe_dump(small))
    runs = plan_runs(read_ablation(Path("toy.yml")), Path())
    assert sum(run.stage == 1 for run in runs) == 4
    assert sum(run.stage == 2 for run in runs) == 6
    starts = {run.name: run.values["path"]["pretrain_network_S1"] for run in runs if run.stage == 2}
    assert starts["ablate_toy_joint_s0"] == starts["ablate_toy_plain_s0"] != starts["ablate_toy_own_s0"]
    assert {run.values["manual_seed"] for run in runs if run.name.endswith("_s1")} == {1}


@pytest.mark.parametrize(
    ("values", "lower", "message"),
    [
        ((1.0, 1.1, 1.05), False, "better"),
        ((1.0, 1.1, 1.05), True, "worse"),
        ((0.5, -0.6, 0.2), False, "within the noise"),
        ((0.9, 0.1, 0.5), False, "within the noise"),  # 2.2 times its standard error: three seeds say little
        ((0.6, 0.4, 0.5), False, "better"),
        ((0.0, 0.0, 0.0), False, "within the noise"),
        ((-1.0, -1.2, -1.1), False, "worse"),
    ],
)
def test_a_difference_counts_where_a_paired_t_test_says_so(values, lower, message):
    reference = Found((30.0, 20.0, 25.0))  # seeds differ far more than variants
    other = Found(tuple(one + gain for one, gain in zip(reference.values, values, strict=True)))
    assert against(other, reference, lower_is_better=lower)[1] == message


def test_a_variant_far_away_does_not_press_the_others_into_a_point():
    near = [Found((29.6, 29.7, 29.65)), Found((29.62, 29.69, 29.66)), Found((29.6, 29.75, 29.7))]
    low, high = shown_range([*near, Found((26.9, 27.1, 27.0))])
    assert 29.5 < low < 29.6
    assert 29.75 < high < 29.8
    assert shown_range([Found((1.0,)), Found((2.0,)), Found((3.0,))]) == pytest.approx((0.84, 3.16))


def test_one_seed_says_nothing():
    assert against(Found((2.0,)), Found((1.0,)), lower_is_better=False) == (1.0, "one seed: no statement")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(reference="other"), "reference: no variant is named 'other'; there are: joint, plain"),
        (dict(stage_2="none.yml"), "no such option file: "),
        (dict(varients={}), "varients: unknown option; did you mean 'variants'?"),
        (dict(seeds=[]), "seeds: expected 1 or more, found the list"),
        (dict(seeds=[3, 3]), "seeds.1.: 3 is listed twice"),
        (dict(variants={"A+1": {}, "a-1": {}}), "variants.a-1: its runs would have the names of 'A.1'"),
        (
            dict(variants={"A": {}, "S1 plain": {}}),
            "variants.S1 plain: its runs would have the names of the runs of stage 1, plain",
        ),
        (dict(variants=dict(A=3, B={})), "variants.A: expected a section .key: value., found 3"),
        (dict(name="../../evil"), "name: expected a file name .* found '../../evil'"),
    ],
)
def test_a_wrong_file_is_reported(small, change, message):
    Path("toy.yml").write_text(yaml.safe_dump(small | change))
    with pytest.raises(OptionError, match=message):
        read_ablation(Path("toy.yml"))


def test_a_variant_that_is_given_twice_is_reported(small):
    text = Path("toy.yml").read_text() + "  joint: {}\n"
    Path("toy.yml").write_text(text)
    with pytest.raises(OptionError, match="variants.joint: given twice"):
        read_ablation(Path("toy.yml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(metric="ssim"), "metric 'ssim' is not among val.metrics of ablate_toy_S1_plain_s0: psnr"),
        (dict(stage_2="s1.yml"), "its network is DiffIRS1, of stage 1; stage_2 of the ablation must name a recipe"),
        (dict(plain=dict(network_g=dict(nope=1))), "variant 'plain', stage 2: .*network_g.nope: unknown option"),
        (dict(plain=dict(network_g=dict(dim="abc"))), "network_g.dim: expected a whole number, found 'abc'"),
        (dict(plain=dict(path=3)), "path: expected a section"),
        (dict(plain=dict(when=date(2020, 1, 1))), "when: unknown option"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_no_training_starts_where_a_later_one_cannot_run(small, capsys, change, message, words):
    if "plain" in change:
        small["variants"]["plain"] = dict(stage_2=change["plain"])
    Path("toy.yml").write_text(yaml.safe_dump(small | (change if "plain" not in change else {})))
    assert main(["ablate", "toy.yml", *words]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not Path("experiments").exists()


def test_a_change_of_stage_1_may_hold_a_date(small):
    small["variants"]["plain"] = dict(stage_1=dict(when=date(2020, 1, 1)))
    Path("toy.yml").write_text(yaml.safe_dump(small))
    assert len(plan_runs(read_ablation(Path("toy.yml")), Path())) == 8


@pytest.mark.parametrize("seeds", [["-1"], ["0", "0"]])
def test_seeds_of_the_command_line_are_checked_as_those_of_the_file(small, capsys, seeds):
    assert main(["ablate", "toy.yml", "--dry-run", "--seeds", *seeds]) == 1
    assert "--seeds: expected numbers of 0 or more, each once" in capsys.readouterr().err


def test_a_torn_line_of_a_record_is_passed_over(small):
    Path("validation.jsonl").write_text('{"iter": 2, "dataset": "val", "psnr": 20.5}\n3\n{"iter": 2, "data')
    assert _last(Path("validation.jsonl"), "psnr", 2) == 20.5
    assert _last(Path("validation.jsonl"), "psnr", 3) is None


def test_a_run_that_trained_nothing_may_be_corrected(small):
    for stage in ("s1", "s2"):
        write_options(train_options(stage, data="nowhere"), f"{stage}.yml")
    assert main(["ablate", "toy.yml", "--seeds", "0"]) == 1
    file = Path("experiments/ablations/ablate_toy_S1_plain_s0.yml")
    before = file.read_text()
    small["iterations"] = 3
    Path("toy.yml").write_text(yaml.safe_dump(small))
    assert main(["ablate", "toy.yml", "--seeds", "0"]) == 1
    assert file.read_text() != before


def test_a_training_that_fails_ends_the_comparison(small, capsys):
    small["variants"]["joint"]["stage_2"] = dict(train=dict(optim_g=dict(type="Adam", lr=1e9)))
    Path("toy.yml").write_text(yaml.safe_dump(small))
    assert main(["ablate", "toy.yml", "--seeds", "0"]) == 1
    assert "ablate_toy_joint_s0: the training ended with exit code 1" in capsys.readouterr().err
    assert not Path("results/ablate_toy").exists()


@pytest.mark.parametrize("path", sorted((recipes_folder() / "ablations").glob("*.yml")), ids=lambda path: path.stem)
def test_shipped_ablations_are_sound(path, tmp_path):
    from diffir_sr.options import load_options

    for run in plan_runs(read_ablation(path), path.parent):
        file = tmp_path / f"{run.name}.yml"
        file.write_text(yaml.safe_dump(run.values))
        if run.seed == 0:
            assert load_options(file, check_files=False).warnings == []
