"""Classes of plugins: signatures, annotations, OPTIONS; and plugins that cannot be imported."""

import sys
from pathlib import Path

import pytest
from basicsr.utils import registry
from options_cases import ABSENT, STAGE_1, STAGE_2, TEST, changed, line_of, load, refusal

PLUGIN = """
from __future__ import annotations
from typing import Literal, Optional
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import BaseModel, ConfigDict, Field
from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.models.diffir_models import DiffIRS2Model


@ARCH_REGISTRY.register()
class PluginNet:
    def __init__(self, width: int, *, kind: Literal["a", "b"] = "a", gain: float = 1.0, name: Optional[str] = None,
                 sizes: list[int] = (), strange: "NotDefinedAnywhere" = 1, plain=3) -> None: ...


@ARCH_REGISTRY.register()
class PluginOpenNet:
    def __init__(self, width, **kwargs): ...


@ARCH_REGISTRY.register()
class PluginS2(DiffIRS2): ...


@LOSS_REGISTRY.register()
class PluginLoss:
    def __init__(self, weight: float, power: int = 2) -> None: ...


@METRIC_REGISTRY.register()
def plugin_metric(img, img2, radius: int, **kwargs): ...


class Extra(BaseModel):
    model_config = ConfigDict(extra="forbid")
    blur: float = Field(gt=0)
    modes: list[str] = []


@DATASET_REGISTRY.register()
class PluginModelData:
    OPTIONS = Extra


@DATASET_REGISTRY.register()
class PluginNamesData:
    OPTIONS = ("blur", "folder")


@DATASET_REGISTRY.register()
class PluginFreeData: ...


@MODEL_REGISTRY.register()
class PluginModel:
    OPTIONS = ("warmth", "own_opt")


@MODEL_REGISTRY.register()
class PluginFreeModel: ...


@MODEL_REGISTRY.register()
class PluginS2Model(DiffIRS2Model):
    OPTIONS = ("warmth",)
"""
_REGISTRIES = ("ARCH", "DATASET", "LOSS", "METRIC", "MODEL")


@pytest.fixture
def plugin(monkeypatch):
    """A plugin in the current folder, forgotten afterwards."""
    for name in _REGISTRIES:
        known = getattr(registry, f"{name}_REGISTRY")
        monkeypatch.setattr(known, "_obj_map", dict(known._obj_map))
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("plugin_of_test.py").write_text(PLUGIN)
    yield {"plugins": ["plugin_of_test"]}
    sys.modules.pop("plugin_of_test", None)


def test_plugins_are_checked_by_their_signatures(plugin):
    net = {"type": "PluginNet", "width": 3, "kind": "b", "gain": "5e3", "name": None, "sizes": [1], "strange": {}}
    options = changed(STAGE_1, {**plugin, "model_type": "SRModel", "network_g": net})
    assert load(options).values["network_g"]["gain"] == 5000
    wrong = changed(options, {"network_g.kind": "c", "network_g.with": 1, "network_g.width": ABSENT})
    message = refusal(wrong)
    assert "network_g.kind: expected 'a' or 'b', found 'c' (text)" in message
    assert "network_g.with: unknown option; did you mean 'width'?" in message
    assert "network_g.width: missing: PluginNet needs it" in message


def test_arguments_without_annotation_are_not_judged(plugin):
    options = changed(STAGE_1, {**plugin, "model_type": "SRModel", "network_g": {"type": "PluginNet", "width": 3}})
    assert load(changed(options, {"network_g.plain": ["anything"]})).warnings == []


def test_a_network_that_takes_anything_gets_anything(plugin):
    net = {"type": "PluginOpenNet", "width": 3, "whatever": 1}
    assert load(changed(STAGE_1, {**plugin, "model_type": "SRModel", "network_g": net})).warnings == []


def test_networks_of_plugins_may_stand_where_their_relatives_do(plugin):
    assert load(changed(STAGE_2, {**plugin, "network_g.type": "PluginS2"})).values["network_g"]["type"] == "PluginS2"


def test_losses_are_checked_by_their_signatures(plugin):
    wrong = {"type": "PluginLoss", "powr": 2}
    message = refusal(changed(STAGE_1, {**plugin, "train.pixel_opt": wrong}))
    assert "train.pixel_opt.powr: unknown option; did you mean 'power'?" in message
    assert "train.pixel_opt.weight: missing: PluginLoss needs it" in message


def test_metrics_need_their_arguments_but_not_the_images(plugin):
    message = refusal(changed(STAGE_1, {"val.metrics": {"psnr": {"type": "calculate_psnr"}}}))
    assert message.endswith(": val.metrics.psnr.crop_border: missing: calculate_psnr needs it")
    assert "val.metrics.m.img: unknown option" in refusal(
        changed(STAGE_1, {**plugin, "val.metrics": {"m": {"type": "plugin_metric", "radius": 1, "img": 3}}})
    )


def test_metrics_of_plugins_are_checked(plugin):
    metric = {"type": "plugin_metric", "radius": "far"}
    assert "val.metrics.m.radius: expected a whole number" in refusal(
        changed(STAGE_1, {**plugin, "val.metrics": {"m": metric}})
    )


def test_datasets_with_a_model_of_options_are_checked_by_it(plugin):
    data = {"name": "d", "type": "PluginModelData", "blur": 2, "pin_memory": True}
    options = changed(STAGE_1, {**plugin, "datasets.val": data})
    assert load(options).warnings == []
    message = refusal(changed(options, {"datasets.val.blur": -1, "datasets.val.mode": [], "datasets.val.modes": [1]}))
    assert "datasets.val.blur: expected more than 0, found -1" in message
    assert "datasets.val.mode: unknown option; did you mean 'modes'?" in message
    assert "datasets.val.modes[0]: expected text, found 1" in message
    assert "datasets.val.blur: missing" in refusal(changed(options, {"datasets.val.blur": ABSENT}))


def test_datasets_with_names_of_options_are_checked_by_them(plugin):
    data = {"name": "d", "type": "PluginNamesData", "blur": "anything", "pin_memory": "maybe", "folders": "x"}
    message = refusal(changed(STAGE_1, {**plugin, "datasets.val": data}))
    assert "datasets.val.folders: unknown option; did you mean 'folder'?" in message
    assert "datasets.val.pin_memory: expected true or false, found 'maybe' (text)" in message


def test_datasets_that_declare_nothing_pass_with_a_warning(plugin):
    data = {"name": "d", "type": "PluginFreeData", "blur": 1, "folder": "x"}
    loaded = load(changed(STAGE_1, {**plugin, "datasets.val": data}))
    line = line_of("  val:")
    assert loaded.warnings == [
        f"run.yml:{line}: datasets.val: keys of dataset type PluginFreeData are not checked "
        "(the class declares no OPTIONS): blur, folder"
    ]
    assert loaded.values["datasets"]["val"]["folder"] == "x"


def test_models_of_plugins_are_checked_by_their_options(plugin):
    options = changed(STAGE_1, {**plugin, "model_type": "PluginModel", "train.warmth": 1})
    assert load(changed(options, {"train.own_opt": {"type": "L1Loss"}})).warnings == []
    assert "train.encoder_iter: unknown option" in refusal(changed(options, {"train.encoder_iter": 1}))
    assert "train.total_iter: missing" in refusal(changed(options, {"train.total_iter": ABSENT}))
    assert load(changed(options, {"train.scheduler": ABSENT, "train.optim_g": ABSENT})).warnings == []


def test_models_that_declare_nothing_pass_with_a_warning(plugin):
    options = changed(STAGE_1, {**plugin, "model_type": "PluginFreeModel", "train.warmth": 1, "val.flips": 3})
    output = [warning.split(": ", 1)[1] for warning in load(options).warnings]
    assert output == [
        "train: keys of model type PluginFreeModel are not checked (the class declares no OPTIONS): warmth",
        "val: keys of val of model type PluginFreeModel are not checked (the class declares no OPTIONS): flips",
    ]


def test_losses_and_optimizers_of_any_model_are_checked(plugin):
    extra = {"train.own_opt": {"type": "L1Los"}, "train.optim_e": {"type": "Adam", "rate": 1}}
    message = refusal(changed(STAGE_1, {**plugin, "model_type": "PluginModel", **extra}))
    assert "train.own_opt.type: no loss is named 'L1Los'" in message
    assert "train.optim_e.rate: unknown option" in message


def test_a_scheduler_of_a_foreign_model_passes_with_a_warning(plugin):
    options = changed(STAGE_1, {**plugin, "model_type": "PluginModel", "train.scheduler": {"type": "Own", "x": 1}})
    assert "train.scheduler: keys of scheduler 'Own' are not checked" in load(options).warnings[0]


def test_models_derived_from_ours_keep_our_options(plugin):
    options = changed(STAGE_2, {**plugin, "model_type": "PluginS2Model", "train.warmth": 1})
    assert load(changed(options, {"train.encoder_iter": 0})).warnings == []
    assert "train.encoder_itr: unknown option" in refusal(changed(options, {"train.encoder_itr": 0}))


def test_a_plugin_that_fails_is_named_with_its_error():
    Path("broken_plugin.py").write_text("raise RuntimeError('no licence')\n")
    message = refusal(changed(TEST, {"plugins": ["not_there_at_all", "broken_plugin"]}))
    line = line_of("- broken_plugin")
    assert f"run.yml:{line}: plugins[1]: plugin 'broken_plugin' cannot be imported: RuntimeError: no licence" in message
    assert f"run.yml:{line - 1}: plugins[0]: plugin 'not_there_at_all' cannot be imported: Mod" in message


def test_a_plugin_must_be_the_name_of_a_module():
    assert "plugins[0]: expected the name of a module (package.module), found 5" in refusal(
        changed(TEST, {"plugins": [5]})
    )


def test_a_plugin_of_a_base_file_is_imported_too(plugin):
    load(changed(STAGE_1, {**plugin, "model_type": "SRModel", "network_g": {"type": "PluginNet", "width": 1}}))
    Path("run.yml").rename("base.yml")
    assert load("base: base.yml\nnetwork_g: {width: 2}\n", is_train=True).values["network_g"]["width"] == 2
