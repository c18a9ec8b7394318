"""The published option files of the three other tasks load as they are; what is wrong in them is told and corrected."""

from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataset
from pictures import photo
from test_options_tasks import _PARAMETERS, FOLDER

from diffir_sr.cli import main
from diffir_sr.data.images import encode_png
from diffir_sr.errors import OptionError
from diffir_sr.options import load_options
from diffir_sr.options.source import read_source

PUBLISHED = Path(__file__).parent / "data" / "published"
FILES = sorted(path for task in ("realsr", "deblur") for path in (PUBLISHED / task).glob("*.yml"))
HYDRA = sorted((PUBLISHED / "inpaint").glob("*.yaml"))
_PADDING = "has no effect: padding is a property of the network (this one pads to multiples of {})"
_NO_WARM_UP = (
    "train.lr_encoder: has no effect (also gamma_encoder, lr_decay_encoder): the GAN phase trains all parts from the "
    "start; encoder_iter above 0 only says that lr_sr rules the generator's learning rate"
)
_TASK = "network_g: {} set to 'deblur', because a dataset is a DeblurPairedDataset and no scale is given"
_EXPECTED = {
    "deblur/train_DiffIRS1": [_TASK.format("network_g.task")],
    "deblur/train_DiffIRS2": [
        _TASK.format("network_g.task and network_S1.task"),
        f"val.window_size: {_PADDING.format(8)}",
    ],
    "deblur/test_DiffIRS2": [
        "scale: corrected from 4 to 1: deblurring does not change the size",
        _TASK.format("network_g.task"),
    ],
}
for _scale, _multiple in ((1, 32), (2, 16), (4, 8)):
    _pads = [f"val.window_size: {_PADDING.format(_multiple)}"]
    for _stem in ("train_DiffIRS1_x{}", "train_DiffIRS2_x{}", "test_DiffIRS2_GAN_x{}"):
        _EXPECTED[f"realsr/{_stem.format(_scale)}"] = _pads
    for _stem in ("train_DiffIRS2_GAN_x{}", "train_DiffIRS2_GAN_x{}_V2", "finetune_DiffIRS2_GAN_x{}_V2"):
        _EXPECTED[f"realsr/{_stem.format(_scale)}"] = [_NO_WARM_UP, *_pads]
_EXPECTED["realsr/train_DiffIRS2_x1"] = [
    "val.window_size: corrected from 16 to 32: this network pads to multiples of it, whatever is given"
]
_EXPECTED["realsr/finetune_DiffIRS2_GAN_x4_V2"].insert(
    0, "name: says x2, but the scale is 4; results go where the name says"
)


def name_of(path):
    return path.relative_to(PUBLISHED).with_suffix("").as_posix()


def load(path, **arguments):
    return load_options(path, is_train=path.name.startswith(("train", "fine")), **{"check_files": False, **arguments})


def test_there_is_a_file_of_every_stage_scale_and_version():
    assert {name_of(path) for path in FILES} == set(_EXPECTED)
    assert len(FILES) == 21


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_exactly_what_is_wrong_or_dead_is_told(path):
    told = [warning.split(": ", 1)[1] for warning in load(path).warnings]
    assert told == _EXPECTED[name_of(path)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_right_stays_as_it_is(path):
    written, loaded = read_source(path).values, load(path).values
    for section in ("model_type", "datasets", "train", "network_d", "queue_size", "l1_gt_usm", "resize_prob"):
        assert loaded.get(section) == written.get(section), section
    for network in ("network_g", "network_S1"):
        assert (loaded.get(network) or {}).items() >= (written.get(network) or {}).items()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_wrong_becomes_right(path):
    values = load(path).values
    deblurs = path.parent.name == "deblur"
    if deblurs:
        assert values["scale"] == 1
        assert {values[key]["task"] for key in ("network_g", "network_S1") if key in values} == {"deblur"}
    if "window_size" in values["val"]:
        assert values["val"]["window_size"] == (8 if deblurs else {1: 32, 2: 16, 4: 8}[values["scale"]])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_networks_are_the_published_ones(path):
    values = load(path).values
    for key in ("network_g", "network_S1", "network_d"):
        options = values.get(key)
        if options is None:
            continue
        with torch.device("meta"):
            network = build_network(dict(options))
        if key != "network_d":
            row = _PARAMETERS[options.get("task", "sr"), values["scale"], options["num_blocks"][-1]]
            assert sum(one.numel() for one in network.parameters()) == row[options["type"] == "DiffIRS2"]


def furnish(values):
    """Everything that a file names, at the paths it names: an image, a list of it, empty weights."""
    for key, weights in values["path"].items():
        if key.startswith("pretrain_network") and weights:
            Path(weights).parent.mkdir(parents=True, exist_ok=True)
            Path(weights).touch()
    for dataset in values["datasets"].values():
        scale = 1 if dataset["type"] == "DeblurPairedDataset" else values["scale"]
        for root, side in (("dataroot_gt", 512), ("dataroot_lq", 512 // scale)):
            if dataset.get(root):
                Path(dataset[root]).mkdir(parents=True, exist_ok=True)
                (Path(dataset[root]) / "one.png").write_bytes(encode_png(photo(side, side, top=0, left=0)))
        if dataset.get("meta_info"):
            Path(dataset["meta_info"]).parent.mkdir(parents=True, exist_ok=True)
            Path(dataset["meta_info"]).write_text("one.png\n")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_but_the_data_is_missing_to_run(path):
    furnish(load(path).values)
    values = load(path, check_files=True).values
    for phase, dataset in values["datasets"].items():
        built = build_dataset({"phase": phase.split("_")[0], "scale": values["scale"], **dataset})
        assert built[0]["gt" if dataset["type"] == "RealESRGANDataset" else "lq"].shape[0] == 3


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("DiffIRS1-celebahq", "train_celebahqS1"),
        ("DiffIRS2-place2", "train_place256S2"),
        ("DiffIRbigdataS1-place2", "train_place256_bigLdataS1"),
    ],
)
def test_a_hydra_configuration_is_refused_with_the_file_that_takes_its_place(name, recipe, capsys):
    path = PUBLISHED / "inpaint" / f"{name}.yaml"
    with pytest.raises(OptionError) as refused:
        load(path)
    told = str(refused.value)
    assert f"{path}: a Hydra configuration of the published inpainting project" in told
    assert f"basicsr train -opt options/inpaint/{recipe}.yml" in told
    assert (FOLDER / "inpaint" / f"{recipe}.yml").is_file()
    assert told.endswith("What this file sets otherwise: nothing")
    assert main(["options", "check", str(path)]) == 1
    assert "a Hydra configuration" in capsys.readouterr().out


def test_values_of_a_hydra_configuration_that_differ_are_told_under_our_names():
    values = yaml.safe_load((PUBLISHED / "inpaint" / "DiffIRS2-place2.yaml").read_text())
    values["losses"]["l1"]["weight_missing"] = 1
    values["generator"]["timesteps"] = 8
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(OptionError) as refused:
        load(Path("mine.yaml"))
    assert str(refused.value).endswith(
        "otherwise:\n  losses.l1.weight_missing is 1; train.pixel_opt.weight_missing is 0.0"
        "\n  generator.timesteps is 8; network_g.timesteps is 4"
    )


def test_an_option_file_with_a_section_of_such_a_name_is_none():
    Path("mine.yml").write_text("model_type: DiffIRS1Model\ngenerator: {}\nlosses: {}\ntraining_model: {}\n")
    with pytest.raises(OptionError, match="unknown option"):
        load(Path("mine.yml"))
