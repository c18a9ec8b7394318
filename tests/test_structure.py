"""The layers of the package, as listed in CONTRIBUTING.md."""

import ast
import hashlib
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
# The layers listed in CONTRIBUTING.md, from top to bottom: imports go down, or stay within a folder.
LAYERS = [
    line.split(":", 1)[0].replace("`", "").replace(",", " ").split()
    for line in (PACKAGE.parent / "CONTRIBUTING.md")
    .read_text()
    .partition("```layers\n")[2]
    .partition("```")[0]
    .splitlines()
]
LEVEL = {name: number for number, names in enumerate(reversed(LAYERS)) for name in names}
DOORS = {"__init__", "__main__"}  # they export what is above them


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "diffir_sr":
            yield from (f"diffir_sr.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
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
        if root == "diffir_sr" and rest and here not in DOORS:
            there = rest.split(".")[0]
            assert here == there or LEVEL[there] < LEVEL[here], f"{here} imports {module}, which is not below it"


def test_every_part_has_a_floor_and_every_floor_its_part():
    assert {part(path) for path in FILES} - DOORS == set(LEVEL)
    assert len(LEVEL) == sum(len(names) for names in LAYERS)


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


def test_shipped_models_are_those_that_the_registry_names():
    """Whoever ships another file writes its sha256 into weights/registry.yml: `sha256sum diffir_sr/weights/*`."""
    from diffir_sr.weights.registry import registry

    named = {entry.file: entry.sha256 for entry in registry().values() if entry.shipped}
    shipped = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (PACKAGE / "weights").glob("*.safetensors")
    }
    assert {name: named[name] or digest for name, digest in shipped.items()} == shipped
