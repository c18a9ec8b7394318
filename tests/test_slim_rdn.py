"""Networks and results of another project: what is restored and evaluated here is what its authors published."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from PIL import Image
from torch import nn

from diffir_sr.cli import main
from diffir_sr.weights_files import write_card_file

FOLDER = Path(__file__).parent / "golden/slim_rdn"


@ARCH_REGISTRY.register()
class SlimRDN(nn.Module):
    """Two residual dense blocks of one convolution each, on images of 0 to 255."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        for name, inputs, outputs, side in [
            ("F_m1", 3, 64, 3), ("F_0", 64, 64, 3), ("F_1_1", 64, 4, 3), ("LFF_1", 68, 64, 1), ("F_2_1", 64, 4, 3),
            ("LFF_2", 68, 64, 1), ("GFF_1", 128, 64, 1), ("GFF_2", 64, 64, 3), ("UPN1", 64, 64, 5), ("UPN2", 64, 32, 3),
            ("UPN3", 32, 3 * scale**2, 3), ("SR", 3 * scale**2, 3, 3),
        ]:  # fmt: skip
            setattr(self, name, nn.Conv2d(inputs, outputs, side, padding=side // 2))

    def forward(self, x):
        first = self.F_m1(x * 255)
        y, made = self.F_0(first), []
        for dense, fuse in ((self.F_1_1, self.LFF_1), (self.F_2_1, self.LFF_2)):
            y = fuse(torch.cat([y, F.relu(dense(y))], dim=1)) + y
            made.append(y)
        y = self.GFF_2(self.GFF_1(torch.cat(made, dim=1))) + first
        y = self.UPN3(F.relu(self.UPN2(F.relu(self.UPN1(y)))))
        return self.SR(F.interpolate(y, scale_factor=self.scale)) / 255


@pytest.fixture(params=[2, 4])
def restored(request, tmp_path):
    """Scale and the folder with the photograph as `diffir restore` writes it."""
    scale = request.param
    with np.load(FOLDER / f"x{scale}.npz") as stored:
        tensors = {name: torch.from_numpy(array) for name, array in stored.items()}
    card = dict(network=dict(type="SlimRDN", scale=scale), scale=scale, task="sr", license="MIT")
    write_card_file(tensors, card, tmp_path / "rdn.safetensors")
    source, target = str(FOLDER / "input.png"), tmp_path / "restored"
    assert main(["restore", source, "-o", str(target), "-w", str(tmp_path / "rdn.safetensors")]) == 0
    return scale, target


def test_a_network_of_another_project_restores_what_its_authors_published(restored):
    scale, target = restored
    ours, theirs = (
        np.asarray(Image.open(path).convert("RGB"), dtype=int)
        for path in (next(target.glob("*.png")), FOLDER / f"x{scale}.png")
    )
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 1e-4  # rounding of a pixel on the edge between two grey levels


def test_evaluate_finds_the_two_pictures_equal_to_rounding_and_far_from_bicubic(restored, tmp_path):
    scale, target = restored
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "input.png").write_bytes((FOLDER / f"x{scale}.png").read_bytes())
    bicubic = tmp_path / "bicubic"
    bicubic.mkdir()
    with Image.open(FOLDER / "input.png") as image:
        small = image.convert("RGB")
    small.resize([scale * side for side in small.size], Image.Resampling.BICUBIC).save(bicubic / "input.png")

    def measured(folder):
        record = tmp_path / "record.json"
        given = ["--preset", "sr", "--metrics", "psnr", "--channel", "rgb", "--border", "0", "--json", str(record)]
        assert main(["evaluate", str(folder), str(truth), *given]) == 0
        return json.loads(record.read_text())["mean"]["psnr"]

    def expected(folder):
        ours, theirs = (np.asarray(Image.open(one / "input.png"), dtype=float)[..., :3] for one in (folder, truth))
        return 10 * np.log10(255**2 / np.square(ours - theirs).mean())

    assert measured(target) == pytest.approx(expected(target), abs=1e-6)
    assert measured(bicubic) == pytest.approx(expected(bicubic), abs=1e-6)
    assert measured(target) > 90 > 40 > measured(bicubic)
