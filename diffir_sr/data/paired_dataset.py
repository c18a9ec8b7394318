"""Pairs of degraded and true images as training patches or whole pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffir_sr.data.images import as_rgb_float
from diffir_sr.data.pairs import Pair, find_pairs
from diffir_sr.data.sources import LmdbSource, check_backend
from diffir_sr.errors import InputError


class PairedDataset(Dataset[dict[str, Any]]):
    """Samples {lq, gt, lq_path, gt_path}: float32 RGB (3, H, W) in [0, 1], from folders or LMDBs.

    Training: an aligned random crop of `gt_size` with flips (`use_hflip`) and quarter turns (`use_rot`), a function
    of (`seed`, draw) alone, where draw is the number given to []; the image is draw modulo length. Otherwise whole
    images, the ground truth cropped to scale times the degraded one. Options as BasicSR's PairedImageDataset.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        check_backend(opt)
        self.opt = opt
        self.scale = int(opt["scale"])
        self.training = opt["phase"] == "train"
        self.gt_size = int(opt["gt_size"]) if self.training else None
        found = find_pairs(
            opt["dataroot_lq"],
            opt["dataroot_gt"],
            scale=self.scale,
            filename_tmpl=opt.get("filename_tmpl") or "{}",
            meta_info=opt.get("meta_info_file"),
            gt_size=self.gt_size,
            crop_gt=not self.training,
        )
        self.lq, self.gt, self.pairs = found.lq, found.gt, found.pairs
        if self.gt_size is not None and self.gt_size % self.scale:
            raise InputError(f"gt_size {self.gt_size} is not a multiple of scale {self.scale}; choose one that is")
        self.seed = int(opt.get("seed") or 0)
        # A sampler whose draws never repeat sets this. Else two passes would show the same crops, so that something
        # that differs between passes and workers is mixed in.
        self.draws_are_unique = False
        self.gives_bytes = False
        self._visits = 0

    @property
    def paths(self) -> list[dict[str, str]]:
        """Where each pair lies, as BasicSR's datasets tell it."""
        return [{"lq_path": self.lq.location(pair.lq), "gt_path": self.gt.location(pair.gt)} for pair in self.pairs]

    def give_bytes(self) -> None:
        """Give uint8 tensors where that loses nothing, a quarter of the memory to copy; the model makes them float."""
        self.gives_bytes = isinstance(self.lq, LmdbSource) and isinstance(self.gt, LmdbSource)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each image once; without this, Python would count draws up for ever."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, draw: int) -> dict[str, Any]:
        pair = self.pairs[draw % len(self.pairs)]
        with self.lq.view(pair.lq) as lq, self.gt.view(pair.gt) as gt:
            self._check_shapes(pair, lq, gt)
            if self.gt_size is not None:
                lq, gt = self._patch(lq, gt, self.gt_size, self._random(draw))
            else:
                gt = gt[: lq.shape[0] * self.scale, : lq.shape[1] * self.scale]
            store = to_bytes if self.gives_bytes else to_tensor
            return {
                "lq": store(lq),
                "gt": store(gt),
                "lq_path": self.lq.location(pair.lq),
                "gt_path": self.gt.location(pair.gt),
            }

    def _check_shapes(self, pair: Pair, lq: np.ndarray, gt: np.ndarray) -> None:
        """Files may change after they were checked, and the list of an LMDB may be wrong."""
        spare = [high - low * self.scale for high, low in zip(gt.shape[:2], lq.shape[:2], strict=True)]
        allowed = 1 if self.training else self.scale
        small = self.gt_size is not None and min(gt.shape[:2]) < self.gt_size
        if small or not all(0 <= extra < allowed for extra in spare):
            raise InputError(
                f"{self.gt.location(pair.gt)} is {gt.shape[0]}x{gt.shape[1]} and {self.lq.location(pair.lq)} "
                f"{lq.shape[0]}x{lq.shape[1]}, which does not fit scale {self.scale} and gt_size {self.gt_size}, and "
                "was not so at the start; was the data changed meanwhile? Build it again"
            )

    def _random(self, draw: int) -> np.random.Generator:
        if self.draws_are_unique:
            return np.random.default_rng((self.seed, draw))
        self._visits += 1
        return np.random.default_rng((self.seed, draw, torch.initial_seed() % 2**63, self._visits))

    def _patch(
        self, lq: np.ndarray, gt: np.ndarray, size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        low = size // self.scale
        top = int(rng.integers(lq.shape[0] - low + 1))
        left = int(rng.integers(lq.shape[1] - low + 1))
        flip = bool(self.opt.get("use_hflip")) and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.opt.get("use_rot") else 0
        lq = lq[top : top + low, left : left + low]
        gt = gt[top * self.scale :, left * self.scale :][:size, :size]
        return _turned(lq, flip=flip, turns=turns), _turned(gt, flip=flip, turns=turns)


def _turned(image: np.ndarray, *, flip: bool, turns: int) -> np.ndarray:
    return np.rot90(image[:, ::-1] if flip else image, turns)


def to_tensor(image: np.ndarray) -> Tensor:
    """An array as read, (H, W, C), to float32 RGB (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(as_rgb_float(image).transpose(2, 0, 1)))


def to_bytes(image: np.ndarray) -> Tensor:
    """An 8-bit array as read, (H, W, C), to uint8 RGB (3, H, W)."""
    colours = np.broadcast_to(image[..., :1], (*image.shape[:2], 3)) if image.shape[2] < 3 else image[..., :3]
    return torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1)))
