"""NAFNet and AutoDIR's structure correction: the published numbers, keys and files; local means; training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import fill_plain, worst
from toy import run_training, train_options, trained, write_pairs

from diffir_sr import load_restorer
from diffir_sr.archs.nafnet_arch import ChannelMeans, NAFNet, NAFNetSCM
from diffir_sr.checkpoints import load_network
from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.families import identify
from diffir_sr.inference.plain import engine_for
from diffir_sr.losses import PSNRLoss

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("nafnet_*.npz"))
OUTPUT, AFTER, LOSS, GRADIENT = 1e-4, 2e-3, 1e-4, 1e-3
TINY = dict(width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])


class Golden:
    """One golden case, and the network that it is about."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        arguments = dict(self.facts["arch_kwargs"])
        self.corrects = self.facts["structure_correction"]
        assert arguments.pop("img_channel") == (6 if self.corrects else 3)
        self.net = NAFNetSCM(**arguments) if self.corrects else NAFNet(**arguments)
        self.sum = fill_plain(self.net, self.facts["weight_prefix"])

    def __call__(self, x, **how):
        return self.net(x[:, :3], x[:, 3:], **how) if self.corrects else self.net(x)


@pytest.fixture(params=CASES)
def golden(request):
    return Golden(request.param)


def test_there_are_golden_cases():
    assert {"nafnet_tiny", "nafnet_scm_tiny"} <= set(CASES)


def test_weights_filled_by_name_have_the_published_keys_and_sum(golden):
    assert golden.sum == pytest.approx(golden.facts["weight_checksum"], rel=1e-6)
    assert sum(weight.numel() for weight in golden.net.parameters()) == golden.facts["n_params"]
    shapes = {key: list(value.shape) for key, value in golden.net.state_dict().items()}
    assert list(shapes.items()) == list(golden.facts["state_dict"].items())


@torch.no_grad()
def test_pictures_of_every_size_come_out_as_published(golden):
    inputs = {name: x for name, x in golden.arrays.items() if name == "x" or name.startswith("x_")}
    assert len(inputs) > 1
    for name, x in inputs.items():
        assert worst(golden(x), golden.arrays[name.replace("x", "out", 1)]) < OUTPUT
    weighted = {name: out for name, out in golden.arrays.items() if name.startswith("out_w")}
    assert bool(weighted) == golden.corrects
    for name, out in weighted.items():
        assert worst(golden(golden.arrays["x"], weight=float(name.removeprefix("out_w"))), out) < OUTPUT


def test_three_steps_have_the_published_losses_and_gradients(golden):
    facts, arrays = golden.facts, golden.arrays
    about = dict(facts["optimizer"])
    optimizer = getattr(torch.optim, about.pop("type"))(golden.net.parameters(), **about)
    loss = PSNRLoss() if facts["loss"] == "PSNRLoss" else torch.nn.MSELoss()
    for step, expected in enumerate(facts["losses"]):
        value = loss(golden(arrays["x"]), arrays["gt"])
        optimizer.zero_grad()
        value.backward()
        assert value.item() == pytest.approx(expected, rel=LOSS)
        if step == 0:
            norms = {name: weight.grad.norm().item() for name, weight in golden.net.named_parameters()}
            published = facts["grad_norms"]
            assert norms == pytest.approx(published, rel=GRADIENT, abs=1e-6 * max(published.values()))
        optimizer.step()
    with torch.no_grad():
        assert worst(golden(arrays["x"]), arrays["out_after_3_steps"]) < AFTER


@torch.no_grad()
def test_local_means_come_out_as_published(golden):
    if "local" not in golden.facts:
        assert golden.corrects
        return
    x, net = golden.arrays["local_x"], golden.net
    assert worst(net(x), golden.arrays["local_plain_out"]) < OUTPUT
    net.train_size = golden.facts["local"]["train_size"][-1]
    windows = {f"{name}": [m.window] * 2 for name, m in net.named_modules() if isinstance(m, ChannelMeans)}
    assert windows == golden.facts["local"]["kernel_sizes"]
    assert worst(net.eval()(x), golden.arrays["local_out"]) < OUTPUT
    assert worst(net.train()(x), golden.arrays["local_plain_out"]) < OUTPUT  # trainings see whole patches


def test_running_means_are_those_of_a_pooling_layer_also_where_a_window_fits_one_way_alone():
    means, x = ChannelMeans().eval(), 100 + torch.randn(2, 3, 9, 40)
    means.window = 12
    pooled = torch.nn.functional.avg_pool2d(x, (9, 12), stride=1)  # 29 places, 11 of which are missing at the sides
    expected = torch.cat([pooled[..., :1].expand(-1, -1, -1, 5), pooled, pooled[..., -1:].expand(-1, -1, -1, 6)], dim=3)
    assert worst(means(x), expected.expand(-1, -1, 9, -1)) < 1e-4


# The published configurations, without numbers (device meta)


def published():
    for path in sorted(GOLDEN.glob("nafnet_published_keys*.json")):
        for name, about in json.loads(path.read_text()).items():
            yield pytest.param(about, id=f"{path.stem}-{name}")


@pytest.mark.parametrize("about", list(published()))
def test_published_networks_have_their_keys_shapes_and_number_of_weights_and_are_recognised(about):
    arguments = dict(about["arch_kwargs"])
    kind = NAFNetSCM if arguments.pop("img_channel") == 6 else NAFNet
    with torch.device("meta"):
        net = kind(**arguments)
    assert sum(weight.numel() for weight in net.parameters()) == about["n_params"]
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert len(shapes) == about["n_tensors"]
    if "state_dict" in about:
        assert list(shapes.items()) == list(about["state_dict"].items())
    identity = identify(net.state_dict())
    assert identity.arch == kind.__name__
    assert identity.arguments.items() >= arguments.items()
    assert identity.arguments.get("train_size") == (256 if arguments["enc_blk_nums"] == [1, 1, 1, 28] else None)
    assert bool(identity.refuses) == (kind is NAFNetSCM)


# Small networks


def tiny(kind=NAFNet, **changes):
    torch.manual_seed(0)
    net = kind(**(TINY | changes))
    with torch.no_grad():
        for weight in net.parameters():  # so that no block is the identity
            weight.add_(0.05 * torch.randn_like(weight))
    return net.eval().requires_grad_(False)


def test_a_correction_of_nothing_is_the_restored_picture_and_weights_scale_it():
    net = tiny(NAFNetSCM)
    lq, restored = torch.rand(2, 1, 3, 13, 9) * 2 - 1
    assert torch.equal(net(lq, restored, weight=0.0), restored)
    one, half = net(lq, restored) - restored, net(lq, restored, weight=0.5) - restored
    assert worst(half, 0.5 * one) < 1e-6
    assert one.abs().max() > 1e-3
    for weight in net.ending.parameters():
        weight.zero_()
    assert torch.equal(net(lq, restored, weight=3.0), restored)


def test_a_published_file_restores_and_tiles_come_nearer_to_the_whole_with_local_means(tmp_path):
    net = tiny()
    torch.save(dict(params=net.state_dict()), tmp_path / "naf.pth")
    restorer = load_restorer(tmp_path / "naf.pth", device="cpu")
    assert type(restorer.network) is NAFNet
    picture = np.random.default_rng(0).integers(0, 256, (21, 19, 3), dtype=np.uint8)
    lq = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    expected = (net(lq)[0].clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    assert np.abs(restorer(picture) - expected).max() <= 0.51
    # A picture that is bright on one side: means over the whole and over a tile differ.
    wide = torch.rand(1, 3, 32, 320) * torch.linspace(0.1, 1, 320)

    fill_plain(net, "naf.")

    def apart(train_size):
        net.train_size = train_size
        whole = engine_for(net)(wide, noise=None)
        return (engine_for(net, tile_mode="tiles", tile=160, overlap=80)(wide, noise=None) - whole).abs().mean()

    assert apart(16) < 0.5 * apart(None)


def test_networks_and_files_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r"dec_blk_nums: expected as many levels as enc_blk_nums has \(2\), found 1"):
        NAFNet(**(TINY | dict(dec_blk_nums=[1])))
    torch.save(tiny(NAFNetSCM).state_dict(), tmp_path / "scm.pth")
    with pytest.raises(CheckpointError, match="corrects what a diffusion restored and restores no picture by itself"):
        load_network(tmp_path / "scm.pth")
    tensors = tiny().state_dict()
    tensors["ending.weight"] = torch.zeros(1, 4, 3, 3)
    torch.save(tensors, tmp_path / "grey.pth")
    with pytest.raises(CheckpointError, match="maps 3 channels to 1; expected as many levels up as down"):
        load_network(tmp_path / "grey.pth")


def test_the_loss_is_the_mean_of_each_pictures_own_psnr():
    first, second = torch.rand(2, 2, 3, 8, 8)
    each = [-10 * torch.log10((one - two).square().mean()).item() for one, two in zip(first, second, strict=True)]
    assert PSNRLoss(loss_weight=2.0)(first, second).item() == pytest.approx(-2 * np.mean(each), rel=1e-5)


def test_it_trains_with_its_own_loss_and_local_means_from_option_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs("data", scale=1, size=48)
    loss = dict(type="PSNRLoss", loss_weight=1.0, reduction="mean")
    options = train_options("s1", name="naf", iterations=4, pixel_opt=loss)
    options |= dict(model_type="PlainModel", scale=1, network_g=dict(type="NAFNet", train_size=32, **TINY))
    assert run_training(options) == 0
    loaded = load_network("experiments/naf/models/net_g_latest.safetensors")
    assert loaded.network.train_size == 32
    assert set(trained("s1", "naf")["params_ema"]) == set(tiny().state_dict())
