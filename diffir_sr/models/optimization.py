"""How weights are moved: learning rates over iterations, and the form and precision of a step."""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffir_sr.errors import OptionError
from diffir_sr.option_types import Found, Section, View, Whole


class CosineAnnealingRestartCyclicLR(LRScheduler):
    """Cosine cycles, each with its own length, start weight and floor (the published deblurring schedule).

    After iteration k of a cycle of length n: floor + (base * weight - floor) / 2 * (1 + cos(pi k / n)). A floor
    above the start makes the rate rise, as the first published cycle does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        periods: Sequence[int],
        restart_weights: Sequence[float] = (1,),
        eta_mins: Sequence[float] = (0,),
        last_epoch: int = -1,
    ) -> None:
        if not len(periods) == len(restart_weights) == len(eta_mins):
            raise OptionError(
                "train.scheduler: periods, restart_weights and eta_mins need equal lengths, got "
                f"{len(periods)}, {len(restart_weights)} and {len(eta_mins)}"
            )
        self.periods = list(periods)
        self.restart_weights = list(restart_weights)
        self.eta_mins = list(eta_mins)
        self.ends = list(accumulate(periods))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        # Beyond the last cycle its end value stays.
        now = min(self.last_epoch, self.ends[-1])
        cycle = next(index for index, end in enumerate(self.ends) if now <= end)
        done = (now - (self.ends[cycle] - self.periods[cycle])) / self.periods[cycle]
        floor, weight = self.eta_mins[cycle], self.restart_weights[cycle]
        return [floor + (base * weight - floor) / 2 * (1 + math.cos(math.pi * done)) for base in self.base_lrs]


SCHEDULERS: dict[str, Any] = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
    "CosineAnnealingRestartCyclicLR": CosineAnnealingRestartCyclicLR,
}


def build_scheduler(optimizer: Optimizer, opt: Mapping[str, Any]) -> LRScheduler:
    """The scheduler that a `train.scheduler` section describes; `opt` is not changed."""
    arguments = {name: value for name, value in opt.items() if name != "type"}
    if opt["type"] not in SCHEDULERS:
        raise OptionError(f"train.scheduler.type: unknown {opt['type']!r}; known: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[opt["type"]](optimizer, **arguments)


def step_decay_rate(base: float, *, gamma: float, every: int, iteration: int) -> float:
    """base * gamma ** (iteration // every): the law of lr_encoder / lr_sr in the published warm-up recipes."""
    return base * gamma ** (max(iteration, 0) // every)


def gradient_norm(weights: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients of `weights` together, float32, left on their device; 0 where none has one."""
    weights = list(weights)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return torch.zeros((), device=weights[0].device)
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage] - one call for all
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))


# How a training step is computed: choices of time and memory that change no number beyond rounding.


logger = logging.getLogger("basicsr")


class Acceleration(Section):
    """How a training step is computed."""

    form: Literal["auto", "plain", "fast"] = Field(
        "auto",
        description="How DiffIR's body is computed in training: plain, as it is defined; fast, in fewer passes over "
        "memory, with the same numbers to rounding; auto is fast on CPUs and plain elsewhere, and with float16 or "
        "compile.",
    )
    autocast: Literal["none", "bfloat16", "float16"] = Field(
        "none",
        description="bfloat16 and float16 compute convolutions and matrix products of network_g in half precision; "
        "weights, norm statistics, softmax, diffusion and losses stay in float32. float16 scales the loss, so that "
        "small gradients do not vanish, and leaves out steps whose gradients overflow.",
    )
    checkpointing: bool = Field(
        False,
        description="Whether DiffIR's blocks are computed again in the backward pass instead of being kept: the same "
        "numbers in a fraction of the memory, and about a third more time.",
    )
    channels_last: bool = Field(
        False,
        description="Whether images and convolutions have their channels last in memory, which GPUs with half "
        "precision are fastest in.",
    )
    compile: bool = Field(
        False,
        description="Whether the blocks that a network repeats are compiled by torch.compile: the first iterations "
        "take minutes, the others less time. Needs a C++ compiler on CPUs, Triton on GPUs.",
    )
    accumulation: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        1,
        description="Parts that a batch is computed in, one after the other, before a step: the step of the whole "
        "batch, with the memory of a part. Must divide batch_size_per_gpu.",
    )


def step_can_be_computed(view: View, at: tuple[str, ...]) -> Found:
    """Ways to compute a step contradict neither each other nor the batch and the losses."""
    if not view.is_train:
        return
    if view.get("train", "form") == "fast":
        if view.get("train", "autocast") == "float16":
            yield ("train", "form"), "fast sums over all pixels beyond what float16 can hold; use auto, or bfloat16"
        if view.get("train", "compile"):
            yield ("train", "form"), "fast is not compiled, compile is for the plain form; use auto, or compile: false"
    parts = view.get("train", "accumulation", default=1)
    if parts == 1:
        return
    if view.declares("WHOLE_BATCHES"):
        yield (
            ("train", "accumulation"),
            f"{view.model} judges whole batches (batch norm, R1), which do not fall into parts; leave it out",
        )
    for name, _ in view.datasets(phase="train"):
        sizes = [("batch_size_per_gpu", view.get("datasets", name, "batch_size_per_gpu"))]
        sizes += [("mini_batch_sizes", size) for size in view.get("datasets", name, "mini_batch_sizes", default=[])]
        for key, size in sizes:
            if isinstance(size, int) and size % parts:
                yield ("train", "accumulation"), f"{parts} does not divide datasets.{name}.{key}, which is {size}"
                break
    for loss in ("pixel_opt", "perceptual_opt", "gan_opt", "kd_opt"):
        if view.get("train", loss, "reduction") == "sum" or view.get("train", loss, "criterion") == "fro":
            yield ("train", loss), "is no mean over the pictures of a batch, which accumulation needs; choose another"


def accelerate(net: nn.Module, options: Acceleration, device: torch.device) -> None:
    """Let the parts of `net` be computed as `form`, `checkpointing` and `compile` say; OptionError if they cannot."""
    if options.autocast != "none" and (fault := half_precision_fault(options.autocast, device)):
        raise OptionError(f"train.autocast: {options.autocast} does not work on this {device.type} ({fault}); use none")
    if options.autocast == "bfloat16" and device.type == "cpu" and not computes_bfloat16():
        logger.warning(
            "train.autocast: this processor has no bfloat16 arithmetic (AVX512-BF16 or AMX), so that bfloat16 is "
            "emulated and slower than float32; none is faster here"
        )
    able = not options.compile and options.autocast != "float16"
    fast = options.form == "fast" or (options.form == "auto" and device.type == "cpu" and able)
    parts: list[Any] = [part for part in net.modules() if hasattr(part, "fast_training")]
    for part in parts:
        part.fast_training = fast
    if parts:
        logger.info(f"Training form: {'fast' if fast else 'plain'}")
    levels: list[Any] = [part for part in net.modules() if hasattr(part, "checkpointing")]
    for level in levels:
        level.checkpointing = options.checkpointing
    if options.compile:
        _compile(net, device)


def computes_bfloat16() -> bool:
    """Whether the processor has arithmetic of bfloat16; taken to have where torch cannot tell, and beside x86."""
    tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older torch has none
    found = tell()
    return found.get("architecture") != "x86_64" or any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


def half_precision_fault(dtype: str, device: torch.device) -> str | None:
    """Why a convolution and its gradients cannot be computed under autocast there; None if they can."""
    try:
        with torch.autocast(device.type, dtype=getattr(torch, dtype)):
            weight = torch.ones(2, 2, 3, 3, device=device, requires_grad=True)
            made = nn.functional.conv2d(torch.ones(1, 2, 4, 4, device=device), weight)
        made.float().sum().backward()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None if made.dtype == getattr(torch, dtype) else "it is computed in float32 there"


def _compile(net: nn.Module, device: torch.device) -> None:
    fault = compiler_fault(device)
    if fault:
        raise OptionError(f"train.compile: {fault}; install it, or leave compile out")
    blocks = repeated_blocks(net)
    if not blocks:
        raise OptionError(f"train.compile: {type(net).__name__} repeats no block that could be compiled; leave it out")
    for block in blocks:
        block.compile(dynamic=False)
    logger.info(f"Compiling {len(blocks)} blocks ({', '.join(sorted({type(one).__name__ for one in blocks}))})")


def compiler_fault(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine to compile for `device`; None if all is there."""
    if device.type != "cpu":
        return None if find_spec("triton") else "torch.compile needs Triton for this device, which is not installed"
    candidates = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++", "cl"))
    if any(shutil.which(shlex.split(name)[0]) for name in candidates):
        return None
    return "torch.compile needs a C++ compiler (g++ or clang++) on a CPU, none was found"


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """The modules in lists and sequences of `net` whose class, none of torch's own, is there at least twice.

    Of blocks within blocks the outer ones.
    """
    found: list[tuple[str, nn.Module]] = []
    for place, holder in net.named_modules():
        if isinstance(holder, nn.ModuleList | nn.Sequential):
            found += [(f"{place}.{name}", part) for name, part in holder.named_children() if not _is_of_torch(part)]
    counts = Counter(type(part) for _, part in found)
    several = {place: part for place, part in found if counts[type(part)] > 1}
    return [
        part
        for place, part in several.items()
        if not any(place.startswith(f"{other}.") for other in several if other != place)
    ]


def _is_of_torch(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.") or isinstance(part, nn.ModuleList | nn.Sequential)


def in_precision(call: Callable[[], Any], autocast: str, device: torch.device) -> Any:
    """What `call` returns when it runs under `train.autocast`; tensors of half precision come back as float32."""
    if autocast == "none":
        return call()
    with torch.autocast(device.type, dtype=getattr(torch, autocast)):
        return _in_float32(call())


def _in_float32(made: Any) -> Any:
    if isinstance(made, list | tuple):
        return type(made)(_in_float32(one) for one in made)
    return made.float() if torch.is_tensor(made) and made.is_floating_point() else made


def channels_last(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Images (B, C, H, W) among `inputs` with their channels last in memory."""
    return tuple(one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one for one in inputs)


class ScaledSteps:
    """The steps of a training in float16: the loss is scaled, and a step whose gradients overflow is left out.

    For one optimizer after the other: `backward` of a scaled loss, `unscale`, `step`.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type)
        self.skipped = 0  # steps since the training began

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Give the gradients their true size, to measure and clip them."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """The optimizer's step and the next scale; whether the step was made."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        left_out = self.scaler.get_scale() < before
        self.skipped += left_out
        return not left_out

    def state(self) -> dict[str, Any]:
        return {**self.scaler.state_dict(), "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        self.skipped = int(state["skipped"])
        self.scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped"})
