"""The nodes for ComfyUI, loaded against a stub of the parts of its interface that they use."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import photo, write_network

from diffir_sr import load_restorer
from diffir_sr.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1] / "integrations/comfyui/__init__.py"


class InterruptedStubError(Exception):
    pass


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """The node package, and the state of the stub."""
    state = SimpleNamespace(folders={}, done=[], interrupted=False)

    def full_path(folder, name):
        path = Path(state.folders[folder]) / name
        return str(path) if path.is_file() else None

    class ProgressBar:
        def __init__(self, total):
            self.total = total

        def update(self, value):
            state.done.append((value, self.total))

    def check():
        if state.interrupted:
            raise InterruptedStubError

    parts = {
        "folder_paths": dict(
            models_dir=str(tmp_path / "models"),
            add_model_folder_path=state.folders.__setitem__,
            get_filename_list=lambda folder: sorted(path.name for path in Path(state.folders[folder]).glob("*")),
            get_full_path=full_path,
        ),
        "comfy": {},
        "comfy.utils": dict(ProgressBar=ProgressBar),
        "comfy.model_management": dict(
            get_torch_device=lambda: torch.device("cpu"), throw_exception_if_processing_interrupted=check
        ),
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("utils", "model_management"):
        setattr(sys.modules["comfy"], name, sys.modules[f"comfy.{name}"])
    (tmp_path / "models/diffir").mkdir(parents=True)
    spec = importlib.util.spec_from_file_location("diffir_comfyui", PACKAGE)
    state.nodes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(state.nodes)
    return state


def loaded(comfy, **arguments):
    write_network("models/diffir/net.pth", **arguments)
    return comfy.nodes.DiffIRLoad().load("net.pth")[0]


def test_every_node_keeps_the_contract(comfy):
    assert comfy.nodes.NODE_CLASS_MAPPINGS.keys() == comfy.nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in comfy.nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node(), node.FUNCTION))
        assert isinstance(node.RETURN_TYPES, tuple)
        assert isinstance(node.CATEGORY, str)
        assert {"required"} <= node.INPUT_TYPES().keys() <= {"required", "optional", "hidden"}


def test_named_models_and_files_of_the_models_folder(comfy):
    loaded(comfy)
    names, _ = comfy.nodes.DiffIRLoad.INPUT_TYPES()["required"]["model"]
    assert {"sr_x4", "net.pth"} <= set(names)
    assert comfy.nodes.DiffIRLoad().load("sr_x4")[0].scale == 4


def test_a_batch_is_restored_as_the_restorer_does(comfy):
    restorer = loaded(comfy)
    images = np.stack([photo(left=180), photo(left=200)]).astype(np.float32) / 255
    given = torch.from_numpy(images)
    (made,) = comfy.nodes.DiffIRRestore().restore(restorer, given, seed=4)
    assert made.shape == (2, 80, 68, 3)
    assert made.dtype == torch.float32
    expected = load_restorer("models/diffir/net.pth", seed=4)
    assert all(np.array_equal(made[index].numpy(), expected(images[index])) for index in range(2))
    assert comfy.done == [(1, 2), (1, 2)]
    beyond = given.clone()
    beyond[0, 0, 0] = 1.2
    assert comfy.nodes.DiffIRRestore().restore(restorer, beyond, seed=4)[0].isfinite().all()


def test_only_masked_pixels_are_inpainted_with_one_mask_or_one_per_image(comfy):
    restorer = loaded(comfy, task="inpaint")
    images = torch.from_numpy(np.stack([photo(), photo(left=200)]).astype(np.float32) / 255)
    mask = torch.zeros(2, 20, 17)
    mask[0, 4:9, 3:8] = 1
    mask[1, 10:15] = 1
    node = comfy.nodes.DiffIRRestore()
    (made,) = node.restore(restorer, images, 0, mask)
    changed = (made != images).any(dim=3)
    assert changed.any(dim=(1, 2)).all()
    assert not changed[mask == 0].any()
    assert torch.equal(node.restore(restorer, images, 0, mask[:1])[0][0], made[0])
    with pytest.raises(InputError, match="2 images and 3 masks"):
        node.restore(restorer, images, 0, torch.zeros(3, 20, 17))
    with pytest.raises(InputError, match="give a mask"):
        node.restore(restorer, images, 0)
    with pytest.raises(InputError, match="64x64, expected 20x17"):
        node.restore(restorer, images, 0, torch.ones(1, 64, 64))


def test_the_stop_button_stops_before_the_next_image(comfy):
    restorer = loaded(comfy)
    comfy.interrupted = True
    with pytest.raises(InterruptedStubError):
        comfy.nodes.DiffIRRestore().restore(restorer, torch.zeros(1, 8, 8, 3), 0)
    assert comfy.done == []
