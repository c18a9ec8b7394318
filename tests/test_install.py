"""What is built is complete, and works where there is nothing but what was installed."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from diffir_sr.options.recipes import recipe_names, recipes_folder
from diffir_sr.version import __version__

CHECKOUT = Path(__file__).resolve().parent.parent
IN_THE_ARCHIVE = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile")
FOLDERS = ("diffir_sr", "options", "scripts", "examples", "integrations", "tests")
SOURCES = sorted((CHECKOUT / "diffir_sr").rglob("*.py"))
WEIGHTS = sorted((CHECKOUT / "diffir_sr/weights").glob("*.safetensors"))
RECIPES = {path.relative_to(CHECKOUT / "options").as_posix() for path in (CHECKOUT / "options").rglob("*.yml")}
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
# Packages that are not called as what is imported from them.
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python", "skimage": "scikit-image", "yaml": "pyyaml"}
PACKAGES |= {"pillow_heif": "pillow-heif"}
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source archive: what one of the two lacks, the wheel lacks."""
    # Copied, because building writes beside setup.py, and old files there would find their way into the wheel.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in IN_THE_ARCHIVE:
        shutil.copy(CHECKOUT / name, source)
    for name in FOLDERS:
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    finish(start([sys.executable, "-c", SDIST, out], cwd=source))
    (archive,) = out.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", out, archive]
    finish(start(pip, cwd=out))
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    """The scripts folder of a new environment that has the wheel, and the packages that it needs from here."""
    folder = tmp_path_factory.mktemp("environment")
    scripts = folder / "bin"
    finish(start([sys.executable, "-m", "venv", "--without-pip", folder], cwd=folder))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-qq", "--no-deps", wheel]
    finish(start(pip, cwd=folder))
    own = Path(finish(start([scripts / "python", "-c", SITE], cwd=folder)).strip())
    # A .pth file adds folders behind the environment's own, and starts nothing in them: no editable installation.
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Except setuptools' own start-up line: it brings back distutils, which basicsr imports and Python 3.12 dropped.
    distutils = [file.read_text() for path in here for file in Path(path).glob("distutils-precedence.pth")]
    (own / "from_elsewhere.pth").write_text("\n".join([*here, *distutils]))
    return scripts


def start(command, *, cwd):
    """A process that finds nothing through the variables of this one."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.Popen(
        command, cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}


def metadata(wheel):
    return Parser().parsestr(contents(wheel)[f"diffir_sr-{__version__}.dist-info/METADATA"])


def test_the_wheel_has_every_module_and_option_file_and_nothing_else(wheel):
    files = set(contents(wheel))

    package = {name for name in files if name.startswith("diffir_sr/")}
    modules = {path.relative_to(CHECKOUT).as_posix() for path in SOURCES}
    data = {"diffir_sr/py.typed"} | {f"diffir_sr/recipes/{name}" for name in RECIPES}
    weights = {f"diffir_sr/weights/{path.name}" for path in (*WEIGHTS, Path("registry.yml"))}
    weights |= {f"diffir_sr/{name}" for name in ("evaluation/paper_tables.yml", "training/report.html")}
    weights.add("diffir_sr/training/report.js")
    assert package == modules | data | weights
    assert any("/" in name for name in RECIPES)  # sub-folders, too
    assert {name.split("/")[0] for name in files - package} == {f"diffir_sr-{__version__}.dist-info"}


def test_the_wheel_says_what_it_is(wheel):
    fields = metadata(wheel)

    assert fields["Name"].replace("-", "_") == "diffir_sr"
    assert fields["Version"] == __version__
    assert "Apache-2.0" in (fields["License-Expression"] or fields["License"])
    assert fields["Requires-Python"] == ">=3.10"
    commands = contents(wheel)[f"diffir_sr-{__version__}.dist-info/entry_points.txt"]
    assert "basicsr = diffir_sr.cli:basicsr_main" in commands
    assert "diffir = diffir_sr.cli:main" in commands


def test_every_package_that_is_imported_is_required(wheel):
    needs = [Requirement(text) for text in metadata(wheel).get_all("Requires-Dist")]
    extras = [{"extra": name} for name in ("quickstart", "metrics", "peers", "video", "heif", "ray")]
    declared = {need.name.lower() for need in needs if not need.marker or any(map(need.marker.evaluate, extras))}
    imported = {PACKAGES.get(module, module) for module in imports()}

    assert {"torch", "basicsr", "opencv-python"} <= imported
    assert imported - declared == {"pydantic_core"}  # a part of pydantic, which pins it


def imports():
    """The first names of the modules from elsewhere that the package imports anywhere."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"diffir_sr"}


def test_all_commands_start_outside_the_checkout(environment, tmp_path):
    where = "from importlib.util import find_spec; print(find_spec('diffir_sr').origin)"
    started = [  # side by side: most of their time is importing torch
        start([environment / "basicsr", "--help"], cwd=tmp_path),
        start([environment / "diffir", "options", "list"], cwd=tmp_path),
        start([environment / "python", "-m", "diffir_sr", "--help"], cwd=tmp_path),
        start([environment / "python", "-c", where], cwd=tmp_path),
    ]

    basicsr, recipes, module, place = map(finish, started)

    assert "train | test" in basicsr
    runnable = recipe_names(recipes_folder())  # parts that others build on are not listed
    assert all(name in recipes.split() for name in runnable)
    assert "quickstart" in module
    assert Path(place.strip()).is_relative_to(environment.parent)


def test_the_installed_package_trains_outside_the_checkout(environment, tmp_path):
    write_pairs(tmp_path)
    options = yaml.safe_load((CHECKOUT / "options/train_DiffIRS1_x4.yml").read_text())
    options["datasets"] = {"train": {**options["datasets"]["train"], **TINY_DATA}}
    options["network_g"] |= TINY_NETWORK
    options["train"] |= {"total_iter": 2}
    options |= {"name": "tiny", "num_gpu": 0, "val": None, "logger": {"print_freq": 1, "save_checkpoint_freq": 2}}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(options))

    finish(start([environment / "basicsr", "train", "-opt", "tiny.yml"], cwd=tmp_path))

    assert (tmp_path / "experiments/tiny/models/net_g_2.pth").is_file()
    assert (tmp_path / "experiments/tiny/training_states/2.state").is_file()


TINY_NETWORK = {
    "dim": 8,
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
    "heads": [1, 1, 1, 1],
    "n_encoder_res": 1,
}
TINY_DATA = {
    "dataroot_gt": "HR",
    "dataroot_lq": "LR",
    "gt_size": 64,
    "batch_size_per_gpu": 1,
    "num_worker_per_gpu": 0,
}


def write_pairs(folder):
    rng = np.random.default_rng(0)
    for name, side in (("HR", 64), ("LR", 16)):
        (folder / name).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
