"""Weights files of every kind: read by content, refused with the true cause, never executed."""

import argparse
import collections
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.checkpoints import fit, read_weights
from diffir_sr.errors import CheckpointError
from diffir_sr.weights_files import write_card_file

SMALL = dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, n_encoder_res=1, LayerNorm_type="BiasFree")
NET = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


def zipped(name, members):
    with zipfile.ZipFile(name, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")


def tarred(name):
    with tarfile.open(name, "w") as archive:
        entry = tarfile.TarInfo("net_g.pth")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))


FOREIGN = {
    "page.pth": (
        b"\n<!DOCTYPE html><html><title>Sign in</title>",
        "a web page .HTML.: the download page was saved",
    ),
    "page.safetensors": (b"<html>", "a web page"),
    "denied.pth": (b'{"error": "Not Found"}', "error message of a server .*Not Found"),
    "pointer.pth": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 9\n",
        "Git LFS pointer .sha256:12ab.*git lfs pull",
    ),
    "empty.pth": (b"", "an empty file .0 bytes"),
    "net.gguf": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "net.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX"),
    "onnx.pth": (b"\x08\x07\x12\x07pytorch", "an ONNX"),
    "gzip.pth": (gzip.compress(b"abc"), "a gzip archive"),
    "noise.pth": (b"\x01\x02\x03\x04" * 9, "unknown format, its first bytes are 01 02 03 04"),
    "noise.safetensors": (b"\x01", "not a readable safetensors file"),
    "dumped.pth": (pickle.dumps({"conv.weight": np.ones(3)}), "a plain Python pickle"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_called_by_its_name(name):
    content, cause = FOREIGN[name]
    Path(name).write_bytes(content)
    with pytest.raises(CheckpointError, match=cause) as refused:
        read_weights(name)
    assert name in str(refused.value)


def test_archives_folders_and_torchscript_are_called_by_their_names():
    Path("folder").mkdir()
    Path("folder/net_g_latest.pth").write_bytes(b"x")
    zipped("other.pth", ["a/net_g.pth", "readme.txt"])
    tarred("tar.pth")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), "script.pth")
    for name, cause in {
        "folder": "a folder; .*net_g_latest.pth",
        "other.pth": "a zip archive that contains a/net_g.pth, readme.txt",
        "tar.pth": "a tar archive .net_g.pth",
        "script.pth": "a TorchScript archive",
    }.items():
        with pytest.raises(CheckpointError, match=cause):
            read_weights(name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
def test_a_cut_file_is_said_to_be_cut(zipped, kept):
    torch.save({"params": DiffIRS1(**SMALL).state_dict()}, "whole.pth", _use_new_zipfile_serialization=zipped)
    data = Path("whole.pth").read_bytes()
    Path("cut.pth").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"cut.pth: not a readable PyTorch weights file \(.*truncated"):
        read_weights("cut.pth")


class Preference:
    def __init__(self):
        self.depth = 3


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_numbers_and_objects_beside_the_weights_do_no_harm(zipped):
    beside = {
        "best": np.float64(31.5),
        "history": np.arange(3),
        "type": np.dtype("float32"),
        "hyper_parameters": argparse.Namespace(lr=Preference(), paths={Path("a")}, more=collections.defaultdict(list)),
        "counts": collections.defaultdict(list, a=[1]),
    }
    torch.save({"params": NET, **beside}, "net.pth", _use_new_zipfile_serialization=zipped)
    torch.save({"state_dict": {f"generator.{name}": value for name, value in NET.items()}, **beside}, "lightning.ckpt")
    for name in ("net.pth", "lightning.ckpt"):
        tensors = read_weights(name).tensors
        assert tensors.keys() == NET.keys()
        assert all(torch.equal(tensors[key], NET[key]) for key in NET)


class Hostile:
    def __init__(self, call, argument):
        self.call, self.argument = call, argument

    def __reduce__(self):
        return self.call, (self.argument,)


@pytest.mark.parametrize("call", [os.system, exec, eval, subprocess.call])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_never_runs(call, zipped):
    command = "touch ran" if call is not eval and call is not exec else "__import__('pathlib').Path('ran').touch()"
    torch.save({"params": Hostile(call, command)}, "code.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"code\.pth"):
        read_weights("code.pth")
    torch.save({"params": NET, "more": Hostile(exec, "open('ran', 'w')")}, "beside.pth")
    assert read_weights("beside.pth").tensors.keys() == NET.keys()
    assert not Path("ran").exists()


def test_a_call_of_the_system_is_named():
    torch.save({"params": Hostile(os.system, "touch ran")}, "code.pth")
    with pytest.raises(CheckpointError, match=r"requests system code \(posix\.system\)"):
        read_weights("code.pth")


@pytest.mark.parametrize("content", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_a_whole_model_object_is_named_with_its_class(content):
    torch.save(content(DiffIRS1(**SMALL)), "model.pth")
    with pytest.raises(CheckpointError, match=r"class diffir_sr\.archs\.diffir_arch\.DiffIRS1.*model\.state_dict"):
        read_weights("model.pth")


def test_renamed_files_are_read_by_their_content():
    save_file(NET, "renamed.pth")
    torch.save({"params": NET}, "renamed.safetensors")
    for name in ("renamed.pth", "renamed.safetensors"):
        assert torch.equal(read_weights(name).tensors["conv.weight"], NET["conv.weight"])


def test_a_network_of_save_model_has_both_names_of_its_tied_tensors():
    source, target = DiffIRS2(**SMALL), DiffIRS2(**SMALL)
    save_model(source, "tied.safetensors")
    stored = safetensors.torch.load_file("tied.safetensors")
    assert len(stored) < len(source.state_dict())
    save_file(stored, "stripped.safetensors")  # without the note of what was left out
    for name in ("tied.safetensors", "stripped.safetensors"):
        fit(target, read_weights(name), where="path.pretrain_network_g", strict=True)
        for key, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], value), key


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "lightning"])
def test_names_lose_what_wrappers_put_in_front(prefix, kind):
    state = DiffIRS1(**SMALL).state_dict()
    wrapped = {f"{prefix}{name.replace('G.', 'G._orig_mod.', 1)}": value for name, value in state.items()}
    if kind == "safetensors":
        save_file(wrapped, "net.safetensors")
    elif kind == "pth":
        torch.save({"params": wrapped}, "net.pth")
    else:
        torch.save({"state_dict": {f"generator.{name}": value for name, value in wrapped.items()}}, "net.lightning")
    assert read_weights(f"net.{kind}").tensors.keys() == state.keys()


UNUSABLE = {
    "sparse": (torch.eye(3).to_sparse(), r"conv\.weight is sparse"),
    "quantized": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), r"conv\.weight is quantized \(qint8"),
    "meta": (torch.ones(3, device="meta"), r"conv\.weight has a shape but no values"),
    "integers": (torch.ones(3, dtype=torch.int64), r"conv\.weight contains int64, expected floating-point"),
    "complex": (torch.ones(3, dtype=torch.complex64), r"conv\.weight contains complex64, expected floating-point"),
    "nan": (torch.tensor([1.0, float("nan")]), r"conv\.weight contains 1 values of 2 that are not finite"),
    "inf": (torch.tensor([1.0, float("inf")]).half(), r"conv\.weight contains 1 values of 2 that are not finite"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_tensors_that_no_network_can_take_are_named(kind):
    tensor, cause = UNUSABLE[kind]
    torch.save({"params": NET | {"conv.weight": tensor}}, "net.pth")
    with pytest.raises(CheckpointError, match=f"net.pth.*{cause}"):
        read_weights("net.pth")


def test_counters_and_tables_may_be_integers():
    tensors = NET | {"norm.num_batches_tracked": torch.tensor(3), "relative_position_index": torch.arange(4)}
    torch.save({"params": tensors}, "net.pth")
    assert read_weights("net.pth").tensors.keys() == tensors.keys()


@pytest.mark.parametrize(("card", "cause"), [("[1, 2]", "is a JSON list, not an object"), ("{half", "is not JSON")])
def test_a_card_that_is_no_object_is_named(card, cause):
    save_file(NET, "net.safetensors", metadata={"diffir_card": card})
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: its model card .diffir_card. {cause}"):
        read_weights("net.safetensors")


def test_the_same_weights_and_card_give_the_same_bytes():
    card = {"name": "größer", "metrics": {"val": {"psnr": 31.5}}}
    code = (
        "import torch; from diffir_sr.weights_files import write_card_file\n"
        f"write_card_file({{'b': torch.ones(3), 'a': torch.zeros(2).half()}}, {card!r}, 'net.safetensors')"
    )
    seen = set()
    for _ in range(2):  # in several processes: the order that the library gives changes with each
        subprocess.run([sys.executable, "-c", code], check=True)
        seen.add(Path("net.safetensors").read_bytes())
    write_card_file({"b": torch.ones(3), "a": torch.zeros(2).half()}, card, "here.safetensors")
    assert seen == {Path("here.safetensors").read_bytes()}
    data = Path("here.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["diffir_card", "format"]
    assert read_weights("here.safetensors").card == card


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_whatever_byte_is_damaged_the_file_is_read_or_refused(zipped):
    torch.save({"params": NET}, "net.pth", _use_new_zipfile_serialization=zipped)
    data = Path("net.pth").read_bytes()
    refused = 0
    for place in range(0, len(data), 23):
        Path("net.pth").write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            read_weights("net.pth")
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_what_else_a_file_may_hold_is_named():
    torch.save({"params": {name: value.numpy() for name, value in NET.items()}}, "numpy.pth")
    with pytest.raises(CheckpointError, match=r"objects of class numpy.*_reconstruct"):
        read_weights("numpy.pth")
    torch.save({"params": NET}, "other.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="another protocol"):
        read_weights("other.pth")
    torch.save({}, "nothing.pth")
    with pytest.raises(CheckpointError, match="found an empty dict"):
        read_weights("nothing.pth")


def test_an_averaged_model_of_torch_is_the_network_inside():
    torch.save(torch.optim.swa_utils.AveragedModel(nn.Linear(3, 2)).state_dict(), "averaged.pth")
    assert read_weights("averaged.pth").tensors.keys() == {"weight", "bias"}
