"""Converting image arrays to tensors, and crops, flips and rotations of training patches."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from diffir_sr.data.sources import Picture


def as_rgb_float(image: np.ndarray) -> np.ndarray:
    """Convert an array as read to float32 RGB (H, W, 3) in [0, 1]; grey is repeated, alpha is dropped."""
    colours = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
    scale = np.float32(1 / {"uint8": 255, "uint16": 65535}.get(image.dtype.name, 1))
    return colours.astype(np.float32) * scale


def random_corner(rng: np.random.Generator, image: Picture, size: int) -> tuple[int, int]:
    """Top and left of a random square of `size` pixels in an image (H, W, C), uniformly distributed."""
    return int(rng.integers(image.shape[0] - size + 1)), int(rng.integers(image.shape[1] - size + 1))


_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


def turned(image: np.ndarray, *, flip: bool, turns: int) -> np.ndarray:
    """Mirror horizontally, then rotate by multiples of 90 degrees: together all eight symmetries of a square."""
    # OpenCV moves whole blocks of pixels, ten times as fast as copying a turned view of NumPy.
    moved = cv2.flip(image, 1) if flip else image
    turn = _TURNS[turns % 4]
    moved = moved if turn is None else cv2.rotate(moved, turn)
    return moved.reshape(*moved.shape[:2], -1)  # OpenCV drops the axis of a single channel


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert an array as read, (H, W, C), to float32 RGB (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(as_rgb_float(image).transpose(2, 0, 1)))


def to_bytes(image: np.ndarray) -> Tensor:
    """Convert an 8-bit array as read, (H, W, C), to uint8 RGB (3, H, W)."""
    colours = np.broadcast_to(image[..., :1], (*image.shape[:2], 3)) if image.shape[2] < 3 else image[..., :3]
    planes = np.empty((3, *colours.shape[:2]), np.uint8)
    cv2.split(np.ascontiguousarray(colours), [planes[0], planes[1], planes[2]])
    return torch.from_numpy(planes)
