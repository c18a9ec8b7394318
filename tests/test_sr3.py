"""SR3: the published numbers, keys and files; training, restoring, cascades."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import fill_plain, worst
from PIL import Image
from toy import run_training, train_options, trained, write_pairs

from diffir_sr import load_restorer
from diffir_sr.archs.noise_level_unet_arch import LevelEmbedding, NoiseLevelUNet
from diffir_sr.archs.sr3_arch import SR3, SR3Regression
from diffir_sr.checkpoints import Weights, description, fit, load_network, read_weights
from diffir_sr.cli import main
from diffir_sr.diffusion.noise import START, PictureNoise
from diffir_sr.diffusion.sampling import Sampling, drawn_levels, levels_between, noised_to, walk
from diffir_sr.diffusion.schedule import named_betas, schedule_constants, schedule_of
from diffir_sr.errors import CheckpointError, InputError, OptionError
from diffir_sr.families import identify
from diffir_sr.files.picture import encode_png
from diffir_sr.inference.plain import LivingBytes, engine_for
from diffir_sr.inference.restorer import Restorer
from diffir_sr.weights_files import write_card_file

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("sr3_*.npz") if not path.stem.startswith("sr3_schedules"))
OUTPUT, SMALL_OUTPUT, AFTER, LOSS, GRADIENT = 1e-4, 1e-5, 2e-3, 1e-4, 1e-3


class Golden:
    """One golden case, and the network that it is about."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        unet = {key: value for key, value in self.facts["unet"].items() if key not in ("in_channel", "out_channel")}
        assert unet.pop("with_noise_level_emb")
        self.net = SR3(scale=1, preset="janspiry", **unet, beta_schedule=self.facts["train_schedule"])
        self.unet = self.net.denoise_fn
        self.sum = fill_plain(self.net, self.facts["weight_prefix"])


@pytest.fixture(params=CASES)
def golden(request):
    return Golden(request.param)


def test_there_are_golden_cases():
    assert {"sr3_tiny_a", "sr3_tiny_b"} <= set(CASES)


def test_weights_filled_by_name_have_the_published_sum(golden):
    assert golden.sum == pytest.approx(golden.facts["weight_checksum"], rel=1e-6)
    assert sum(weight.numel() for weight in golden.net.parameters()) == golden.facts["n_params"]


def test_the_state_dict_is_the_published_one_without_its_buffers(golden):
    shapes = {key: list(value.shape) for key, value in golden.net.state_dict().items()}
    theirs = {key: shape for key, shape in golden.facts["state_dict"].items() if key not in golden.facts["buffers"]}
    assert list(shapes.items()) == list(theirs.items())
    assert set(golden.facts["buffers"]) == SR3.computed_tensors


@torch.no_grad()
def test_the_network_computes_the_published_output(golden):
    x, level = golden.arrays["x"], golden.arrays["level"]
    assert worst(golden.unet(x, level), golden.arrays["unet_out"]) < OUTPUT
    for weight in golden.net.parameters():
        if weight.ndim > 1:
            weight.mul_(0.02)
    assert worst(golden.unet(x, level), golden.arrays["unet_out_small"]) < SMALL_OUTPUT


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_three_adam_steps_have_the_published_losses_and_gradients(golden, loss):
    facts, arrays = golden.facts, golden.arrays
    schedule = golden.net.trained_schedule
    optimizer = torch.optim.Adam(golden.net.parameters(), lr=facts["adam_lr"])
    distance = torch.nn.functional.l1_loss if loss == "l1" else torch.nn.functional.mse_loss
    for step, (t, share) in enumerate(zip(facts["train_t"], facts["train_u"], strict=True)):
        level = levels_between(
            schedule, torch.full((len(share),), t), torch.tensor(share, dtype=torch.float64), space="sqrt_gamma"
        )
        assert torch.allclose(level, arrays["train_levels"][step], rtol=1e-6, atol=0)
        noise = arrays["train_noise"][step]
        noisy = noised_to(arrays["hr"], noise, level, space="sqrt_gamma")
        if step == 0:
            assert worst(noisy, arrays["x_noisy"]) < 1e-6
        made = golden.unet(torch.cat([arrays["sr"], noisy], dim=1), level)
        value = distance(made, noise)
        optimizer.zero_grad()
        value.backward()
        assert value.item() == pytest.approx(facts[f"losses_{loss}"][step], rel=LOSS)
        if step == 0:
            norms = {name: weight.grad.norm().item() for name, weight in golden.net.named_parameters()}
            expected = facts[f"grad_norms_{loss}"]
            assert norms == pytest.approx(expected, rel=GRADIENT, abs=1e-6 * max(expected.values()))
        optimizer.step()
    with torch.no_grad():
        made = golden.unet(arrays["x"], arrays["level"])
    assert worst(made, arrays[f"unet_out_after_3_steps_{loss}"]) < AFTER


@torch.no_grad()
def test_single_reverse_steps_are_the_published_ones(golden):
    facts, arrays = golden.facts, golden.arrays
    schedule = schedule_of(facts["sample_schedule"])
    for index, t in enumerate(facts["p_sample_t"]):
        level = schedule.kept[t + 1].sqrt().item()
        assert level == pytest.approx(facts["p_sample_level"][index], rel=1e-6)
        x, seen = arrays["p_sample_x"][index], []
        noise = arrays["p_sample_noise"][index] if t else None

        def predict(x, kept, seen=seen):
            eps = golden.unet(torch.cat([arrays["sr"], x], dim=1), torch.full((len(x),), math.sqrt(kept)))
            seen.append(eps)
            return eps

        for clip, name in ((True, "p_sample_out"), (False, "p_sample_out_noclip")):
            part = type(schedule)(schedule.betas[: t + 1])  # whose first reverse step is the one from t
            made = next(walk(predict, x, schedule=part, sampling=Sampling(clip=clip), bounds=(-1, 1), noise=lambda _: noise))  # fmt: skip  # noqa: E501, B023
            assert worst(made, arrays[name][index]) < OUTPUT
        assert worst(seen[0], arrays["p_sample_eps"][index]) < OUTPUT


class ChainNoise:
    """The noise of a golden chain by the names that a network asks for."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.steps = len(arrays["chain_steps"])

    def normal(self, shape, name=START):
        if name == START:
            return self.arrays["chain_x_T"]
        return self.arrays["chain_noise"][self.steps - int(name.removeprefix("step "))]


@torch.no_grad()
def test_restoring_walks_the_published_chain_and_returns_every_picture(golden):
    golden.net.eval().sampling = Sampling(beta_schedule=golden.facts["sample_schedule"])
    noise = ChainNoise(golden.arrays)
    made = golden.net.restore((golden.arrays["sr"] + 1) / 2, noise=noise)
    assert worst(2 * made - 1, golden.arrays["chain_out"]) < OUTPUT
    assert len(made) == len(golden.arrays["sr"]) > 1

    def predict(x, kept):
        return golden.unet(torch.cat([golden.arrays["sr"], x], dim=1), torch.full((len(x),), math.sqrt(kept)))

    steps = walk(
        predict, noise.normal(()), schedule=schedule_of(golden.facts["sample_schedule"]), sampling=Sampling(),
        noise=lambda t: noise.normal((), f"step {t}"), bounds=(-1, 1),
    )  # fmt: skip
    for made, expected in zip(steps, golden.arrays["chain_steps"], strict=True):
        assert worst(made, expected) < OUTPUT


# The published configurations, without numbers (device meta)


def published():
    for path in sorted(GOLDEN.glob("sr3_published_keys*.json")):
        for name, about in json.loads(path.read_text()).items():
            yield pytest.param(about, id=f"{path.stem}-{name}")


@pytest.mark.parametrize("about", list(published()))
def test_published_networks_have_their_keys_shapes_and_number_of_weights(about):
    unet = dict(about["unet"], norm_groups=about["norm_groups"], image_size=about["diffusion"]["image_size"])
    unet["channel_mults"] = unet.pop("channel_multiplier")
    with torch.device("meta"):
        net = NoiseLevelUNet(preset="janspiry", **unet)
    assert sum(weight.numel() for weight in net.parameters()) == about["n_params"]
    shapes = {f"denoise_fn.{key}": list(value.shape) for key, value in net.state_dict().items()}
    theirs = {key: shape for key, shape in about["state_dict"].items() if key.startswith("denoise_fn.")}
    assert list(shapes.items()) == list(theirs.items())
    assert set(about["state_dict"]) - set(theirs) == SR3.computed_tensors


@pytest.mark.parametrize(
    ("base", "mults", "blocks", "size", "millions"),
    [
        (128, (1, 2, 4, 8, 8), 3, 128, 564.5),
        (128, (1, 2, 4, 4, 8, 8), 3, 256, 621.5),
        (64, (1, 2, 4, 8, 8, 16, 16), 3, 512, 614.2),
        (16, (1, 2, 4, 8, 16, 32, 32, 32), 2, 1024, 150.2),
    ],
)
def test_networks_of_the_paper_have_about_the_stated_number_of_weights(base, mults, blocks, size, millions):
    with torch.device("meta"):
        net = NoiseLevelUNet(
            preset="sr3_paper", inner_channel=base, channel_mults=mults, res_blocks=blocks, image_size=size
        )
    assert sum(weight.numel() for weight in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_levels_are_embedded_as_sines_then_cosines():
    embedded = LevelEmbedding(8, scale=1.0)(torch.tensor([1.0, 0.5]))
    assert embedded[0, 0].item() == pytest.approx(0.841471, abs=1e-6)
    assert embedded[0, 4].item() == pytest.approx(0.540302, abs=1e-6)
    assert embedded[1, 1].item() == pytest.approx(math.sin(0.5 * 1e4**-0.25), abs=1e-6)
    scaled = LevelEmbedding(8, scale=5000.0)(torch.tensor([1.0]))
    assert scaled[0, 0].item() == pytest.approx(math.sin(5000.0), abs=1e-3)
    with pytest.raises(OptionError, match="inner_channel: expected an even number"):
        LevelEmbedding(7, scale=1.0)


# Small networks

TINY = dict(inner_channel=8, norm_groups=4, channel_mults=[1, 2], attn_res=[8], res_blocks=1, image_size=16)
SCHEDULE = dict(schedule="linear", n_timestep=100, linear_start=1e-4, linear_end=0.1)
PRESETS = ["janspiry", "sr3_paper", "dvsr"]


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    net = SR3(**(dict(scale=4, beta_schedule=SCHEDULE, sampling=dict(steps=3)) | TINY | changes)).eval()
    with torch.no_grad():
        for weight in net.parameters():  # so that no block is the identity
            weight.add_(0.05 * torch.randn_like(weight))
    return net.requires_grad_(False)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_restores_and_is_reached_by_every_gradient(preset):
    net = tiny(preset=preset).requires_grad_(True)
    lq = torch.rand(2, 3, 4, 6)
    made = net.restore(lq, noise=PictureNoise(lq))
    assert made.shape == (2, 3, 16, 24)
    net(lq, torch.randn(2, 3, 16, 24), torch.rand(2)).square().sum().backward()
    idle = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    assert idle == []


def test_blocks_of_the_paper_start_as_the_identity_and_orthogonal_starts_keep_that():
    net = NoiseLevelUNet(preset="sr3_paper", **TINY)
    net.initialise()
    x, level = torch.randn(1, 6, 16, 16), torch.rand(1)
    block = net.downs[1].res_block
    assert torch.allclose(block(net.downs[0](x), net.noise_level_mlp(level)), net.downs[0](x) * math.sqrt(0.5))
    published = NoiseLevelUNet(preset="janspiry", **TINY)
    published.initialise()
    weight = published.downs[1].res_block.block1.block[3].weight.flatten(1)
    assert torch.allclose(weight @ weight.T, torch.eye(len(weight)), atol=1e-5)


def test_the_degraded_picture_is_enlarged_as_pillow_does_it():
    picture = np.random.default_rng(0).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    lq = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    theirs = np.asarray(Image.fromarray(picture).resize((56, 44), Image.Resampling.BICUBIC)).astype(int)
    made = (tiny(cond_resize="pil").upscaled(lq) + 1) / 2 * 255
    ours = made[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - np.rint(ours)).max() < 1e-3
    assert np.abs(np.rint(ours) - theirs).max() <= 1
    assert (np.rint(ours) != theirs).mean() < 0.01
    free = (tiny().upscaled(lq) + 1) / 2 * 255
    assert 0.1 < (free - made).abs().mean() < 1  # on noise, of which much is clipped on the way


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(preset="google"), "preset: expected one of janspiry, sr3_paper, dvsr, found 'google'"),
        (dict(norm_groups=3), "norm_groups: 3 groups do not divide 8 channels"),
        (dict(channel_mults=[]), "channel_mults: expected one number above 0 or more"),
        (dict(res_blocks=0), "res_blocks: expected 1 or more, found 0"),
        (dict(cond_resize="lanczos"), "cond_resize: expected one of bicubic, pil"),
        (dict(scale=0), "scale: expected 1 or more"),
        (dict(level_space="log"), "level_space: expected one of gamma, sqrt_gamma"),
        (dict(sampling=dict(steps=101)), "steps: expected 1 to 100"),
        (dict(beta_schedule=SCHEDULE | dict(linear_end=0.01)), "of the squared signal is left"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, message):
    with pytest.raises(OptionError, match=message):
        SR3(**(dict(beta_schedule=SCHEDULE) | TINY | change))


def test_inputs_that_cannot_be_are_refused():
    net = tiny(channel_mults=[1, 2, 4])
    with pytest.raises(InputError, match="expected sides that divide by 4"):
        net.denoise_fn(torch.zeros(1, 6, 8, 10), torch.ones(1))
    with pytest.raises(InputError, match=r"level: expected a noise level \(B,\), found none"):
        net.denoise_fn(torch.zeros(1, 6, 8, 8))
    with pytest.raises(InputError, match="level: expected no noise level"):
        SR3Regression(**TINY).regress_fn(torch.zeros(1, 3, 8, 8), torch.ones(1))


# Files


def published_file(folder, *, wrapper="", betas=None, **unet):
    """A file as the public code writes it, of a small network, and that network."""
    net = tiny(scale=8, preset="janspiry", **unet)
    betas = named_betas("linear", 200, start=1e-6, end=0.1) if betas is None else betas
    constants = {name: values.float() for name, values in schedule_constants(betas).items()}
    tensors = {f"{wrapper}{name}": value for name, value in (constants | net.state_dict()).items()}
    path = folder / "I1_E1_gen.pth"
    torch.save(tensors, path)
    return path, net


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_published_file_loads_and_restores_as_its_network(tmp_path, wrapper):
    path, net = published_file(tmp_path, wrapper=wrapper, inner_channel=32, norm_groups=32)
    loaded = load_network(path)
    assert loaded.identity.title == "SR3 x8 janspiry, base 32, multipliers 1,2"
    assert loaded.identity.arguments["beta_schedule"] == dict(
        schedule="linear", n_timestep=200, linear_start=1e-6, linear_end=0.1
    )
    lq = torch.rand(1, 3, 3, 5)
    same = SR3(**loaded.identity.arguments).eval()
    same.load_state_dict(net.state_dict())
    same.sampling = loaded.network.sampling = Sampling(steps=4)
    noise = PictureNoise(lq)
    assert torch.equal(engine_for(loaded.network)(lq, noise=noise), engine_for(same)(lq, noise=noise))
    output = description(read_weights(path))
    assert f"{sum(weight.numel() for weight in net.parameters()):,d} numbers" in output
    assert "not in the weights: scale 8 and 32 groups, as in the public configurations" in output


def test_published_configurations_are_named_and_rebuilt_from_their_weights():
    for about in json.loads((GOLDEN / "sr3_published_keys.json").read_text()).values():
        with torch.device("meta"):
            tensors = {key: torch.empty(shape) for key, shape in about["state_dict"].items()}
        tensors["betas"] = named_betas("linear", 2000, start=1e-6, end=0.01).float()
        identity = identify(tensors)
        if not about["diffusion"]["conditional"]:
            assert "makes pictures of nothing" in identity.refuses
            continue
        assert identity.facts["configuration"].startswith("sr_sr3_")
        assert identity.arguments["norm_groups"] == about["norm_groups"]
        assert identity.arguments["image_size"] == about["diffusion"]["image_size"]
        assert identity.arguments["beta_schedule"] == about["beta_schedule"]["train"]
        with torch.device("meta"):
            shapes = {key: list(value.shape) for key, value in SR3(**identity.arguments).state_dict().items()}
        assert shapes == {key: shape for key, shape in about["state_dict"].items() if key.startswith("denoise_fn.")}


def test_a_stored_schedule_that_is_not_linear_is_taken_as_it_is(tmp_path):
    betas = named_betas("warmup50", 20, start=1e-3, end=0.4)
    path, _ = published_file(tmp_path, betas=betas, inner_channel=32, norm_groups=32)
    kept = load_network(path).network.trained_schedule.kept
    assert torch.allclose(kept, schedule_of(dict(betas=betas.tolist())).kept, rtol=1e-5)


def test_files_that_cannot_be_restored_with_are_refused_in_a_sentence(tmp_path):
    path, net = published_file(tmp_path)
    with pytest.raises(CheckpointError, match="whose number of groups is unknown: 32 do not divide 8 channels"):
        load_network(path)
    torch.save(dict(params=net.state_dict()), path)
    with pytest.raises(CheckpointError, match="whose schedule and other options its tensors do not show"):
        load_network(path)
    weights = read_weights(path)
    with pytest.raises(CheckpointError, match="preset: janspiry in the file, sr3_paper in the options"):
        fit(tiny(preset="sr3_paper"), weights, where="path.pretrain_network_g", strict=True)
    with pytest.raises(CheckpointError, match=r"channel_mults: \[1, 2\] in the file, \[1, 2, 2\] in the options"):
        fit(tiny(channel_mults=[1, 2, 2]), weights, where="x", strict=True)
    del weights.tensors["denoise_fn.mid.0.attn.qkv.weight"]
    with pytest.raises(CheckpointError, match="1 missing in the file, such as denoise_fn.mid.0.attn.qkv.weight"):
        fit(tiny(), weights, where="x", strict=True)
    with pytest.raises(CheckpointError, match="is not a SR3 checkpoint"):
        fit(tiny(), Weights(path, None, dict(x=torch.zeros(1))), where="x", strict=True)


# Restoring


def carded(folder, name="sr3", **changes):
    """A file with a model card, as a training writes it, of a small network."""
    net = tiny(**changes)
    about = dict(type="SR3", scale=4, beta_schedule=SCHEDULE, sampling=dict(steps=3)) | TINY | changes
    path = folder / f"{name}.safetensors"
    write_card_file(net.state_dict(), dict(network=about, scale=about["scale"]), path)
    return path, net


def test_any_size_restores_and_padding_does_not_move_the_noise(tmp_path):
    path, net = carded(tmp_path, channel_mults=[1, 2, 2], scale=1)
    restorer = load_restorer(path, device="cpu")
    assert restorer.network.multiple_of == 4
    picture = np.random.default_rng(0).integers(0, 256, (21, 19, 3), dtype=np.uint8)
    assert restorer(picture).shape == (21, 19, 3)
    with pytest.raises(InputError, match="3x19 pixels are less than one pixel of the deepest level .* at least 4x4"):
        restorer(picture[:3])


def test_tiles_share_the_noise_of_the_picture(tmp_path):
    """With a network that passes noise on unseen, tiles differ from the whole by what networks see at edges alone."""
    net = tiny(preset="dvsr", channel_mults=[1], sampling=dict(steps=2))
    lq = torch.rand(1, 3, 40, 56)
    noise = PictureNoise(lq)
    whole = engine_for(net)(lq, noise=noise)
    tiled = engine_for(net, tile_mode="tiles", tile=24, overlap=8)(lq, noise=noise)
    apart = engine_for(net, tile_mode="tiles", tile=24, overlap=8)(lq, noise=NotTied(noise))
    # Rows and columns whose tiles see all that the whole sees: two calls look 2 * 9 pixels of the result far.
    assert (tiled - whole)[..., :40, :40].abs().max() < 1e-5
    assert (tiled - whole).abs().mean() < 0.2 * (apart - whole).abs().mean()


class NotTied:
    """Noise that every tile draws for itself."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, shape, name=START):
        return self.noise.normal(shape, name)


def test_samples_one_by_one_and_together_are_the_same(tmp_path, monkeypatch):
    path, _ = carded(tmp_path)
    restorer = load_restorer(path, device="cpu")
    picture = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    alone = restorer.samples(picture, 3)
    average = restorer.average(picture, 3)
    monkeypatch.setattr(Restorer, "_pixels_at_once", 10**6)
    together = restorer.samples(picture, 3)
    for one, other in zip(alone.restored, together.restored, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert not np.array_equal(alone.restored[0], alone.restored[1])
    assert np.array_equal(alone.restored[0], restorer(picture))
    assert np.abs(average.astype(int) - restorer.average(picture, 3)).max() <= 1
    assert alone.spread.max() > 0
    mean = np.mean([one.astype(float) for one in alone.restored], axis=0)
    inside = np.all([(one > 0) & (one < 255) for one in alone.restored], axis=0)
    assert np.abs(average - mean)[inside].max() <= 1


def test_a_batch_returns_every_picture_as_it_is_alone(tmp_path):
    net = carded(tmp_path)[1]
    lq = torch.rand(3, 3, 6, 6)
    made = engine_for(net)(lq, noise=PictureNoise(lq))
    assert made.shape == (3, 3, 24, 24)
    for one, alone in zip(lq.split(1), made.split(1), strict=True):
        assert (engine_for(net)(one, noise=PictureNoise(one)) - alone).abs().max() < 1e-5


def test_the_command_takes_steps_sampler_samples_and_cascades(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, _ = carded(tmp_path, "a", scale=2)
    second, _ = carded(tmp_path, "b", scale=4, preset="sr3_paper")
    picture = np.random.default_rng(2).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    Path("in.png").write_bytes(encode_png(picture))

    def made(*more, weights=(first,), out="out"):
        named = [part for one in weights for part in ("-w", str(one))]
        assert main(["restore", "in.png", "-o", out, "--device", "cpu", "--overwrite", *named, *more]) == 0
        return np.asarray(Image.open(f"{out}/in.png")).astype(int)

    plain = made()
    assert plain.shape == (16, 20, 3)
    assert np.array_equal(plain, made("--steps", "3"))
    others = [made("--steps", "5"), made("--sampler", "ddim"), made("--sampler", "ddim", "--eta", "0.5")]
    for index, other in enumerate(others):
        assert all(not np.array_equal(other, one) for one in [plain, *others[:index]])
    one = load_restorer(first, device="cpu", sampling=dict(sampler="ddim", eta=1.0))(picture)
    assert np.abs(one.astype(int) - plain).max() <= 1

    cascade = made(weights=(first, second))
    assert cascade.shape == (64, 80, 3)
    assert np.array_equal(cascade, made(weights=(first, second)))
    output = capsys.readouterr().err
    assert ", then " in output

    mean = made("--samples", "4", "--average")
    assert not np.array_equal(mean, plain)
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["in.png"]
    assert main(["restore", "in.png", "-o", "many", "-w", str(first), "--samples", "2", "--device", "cpu"]) == 0
    assert len(list(Path("many").glob("*.png"))) == 4
    assert "sensitivity to the noise" in capsys.readouterr().err


def test_results_of_other_samplers_are_not_taken_for_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, _ = carded(tmp_path)
    Path("in").mkdir()
    for name in "ab":
        Path(f"in/{name}.png").write_bytes(encode_png(np.full((4, 4, 3), ord(name), dtype=np.uint8)))
    command = ["restore", "in", "-o", "out", "-w", str(path), "--device", "cpu"]
    assert main(command) == 0
    assert main(command) == 0
    assert "2 kept" in capsys.readouterr().out
    assert main([*command, "--steps", "2", "--overwrite"]) == 0
    assert "2 restored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "101"], "steps: expected 1 to 100, which the schedule has, found 101"),
        (["--steps", "0"], "steps: expected 1 to 100"),
        (["--eta", "0.5"], "eta: belongs to sampler ddim, found sampler ddpm"),
        (["--sampler", "ddim", "--eta", "2"], "eta: expected 0"),
        (["--average"], "--average: needs --samples 2 or more"),
    ],
)
def test_sampling_that_cannot_be_is_refused_by_the_command(tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    path, _ = carded(tmp_path)
    Path("in.png").write_bytes(encode_png(np.zeros((4, 4, 3), dtype=np.uint8)))
    assert main(["restore", "in.png", "-o", "out", "-w", str(path), "--device", "cpu", *more]) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_networks_without_a_sampler_say_so(tmp_path):
    small = TINY | dict(attn_res=[])
    about = dict(type="SR3Regression", scale=4) | small
    path = tmp_path / "regression.safetensors"
    write_card_file(SR3Regression(scale=4, **small).state_dict(), dict(network=about, scale=4), path)
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    assert load_restorer(path, device="cpu")(picture).shape == (16, 24, 3)
    with pytest.raises(OptionError, match="steps, eta: SR3Regression has no sampler; leave it out"):
        load_restorer(path, sampling=dict(steps=3, eta=0.0))
    with pytest.raises(InputError, match="weights: expected one file to blend with, got 2"):
        load_restorer([path, path], blend=(path, 0.5))


def test_memory_is_measured_with_one_step(tmp_path):
    net = tiny(sampling=dict(steps=50), attn_res=[])
    calls = []
    net.denoise_fn.register_forward_hook(lambda *_: calls.append(1))
    engine = engine_for(net)
    planned = engine.plan(12, 16).bytes
    assert len(calls) == 1
    lq = torch.rand(1, 3, 12, 16)
    with LivingBytes() as living, torch.inference_mode():
        net.restore(lq, noise=PictureNoise(lq))
    assert living.peak / 2 < planned < living.peak * 2


# Training

NET = dict(type="SR3", scale=4, beta_schedule=SCHEDULE, sampling=dict(steps=4), **TINY)


def options(name="toy_sr3", iterations=4, **train):
    found = train_options("s1", name=name, iterations=iterations, **train)
    return found | dict(model_type="SR3Model", network_g=dict(NET))


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs("data", lmdb=False)
    return tmp_path


def test_a_training_validates_resumes_and_its_file_restores_alike(inside, capsys):
    """Validation with `val.steps` gives what the command gives with --steps; half a training goes on as a whole one."""
    whole = options()
    whole["val"] |= dict(steps=2, sampler="ddim", save_img=True)
    assert run_training(whole) == 0
    broken = options("broken")
    broken["train"] = broken["train"] | dict(total_iter=2)
    assert run_training(broken) == 0
    broken["train"]["total_iter"] = 4
    assert run_training(broken, "--auto_resume") == 0
    one, two = trained("", "toy_sr3"), trained("", "broken")
    for part in ("params", "params_ema"):
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
    assert any(not torch.equal(one["params"][name], one["params_ema"][name]) for name in one["params"])

    weights = "experiments/toy_sr3/models/net_g_latest.safetensors"
    capsys.readouterr()
    assert main(["describe", weights]) == 0
    output = capsys.readouterr().out
    assert "SR3 x4 janspiry, base 8, multipliers 1,2" in output
    assert "sampling: {'steps': 4}" in output
    command = ["restore", "data/lq", "-o", "out", "-w", weights, "--device", "cpu", "--steps", "2", "--sampler", "ddim"]
    assert main(command) == 0
    shown = next(Path("experiments/toy_sr3/visualization/p0").glob("*_4.png"))
    assert np.array_equal(np.asarray(Image.open(shown)), np.asarray(Image.open("out/p0.png")))
    with pytest.raises(CheckpointError, match="give the .safetensors file that the training wrote beside it"):
        load_network("experiments/toy_sr3/models/net_g_latest.pth")


def test_levels_per_batch_and_per_sample_train_apart(inside):
    runs = {}
    for name, more in (("own", {}), ("shared", dict(share_t=True)), ("l2", dict(pixel_opt=dict(type="MSELoss")))):
        assert run_training(options(name, 2, **more)) == 0
        runs[name] = trained("", name)["params"]["denoise_fn.downs.0.weight"]
    assert not torch.equal(runs["own"], runs["shared"])
    assert not torch.equal(runs["own"], runs["l2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(train=dict(perceptual_opt=dict(type="PerceptualLoss", layer_weights={"conv5_4": 1}))), "compares noise"),
        (dict(train=dict(share_t="often")), "train.share_t: expected true or false, found 'often'"),
        (dict(val=dict(steps=500)), "steps: expected 1 to 100, which the schedule has, found 500"),
        (dict(val=dict(sampler="euler")), "val.sampler"),
        (dict(network_g=dict(sampling=dict(step=3))), "sampling.step: unknown option"),
    ],
)
def test_trainings_that_cannot_be_are_refused(inside, capsys, change, message):
    found = options(iterations=1)
    for section, values in change.items():
        found[section] = found[section] | values
    assert run_training(found) == 1
    assert message in capsys.readouterr().err


def test_the_regression_trains_and_restores(inside):
    found = options("regression")
    about = dict(type="SR3Regression", scale=4, **TINY) | dict(attn_res=[])
    found |= dict(model_type="PlainModel", network_g=about)
    found["train"]["pixel_opt"] = dict(type="MSELoss")
    assert run_training(found) == 0
    weights = "experiments/regression/models/net_g_latest.safetensors"
    assert main(["restore", "data/lq", "-o", "out", "-w", weights, "--device", "cpu"]) == 0
    assert len(list(Path("out").glob("*.png"))) == 4


def test_samples_find_both_answers_where_regression_gives_their_mean():
    """Each degraded picture has two true ones: flat, plus or minus a checkerboard. That is what SR3 is for."""
    torch.manual_seed(0)
    board = torch.ones(4, 4)
    board[::2, ::2] = board[1::2, 1::2] = -1
    about = dict(scale=2, preset="janspiry", inner_channel=16, norm_groups=4, channel_mults=[1], attn_res=[])
    about |= dict(res_blocks=1, image_size=4)

    def pairs(count):
        lq = torch.rand(count, 3, 1, 1).mul(0.4).add(0.3).expand(-1, -1, 2, 2)
        sign = torch.randint(0, 2, (count, 1, 1, 1)) * 2.0 - 1
        return lq, lq[..., :1, :1] + 0.25 * sign * board

    net = SR3(**about, beta_schedule=SCHEDULE, level_scale=100.0, sampling=dict(steps=25))
    regression = SR3Regression(**about)
    for one, steps in ((net, 300), (regression, 100)):
        optimizer = torch.optim.Adam(one.parameters(), lr=2e-3)
        for _ in range(steps):
            lq, gt = pairs(32)
            if one is net:
                eps = torch.randn_like(gt)
                level = drawn_levels(net.trained_schedule, torch.randn(32, 2), space=net.level_space)
                found = net(lq, noised_to(2 * gt - 1, eps, level, space=net.level_space), level)
                loss = (found - eps).abs().mean()
            else:
                loss = (regression(lq) - gt).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    lq, _ = pairs(24)
    with torch.no_grad():
        sampled = net.eval().restore(lq, noise=PictureNoise(lq))
        mean = regression.eval()(lq)

    def strength(made):  # of the checkerboard, and what is left beside it
        share = ((made - lq[..., :1, :1]) * board).mean(dim=(1, 2, 3))
        return share, (made - lq[..., :1, :1] - share[:, None, None, None] * board).abs().mean()

    share, rest = strength(sampled)
    assert (share.abs() > 0.15).float().mean() > 0.9
    assert 4 <= (share > 0).sum() <= 20
    assert rest < 0.08
    share, rest = strength(mean)
    assert share.abs().max() < 0.1
    assert rest < 0.1


SMALL = {key: value for key, value in NET.items() if key not in ("type", "sampling")}


def test_with_a_residual_std_the_walk_is_over_what_the_enlarged_picture_lacks():
    """A network that knows the noise, and says of it what the best linear estimate misses, draws the truth."""
    torch.manual_seed(0)
    lq, truth = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)
    net = SR3(**SMALL, sampling=dict(steps=6, sampler="ddim"), residual_std=0.1, level_space="gamma")
    residual = (2 * truth - 1 - net.upscaled(lq)) / 0.1
    assert (net.diffused(lq, truth) - residual).abs().max() < 1e-5

    class Knowing(torch.nn.Module):
        def forward(self, seen, level):
            noisy, kept = seen[:, 3:], level[:, None, None, None]
            return (noisy - kept.sqrt() * residual) / (1 - kept).sqrt() - (1 - kept).sqrt() * noisy

    net.denoise_fn = Knowing()
    noise = PictureNoise(lq)
    assert (net.restore(lq, noise=noise) - truth).abs().max() < 1e-4
    net.sampling = Sampling(steps=6)  # ddpm
    assert (net.restore(lq, noise=noise) - truth).abs().max() < 1e-2
    with pytest.raises(OptionError, match="residual_std: expected a number above 0, found -1"):
        SR3(**SMALL, residual_std=-1)
