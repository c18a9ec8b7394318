"""How an image enters and leaves the networks: the numbers by which the tasks differ, and the size rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffir_sr.errors import InputError, OptionError

GT_UNSHUFFLE = 4  # the ground truth enters the stage-1 prior encoder folded by 4 in every task
BODY_DEPTH = 8  # the body halves its input three times


@dataclass(frozen=True)
class TaskGeometry:
    """Geometry of one task; a new task is a new row of `GEOMETRIES`, never a branch in a network."""

    task: str
    scale: int = 1  # output size / input size
    channels: int = 3  # of the image that the network is given
    body_unshuffle: int = 1  # pixels folded into channels before the body
    prior_unshuffle: int = 4  # the same before the prior encoder
    upsample: int = 1  # after the body; scale = upsample / body_unshuffle
    residual: bool = True  # the input, enlarged by nearest neighbour, is added to the output

    @property
    def multiple_of(self) -> int:
        """Pixels: height and width of an input must be multiples of this; networks pad to it when evaluating."""
        return BODY_DEPTH * self.body_unshuffle

    @property
    def prior_channels(self) -> int:
        """Channels that the prior encoder sees of the degraded image."""
        return self.channels * self.prior_unshuffle**2


def _super_resolution(scale: int) -> TaskGeometry:
    # Every scale shares the x4 tail; x2 and x1 fold the surplus into channels at the input.
    fold = 4 // scale
    return TaskGeometry("sr", scale=scale, body_unshuffle=fold, prior_unshuffle=fold, upsample=4)


GEOMETRIES: dict[tuple[str, int], TaskGeometry] = {
    **{("sr", scale): _super_resolution(scale) for scale in (1, 2, 4)},
    ("deblur", 1): TaskGeometry("deblur"),
    ("inpaint", 1): TaskGeometry("inpaint", channels=4, residual=False),
}
TASKS = tuple(dict.fromkeys(task for task, _ in GEOMETRIES))


def geometry_of(task: str, scale: int | None = None) -> TaskGeometry:
    """The geometry of a task; `scale` matters for 'sr' alone (default 4) and must be 1 or absent elsewhere."""
    scale = scale if scale is not None else (4 if task == "sr" else 1)
    if (task, scale) in GEOMETRIES:
        return GEOMETRIES[task, scale]
    if task not in TASKS:
        raise OptionError(f"task {task!r} is unknown; known tasks: {', '.join(TASKS)}")
    scales = ", ".join(str(known) for name, known in GEOMETRIES if name == task)
    raise OptionError(f"scale {scale} is not possible for task {task!r}; possible: {scales}")


def pad_to_multiple(image: Tensor, *, multiple_of: int) -> Tensor:
    """Pad (B, C, H, W) at the right and bottom until both sides divide; mirrored, then repeated where too small.

    Mirroring cannot add more than the image has, so an image of a few pixels is mirrored as far as it goes
    and its last row or column is repeated for the rest.
    """
    height, width = image.shape[-2:]
    right, bottom = -width % multiple_of, -height % multiple_of
    if not right and not bottom:
        return image
    mirror_right, mirror_bottom = min(right, width - 1), min(bottom, height - 1)
    image = F.pad(image, (0, mirror_right, 0, mirror_bottom), mode="reflect")
    return F.pad(image, (0, right - mirror_right, 0, bottom - mirror_bottom), mode="replicate")


def with_mask(lq: Tensor, mask: Tensor | None) -> Tensor:
    """`lq` (B, 3, H, W) and the mask of missing pixels (B, 1, H, W) as the one image that inpainting networks take."""
    return lq if mask is None else torch.cat([lq, mask.to(lq)], dim=1)


def check_image(image: Tensor, *, channels: int, name: str) -> None:
    """Raise InputError unless `image` is a non-empty (B, channels, H, W) tensor."""
    if image.ndim != 4 or image.shape[1] != channels or 0 in image.shape:
        raise InputError(f"{name}: expected a tensor (batch, {channels}, height, width), got {tuple(image.shape)}")


def check_multiple(image: Tensor, *, multiple_of: int, name: str) -> None:
    """Raise InputError unless both sides of `image` divide by `multiple_of` (training does not pad)."""
    height, width = image.shape[-2:]
    if height % multiple_of or width % multiple_of:
        raise InputError(
            f"{name}: training patches must be multiples of {multiple_of} pixels, got {height}x{width}; "
            f"choose gt_size so that the {name} patch divides by {multiple_of}"
        )
