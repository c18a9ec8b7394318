"""AutoDIR's image tower on pretrained features, and the script that fits it."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffir_sr.errors import OptionError

pytest.importorskip("transformers", reason="needs the extra autodir")

from diffir_sr.archs.autodir_arch import AutoDIR  # noqa: E402 - only with the packages above
from diffir_sr.archs.autodir_assessor import CATEGORIES, Assessor  # noqa: E402
from diffir_sr.archs.efficientnet_lite import POOLED, LiteFeatures  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
TEXT = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
# Kernel, stride, expansion and channels of each block of EfficientNet-Lite0 up to 112 channels.
BLOCKS = [
    (3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40), (3, 2, 6, 80), (3, 1, 6, 80),
    (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112),
]  # fmt: skip
ENDS = (0, 2, 4, 7, 10)  # the last block of each stage


def published_state(seed=0):
    """Random weights with the published names."""
    source = torch.Generator().manual_seed(seed)
    state = {}

    def convolution(name, norm, *shape):
        scale = np.prod(shape[1:]) ** -0.5
        state[f"{name}.weight"] = torch.randn(shape, generator=source) * scale
        for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.2), ("running_var", 0.5)):
            state[f"{norm}.{part}"] = torch.rand(shape[0], generator=source) + low

    convolution("_conv_stem", "_bn0", 32, 3, 3, 3)
    seen = 32
    for number, (kernel, _, expansion, made) in enumerate(BLOCKS):
        at, wide = f"_blocks.{number}.", seen * expansion
        if expansion > 1:
            convolution(f"{at}_expand_conv", f"{at}_bn0", wide, seen, 1, 1)
        convolution(f"{at}_depthwise_conv", f"{at}_bn1", wide, 1, kernel, kernel)
        convolution(f"{at}_project_conv", f"{at}_bn2", made, wide, 1, 1)
        seen = made
    return state


def reference(image, state):
    """The features with batch norms as they are, one function call after the other."""

    def norm(x, at):
        mean, variance = state[f"{at}.running_mean"], state[f"{at}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{at}.weight"], state[f"{at}.bias"], eps=1e-3)

    x = norm(F.conv2d((image * 255 - 127) / 128, state["_conv_stem.weight"], stride=2, padding=1), "_bn0").clamp(0, 6)
    maps = [x]
    for number, (kernel, stride, expansion, _) in enumerate(BLOCKS):
        at, y = f"_blocks.{number}.", x
        if expansion > 1:
            y = norm(F.conv2d(y, state[f"{at}_expand_conv.weight"]), f"{at}_bn0").clamp(0, 6)
        weight = state[f"{at}_depthwise_conv.weight"]
        y = F.conv2d(y, weight, stride=stride, padding=kernel // 2, groups=len(weight))
        y = norm(F.conv2d(norm(y, f"{at}_bn1").clamp(0, 6), state[f"{at}_project_conv.weight"]), f"{at}_bn2")
        x = y + x if stride == 1 and y.shape == x.shape else y
        if number in ENDS:
            maps.append(x)
    pooled = [part for one in maps for part in (one.mean((2, 3)), one.std((2, 3), correction=0), one.amax((2, 3)))]
    return torch.cat(pooled, dim=1)


def test_folded_features_are_those_of_the_published_layout():
    state, image = published_state(), torch.rand(2, 3, 72, 56)
    features = LiteFeatures().eval()
    features.load_published(state)
    with torch.no_grad():
        found, expected = features(image), reference(image, state)
    assert found.shape == (2, POOLED)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_missing_published_weight_is_an_error():
    state = published_state()
    del state["_blocks.4._bn1.bias"]
    with pytest.raises(KeyError, match=r"_blocks\.4\._bn1\.bias"):
        LiteFeatures().load_published(state)


def test_two_towers_are_refused():
    with pytest.raises(OptionError, match="conv and lite are two image towers"):
        Assessor(text=TEXT, conv=dict(width=8, blocks=3), lite=dict(hidden=8), projection_dim=16, vocab_size=64)


@pytest.mark.slow
def test_the_script_fits_an_assessor_that_names_what_it_was_shown(tmp_path, monkeypatch):
    """Eight kinds of patterns in place of degradations; the features are random, and all weights but the tower kept."""
    spec = importlib.util.spec_from_file_location("fit_assessor", REPO / "scripts/fit_assessor.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "published", published_state)
    source, images = np.random.default_rng(0), {}
    for number, category in enumerate(CATEGORIES):
        folder = tmp_path / ("noise/target" if category == "no" else f"{category.replace(' ', '-')}/input")
        folder.mkdir(parents=True)
        for index in range(12):
            image = source.normal(30 * number + 20, 4 + 6 * (number % 3), (80, 80, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{index}.png"), image)
            images.setdefault(number, []).append(torch.from_numpy(image[..., ::-1].copy()).movedim(-1, 0) / 255)
    text = (REPO / "options/shipped/autodir/network.yml").read_text()
    (tmp_path / "network.yml").write_text(text.replace("crop: 256", "crop: 64"))
    words = ["fit", tmp_path, "-o", tmp_path / "made/net.pth", "--network", tmp_path / "network.yml"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    script.main()
    described = script.yaml.safe_load((tmp_path / "network.yml").read_text())["network_g"]
    described.pop("type")
    network = AutoDIR(**described).eval()
    network.load_state_dict(torch.load(tmp_path / "made/net.pth", weights_only=True)["params_ema"])
    with torch.no_grad():
        right = [
            int((network.assessor(torch.stack(same)).argmax(dim=1) == number).sum()) for number, same in images.items()
        ]
    assert sum(right) >= 0.9 * 96
