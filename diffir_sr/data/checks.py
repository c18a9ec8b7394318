"""Whether the data of a dataset option section can be used, asked before a run makes anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffir_sr.data.basicsr_limits import check_basicsr_reads
from diffir_sr.data.inpaint_dataset import InpaintDataset
from diffir_sr.data.paired_dataset import DeblurPairedDataset, PairedDataset, SingleDataset
from diffir_sr.data.pairs import find_pairs
from diffir_sr.data.realesrgan_dataset import RealESRGANDataset, RealESRGANPairedDataset
from diffir_sr.data.sources import check_backend, is_lmdb, open_source, roots_of

_OURS = {
    kind.__name__: kind
    for kind in (
        PairedDataset,
        DeblurPairedDataset,
        RealESRGANPairedDataset,
        RealESRGANDataset,
        InpaintDataset,
        SingleDataset,
    )
}


def check_dataset_options(opt: Mapping[str, Any]) -> None:
    """Raise InputError unless the data of a section can be used; dataset types that we do not know pass.

    Also guards BasicSR's own classes, whose messages name neither path nor remedy.
    """
    kind = str(opt.get("type"))
    if kind in _OURS:
        _OURS[kind](opt)  # building one reads headers and lists alone
    elif kind == "SingleImageDataset":
        check_backend(opt)
        source = open_source(roots_of(opt, "dataroot_lq")[0], meta_info=opt.get("meta_info_file"))
        check_basicsr_reads([source], listed=bool(opt.get("meta_info_file")))
    elif kind == "PairedImageDataset":
        _check_basicsr_pairs(opt)


def _check_basicsr_pairs(opt: Mapping[str, Any]) -> None:
    roots = roots_of(opt, "dataroot_lq")[0], roots_of(opt, "dataroot_gt")[0]
    check_backend(opt)
    training = opt.get("phase") == "train"
    # From LMDBs, BasicSR's class takes every key as it is.
    plain = all(is_lmdb(Path(os.path.expanduser(root))) for root in roots)
    found = find_pairs(
        *roots,
        scale=int(opt.get("scale", 1)),
        filename_tmpl="{}" if plain else opt.get("filename_tmpl") or "{}",
        meta_info=None if plain else opt.get("meta_info_file"),
        gt_size=opt.get("gt_size") if training else None,
        crop_gt=not training,
    )
    names = [[pair.lq for pair in found.pairs], [pair.gt for pair in found.pairs]]
    check_basicsr_reads([found.lq, found.gt], listed=bool(opt.get("meta_info_file")), paired=names)
