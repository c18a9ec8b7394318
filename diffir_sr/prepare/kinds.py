"""Degradations by name: noise, blur, rain, underexposure, haze, low resolution, raindrops, each with its model.

A model is a function of a photograph (H, W, 3), float32 in [0, 1] as sRGB stores it, and a generator. Rain, raindrops
and haze are synthetic: streaks and drops are drawn, and a smooth field stands for the depth that a photograph lacks.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from diffir_sr.prepare.jobs import DEGRADATION_KINDS
from diffir_sr.prepare.shake import camera_path, encoded, exposed, linear

Model = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise of 10 to 50 of 255, or shot and read noise of a sensor; half of either is equal in all colours."""
    values = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.25:
        values = np.repeat(values[..., :1], 3, axis=2)
    if rng.random() < 0.5:
        return image + rng.uniform(10, 50) / 255 * values
    light = linear(image)
    shot, read = np.exp(rng.uniform(np.log(3e-3), np.log(3e-2))), rng.uniform(5e-3, 2e-2)
    return encoded(np.clip(light + np.sqrt(shot * light + read**2) * values, 0, 1))


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus (a disc of 2 to 5 pixels radius) or moved (a path of 8 to 20 pixels), in linear light."""
    light = linear(image).astype(np.float32)
    if rng.random() < 0.5:
        return encoded(exposed(light, camera_path(rng, length=rng.uniform(8, 20))))
    radius = rng.uniform(2, 5)
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    kernel = (disc / disc.sum()).astype(np.float32)
    return encoded(cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101).clip(0, 1))


def rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three layers of bright streaks, up to 30 degrees from upright, under a thin grey veil."""
    height, width = image.shape[:2]
    angle = rng.uniform(-30, 30)
    streaks = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(1, 4)):
        length, thick = rng.uniform(10, 36), rng.uniform(0.5, 1.2)
        seeds = (rng.random((height, width)) < rng.uniform(0.002, 0.008)).astype(np.float32)
        seeds *= rng.uniform(0.4, 1, seeds.shape).astype(np.float32)
        layer = cv2.filter2D(seeds, -1, _streak(length, thick, angle + rng.uniform(-4, 4)), borderType=cv2.BORDER_WRAP)
        streaks = np.maximum(streaks, layer)
    streaks = np.clip(streaks * rng.uniform(0.4, 0.9), 0, 1)[..., None]
    veil = rng.uniform(0, 0.15)
    wet = image * (1 - veil) + 0.7 * veil
    return wet + streaks * (rng.uniform(0.8, 1) - wet)


def _streak(length: float, thick: float, angle: float) -> np.ndarray:
    """A line of a kernel, `angle` degrees from upright, its largest value 1, thinner towards its ends."""
    reach = math.ceil(length / 2) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    turn = math.radians(angle)
    along, across = x * math.sin(turn) + y * math.cos(turn), x * math.cos(turn) - y * math.sin(turn)
    inside = np.clip(1 - np.abs(along) / (length / 2), 0, 1) ** 0.5
    return (inside * np.exp(-((across / thick) ** 2))).astype(np.float32)


def underexposure(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 to 4.5 stops less light, with a sensor's noise of what is left."""
    light = linear(image) * 2 ** -rng.uniform(2, 4.5)
    spread = np.sqrt(rng.uniform(0, 2e-4) * light + rng.uniform(0, 1e-3) ** 2)
    return encoded(np.clip(light + spread * rng.standard_normal(image.shape, np.float32), 0, 1))


def haze(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """I = J t + A (1 - t) with t = exp(-beta d), A almost grey; for the depth d stand a slope and smooth patches."""
    height, width = image.shape[:2]
    slope = np.linspace(1, rng.uniform(0, 0.5), height, dtype=np.float32)[:, None]  # the far is above, as a rule
    patches = cv2.resize(rng.random((4, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    depth = np.clip(0.65 * slope + 0.35 * patches, 0.05, 1)[..., None]
    through = np.exp(-rng.uniform(0.8, 2.2) * depth)
    air = np.clip(rng.uniform(0.7, 1) + rng.uniform(-0.03, 0.03, 3), 0, 1)
    return image * through + air * (1 - through)


def low_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Made 3 to 8 times smaller (antialiased), stored in 8 bits, and enlarged again by bicubic interpolation."""
    height, width = image.shape[:2]
    factor = rng.uniform(3, 8)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    small = np.rint(np.clip(cv2.resize(image, size, interpolation=cv2.INTER_AREA), 0, 1) * 255) / 255
    return cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def raindrop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drops on the lens: in each a blurred picture upside down of its surroundings, brighter below, darker above."""
    height, width = image.shape[:2]
    soft = cv2.GaussianBlur(image, (0, 0), 2.5)
    made = image.copy()
    drops = max(3, round(height * width / 65536 * rng.uniform(8, 22)))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(drops):
        radius = np.exp(rng.uniform(np.log(5), np.log(22)))
        top, left = rng.uniform(0, height), rng.uniform(0, width)
        tall, bent = rng.uniform(0.9, 1.5), rng.uniform(-0.3, 0.3)
        reach = int(radius * tall * 1.6) + 2
        there = (
            slice(max(0, int(top) - reach), max(0, min(height, int(top) + reach))),
            slice(max(0, int(left) - reach), max(0, min(width, int(left) + reach))),
        )
        down, side = (y[there] - top) / tall, x[there] - left
        distance = np.hypot(down, side + bent * down) / radius
        alpha = np.clip((1 - distance) * radius / 2.5, 0, 1)[..., None]
        # A drop is a strong lens: it shows a wide part of the scene, turned around.
        from_y, from_x = np.clip(top - 3 * down, 0, height - 1), np.clip(left - 3 * side, 0, width - 1)
        seen = cv2.remap(soft, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_LINEAR)
        shade = 1 + 0.35 * (down / radius)[..., None] * np.clip(distance, 0, 1)[..., None]
        made[there] = made[there] * (1 - alpha) + np.clip(seen * shade, 0, 1) * alpha
    return made


MODELS: dict[str, Model] = dict(
    zip(DEGRADATION_KINDS, (noise, blur, rain, underexposure, haze, low_resolution, raindrop), strict=True)
)


def degraded_by(image: np.ndarray, kinds: Sequence[str], *, seed: int, name: str) -> np.ndarray:
    """An 8-bit image (H, W, C) degraded by each of `kinds` in turn, uint8 RGB: a function of seed, kinds and name."""
    colours = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    values = colours.astype(np.float32) / 255
    for kind in kinds:
        rng = np.random.default_rng((seed, zlib.crc32(f"{kind}/{name}".encode())))
        values = np.clip(MODELS[kind](values, rng), 0, 1).astype(np.float32)
    return np.rint(values * 255).astype(np.uint8)
