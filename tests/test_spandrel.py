"""Weights of other projects: recognised by spandrel, restored as ours are."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image

spandrel = pytest.importorskip("spandrel", reason="needs the extra peers")

from basicsr.archs.rrdbnet_arch import RRDBNet  # noqa: E402
from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.DnCNN import DnCNN  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.LaMa import LaMa  # noqa: E402
from spandrel.architectures.NAFNet import NAFNet  # noqa: E402
from spandrel.architectures.SwinIR import SwinIR  # noqa: E402
from spandrel_extra_arches import EXTRA_REGISTRY  # noqa: E402
from spandrel_extra_arches.architectures.MPRNet import MPRNet  # noqa: E402
from spandrel_extra_arches.architectures.Restormer import Restormer  # noqa: E402

from diffir_sr import load_restorer  # noqa: E402
from diffir_sr.checkpoints import load_network  # noqa: E402
from diffir_sr.cli import main  # noqa: E402
from diffir_sr.errors import CheckpointError, InputError, OptionError  # noqa: E402
from diffir_sr.families.spandrel import SpandrelNetwork  # noqa: E402
from diffir_sr.files.picture import encode_png  # noqa: E402

SWIN = dict(depths=[2, 2], num_heads=[2, 2], embed_dim=12, window_size=8, img_size=16, mlp_ratio=2.0)
NETWORKS = {
    "ESRGAN": (lambda: RRDBNet(3, 3, num_feat=8, num_block=1, num_grow_ch=32), "params_ema", 4),
    "ESRGAN x2": (lambda: RRDBNet(3, 3, scale=2, num_feat=8, num_block=1, num_grow_ch=32), "params_ema", 2),
    "old ESRGAN": (lambda: ESRGAN(num_filters=8, num_blocks=1), None, 4),
    "SwinIR": (lambda: SwinIR(upscale=2, upsampler="pixelshuffledirect", **SWIN), "params", 2),
    "NAFNet": (lambda: NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]), "params", 1),
    "Compact": (lambda: Compact(num_feat=8, num_conv=2, upscale=4), "params", 4),
    "Restormer": (
        lambda: Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 2, 2, 4]),
        "params",
        1,
    ),
    "MPRNet": (lambda: MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=2), "state_dict", 1),
    "DnCNN": (lambda: DnCNN(in_nc=1, out_nc=1, nc=8, nb=17, act_mode="R"), None, 1),
}


def write(tmp_path, name, network=None):
    build, key, scale = NETWORKS[name]
    torch.manual_seed(0)
    tensors = (network or build()).state_dict()
    path = tmp_path / f"{name.replace(' ', '_')}.pth"
    torch.save(tensors if key is None else {key: tensors}, path)
    return path, tensors, scale


def photo(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_project_restores_as_spandrel_does(tmp_path, name):
    path, tensors, scale = write(tmp_path, name)
    image = photo(19, 27)
    made = load_restorer(path)(image)
    assert made.shape == (19 * scale, 27 * scale, 3)
    known = spandrel.MAIN_REGISTRY.copy()
    known.add(*EXTRA_REGISTRY)
    descriptor = known.load(dict(tensors))
    lq = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    theirs = torch.cat([descriptor(one) for one in lq[0, :, None, None]], 1) if name == "DnCNN" else descriptor(lq)
    theirs = (theirs[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.abs(made.astype(int) - theirs).max() <= 1


def test_the_command_restores_16_bits_with_alpha_and_describes(tmp_path, capsys):
    path, _, _ = write(tmp_path, "Compact")
    deep = np.random.default_rng(1).integers(0, 65536, (12, 16, 4), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(encode_png(deep))
    assert main(["restore", str(tmp_path / "deep.png"), "-o", str(tmp_path / "out"), "-w", str(path)]) == 0
    import cv2

    made = cv2.imread(str(tmp_path / "out/deep.png"), cv2.IMREAD_UNCHANGED)
    assert (made.shape, made.dtype) == ((48, 64, 4), np.uint16)
    capsys.readouterr()
    assert main(["describe", str(path)]) == 0
    output = capsys.readouterr().out
    assert "Compact x4 (8nf, 2nc)" in output
    assert "purpose: SR" in output
    assert "licence of the weights: not stated in the file" in output


def test_tiles_of_a_foreign_network(tmp_path):
    path, _, scale = write(tmp_path, "ESRGAN")
    image = photo(40, 56)
    whole = load_restorer(path)(image).astype(int)
    tiled = load_restorer(path, tile_mode="tiles", tile=32, overlap=12)(image).astype(int)
    assert whole.shape == tiled.shape == (40 * scale, 56 * scale, 3)
    assert np.abs(whole - tiled).mean() < 2
    with pytest.raises(OptionError, match="has no prior to share"):
        load_restorer(path, tile_mode="prior")


def test_a_safetensors_file_without_a_card_is_recognised(tmp_path):
    from safetensors.torch import save_file

    _, tensors, _ = write(tmp_path, "SwinIR")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "swin.safetensors")
    loaded = load_network(tmp_path / "swin.safetensors")
    assert isinstance(loaded.network, SpandrelNetwork)
    assert str(loaded.identity).startswith("SwinIR")


@pytest.mark.slow
def test_holes_are_filled_by_a_masked_network_and_the_rest_stays(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "lama.pth"
    torch.save(LaMa(in_nc=4).state_dict(), path)
    image, mask = photo(24, 40), np.zeros((24, 40), dtype=bool)
    mask[4:12, 8:20] = True
    restorer = load_restorer(path)
    assert restorer.takes_mask
    made = restorer(image, mask=mask)
    assert np.array_equal(made[~mask], image[~mask])
    assert not np.array_equal(made[mask], image[mask])
    with pytest.raises(InputError, match="give a mask of them"):
        restorer(image)


def test_two_networks_of_one_make_are_blended(tmp_path):
    path, tensors, _ = write(tmp_path, "Compact")
    other = tmp_path / "other.pth"
    torch.save({"params": {name: tensor * 0.5 for name, tensor in tensors.items()}}, other)
    mixed = load_restorer(path, blend=(other, 0.5)).network.state_dict()
    name = next(iter(tensors))
    assert torch.allclose(mixed[f"net.{name}"], tensors[name] * 0.75)
    strange, _, _ = write(tmp_path, "NAFNet")
    with pytest.raises(CheckpointError, match="only weights of the same network can be blended"):
        load_restorer(path, blend=(strange, 0.5))


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    path, _, _ = write(tmp_path, "Compact")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *how: None if name == "spandrel" else found(name, *how)
    )
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(CheckpointError, match=r"need spandrel: pip install 'diffir_sr\[peers\]'"):
        load_restorer(path)


def test_what_spandrel_does_not_know_is_reported(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"params": {"conv.weight": torch.zeros(3, 3, 3, 3)}}, path)
    with pytest.raises(CheckpointError, match="spandrel does not know it either"):
        load_restorer(path)


def test_a_number_format_that_an_architecture_cannot_is_refused(tmp_path):
    path, _, _ = write(tmp_path, "SwinIR")
    descriptor = load_network(path).network._descriptor
    formats = {"float16": descriptor.supports_half, "bfloat16": descriptor.supports_bfloat16}
    for name, works in formats.items():
        if not works:
            with pytest.raises(OptionError, match=f"does not work in {name}; take float32"):
                load_restorer(path, dtype=name)
    assert Image.fromarray(load_restorer(path, dtype="bfloat16")(photo(16, 16))).size == (32, 32)


def test_lama_is_recognised_without_the_prefix_that_lightning_files_have(tmp_path):
    torch.manual_seed(0)
    tensors = {
        name.replace("model.", "generator.model.", 1): value for name, value in LaMa(in_nc=4).state_dict().items()
    }
    torch.save({"state_dict": tensors}, tmp_path / "lama.ckpt")
    assert load_restorer(tmp_path / "lama.ckpt").takes_mask


def test_loading_builds_a_network_once(tmp_path, monkeypatch):
    path, _, _ = write(tmp_path, "Compact")
    built = []
    init = SpandrelNetwork.__init__
    monkeypatch.setattr(SpandrelNetwork, "__init__", lambda *args, **how: built.append(1) or init(*args, **how))
    assert "Compact x4" in load_restorer(path).describe()
    assert len(built) == 1
