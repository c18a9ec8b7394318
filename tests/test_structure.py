"""The arrows between the parts of the package, as CONTRIBUTING.md draws them."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "diffir_sr"
FILES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT_BASICSR = {
    "compat",
    "registration",
    "checkpoints",
    "data",
    "models",
    "training",
    "options",
    "quickstart",
    "metrics",
    "evaluation",
}
ALLOWED = {
    "errors": {""},
    "archs": {"errors", "archs", "diffusion"},
    "diffusion": {"errors", "diffusion"},
    "losses": {"errors", "losses"},
    "metrics": {"errors", "losses", "metrics"},
    "evaluation": {"errors", "data", "metrics", "models", "evaluation"},
    "lmdb_reading": {"errors"},
    "cards": {"errors"},
    "families": {"errors", "archs", "diffusion", "families"},
    "checkpoints": {"errors", "cards", "families", "weights_files", "weights_tensors"},
    "weights_files": {"errors", "compat"},
    "weights_tensors": {"errors"},
    "data": {"errors", "data", "lmdb_reading"},
    "ablation": {"errors", "data", "options", "version", "ablation"},
    "prepare": {"errors", "data", "prepare", "options", "version"},
    "doctor": {"errors", "data", "lmdb_reading", "losses", "options", "plugins", "prepare", "version", "doctor"},
    "options": {"errors", "archs", "options", "plugins"},
    "compat": {"errors", "lmdb_reading"},
    "describe": {"errors", "checkpoints"},
    "inference": {"errors", "cards", "data", "archs", "diffusion", "checkpoints", "describe", "families", "inference"},
    "models": {
        *("errors", "data", "archs", "diffusion", "losses", "metrics", "checkpoints", "compat", "models", "training"),
        *("cards", "families", "inference", "version"),
    },
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_point_one_way(path):
    here = part(path)
    for module in imports(path):
        root, _, rest = module.partition(".")
        if root == "basicsr":
            assert here in MAY_IMPORT_BASICSR, module
        if root == "diffir_sr":
            there = rest.split(".")[0]
            assert there in ALLOWED.get(here, {there}), module
            assert there not in {"cli", "registration"} or here in {"__init__", "__main__", "cli"}, module


def test_networks_touch_no_device_and_no_wrapper():
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr != "module" or path.name == "plugins.py" or part(path) in {"compat", "options"}, path
                is_call_of_tensor = node.attr == "cuda" and not (
                    isinstance(node.value, ast.Name) and node.value.id == "torch"
                )
                assert not is_call_of_tensor, path
