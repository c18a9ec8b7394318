"""`diffir quickstart --task autodir`: data, measurement of each stage, and rainy and dark photographs restored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics.psnr_ssim import calculate_psnr

from diffir_sr.archs.autodir_arch import AutoDIR, Round
from diffir_sr.archs.autodir_assessor import CATEGORIES, CLEAN
from diffir_sr.data.sources import FolderSource
from diffir_sr.errors import InputError
from diffir_sr.files.atomic import save_text
from diffir_sr.files.images import decode, read_file
from diffir_sr.inference.assess import confusion_of, counted
from diffir_sr.inference.autodir import Trace, write_trace
from diffir_sr.inference.restorer import Restorer, load_restorer
from diffir_sr.metrics import calculate_lpips
from diffir_sr.quickstart.tasks import DATA, HELD_OUT_DATA, TRAIN_DATA

RESULTS = Path("results/quickstart_autodir")
WEIGHTS = Path("experiments/quickstart_autodir_correction/models/net_g_latest.safetensors")
PAIRS = DATA / "autodir"
_BOTH = ("rain", "underexposure")  # degradations of the photographs that are restored in two rounds
DATA_COMMANDS = (
    f"diffir prepare subimages {TRAIN_DATA}/photos -o {TRAIN_DATA}/squares --size 256 --step 128",
    f"diffir prepare subimages {HELD_OUT_DATA}/photos -o {HELD_OUT_DATA}/squares --size 256 --step 256",
    f"diffir prepare degrade {TRAIN_DATA}/squares -o {PAIRS}/train --kind all",
    f"diffir prepare degrade {HELD_OUT_DATA}/squares -o {PAIRS}/heldout --kind all",
    f"diffir prepare degrade {HELD_OUT_DATA}/squares -o {PAIRS}/heldout --kind {' '.join(_BOTH)} --combine",
)


def write_autodir_report(*, weights: Path = WEIGHTS, pairs: Path = PAIRS / "heldout", folder: Path = RESULTS) -> str:
    """Measure a small AutoDIR on held-out pairs; write report.md and traces to `folder` and return the tables.

    `pairs` has a folder per kind of degradation, and one with both rain and underexposure. Raises InputError if the
    pairs or the weights are missing.
    """
    restorer = load_restorer(weights, device="cpu")
    network = restorer.network
    if not isinstance(network, AutoDIR):
        raise InputError(f"{weights}: {type(network).__name__} is no AutoDIR")
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n".join([confusion_of(counted(network, [pairs])), restoration_table(restorer, network, pairs), ""])
    network.adjust(max_rounds=2)
    rounds = {name: _in_rounds(restorer, network, path, folder) for name, path in _rainy_and_dark(pairs)}
    said = [f"- {name}: {', then '.join(str(one.category) for one in found)}" for name, found in rounds.items()]
    text = "\n".join([tables, "Pictures that are both rainy and dark, in two rounds at most:", "", *said, ""])
    save_text(text, folder / "report.md")
    return text


def _rainy_and_dark(pairs: Path) -> list[tuple[str, Path]]:
    source = FolderSource(pairs / "+".join(_BOTH) / "input")
    return [(name, source.file(name)) for name in source.names]


def _in_rounds(restorer: Restorer, network: AutoDIR, path: Path, folder: Path) -> list[Round]:
    """The rounds of one picture; also writes its trace."""
    trace = Trace(network)
    restorer(decode(read_file(path), where=str(path)))
    rounds = trace.take()
    trace.close()
    write_trace(rounds, folder / path.name, restorer.settings(samples=1, quality=95))
    return rounds


def restoration_table(restorer: Restorer, network: AutoDIR, pairs: Path) -> str:
    """PSNR and LPIPS of each kind in `pairs` as Markdown: of the input, of the diffusion alone, and corrected."""
    lines = [
        "| kind | pictures | input | diffusion | corrected |",
        "| --- | --: | --: | --: | --: |",
    ]
    for kind in (name for name in CATEGORIES if name != CLEAN):
        place = pairs / kind.replace(" ", "-")
        if not place.is_dir():
            continue
        scores = _scores(restorer, network, kind, place)
        count = len(scores["input"])
        cells = (f"{np.mean(rows, axis=0)[0]:.2f} / {np.mean(rows, axis=0)[1]:.3f}" for rows in scores.values())
        lines.append(f"| {kind} | {count} | {' | '.join(cells)} |")
    return "PSNR (dB, RGB, higher is better) / LPIPS (alex, lower is better):\n\n" + "\n".join(lines)


def _scores(restorer: Restorer, network: AutoDIR, kind: str, place: Path) -> Mapping[str, list[tuple[float, float]]]:
    inputs, targets = FolderSource(place / "input"), FolderSource(place / "target")
    how: dict[str, dict[str, Any]] = {"diffusion": {"structure": 0.0}, "corrected": {"structure": 1.0}}
    scores: dict[str, list[tuple[float, float]]] = {"input": [], "diffusion": [], "corrected": []}
    before = network.restore_settings
    try:
        for name in inputs.names:
            gt, lq = (decode(read_file(one.file(name)), where=name) for one in (targets, inputs))
            scores["input"].append(_score(lq, gt))
            for label, changes in how.items():
                network.adjust(degradations=[kind], **changes)
                scores[label].append(_score(restorer(lq), gt))
    finally:
        network.restore_settings = before
    return scores


def _score(image: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """PSNR and LPIPS of RGB images (H, W, 3) of 8 bits."""
    restored, truth = (np.ascontiguousarray(one[..., ::-1]) for one in (image, gt))  # blue first, as the metrics expect
    psnr = calculate_psnr(restored, truth, crop_border=0, test_y_channel=False)
    return float(psnr), float(calculate_lpips(restored, truth, net="alex"))
