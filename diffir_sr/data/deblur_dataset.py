"""Pairs of blurred and sharp images for motion deblurring, with patches that grow during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffir_sr.data.paired_dataset import PairedDataset


class DeblurPairedDataset(PairedDataset):
    """PairedDataset under the published name: scale 1, `geometric_augs` for one of the eight symmetries of a square,
    images smaller than a patch reflected at the bottom and the right.

    `iters`, `gt_sizes`, `mini_batch_sizes`: progressive training. The published code reads `gt_size` patches, as many
    as `batch_size_per_gpu`, and cuts smaller ones out of some; this reads what is used.
    """

    pads = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        geometric = bool(opt.get("geometric_augs"))
        super().__init__({**opt, "scale": 1, "use_hflip": geometric, "use_rot": geometric})
