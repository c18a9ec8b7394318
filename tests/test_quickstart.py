"""`diffir quickstart --task`: the commands of every task run from photographs to a report, with tiny networks."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from diffir_sr.cli import basicsr_main, main
from diffir_sr.errors import InputError
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.options.source import read_source
from diffir_sr.quickstart.commands import data_commands, stage_commands
from diffir_sr.quickstart.report import cases, filled, show_shipped_model, write_report
from diffir_sr.quickstart.tasks import HELD_OUT, HELD_OUT_DATA, QUICKSTARTS, TRAIN_DATA, write_photographs

REPO = Path(__file__).resolve().parents[1]
SMALL = recipes_folder() / "small"
RECIPES = [path for task in QUICKSTARTS for path in sorted((SMALL / task).glob("t*_S*.yml"))]
TINY = ["network_g:dim=8", "network_g:num_blocks=[1,1,1,1]", "network_g:n_encoder_res=1"]
TINY_S1 = [change.replace("network_g", "network_S1") for change in TINY]
SHORT = ["train:total_iter=2", "val:val_freq=2", "logger:print_freq=1", "logger:save_checkpoint_freq=2"]


def load(path):
    return load_options(path, is_train=path.name.startswith("train"), check_files=False)


def name_of(path):
    return path.relative_to(SMALL).as_posix()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_small_recipes_load_without_a_word_and_say_how_to_run_them(path):
    loaded = load(path)
    assert loaded.warnings == []
    stage = path.stem.split("_", 1)[1]
    assert loaded.values["name"] == f"{QUICKSTARTS[path.parent.name].prefix}_{stage}"
    assert f"basicsr {path.stem.split('_')[0]} -opt options/small/{name_of(path)}" in path.read_text().split("\n\n")[0]


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.startswith("test")], ids=name_of)
def test_a_stage_is_tested_as_it_was_trained(path):
    tested, trained = (load(path.with_name(f"{what}_{path.stem[5:]}.yml")).values for what in ("test", "train"))
    assert tested["network_g"] == trained["network_g"]
    assert tested["model_type"] == trained["model_type"]
    assert tested["path"]["pretrain_network_g"] == f"experiments/{trained['name']}/models/net_g_latest.pth"


@pytest.mark.parametrize("task", QUICKSTARTS)
def test_the_teacher_of_stage_2_is_stage_1(task):
    first, second = (load(SMALL / task / f"train_{stage}.yml").values for stage in ("S1", "S2"))
    assert second["network_S1"] == first["network_g"]
    start = f"experiments/{first['name']}/models/net_g_latest.pth"
    assert second["path"]["pretrain_network_g"] == second["path"]["pretrain_network_S1"] == start


def test_real_degradation_is_part_of_the_published_one():
    published = read_source(recipes_folder() / "realsr/degraded.yml").values
    ours = load(SMALL / "realsr/train_S2.yml").values
    pairs = [(published, ours), (published["datasets"]["train"], ours["datasets"]["train"])]
    compared = []
    for theirs, mine in pairs:
        for key in set(theirs) - {"datasets", "gt_size", "dataroot_gt"}:
            if "range" in key or "sigma" in key:
                assert theirs[key][0] <= mine[key][0] < mine[key][1] <= theirs[key][1], key
                compared.append(key)
            elif "prob" in key or "kernel_list" in key:
                assert mine[key] == theirs[key], key
                compared.append(key)
    assert len(compared) > 20


def test_inpainting_has_the_kinds_of_loss_of_the_published_recipe():
    published = read_source(recipes_folder() / "inpaint/common.yml").values["train"]
    ours = load(SMALL / "inpaint/train_S2.yml").values["train"]
    for key in ("pixel_opt", "gan_opt", "feature_matching_opt"):
        assert ours[key]["type"] == published[key]["type"]


def write_small_photographs():
    """Parts of photographs that are just large enough for every task."""
    for folder, name, part in (
        (TRAIN_DATA, "coffee", skimage.data.coffee()[100:350, 150:400]),
        (HELD_OUT_DATA, "chelsea", skimage.data.chelsea()[10:290, 80:360]),
    ):
        (folder / "photos").mkdir(parents=True)
        cv2.imwrite(str(folder / f"photos/{name}.png"), part[..., ::-1])


def overrides(command):
    if " test " in command:
        return TINY
    changes = [*TINY, *SHORT, *(TINY_S1 if "_S1." not in command else [])]
    if "/deblur/" not in command:
        changes += ["datasets:train:batch_size_per_gpu=1"]
    if "/inpaint/" in command:
        changes += ["datasets:train:gt_size=64"]
    return changes


@pytest.mark.parametrize("task", QUICKSTARTS)
def test_a_task_runs_from_photographs_to_its_report(task):
    write_small_photographs()
    for command in data_commands(task):
        words = shlex.split(command)[1:]
        assert main([*words, "--jobs", "1"] if words[0] == "prepare" else words) == 0
    for command in stage_commands(0, task):
        assert basicsr_main([*shlex.split(command)[1:], "--force_yml", *overrides(command)]) == 0
    table = write_report(QUICKSTARTS[task], how="a test")
    results = QUICKSTARTS[task].results
    assert results == Path("results/quickstart" if task == "sr" else f"results/quickstart_{task}")
    rows = [line for line in table.splitlines() if line.startswith("| chelsea")]
    assert len(rows) == len(cases(QUICKSTARTS[task])) == {"sr": 1, "realsr": 3, "deblur": 2, "inpaint": 3}[task]
    columns = 1 + {"sr": 4, "realsr": 3, "deblur": 3, "inpaint": 5}[task]
    assert {row.count("|") - 1 for row in rows} == {columns}
    assert table in (results / "report.md").read_text()
    assert (results / "summary.md").read_text() == table + "\n"
    assert {path.suffix for path in results.iterdir()} == {".md", ".png", ".jpg"}
    if task == "inpaint":
        case = cases(QUICKSTARTS[task])[0]
        known = case.simple["zeros"].any(axis=2)
        assert np.array_equal(case.of_stage("S2")[known], case.gt[known])
        assert not np.array_equal(case.of_stage("S2"), case.gt)


def test_it_begins_with_a_photograph_restored_by_the_shipped_model():
    task = QUICKSTARTS["sr"]
    write_photographs(HELD_OUT, folder=HELD_OUT_DATA / "photos")
    text = show_shipped_model(task)
    bicubic, ours = (float(re.search(rf"{name} ([\d.]+) dB", text)[1]) for name in ("bicubic", "sr_x4"))
    assert ours > bicubic + 0.5
    assert (task.results / "shipped.jpg").is_file()
    assert text in (task.results / "shipped.md").read_text()


def test_the_seed_reaches_every_training():
    for task in QUICKSTARTS:
        commands = stage_commands(7, task)
        assert all(("manual_seed=7" in command) == (" train " in command) for command in commands)


def test_without_results_the_report_says_what_is_missing():
    with pytest.raises(InputError, match="no held-out photographs for deblur"):
        cases(QUICKSTARTS["deblur"])


def test_holes_are_filled_with_what_is_known_alone():
    photo = np.ascontiguousarray(skimage.data.chelsea()[:64, :64])
    hole = np.zeros((64, 64), bool)
    hole[20:40, 10:50] = True
    other = photo.copy()
    other[hole] = 255 - other[hole]
    for name, image in filled(photo, hole).items():
        assert np.array_equal(image[~hole], photo[~hole])
        assert np.array_equal(image, filled(other, hole)[name]), name
    assert np.array_equal(filled(photo, hole)["mean"][30, 30], photo[~hole].mean(axis=0).round())


def test_the_page_shows_every_task_as_its_report_says_it():
    page = (REPO / "docs/tasks.md").read_text()
    for task in QUICKSTARTS.values():
        section = page.split(f"## {task.title}\n")[1].split("\n## ")[0]
        assert task.about in section
        assert float(re.findall(r"Stage 2 against [^:]+: \+?(-?[\d.]+) dB", section)[0]) >= 0.3
        picture = REPO / "docs/tasks" / f"{task.name}.jpg"
        assert f"](tasks/{picture.name})" in section
        assert picture.stat().st_size <= 200_000
