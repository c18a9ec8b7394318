"""The example plugin, as its README says to use it: nothing here imports it, only the commands do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

CHECKOUT = Path(__file__).resolve().parent.parent
PLUGIN = CHECKOUT / "examples" / "plugin"
RECIPE = PLUGIN / "options" / "train_TinyResidualSR_x4.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the plugin installed in it, entry point and all."""
    source = shutil.copytree(PLUGIN, tmp_path_factory.mktemp("source") / "plugin")  # building writes beside setup.py
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder, source], check=True)
    return folder


@pytest.fixture
def recipe(tmp_path):
    """The plugin's own option file, three iterations long, and the pairs it asks for."""
    rng = np.random.default_rng(0)
    for folder, side in (("HR", 64), ("LR_x4", 16)):
        (tmp_path / "datasets/pairs" / folder).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "datasets/pairs" / folder / name)
    options = yaml.safe_load(RECIPE.read_text())
    options["datasets"]["train"] |= {"gt_size": 32, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0}
    options["train"]["total_iter"] = 3
    options["logger"] = {"print_freq": 1, "save_checkpoint_freq": 3}
    return options | {"num_gpu": 0}


def basicsr_train(options, *, folder, on_path=""):
    """Run `basicsr train` in `folder`, where the data is."""
    file = folder / "options.yml"
    file.write_text(yaml.safe_dump(options))
    search = os.pathsep.join([str(on_path), str(CHECKOUT)] if on_path else [str(CHECKOUT)])
    command = [sys.executable, "-m", "diffir_sr", "basicsr", "train", "-opt", str(file)]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, timeout=120
    )


def check_that_it_trained(done, folder):
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "experiments/train_TinyResidualSR_x4"
    weights = torch.load(run / "models/net_g_3.pth", weights_only=True)["params_ema"]
    assert weights["head.weight"].shape == (32, 3, 3, 3)
    (log,) = run.glob("train_*.log")
    losses = [float(loss) for loss in re.findall(r"l_pix: (\S+)", log.read_text())]
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)


def test_an_installed_plugin_trains_by_its_entry_point(site, recipe, tmp_path):
    done = basicsr_train(recipe, folder=tmp_path, on_path=site)

    check_that_it_trained(done, tmp_path)


def test_a_plugin_that_is_not_installed_trains_when_the_option_file_names_it(recipe, tmp_path):
    shutil.copytree(PLUGIN / "diffir_example_plugin", tmp_path / "diffir_example_plugin")

    done = basicsr_train(recipe | {"plugins": ["diffir_example_plugin"]}, folder=tmp_path)

    check_that_it_trained(done, tmp_path)


def test_a_misspelt_argument_of_a_plugin_is_answered_with_the_nearest_name(site, recipe, tmp_path):
    recipe["network_g"]["num_blok"] = recipe["network_g"].pop("num_block")

    done = basicsr_train(recipe, folder=tmp_path, on_path=site)

    assert done.returncode == 1
    assert "num_blok" in done.stderr
    assert "did you mean 'num_block'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "experiments").exists()


def test_two_archs_of_one_name_are_an_error_that_names_both_modules(site, recipe, tmp_path):
    (tmp_path / "my_networks.py").write_text(
        "from basicsr.utils.registry import ARCH_REGISTRY\n\n\n"
        "@ARCH_REGISTRY.register()\nclass TinyResidualSR:\n    pass\n"
    )

    done = basicsr_train(recipe | {"plugins": ["my_networks"]}, folder=tmp_path, on_path=site)

    assert done.returncode == 1
    assert "'TinyResidualSR'" in done.stderr
    assert "diffir_example_plugin.tiny_residual_arch" in done.stderr
    assert "of my_networks" in done.stderr
    assert "Traceback" not in done.stderr
