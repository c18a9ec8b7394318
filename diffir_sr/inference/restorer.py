"""Restoring images from Python: `load_restorer(weights)` returns a `Restorer`."""

from __future__ import annotations

import contextlib
import copy
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

from diffir_sr.checkpoints import description, load_network
from diffir_sr.data.arrays import to_tensor
from diffir_sr.devices import device_of
from diffir_sr.diffusion.noise import Noise, PictureNoise
from diffir_sr.diffusion.sampling import read_schedule
from diffir_sr.errors import InputError, OptionError
from diffir_sr.families.autodir import CARD, is_folder
from diffir_sr.families.base import Adjustable, Engine, WalksInSteps
from diffir_sr.files.picture import Picture
from diffir_sr.inference.combined import Cascade, engine_of, interpolated
from diffir_sr.inference.files import digest_of_file
from diffir_sr.inference.hub import fetched, pushed, write_pretrained
from diffir_sr.inference.inputs import Mask, is_batch, load_input, mask_for
from diffir_sr.inference.plain import OVERLAP, TILE, TileMode, check_fits_in_memory, restore_image, restore_samples
from diffir_sr.weights.registry import choose, registry

if TYPE_CHECKING:
    from diffir_sr.inference.runner import Progress, RunSummary
    from diffir_sr.inference.videos.restoring import VideoOutcome

logger = logging.getLogger("diffir_sr.inference")
PathLike = str | os.PathLike[str]
_PIXELS_AT_ONCE = 512 * 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Samples:
    """Several restorations of one image, which differ only in their initial noise.

    `spread` (H, W) float32 is their standard deviation (root mean square over colours, of values in [0, 1]). It
    measures how much the result depends on the estimated prior, not its error.
    """

    restored: list[Any]
    mean: Any
    spread: np.ndarray


class Restorer:
    """A loaded network that restores images; it holds no state about them, so threads may share it.

    `seed` and the content of the image determine the initial noise, so results are the same in any batch and order.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        seed: int = 0,
        about: str = "",
        sources: Callable[[], Mapping[str, object]] | None = None,
        file: Path | None = None,
        **how: Any,
    ) -> None:
        """`how` are the arguments of `inference.plain.engine_for` (for each network of a cascade).

        `sources` returns the digests of the weights files for the journal of a folder; `file` is the only one of them.
        Raises InputError for a network that needs the ground truth.
        """
        self.network = network
        self.seed = seed
        self._about = about
        self._how = how
        self._sources = sources
        self._file = file
        self.engine: Engine = engine_of(network, **how)
        restoring = self.engine.network
        if "gt" in restoring.conditions:
            raise InputError(
                f"{type(network).__name__} needs the ground truth, which is not available for a photograph"
            )
        self.scale = restoring.scale
        self.takes_mask = "mask" in restoring.conditions
        # The task of the network, such as "sr" or "deblur"; None if it does not state it.
        self.task: str | None = getattr(network, "task", None)
        # What samples vary: the whole result, or only the prior if the network adds no other noise.
        self.starts_at = "noise" if _walking(network) else "prior"

    @classmethod
    def from_pretrained(
        cls,
        source: PathLike,
        *,
        filename: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **arguments: Any,
    ) -> Restorer:
        """Load the model of a folder, or of the repository "owner/name" of the Hugging Face Hub (extra `hub`).

        Without `filename` it is model.safetensors, else the only weights file. `revision` is a branch, tag or commit;
        `arguments` are those of `load_restorer`, such as `device`. With DIFFIR_OFFLINE or HF_HUB_OFFLINE set, only the
        cache of the Hub is used. Raises InputError for another kind of name, CheckpointError if no weights are found.
        """
        return load_restorer(fetched(source, filename=filename, revision=revision, token=token), **arguments)

    def save_pretrained(self, folder: PathLike) -> Path:
        """Write model.safetensors and its card as README.md to `folder`, for `from_pretrained`; returns the folder.

        Tensors and card are those of the weights file; settings such as `seed` and `sampling` are not part of it.
        Raises InputError unless the restorer was loaded from one weights file with tensors.
        """
        return write_pretrained(self._only_file(), folder, name=Path(os.path.abspath(folder)).name)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | bool | None = None, message: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to "owner/name" as one commit; returns its address.

        The repository is created if needed; a README.md there is replaced. Raises InputError as `save_pretrained`, and
        if the Hub refuses.
        """
        return pushed(self._only_file(), repository, private=private, token=token, message=message)

    def _only_file(self) -> Path:
        if self._file is None:
            raise InputError(
                "this restorer was not loaded from one weights file (a cascade, a blend or a network); load the one to "
                "publish with load_restorer(FILE)"
            )
        return self._file

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def to(self, device: str | torch.device) -> Restorer:
        """Move the network to a device: auto, cpu, cuda, cuda:N, mps, xpu. Returns itself."""
        self._how["device"] = device_of(str(device))
        self.engine = engine_of(self.network, **self._how)
        return self

    def seeded(self, seed: int) -> Restorer:
        """The same network and engine with another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def describe(self) -> str:
        """A description of the network in several lines, as printed by `diffir describe`."""
        return self._about

    def __call__(self, image: Any, *, mask: Any = None, seed: int | None = None) -> Any:
        """Restore `image`; the result has the same kind: Picture (also for a path), PIL image, array, list or batch.

        Arrays are (H, W), (H, W, C) or (N, H, W, C), uint8, uint16 or float in [0, 1], RGB. Inpainting needs `mask`
        (for a list, one per image). Alpha is enlarged bicubically. Raises InputError for unsupported inputs.
        """
        if is_batch(image):
            masks = mask if isinstance(mask, list | tuple) else [mask] * len(image)
            if len(masks) != len(image):
                raise InputError(f"{len(image)} images and {len(masks)} masks; give one mask per image, or one for all")
            if isinstance(image, np.ndarray) and not len(image):
                raise InputError(f"expected a batch (N, H, W, C) of 1 image or more, got {image.shape}")
            results = self._batch(list(image), list(masks), seed=seed)
            return np.stack(results) if isinstance(image, np.ndarray) else type(image)(results)
        return self._batch([image], [mask], seed=seed)[0]

    def _batch(self, images: list[Any], masks: list[Any], *, seed: int | None) -> list[Any]:
        """Restore pictures in order; consecutive ones of the same size as a batch if the device benefits."""
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
        """Pixels per batch. One image is enough for a CPU; accelerators need several small ones."""
        return 1 if self.device.type == "cpu" else _PIXELS_AT_ONCE

    def samples(self, image: Any, count: int, *, mask: Any = None, seed: int | None = None) -> Samples:
        """`count` restorations of one image, their mean and spread; the first is the result of a normal call."""
        if count < 2:
            raise InputError(f"samples: expected 2 or more, got {count}")
        picture, back, where = load_input(image, check=self.check_fits_in_memory)
        lq, found = self.prepared(picture, mask, where=where)
        _tell(picture, found, where, unless=mask)
        results, mean, squares = [], torch.zeros(()), torch.zeros(())
        for sample, drawn in enumerate(self._drawn(lq, count, seed=seed)):
            made = drawn.clamp(0, 1)
            results.append(back(self.finished(picture, made, lq)))
            step = made - mean  # Welford 1962, to avoid cancellation
            mean = mean + step / (sample + 1)
            squares = squares + step * (made - mean)
        spread = (squares / count).mean(dim=1)[0].sqrt().numpy()
        return Samples(results, back(self.finished(picture, mean, lq)), spread)

    def average(self, image: Any, count: int, *, mask: Any = None, seed: int | None = None) -> Any:
        """The mean of `count` restorations of one image, before clipping, as the same kind.

        For samples of a posterior it approximates the posterior mean: closer to the truth than one sample, but less
        sharp.
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
        """`count` restorations of one prepared image (1, C, H, W), as batches if the device benefits."""
        together = max(1, self._pixels_at_once // (lq[0, 0].numel() * self.scale**2))
        noises = [self.start(lq, seed=seed, sample=sample) for sample in range(count)]
        for made in restore_samples(self.engine, lq, noises=noises, together=together):
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
        """Restore images, folders and videos into a folder (or one file) like `diffir restore`, including resuming.

        `progress(done, total, file)` is called after each file, and after each frame of a video with the number of
        finished files; returning False stops the work. Failed files are listed in `failures` of the outcome, and the
        others are processed. Raises InputError for invalid inputs or outputs.
        """
        from diffir_sr.inference.files import plan_jobs
        from diffir_sr.inference.runner import RestoreSettings, restore_jobs

        given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
        jobs = plan_jobs([os.fspath(one) for one in given], os.fspath(output), form=form, mask=mask)
        settings = RestoreSettings(form=form, mask=mask, samples=samples, average=average, quality=quality)
        return restore_jobs(self, jobs, Path(output), settings, overwrite=overwrite, progress=progress)

    def video(
        self,
        source: PathLike,
        target: PathLike,
        *,
        quality: int = 95,
        overwrite: bool = False,
        progress: Callable[[int, int], bool | None] | None = None,
    ) -> VideoOutcome:
        """Restore one video into the file `target`, whose suffix selects the container.

        `quality` 95 is visually lossless, 100 lossless. `progress(frames done, total frames or 0)` is called after each
        frame; returning False stops the work, and the next call continues there, as after a kill. Losses and
        conversions are logged as warnings. Raises InputError if a file cannot be read or written, or if `target`
        exists, unless `overwrite`.
        """
        from diffir_sr.inference.files import plan_jobs
        from diffir_sr.inference.runner import restore_frames

        source, target = Path(os.path.expanduser(source)), Path(os.path.expanduser(target))
        plan_jobs([str(source)], str(target))  # rejects names that are not those of videos
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists and is not overwritten; choose another name or overwrite=True")
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
        """The settings that determine result files; results made with other settings do not count as done."""
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

    # Individual steps, for callers that already have pictures

    def check_fits_in_memory(self, height: int, width: int, where: str) -> None:
        """Raise InputError if the result of an image would not fit into memory."""
        check_fits_in_memory(height, width, scale=self.scale, where=where)

    def start(self, lq: Tensor, *, seed: int | None = None, sample: int = 0) -> PictureNoise:
        """The initial noise of prepared images (B, C, H, W)."""
        return PictureNoise(lq, seed=self.seed if seed is None else seed, sample=sample)

    def run(self, lq: Tensor, noise: Noise) -> Tensor:
        """Restore prepared images to (B, 3, H * scale, W * scale), without clipping.

        Raises InputError if the network computes values that are not finite, which would appear black.
        """
        made = restore_image(self.engine, lq, noise=noise)
        self._check_finite(made)
        return made

    def _check_finite(self, made: Tensor) -> None:
        if not made.isfinite().all():
            raise InputError(self._not_finite())

    def _not_finite(self) -> str:
        network = (self._about.splitlines() or ["this network"])[0]
        fault = f"the result of {network} is not finite"
        tensors = self.network.state_dict().items()
        broken = [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]
        if broken:
            return (
                f"{fault}: {len(broken)} of its weight tensors contain NaN or infinity, the first is {broken[0]}; use "
                "another weights file, such as an earlier checkpoint of the training"
            )
        width = str(self.engine.dtype).removeprefix("torch.")
        if self.engine.dtype != torch.float32:
            return f"{fault} when computed in {width}; compute in float32"
        return f"{fault}, although its weights are; use another weights file, such as an earlier checkpoint"

    def prepared(self, picture: Picture, mask: Any, *, where: str) -> tuple[Tensor, Mask | None]:
        """The input of the network, (1, C, H, W) in [0, 1], and its mask."""
        colours = picture.colours
        lq = to_tensor(colours)[None] if colours.dtype.kind == "u" else _from_float(colours)
        if not self.takes_mask:
            if mask is not None:
                kind = f"is for {self.task}" if self.task else "does not inpaint"
                raise InputError(f"{where}: this network {kind} and takes no mask; leave the mask out")
            return lq, None
        if mask is None:
            raise InputError(f"{where}: this network inpaints missing pixels; give a mask of them")
        found = mask if isinstance(mask, Mask) else mask_for(picture, mask, where=where)
        missing = torch.from_numpy(found.missing).float()[None, None]
        return torch.cat([lq * (1 - missing), missing], dim=1), found

    def finished(self, picture: Picture, made: Tensor, lq: Tensor) -> Picture:
        """The result as a picture of the same type, grey if the input is, with its alpha and metadata."""
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
    if found and found is not unless:  # a caller that passes a Mask has seen its notes
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
    """Load a restorer; architecture and arguments of the network are read from the weights file.

    `model` is a name of `diffir models list`, such as "sr_x4", instead of `weights`; without either, the default model
    is used (see `weights.search.choose`). Several `weights` make a cascade: each network restores the result of the
    previous one. `sampling` changes the sampling of diffusion networks: steps, sampler (ddpm, ddim), eta, variance,
    beta_schedule (`diffusion.sampling.Sampling`); `schedule`, a file written by search-schedule, sets them first.
    `blend` (file or model, share) interpolates with the weights of a second file, 0 to 1. `device` is auto (an
    accelerator if torch finds one, else the CPU), cpu, cuda, cuda:N, mps or xpu. `tile_mode` exact gives the result of
    the whole image; tiles processes tiles of `tile` pixels with an overlap of `overlap` (with DiffIR, they share the
    prior of the image). `memory_limit` (bytes) bounds the memory of the network beyond weights and input. `optimized`
    False runs the network as it is trained, slower and in one piece. Raises CheckpointError for a file without a
    restoration network, OptionError for sampling options that a network does not have.
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
        file=files[0] if len(files) == 1 and blend is None else None,
        device=device_of(device),
        dtype=_dtype_of(dtype),
        tile_mode=tile_mode,
        tile=tile,
        overlap=overlap,
        memory_limit=memory_limit,
        optimized=optimized,
    )


def _walking(network: nn.Module) -> list[WalksInSteps]:
    """The diffusion networks: this one, or those in a cascade."""
    networks = list(network) if isinstance(network, Cascade) else [network]
    return [one for one in networks if isinstance(one, WalksInSteps)]


def _sample_as(network: nn.Module, sampling: Mapping[str, Any]) -> None:
    changes = {name: value for name, value in sampling.items() if value is not None}
    walking = _walking(network)
    if isinstance(network, Adjustable):
        network.adjust(**changes)
        return
    if changes and not walking:
        raise OptionError(f"{', '.join(changes)}: {type(network).__name__} has no sampler; leave it out")
    for one in walking:
        one.sampling = one.sampling.changed(**changes)


def _digests(weights: Sequence[Path], blend: Any) -> dict[str, object]:
    mixed = None if blend is None else _mixed(blend)
    other = None if mixed is None else [digest_of_file(mixed[0]), mixed[1]]
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
    """The second file and its share; a name of a model is one unless a file has that name."""
    if isinstance(blend, tuple | list) and len(blend) == 2 and isinstance(blend[0], str | os.PathLike):
        with contextlib.suppress(TypeError, ValueError):
            share = float(blend[1])
            file = Path(os.path.expanduser(blend[0]))
            named = str(blend[0]) in registry() and not file.exists()
            return (choose(model=str(blend[0])).path if named else file), share
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
    """Restore `image` with the network of `weights`, with the model of this name, or with the default model.

    With a mask, the default is the inpainting model. To restore many images, keep a restorer from `load_restorer`.
    """
    weights = choose(weights, model, masked=mask is not None).path
    return load_restorer(weights, device=device, dtype=dtype, seed=seed)(image, mask=mask)


def _dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    return found
