"""Pairs of pictures with a label of their degradation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from diffir_sr.archs.autodir_assessor import CATEGORIES, CLEAN, nearest_category
from diffir_sr.data.draws import Draw
from diffir_sr.data.pairs import PairedDataset, PairedOptions
from diffir_sr.errors import InputError
from diffir_sr.option_types import Found, Names, Probability, View


class LabelledOptions(PairedOptions):
    """Pairs of several degradations, a pair of roots for each."""

    degradations: Names = Field(description="The degradation of each root, in the same order.")
    clean_share: Probability = Field(
        0.0, description="Share of training samples that are unchanged ground truth, labelled no."
    )
    use_hflip: bool = Field(False, description="Whether training patches are mirrored at random.")


def one_degradation_for_each_root(view: View, at: tuple[str, ...]) -> Found:
    """Every root needs a degradation."""
    roots, names = view.get(*at, "dataroot_lq"), view.get(*at, "degradations", default=[])
    count = len(roots) if isinstance(roots, list) else 1
    if len(names) != count:
        yield (*at, "degradations"), f"{len(names)} names for {count} roots; give one for each"


class LabelledPairsDataset(PairedDataset):
    """`PairedDataset` (scale 1) whose samples also have `label`, the index of their degradation in `CATEGORIES`.

    `diffir prepare degrade --kind` makes the pairs. A training patch that the degradation did not change, such as one
    between raindrops or of a flat sky out of focus, is labelled no.
    """

    OPTIONS: ClassVar[Any] = LabelledOptions
    RULES = (one_degradation_for_each_root,)
    NEEDS_SCALE = False

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__({**opt, "scale": 1})
        self.labels = [CATEGORIES.index(nearest_category(name)) for name in opt["degradations"]]
        if len(self.labels) != len(self.sources):
            raise InputError(f"degradations: {len(self.labels)} names for {len(self.sources)} roots; give one for each")
        self.clean_share = float(opt.get("clean_share") or 0) if self.training else 0.0

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        number = draw.number if isinstance(draw, Draw) else draw
        sample = super().__getitem__(draw)
        label = self.labels[self.mixture.locate(number)[0]]
        # The second number of the draw's generator, which its corner does not depend on.
        if self.clean_share and self.random(number).spawn(1)[0].random() < self.clean_share:
            sample["lq"], label = sample["gt"].clone(), CATEGORIES.index(CLEAN)
        elif self.training and is_unchanged(sample["lq"], sample["gt"]):
            label = CATEGORIES.index(CLEAN)
        return {**sample, "label": label}


def is_unchanged(lq: Tensor, gt: Tensor) -> bool:
    """Whether less than 1 % of the values of two pictures in [0, 1] differ by more than three levels of 8 bits."""
    return float(((lq - gt).abs() > 3.5 / 255).float().mean()) < 0.01
