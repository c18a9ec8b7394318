"""Distances between sets of images: their arithmetic against closed forms, and what they may be called."""

import numpy as np
import pytest
import skimage.data
import torch
from basicsr.metrics.fid import calculate_fid
from test_metrics_perceptual import needs_weights
from torch import nn

from diffir_sr import metrics
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.metrics import Features, SetDistance, inception_features, vgg16_features

pytest.importorskip("torchmetrics", reason="needs: pip install 'diffir_sr[metrics]'")


class Corner(nn.Module):
    """The first pixels of an image as its features."""

    def __init__(self, count=2):
        super().__init__()
        self.count = count

    def forward(self, images):
        return images.flatten(1)[:, : self.count]


def distance(true, restored, kind="frechet"):
    """Of features, one row per image, in [0, 1]."""
    measured = SetDistance(Features("corner", Corner(true.shape[1])), kind)
    for rows, real in ((true, True), (restored, False)):
        for row in rows:
            image = torch.zeros(1, 3, 4, 4)
            image.view(-1)[: len(row)] = row
            measured.update(image, real=real)
    return measured.compute()


def test_sets_that_differ_by_a_shift_are_its_square_apart():
    rows = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 0.5
    assert distance(rows, rows) == pytest.approx(0, abs=1e-7)
    assert distance(rows, rows + torch.tensor([0.3, 0.1])) == pytest.approx(0.1, abs=1e-6)


def test_sets_of_one_mean_are_apart_by_their_deviations():
    """For features that vary independently: sum over them of (deviation - deviation)^2."""
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).repeat(5, 1)
    true, restored = 0.5 + corners * torch.tensor([0.1, 0.4]), 0.5 + corners * torch.tensor([0.3, 0.2])
    unbiased = 20 / 19
    assert distance(true, restored) == pytest.approx(unbiased * (0.2**2 + 0.2**2), abs=1e-6)


def test_patches_cover_every_pixel_once_row_by_row():
    image = torch.arange(2 * 720 * 1280, dtype=torch.float64).reshape(2, 1, 720, 1280).expand(-1, 3, -1, -1)
    cut = metrics.patches_of(image, height=240, width=256)
    assert cut.shape == (30, 3, 240, 256)
    assert torch.equal(cut[:, 0].reshape(-1).sort().values, image[:, 0].reshape(-1))
    assert torch.equal(cut[0], image[0, :, :240, :256])
    assert torch.equal(cut[6], image[0, :, 240:480, 256:512])
    assert torch.equal(cut[29], image[1, :, 480:, 1024:])
    for height, width in ((719, 1280), (720, 1279), (0, 256), (120, 256)):
        with pytest.raises(InputError, match=f"{height}x{width} pixels"):
            metrics.patches_of(torch.zeros(1, 3, height, width), height=240, width=256)


def test_the_frechet_distance_is_basicsrs():
    a, b = (torch.rand(60, 5, generator=torch.Generator().manual_seed(seed)) ** (seed + 1) for seed in (0, 1))
    moments = [moment for rows in (a, b) for moment in (rows.numpy().mean(0), np.cov(rows.double().numpy().T))]
    assert distance(a, b) == pytest.approx(calculate_fid(*moments), abs=1e-6)


def test_the_kernel_distance_is_the_unbiased_estimate_by_its_definition():
    a, b = (torch.rand(9, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    def kernel(x, y):
        return (float(x.double() @ y.double()) / 3 + 1) ** 3

    def among(rows):
        return np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])

    expected = among(a) + among(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert distance(a, b, "kernel") == pytest.approx(expected, abs=1e-9)


def test_kernel_draws_are_the_same_each_time_and_leave_the_generator_alone():
    a, b = (torch.rand(count, 3, generator=torch.Generator().manual_seed(count)) for count in (12, 7))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert distance(a, b, "kernel") == distance(a, b, "kernel")
    assert torch.equal(torch.rand(3), expected)


def test_only_inception_features_make_an_fid():
    stand_in = Features("corner", Corner())
    assert SetDistance(stand_in).title == "Frechet distance, features: corner"
    assert SetDistance(stand_in, "kernel").title == "kernel distance, features: corner"
    inception = Features("Inception 2048", Corner(), is_inception=True)
    assert [SetDistance(inception, kind).title for kind in ("frechet", "kernel")] == ["FID", "KID"]


def test_inception_needs_the_published_weights(monkeypatch):
    for name, value in (("TORCH_HOME", "hub"), ("XDG_CACHE_HOME", "cache"), ("DIFFIR_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match="weights inception not found"):
        inception_features()
    torch.save({"fc.bias": torch.ones(1008)}, "mine.pth")
    with pytest.raises(CheckpointError, match="expected 6726825d"):
        inception_features("mine.pth")


def test_inception_is_built_from_the_file_that_was_found(monkeypatch):
    """Random weights stand in for the published ones: the file is read, and 2048 features come out."""
    from basicsr.archs import inception

    monkeypatch.setattr(inception, "LOCAL_FID_WEIGHTS", "absent.pth")
    monkeypatch.setattr(inception, "load_url", lambda *_, **__: {})
    monkeypatch.setattr("torchvision.models.Inception3.load_state_dict", lambda net, state: kept.append((net, state)))
    monkeypatch.setattr(metrics, "check", lambda place, entry: None)
    kept: list = []
    torch.save({"marker": torch.ones(1)}, "found.pth")
    features = inception_features("found.pth")
    assert list(kept[-1][1]) == ["marker"]
    assert features.network.eval()(torch.rand(1, 3, 40, 40)).shape == (1, 2048)


@needs_weights
def test_vgg16_features_order_sets_by_how_blurred_they_are():
    photo = torch.from_numpy(skimage.data.astronaut()[:192, :256].copy()).permute(2, 0, 1)[None].float() / 255
    tiles = torch.cat([photo[..., y : y + 64, x : x + 64] for y in (0, 64, 128) for x in (0, 64, 128, 192)])
    features, found = vgg16_features(), []
    for block in (1, 2, 4):
        soft = torch.nn.functional.avg_pool2d(tiles, block).repeat_interleave(block, 2).repeat_interleave(block, 3)
        measured = SetDistance(features)
        measured.update(tiles, real=True)
        measured.update(soft, real=False)
        found.append(measured.compute())
    assert found[0] == pytest.approx(0, abs=1e-4 * found[2])
    assert found[0] < found[1] < found[2]
    assert measured.title == "Frechet distance, features: VGG16 conv5_3"


def test_a_set_of_one_and_images_out_of_range_are_errors():
    measured = SetDistance(Features("corner", Corner()))
    with pytest.raises(InputError, match="0 true images, two or more"):
        measured.compute()
    with pytest.raises(InputError, match=r"values in \[0, 1\]"):
        measured.update(torch.full((1, 3, 4, 4), 255.0), real=True)
    with pytest.raises(OptionError, match="frechet, kernel, found 'cosine'"):
        SetDistance(Features("corner", Corner()), "cosine")
