"""Networks in ncnn's two files: read as the PyTorch network that they were converted from, or refused."""

import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from diffir_sr import load_restorer
from diffir_sr.cli import main
from diffir_sr.errors import CheckpointError

HALF = 0x01306B47


class Writer:
    """The two files of a network, layer by layer."""

    def __init__(self, flag=HALF):
        self.rows, self.numbers, self.flag = [], b"", flag

    def layer(self, kind, inputs=1, **values):
        row = [kind, f"layer_{len(self.rows)}", str(inputs), "1", *(["blob"] * inputs), "blob"]
        self.rows.append(
            [*row, *(f"{key.removeprefix('k').replace('_', '-')}={value}" for key, value in values.items())]
        )

    def convolution(self, conv, slope=None):
        weight, bias = conv.weight.detach(), conv.bias.detach()
        active = {} if slope is None else {"k9": 2, "k_23310": f"1,{slope}"}
        out, _, kernel, _ = weight.shape
        self.layer("Convolution", k0=out, k1=kernel, k4=1, k5=1, k6=weight.numel(), **active)
        dtype = np.float16 if self.flag == HALF else np.float32
        self._put(self.flag.to_bytes(4, "little") + weight.numpy().astype(dtype).tobytes())
        self._put(bias.numpy().tobytes())

    def slopes(self, prelu):
        self.layer("PReLU", k0=prelu.num_parameters)
        self._put(prelu.weight.detach().numpy().tobytes())

    def _put(self, data):
        self.numbers += data + bytes(-len(data) % 4)

    def write(self, folder):
        rows = [["Input", "input", "0", "1", "data"], ["Split", "split", "1", "1", "data", "blob"], *self.rows]
        text = "\n".join(["7767517", f"{len(rows)} 99", *(" ".join(row) for row in rows), ""])
        (folder / "net.param").write_text(text)
        (folder / "net.bin").write_bytes(self.numbers)
        return folder / "net.param"


def rrdb(flag=HALF, last="Convolution"):
    torch.manual_seed(0)
    network, files = RRDBNet(3, 3, num_feat=8, num_block=2, num_grow_ch=32).eval(), Writer(flag)
    files.convolution(network.conv_first)
    for block in network.body:
        for dense in (block.rdb1, block.rdb2, block.rdb3):
            for number in range(1, 6):
                files.convolution(getattr(dense, f"conv{number}"), 0.2 if number < 5 else None)
                if number < 5:
                    files.layer("Concat", number + 1)
            files.layer("Eltwise", 2, k0=1)
        files.layer("Eltwise", 2, k0=1)
    files.convolution(network.conv_body)
    files.layer("BinaryOp", 2)
    for up in (network.conv_up1, network.conv_up2):
        files.layer("Interp", k0=1, k1=2.0, k2=2.0)
        files.convolution(up, 0.2)
    files.convolution(network.conv_hr, 0.2)
    files.convolution(network.conv_last)
    return network, files


def compact(flag=HALF):
    torch.manual_seed(0)
    network, files = SRVGGNetCompact(num_feat=8, num_conv=2, upscale=4).eval(), Writer(flag)
    for layer in network.body:
        files.slopes(layer) if isinstance(layer, torch.nn.PReLU) else files.convolution(layer)
    files.layer("PixelShuffle", k0=4)
    files.layer("Interp", k0=1, k1=4.0, k2=4.0)
    files.layer("BinaryOp", 2)
    return network, files


@pytest.mark.parametrize("flag", [HALF, 0])
@pytest.mark.parametrize("make", [rrdb, compact])
def test_a_network_of_ncnn_restores_as_the_one_it_was_converted_from(tmp_path, make, flag):
    network, files = make(flag)
    photo = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    made = load_restorer(files.write(tmp_path))(photo)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255)[0]
    theirs = (theirs.clamp(0, 1).permute(1, 2, 0) * 255).round().numpy()
    assert made.shape == (36, 48, 3)
    assert np.abs(made.astype(int) - theirs).max() <= 1  # float16 numbers move a value over the edge of rounding


def test_the_file_of_numbers_leads_to_its_graph_and_describe_names_the_network(tmp_path, capsys):
    rrdb()[1].write(tmp_path)
    assert main(["describe", str(tmp_path / "net.bin")]) == 0
    assert "ESRGAN x4 (8nf, 2nb)" in capsys.readouterr().out


def refuse(path, match):
    with pytest.raises(CheckpointError, match=match):
        load_restorer(path)


def test_damaged_pairs_of_files_are_refused(tmp_path):
    path = rrdb()[1].write(tmp_path)
    numbers = (tmp_path / "net.bin").read_bytes()
    for changed, match in (
        (numbers[:-2], "truncated"),
        (numbers + bytes(4), "belong to different networks"),
        ((0x000D4B38).to_bytes(4, "little") + numbers[4:], "quantized weights"),
        (numbers[:4] + b"\x00\x7c" + numbers[6:], "conv_first.weight contains values that are not finite"),
    ):
        (tmp_path / "net.bin").write_bytes(changed)
        refuse(path, match)
    (tmp_path / "net.bin").unlink()
    refuse(path, "an ncnn network is two files")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-3]))
    refuse(path, "a damaged ncnn graph")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("-23310=1,0.2", "-23310=1,0.1", "another activation"),
        ("1=2.0 2=2.0", "1=3.0 2=3.0", "not a nearest-neighbour enlargement"),
        ("Eltwise", "Sigmoid", "is a Sigmoid, expected a Sum"),
        ("BinaryOp {} 2 1 blob blob blob", "BinaryOp {} 2 1 blob blob blob 0=2", "is not an addition"),
    ],
)
def test_another_graph_is_refused_with_its_first_difference(tmp_path, old, new, match):
    path = rrdb()[1].write(tmp_path)
    text = path.read_text()
    name = next(line.split()[1] for line in text.splitlines() if line.startswith("BinaryOp"))
    old, new = old.format(name), new.format(name)
    assert old in text
    path.write_text(text.replace(old, new))
    refuse(path, match)


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    files = Writer()
    files.convolution(torch.nn.Conv2d(3, 3, 3))
    files.layer("Sigmoid")
    refuse(files.write(tmp_path), "neither RRDBNet x4 nor SRVGGNetCompact: begins with the layers Convolution, Sigmoid")
