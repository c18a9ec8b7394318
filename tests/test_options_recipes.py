"""The recipes of the package and the published files they come from."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network

from diffir_sr.errors import InputError, OptionError
from diffir_sr.options import load_options
from diffir_sr.options.recipes import copy_recipes, recipe_names, recipes_folder, summary
from diffir_sr.options.source import read_source

PUBLISHED = sorted((Path(__file__).parent / "data" / "published").glob("*.yml"))
RECIPES = sorted(recipes_folder().glob("*.yml"))
TRAININGS = [path for path in RECIPES if path.name.startswith("train")]
# Parameters of the networks, counted from the published definitions.
_PARAMETERS = {("DiffIRS1", 4): 24_801_478, ("DiffIRS1", 2): 24_811_846} | {
    ("DiffIRS2", 4): 24_971_206,
    ("DiffIRS2", 2): 24_981_574,
}


def _load(path, **arguments):
    return load_options(path, is_train=path.name.startswith("train"), check_files=False, **arguments)


def _name(path):
    return path.stem


def test_every_stage_and_scale_has_a_recipe():
    stages = [f"train_{stage}_x{scale}" for scale in (2, 4) for stage in ("DiffIRS1", "DiffIRS2", "DiffIRS2_GAN")]
    assert {path.stem for path in RECIPES} >= {*stages, "test_DiffIRS2_GAN_x4", "test_DiffIRS2_GAN_x4_woGT"}


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_recipes_load_without_a_word(path):
    loaded = _load(path)
    assert loaded.warnings == []
    assert loaded.values["name"] == path.stem
    assert loaded.path == path


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_recipes_read_lmdbs(path):
    datasets = _load(path).values["datasets"]
    assert {dataset["io_backend"]["type"] for dataset in datasets.values()} == {"lmdb"}
    assert {dataset["type"] for dataset in datasets.values()} <= {"PairedDataset", "SingleDataset"}


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_recipes_build_the_published_networks(path):
    for section in ("network_g", "network_S1"):
        options = _load(path).values.get(section)
        if options:
            with torch.device("meta"):
                network = build_network(options)
            count = sum(weight.numel() for weight in network.parameters())
            assert count == _PARAMETERS[options["type"], options["scale"]]


@pytest.mark.parametrize("path", TRAININGS, ids=_name)
def test_recipes_are_the_published_trainings(path):
    published = _load(Path(__file__).parent / "data" / "published" / path.name).values
    ours = _load(path).values
    dead = {"lr_encoder", "lr_sr", "gamma_encoder", "gamma_sr", "lr_decay_encoder", "lr_decay_sr"}
    assert ours["train"] == {key: value for key, value in published["train"].items() if key not in dead}
    for section in ("network_g", "network_S1", "network_d"):
        ignored = {"scale", "inp_channels", "out_channels"}
        mine, theirs = ({**(one.get(section) or {})} for one in (ours, published))
        assert mine.pop("scale", 4) == theirs.get("scale", 4)
        assert mine == {key: value for key, value in theirs.items() if key not in ignored}
    for key in ("gt_size", "use_hflip", "use_rot", "batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio"):
        assert ours["datasets"]["train"][key] == published["datasets"]["train"][key]
    assert ours["manual_seed"] == published["manual_seed"]
    assert ours["val"]["val_freq"] == published["val"]["val_freq"]


@pytest.mark.parametrize("path", TRAININGS, ids=_name)
def test_each_stage_starts_where_the_one_before_ends(path):
    for key, weights in _load(path).values["path"].items():
        if key.startswith("pretrain") and weights:
            stage = re.fullmatch(r"experiments/(\w+)/models/net_g_latest.pth", weights)
            assert stage
            maker = _load(recipes_folder() / f"{stage[1]}.yml").values
            assert maker["name"] == stage[1]
            section = "network_S1" if key.endswith("S1") else "network_g"
            ours = _load(path).values[section]
            assert {**maker["network_g"], "type": ""}.items() <= {**ours, "type": ""}.items()


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_recipes_say_what_they_do_need_and_how_to_run_them(path):
    head = path.read_text().split("\n\n")[0]
    verb = path.stem.split("_")[0]
    assert "DiffIR" in summary(path)
    assert f"basicsr {verb} -opt options/{path.name}" in head
    assert "# Needs" in head
    if verb == "train":
        assert "8 patches per GPU on 8 GPUs" in head
        assert "On fewer GPUs" in head


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_every_setting_is_explained_where_it_stands(path):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        setting = re.match(r"\s*(\w+): *[^\s#]", line)
        if setting and "#" not in line and not setting[1].startswith("conv"):
            assert setting[1] in ("name", "type"), f"{path.name}:{number}: {line}"


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_recipes_read_the_same_with_any_yaml_reader(path):
    plain = yaml.safe_load(path.read_text())
    assert plain == read_source(path).values


@pytest.mark.parametrize("path", PUBLISHED, ids=_name)
def test_published_files_load_with_warnings_alone(path):
    loaded = _load(path)
    output = {warning.split(": ")[1] for warning in loaded.warnings}
    expected = {"val.window_size"}
    if "DiffIRS2" in path.name and "train" in path.name:
        expected |= {"train.lr_encoder", "queue_size"}
    assert output == expected


@pytest.mark.parametrize("path", PUBLISHED, ids=_name)
def test_published_keys_stay_as_they_are(path):
    written, loaded = read_source(path).values, _load(path).values
    for section, value in written.items():
        if section in ("datasets", "network_g", "network_S1", "train", "network_d"):
            assert loaded[section] == value, section


def test_there_are_published_files_of_every_stage():
    assert len(PUBLISHED) == 7


def test_recipes_are_found_in_a_checkout_and_in_a_package(monkeypatch, tmp_path):
    package = tmp_path / "somewhere" / "diffir_sr"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr("diffir_sr.options.recipes._PACKAGE", package)
    with pytest.raises(InputError, match="the recipes are missing from this installation"):
        recipes_folder()
    (package.parent / "options").mkdir()
    (package.parent / "options" / "train_DiffIRS2_x4.yml").touch()
    assert recipes_folder() == package.parent / "options"
    (package / "recipes" / "train_DiffIRS2_x4.yml").touch()
    assert recipes_folder() == package / "recipes"


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """A folder of recipes of our own: one based on another, one in a subfolder."""
    folder = tmp_path / "shelf" / "recipes"
    (folder / "small").mkdir(parents=True)
    (folder / "train_DiffIRS2_x4.yml").write_text("# Does this.\nname: a\n")
    (folder / "small" / "train.yml").write_text("base: ../train_DiffIRS2_x4.yml\nname: b\n")
    monkeypatch.setattr("diffir_sr.options.recipes._PACKAGE", tmp_path / "shelf")
    return folder


def test_recipes_in_subfolders_come_last(shelf):
    assert recipe_names(shelf) == ["train_DiffIRS2_x4", "small/train"]


def test_the_summary_is_the_first_comment(shelf):
    assert summary(shelf / "train_DiffIRS2_x4.yml") == "Does this."
    assert summary(shelf / "small" / "train.yml") == ""


def test_copies_bring_what_they_are_based_on(shelf):
    copies = copy_recipes(["small/train"], to=Path("mine"))
    assert copies == [Path("mine/small/train.yml"), Path("mine/train_DiffIRS2_x4.yml")]
    assert read_source("mine/small/train.yml").values == {"name": "b"}


@pytest.mark.parametrize("name", ["train_DiffIRS2_x4", "train_DiffIRS2_x4.yml", "options/train_DiffIRS2_x4.yml"])
def test_recipes_are_named_with_or_without_ending(shelf, name):
    assert copy_recipes([name], to=Path("mine")) == [Path("mine/train_DiffIRS2_x4.yml")]


def test_copies_never_replace_a_file(shelf):
    Path("mine").mkdir()
    Path("mine/train_DiffIRS2_x4.yml").write_text("precious")
    with pytest.raises(InputError, match="not copied, because these files exist already: mine/train_DiffIRS2_x4.yml"):
        copy_recipes(["small/train"], to=Path("mine"))
    assert Path("mine/train_DiffIRS2_x4.yml").read_text() == "precious"
    assert not Path("mine/small").exists()


def test_a_recipe_that_does_not_exist_is_reported(shelf):
    with pytest.raises(OptionError, match="no recipe is named 'train_DiffIRS1_x4'; did you mean 'train_DiffIRS2_x4'"):
        copy_recipes(["train_DiffIRS1_x4"], to=Path("mine"))
    assert not Path("mine").exists()
