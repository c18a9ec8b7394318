"""AutoDIR: the published numbers of its parts and of its loop, stages of training, prompts, bad input."""

import importlib.util
import json
import math
import shlex
import zlib
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from toy import rows, run_training, train_options

pytest.importorskip("transformers", reason="needs the extra autodir")
pytest.importorskip("diffusers", reason="needs the extra autodir")

from diffir_sr.archs.autodir_arch import AutoDIR, AutoDIRSettings, Diffusion, KLLatents, recoloured  # noqa: E402
from diffir_sr.archs.autodir_assessor import (  # noqa: E402
    CATEGORIES,
    ClipTokens,
    centre_view,
    grid_views,
    mixed,
    probabilities,
    prompt_of,
)
from diffir_sr.archs.nafnet_arch import NAFNet  # noqa: E402
from diffir_sr.checkpoints import load_network  # noqa: E402
from diffir_sr.cli import basicsr_main, main  # noqa: E402
from diffir_sr.data.labelled_dataset import is_unchanged  # noqa: E402
from diffir_sr.diffusion.noise import START, PictureNoise  # noqa: E402
from diffir_sr.diffusion.sampling import (  # noqa: E402
    Prediction,
    Sigmas,
    combined,
    denoised,
    dropped,
    euler_ancestral,
    guided,
)
from diffir_sr.diffusion.schedule import scaled_linear_betas, schedule_constants  # noqa: E402
from diffir_sr.errors import CheckpointError, InputError, OptionError  # noqa: E402
from diffir_sr.families.autodir import (  # noqa: E402
    LATENTS,
    UNET,
    _autoencoder_sizes,
    _renamed,
    _tokenizer_json,
    _unet_sizes,
    converted,
    write_folder,
)
from diffir_sr.files.picture import encode_png  # noqa: E402
from diffir_sr.inference.autodir import AutoDIREngine  # noqa: E402
from diffir_sr.inference.plain import engine_for  # noqa: E402
from diffir_sr.losses import FidelityLoss, semantic_agnostic_loss  # noqa: E402
from diffir_sr.models.autodir_models import AutoDIRCorrectionModel  # noqa: E402
from diffir_sr.quickstart.autodir import DATA_COMMANDS, RESULTS, write_autodir_report  # noqa: E402
from diffir_sr.quickstart.tasks import HELD_OUT_DATA, TRAIN_DATA, recipes_of  # noqa: E402
from diffir_sr.training.recipe import read_recipe  # noqa: E402
from diffir_sr.weights_files import write_card_file  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


def worst(computed, golden):
    return (computed - golden).abs().max().item()


def case(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    path = GOLDEN / f"{name}.npz"
    arrays = {}
    if path.is_file():
        with np.load(path) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return facts, arrays


def cases(pattern):
    found = sorted(path.stem for path in GOLDEN.glob(f"{pattern}.json"))
    assert found, pattern
    return pytest.mark.parametrize("name", found)


# Schedule, sampler, guidance


@cases("autodir_schedule*")
def test_sigmas_and_t_are_the_published_ones(name):
    facts, arrays = case(name)
    betas = scaled_linear_betas(facts["timesteps"], start=facts["linear_start"], end=facts["linear_end"])
    for key, values in schedule_constants(betas).items():
        assert torch.allclose(values.float(), arrays[key], rtol=1e-6, atol=1e-12), key
    sigmas = Sigmas(facts["linear_start"], facts["linear_end"], facts["timesteps"])
    assert np.allclose(sigmas.all, arrays["sigmas_all"], rtol=1e-6)
    for count in facts["steps"]:
        visited = sigmas.visited(count)
        assert np.allclose(visited, arrays[f"sigmas_{count}"], rtol=1e-6)
        t = [sigmas.t_of(sigma) for sigma in visited[:-1]]
        assert np.abs(np.array(t) - arrays[f"t_{count}"].numpy()).max() < 5e-4


@cases("autodir_sampler*")
def test_guided_walks_are_the_published_ones(name):
    facts, arrays = case(name)
    sigmas = Sigmas()
    lq, context, null = arrays["lq_latent"], arrays["context"], arrays["null_context"]

    def eps(x, t, image, words):
        return torch.tanh(0.6 * x + 0.4 * image + 0.2 * words.mean() - t / 2000)

    for index, run in enumerate(facts["runs"]):

        def guess(x, sigma, run=run):
            t, seen = sigmas.t_of(sigma), x / math.sqrt(sigma**2 + 1)
            answers = [eps(seen, t, lq, context), eps(seen, t, lq, null), eps(seen, t, torch.zeros_like(lq), null)]
            found = guided(*answers, text_scale=run["text_scale"], image_scale=run["image_scale"])
            return denoised(x, sigma, found, prediction="eps", degraded=x)

        noise = arrays.get(f"run{index}_noise")
        steps = list(
            euler_ancestral(
                guess, arrays[f"run{index}_init"], sigmas.visited(run["steps"]), noise=lambda k, noise=noise: noise[k]
            )
        )
        for k, (x, clean) in enumerate(steps[:-1]):
            assert worst(x, arrays[f"run{index}_x"][k]) < 1e-3
            assert worst(clean, arrays[f"run{index}_denoised"][k]) < 1e-3
        assert worst(steps[-1][0], arrays[f"run{index}_out"]) < 1e-3


def test_a_network_that_finds_v_guesses_the_same_picture():
    x0, eps, sigma = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), 3.0
    kept = 1 / (1 + sigma**2)
    v = kept**0.5 * eps - (1 - kept) ** 0.5 * x0
    x = x0 + sigma * eps
    assert worst(denoised(x, sigma, v, prediction="v", degraded=x), x0) < 1e-5
    assert worst(denoised(x, sigma, eps, prediction="eps", degraded=x), x0) < 1e-5


def test_what_a_network_is_trained_to_find_gives_the_clean_latents_at_every_level():
    unet = dict(in_channels=24, out_channels=12, block_out_channels=[8], layers_per_block=1, cross_attention_dim=8)
    unet |= dict(norm_num_groups=4, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
    sigmas = Sigmas()
    clean, degraded, eps = torch.randn(3, 3, 12, 8, 8)
    t = torch.tensor([0, 500, 999])
    for prediction in get_args(Prediction):
        diffusion = Diffusion(unet=unet, pixels=2, prediction=prediction, sigmas=sigmas)
        found = diffusion.sought(clean, eps, t, degraded)
        assert worst(diffusion.cleaned(diffusion.q_sample(clean, eps, t), found, t, degraded), clean) < 1e-4
        for row, sigma in enumerate(sigmas.all[t].tolist()):
            x = clean[row] + sigma * eps[row]
            assert (
                worst(denoised(x, sigma, found[row], prediction=prediction, degraded=degraded[row]), clean[row]) < 1e-4
            )
    assert worst(combined(clean, 1e-4, degraded), clean) < 1e-4
    assert worst(combined(clean + 1e4 * eps, 1e4, degraded), degraded) < 1e-2


def test_conditions_are_dropped_as_often_as_said():
    draws = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0))
    text, image = dropped(draws)
    for share, expected in ((text, 0.10), (image, 0.10), (text & image, 0.01)):
        assert abs(share.float().mean().item() - expected) < 3 * math.sqrt(expected * (1 - expected) / 10_000)
    text, image = dropped(draws, how="shared")
    assert abs((text & image).float().mean().item() - 0.05) < 0.0066
    edges = torch.tensor([[0.0999, 0.05], [0.1, 0.1499], [0.3, 0.15], [0.3, 0.049]])
    assert [part.tolist() for part in dropped(edges)] == [[True, False, False, False], [True, True, False, False]]


# The assessor


@cases("autodir_biqa_math*")
def test_probabilities_losses_and_mixtures_are_the_published_ones(name):
    facts, arrays = case(name)
    image, text = (arrays[key].clone().requires_grad_() for key in ("image_embeds", "text_embeds"))
    scale = torch.tensor(facts["logit_scale"], requires_grad=True)
    p = probabilities(image, text, scale)
    assert worst(p, arrays["probabilities"]) < 1e-5
    loss = FidelityLoss()(p, arrays["labels"])
    assert loss.item() == pytest.approx(facts["fidelity_loss"], rel=1e-4)
    loss.backward()
    for value, key in ((image, "grad_image_embeds"), (text, "grad_text_embeds")):
        assert worst(value.grad, arrays[key]) < 1e-5
    assert scale.grad.item() == pytest.approx(facts["grad_logit_scale"], rel=1e-3)
    assert FidelityLoss()(p.detach(), arrays["soft_labels"]).item() == pytest.approx(facts["fidelity_soft"], rel=1e-4)
    one, even = torch.eye(8), torch.full((8, 8), 1 / 8)
    assert FidelityLoss()(one, one).item() == pytest.approx(facts["fidelity_perfect"], abs=2e-8)
    assert FidelityLoss()(even, one).item() == pytest.approx(facts["fidelity_uniform"], rel=1e-5)
    k, i, j = (torch.arange(1, count + 1) for count in (8, 77, 768))
    states = (k[:, None, None] * i[:, None] * j) % 17 / 17 - 0.5
    assert worst(mixed(arrays["labels"], states)[..., ::7, ::16], arrays["train_mixture"]) < 1e-5
    left = list(facts["categories"])
    for round_, expected in enumerate(facts["inference"]):
        places = [facts["categories"].index(one) for one in left]
        assert left == expected["candidates"]
        p = probabilities(image[:1], text[places], scale).detach()
        assert np.allclose(p[0].numpy(), expected["probabilities"], atol=1e-5)
        assert left[p.argmax()] == expected["main"]
        context = mixed(p, states[places])[:, ::7, ::16]
        assert worst(context[0], arrays["inference_mixture"][round_]) < 1e-5
        left.remove(expected["main"])


@cases("autodir_prompts*")
def test_prompts_of_the_categories_have_their_published_tokens_without_a_vocabulary(name):
    facts, _ = case(name)
    assert facts["categories"] == list(CATEGORIES)
    tokens = ClipTokens(None)
    for category in (*CATEGORIES, None):
        prompt = "" if category is None else prompt_of(category)
        assert [tokens.start, *tokens(prompt), tokens.end] == facts["ids"][prompt]


def test_the_view_is_the_crop_of_the_processor_of_clip():
    from transformers import CLIPImageProcessorPil

    for height, width in ((40, 28), (50, 61), (20, 29), (33, 32), (31, 70)):
        picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        side = {"height": 32, "width": 32}
        theirs = CLIPImageProcessorPil(do_resize=False, crop_size=side)(picture, return_tensors="pt")["pixel_values"]
        ours = centre_view(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, 32)
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip  # noqa: E501
        assert worst((ours - mean) / std, theirs) < 1e-5


# The loop


class GivenTokens:
    """The tokens of a golden case."""

    def __init__(self, prompts):
        self.ids = {prompt: ids[1:-1] for prompt, ids in prompts.items()}
        self.start, self.end = prompts[""][0], prompts[""][-1]

    def __call__(self, text):
        return self.ids[text]


def filled(shapes, prefixes, *, logit_scale, skipped):
    """A checkpoint by its shapes whose parameters follow from their names."""
    tensors, sums = {}, dict.fromkeys(prefixes, 0.0)
    for key, shape in shapes.items():
        prefix = next((one for one in prefixes if key.startswith(one)), None)
        if key.endswith("logit_scale"):
            values = np.float32(logit_scale)
        elif prefix is None or key in skipped:
            tensors[key] = torch.zeros(shape)
            continue
        else:
            seed = zlib.crc32((prefixes[prefix] + key.removeprefix(prefix)).encode())
            values = np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)
            if len(shape) == 1:
                values = 1 + np.float32(0.1) * values if key.endswith("weight") else np.float32(0.05) * values
            else:
                values = values / np.float32(math.sqrt(np.prod(shape[1:])))
        sums[prefix] += np.asarray(values, np.float64).sum()
        tensors[key] = torch.from_numpy(np.asarray(values))
    return tensors, sums


def checkpoint(facts):
    skipped = {key for key in facts["state_dict"] if key.endswith("position_ids")}
    scale = facts["config"]["logit_scale"]
    tensors, sums = filled(facts["state_dict"], facts["weight_prefixes"], logit_scale=scale, skipped=skipped)
    assert sums == pytest.approx(facts["weight_checksums"], rel=1e-6)
    return tensors


def sizes(facts):
    config = facts["config"]
    return dict(heads=config["unet"]["num_heads"], text=config["text"], vision=config["vision"], crop=config["crop"])


def system(facts):
    """The network of a golden case, out of a checkpoint in the published layout."""
    tensors, arguments = converted(checkpoint(facts), **sizes(facts))
    net = AutoDIR(**arguments).eval().requires_grad_(False)
    net.load_state_dict(tensors)
    net.assessor.tokens = GivenTokens(facts["prompts"])
    return net


class RunNoise:
    """The noise of a golden run; the start is stored times the first sigma."""

    def __init__(self, arrays, index, sigma):
        self.start, self.steps = arrays[f"run{index}_z_init"] / sigma, arrays[f"run{index}_noise"]

    def normal(self, shape, name=START):
        return self.start if name == START else self.steps[int(name.removeprefix("step "))]


@torch.no_grad()
@cases("autodir_pipeline_*")
def test_the_loop_is_the_published_one(name):
    facts, arrays = case(name)
    net = system(facts)
    picture = arrays["image_uint8"]
    lq = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
    null = net.assessor.text([""], mask_pads=False)[0]
    assert worst(null[:, ::4, ::16], arrays["null_context"]) < 1e-3
    for index, run in enumerate(facts["runs"]):
        contexts, seen = [], []
        whole = net.undone

        def spied(image, context, *, noise, whole=whole, contexts=contexts):
            contexts.append(context)
            return whole(image, context, noise=noise)

        net.undone = spied
        net.restore_settings = AutoDIRSettings().changed(
            steps=run["steps"], text_scale=run["text_scale"], image_scale=run["image_scale"], prompt=run.get("custom")
        )
        noise = RunNoise(arrays, index, net.sigmas.visited(run["steps"])[0])
        rounds = list(net.rounds(lq, noise=noise))
        net.undone = whole
        done = [one for one in rounds if one.category != "no"]
        assert len(done) == run["passes"]
        for one, expected in zip(rounds, run["biqa"], strict=False):
            assert [prompt_of(category) for category in one.probabilities] == expected["candidates"]
            assert np.allclose(list(one.probabilities.values()), expected["probabilities"], atol=1e-3)
            assert one.prompt == prompt_of(expected["main"])
            seen.append(net.assessor.pixels((one.before + 1) / 2))
        if seen:
            assert worst(torch.cat(seen), arrays[f"run{index}_pixel_values"]) < 1e-3
        for k, one in enumerate(done):
            assert worst(one.before, arrays[f"run{index}_input"][k]) < 1e-3
            assert worst(contexts[k][:, ::4, ::16], arrays[f"run{index}_context"][k]) < 1e-3
            assert worst(net.diffusion.condition(one.before), arrays[f"run{index}_lq_latent"][k]) < 1e-3
            assert worst(one.made, arrays[f"run{index}_air"][k]) < 1e-3
            corrected = net.correction(one.before, one.made)
            assert worst(corrected, arrays[f"run{index}_scm"][k]) < 1e-3
            assert worst(one.after, one.made if one.category == "low resolution" else corrected) == 0
            for suffix, result in (("result", one.made), ("result_w_SCM", corrected)):
                for fixed in ("", "_colorcorrect"):
                    stored = arrays.get(f"run{index}_png{k}_{suffix}{fixed}")
                    if stored is not None:
                        made = recoloured(result, one.before) if fixed else result
                        made = (((made + 1) / 2).clamp(0, 1) * 255)[0].permute(1, 2, 0).floor()
                        assert worst(made, stored) <= 1


@cases("autodir_colour*")
def test_colours_are_given_back_as_published(name):
    _, arrays = case(name)
    fixed = recoloured(arrays["content"], arrays["style"])
    assert worst(fixed, arrays["fixed"]) < 1e-4
    assert worst((((fixed + 1) / 2).clamp(0, 1) * 255).floor(), arrays["saved"]) <= 1


@cases("autodir_unet_*")
def test_the_u_net_computes_the_published_output_through_the_renaming(name):
    facts, arrays = case(name)
    tensors, sums = filled({f"u.{k}": v for k, v in facts["state_dict"].items()}, {"u.": facts["weight_prefix"]}, logit_scale=0, skipped=())  # fmt: skip  # noqa: E501
    assert sums["u."] == pytest.approx(facts["weight_checksum"], rel=1e-6)
    own = {key.removeprefix("u."): value for key, value in tensors.items()}
    about = _unet_sizes(own, facts["arch_kwargs"]["num_heads"])
    net = Diffusion(unet=about, pixels=2, sigmas=Sigmas())
    net.unet.load_state_dict(_renamed("unet", {f"{UNET}{key}": value for key, value in own.items()}, about))
    given = arrays["z_t"], arrays["lq_latent"]
    found = net(*given, arrays["t"], arrays["context"])
    assert worst(found, arrays["eps"]) < 5e-5
    assert worst(net(*given, torch.tensor([0.0, 999.0]), arrays["context"]), arrays["eps_t0_t999"]) < 5e-5
    loss = (found - arrays["noise"]).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-4)
    norms = sorted(weight.grad.norm().item() for weight in net.unet.parameters())
    published = sorted(facts["grad_norms"].values())
    assert norms == pytest.approx(published, rel=2e-3, abs=1e-6 * max(published))
    with torch.no_grad():
        for weight in net.unet.parameters():
            if weight.ndim > 1:
                weight.mul_(0.02)
        assert worst(net(*given, arrays["t"], arrays["context"]), arrays["eps_small"]) < 2e-6


@torch.no_grad()
@cases("autodir_vae_*")
def test_the_autoencoder_computes_the_published_output_through_the_renaming(name):
    facts, arrays = case(name)
    tensors, sums = filled({f"v.{k}": v for k, v in facts["state_dict"].items()}, {"v.": facts["weight_prefix"]}, logit_scale=0, skipped=())  # fmt: skip  # noqa: E501
    assert sums["v."] == pytest.approx(facts["weight_checksum"], rel=1e-6)
    own = {key.removeprefix("v."): value for key, value in tensors.items()}
    about = _autoencoder_sizes(own)
    latents = KLLatents(about)
    latents.net.load_state_dict(_renamed("vae", {f"{LATENTS}{key}": value for key, value in own.items()}, about))
    mean, deviation = latents.moments(arrays["x"])
    assert worst(mean, arrays["mean"]) < 1e-4
    assert worst(2 * deviation.log(), arrays["logvar"]) < 1e-4
    target = facts["scale_factor"] * (mean + deviation * arrays["posterior_noise"])
    assert worst(target, arrays["z_target"]) < 1e-4
    assert worst(latents.decoded(arrays["z"] / facts["scale_factor"]), arrays["decoded"]) < 1e-4
    assert worst(latents.decoded(mean), arrays["reconstruction"]) < 1e-4
    for weight in latents.net.parameters():
        if weight.ndim > 1:
            weight.mul_(0.02)
    assert worst(latents.decoded(arrays["z"]), arrays["decoded_small"]) < 1e-5


class GivenDraws:
    """The random numbers of a golden training step, by the names that the model asks for."""

    def __init__(self, facts, arrays, step):
        t = torch.tensor(facts["t"][step], dtype=torch.float64)
        uniform = [torch.tensor(facts[key][step], dtype=torch.float64) for key in ("u_text", "u_image")]
        # In between two numbers where a bound of the dropping is met exactly.
        self.values = {
            "draws": torch.special.ndtri(torch.stack([*(one + 1e-9 for one in uniform), (t + 0.5) / 1000], dim=1)),
            "posterior": arrays["posterior_noise"][step],
            "eps": arrays["noise"][step],
        }

    def normal(self, shape, name=START):
        assert tuple(shape) == tuple(self.values[name].shape)
        return self.values[name]


def stage(kind, net, lq, gt, labels, **train):
    """A model of a stage around a network, without files."""
    model = object.__new__(kind)
    model.net_g, model.device = net, torch.device("cpu")
    model.opt = dict(train=dict(train), dist=False, manual_seed=0, rank=0)
    model.lq, model.gt, model.label = lq, gt, torch.tensor(labels)
    model.cri_pix = torch.nn.MSELoss()
    net.requires_grad_(False)
    for part in model.learning(net):
        part.requires_grad_(True)
    return model


@cases("autodir_stage3_*")
def test_the_correction_trains_as_published(name, monkeypatch):
    facts, arrays = case(name)
    net = system(facts)
    labels = [[*map(prompt_of, CATEGORIES)].index(prompt) for prompt in facts["prompts_of_batch"]]
    lq, gt = ((arrays[key] + 1) / 2 for key in ("lq", "gt"))
    model = stage(AutoDIRCorrectionModel, net, lq, gt, labels)
    p = net(lq)
    y = torch.nn.functional.one_hot(torch.tensor(labels), 8).float()
    seen = {}
    correct = net.correction.forward
    monkeypatch.setattr(net.correction, "forward", lambda a, b: seen.setdefault("out", correct(a, seen.setdefault("made", b))))  # fmt: skip  # noqa: E501
    optimizer = torch.optim.AdamW(net.correction.parameters(), lr=1e-3)
    for step, expected in enumerate(facts["steps"]):
        seen.clear()
        draws = GivenDraws(facts, arrays, step)
        monkeypatch.setattr(model, "noise_at", lambda current_iter, draws=draws: draws)
        noisy, condition, t, context, eps, clean = model.prepared(draws)
        assert t.tolist() == facts["t"][step]
        found = model.answer(noisy, condition, t, context)
        if step == 0:
            assert worst(noisy, arrays["x_noisy"]) < 1e-4
            assert worst(condition, arrays["lq_latent"]) < 1e-4
            assert worst(context[:, ::4, ::16], arrays["context"]) < 1e-3
            assert worst(found, arrays["eps"]) < 1e-4
        simple = (found - net.diffusion.sought(clean, eps, t, condition)).square().mean()
        assert simple.item() == pytest.approx(expected["loss_simple"], rel=1e-4)
        assert FidelityLoss()(p, y).item() == pytest.approx(expected["clip_loss"], rel=1e-4)
        losses, _ = model.compute_losses(step)
        assert losses["l_pix"].item() == pytest.approx(expected["loss_final"], rel=1e-4)
        optimizer.zero_grad()
        losses["l_pix"].backward()
        if step == 0:
            assert worst(seen["made"], arrays["one_step_image"]) < 1e-4
            assert worst(seen["out"], arrays["scm_out"]) < 1e-4
            norms = {name: weight.grad.norm().item() for name, weight in net.correction.named_parameters()}
            published = facts["grad_norms"]
            assert norms == pytest.approx(published, rel=1e-3, abs=1e-6 * max(published.values()))
            assert all(weight.grad is None for part in (net.assessor, net.diffusion) for weight in part.parameters())
        optimizer.step()


# A small system


SMALL = dict(
    assessor=dict(
        text=dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1),
        conv=dict(width=8, blocks=3), projection_dim=16, vocab_size=64, crop=32, biqa_view="grid_mean",
    ),
    pixels=2, prediction="v",
    unet=dict(
        in_channels=24, out_channels=12, block_out_channels=[16, 32], layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    ),
    correction=dict(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]),
    restoring=dict(steps=2, max_rounds=3),
)  # fmt: skip


def small(**changes):
    torch.manual_seed(0)
    net = AutoDIR(**(SMALL | changes))
    for weight in net.correction.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return net.eval().requires_grad_(False)


def carded(folder, **changes):
    path = folder / "autodir.safetensors"
    write_card_file(small(**changes).state_dict(), dict(network=dict(type="AutoDIR", **(SMALL | changes))), path)
    return path


def picture(height=26, width=37, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saying(net, *categories):
    """The assessor finds these, one after the other."""
    left = list(categories)

    def likelihoods(image, embeddings):
        known = [category for category in CATEGORIES if category not in output]
        place = known.index(left[0])
        output.append(left.pop(0))
        return torch.nn.functional.one_hot(torch.tensor([place]), len(known)).float()

    output = []
    net.assessor.likelihoods = likelihoods
    return net


def rounds_of(net, lq=None):
    lq = torch.rand(1, 3, 16, 16) if lq is None else lq
    return list(net.rounds(2 * lq - 1, noise=PictureNoise(lq)))


def test_the_loop_ends_when_nothing_is_wrong_and_never_says_a_thing_twice():
    net = saying(small(restoring=dict(steps=1, max_rounds=7)), "rain", "haze", "no")
    rounds = rounds_of(net)
    assert [one.category for one in rounds] == ["rain", "haze", "no"]
    assert [list(one.probabilities) for one in rounds][2] == [c for c in CATEGORIES if c not in ("rain", "haze")]
    assert rounds[2].after is rounds[2].before is rounds[1].after
    assert torch.equal(rounds[1].before, rounds[0].after)
    every = [category for category in CATEGORIES if category != "no"]
    assert [one.category for one in rounds_of(saying(net, *every, "no"))] == every  # seven rounds, no eighth look
    net.adjust(max_rounds=2)
    assert len(rounds_of(saying(net, *every))) == 2
    first = saying(net, "no")
    assert torch.equal(first.restore(torch.rand(1, 3, 16, 16).clamp(0, 1), noise=None) * 0, torch.zeros(1, 3, 16, 16))


def test_low_resolution_passes_the_uncorrected_picture_on_and_weights_go_by_category():
    net = saying(small(), "low resolution", "rain", "no")
    one, other, _ = rounds_of(net)
    assert one.after is one.made
    assert worst(other.after, net.correction(other.before, other.made)) == 0
    net.adjust(structure={"low-resolution": 0.5, "rain": 0.0})
    one, other, _ = rounds_of(saying(net, "low resolution", "rain", "no"))
    assert worst(one.after, net.correction(one.before, one.made, weight=0.5)) == 0
    assert other.after is other.made


def test_every_round_starts_from_the_same_noise_and_a_batch_is_its_pictures():
    net = small()
    net.adjust(degradations=["rain", "noise"])
    lq = torch.rand(2, 3, 16, 16)
    together = net.restore(lq, noise=PictureNoise(lq))
    for row in range(2):
        alone = net.restore(lq[row : row + 1], noise=PictureNoise(lq[row : row + 1]))
        assert worst(together[row : row + 1], alone) < 1e-5
    asked = []

    class Watched:
        def normal(self, shape, name=START):
            asked.append(name)
            return torch.zeros(shape)

    list(net.rounds(2 * lq[:1] - 1, noise=Watched()))
    assert asked == [START, "step 0"] * 2


def test_words_of_the_user_are_one_round_without_the_assessor():
    net = small()
    net.assessor.likelihoods = None  # which would not be called
    net.adjust(prompt="Remove the raindrops!")
    (one,) = rounds_of(net)
    assert one.category is None
    assert one.prompt == "Remove the raindrops!"
    net.adjust(prompt="brighten it")
    assert worst(rounds_of(net)[0].made, one.made) > 0


def test_guidance_with_scales_of_one_calls_the_network_once_and_the_branches_are_in_order():
    net, calls = small(), []

    def answer(noisy, condition, t, context):
        calls.append(len(noisy))
        return condition.mean(dim=(1, 2, 3), keepdim=True) + context.mean(dim=(1, 2))[:, None, None, None] + 0 * noisy

    net.diffusion.forward = answer
    condition, context = torch.full((1, 12, 4, 4), 2.0), torch.full((1, 77, 16), 5.0)
    net.predict_clean(condition, context)(torch.zeros(1, 12, 4, 4), 1.0)
    assert calls == [1]
    net.adjust(text_scale=3.0, image_scale=1.5)
    null = net.assessor.text([""], mask_pads=False)[0].mean().item()
    made = net.predict_clean(condition, context)(torch.zeros(1, 12, 4, 4), 1.0)
    assert calls == [1, 3]
    found = null + 3.0 * (5.0 - null) + 1.5 * 2.0
    assert made.mean().item() == pytest.approx(-found / 2**0.5, rel=1e-4)  # v at sigma 1, x = 0


def test_values_that_are_not_finite_end_the_loop_with_the_last_good_picture(caplog):
    net = small()
    net.adjust(degradations=["rain", "haze", "noise"])
    whole, count = net.undone, []

    def broken(image, context, *, noise):
        count.append(1)
        made = whole(image, context, noise=noise)
        return made * float("nan") if len(count) == 2 else made

    net.undone = broken
    rounds = rounds_of(net)
    assert len(rounds) == 2
    assert torch.equal(rounds[1].after, rounds[0].after)
    assert "round 2 (A photo needs haze artifact reduction) made values that are not finite" in rounds[1].note


def test_latents_in_tiles_fade_into_each_other_under_one_prompt():
    net = small()
    net.adjust(degradations=["rain"], steps=1)
    lq = torch.rand(1, 3, 48, 64)
    whole = net.restore(lq, noise=PictureNoise(lq))
    tiled = engine_for(net, tile_mode="tiles", tile=32, overlap=8)
    assert "tiles of 32 pixels" in str(tiled.plan(48, 64))
    made = tiled(lq, noise=PictureNoise(lq))
    assert made.shape == whole.shape
    assert 0 < worst(made, whole) < 5
    net.tile = (64, 8)
    assert torch.equal(net.restore(lq, noise=PictureNoise(lq)), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "steps: expected 1 to 1000"),
        (dict(max_rounds=0), "max_rounds: expected 1 or more, found 0"),
        (dict(prompt="x", degradations=["rain"]), "both say what to undo"),
        (dict(degradations=["rian"]), "degradation 'rian' is unknown; did you mean rain"),
        (dict(sampler="ddim"), "sampler: AutoDIR has no such option"),
    ],
)
def test_wishes_that_cannot_be_are_refused(changes, message):
    with pytest.raises((OptionError, InputError), match=message):
        small().adjust(**changes)


def test_a_prompt_that_is_too_long_is_reported_and_cut(caplog):
    net = small()
    net.adjust(prompt="rain " * 90)
    assert "has 92 tokens, and the model sees 77: its end is left out" in caplog.text
    assert net.assessor.ids(["rain " * 90]).shape == (1, 77)
    assert net.assessor.ids(["rain " * 90])[0, -1] == net.assessor.tokens.end


def test_free_texts_need_the_vocabulary_of_clip():
    with pytest.raises(InputError, match="CLIP's vocabulary is needed for free texts"):
        ClipTokens(None)("make it nice")


@cases("autodir_prompts*")
def test_words_of_clip_have_their_published_tokens(name, tmp_path):
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("needs the word list of the package open_clip_torch")
    words = Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    (tmp_path / "tokenizer.json").write_bytes(_tokenizer_json(words))
    tokens, facts = ClipTokens(str(tmp_path / "tokenizer.json")), case(name)[0]
    for prompt, ids in facts["ids"].items():
        assert [tokens.start, *tokens(prompt), tokens.end] == ids


def test_a_vocabulary_that_is_none_is_refused(tmp_path):
    (tmp_path / "words.txt").write_text("no words")
    with pytest.raises(InputError, match="is neither CLIP's word list .* nor a tokenizer.json"):
        _tokenizer_json(tmp_path / "words.txt")
    with pytest.raises(InputError, match="no such file"):
        _tokenizer_json(tmp_path / "absent.json")


def test_published_quirks_are_options():
    lq = torch.rand(1, 3, 16, 16)
    net = small(restoring=dict(steps=2, degradations=["rain", "haze"], structure=3.0))
    plain = net.restore(lq, noise=PictureNoise(lq))
    assert plain.amax() > 1  # the correction left the range, and the second round saw that
    net.adjust(rounding="floor")
    levels = net.restore(lq, noise=PictureNoise(lq)) * 255
    assert torch.equal(levels.round(), (plain.clamp(0, 1) * 255).floor())
    assert worst(levels, levels.round()) < 1e-4
    net.adjust(rounding="nearest", clamp=True)
    clamped = list(net.rounds(2 * lq - 1, noise=PictureNoise(lq)))
    assert clamped[1].before.abs().amax() <= 1
    asked, seen = small(), []
    asked.assessor.likelihoods = lambda image, embeddings: seen.append(asked.assessor.view) or torch.eye(8)[7:]
    for view in ("grid_mean", "center", "grid_geometric"):
        asked.adjust(view=view)
        asked.restore(lq, noise=PictureNoise(lq))
    assert seen == ["grid_mean", "center", "grid_geometric"]


def test_offloaded_parts_are_on_the_accelerator_one_at_a_time_and_only_to_work(monkeypatch):
    net = small(restoring=dict(steps=2, max_rounds=2, structure=1.0, text_scale=2.0))
    saying(net, "rain", "haze")
    parts = {net.assessor: "assessor", net.diffusion.unet: "unet", net.diffusion.latents: "latents",
             net.correction: "correction"}  # fmt: skip
    there, worked = set(), []

    def move(part, device):
        (there.add if isinstance(device, torch.device) else there.discard)(parts[part])
        assert len(there) <= 1
        return part

    def works(name):
        def look(module, *_):
            assert there == {name}
            worked.append(name)

        return look

    for part in parts:
        monkeypatch.setattr(part, "to", partial(move, part))
    net.assessor.clipmodel.text_model.register_forward_pre_hook(works("assessor"))
    net.diffusion.unet.register_forward_pre_hook(works("unet"))
    net.correction.register_forward_pre_hook(works("correction"))
    net.adjust(offload=True, text_scale=1.0)
    lq = torch.rand(1, 3, 16, 16)
    net.restore(lq, noise=PictureNoise(lq))
    assert worked.count("unet") == 2 * 2
    assert worked.count("correction") == 2
    assert "assessor" in worked
    assert not there
    with pytest.raises(OptionError, match="offload: no accelerator is used"):
        AutoDIREngine(net, device="cpu")


# Files


def test_a_converted_checkpoint_is_a_folder_that_restores_as_the_network(tmp_path, capsys, monkeypatch):
    facts, _ = case("autodir_pipeline_tiny")
    tensors = checkpoint(facts)
    torch.save(dict(state_dict=tensors, epoch=3, callbacks={}), tmp_path / "autodir.ckpt")
    monkeypatch.setattr("diffir_sr.families.autodir.converted", lambda tensors: converted(tensors, **sizes(facts)))  # fmt: skip  # noqa: E501
    assert main(["describe", str(tmp_path / "autodir.ckpt")]) == 0
    with pytest.raises(CheckpointError, match="diffir weights convert FILE -o FOLDER"):
        load_network(tmp_path / "autodir.ckpt")
    folder = tmp_path / "autodir"
    assert main(["weights", "convert", str(tmp_path / "autodir.ckpt"), "-o", str(folder)]) == 0
    assert "5 files" in capsys.readouterr().out
    loaded = load_network(folder)
    net = system(facts)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in loaded.network.state_dict().items())
    assert main(["describe", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "AutoDIR, " in output
    assert "correction: " in output
    (folder / "unet.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet.safetensors is missing; copy the whole folder"):
        load_network(folder)


def test_tensors_that_are_missing_or_belong_nowhere_are_named():
    facts, _ = case("autodir_pipeline_tiny")
    tensors = checkpoint(facts)
    with pytest.raises(CheckpointError, match="no tensor begins with NAFNet."):
        converted({key: value for key, value in tensors.items() if not key.startswith("NAFNet.")}, **sizes(facts))
    with pytest.raises(CheckpointError, match="1 tensors belong to no part of AutoDIR, such as cond_stage_model.x"):
        converted(tensors | {"cond_stage_model.x": torch.zeros(1)}, **sizes(facts))
    with pytest.raises(
        CheckpointError, match=r"1 tensors of the unet have no place, such as model.diffusion_model.xyz"
    ):
        converted(tensors | {"model.diffusion_model.xyz.weight": torch.zeros(1)}, **sizes(facts))
    with pytest.raises(CheckpointError, match="whose heads and layers the tensors do not show"):
        converted(tensors, heads=4)


@cases("autodir_published_keys*")
def test_every_published_tensor_has_its_place(name):
    facts, _ = case(name)
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in facts["state_dict"].items()}
        made, arguments = converted(tensors)
        net = AutoDIR(**arguments)
    assert sum(weight.numel() for weight in net.parameters()) == facts["n_params"]
    assert {key: value.shape for key, value in made.items()} == {key: value.shape for key, value in net.state_dict().items()}  # fmt: skip  # noqa: E501
    with torch.device("meta"):
        assert AutoDIR().state_dict().keys() == net.state_dict().keys()


# Commands


def test_the_command_restores_any_picture_with_a_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = carded(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encode_png(picture()))
    (tmp_path / "in/deep.png").write_bytes(encode_png(np.random.default_rng(1).integers(0, 65536, (9, 12, 2), dtype=np.uint16)))  # fmt: skip  # noqa: E501
    words = ["restore", "in", "-o", "out", "-w", str(weights), "--device", "cpu"]
    assert main([*words, "--degradations", "rain,underexposure", "--structure", "rain=0.5", "--trace"]) == 0
    assert np.asarray(Image.open("out/a.png")).shape == (26, 37, 3)
    trace = json.loads(Path("out/a.trace.json").read_text())
    assert [one["category"] for one in trace["rounds"]] == ["rain", "underexposure"]
    assert trace["settings"]["restoring"]["structure"] == {"rain": 0.5}
    assert Path("out/deep.trace.png").is_file()
    first = Path("out/a.png").read_bytes()
    assert main([*words, "--degradations", "rain,underexposure", "--structure", "rain=0.5", "--overwrite"]) == 0
    assert Path("out/a.png").read_bytes() == first
    assert main([*words, "--prompt", "brighten", "--steps", "1", "--overwrite"]) == 0
    assert Path("out/a.png").read_bytes() != first
    capsys.readouterr()
    for more, message in (
        (["--degradations", "rian"], "did you mean rain"),
        (["--structure", "much"], "--structure: expected a number, or rain=0.5,haze=1; got 'much'"),
        (["--sampler", "ddim"], "sampler: AutoDIR has no such option"),
    ):
        assert main([*words, *more, "--overwrite"]) == 1
        assert message in capsys.readouterr().err


def test_assessing_writes_a_table_and_json_of_every_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = carded(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encode_png(picture()))
    (tmp_path / "in/grey.png").write_bytes(encode_png(picture()[..., :1]))
    assert main(["assess", "in", "-w", str(weights), "--device", "cpu", "--json", "said.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    record = json.loads(Path("said.json").read_text())
    for line, one in zip(lines, record["pictures"], strict=True):
        assert list(one["probabilities"]) == list(CATEGORIES)
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["category"] == max(one["probabilities"], key=one["probabilities"].get)
        assert f"{one['picture']}" in line
        assert one["category"] in line
    expected = load_network(weights).network(torch.from_numpy(picture()).permute(2, 0, 1)[None] / 255)
    assert list(record["pictures"][0]["probabilities"].values()) == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert main(["assess", "in", "-w", str(weights), "--view", "center", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["view"] == "center"
    (tmp_path / "in/bad.png").write_bytes(b"\x89PNG broken")
    assert main(["assess", "in", "-w", str(weights)]) == 1
    assert "could not be read" in capsys.readouterr().out


def test_pairs_are_counted_by_what_they_are_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = carded(tmp_path)
    write_kinds(tmp_path)
    capsys.readouterr()
    assert main(["assess", "pairs", "--pairs", "-w", str(weights), "--device", "cpu", "--json", "counts.json"]) == 0
    table = capsys.readouterr().out
    counts = np.array(json.loads(Path("counts.json").read_text())["rows are what is wrong, columns what was said"])
    assert counts.sum(axis=1).tolist() == [2, 0, 0, 2, 0, 0, 0, 2]  # each ground truth once
    net = load_network(weights).network
    for kind, row in (("noise", 0), ("underexposure", 3)):
        for path in sorted(Path(f"pairs/{kind}/input").glob("*.png")):
            picture = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
            counts[row, int(net(picture).argmax())] -= 1
    assert not counts[:7].any()
    assert "| is \\ named | noise |" in table
    assert "of 6 pictures are named right" in table
    assert main(["assess", "photos", "--pairs", "-w", str(weights)]) == 1
    assert "no folders named after kinds of degradation" in capsys.readouterr().err


def test_the_doctor_asks_the_assessor_about_ground_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = carded(tmp_path)
    write_kinds(tmp_path)
    net, answers = load_network(weights).network, iter(("haze", "no"))
    net.assessor.likelihoods = lambda image, embeddings: torch.eye(8)[[CATEGORIES.index(next(answers))]]
    monkeypatch.setattr("diffir_sr.doctor.sets.load_assessor", lambda path: net)
    capsys.readouterr()
    assert main(["doctor", "data", "photos", "--assessor", str(weights), "--jobs", "1", "--json", "found.json"]) == 3
    found = json.loads(Path("found.json").read_text())["findings"]
    degraded = [(one["where"], one["found"]) for one in found if one["check"] == "degraded"]
    assert degraded == [("photos/p0.png", "haze (100%)")]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    nafnet = Path("nafnet.safetensors")
    card = dict(network=dict(type="NAFNet", width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]))
    write_card_file(NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]).state_dict(), card, nafnet)
    assert main(["doctor", "data", "photos", "--assessor", str(nafnet)]) == 1
    assert "NAFNet has no assessor; give an AutoDIR" in capsys.readouterr().err


def test_views_of_a_grid_cover_the_picture():
    image = torch.arange(50.0 * 70).reshape(1, 1, 50, 70).expand(-1, 3, -1, -1)
    views = grid_views(image, 32)
    assert views.shape == (2 * 3, 1, 3, 32, 32)
    assert set(views[:, 0, 0].flatten().tolist()) == set(image[0, 0].flatten().tolist())
    assert torch.equal(grid_views(image[..., :20, :20], 32)[0], centre_view(image[..., :20, :20], 32))


def test_squares_are_averaged_by_the_mean_or_the_geometric_mean():
    assessor = small().assessor
    image = torch.rand(1, 3, assessor.crop, 2 * assessor.crop)
    each = []
    for half in image.chunk(2, dim=-1):
        assessor.view = "center"
        each.append(assessor(half))
    assessor.view = "grid_mean"
    assert worst(assessor(image), (each[0] + each[1]) / 2) < 1e-6
    assessor.view = "grid_geometric"
    product = (each[0] * each[1]).sqrt()
    assert worst(assessor(image), product / product.sum()) < 1e-6


# Training


def write_kinds(folder):
    """Pairs of two kinds from a photograph."""
    photo = skimage.data.astronaut()
    for number in range(2):
        path = folder / f"photos/p{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.ascontiguousarray(photo[40 * number : 40 * number + 48, 100:148])))
    words = [
        "prepare",
        "degrade",
        str(folder / "photos"),
        "-o",
        str(folder / "pairs"),
        "--kind",
        "noise",
        "underexposure",
    ]
    assert main([*words, "--jobs", "1"]) == 0


def recipe(name, kind, *, loss, iterations=2, **train):
    """Options of a training of the small system on two kinds."""
    kinds = ("noise", "underexposure")
    data = dict(
        type="LabelledPairsDataset", degradations=list(kinds),
        dataroot_lq=[f"pairs/{one}/input" for one in kinds], dataroot_gt=[f"pairs/{one}/target" for one in kinds],
    )  # fmt: skip
    options = train_options("s1", name=name, iterations=iterations, pixel_opt=loss, **train)
    patches = dict(name="train", gt_size=32, batch_size_per_gpu=4, num_worker_per_gpu=0, clean_share=0.2)
    patches |= dict(dataset_enlarge_ratio=4)
    options |= dict(
        model_type=kind, scale=1, network_g=dict(type="AutoDIR", **SMALL),
        datasets=dict(train=dict(**patches, **data), val=dict(name="val", **data)),
    )  # fmt: skip
    return options


MSE = dict(type="MSELoss", loss_weight=1.0, reduction="mean")


def test_three_stages_train_their_part_alone_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_kinds(tmp_path)
    parts = {"assessor": "assessor.clipmodel.v", "diffusion": "diffusion.unet.", "correction": "correction."}
    kinds = {
        "assessor": ("AutoDIRAssessorModel", dict(type="FidelityLoss", loss_weight=1.0)),
        "diffusion": ("AutoDIRDiffusionModel", MSE),
        "correction": ("AutoDIRCorrectionModel", MSE),
    }
    before, start = None, None
    for name, (kind, loss) in kinds.items():
        more = dict(scm_t_max=500) if name == "correction" else {}
        options = recipe(name, kind, loss=loss, ema_decay=0.5, **more)
        if start is not None:
            options["path"] = dict(pretrain_network_g=start, param_key_g="params", strict_load_g=True)
        assert run_training(options) == 0
        start = f"experiments/{name}/models/net_g_latest.pth"
        now = torch.load(start, weights_only=True)["params"]
        if before is not None:
            changed = {key for key in now if not torch.equal(now[key], before[key])}
            assert changed
            assert all(key.startswith(parts[name]) for key in changed), changed
        before = now
    table = json.loads(Path("experiments/assessor/confusion_val.json").read_text())
    assert np.sum(table["rows: true category, columns: predicted"]) == 8  # four pictures and their truth
    rows = [json.loads(line) for line in Path("experiments/correction/validation.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > 0
    loaded = load_network("experiments/correction/models/net_g_latest.safetensors")
    assert type(loaded.network) is AutoDIR
    assert loaded.network.restore(torch.rand(1, 3, 16, 16), noise=PictureNoise(torch.rand(1, 3, 16, 16))).shape == (1, 3, 16, 16)  # fmt: skip  # noqa: E501


def test_with_the_relative_loss_every_kind_counts_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_kinds(tmp_path)
    start = AutoDIR(**SMALL | dict(prediction="difference"))
    torch.nn.init.zeros_(start.diffusion.unet.conv_out.weight)
    torch.nn.init.zeros_(start.diffusion.unet.conv_out.bias)
    torch.save(dict(params=start.state_dict()), "start.pth")
    losses = {}
    for name, relative in {"plain": False, "relative": True}.items():
        options = recipe(name, "AutoDIRDiffusionModel", loss=dict(type="L1Loss", loss_weight=1.0), iterations=1,
                         relative_loss=relative, cfg_dropout="none")  # fmt: skip
        options["network_g"]["prediction"] = "difference"
        options["datasets"]["train"]["clean_share"] = 0
        options["path"] = dict(pretrain_network_g="start.pth", param_key_g="params", strict_load_g=True)
        assert run_training(options) == 0
        losses[name] = rows(name, "training.jsonl")[0]["l_noise"]
    assert losses["relative"] == pytest.approx(1, abs=1e-4)  # of a network that answers nothing
    assert losses["plain"] < 0.9


def test_a_training_starts_from_a_converted_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_kinds(tmp_path)
    start = small()
    write_folder(start.state_dict(), SMALL, tmp_path / "weights", vocabulary=None, source="a test")
    options = recipe("continued", "AutoDIRCorrectionModel", loss=MSE, iterations=1, ema_decay=0)
    options["path"] = dict(pretrain_network_g="weights", strict_load_g=True)
    assert run_training(options) == 0
    now = torch.load("experiments/continued/models/net_g_latest.pth", weights_only=True)["params"]
    same = [name for name in now if not name.startswith("correction.")]
    assert all(torch.equal(now[name], start.state_dict()[name]) for name in same)


def test_patches_that_a_degradation_left_alone_are_clean():
    gt = torch.rand(3, 20, 20)
    assert is_unchanged(gt + 3 / 255, gt)
    dropped = gt.clone()
    dropped[:, :10] += 0.1
    assert not is_unchanged(dropped, gt)


def test_the_assessor_learns_to_name_two_faults_and_not_to_see_them_in_the_clean_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_kinds(tmp_path)
    options = recipe("learns", "AutoDIRAssessorModel", loss=dict(type="CategoryCrossEntropy", loss_weight=1.0),
                     iterations=60, ema_decay=0.8, optim_g=dict(type="Adam", lr=3e-3),
                     scheduler=dict(type="MultiStepLR", milestones=[50], gamma=0.1))  # fmt: skip
    options["logger"]["save_checkpoint_freq"] = 1000
    assert run_training(options) == 0
    row = json.loads(Path("experiments/learns/validation.jsonl").read_text().splitlines()[-1])
    assert row["accuracy"] >= 0.75
    net = load_network("experiments/learns/models/net_g_latest.safetensors").network
    clean = torch.from_numpy(skimage.data.astronaut()[40:88, 100:148]).permute(2, 0, 1)[None] / 255
    p = net(clean)[0]
    assert p[CATEGORIES.index("noise")] + p[CATEGORIES.index("underexposure")] < 0.6


def test_clean_counterparts_raise_the_loss_by_what_is_found_in_them():
    p, labels = torch.rand(3, 8).softmax(dim=1), torch.eye(8)[:3]
    expected = torch.sqrt((p * labels).sum(dim=1)).mean() / 8
    assert semantic_agnostic_loss(p, labels).item() == pytest.approx(expected.item(), rel=1e-2)


def test_options_of_other_networks_and_data_without_labels_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_kinds(tmp_path)
    options = recipe("wrong", "AutoDIRDiffusionModel", loss=MSE)
    options["network_g"] = dict(type="NAFNet", width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    assert run_training(options) == 1
    assert "AutoDIRDiffusionModel trains AutoDIR, found 'NAFNet'" in capsys.readouterr().err
    options = recipe("plain", "AutoDIRDiffusionModel", loss=MSE)
    for section in options["datasets"].values():
        section |= dict(type="PairedDataset", dataroot_lq="pairs/noise/input", dataroot_gt="pairs/noise/target")
        del section["degradations"]
        section.pop("clean_share", None)
    assert run_training(options) == 1
    assert "needs a dataset with labels of the degradations" in capsys.readouterr().err


def test_the_quick_start_trains_three_stages_and_restores_what_is_rainy_and_dark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (TRAIN_DATA, HELD_OUT_DATA):
        (folder / "photos").mkdir(parents=True)
        (folder / "photos/a.png").write_bytes(encode_png(np.ascontiguousarray(skimage.data.astronaut()[:256, :256])))
    for command in DATA_COMMANDS:
        assert main([*shlex.split(command)[1:], "--jobs", "1"]) == 0
    stages = read_recipe(Path(recipes_of("autodir")) / "recipe.yml").stages
    assert [stage.name for stage in stages] == ["assessor", "diffusion", "correction"]
    assert stages[2].words()[-1].endswith("train_correction.yml")  # the weights in its options are those of stage 2
    for stage in stages:
        short = ["train:total_iter=1", "train:warmup_iter=-1", "val:val_freq=9", "datasets:train:batch_size_per_gpu=2"]
        short += ["network_g:restoring:steps=1"]
        assert basicsr_main([*stage.words()[1:], "--force_yml", *short]) == 0
    text = write_autodir_report()
    assert "| is \\ named | noise |" in text
    rows = [line for line in text.splitlines() if line.count("|") == 6]
    assert [row.split("|")[1].strip() for row in rows[2:]] == list(CATEGORIES[:-1])
    trace = json.loads((RESULTS / "a_s001.trace.json").read_text())
    assert 1 <= len(trace["rounds"]) <= 2
    assert (RESULTS / "a_s001.trace.png").is_file()
