"""Each repair of BasicSR does what it is for, and its reason still stands."""

import logging
import os

import cv2
import numpy as np
import pytest
import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import Registry

from diffir_sr import compat, errors
from diffir_sr.compat import vgg_features_from
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.files import atomic
from diffir_sr.training import states


def test_every_patch_states_reason_condition_and_end():
    assert compat.BEFORE
    for patch in (*compat.BEFORE, *compat.AFTER):
        assert len(patch.reason) > 30
        assert patch.condition
        assert len(patch.until) > 20


def test_the_module_that_basicsr_imports_from_torchvision_is_there():
    from torchvision.transforms.functional_tensor import rgb_to_grayscale

    grey = rgb_to_grayscale(torch.ones(1, 3, 2, 2))
    assert grey.shape == (1, 1, 2, 2)


def test_distutils_is_there_on_every_python():
    import distutils.version

    assert distutils.version.LooseVersion("1.4.2") < distutils.version.LooseVersion("1.10")


def state_file(folder, iteration, **entries):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{iteration}.state"
    torch.save({"iter": iteration, "epoch": 0, "optimizers": [], "schedulers": [], **entries}, path)
    torch.save({"params": {"weight": torch.ones(1)}}, folder / f"net_g_{iteration}.pth")
    return path


def options(folder, **path):
    base = dict(models=str(folder), training_states=str(folder), resume_state=None, param_key_g="params_ema")
    return dict(name="run", auto_resume=False, path=base | path, network_g={}, network_S1={})


def test_training_resumes_without_cuda(tmp_path):
    opt = options(tmp_path, resume_state=str(state_file(tmp_path, 12)))
    assert states.find_state(opt).iteration == 12
    assert opt["path"]["pretrain_network_g"].endswith("net_g_12.pth")


def test_resuming_takes_the_newest_state_and_keeps_the_teachers_weights(tmp_path):
    for iteration in (8, 100, 20):
        state_file(tmp_path, iteration)
    teacher = dict(param_key_S1="params_ema", pretrain_network_S1="s1.pth", ignore_resume_networks=["network_S1"])
    opt = options(tmp_path, **teacher) | dict(auto_resume=True)
    assert states.find_state(opt).iteration == 100
    assert opt["path"]["param_key_g"] == "params"  # BasicSR's own rule for the trained network
    assert opt["path"]["param_key_S1"] == "params_ema"
    assert opt["path"]["pretrain_network_S1"] == "s1.pth"


def test_resuming_keeps_the_weights_of_every_frozen_helper(tmp_path):
    state_file(tmp_path, 8)
    helper = dict(
        param_key_judge="params_ema", pretrain_network_judge="j.pth", ignore_resume_networks=["network_judge"]
    )
    opt = options(tmp_path, **helper) | dict(auto_resume=True, network_judge={})
    assert states.find_state(opt).iteration == 8
    assert opt["path"]["param_key_judge"] == "params_ema"
    assert opt["path"]["pretrain_network_judge"] == "j.pth"


def test_without_a_state_there_is_nothing_to_resume(tmp_path):
    assert states.find_state(options(tmp_path) | dict(auto_resume=True)) is None
    assert states.find_state(options(tmp_path)) is None


def test_a_missing_or_damaged_state_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file: .*absent\.state"):
        states.find_state(options(tmp_path, resume_state=str(tmp_path / "absent.state")))
    path = tmp_path / "9.state"
    path.write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match=r"9\.state: not a readable training state \(unknown format"):
        states.find_state(options(tmp_path, resume_state=str(path)))


class Saver(BaseModel):
    def __init__(self, folder):
        super().__init__(
            dict(
                num_gpu=0,
                is_train=True,
                dist=False,
                path=dict(models=str(folder), training_states=str(folder)),
            )
        )


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(atomic.time, "sleep", lambda _: None)


def test_a_checkpoint_that_cannot_be_saved_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, impatient):
    def full(thing, file):
        file.write(b"half")
        raise OSError("No space left on device")

    net = torch.nn.Linear(1, 1)
    Saver(tmp_path).save_network(net, "net_g", 1)
    before = (tmp_path / "net_g_1.pth").read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(errors.SaveFailed, match=r"net_g_1\.pth: No space left"):
        Saver(tmp_path).save_network(net, "net_g", 1)
    with pytest.raises(errors.SaveFailed, match=r"1\.state"):
        Saver(tmp_path).save_training_state(0, 1)
    assert os.listdir(tmp_path) == ["net_g_1.pth"]
    assert (tmp_path / "net_g_1.pth").read_bytes() == before


def test_a_save_that_works_at_the_second_try_is_no_failure(tmp_path, monkeypatch, impatient, caplog):
    real, calls = torch.save, []

    def flaky(thing, path):
        calls.append(path)
        if len(calls) == 1:
            raise OSError("busy")
        real(thing, path)

    monkeypatch.setattr(torch, "save", flaky)
    with caplog.at_level(logging.WARNING):
        Saver(tmp_path).save_training_state(0, 3)
    assert torch.load(tmp_path / "3.state", weights_only=True)["iter"] == 3
    assert len(calls) == 2


def test_the_registry_names_choices_origins_and_clashes(capsys):
    registry = Registry("arch")
    registry._do_register("EDSR", dict)
    registry._do_register("SRVGG", list, "basicsr")
    with pytest.raises(KeyError) as missing:
        registry.get("EDSQ")
    for part in ("no arch is named 'EDSQ'", "did you mean 'EDSR'", "SRVGG_basicsr (builtins)", "plugin"):
        assert part in str(missing.value)
    assert registry.get("SRVGG") is list
    assert capsys.readouterr().out == ""
    with pytest.raises(compat.NameClashError, match="two archs are called 'EDSR': one of builtins, one of collections"):
        registry._do_register("EDSR", __import__("collections").OrderedDict)


def test_basicsrs_dataset_names_a_damaged_file(tmp_path):
    from basicsr.data import build_dataset

    for folder in ("lq", "gt"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"not a picture")
    opt = dict(type="PairedImageDataset", name="x", phase="val", scale=4, io_backend=dict(type="disk"))
    dataset = build_dataset(opt | dict(dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq")))
    with pytest.raises(InputError, match=r"a\.png.*damaged"):
        dataset[0]


def test_a_fault_in_somebodys_transform_is_not_called_a_damaged_image(tmp_path, monkeypatch):
    from basicsr.data import build_dataset, paired_image_dataset

    for folder in ("lq", "gt"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((8, 8, 3), np.uint8))
    opt = dict(type="PairedImageDataset", name="x", phase="val", scale=1, io_backend=dict(type="disk"))
    dataset = build_dataset(opt | dict(dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq")))
    monkeypatch.setattr(paired_image_dataset, "img2tensor", lambda *_, **__: None.nothing)
    with pytest.raises(AttributeError, match="nothing"):
        dataset[0]


def test_lmdbs_of_basicsr_are_read_only(tmp_path):
    from basicsr.utils.file_client import LmdbBackend

    with pytest.raises(errors.OptionError, match="opened read-only and shared, which excludes .*'readonly': False"):
        LmdbBackend(str(tmp_path), readonly=False)


def test_a_promised_name_is_imported_on_first_use_and_clashes_with_others():
    registry = Registry("arch")
    compat.promise(registry, "collections:OrderedDict")
    compat.promise(registry, "collections:OrderedDict")
    assert "OrderedDict" in registry
    assert list(registry.keys()) == ["OrderedDict"]
    with pytest.raises(compat.NameClashError, match="one of collections, one of other"):
        compat.promise(registry, "other:OrderedDict")
    with pytest.raises(compat.NameClashError, match="one of collections, one of builtins"):
        registry._do_register("OrderedDict", dict)
    assert registry.get("OrderedDict") is __import__("collections").OrderedDict
    assert dict(iter(registry)) == {"OrderedDict": __import__("collections").OrderedDict}


def test_the_vgg_of_the_perceptual_loss_can_be_exchanged():
    from basicsr.archs import vgg_arch
    from torchvision.models import vgg11

    class Small:
        features = vgg11(weights=None, init_weights=False).features

    asked = []

    def build(kind):
        asked.append(kind)
        return Small

    before = vgg_arch.vgg, vgg_arch.VGG_PRETRAIN_PATH
    with vgg_features_from(build):
        extractor = vgg_arch.VGGFeatureExtractor(["conv1_1"], vgg_type="vgg11")
    assert asked == ["vgg11"]
    assert (vgg_arch.vgg, vgg_arch.VGG_PRETRAIN_PATH) == before
    assert extractor(torch.rand(1, 3, 8, 8))["conv1_1"].shape == (1, 64, 8, 8)
