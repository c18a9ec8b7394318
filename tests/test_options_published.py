"""Published option files of real-world super-resolution and deblurring, and what inpainting has in their place."""

from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from options_cases import line_of
from test_options_tasks import check_size
from toy import NETWORK, write_pairs

from diffir_sr.cli import basicsr_main
from diffir_sr.errors import OptionError
from diffir_sr.files.images import decode
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.options.schema import LoggerOptions
from diffir_sr.options.source import read_source

FOLDER = Path(__file__).parent / "data" / "published"
FILES = sorted(FOLDER.glob("*/*.yml"))
PADS = {1: 32, 2: 16, 4: 8}
RIGHT = "has no effect: padding is a property of the network (this one pads to multiples of {})"
WRONG = "corrected from {} to {}: padding is a property of the network, which always pads to multiples of {}"
NO_WARM_UP = (
    "has no effect (also gamma_encoder, lr_decay_encoder): the GAN stage learns all parts from its start; there, "
    "encoder_iter above 0 says only that lr_sr, gamma_sr and lr_decay_sr rule the learning rate of network_g"
)
DEBLUR = "{} set to 'deblur', because a dataset is a DeblurPairedDataset and no scale is given"
BOTH = "network_g.task and network_S1.task"


def name_of(path):
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def load(path):
    return load_options(path, is_train=not path.name.startswith("test"), check_files=False)


def expected_lines(path):
    """(key, text) of all that is said about a published file."""
    if path.parent.name == "deblur":
        return {
            "train_DiffIRS1": {("network_g", DEBLUR.format("network_g.task"))},
            "train_DiffIRS2": {("network_g", DEBLUR.format(BOTH)), ("val.window_size", RIGHT.format(8))},
            "test_DiffIRS2": {
                ("network_g", DEBLUR.format(BOTH)),
                ("scale", "corrected from 4 to 1: deblurring does not change the size"),
            },
        }[path.stem]
    pads = PADS[int(path.stem.split("_x")[1][0])]
    lines = {("val.window_size", RIGHT.format(pads))}
    if path.stem == "train_DiffIRS2_x1":
        lines = {("val.window_size", WRONG.format(16, 32, 32))}
    if "GAN" in path.stem and not path.stem.startswith("test"):
        lines.add(("train.lr_encoder", NO_WARM_UP))
    if path.stem == "finetune_DiffIRS2_GAN_x4_V2":
        lines.add(("name", "contains x2, but the scale is 4: results would mix with those of x2; rename it"))
    return lines


def test_all_published_files_are_here():
    stages = [
        f"{stage}_x{scale}{version}"
        for scale in (1, 2, 4)
        for stage, version in (
            *(("train_DiffIRS1", ""), ("train_DiffIRS2", ""), ("train_DiffIRS2_GAN", ""), ("test_DiffIRS2_GAN", "")),
            *(("train_DiffIRS2_GAN", "_V2"), ("finetune_DiffIRS2_GAN", "_V2")),
        )
    ]
    deblurring = ["train_DiffIRS1", "train_DiffIRS2", "test_DiffIRS2"]
    expected = {*(f"realsr/{name}" for name in stages), *(f"deblur/{name}" for name in deblurring)}
    assert {name_of(path) for path in FILES} == expected


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_published_files_load_and_every_correction_is_reported_where_it_stands(path):
    loaded = load(path)
    output = set()
    for warning in loaded.warnings:
        place, key, text = warning.split(": ", 2)
        assert int(place.removeprefix(f"{path}:")) == line_of(f"{key.split('.')[-1]}:", file=str(path))
        output.add((key, text))
    assert output == expected_lines(path)
    assert len(loaded.warnings) == len(output)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_published_files_build_the_published_networks(path):
    values = load(path).values
    for section in ("network_g", "network_S1"):
        if section in values:
            check_size(values[section])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_what_is_wrong_is_changed(path):
    written, values = read_source(path).values, load(path).values
    scale = 1 if path.parent.name == "deblur" else written["scale"]
    assert values["scale"] == scale
    if "window_size" in written["val"]:
        assert values["val"]["window_size"] == (8 if path.parent.name == "deblur" else PADS[scale])
    task = {"task": "deblur"} if path.parent.name == "deblur" else {}
    for section in ("network_g", "network_S1"):
        assert values.get(section) == (written[section] | task if section in written else None)
    if "logger" in written:
        assert values["logger"] == LoggerOptions.of(None).model_dump() | written["logger"]
    settled = {"scale", "val", "network_g", "network_S1", "path", "logger"}
    # What BasicSR reads unasked (a metric's direction, a section's default) may be added, nothing may be lost.
    assert {key: values[key] for key in written if key not in settled} == {
        key: value for key, value in written.items() if key not in settled
    }
    ignored = {"ignore_resume_networks"}
    assert {key: values["path"][key] for key in written["path"] if key not in ignored} == {
        key: value for key, value in written["path"].items() if key not in ignored
    }


TRAININGS = [path for path in FILES if not path.name.startswith("test")]


@pytest.mark.parametrize("path", TRAININGS, ids=name_of)
def test_our_recipes_are_the_published_trainings(path):
    published, ours = load(path).values, load(recipes_folder() / path.relative_to(FOLDER)).values
    theirs, mine = (
        {key: value for key, value in one["train"].items() if value is not None} for one in (published, ours)
    )
    if "network_d" in ours:  # the recipe leaves out what has no effect
        theirs = {key: value for key, value in theirs.items() if key not in ("lr_encoder", "gamma_encoder")}
        del theirs["lr_decay_encoder"]
    if path.stem in ("train_DiffIRS1_x1", "train_DiffIRS1_x2"):
        assert (theirs.pop("ema_decay"), mine.pop("ema_decay")) == (0, 0.999)
    assert mine == theirs
    shapes = {"scale", "inp_channels", "out_channels"}
    for section in ("network_g", "network_S1", "network_d"):
        network = {key: value for key, value in (published.get(section) or {}).items() if key not in shapes}
        assert {key: value for key, value in (ours.get(section) or {}).items() if key not in shapes} == network
    for key in ("l1_gt_usm", "percep_gt_usm", "gan_gt_usm", "gt_size", "jpeg_range2", "resize_prob", "noise_range"):
        assert ours.get(key) == published.get(key)
    for key in ("gt_sizes", "mini_batch_sizes", "iters", "batch_size_per_gpu", "kernel_prob2", "blur_sigma2"):
        assert ours["datasets"]["train"].get(key) == published["datasets"]["train"].get(key)


def test_a_discriminator_that_stage_2_never_writes_is_not_looked_for_there():
    with pytest.raises(OptionError) as caught:
        load_options(FOLDER / "realsr" / "finetune_DiffIRS2_GAN_x4_V2.yml")
    (line,) = [line for line in str(caught.value).splitlines() if "path.pretrain_network_d" in line]
    assert "the GAN stage makes it" in line
    assert "train_DiffIRS2_x4.yml" not in line


def test_the_published_deblurring_test_restores_at_the_size_of_its_images():
    path = FOLDER / "deblur" / "test_DiffIRS2.yml"
    write_pairs("data", scale=1, size=48, count=1, lmdb=False)
    network = load(path).values["network_g"] | NETWORK
    torch.manual_seed(0)
    torch.save({"params_ema": build_network(network).state_dict()}, "net.pth")
    data = {"dataroot_gt": "data/gt", "dataroot_lq": "data/lq"}
    options = {"base": str(path), "num_gpu": 0, "network_g": NETWORK, "path": {"pretrain_network_g": "net.pth"}}
    options["datasets"] = {"val_1": data, "val_2": data}
    Path("small.yml").write_text(yaml.safe_dump(options))
    assert basicsr_main(["test", "-opt", "small.yml"]) == 0
    for dataset in ("GoPro", "HIDE"):
        (image,) = Path("results/test_Deblurring_DiffIRS2/visualization", dataset).glob("p0*.png")
        assert decode(image.read_bytes(), where=image.name).shape == (48, 48, 3)


def hydra(stage, *, location, by_default=False):
    """An inpainting configuration with the published keys."""
    values = {
        "training_model": {"kind": f"defaultS{stage}"},
        "losses": {
            "l1": {"weight_missing": 0, "weight_known": 10},
            "adversarial": {"kind": "r1", "weight": 10, "gp_coef": 0.001, "mask_as_fake_target": True},
            "feature_matching": {"weight": 100},
            "resnet_pl": {"weight": 30, "weights_path": "${env:TORCH_HOME}"},
        },
        "defaults": [{"location": location}, {"discriminator": "pix2pixhd_nlayer"}],
    }
    if by_default:
        values["defaults"].append({"generator": f"DiffIRS{stage}"})
        del values["training_model"]
    if stage == 2:
        values |= {"kd": {"loss_weight": 1.0, "temperature": 0.15}, "generatorS1_path": "S1.pth"}
    return values


def refusal_of(values, file="run.yaml"):
    Path(file).write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(OptionError) as caught:
        load_options(file)
    return str(caught.value)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("by_default", [False, True])
@pytest.mark.parametrize(
    ("location", "recipe"),
    [("celeba", "train_celebahqS"), ("place2", "train_place256S"), ("place2_big", "train_place256_bigLdataS")],
)
def test_an_inpainting_configuration_is_answered_with_its_recipe(stage, by_default, location, recipe):
    output = refusal_of(hydra(stage, location=location, by_default=by_default))
    instead = f"options/inpaint/{recipe}{stage}.yml"
    assert output.startswith("run.yaml: expected an option file with name, model_type, datasets and network_g, found ")
    assert "an inpainting configuration for hydra and Lightning (keys " in output
    assert output.endswith(f"its training is {instead}: basicsr train -opt {instead}")
    assert (recipes_folder().parent / instead).is_file()


def test_the_name_of_the_file_shows_where_its_keys_do_not():
    values = {key: value for key, value in hydra(1, location="elsewhere").items() if key != "defaults"}
    assert "train_place256_bigLdataS1.yml: basicsr" in refusal_of(values, "DiffIRbigdataS1-place2.yaml")


def test_a_configuration_that_shows_no_data_gets_all_recipes_of_its_stage():
    output = refusal_of(hydra(2, location="docker"))
    recipes = ", ".join(f"options/inpaint/train_{name}S2.yml" for name in ("celebahq", "place256_bigLdata", "place256"))
    assert output.endswith(f"one of {recipes}")


def test_a_configuration_that_predicts_is_answered_with_ours_for_own_images():
    output = refusal_of({"indir": "in", "outdir": "out", "model": {"path": "big", "checkpoint": "last.ckpt"}})
    assert output.endswith("use options/inpaint/test_mine.yml or diffir restore --mask")
    assert (recipes_folder() / "inpaint" / "test_mine.yml").is_file()


def test_stray_keys_of_an_option_file_are_reported():
    values = yaml.safe_load((FOLDER / "test_DiffIRS2_GAN_x4.yml").read_text()) | {"losses": {}, "kd": {}}
    Path("stray.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(OptionError, match="losses: unknown option"):
        load_options("stray.yml", is_train=False, check_files=False)
