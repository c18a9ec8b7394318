"""AutoDIR's quality assessor: classifies the degradation of a picture and makes the prompt of the diffusion.

The embedding of a picture by CLIP's image tower is compared with the text embeddings of one prompt per category. The
hidden states of the prompts, weighted by the probabilities, condition the diffusion. transformers and tokenizers (extra
`autodir`) are imported when a network is built.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffir_sr.archs.efficientnet_lite import POOLED, LiteFeatures
from diffir_sr.errors import InputError, OptionError
from diffir_sr.import_hook import imported

CATEGORIES: tuple[str, ...] = ("noise", "blur", "rain", "underexposure", "haze", "low resolution", "raindrop", "no")
CLEAN = "no"  # the category of pictures with nothing wrong
LENGTH = 77  # tokens of a prompt
INSTALL = "pip install 'diffir_sr[autodir]'"
View = Literal["center", "grid_mean", "grid_geometric"]
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, R, G, B
_STD = (0.26862954, 0.26130258, 0.27577711)
# CLIP's tokens of the prompts between start and end, so that the assessor needs no vocabulary file.
_BEFORE, _AFTER, _START, _END = (320, 1125, 2536), (37718, 12219), 49406, 49407
_TOKENS = {
    "noise": (9307,),
    "blur": (27976,),
    "rain": (2443,),
    "underexposure": (21675, 87, 35539),
    "haze": (22785,),
    "low resolution": (1042, 9977),
    "raindrop": (3128, 3387),
    "no": (871,),
}
_VOCABULARY = 49408
CLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 224,
}


def prompt_of(category: str) -> str:
    """The prompt of a category."""
    return f"A photo needs {category} artifact reduction"


def of_library(name: str) -> Any:
    """A class of the extra `autodir`, by module:name; InputError where it is not installed."""
    try:
        return imported(name)
    except ImportError as error:
        raise InputError(f"AutoDIR needs {name.partition(':')[0]} ({error}): {INSTALL}") from error


# Views of a picture


def centre_view(image: Tensor, side: int) -> Tensor:
    """The middle of `image` (B, 3, H, W) as (B, 3, side, side), zeros around it where it is smaller.

    As `CLIPImageProcessor` crops it, to the pixel.
    """
    for dim in (-2, -1):
        length = image.shape[dim]
        spare = max(0, side - length)
        first = -(-spare // 2)
        pad = (first, spare - first)
        image = F.pad(image, pad if dim == -1 else (0, 0, *pad))
        start = max(0, (length - side) // 2)
        image = image.narrow(dim, start, side)
    return image


def grid_views(image: Tensor, side: int) -> Tensor:
    """Squares (N, B, 3, side, side) that cover `image` (B, 3, H, W), the last of a row and column moved inside."""
    tops, lefts = ([*range(0, length - side, side), length - side] if length > side else [0]
                   for length in image.shape[-2:])  # fmt: skip
    return torch.stack(
        [centre_view(image[..., top : top + side, left : left + side], side) for top in tops for left in lefts]
    )


# Prompts as tokens


class WordTokens:
    """Tokenizer of a small model: words of the category prompts have tokens of their own, others are hashed."""

    def __init__(self, size: int) -> None:
        known = sorted({word for category in CATEGORIES for word in prompt_of(category).lower().split()})
        if size < len(known) + 3:
            raise OptionError(f"vocab_size: expected {len(known) + 3} or more, found {size}")
        self._known = {word: number for number, word in enumerate(known)}
        self._others = size - 2 - len(known)
        self.start, self.end = size - 2, size - 1

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text, without start and end."""
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return [
            self._known[word] if word in self._known else len(self._known) + zlib.crc32(word.encode()) % self._others
            for word in words
        ]


class ClipTokens:
    """CLIP's tokenizer, read from `tokenizer.json`; the category prompts need no file."""

    start, end = _START, _END

    def __init__(self, file: str | None) -> None:
        self._file = file
        self._known = {prompt_of(category): [*_BEFORE, *_TOKENS[category], *_AFTER] for category in CATEGORIES}

    def __call__(self, text: str) -> list[int]:
        """See `WordTokens`; raises InputError for a free text without the vocabulary."""
        if not text:
            return []
        if text in self._known:
            return self._known[text]
        if self._file is None or not Path(self._file).is_file():
            raise InputError(
                f"prompt {text!r}: CLIP's vocabulary is needed for free texts and is not at "
                f"{self._file or 'tokenizer.json beside the weights'}; convert the weights again with --tokenizer "
                "FILE, which is bpe_simple_vocab_16e6.txt.gz of the package open_clip_torch, or CLIP's tokenizer.json"
            )
        ids = of_library("tokenizers:Tokenizer").from_file(self._file).encode(text, add_special_tokens=False).ids
        return [one for one in ids if one not in (self.start, self.end)]


def cut(tokens: Sequence[int], text: str) -> tuple[list[int], str | None]:
    """Tokens cut to the length of a prompt, and a warning if any were left out, else None."""
    room = LENGTH - 2
    if len(tokens) <= room:
        return list(tokens), None
    return list(tokens[:room]), (
        f"prompt {text[:40]!r}... has {len(tokens) + 2} tokens, and the model sees {LENGTH}: its end is left out"
    )


# The networks


class ConvEncoder(nn.Module):
    """A small image tower: convolutions, pooled by mean and maximum, beside fixed image statistics.

    The input of the convolutions is the picture and its `fine_detail`, folded by two (a space-to-depth transform, which
    keeps what an average of neighbours would lose: the period of an enlarged picture, for example). Group norms remove
    brightness and contrast, which tell degradations apart, so the first level has none, and `statistics` are
    concatenated after pooling.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        channels = [width * min(2**level, 4) for level in range(blocks)]
        self.stem = nn.Sequential(nn.Conv2d(2 * 3 * 2 * 2, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1))
        self.levels = nn.Sequential(
            *(_ResidualLevel(seen, made) for seen, made in zip(channels, channels[1:], strict=False))
        )
        self.width = 2 * channels[-1]
        self.head = nn.Sequential(nn.Linear(self.width + STATISTICS, self.width), nn.SiLU())

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        height, width = pixel_values.shape[-2:]
        even = F.pad(pixel_values, (0, width % 2, 0, height % 2), mode="replicate")
        features = self.levels(self.stem(F.pixel_unshuffle(torch.cat([even, fine_detail(even)], dim=1), 2)))
        pooled = [features.mean(dim=(2, 3)), features.amax(dim=(2, 3)), statistics(pixel_values)]
        return SimpleNamespace(pooler_output=self.head(torch.cat(pooled, dim=1)))


class _ResidualLevel(nn.Module):
    """Half the size, then two convolutions beside the identity."""

    def __init__(self, seen: int, made: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(seen, made, 3, 2, 1)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(8, made), nn.SiLU(), nn.Conv2d(made, made, 3, 1, 1)]
        self.block = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        features = self.down(F.silu(features))
        return features + self.block(features)


def fine_detail(pixels: Tensor) -> Tensor:
    """Difference between `pixels` (B, C, H, W), normalised, and their 3 x 3 binomial average, compressed by asinh.

    Linear up to about two levels of an 8-bit picture and logarithmic above, so that quantization, noise and edges all
    have a usable range.
    """
    smooth = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    smooth = (smooth[..., :-2] + 2 * smooth[..., 1:-1] + smooth[..., 2:]) / 4
    smooth = (smooth[..., :-2, :] + 2 * smooth[..., 1:-1, :] + smooth[..., 2:, :]) / 4
    return torch.asinh((pixels - smooth) / _TWO_LEVELS)


_TWO_LEVELS = 2 / 255 / 0.27  # of an 8-bit picture, normalised
_SCALES, _LAGS = 4, (2, 3, 4)
_EDGES = (0.02, 0.06, 0.2, 0.6)  # of second differences
_LEVELS = (0.08, 0.2, 0.35, 0.5, 0.7, 0.9)  # of brightness
STATISTICS = 4 * 3 + _SCALES * 2 * (3 * 3 + len(_LAGS) + len(_EDGES)) + 3 * len(_LEVELS)


def statistics(pixels: Tensor) -> Tensor:
    """Handcrafted features (B, STATISTICS) of `pixels` (B, 3, H, W), normalised; each about 0 with a spread of about 1.

    Mean, standard deviation, minimum and maximum of each colour. At four scales, horizontally and vertically: the size
    of differences between neighbours in luma and two colour differences, by three kinds of mean; differences of luma
    over longer distances; and its second differences, clipped at several sizes. Finally the share of pixels above
    several levels of the smallest and the largest colour and of the dark channel, which is dark without haze (He et al.
    2011).
    """
    variance, mean = torch.var_mean(pixels, dim=(2, 3), correction=0)
    found = [mean, variance.sqrt() - 1, pixels.amin(dim=(2, 3)) + 1.5, pixels.amax(dim=(2, 3)) - 1.5]
    luma = pixels.mean(dim=1, keepdim=True)
    planes = torch.cat([luma, pixels[:, :1] - luma, pixels[:, 2:] - luma], dim=1)
    for scale in range(_SCALES):
        for dim in (3, 2):
            steps = planes.diff(dim=dim)
            size = steps.abs()
            means = size.mean(dim=(2, 3)), size.square().mean(dim=(2, 3)).sqrt(), (size + 1e-6).sqrt().mean(dim=(2, 3))
            found += [(torch.log(one + 1e-2) + 2) for one in means]
            luma, length = planes[:, :1], planes.shape[dim]
            rests = [length - min(lag, length - 1) for lag in _LAGS]
            far = [luma.narrow(dim, length - rest, rest) - luma.narrow(dim, 0, rest) for rest in rests]
            found += [torch.log(one.abs().mean(dim=(2, 3)) + 1e-2) + 2 for one in far]
            bent = steps[:, :1].diff(dim=dim).abs()
            found += [torch.log(bent.clamp(max=edge).mean(dim=(2, 3)) / edge + 1e-2) + 1.5 for edge in _EDGES]
        if scale < _SCALES - 1:
            planes = F.avg_pool2d(planes, 2)
    colours = _colours(pixels)
    least = colours.amin(dim=1, keepdim=True)
    around = -F.max_pool2d(-F.avg_pool2d(least, 2), 7, stride=4, padding=3)
    for plane in (least, colours.amax(dim=1, keepdim=True), around):
        found += [4 * torch.sigmoid((plane - level) / 0.04).mean(dim=(2, 3)) - 2 for level in _LEVELS]
    return torch.cat(found, dim=1)


class LiteEncoder(nn.Module):
    """A small image tower on pretrained features: `LiteFeatures` and `statistics`, standardised, and a hidden layer.

    Only the hidden layer is trained; `mean` and `deviation` are those of the features of training pictures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.features = LiteFeatures().requires_grad_(False)
        self.width = hidden
        self.register_buffer("mean", torch.zeros(POOLED + STATISTICS))
        self.register_buffer("deviation", torch.ones(POOLED + STATISTICS))
        self.dropped = nn.Dropout(0.2)
        self.head = nn.Sequential(nn.Linear(POOLED + STATISTICS, hidden), nn.SiLU(), nn.Dropout(0.3))

    def described(self, pixel_values: Tensor) -> Tensor:
        """Features (B, POOLED + STATISTICS) of normalised pictures (B, 3, H, W)."""
        return torch.cat([self.features(_colours(pixel_values)), statistics(pixel_values)], dim=1)

    def hidden(self, described: Tensor) -> Tensor:
        """The hidden layer; features are limited, so that an unusual picture is not beyond all that was trained on."""
        return self.head(self.dropped(((described - self.mean) / self.deviation).clamp(-6, 6)))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.hidden(self.described(pixel_values)))


class Assessor(nn.Module):
    """Probabilities of the degradations of a picture, and prompt states for the diffusion.

    `text` and `vision` are CLIP's arguments (by default those of ViT-L/14); `conv` (width, blocks) builds a small
    convolutional image tower instead of CLIP's, `lite` (hidden) one on pretrained features. Pictures are not resized:
    `biqa_view` center assesses the central square of `crop` pixels, as published; grid_mean and grid_geometric take
    the mean, or the normalised geometric mean, of the probabilities of squares that cover the picture.
    """

    def __init__(
        self,
        *,
        text: Mapping[str, Any] | None = None,
        vision: Mapping[str, Any] | None = None,
        projection_dim: int = 768,
        vocab_size: int = _VOCABULARY,
        conv: Mapping[str, int] | None = None,
        lite: Mapping[str, int] | None = None,
        crop: int = 224,
        biqa_view: str = "center",
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        if biqa_view not in get_args(View):
            raise OptionError(f"biqa_view: expected one of {', '.join(get_args(View))}, found {biqa_view!r}")
        if conv is not None and lite is not None:
            raise OptionError("conv and lite are two image towers; leave one out")
        small = vocab_size != _VOCABULARY
        self.tokens = WordTokens(vocab_size) if small else ClipTokens(tokenizer)
        seen = dict(CLIP_VISION if vision is None else vision)
        if conv is not None or lite is not None:  # a tower that is replaced at once
            seen = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
            seen |= {"patch_size": 14, "image_size": 28}
        # eos_token_id 2 is the published configuration's, by which the end is the first of the largest token.
        words = {"vocab_size": vocab_size, "max_position_embeddings": LENGTH, "eos_token_id": 2}
        words |= {"bos_token_id": self.tokens.start, "pad_token_id": self.tokens.end}
        config = of_library("transformers:CLIPConfig")(
            text_config={**(CLIP_TEXT if text is None else text), **words, "projection_dim": projection_dim},
            vision_config={**seen, "projection_dim": projection_dim},
            projection_dim=projection_dim,
        )
        config._attn_implementation = "sdpa"
        self.clipmodel: Any = of_library("transformers:CLIPModel")(config)
        tower = ConvEncoder(**conv) if conv is not None else LiteEncoder(**lite) if lite is not None else None
        if tower is not None:
            self.clipmodel.vision_model = tower
            self.clipmodel.visual_projection = nn.Linear(tower.width, projection_dim, bias=False)
        self.crop = crop
        self.view = biqa_view
        self.width = int(self.clipmodel.text_model.config.hidden_size)
        if small:
            self._tell_apart()

    def _tell_apart(self) -> None:
        """Initialize an untrained text tower so that the embeddings of the categories are orthogonal.

        With CLIP's initialization, all prompts have nearly the same embedding. With this one, only the image tower has
        to be trained.
        """
        for module in self.clipmodel.text_model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        projection = self.clipmodel.text_projection.weight
        if projection.is_meta:
            return
        self.clipmodel.text_projection = nn.Identity()
        with torch.no_grad():
            pooled = self.text([prompt_of(one) for one in CATEGORIES], mask_pads=True)[1].double()
        self.clipmodel.text_projection = nn.Linear(projection.shape[1], projection.shape[0], bias=False)
        wanted = torch.eye(len(CATEGORIES), projection.shape[0], dtype=torch.float64)
        self.clipmodel.text_projection.weight.data = (torch.linalg.pinv(pooled) @ wanted).T.float()

    # Text

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Tokens (K, 77): start, the text, end, and the end's token to the full length."""
        rows = []
        for prompt in prompts:
            inside, _ = cut(self.tokens(prompt), prompt)
            rows.append([self.tokens.start, *inside, *[self.tokens.end] * (LENGTH - 1 - len(inside))])
        return torch.tensor(rows, device=self.clipmodel.logit_scale.device)

    def text(self, prompts: Sequence[str], *, mask_pads: bool) -> tuple[Tensor, Tensor]:
        """States (K, 77, D) and embeddings (K, P) of prompts.

        `mask_pads` masks the positions after the end, as published for the category prompts and in training; free and
        empty prompts in inference are not masked.
        """
        ids = self.ids(prompts)
        ends = (ids == self.tokens.end).int().argmax(dim=1, keepdim=True)
        mask = (torch.arange(LENGTH, device=ids.device) <= ends).long() if mask_pads else None
        out = self.clipmodel.text_model(input_ids=ids, attention_mask=mask)
        return out.last_hidden_state, self.clipmodel.text_projection(out.pooler_output)

    # Pictures

    def pixels(self, image: Tensor) -> Tensor:
        """The central square (B, 3, crop, crop) of pictures in [0, 1], normalised."""
        return normalised(centre_view(image, self.crop))

    def embedded(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, P) of normalised `pixels` (B, 3, H, W)."""
        return self.clipmodel.visual_projection(self.clipmodel.vision_model(pixel_values=pixels).pooler_output)

    def likelihoods(self, image: Tensor, embeddings: Tensor) -> Tensor:
        """Probabilities (B, K) of prompts with `embeddings` (K, P), given pictures (B, 3, H, W) in about [0, 1]."""
        scale = self.clipmodel.logit_scale
        if self.view == "center":
            return probabilities(self.embedded(self.pixels(image)), embeddings, scale)
        views = grid_views(image, self.crop)
        each = [probabilities(self.embedded(normalised(view)), embeddings, scale) for view in views]
        if self.view == "grid_mean":
            return torch.stack(each).mean(dim=0)
        return torch.stack(each).clamp(min=1e-12).log().mean(dim=0).softmax(dim=-1)

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities (B, 8) of `CATEGORIES`, in their order."""
        return self.likelihoods(image, self.text([prompt_of(one) for one in CATEGORIES], mask_pads=True)[1])


def normalised(image: Tensor) -> Tensor:
    """Pictures in [0, 1] less the mean of CLIP's training pictures, over their deviation."""
    return (image - image.new_tensor(_MEAN)[:, None, None]) / image.new_tensor(_STD)[:, None, None]


def _colours(pixels: Tensor) -> Tensor:
    """The pictures in [0, 1] that were `normalised`."""
    return pixels * pixels.new_tensor(_STD)[:, None, None] + pixels.new_tensor(_MEAN)[:, None, None]


def probabilities(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Softmax (B, K) of the scaled cosines between embeddings of pictures (B, P) and prompts (K, P)."""
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    return (logit_scale.exp() * cosines).softmax(dim=-1)


def mixed(weights: Tensor, states: Tensor) -> Tensor:
    """Prompt states (K, T, D) mixed by weights (B, K): (B, T, D)."""
    return torch.einsum("bk,ktd->btd", weights, states)


def nearest_category(name: str) -> str:
    """A category by its name, with - or _ for blanks; InputError that names the nearest for none."""
    import difflib

    wanted = name.strip().lower().replace("-", " ").replace("_", " ")
    if wanted in CATEGORIES:
        return wanted
    near = difflib.get_close_matches(wanted, CATEGORIES[:-1], n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"degradation {name!r} is unknown{hint} Known are {', '.join(CATEGORIES[:-1])}")


def confusion_table(table: Tensor) -> str:
    """Counts (8, 8) as Markdown: a row per true category, a column per named one."""
    head = "| is \\ named | " + " | ".join(CATEGORIES) + " |\n| --- |" + " --: |" * len(CATEGORIES)
    rows = [
        f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(CATEGORIES, table.tolist(), strict=True)
    ]
    return "\n".join([head, *rows])
