"""The engine for all networks without a specific one: padding, autocast, tiles, and a memory plan."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffir_sr.archs.geometry import check_image, pad_to_multiple
from diffir_sr.diffusion.noise import Noise, PixelNoise, StackedNoise, WindowNoise
from diffir_sr.errors import InputError, OptionError
from diffir_sr.failures import out_of_memory
from diffir_sr.families import fast_engine
from diffir_sr.families.base import BeginsWithGuess, Engine, HasLeastSize, Restores, WalksInSteps
from diffir_sr.files.processes import free_memory


def tile_starts(length: int, *, tile: int, overlap: int) -> list[int]:
    """Left edges of equal tiles that cover `length` pixels; the last one is moved back to fit."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def in_tiles(
    run: Callable[[Tensor, tuple[int, int]], Tensor], lq: Tensor, *, tile: int, overlap: int, scale: int
) -> Tensor:
    """`run(part, (top, left))` on every tile of `lq` (B, C, H, W), with blended results.

    Returns (B, 3, H * scale, W * scale).
    """
    height, width = lq.shape[-2:]
    result = torch.zeros((len(lq), 3, height * scale, width * scale))
    weights = torch.zeros((1, 1, height * scale, width * scale))
    for top in tile_starts(height, tile=tile, overlap=overlap):
        for left in tile_starts(width, tile=tile, overlap=overlap):
            part = lq[:, :, top : top + tile, left : left + tile]
            weight = _feather(part.shape[-2] * scale, overlap * scale)[:, None]
            weight = weight * _feather(part.shape[-1] * scale, overlap * scale)
            there = (
                ...,
                slice(top * scale, (top + part.shape[-2]) * scale),
                slice(left * scale, (left + part.shape[-1]) * scale),
            )
            result[there] += run(part, (top, left)) * weight
            weights[there] += weight
    return result.div_(weights)


def _feather(length: int, overlap: int) -> Tensor:
    """Blending weights that increase over the overlap from both ends, never zero."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=max(1, overlap)) / max(1, overlap)


TileMode = Literal["exact", "tiles", "prior"]  # 'prior' is the older name of 'tiles'
TILE, OVERLAP = 256, 32  # pixels of the degraded image
logger = logging.getLogger("diffir_sr.inference")


def engine_for(network: nn.Module, *, tile_mode: TileMode = "exact", **how: Any) -> Engine:
    """The engine of a network: that of its family for exactly this class, otherwise the plain one.

    `how` are the arguments of every engine: device, dtype, memory_limit, tile, overlap. Raises OptionError for invalid
    values, InputError for a network whose size rule cannot be determined.
    """
    if tile_mode not in get_args(TileMode):
        raise OptionError(f"tile mode: expected one of {', '.join(get_args(TileMode))}, got {tile_mode!r}")
    fast = fast_engine(network)
    if fast is not None:
        return fast(network, tile_mode="prior" if tile_mode == "tiles" else tile_mode, **how)
    if tile_mode == "prior":
        raise OptionError("tile mode prior: this network has no prior to share; use 'tiles'")
    how.pop("optimized", None)
    return PlainEngine(network, tiles=tile_mode == "tiles", **how)


# First guesses by the position of their part of the image, None for the whole.
Guesses = dict[tuple[int, int] | None, Tensor]


@dataclass(frozen=True)
class PlainPlan:
    """How an image is restored: whole or in tiles, and the expected memory in bytes."""

    height: int
    width: int
    tile: int | None
    bytes: int
    narrowed: bool = False

    def __str__(self) -> str:
        pieces = "one piece" if self.tile is None else f"tiles of {self.tile} pixels"
        return f"{pieces}, about {self.bytes / 2**20:.0f} MiB"


class PlainEngine:
    """Restores pictures with any network: one that has `restore` (`families.base.Restores`), or is called as net(lq).

    With `tiles`, parts of `tile` pixels with an overlap of `overlap` pixels are restored independently and blended:
    this needs less memory and gives a different result. Otherwise whole images are restored. `memory_limit` is in
    bytes, beyond weights and input; None means the free memory.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tiles: bool = False,
        memory_limit: int | None = None,
        tile: int = TILE,
        overlap: int = OVERLAP,
    ) -> None:
        check_tiles(tile, overlap)
        check_memory(memory_limit)
        self.device = torch.device(device)
        self.dtype = dtype
        self.network = as_restoring(self._placed(network))
        self.tile_mode = "tiles" if tiles else "exact"
        check = getattr(network, "check_engine", None)
        if check is not None:
            check(dtype=dtype, tiles=tiles)
        self._tile = tile if tiles else None
        self._overlap = overlap
        self._limit = memory_limit
        self._bytes_per_pixel: float | None = getattr(network, "bytes_per_pixel", None)  # if it is known beforehand

    def _placed(self, network: nn.Module) -> nn.Module:
        """The network where it is to compute."""
        return network.to(self.device)

    @torch.inference_mode()
    def __call__(self, lq: Tensor, *, noise: Noise, guesses: Guesses | None = None, **conditions: Tensor) -> Tensor:
        """See `families.base.Engine`; `guesses` caches what restorations of the same image have in common."""
        guesses = {} if guesses is None else guesses
        check_image(lq, channels=3, name="lq")
        needed, given = self.network.conditions, {name for name, value in conditions.items() if value is not None}
        if needed != given:
            raise InputError(f"this network was given the conditions {sorted(given)} and needs {sorted(needed)}")
        if isinstance(self.network, HasLeastSize):
            self.network.check_size(*lq.shape[-2:])
        self.plan(*lq.shape[-2:])
        names = sorted(conditions)
        widths = [3, *(conditions[name].shape[1] for name in names)]

        def whole(stack: Tensor, place: tuple[int, int] | None = None) -> Tensor:
            image, *others = stack.split(widths, dim=1)
            given = dict(zip(names, others, strict=True))
            return self._whole(image, noise=noise, place=place, guesses=guesses, **given)

        if "gt" in needed:  # its size differs from that of lq, so it cannot be tiled with it
            return self._whole(lq, noise=noise, place=None, guesses=guesses, **conditions)
        stack = torch.cat([lq, *(conditions[name].to(lq) for name in names)], dim=1)
        try:
            if self._tile is None:
                return whole(stack)
            return in_tiles(whole, stack, tile=self._tile, overlap=self._overlap, scale=self.network.scale)
        except Exception as error:
            if not out_of_memory(error):
                raise
            height, width = lq.shape[-2:]
            raise InputError(f"out of memory: {height}x{width} pixels; {self._advice()}") from error

    def plan(self, height: int, width: int) -> PlainPlan:
        """The plan for an image of this size; raises InputError if it needs more memory than allowed.

        Memory is measured once on a small image, as the peak of live tensors, and scaled with the number of pixels;
        attention over a whole image needs more than that.
        """
        multiple = self.network.multiple_of
        high, wide = (side if self._tile is None else min(side, self._tile) for side in (height, width))
        pixels = (-(-high // multiple) * multiple) * (-(-wide // multiple) * multiple)
        if self._bytes_per_pixel is None:
            self._bytes_per_pixel = self._measured()
        needed = int(pixels * self._bytes_per_pixel)
        limit = available(self.device) if self._limit is None else self._limit
        if needed > limit:
            raise InputError(
                f"{height}x{width} pixels need about {needed / 2**30:.1f} GiB with this network, {limit / 2**30:.1f} "
                f"GiB are allowed; {self._advice()}"
            )
        return PlainPlan(height, width, self._tile, needed)

    def _advice(self) -> str:
        tiles = "use tiles" if self._tile is None else f"use tiles smaller than {self._tile} pixels"
        return f"{tiles}, allow or free more memory, or split the image"

    def _whole(
        self, lq: Tensor, *, noise: Noise, place: tuple[int, int] | None, guesses: Guesses, **conditions: Any
    ) -> Tensor:
        """Restore an image, or its part at `place`; overlapping parts share the noise of the image.

        `guesses` caches what samples of the same image have in common.
        """
        net, (height, width) = self.network, lq.shape[-2:]
        image = pad_to_multiple(lq.to(self.device, torch.float32), multiple_of=net.multiple_of)
        if place is not None:
            noise = WindowNoise(noise, top=place[0], left=place[1], height=image.shape[-2], width=image.shape[-1])
        padded = {
            name: pad_to_multiple(
                value.to(self.device, torch.float32), multiple_of=net.multiple_of * (net.scale if name == "gt" else 1)
            )
            for name, value in conditions.items()
        }
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if isinstance(net, BeginsWithGuess):
                if place not in guesses:
                    guesses[place] = net.first_guess(image[:1] if _is_one(image) else image)
                made = net.restore(image, noise=noise, first=guesses[place], **padded)
            else:
                made = net.restore(image, noise=noise, **padded)
        expected = (len(lq), 3, image.shape[-2] * net.scale, image.shape[-1] * net.scale)
        if tuple(made.shape) != expected:
            raise InputError(f"{_name(net)} returned {tuple(made.shape)} for an image padded to {tuple(image.shape)}; "
                             f"expected {expected}")  # fmt: skip
        return made[..., : height * net.scale, : width * net.scale].float().cpu()

    @torch.inference_mode()
    def _measured(self) -> float:
        """Peak memory in bytes per input pixel, measured on a small image."""
        net = self.network
        side = -(-48 // net.multiple_of) * net.multiple_of
        run = net.restore
        if isinstance(net, WalksInSteps):
            run = net.restore_in_one_step
            side = -(-48 // (net.multiple_of * net.scale)) * net.multiple_of
        image = torch.zeros(1, 3, side, side, device=self.device)
        sizes = {"mask": (1, 1, side, side), "gt": (1, 3, side * net.scale, side * net.scale)}
        conditions = {name: torch.zeros(sizes[name], device=self.device) for name in net.conditions}
        with LivingBytes() as living, torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            run(image, noise=_Zeros(), **conditions)
        return living.peak / side**2


def _is_one(images: Tensor) -> bool:
    """Whether a batch (B, C, H, W) is the same image B times, as for samples drawn together."""
    return len(images) > 1 and torch.equal(images, images[:1].expand_as(images))


class _Zeros:
    """Noise for a run whose values do not matter."""

    def normal(self, shape: Any, name: str = "") -> Tensor:
        return torch.zeros(tuple(shape))


class LivingBytes(TorchDispatchMode):
    """Counts the bytes of tensors made by operations: `now` alive, `peak` at most; shared storage counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return made

    def count(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is freed; also for tensors that existed before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def as_restoring(network: nn.Module) -> Restores:
    """`network` itself if it has `restore`, otherwise an adapter that calls it like BasicSR's networks.

    The most derived definition counts: a class that overrides `forward` of a restoring network is called.
    """
    if isinstance(network, Restores) and not _forward_is_newer(type(network)):
        return network
    return CalledNetwork(network)


def _forward_is_newer(kind: type) -> bool:
    owner = {name: next(k for k in kind.__mro__ if name in vars(k)) for name in ("forward", "restore")}
    forward, restore = owner["forward"], owner["restore"]
    return forward is not restore and issubclass(forward, restore)


class CalledNetwork:
    """Adapter for a network called as net(lq); scale and size rule are its attributes, or found by trying."""

    conditions = frozenset[str]()

    def __init__(self, network: nn.Module) -> None:
        self.net = network
        self.multiple_of, self.scale = size_rule(network)

    def restore(self, lq: Tensor, *, noise: Noise, **_: Any) -> Tensor:
        return _image_of(self.net(lq))


_MULTIPLES = (1, 2, 4, 7, 8, 12, 16, 32, 64, 128)
_LEAST_SIDE = 16


@torch.no_grad()
def size_rule(network: nn.Module) -> tuple[int, int]:
    """(required multiple of side lengths in pixels, scale) of a network called as net(lq).

    A network may state `multiple_of`. Others are tried on small black images whose sides are odd multiples of 1, 2, 4,
    ...; the first one that gives an image with an integer scale counts. Raises InputError if none does.
    """
    declared = getattr(network, "multiple_of", None)
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    was_training, failure = network.training, "it returned no image"
    network.eval()
    try:
        for multiple in (declared,) if isinstance(declared, int) else _MULTIPLES:
            times = -(-_LEAST_SIDE // multiple) | 1  # odd, so that no larger multiple divides the side
            side, wide = multiple * times, multiple * (times + 2)
            try:
                made = _image_of(network(torch.zeros(1, 3, side, wide, device=device)))
            except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
                failure = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            scale = made.shape[-2] // side if made.ndim == 4 else 0
            if scale and tuple(made.shape) == (1, 3, side * scale, wide * scale):
                return multiple, scale
            failure = f"it returned {tuple(made.shape)} for (1, 3, {side}, {wide})"
    finally:
        network.train(was_training)
    raise InputError(
        f"{_name(network)} does not restore images of any size tried ({failure}); a network needs "
        "net(lq) -> (B, 3, H * scale, W * scale), or the attributes of diffir_sr.families.base.Restores"
    )


def _image_of(made: Any) -> Tensor:
    """The image returned by a network: the output itself, or the last of several, as of multi-stage networks."""
    if isinstance(made, list | tuple) and made:
        made = made[-1]
    if not isinstance(made, Tensor):
        raise TypeError(f"expected a tensor from the network, got {type(made).__name__}")
    return made


def _name(network: Any) -> str:
    return type(getattr(network, "net", network)).__name__


def check_tiles(tile: int, overlap: int) -> None:
    """Raise OptionError for invalid tile sizes."""
    if overlap < 0:
        raise OptionError(f"overlap: expected 0 pixels or more, got {overlap}")
    if tile < 1:
        raise OptionError(f"tile: expected 1 pixel or more, got {tile}")
    if tile < 2 * overlap:
        raise OptionError(f"tile: expected at least twice the overlap of {overlap} pixels, got {tile}")


def check_memory(memory_limit: int | None) -> None:
    """Raise OptionError for an invalid memory limit."""
    if memory_limit is not None and not memory_limit > 0:  # so that NaN is refused, too
        raise OptionError(f"memory: expected more than 0 bytes, got {memory_limit}")


def restore_image(engine: Engine, lq: Tensor, *, noise: Noise, **conditions: Any) -> Tensor:
    """The restored images (B, 3, H * scale, W * scale) of `lq` in [0, 1], float32 on the CPU.

    `lq` is (B, 3, H, W), or (B, 4, H, W) with the mask of missing pixels as fourth channel; known pixels are then
    copied from `lq`.
    """
    lq = lq.cpu()
    if lq.shape[1] != 4:
        return engine(lq, noise=noise, **conditions)
    colours, mask = lq[:, :3], lq[:, 3:]
    return torch.where(mask > 0.5, engine(colours, noise=noise, mask=mask, **conditions), colours)


def restore_samples(
    engine: Engine,
    lq: Tensor,
    *,
    noises: Sequence[PixelNoise],
    together: int = 1,
    guesses: Guesses | None = None,
) -> Iterator[Tensor]:
    """Restorations (1, 3, H * scale, W * scale) of one image (1, C, H, W), one per noise.

    Common parts are computed once for all calls that share `guesses`. `together` are computed as a batch.
    """
    kept = {"guesses": {} if guesses is None else guesses} if isinstance(engine, PlainEngine) else {}
    for start in range(0, len(noises), together):
        group = noises[start : start + together]
        noise = group[0] if len(group) == 1 else StackedNoise(group)
        yield from restore_image(engine, lq.expand(len(group), -1, -1, -1), noise=noise, **kept).split(1)


# Checking whether an image fits into memory before anything large is allocated.


_PER_INPUT_PIXEL = 24  # bytes: two decoded copies, and float32
_PER_OUTPUT_PIXEL = 24  # bytes: two float32 copies while clipping and rounding; the 8-bit image; the file


def check_fits_in_memory(height: int, width: int, *, scale: int, where: str, available: int | None = None) -> None:
    """Raise InputError if input and result alone exceed the free memory; the network has its own plan."""
    available = free_memory() if available is None else available
    needed = height * width * (_PER_INPUT_PIXEL + _PER_OUTPUT_PIXEL * scale * scale)
    if needed > available:
        raise InputError(
            f"{where}: {height}x{width} restored to {height * scale}x{width * scale} needs about "
            f"{needed / 2**30:.1f} GiB for input and result, {available / 2**30:.1f} GiB are free; split it into parts"
        )


def available(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()
