"""The augmentation of the published Places recipe: one warp (perspective, affine, lens) and a change of colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

_CHANCE = 0.5  # of each step, as in the published code


@dataclass(frozen=True)
class Distortions:
    """Random square of an image after warps and colour changes; each step with a chance of one half.

    LaMa's published steps (`distortions`) one after the other interpolate three times; here the warps
    are composed and interpolated once. Beyond the image it is mirrored.
    """

    perspective: float = 0.06  # corners move by up to about so much of the sides (deviation of a normal draw)
    scale: tuple[float, float] = (0.7, 1.3)
    rotate: float = 40.0  # degrees to either side
    shear: float = 0.1  # degrees to either side
    lens: float = 0.05
    brightness: float = 0.2
    contrast: float = 0.2
    hsv: tuple[int, int, int] = (5, 30, 5)

    def __call__(self, image: np.ndarray, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """An 8-bit image (H, W, 1, 3 or 4) to uint8 RGB (size, size, 3)."""
        colours = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
        if colours.dtype == np.uint16:
            colours = (colours / 257).round().astype(np.uint8)
        height, width = image.shape[:2]
        x, y = self._places(height, width, size, rng)
        square = cv2.remap(np.ascontiguousarray(colours), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return self._recoloured(square, rng)

    def _places(self, height: int, width: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where in the image each pixel of the square comes from: x and y, float32."""
        canvas_h, canvas_w = max(height, size), max(width, size)
        top, left = int(rng.integers(canvas_h - size + 1)), int(rng.integers(canvas_w - size + 1))
        x, y = np.meshgrid(np.arange(size, dtype=np.float64) + left, np.arange(size, dtype=np.float64) + top)
        if rng.random() < _CHANCE:
            x, y = self._through_a_lens(x, y, canvas_h, canvas_w, rng)
        x, y = x - (canvas_w - width) // 2, y - (canvas_h - height) // 2
        back = np.linalg.inv(self._warp(height, width, rng))
        u, v, w = np.tensordot(back, np.stack([x, y, np.ones_like(x)]), axes=1)
        return (u / w).astype(np.float32), (v / w).astype(np.float32)

    def _through_a_lens(
        self, x: np.ndarray, y: np.ndarray, height: int, width: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Radial distortion r (1 + k r^2 + k r^4) around a shifted centre, r in image widths."""
        k, shift_x, shift_y = (rng.uniform(-self.lens, self.lens) for _ in range(3))
        centre_x, centre_y = width * (0.5 + shift_x), height * (0.5 + shift_y)
        dx, dy = (x - centre_x) / width, (y - centre_y) / width
        r2 = dx * dx + dy * dy
        factor = (1 + k * r2 + k * r2 * r2) * width
        return centre_x + dx * factor, centre_y + dy * factor

    def _warp(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """The 3 x 3 matrix of perspective and affine warp, from the image to where it is seen."""
        warp = np.eye(3)
        if rng.random() < _CHANCE:
            corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
            inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
            moved = np.abs(rng.normal(0, rng.uniform(0, self.perspective), (4, 2))).clip(max=0.24) * (width, height)
            warp = cv2.getPerspectiveTransform((corners + inwards * moved).astype(np.float32), corners)
        if rng.random() < _CHANCE:
            warp = self._affine(height, width, rng) @ warp
        return warp

    def _affine(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        wide, tall = rng.uniform(*self.scale, size=2)
        turn = math.radians(rng.uniform(-self.rotate, self.rotate))
        lean = math.tan(math.radians(rng.uniform(-self.shear, self.shear)))
        linear = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        linear = linear @ np.array([[1, lean], [0, 1]]) @ np.diag([wide, tall])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = linear, centre - linear @ centre
        return matrix

    def _recoloured(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < _CHANCE:
            light = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
            equalise = cv2.createCLAHE(clipLimit=rng.uniform(1, 4), tileGridSize=(8, 8))
            light[..., 0] = equalise.apply(np.ascontiguousarray(light[..., 0]))
            image = cv2.cvtColor(light, cv2.COLOR_LAB2RGB)
        if rng.random() < _CHANCE:
            gain = 1 + rng.uniform(-self.contrast, self.contrast)
            lift = rng.uniform(-self.brightness, self.brightness) * 255
            image = (image * gain + lift).round().clip(0, 255).astype(np.uint8)
        if rng.random() < _CHANCE:
            hue, saturation, value = (rng.uniform(-limit, limit) for limit in self.hsv)
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
            hsv[..., 0] = (hsv[..., 0] + round(hue)) % 180
            hsv[..., 1:] = (hsv[..., 1:] + (saturation, value)).clip(0, 255)
            image = cv2.cvtColor(hsv.round().astype(np.uint8), cv2.COLOR_HSV2RGB)
        return image
