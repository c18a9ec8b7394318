"""Networks that are not DiffIR: a toy family end to end, derived classes, BasicSR's own archs."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import options_cases
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from films import film, shown
from pictures import SMALL
from PIL import Image
from pydantic import Field
from torch import nn
from toy import run_training, train_options, trained, write_pairs

import diffir_sr.families
from diffir_sr import load_restorer
from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.archs.layers import Block
from diffir_sr.cli import basicsr_main, main
from diffir_sr.data.pairs import PairedDataset
from diffir_sr.diffusion.noise import START, GivenNoise, IterationNoise, PictureNoise, picture_noise
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.families.base import Family, Restores
from diffir_sr.files.picture import encode_png
from diffir_sr.inference import plain
from diffir_sr.inference.plain import CalledNetwork, LivingBytes, PlainEngine, engine_for, size_rule
from diffir_sr.inference.strips.engine import StripEngine
from diffir_sr.models import validation
from diffir_sr.models.restoration_model import RestorationModel
from diffir_sr.option_types import Count, Number, Section
from diffir_sr.weights_files import write_card_file

# The toy family: a network that walks from image noise to a picture in three steps, conditioned on the degraded one.


class ToyWalk(nn.Module):
    """Restores (B, 3, H, W) at x4 in three steps from noise of the picture's shape, with noise at every step."""

    scale, multiple_of, conditions = 4, 2, frozenset()

    def __init__(self, *, width: int = 4, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.body = nn.Sequential(nn.Conv2d(6, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, lq, noisy):
        large = nn.functional.interpolate(lq, scale_factor=self.scale, mode="nearest")
        return large + self.body(torch.cat([large, noisy], dim=1))

    def restore(self, lq, *, noise):
        assert lq.shape[-1] % self.multiple_of == 0
        assert lq.shape[-2] % self.multiple_of == 0
        shape = (len(lq), 3, lq.shape[-2] * self.scale, lq.shape[-1] * self.scale)
        image = noise.normal(shape)
        for step in range(self.steps):
            image = self(lq, image) + 0.1 * noise.normal(shape, f"step {step}").to(lq)
        return image


class ToyOptions(Section):
    """What the toy reads of `train` beyond what every model reads."""

    walk_noise: Annotated[Number, Field(ge=0, le=1)] = Field(0.1, description="How strong the noise of a step is.")


class ToySampling(Section):
    """What it reads of `val`."""

    walk_steps: Count | None = Field(None, description="Steps in validation.")


def steps_need_noise(view, at):
    """A rule of the toy's own."""
    if view.get("train", "walk_noise") == 0 and view.size_rule().multiple_of == 2:
        yield ("train", "walk_noise"), "0 leaves nothing to walk through; give more, or train a PlainModel"


class ToyPairs(PairedDataset):
    """Pairs of the toy, with an option of their own."""

    class Own(Section):
        """What they read."""

        shade: Literal["dark", "light"] = Field("light", description="Which pairs are taken.")

    OPTIONS = Own


class ToyWalkModel(RestorationModel):
    """Trains ToyWalk to find the picture in noise."""

    OPTIONS = ToyOptions
    VAL_OPTIONS = ToySampling
    RULES = (steps_need_noise,)
    NETWORK_G = "ToyWalk"

    def compute_losses(self, current_iter):
        noisy = self.noise_at(current_iter).normal(self.gt.shape).to(self.gt)
        return self.image_losses(self.net_g(self.lq, noisy)), {}


TOY = Family(
    name="toy",
    archs=(f"{__name__}:ToyWalk",),
    models=(f"{__name__}:ToyWalkModel",),
    datasets=(f"{__name__}:ToyPairs",),
)


@pytest.fixture
def toy_family(monkeypatch):
    """The one line that a family adds, and what `import diffir_sr` then does with it."""
    monkeypatch.setattr(diffir_sr.families, "FAMILIES", (*diffir_sr.families.FAMILIES, TOY))
    for registry, kind in (
        (ARCH_REGISTRY, ToyWalk),
        (MODEL_REGISTRY, ToyWalkModel),
        (DATASET_REGISTRY, ToyPairs),
    ):
        monkeypatch.setitem(registry._obj_map, kind.__name__, kind)


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs("data")
    return tmp_path


def toy_options(**changes):
    options = train_options("s1", name="toy_family", iterations=4)
    options |= dict(model_type="ToyWalkModel", network_g=dict(type="ToyWalk", width=4))
    return options | changes


def test_a_toy_family_trains_validates_resumes_is_described_and_restores(inside, toy_family, capsys):
    assert run_training(toy_options()) == 0
    whole = trained("", "toy_family")
    capsys.readouterr()

    broken = toy_options(name="broken")
    broken["train"] = broken["train"] | dict(total_iter=2)
    assert run_training(broken) == 0
    broken["train"]["total_iter"] = 4
    assert run_training(broken, "--auto_resume") == 0
    again = trained("", "broken")
    for part in ("params", "params_ema"):
        assert all(torch.equal(whole[part][name], again[part][name]) for name in whole[part])

    weights = "experiments/toy_family/models/net_g_latest.safetensors"
    capsys.readouterr()
    assert main(["describe", weights]) == 0
    output = capsys.readouterr().out
    assert "ToyWalk x4" in output
    assert "width: 4" in output

    test = dict(toy_options(), name="toy_test", path=dict(pretrain_network_g=weights.replace("safetensors", "pth")))
    test["path"] |= dict(param_key_g="params_ema")
    test["datasets"] = dict(test_1=dict(test["datasets"]["val"], dataroot_gt="data/gt", dataroot_lq="data/lq"))
    test["val"] = dict(save_img=True, metrics=test["val"]["metrics"])
    for section in ("train", "logger"):
        del test[section]
    import yaml

    Path("test.yml").write_text(yaml.safe_dump(test))
    assert basicsr_main(["test", "-opt", "test.yml"]) == 0
    assert main(["restore", "data/lq", "-o", "out", "-w", weights]) == 0
    film("in.mkv", 3, codec="ffv1", form="bgr0")
    assert main(["restore", "in.mkv", "-o", "video.mkv", "-w", weights, "--quality", "100"]) == 0
    first, second, _ = shown("video.mkv")
    assert np.array_equal(first, load_restorer(weights)(shown("in.mkv")[0]))
    assert second.shape == first.shape == (128, 192, 3)
    for index in range(4):
        one = np.asarray(Image.open(f"results/toy_test/visualization/val/p{index}_toy_test.png"))
        assert np.array_equal(one, np.asarray(Image.open(f"out/p{index}.png")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.walk_noise": 2}, "train.walk_noise: expected 1 or less, found 2"),
        ({"train.walk_nois": 0.5}, "train.walk_nois: unknown option; did you mean 'walk_noise'?"),
        (
            {"train.walk_noise": 0},
            "train.walk_noise: 0 leaves nothing to walk through; give more",
        ),
        ({"val.walk_steps": 0}, "val.walk_steps: expected 1 or more, found 0"),
        ({"datasets.train.shade": "grey"}, "datasets.train.shade: expected 'dark' or 'light', found 'grey' (text)"),
        (
            {"datasets.train.gt_size": 12},
            "datasets.train.gt_size: 12 is not possible: at scale 4",
        ),
        ({"network_g": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3}}, "ToyWalkModel works on a ToyWalk network"),
        ({"network_g.width": "wide"}, "network_g.width: expected a whole number, found 'wide' (text)"),
    ],
)
def test_a_family_brings_its_own_options_bounds_and_rules(inside, toy_family, change, message):
    right = options_cases.changed(toy_options(), {"datasets.train.type": "ToyPairs", "datasets.train.shade": "dark"})
    right = options_cases.changed(right, {"train.walk_noise": 0.5, "val.walk_steps": 2})
    assert options_cases.load(right).warnings == []
    assert message in options_cases.refusal(options_cases.changed(right, change))


def test_an_option_of_a_family_has_no_effect_elsewhere(inside, toy_family):
    plain = toy_options(model_type="PlainModel", network_g=dict(type="EDSR", num_in_ch=3, num_out_ch=3))
    found = options_cases.changed(plain, {"train.walk_noise": 0.5, "train.share_t": True})
    output = options_cases.load(found).warnings
    assert any(
        "train.walk_noise: has no effect: PlainModel does not read it (only ToyWalkModel)" in one for one in output
    )
    assert len(output) == 2


def test_a_toy_network_restores_odd_sizes_and_tiles(toy_family):
    network = ToyWalk().eval()
    assert isinstance(network, Restores)
    lq = torch.rand(1, 3, 13, 19)
    noise = PictureNoise(lq)
    made = engine_for(network)(lq, noise=noise)
    assert made.shape == (1, 3, 52, 76)
    tiled = engine_for(network, tile_mode="tiles", tile=8, overlap=2)(lq, noise=noise)
    assert tiled.shape == made.shape
    assert tiled.isfinite().all()


# Derived classes


class Half(DiffIRS2):
    """Restores to 0.5 everywhere."""

    def restore(self, lq, *, noise, mask=None):
        return torch.full((len(lq), 3, lq.shape[-2] * self.scale, lq.shape[-1] * self.scale), 0.5)


class Called(DiffIRS2):
    """Overrides the forward alone."""

    def forward(self, lq, prior=None, **how):
        return torch.full((len(lq), 3, lq.shape[-2] * self.scale, lq.shape[-1] * self.scale), 0.25)


class LouderBlock(Block):
    def forward(self, x, prior):
        return super().forward(x, prior) * 1.5


def restored(network, lq, **how):
    return validation.Restoring(torch.device("cpu"))(network, lq, seed=0, **how)


@pytest.mark.parametrize(("kind", "value"), [(Half, 0.5), (Called, 0.25)])
def test_a_derived_class_is_validated_as_it_restores(kind, value):
    lq = torch.rand(1, 3, 16, 24)
    assert torch.equal(restored(kind(**SMALL).eval(), lq), torch.full((1, 3, 64, 96), value))


def test_a_derived_class_with_other_blocks_is_restored_with_them():
    class Louder(DiffIRS2):
        def __init__(self, **how):
            super().__init__(**how)
            for level in self.G.modules():
                if isinstance(level, Block):
                    level.__class__ = LouderBlock

    lq = torch.rand(1, 3, 16, 24)
    torch.manual_seed(0)
    network = Louder(**SMALL).eval()
    expected = network(lq)  # the whole picture, as the network is called by everybody
    assert torch.allclose(restored(network, lq), expected, atol=1e-6)
    plainly = DiffIRS2(**SMALL).eval()
    plainly.load_state_dict(network.state_dict())
    assert (restored(plainly, lq) - expected).abs().max() > 1e-3


def test_the_fast_engine_is_for_the_exact_class():
    assert type(engine_for(DiffIRS2(**SMALL))) is StripEngine
    assert type(engine_for(Half(**SMALL))) is PlainEngine
    with pytest.raises(OptionError, match="has no prior to share"):
        engine_for(Half(**SMALL), tile_mode="prior")


def test_an_engine_is_built_once_until_weights_change(monkeypatch):
    built = []
    monkeypatch.setattr(validation, "engine_for", lambda net, **how: built.append(1) or engine_for(net, **how))
    network, restoring = DiffIRS2(**SMALL).eval(), validation.Restoring(torch.device("cpu"))
    lq = torch.rand(1, 3, 8, 8)
    first = restoring(network, lq, seed=0)
    assert torch.equal(restoring(network, lq, seed=0), first)
    assert len(built) == 1
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network(lq).square().sum().backward()
    optimizer.step()
    changed = restoring(network, lq, seed=0)
    assert len(built) == 2
    assert not torch.equal(changed, first)
    network.load_state_dict({name: value * 0.5 for name, value in network.state_dict().items()})
    restoring(network, lq, seed=0)
    assert len(built) == 3


# BasicSR's own archs

EDSR = dict(type="EDSR", num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1)
RESNET = dict(type="MSRResNet", num_feat=8, num_block=1)
RRDB = dict(type="RRDBNet", num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, num_grow_ch=4)
SWIN = dict(type="SwinIR", img_size=16, depths=[2], embed_dim=12, num_heads=[2], window_size=4, mlp_ratio=2)
SWIN |= dict(upsampler="pixelshuffledirect")


@pytest.mark.parametrize(
    ("about", "rule"),
    [
        (EDSR | dict(upscale=4), (1, 4)),
        (EDSR | dict(upscale=3), (1, 3)),
        (RESNET | dict(upscale=2), (1, 2)),
        (RESNET | dict(upscale=4), (1, 4)),
        (RRDB | dict(scale=4), (1, 4)),
        (RRDB | dict(scale=2), (2, 2)),
        (RRDB | dict(scale=1), (4, 1)),
        (SWIN | dict(upscale=4), (4, 4)),
        (SWIN | dict(upscale=2, window_size=8), (8, 2)),
    ],
    ids=lambda value: f"{value['type']}" if isinstance(value, dict) else "x".join(map(str, value)),
)
def test_the_size_rule_of_a_called_network_is_found(about, rule):
    assert size_rule(build_network(about)) == rule


class Strided(nn.Module):
    """A U-shaped network that halves its input three times and loses what does not divide."""

    def forward(self, x):
        for _ in range(3):
            x = nn.functional.avg_pool2d(x, 2)
        return nn.functional.interpolate(x, scale_factor=8)


def test_a_network_that_strides_is_padded_and_one_that_gives_no_picture_is_refused():
    assert size_rule(Strided()) == (8, 1)
    made = PlainEngine(Strided())(torch.rand(2, 3, 13, 17), noise=PictureNoise(torch.rand(2, 3, 13, 17)))
    assert made.shape == (2, 3, 13, 17)
    with pytest.raises(InputError, match=r"Flatten does not restore images of any size tried"):
        size_rule(nn.Flatten())


@pytest.mark.parametrize("about", [EDSR | dict(upscale=4), SWIN | dict(upscale=4)], ids=["EDSR", "SwinIR"])
def test_an_arch_of_basicsr_trains_validates_and_its_file_restores(inside, about):
    options = train_options("s1", name="theirs", iterations=2)
    options |= dict(model_type="PlainModel", network_g=about)
    assert run_training(options) == 0
    weights = Path("experiments/theirs/models/net_g_latest.safetensors")
    record = Path("experiments/theirs/validation.jsonl")
    record = record if record.exists() else next(Path("experiments/theirs").rglob("validation.jsonl"))
    assert '"psnr"' in record.read_text()
    assert main(["describe", str(weights)]) == 0
    assert main(["restore", "data/lq", "-o", "out", "-w", str(weights)]) == 0
    assert main(["evaluate", "out", "data/gt", "--preset", "sr", "--metrics", "psnr"]) == 0
    picture = np.asarray(Image.open("data/lq/p0.png"))[:13, :15]
    assert load_restorer(weights)(picture).shape == (52, 60, 3)


# Memory


def test_memory_of_a_plain_network_is_planned():
    network = build_network(EDSR | dict(upscale=2, num_feat=16)).eval()
    engine = PlainEngine(network)
    lq = torch.rand(1, 3, 96, 160)
    planned = engine.plan(96, 160).bytes
    with LivingBytes() as living, torch.inference_mode():
        network(lq)
    assert living.peak / 1.5 < planned < living.peak * 1.5
    tight = PlainEngine(network, memory_limit=planned // 2)
    with pytest.raises(InputError, match=r"96x160 pixels need about .* use tiles"):
        tight(lq, noise=PictureNoise(lq))
    parts = PlainEngine(network, memory_limit=planned // 2, tiles=True, tile=48, overlap=8)
    whole = engine(lq, noise=PictureNoise(lq))
    with LivingBytes() as living:
        tiled = parts(lq, noise=PictureNoise(lq))
    assert (tiled - whole).abs().mean() < 0.05
    assert living.peak < planned // 2 + whole.numel() * 4 * 3  # beside the network: result, weights and a copy of one


@pytest.mark.parametrize("kind", ["MSRResNet", "RRDBNet", "SwinIR"])
def test_the_plan_of_memory_holds_for_other_networks(kind):
    more = {
        "MSRResNet": dict(num_feat=16, num_block=2, upscale=2),
        "RRDBNet": dict(scale=2, num_feat=16, num_block=1, num_grow_ch=8),
        "SwinIR": dict(upscale=2, img_size=24, window_size=8, depths=[2], embed_dim=16, num_heads=[2])
        | dict(upsampler="pixelshuffledirect", in_chans=3),
    }[kind]
    channels = {} if kind == "SwinIR" else dict(num_in_ch=3, num_out_ch=3)
    network = build_network(dict(type=kind, **channels, **more)).eval()
    planned = PlainEngine(network).plan(96, 160).bytes
    with LivingBytes() as living, torch.inference_mode():
        network(torch.rand(1, 3, 96, 160))
    assert living.peak / 2 < planned < living.peak * 2


def test_what_a_network_needs_beside_the_picture_is_checked():
    engine = engine_for(Half(**SMALL))
    lq = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"was given the conditions \['mask'\] and needs \[\]"):
        engine(lq, noise=PictureNoise(lq), mask=torch.zeros(1, 1, 8, 8))
    assert isinstance(plain.as_restoring(build_network(EDSR | dict(upscale=2))), CalledNetwork)


# Noise


def test_noise_is_a_function_of_picture_seed_sample_and_name():
    lq = torch.rand(3, 3, 8, 8)
    noise = PictureNoise(lq, seed=2)
    assert torch.equal(noise.normal((3, 5)), picture_noise(lq, width=5, seed=2))
    image = noise.normal((3, 3, 4, 4), "step 1")
    assert torch.equal(PictureNoise(lq.flip(0), seed=2).normal((3, 3, 4, 4), "step 1"), image.flip(0))
    assert not torch.equal(noise.normal((3, 3, 4, 4), "step 2"), image)
    assert not torch.equal(noise.normal((3, 3, 4, 4), START), image)
    assert not torch.equal(PictureNoise(lq, seed=3).normal((3, 5)), noise.normal((3, 5)))
    frames = PictureNoise(lq[:1]).normal((4, 2))
    assert torch.equal(frames, frames[:1].expand(4, -1))
    with pytest.raises(ValueError, match="noise of 3 pictures was asked for 2 rows"):
        noise.normal((2, 5))
    values = PictureNoise(lq[:1]).normal((1, 100_000))
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_noise_of_an_iteration_is_a_function_of_iteration_rank_and_name():
    one = IterationNoise(seed=0, iteration=5)
    assert torch.equal(one.normal((2, 4)), IterationNoise(seed=0, iteration=5).normal((2, 4)))
    others = [IterationNoise(seed=0, iteration=6), IterationNoise(seed=0, iteration=5, rank=1), IterationNoise(seed=1, iteration=5)]  # fmt: skip  # noqa: E501
    assert all(not torch.equal(other.normal((2, 4)), one.normal((2, 4))) for other in others)
    assert not torch.equal(one.normal((2, 4), "level"), one.normal((2, 4)))
    with pytest.raises(ValueError, match="is not the given"):
        GivenNoise(torch.zeros(1, 4)).normal((1, 5))


def test_noise_keeps_the_values_that_published_results_were_made_with():
    """Fixed numbers: another value would change every restored picture and every resumed training."""
    lq = torch.arange(3 * 8 * 8, dtype=torch.float32).reshape(1, 3, 8, 8) / 191
    noise = PictureNoise(lq, seed=7)
    torch.testing.assert_close(noise.normal((1, 4)), torch.tensor([[-1.3485111, -0.3775639, 0.4824213, 0.2220353]]))
    second = PictureNoise(lq, seed=7, sample=1).normal((1, 2))
    torch.testing.assert_close(second, torch.tensor([[-0.3876055, -1.5971757]]))
    image = noise.normal((1, 1, 2, 2), "step 1").flatten()
    torch.testing.assert_close(image, torch.tensor([1.3503506, -0.8731370, -0.2430767, 0.7823724]))
    training = IterationNoise(seed=3, iteration=11).normal((2, 2))
    torch.testing.assert_close(training, torch.tensor([[-0.1718145, -0.1809073], [0.0412442, -0.7163756]]))


# Cards


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (dict(type="NobodysNet"), "type 'NobodysNet', which is not registered here"),
        (dict(type="EDSR", num_features=8), "EDSR cannot be built according to its model card"),
        ("EDSR", "network section is 'EDSR', expected type and arguments"),
        (dict(num_feat=8), "expected type and arguments"),
    ],
)
def test_a_card_that_names_no_network_is_refused(tmp_path, network, message):
    path = tmp_path / "x.safetensors"
    write_card_file(build_network(EDSR | dict(upscale=2)).state_dict(), dict(network=network), path)
    with pytest.raises(CheckpointError, match=message):
        load_restorer(path)


def test_grey_and_16_bits_through_a_plain_network(tmp_path):
    network = build_network(EDSR | dict(upscale=2))
    path = tmp_path / "edsr.safetensors"
    write_card_file(network.state_dict(), dict(network=EDSR | dict(upscale=2), scale=2), path)
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11, 1), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(encode_png(deep))
    assert main(["restore", str(tmp_path / "deep.png"), "-o", str(tmp_path / "out"), "-w", str(path)]) == 0
    made = Image.open(tmp_path / "out/deep.png")
    assert made.size == (22, 18)
    assert made.mode.startswith("I")
