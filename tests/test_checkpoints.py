"""Weights files: told apart, loaded exactly, refused in plain words."""

import errno
from pathlib import Path

import pytest
import torch
from golden_cases import PAPER, TINY, build_stages, load_case

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.checkpoints import Weights, fit, identify, identity_of, read_weights
from diffir_sr.errors import CheckpointError
from diffir_sr.weights_files import write_card_file

SMALL = dict(dim=8, num_blocks=[1, 2, 1, 1], num_refinement_blocks=1, n_encoder_res=2, LayerNorm_type="BiasFree")


def saved(net, name="net.pth", **entries):
    torch.save({"params": net.state_dict(), **entries}, name)
    return name


def load(net, name, **how):
    return fit(net, read_weights(name), where="path.pretrain_network_g", **({"strict": True} | how))


@pytest.mark.parametrize("name", TINY + PAPER)
def test_every_argument_is_read_back_from_the_weights(name):
    facts, _ = load_case(name)
    with torch.device("meta"):
        stages = build_stages(name, facts)
    for stage, kind, net in zip((1, 2), (DiffIRS1, DiffIRS2), stages, strict=True):
        tensors = {key: torch.empty_like(value, device="cpu") for key, value in net.state_dict().items()}
        if stage == 2:
            tensors["diffusion.betas"] = torch.tensor(facts["diffusion_buffers"]["betas"])
        found = identify(tensors)
        assert found.stage == stage
        with torch.device("meta"):
            again = kind(**found.arguments)
        shapes = {key: value.shape for key, value in again.state_dict().items()}
        assert shapes == {key: value.shape for key, value in tensors.items()}


def test_a_published_stage_2_file_with_tied_tensors_loads_strictly_and_saves_back():
    source, target = DiffIRS2(**SMALL), DiffIRS2(**SMALL)
    torch.save({"params_ema": source.state_dict()}, "published.pth")
    content = torch.load("published.pth", weights_only=True)["params_ema"]
    assert "diffusion.model.resmlp.0.weight" in content
    assert "denoise.resmlp.0.weight" in content
    target.load_state_dict(content, strict=True)
    again = target.state_dict()
    assert again.keys() == content.keys()
    assert all(torch.equal(again[key], content[key]) for key in content)
    assert "params_ema" in load(target, "published.pth")


def test_stage_2_takes_all_of_the_body_and_nothing_else_from_stage_1():
    s1, s2 = DiffIRS1(**SMALL), DiffIRS2(**SMALL)
    before = {name: value.clone() for name, value in s2.state_dict().items()}
    load(s2, saved(s1), from_stage_1=True)
    for name, value in s2.state_dict().items():
        source = s1.state_dict()[name] if name.startswith("G.") else before[name]
        assert torch.equal(value, source), name


def test_an_incomplete_body_is_an_error_that_names_what_did_not_match():
    s1, s2 = DiffIRS1(**SMALL), DiffIRS2(**SMALL)
    tensors = s1.state_dict()
    del tensors["G.tail.1.bias"]
    torch.save({"params": tensors}, "broken.pth")
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"1 missing in the file, such as G\.tail\.1\.bias"):
            load(s2, "broken.pth", strict=strict, from_stage_1=True)


def test_a_stage_2_file_in_the_stage_1_slot_is_refused_with_its_identity():
    name = saved(DiffIRS2(**SMALL), "mine.pth")
    with pytest.raises(CheckpointError) as refused:
        fit(DiffIRS1(**SMALL), read_weights(name), where="path.pretrain_network_S1", strict=True)
    for part in (
        "path.pretrain_network_S1",
        "mine.pth",
        "is DiffIR stage 2, sr x4, dim 8",
        "expected DiffIR stage 1",
    ):
        assert part in str(refused.value)


def test_a_stage_1_file_is_no_network_to_test_with():
    with pytest.raises(CheckpointError, match="is DiffIR stage 1"):
        load(DiffIRS2(**SMALL), saved(DiffIRS1(**SMALL)), strict=False)


def test_another_scale_or_size_is_refused_with_both():
    name = saved(DiffIRS2(scale=4, **SMALL))
    with pytest.raises(CheckpointError, match="sr x4.*options describe DiffIR stage 2, sr x2"):
        load(DiffIRS2(scale=2, **SMALL), name)
    with pytest.raises(CheckpointError, match=r"dim: 8 in the file, 16 in the options"):
        load(DiffIRS2(**(SMALL | dict(dim=16))), name)


@pytest.mark.parametrize("kind", [DiffIRS1, DiffIRS2])
def test_a_training_starts_from_another_scale_if_it_may_differ(kind):
    x4 = kind(scale=4, **SMALL)
    name = saved(x4, "x4.pth")
    for scale in (1, 2):
        net = kind(scale=scale, **SMALL)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        said = load(net, name, strict=False, starting=True)
        source, kept = x4.state_dict(), []
        for key, value in net.state_dict().items():
            if key in source and source[key].shape == value.shape:
                assert torch.equal(value, source[key]), key
            else:
                assert torch.equal(value, before[key]), key
                kept.append(key)
        assert "G.patch_embed.proj.weight" in kept
        assert not any(".latent." in key for key in kept)
        assert f"{len(kept)} keep their initial values" in said
    with pytest.raises(CheckpointError, match="start a training from another scale with path.strict_load_g: false"):
        load(kind(scale=2, **SMALL), name)
    with pytest.raises(CheckpointError, match="choose another file$"):
        load(kind(scale=2, **(SMALL | dict(dim=16))), name, strict=False, starting=True)
    with pytest.raises(CheckpointError, match="the options describe.*sr x2"):  # a test, or a training that goes on
        load(kind(scale=2, **SMALL), name, strict=False)


def test_a_foreign_file_is_refused_even_when_loading_is_not_strict():
    torch.save({"params": {"conv_first.weight": torch.zeros(1)}}, "esrgan.pth")
    with pytest.raises(CheckpointError, match="not a DiffIR checkpoint.*conv_first.weight"):
        load(DiffIRS2(**SMALL), "esrgan.pth", strict=False)


def test_missing_damaged_and_hostile_files_are_named():
    with pytest.raises(CheckpointError, match="no such weights file.*absent.pth"):
        read_weights("absent.pth")
    whole = saved(DiffIRS1(**SMALL), "whole.pth")
    data = Path(whole).read_bytes()
    Path("cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cut.pth: not a readable"):
        read_weights("cut.pth")
    torch.save({"params": print}, "code.pth")
    with pytest.raises(CheckpointError, match="code.pth"):
        read_weights("code.pth")
    torch.save({"iter": 3}, "state.pth")
    with pytest.raises(CheckpointError, match="expected params_ema or params, found the entries iter"):
        read_weights("state.pth")


def test_bare_and_wrapped_state_dicts_are_read_too():
    net = DiffIRS1(**SMALL)
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, "bare.pth")
    weights = read_weights("bare.pth")
    assert weights.key is None
    assert weights.tensors.keys() == net.state_dict().keys()


def test_the_average_is_preferred_and_the_raw_weights_are_the_fallback():
    first, second = DiffIRS1(**SMALL), DiffIRS1(**SMALL)
    name = saved(first, params_ema=second.state_dict())
    key = "G.patch_embed.proj.weight"
    assert torch.equal(read_weights(name).tensors[key], second.state_dict()[key])
    assert torch.equal(read_weights(name, key="params").tensors[key], first.state_dict()[key])
    assert read_weights(saved(first)).key == "params"


@pytest.mark.parametrize("kind", [DiffIRS1, DiffIRS2])
@pytest.mark.parametrize("fault", ["missing", "scalar", "empty"])
def test_whatever_tensor_is_missing_or_misshapen_the_file_is_refused(kind, fault):
    whole = kind(**SMALL).state_dict()
    for name in whole:
        tensors = dict(whole)
        if fault == "missing":
            del tensors[name]
        else:
            tensors[name] = torch.tensor(1.0) if fault == "scalar" else torch.zeros(0)
        weights = Weights(Path("net.pth"), None, tensors)
        with pytest.raises(CheckpointError, match=r"net\.pth"):
            fit(kind(**identity_of(weights).arguments), weights, where="weights", strict=True)


def test_what_shows_the_sizes_is_named_where_it_is_missing():
    tensors = DiffIRS2(**SMALL).state_dict()
    del tensors["condition.mlp.0.weight"]
    torch.save(tensors, "broken.pth")
    with pytest.raises(CheckpointError, match=r"broken.pth: the tensor condition\.mlp\.0\.weight .* is missing"):
        identity_of(read_weights("broken.pth"))


def test_tensors_under_numbers_are_no_network():
    torch.save({0: torch.zeros(3), 1: torch.zeros(2)}, "numbers.pth")
    with pytest.raises(CheckpointError, match="contains no network; .* found the entries 0, 1"):
        read_weights("numbers.pth")


def test_a_weights_file_that_may_not_be_read_says_so(monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    write_card_file({"a": torch.zeros(3)}, {}, "locked.safetensors")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_weights("locked.safetensors")
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(CheckpointError, match="cannot be accessed .Permission denied"):
        read_weights("locked/net.pth")
