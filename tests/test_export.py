"""`diffir export`: files that compute what torch computes, restored with like any weights, or no file at all."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toy import NETWORK

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
import onnxruntime  # noqa: E402

from diffir_sr import load_restorer  # noqa: E402
from diffir_sr.archs.diffir_arch import DiffIRS2  # noqa: E402
from diffir_sr.archs.nafnet_arch import NAFNet  # noqa: E402
from diffir_sr.archs.sr3_arch import SR3  # noqa: E402
from diffir_sr.checkpoints import load_network  # noqa: E402
from diffir_sr.cli import main  # noqa: E402
from diffir_sr.diffusion.noise import fixed_noise  # noqa: E402
from diffir_sr.errors import CheckpointError, InputError, OptionError  # noqa: E402
from diffir_sr.export import export, exportable  # noqa: E402
from diffir_sr.files.images import read_picture  # noqa: E402
from diffir_sr.files.picture import Picture, encode  # noqa: E402
from diffir_sr.weights_files import write_card_file  # noqa: E402

TASKS = [("sr", 4), ("sr", 2), ("sr", 1), ("deblur", 1), ("inpaint", 1)]


def diffir(task="sr", scale=4, **more):
    torch.manual_seed(0)
    return DiffIRS2(task=task, scale=scale, **NETWORK, **more).eval().requires_grad_(False)


def write(path, net, **card):
    write_card_file(net.state_dict(), card, path)
    return path


def photo(height, width, *, bits=8, seed=0):
    levels = np.random.default_rng(seed).integers(0, 2**bits, (height, width, 3))
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize(("task", "scale"), TASKS)
def test_every_task_restores_from_onnx_as_from_its_weights(tmp_path, task, scale):
    weights = write(tmp_path / "net.safetensors", diffir(task, scale))
    assert export(load_network(weights), tmp_path / "net.onnx") < 1e-6
    mask = np.zeros((21, 37), dtype=np.uint8)
    mask[3:9, 5:20] = 255
    given = {"mask": mask} if task == "inpaint" else {}
    # Sides that are no multiple of anything, 16 bits: a value may be rounded to the next of 65536.
    picture = photo(21, 37, bits=16)
    ours, theirs = (load_restorer(tmp_path / f"net.{kind}")(picture, **given) for kind in ("safetensors", "onnx"))
    assert theirs.shape == (21 * scale, 37 * scale, 3)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize(("task", "scale"), [("sr", 2), ("inpaint", 1)])
def test_torchscript_with_dynamic_sizes_and_metadata(tmp_path, task, scale):
    network = diffir(task, scale)
    weights = write(tmp_path / "net.safetensors", network, licence="CC0-1.0")
    export(load_network(weights), tmp_path / "net.pt", form="torchscript")
    extra = {"diffir_card": ""}
    made = torch.jit.load(tmp_path / "net.pt", _extra_files=extra)
    card = json.loads(extra["diffir_card"])
    assert (card["licence"], card["export"]["scale"]) == ("CC0-1.0", scale)
    image = torch.rand(1, network.geometry.channels, 7 * network.multiple_of, network.multiple_of)
    noise = torch.randn(1, network.prior_width)
    torch.testing.assert_close(made(image, noise), network(image, noise=noise))


def test_one_input_with_fixed_noise_and_metadata_for_other_programs(tmp_path):
    network = diffir()
    weights = write(tmp_path / "net.safetensors", network)
    arguments = ["export", "-w", str(weights), "-o", str(tmp_path / "net.onnx"), "--fixed-noise", "--seed", "3"]
    assert main(arguments) == 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [one.name for one in session.get_inputs()] == ["input"]
    said = session.get_modelmeta().custom_metadata_map
    assert (said["scale"], said["multiple_of"]) == ("4", "8")
    image = torch.rand(1, 3, 40, 16)
    (made,) = session.run(None, {"input": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), network(image, noise=fixed_noise(256, seed=3)))
    assert load_restorer(tmp_path / "net.onnx")(photo(9, 11)).shape == (36, 44, 3)


def test_the_command_restores_with_tiles_alpha_sixteen_bits_and_metadata(tmp_path):
    weights = write(tmp_path / "net.safetensors", diffir())
    assert main(["export", "-w", str(weights), "-o", str(tmp_path / "net.onnx")]) == 0
    alpha = photo(40, 52, bits=16, seed=1)[..., 0]
    picture = Picture(photo(40, 52, bits=16), alpha=alpha)
    (tmp_path / "in.png").write_bytes(encode(picture, "png"))
    results = {}
    for kind in ("safetensors", "onnx"):
        arguments = ["restore", "in.png", "-w", f"net.{kind}", "-o", f"{kind}.png"]
        assert main(arguments) == 0
        results[kind] = read_picture((tmp_path / f"{kind}.png").read_bytes(), where=kind)
    ours, theirs = results.values()
    assert theirs.colours.dtype == np.uint16
    assert np.abs(ours.colours.astype(int) - theirs.colours.astype(int)).max() <= 1
    assert np.array_equal(ours.alpha, theirs.alpha)
    tiled = ["restore", "in.png", "-w", "net.onnx", "-o", "tiled.png", "--tile-mode", "tiles"]
    assert main([*tiled, "--tile", "32", "--overlap", "8"]) == 0
    assert read_picture((tmp_path / "tiled.png").read_bytes(), where="tiled").colours.shape == (160, 208, 3)


def test_metadata_of_photographs_stays(tmp_path):
    export(load_network(write(tmp_path / "net.safetensors", diffir("deblur", 1))), tmp_path / "net.onnx")
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    file = io.BytesIO()
    Image.fromarray(photo(16, 24)).save(file, "JPEG", exif=exif)
    (tmp_path / "in.jpg").write_bytes(file.getvalue())
    assert main(["restore", "in.jpg", "-w", "net.onnx", "-o", "out.jpg"]) == 0
    assert Image.open("out.jpg").getexif()[0x010F] == "Camera"


@pytest.mark.parametrize("exporter", ["trace", "dynamo"])
def test_nafnet_pads_with_zeros_as_in_torch(tmp_path, exporter):
    torch.manual_seed(0)
    network = NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    for weight in network.parameters():  # published initial values of zero leave the picture as it is
        nn.init.normal_(weight, std=0.2)
    section = {"type": "NAFNet", "width": 4, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
    weights = write(tmp_path / "net.safetensors", network, network=section)
    export(load_network(weights), tmp_path / "net.onnx", exporter=exporter)
    picture = photo(19, 22, bits=16)
    ours, theirs = (load_restorer(tmp_path / f"net.{kind}")(picture) for kind in ("safetensors", "onnx"))
    assert np.abs(ours.astype(int) - picture).max() > 1000
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_esrgan_of_another_project(tmp_path):
    pytest.importorskip("spandrel", reason="needs the extra peers")
    from basicsr.archs.rrdbnet_arch import RRDBNet

    torch.manual_seed(0)
    for scale in (2, 4):
        network = RRDBNet(3, 3, scale=scale, num_feat=8, num_block=1, num_grow_ch=32)
        torch.save({"params_ema": network.state_dict()}, tmp_path / "net.pth")
        export(load_network(tmp_path / "net.pth"), tmp_path / f"{scale}.onnx")
        ours, theirs = (load_restorer(tmp_path / name)(photo(17, 23)) for name in ("net.pth", f"{scale}.onnx"))
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
        assert load_network(tmp_path / f"{scale}.onnx").identity.title.startswith("ESRGAN")


def test_a_file_that_computes_something_else_is_refused(tmp_path):
    """Local means choose their windows in Python by the size of the image, which a trace does not repeat."""
    torch.manual_seed(0)
    arguments = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1], "train_size": 14}
    network = NAFNet(**arguments)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.5)
    weights = write(tmp_path / "net.safetensors", network, network={"type": "NAFNet", **arguments})
    with pytest.raises(CheckpointError, match="differs from torch by|cannot be exported"):
        export(load_network(weights), tmp_path / "out" / "net.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_not_a_function_of_image_and_noise_is_refused():
    with pytest.raises(OptionError, match="variance_noise"):
        exportable(diffir(variance_noise=True))
    with pytest.raises(OptionError, match="samples in a loop"):
        exportable(
            SR3(
                scale=2, inner_channel=8, norm_groups=4, channel_mults=[1, 2], attn_res=[8], res_blocks=1, image_size=16
            )
        )


def test_bad_files_and_names(tmp_path, capsys):
    weights = write(tmp_path / "net.safetensors", diffir())
    assert main(["export", "-w", str(weights), "-o", "net.pt"]) == 1
    assert "ends in .onnx" in capsys.readouterr().err
    (tmp_path / "net.onnx").write_bytes(b"nothing of the kind")
    assert main(["export", "-w", str(weights), "-o", "net.onnx"]) == 1
    assert "is not overwritten" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot be read as an ONNX model"):
        load_network(tmp_path / "net.onnx")


def test_a_model_of_another_program_is_tried(tmp_path):
    class Twice(nn.Module):
        def forward(self, image):
            return nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")

    torch.onnx.export(
        Twice(),
        (torch.rand(1, 3, 8, 8),),
        tmp_path / "twice.onnx",
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {2: "h", 3: "w"}},
    )
    picture = photo(9, 13)
    made = load_restorer(tmp_path / "twice.onnx")(picture)
    assert np.array_equal(made, picture.repeat(2, axis=0).repeat(2, axis=1))
    torch.onnx.export(Twice(), (torch.rand(1, 3, 8, 8),), tmp_path / "fixed.onnx", dynamo=False, input_names=["x"])
    with pytest.raises(InputError, match="does not restore images of any size"):
        load_restorer(tmp_path / "fixed.onnx")
