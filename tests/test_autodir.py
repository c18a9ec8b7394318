"""AutoDIR: the published numbers of its parts and of its loop, stages of training, prompts, bad input."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra autodir")
pytest.importorskip("diffusers", reason="needs the extra autodir")

from diffir_sr.archs.autodir_arch import AutoDIR, Diffusion, KLLatents, Wishes, recoloured  # noqa: E402
from diffir_sr.archs.autodir_assessor import CATEGORIES, ClipTokens, centre_view, mixed, probabilities, prompt_of  # noqa: E402, E501
from diffir_sr.diffusion.guidance import Sigmas, denoised, dropped, euler_ancestral, guided  # noqa: E402
from diffir_sr.diffusion.noise import START  # noqa: E402
from diffir_sr.diffusion.schedule import scaled_linear_betas, schedule_constants  # noqa: E402
from diffir_sr.families.autodir_checkpoint import (  # noqa: E402
    LATENTS,
    UNET,
    _autoencoder_sizes,
    _renamed,
    _unet_sizes,
    converted,
)
from diffir_sr.losses.autodir_losses import FidelityLoss  # noqa: E402

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
            return denoised(x, sigma, found, prediction="eps")

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
    assert worst(denoised(x, sigma, v, prediction="v"), x0) < 1e-5
    assert worst(denoised(x, sigma, eps, prediction="eps"), x0) < 1e-5


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
        net.wishes = Wishes().changed(
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
