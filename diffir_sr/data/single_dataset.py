"""Degraded images without ground truth, to test on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from diffir_sr.data.arrays import to_tensor
from diffir_sr.data.sources import check_backend, open_source, roots_of


class SingleDataset(Dataset[dict[str, Any]]):
    """Samples {lq, lq_path}: float32 RGB (3, H, W) in [0, 1], from the folder or LMDB `dataroot_lq`."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        check_backend(opt)
        self.opt = opt
        self.lq = open_source(roots_of(opt, "dataroot_lq")[0], meta_info=opt.get("meta_info_file"))

    @property
    def paths(self) -> list[str]:
        return [self.lq.location(name) for name in self.lq.names]

    def __len__(self) -> int:
        return len(self.lq.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.lq.names[index]
        return {"lq": to_tensor(self.lq.read(name)), "lq_path": self.lq.location(name)}
