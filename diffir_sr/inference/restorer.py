"""Restoring pictures from Python: `load_restorer(weights)` and the `Restorer` it gives."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from diffir_sr.checkpoints import load_network
from diffir_sr.data.arrays import to_tensor
from diffir_sr.describe import description
from diffir_sr.devices import device_of
from diffir_sr.diffusion.noise import Noise, PictureNoise
from diffir_sr.diffusion.sampling import read_schedule
from diffir_sr.errors import InputError, OptionError
from diffir_sr.families.autodir_checkpoint import CARD, is_folder
from diffir_sr.families.base import Adjustable, Engine, WalksInSteps
from diffir_sr.files.picture import Picture
from diffir_sr.inference.combined import Cascade, engine_of, interpolated
from diffir_sr.inference.files import digest_of_file
from diffir_sr.inference.inputs import is_batch, load_input
from diffir_sr.inference.masks import Mask, mask_for
from diffir_sr.inference.plain import OVERLAP, TILE, TileMode, check_fits_in_memory, restored_under, samples_under
from diffir_sr.weights.search import choose

if TYPE_CHECKING:
    from diffir_sr.inference.runner import Progress, RunSummary
    from diffir_sr.inference.videos.restoring import VideoOutcome

logger = logging.getLogger("diffir_sr.inference")
PathLike = str | os.PathLike[str]
_PIXELS_AT_ONCE = 512 * 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Samples:
    """Several restorations of one picture, which differ in their start noise alone.

    `spread` (H, W) float32 is their standard deviation (root mean square over colours, of values in [0, 1]): how
    much the result depends on the estimated prior. It does not measure how far from the truth the result is.
    """

    restored: list[Any]
    mean: Any
    spread: np.ndarray


class Restorer:
    """A loaded network that restores pictures; it keeps nothing about them, so threads may share it.

    `seed` and the picture's content decide the start noise, and so the result: equal bytes in any batch and order.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        seed: int = 0,
        about: str = "",
        sources: Callable[[], Mapping[str, object]] | None = None,
        **how: Any,
    ) -> None:
        """`how` is what `inference.plain.engine_for` takes (for each network of a cascade), `sources` gives the
        digests of the weights files when a folder's record needs them.

        Raises InputError for a network that needs the ground truth.
        """
        self.network = network
        self.seed = seed
        self._about = about
        self._how = how
        self._sources = sources
        self.engine: Engine = engine_of(network, **how)
        restoring = self.engine.network
        if "gt" in restoring.conditions:
            raise InputError(f"{type(network).__name__} restores with the ground truth, which a photograph has not")
        self.scale = restoring.scale
        self.takes_mask = "mask" in restoring.conditions
        # What the network is for, such as "sr" or "deblur"; None where it does not say so.
        self.task: str | None = getattr(network, "task", None)
        # What samples differ by: all of the result, or the prior of a network that adds no other noise.
        self.starts_at = "noise" if _walking(network) else "prior"

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def to(self, device: str | torch.device) -> Restorer:
        """Move the network to a device: auto, cpu, cuda, cuda:N, mps, xpu. Returns itself."""
        self._how["device"] = device_of(str(device))
        self.engine = engine_of(self.network, **self._how)
        return self

    def describe(self) -> str:
        """What the network is, in several lines, as `diffir describe` tells it."""
        return self._about

    def __call__(self, image: Any, *, mask: Any = None, seed: int | None = None) -> Any:
        """`image` restored, as the same kind: Picture (also for a path), PIL image, array; or a list or batch of them.

        Arrays are (H, W), (H, W, C) or (N, H, W, C), uint8, uint16 or float in [0, 1], RGB. Inpainting needs `mask`
        (for a list, one each). Alpha is carried, enlarged bicubically. Raises InputError for what cannot be restored.
        """
        if is_batch(image):
            masks = mask if isinstance(mask, list | tuple) else [mask] * len(image)
            if len(masks) != len(image):
                raise InputError(
                    f"{len(image)} pictures and {len(masks)} masks; give one mask for each, or one for all"
                )
            if isinstance(image, np.ndarray) and not len(image):
                raise InputError(f"expected a batch (N, H, W, C) of 1 picture or more, got {image.shape}")
            results = self._batch(list(image), list(masks), seed=seed)
            return np.stack(results) if isinstance(image, np.ndarray) else type(image)(results)
        return self._batch([image], [mask], seed=seed)[0]

    def _batch(self, images: list[Any], masks: list[Any], *, seed: int | None) -> list[Any]:
        """Pictures restored in order; neighbours of one size together where the device gains by it."""
        results: list[Any] = []
        waiting: list[tuple[Picture, Any, Tensor]] = []

        def restore_waiting() -> None:
            if not waiting:
                return
            lq = torch.cat([one for _, _, one in waiting])
            made = self.run(lq, self.start(lq, seed=seed)).split(1)
            for (picture, back, one), restored in zip(waiting, made, strict=True):
                results.append(back(self.finished(picture, restored, one)))
            waiting.clear()

        for image, mask in zip(images, masks, strict=True):
            picture, back, where = load_input(image, check=self.check_fits_in_memory)
            lq, found = self.prepared(picture, mask, where=where)
            _tell(picture, found, where, unless=mask)
            together = (
                waiting
                and waiting[0][2].shape == lq.shape
                and (len(waiting) + 1) * lq[0, 0].numel() <= (self._pixels_at_once)
            )
            if not together:
                restore_waiting()
            waiting.append((picture, back, lq))
        restore_waiting()
        return results

    @property
    def _pixels_at_once(self) -> int:
        """Pixels of a batch. A CPU is busy with one picture; accelerators need more of them when they are small."""
        return 1 if self.device.type == "cpu" else _PIXELS_AT_ONCE

    def samples(self, image: Any, count: int, *, mask: Any = None, seed: int | None = None) -> Samples:
        """`count` restorations of one picture, their mean and spread; the first is what a plain call gives."""
        if count < 2:
            raise InputError(f"samples: expected 2 or more, got {count}")
        picture, back, where = load_input(image, check=self.check_fits_in_memory)
        lq, found = self.prepared(picture, mask, where=where)
        _tell(picture, found, where, unless=mask)
        results, mean, squares = [], torch.zeros(()), torch.zeros(())
        for sample, drawn in enumerate(self._drawn(lq, count, seed=seed)):
            made = drawn.clamp(0, 1)
            results.append(back(self.finished(picture, made, lq)))
            step = made - mean  # Welford 1962: no large sums that cancel
            mean = mean + step / (sample + 1)
            squares = squares + step * (made - mean)
        spread = (squares / count).mean(dim=1)[0].sqrt().numpy()
        return Samples(results, back(self.finished(picture, mean, lq)), spread)

    def average(self, image: Any, count: int, *, mask: Any = None, seed: int | None = None) -> Any:
        """The mean of `count` restorations of one picture, taken before values are clipped, as the same kind.

        Of samples of a posterior it comes near to the posterior's mean: closer to the truth than one sample, and
        less sharp.
        """
        if count < 2:
            raise InputError(f"samples: expected 2 or more, got {count}")
        picture, back, where = load_input(image, check=self.check_fits_in_memory)
        lq, found = self.prepared(picture, mask, where=where)
        _tell(picture, found, where, unless=mask)
        mean = torch.zeros(())
        for sample, made in enumerate(self._drawn(lq, count, seed=seed)):
            mean = mean + (made - mean) / (sample + 1)
        return back(self.finished(picture, mean, lq))

    def _drawn(self, lq: Tensor, count: int, *, seed: int | None) -> Iterator[Tensor]:
        """`count` restorations of one prepared picture (1, C, H, W), together where the device gains by it."""
        together = max(1, self._pixels_at_once // (lq[0, 0].numel() * self.scale**2))
        noises = [self.start(lq, seed=seed, sample=sample) for sample in range(count)]
        for made in samples_under(self.engine, lq, noises=noises, together=together):
            self._check_finite(made)
            yield made

    def files(
        self,
        inputs: PathLike | Sequence[PathLike],
        output: PathLike,
        *,
        mask: str | None = None,
        samples: int = 1,
        average: bool = False,
        form: str | None = None,
        quality: int = 95,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> RunSummary:
        """Restore pictures, folders and videos into a folder (or one file), as `diffir restore` does, resuming too.

        `progress(done, total, file)` is called after each file, and after each frame of a video with the files done so
        far; it stops the work there by returning False. What fails is listed in the outcome's `failures`; the others go
        on. Raises InputError for inputs or an output that cannot be.
        """
        from diffir_sr.inference.files import plan_jobs
        from diffir_sr.inference.runner import RestoreSettings, restore_jobs

        given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
        jobs = plan_jobs([os.fspath(one) for one in given], os.fspath(output), form=form, mask=mask)
        wishes = RestoreSettings(form=form, mask=mask, samples=samples, average=average, quality=quality)
        return restore_jobs(self, jobs, Path(output), wishes, overwrite=overwrite, progress=progress)

    def video(
        self,
        source: PathLike,
        target: PathLike,
        *,
        quality: int = 95,
        overwrite: bool = False,
        progress: Callable[[int, int], bool | None] | None = None,
    ) -> VideoOutcome:
        """Restore one video into the file `target`, whose suffix says the container.

        `quality` 95 is visually lossless, 100 lossless. `progress(frames done, frames in all or 0)` is called after
        each frame; it stops the work by returning False, and the next call goes on there, as after a kill. What a user
        should know of the result is logged as warnings. Raises InputError for what cannot be read or written, and where
        `target` exists unless `overwrite`.
        """
        from diffir_sr.inference.files import plan_jobs
        from diffir_sr.inference.runner import restore_frames

        source, target = Path(os.path.expanduser(source)), Path(os.path.expanduser(target))
        plan_jobs([str(source)], str(target))  # refuses names that are none of videos
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists and stays as it is; choose another name or overwrite=True")
        target.parent.mkdir(parents=True, exist_ok=True)
        return restore_frames(
            self,
            source,
            target,
            sha=digest_of_file(source),
            quality=quality,
            say=lambda text: logger.warning("%s.", text),
            progress=progress or (lambda done, total: None),
            finish=lambda made: os.replace(made, target),
        )

    def settings(self, *, samples: int, quality: int, average: bool = False) -> dict[str, object]:
        """What decides the bytes of result files: results made with others are not taken for done."""
        tiled = self._how.get("tile_mode", "exact") != "exact"
        return {
            **(self._sources() if self._sources else {"weights": _digest_of(self.network), "blend": None}),
            "seed": self.seed,
            "samples": samples,
            "quality": quality,
            "dtype": str(self.engine.dtype).removeprefix("torch."),
            "tiles": [self._how["tile"], self._how["overlap"]] if tiled else None,
            **({"average": True} if average else {}),
            **({"sampling": [asdict(one.sampling) for one in walking]} if (walking := _walking(self.network)) else {}),
            **({"restoring": self.network.settings()} if isinstance(self.network, Adjustable) else {}),
        }

    # Its steps, for callers that hold pictures already

    def check_fits_in_memory(self, height: int, width: int, where: str) -> None:
        """Raise InputError for a picture whose result would not fit into memory."""
        check_fits_in_memory(height, width, scale=self.scale, where=where)

    def start(self, lq: Tensor, *, seed: int | None = None, sample: int = 0) -> PictureNoise:
        """The noise of prepared pictures (B, C, H, W)."""
        return PictureNoise(lq, seed=self.seed if seed is None else seed, sample=sample)

    def run(self, lq: Tensor, noise: Noise) -> Tensor:
        """Prepared pictures restored, (B, 3, H * scale, W * scale), not clipped.

        Raises InputError where the network computes values that are not finite, which would be shown as black.
        """
        made = restored_under(self.engine, lq, noise=noise)
        self._check_finite(made)
        return made

    def _check_finite(self, made: Tensor) -> None:
        if not made.isfinite().all():
            raise InputError(self._not_finite())

    def _not_finite(self) -> str:
        network = (self._about.splitlines() or ["this network"])[0]
        said = f"the result of {network} is not finite"
        tensors = self.network.state_dict().items()
        broken = [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]
        if broken:
            return (
                f"{said}: NaN or infinity is in {len(broken)} of its weight tensors, first in {broken[0]}; take "
                "another weights file, such as an earlier checkpoint of the training"
            )
        width = str(self.engine.dtype).removeprefix("torch.")
        if self.engine.dtype != torch.float32:
            return f"{said} when computed in {width}; compute in float32"
        return f"{said}, though its weights are; take another weights file, such as an earlier checkpoint"

    def prepared(self, picture: Picture, mask: Any, *, where: str) -> tuple[Tensor, Mask | None]:
        """What the network is given, (1, C, H, W) in [0, 1], and the mask that it is given with."""
        colours = picture.colours
        lq = to_tensor(colours)[None] if colours.dtype.kind == "u" else _from_float(colours)
        if not self.takes_mask:
            if mask is not None:
                kind = f"is for {self.task}" if self.task else "fills no holes"
                raise InputError(f"{where}: this network {kind} and takes no mask; leave the mask out")
            return lq, None
        if mask is None:
            raise InputError(f"{where}: this network fills in what is missing; say what is with a mask")
        found = mask if isinstance(mask, Mask) else mask_for(picture, mask, where=where)
        missing = torch.from_numpy(found.missing).float()[None, None]
        return torch.cat([lq * (1 - missing), missing], dim=1), found

    def finished(self, picture: Picture, made: Tensor, lq: Tensor) -> Picture:
        """The result as a picture of the same type, grey where the input is, with its alpha and metadata."""
        kind = picture.colours.dtype
        values = made[0].clamp(0, 1).permute(1, 2, 0).numpy()
        if picture.colours.shape[2] == 1:
            values = values.mean(axis=2, keepdims=True)
        if kind.kind == "u":
            values = np.rint(values * np.float32(np.iinfo(kind).max))
        colours = np.ascontiguousarray(values.astype(kind))
        if lq.shape[1] == 4:
            colours = np.where(lq[0, 3].numpy()[..., None] > 0.5, colours, picture.colours)
        return replace(picture, colours=colours, alpha=self._enlarged(picture.alpha), notes=())

    def _enlarged(self, alpha: np.ndarray | None) -> np.ndarray | None:
        if alpha is None or self.scale == 1:
            return alpha
        size = (alpha.shape[1] * self.scale, alpha.shape[0] * self.scale)
        larger = cv2.resize(alpha.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        if alpha.dtype.kind == "u":
            return np.rint(np.clip(larger, 0, np.iinfo(alpha.dtype).max)).astype(alpha.dtype)
        return np.clip(larger, 0, 1).astype(alpha.dtype)


def _tell(picture: Picture, found: Mask | None, where: str, *, unless: Any) -> None:
    for note in picture.notes:
        logger.warning("%s: %s.", where, note)
    if found and found is not unless:  # whoever gives a Mask has read its notes
        for note in found.notes:
            logger.warning("%s.", note)


def _from_float(colours: np.ndarray) -> Tensor:
    values = np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))[None]


def load_restorer(
    weights: PathLike | Sequence[PathLike] | None = None,
    *,
    model: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    schedule: PathLike | None = None,
    blend: tuple[str | os.PathLike[str], float] | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    tile_mode: TileMode = "exact",
    tile: int = TILE,
    overlap: int = OVERLAP,
    memory_limit: int | None = None,
    optimized: bool = True,
) -> Restorer:
    """A restorer with the network of a weights file, whose architecture and arguments are read from the file.

    `model` takes the place of `weights`: a name of `diffir models list`, such as "sr_x4". Without either the shipped
    default restores (see `weights.search.choose`). Several `weights` make a cascade: each network restores what the one
    before made. `sampling` changes how networks that walk from noise to a picture do it: steps, sampler (ddpm, ddim),
    eta, variance, beta_schedule (`diffusion.sampling.Sampling`); so does `schedule`, a file that search-schedule wrote,
    before it. `blend` (file, share) mixes in the weights of a second
    file, 0 to 1. `device` is auto (the accelerator that torch finds, else the CPU), cpu, cuda, cuda:N, mps or xpu.
    `tile_mode` exact gives the result of the whole picture; tiles works in tiles of `tile` pixels, `overlap` shared
    (DiffIR: under the picture's one prior). `memory_limit` (bytes) bounds what the network takes beyond weights and
    input. `optimized` False runs the network as it is trained, slower and in one piece. Raises CheckpointError for a
    file that holds no network that restores pictures, OptionError for sampling that a network does not have.
    """
    given = weights if isinstance(weights, list | tuple) else [weights]
    files = [choose(cast("PathLike | None", file), model).path for file in given]
    if not files or (blend is not None and len(files) > 1):
        raise InputError(f"weights: expected one file{' to blend with' if files else ' or more'}, got {len(files)}")
    if blend is None:
        loaded = [load_network(file) for file in files]
        network = loaded[0].network if len(loaded) == 1 else Cascade([file.network for file in loaded])
        about = "\n".join(description(file.weights, file.identity) for file in loaded)
    else:
        network, about = interpolated(files[0], *_mixed(blend))
    if schedule is not None:
        _sample_as(network, read_schedule(schedule).changes)
    _sample_as(network, sampling or {})
    return Restorer(
        network,
        seed=seed,
        about=about,
        sources=partial(_digests, files, blend),
        device=device_of(device),
        dtype=_dtype_of(dtype),
        tile_mode=tile_mode,
        tile=tile,
        overlap=overlap,
        memory_limit=memory_limit,
        optimized=optimized,
    )


def _walking(network: nn.Module) -> list[WalksInSteps]:
    """The networks that walk from noise to a picture: this one, or those in a cascade."""
    networks = list(network) if isinstance(network, Cascade) else [network]
    return [one for one in networks if isinstance(one, WalksInSteps)]


def _sample_as(network: nn.Module, sampling: Mapping[str, Any]) -> None:
    changes = {name: value for name, value in sampling.items() if value is not None}
    walking = _walking(network)
    if isinstance(network, Adjustable):
        network.adjust(**changes)
        return
    if changes and not walking:
        raise OptionError(
            f"{', '.join(changes)}: {type(network).__name__} has no sampler that could be chosen; leave it out"
        )
    for one in walking:
        one.sampling = one.sampling.changed(**changes)


def _digests(weights: Sequence[Path], blend: Any) -> dict[str, object]:
    mixed = None if blend is None else _mixed(blend)
    other = None if mixed is None else [digest_of_file(Path(os.path.expanduser(mixed[0]))), mixed[1]]
    files = [Path(os.path.expanduser(one)) for one in weights]
    # The card of a folder has the digests of the files beside it.
    digests = [digest_of_file(file / CARD if is_folder(file) else file) for file in files]
    return {"weights": digests[0] if len(digests) == 1 else digests, "blend": other}


def _digest_of(network: nn.Module) -> str:
    """A name for a network without a file."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _mixed(blend: object) -> tuple[Path, float]:
    if isinstance(blend, tuple | list) and len(blend) == 2 and isinstance(blend[0], str | os.PathLike):
        with contextlib.suppress(TypeError, ValueError):
            return Path(blend[0]), float(blend[1])
    raise InputError(f"blend: expected a file and a share from 0 to 1, as in ('sharp.pth', 0.5), got {blend!r}")


def restore(
    image: Any,
    weights: PathLike | None = None,
    *,
    model: str | None = None,
    mask: Any = None,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
) -> Any:
    """`image` restored by the network of `weights`, by the model of this name, or by the shipped default.

    With a mask the default is the model that fills holes. To restore many, keep what `load_restorer` gives.
    """
    weights = choose(weights, model, masked=mask is not None).path
    return load_restorer(weights, device=device, dtype=dtype, seed=seed)(image, mask=mask)


def _dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    return found
