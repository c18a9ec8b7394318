"""`basicsr test`: restore and measure every dataset of an option file."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from basicsr.models import build_model
from basicsr.utils.options import dict2str

from diffir_sr.options import LoadedOptions
from diffir_sr.training.run import (
    RunArguments,
    check_data,
    check_weights,
    complete_options,
    evaluation_loaders,
    start_log,
)

logger = logging.getLogger("basicsr")


def test(loaded: LoadedOptions, arguments: RunArguments) -> None:
    """Write restored images and metrics under results/<name>; ground truth is needed for metrics alone."""
    opt = complete_options(loaded.values, arguments, is_train=False)
    check_data(opt)
    check_weights(opt)
    torch.backends.cudnn.benchmark = True
    start_log(opt, verb="test", option_file=Path(loaded.path), new=True)
    for warning in loaded.warnings:
        logger.warning(warning)
    logger.info(dict2str(opt))
    # Published test files name their datasets val_1, val_2 as well as test_1, test_2.
    loaders = evaluation_loaders(opt, ("test", "val"))
    model = build_model(opt)
    save = (opt.get("val") or {}).get("save_img", True)
    for loader in loaders:
        model.validation(loader, current_iter=opt["name"], tb_logger=None, save_img=save)
    logger.info(f"Results are in {opt['path']['results_root']}")
