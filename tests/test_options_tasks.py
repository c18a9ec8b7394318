"""The recipes of real-world super-resolution, deblurring and inpainting."""

import functools
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from diffir_sr.models.optimization import build_scheduler, step_decay_rate
from diffir_sr.options import load_options
from diffir_sr.options.recipes import recipes_folder

FOLDER = recipes_folder()
RECIPES = [path for task in ("realsr", "deblur", "inpaint", "bench") for path in sorted((FOLDER / task).glob("*.yml"))]
# Those without a name are parts that others build on.
RECIPES = [path for path in RECIPES if "\nname: " in path.read_text()]
_PARAMETERS = {  # counted from the published definitions: task, scale, blocks of the lowest level
    ("sr", 4, 1): (24_801_478, 24_971_206),
    ("sr", 2, 1): (24_811_846, 24_981_574),
    ("sr", 1, 1): (24_853_318, 25_023_046),
    ("deblur", 1, 6): (26_742_206, 26_911_934),
    ("inpaint", 1, 9): (26_232_746, 26_402_474),
    ("inpaint", 1, 20): (49_313_194, 49_482_922),
}


@functools.cache
def run_names():
    return {load(path).values["name"] for path in (*RECIPES, *FOLDER.glob("*.yml"))}


def load(path):
    path = FOLDER / path
    return load_options(path, is_train=not path.name.startswith("test"), check_files=False)


def name_of(path):
    return path.relative_to(FOLDER).as_posix()


def test_every_published_file_has_a_recipe():
    stages = [
        f"train_{stage}_x{scale}.yml" for scale in (1, 2, 4) for stage in ("DiffIRS1", "DiffIRS2", "DiffIRS2_GAN")
    ]
    stages += [f"{what}_DiffIRS2_GAN_x{scale}_V2.yml" for scale in (1, 2, 4) for what in ("train", "finetune")]
    stages += [f"test_DiffIRS2_GAN_x{scale}.yml" for scale in (1, 2, 4)]
    assert {path.name for path in RECIPES if path.parent.name == "realsr"} >= set(stages)
    deblurring = {"train_DiffIRS1.yml", "train_DiffIRS2.yml", "test_DiffIRS2.yml"}
    assert {path.name for path in RECIPES if path.parent.name == "deblur"} >= deblurring


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_load_without_a_word_and_say_what_they_are(path):
    loaded = load(path)
    assert loaded.warnings == []
    text = path.read_text()
    assert text.startswith("# ")
    assert f"-opt options/{name_of(path)}" in text
    assert f"{'results' if path.name.startswith('test') else 'experiments'}/{loaded.values['name']}" in text


def check_size(options):
    """Build a network without memory for its weights, and count these."""
    with torch.device("meta"):
        network = build_network(dict(options))
    count = sum(weight.numel() for weight in network.parameters())
    task = options.get("task", "sr")
    # The published super-resolution networks are told apart by scale, which other tasks do not have.
    scale = options.get("scale", 4) if task == "sr" else 1
    assert count == _PARAMETERS[task, scale, options["num_blocks"][-1]][options["type"] == "DiffIRS2"]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_build_the_published_networks(path):
    values = load(path).values
    for section in ("network_g", "network_S1"):
        if values.get(section):
            check_size(values[section])


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_weights_are_looked_for_where_another_recipe_writes_them(path):
    values = load(path).values
    for key, weights in values["path"].items():
        if key.startswith("pretrain_network") and weights:
            assert Path(weights).parts[0] == "experiments"
            assert Path(weights).parts[1] in run_names()


def test_only_the_flags_of_sharpening_tell_v2_from_v1():
    first, second = (load(f"realsr/train_DiffIRS2_GAN_x4{version}.yml").values for version in ("", "_V2"))
    differing = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert differing == {"name", "l1_gt_usm", "percep_gt_usm"}


def test_own_pairs_are_not_degraded():
    train = load("realsr/finetune_DiffIRS2_GAN_x4_pairs.yml").values["datasets"]["train"]
    assert train["type"] == "RealESRGANPairedDataset"


def rates(path, iterations):
    """The learning rates of the generator's optimizer that a recipe's training has at some iterations."""
    train = load(path).values["train"]
    weight = torch.nn.Parameter(torch.zeros(1))
    if train.get("encoder_iter"):
        gan = "gan_opt" in train
        first = 0 if gan else train["encoder_iter"]
        law, warm = (
            {"base": train[f"lr_{part}"], "gamma": train[f"gamma_{part}"], "every": train[f"lr_decay_{part}"]}
            for part in ("sr", "encoder")
        )
        return [
            step_decay_rate(**warm, iteration=i) if i < first else step_decay_rate(**law, iteration=i - first)
            for i in iterations
        ]
    optimizer = torch.optim.Adam([weight], lr=train["optim_g"]["lr"])
    optimizer.param_groups[0]["initial_lr"] = train["optim_g"]["lr"]
    scheduler, found = build_scheduler(optimizer, train["scheduler"]), {}
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            found[iteration] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    return [found[i] for i in iterations]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("realsr/train_DiffIRS2_x4.yml", {1: 2e-4, 59_999: 2e-4, 60_000: 2e-5, 100_000: 2e-4, 700_000: 1e-4}),
        ("realsr/train_DiffIRS2_GAN_x4.yml", {1: 1e-4, 299_999: 1e-4, 300_000: 5e-5}),
        (
            "deblur/train_DiffIRS2.yml",
            {1: 2e-4, 60_000: 2e-5, 100_000: 2e-4, 180_000: 1e-4, 260_000: 5e-5, 340_000: 2.5e-5},
        ),
        ("deblur/train_DiffIRS1.yml", {0: 2e-4, 46_000: 2.425e-4, 92_000: 2.85e-4, 92_001: 2e-4, 299_999: 1e-6}),
    ],
)
def test_learning_rates_follow_the_published_laws(path, expected):
    assert rates(path, list(expected)) == pytest.approx(list(expected.values()), rel=1e-3)


def test_deblurring_patches_grow_as_published():
    for path, ends in (("deblur/train_DiffIRS1.yml", 300_000), ("deblur/train_DiffIRS2.yml", 400_000)):
        values = load(path).values
        assert sum(values["datasets"]["train"]["iters"]) == ends == values["train"]["total_iter"]
