"""Rules about files and folders that must be there."""

from pathlib import Path

import pytest
from options_cases import GAN, STAGE_1, STAGE_2, TEST, changed, load, problems

from diffir_sr.errors import OptionError
from diffir_sr.options import load_options


def _with_files(options, *, folders=("gt", "lq"), files=("stage_1.pth", "stage_2.pth", "net_g.pth")):
    for folder in folders:
        Path(folder).mkdir()
    for file in files:
        Path(file).touch()
    return options


@pytest.mark.parametrize("options", [STAGE_1, STAGE_2, GAN, TEST])
def test_files_that_are_there_are_found(options):
    assert load(_with_files(options), check_files=True).warnings == []


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        (STAGE_2, "pretrain_network_g", "stage 1 makes it: basicsr train -opt options/train_DiffIRS1_x4.yml"),
        (STAGE_2, "pretrain_network_S1", "stage 1 makes it: basicsr train -opt options/train_DiffIRS1_x4.yml"),
        (GAN, "pretrain_network_g", "stage 2 makes it: basicsr train -opt options/train_DiffIRS2_x4.yml"),
        (GAN, "pretrain_network_S1", "stage 1 makes it: basicsr train -opt options/train_DiffIRS1_x4.yml"),
        (GAN, "pretrain_network_d", "the GAN stage makes it: basicsr train -opt options/train_DiffIRS2_GAN_x4.yml"),
        (STAGE_1, "pretrain_network_g", "correct the path, or remove the option to start from scratch"),
        (TEST, "pretrain_network_g", "stage 2 makes it: basicsr train -opt options/train_DiffIRS2_x4.yml"),
    ],
)
def test_missing_weights_tell_what_makes_them(options, key, message, tmp_path):
    options = changed(_with_files(options), {f"path.{key}": "nowhere/net.pth"})
    told_of = problems(options, check_files=True)
    assert told_of == {f"path.{key}": f"no such file: nowhere/net.pth (current folder: {tmp_path}); {message}"}


def test_missing_weights_of_another_task_name_the_model():
    network = {"type": "DiffIRS2", "task": "deblur"}
    options = changed(_with_files(TEST), {"network_g": network, "path.pretrain_network_g": "/nowhere/net.pth"})
    assert problems(options, check_files=True) == {
        "path.pretrain_network_g": "no such file: /nowhere/net.pth; stage 2 makes it (model_type DiffIRS2Model)"
    }


def test_no_testing_recipe_is_named_as_the_maker_of_weights(monkeypatch, tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "a_test.yml").write_text("name: mine\nmodel_type: DiffIRS2Model\n")
    (folder / "other_train.yml").write_text("name: mine\nmodel_type: DiffIRS1Model\ntrain: {total_iter: 1}\n")
    monkeypatch.setattr("diffir_sr.options.load.recipes_folder", lambda: folder)
    options = changed(_with_files(TEST), {"path.pretrain_network_g": "experiments/mine/models/net_g_latest.pth"})
    (said,) = problems(options, check_files=True).values()
    assert "a_test" not in said
    (folder / "train.yml").write_text("name: mine\nmodel_type: DiffIRS2Model\ntrain: {total_iter: 1}\n")
    (said,) = problems(options, check_files=True).values()
    assert said.endswith("stage 2 makes it: basicsr train -opt options/train.yml")


def test_a_test_does_not_look_for_the_teacher():
    teacher = {"network_S1": STAGE_2["network_S1"], "path.pretrain_network_S1": "nowhere.pth"}
    assert load(changed(_with_files(TEST), teacher), check_files=True).warnings == []


def test_resuming_looks_for_state_and_teacher_alone():
    path = {"path.pretrain_network_g": "nowhere.pth", "path.resume_state": "5.state"}
    options = changed(_with_files(STAGE_2), path)
    assert list(problems(options, check_files=True)) == ["path.resume_state"]
    Path("5.state").touch()
    assert load(options, check_files=True)


def test_missing_data_is_reported_for_every_dataset(tmp_path):
    options = changed(_with_files(STAGE_1, folders=["lq"]), {"datasets.val.dataroot_lq": "lq.lmdb"})
    there = f"(current folder: {tmp_path}); see datasets/README.md for how to prepare data"
    assert problems(options, check_files=True) == {
        "datasets.train.dataroot_gt": f"no such folder: gt {there}",
        "datasets.val.dataroot_gt": f"no such folder: gt {there}",
        "datasets.val.dataroot_lq": f"no such LMDB: lq.lmdb {there}",
    }


def test_missing_lists_and_vgg_weights_are_reported():
    loss = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_path": "vgg.pth"}
    changes = {"datasets.train.meta_info_file": "list.txt", "train.perceptual_opt": loss}
    output = problems(changed(_with_files(STAGE_1), changes), check_files=True)
    assert set(output) == {"datasets.train.meta_info_file", "train.perceptual_opt.vgg_path"}


def test_the_home_folder_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    _with_files(TEST)
    options = changed(TEST, {"path.pretrain_network_g": "~/net_g.pth", "datasets.test.dataroot_lq": "~/lq"})
    assert load(options, check_files=True)


def test_files_are_looked_for_by_default():
    load(TEST)
    with pytest.raises(OptionError, match="path.pretrain_network_g: no such file: net_g.pth"):
        load_options("run.yml", is_train=False)
