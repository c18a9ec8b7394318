"""The dataset for inpainting: images with random or given masks, and the published warps and colour changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from pydantic import Field

from diffir_sr.data.arrays import random_corner, to_bytes, to_tensor, turned
from diffir_sr.data.draws import Draw, DrawnDataset, Mixture
from diffir_sr.data.masks import (
    EVALUATION,
    MaskGenerator,
    binary,
    evaluation_size,
    mask_of_name,
    masks_can_be_drawn,
    mix_from_options,
    mixed_mask,
)
from diffir_sr.data.pairs import lists_of
from diffir_sr.data.sources import ImageSource, Picture, check_backend, open_source, roots_of, some
from diffir_sr.errors import InputError
from diffir_sr.option_types import Found, Roots, Section, Small, SmallOrZero, View


class InpaintDatasetOptions(Section):
    """Images with masks, random or given as mask images (values above 0 mark missing pixels)."""

    dataroot_gt: Roots | None = Field(
        None, description="Folder, LMDB, shards or list of whole images; several roots are mixed."
    )
    dataroot_lq: Roots | None = Field(
        None, description="Instead of dataroot_gt, for testing: images without ground truth."
    )
    dataroot_mask: str | None = Field(None, description="Folder, LMDB or shards of masks; by default masks are random.")
    meta_info_file: Roots | None = Field(None, description="List or manifest of the images to use; by default all.")
    gt_size: Small | None = Field(None, description="Side of training patches in pixels; required in datasets.train.")
    use_hflip: bool = Field(False, description="Whether training patches are randomly mirrored.")
    augment: Literal["none", "distortions"] = Field(
        "none", description="distortions: warps and colour changes of the published Places recipe."
    )
    mask_kind: Literal["random", "thin", "medium", "thick"] = Field(
        "random", description="random: according to mask_gen; otherwise the masks of the published evaluation."
    )
    mask_gen: MaskGenerator | None = Field(None, description="Parameters of random masks.")
    mask_dilate: Annotated[SmallOrZero, Field(le=512)] = Field(0, description="Dilation of given masks in pixels.")


def holes_are_known(view: View, at: tuple[str, ...]) -> Found:
    """Images are given, and masks if they cannot be random."""
    gt, lq, mask = (view.has(*at, f"dataroot_{role}") for role in ("gt", "lq", "mask"))
    if gt == lq:
        yield (*at, "dataroot_gt"), "give either dataroot_gt (whole images) or dataroot_lq (images with holes)"
    elif lq and not mask:
        yield (*at, "dataroot_mask"), "missing: images without ground truth need masks"
    elif lq and at[-1] == "train":
        yield (*at, "dataroot_gt"), "missing: training needs whole images"


def holes_are_filled(view: View, at: tuple[str, ...]) -> Found:
    """Datasets with masks require inpainting models."""
    if view.declares("STANDARD_LOOP") and not view.declares("FILLS_HOLES"):
        fill = " and ".join(view.models_with("FILLS_HOLES"))
        yield (*at, "type"), f"its images have masks, which need {fill}, not {view.model}; change model_type"


class InpaintDataset(DrawnDataset):
    """Samples {gt, mask, gt_path, lq_path}: `gt` float32 RGB (3, H, W) in [0, 1], `mask` (1, H, W), 1 = missing.

    After `give_bytes` both are uint8, `gt` in 0 to 255.

    `dataroot_gt` has whole images; `dataroot_lq` instead has images without ground truth, which give `lq`. Masks come
    from `dataroot_mask` (with the same names outside training, otherwise any), or are generated: `mask_kind` random
    according to `mask_gen`, or thin, medium, thick as in evaluation. Training crops `gt_size`, or distorts (`augment`).
    Outside training, a mask is a function of (seed, kind, name), and images are whole.
    """

    OPTIONS = InpaintDatasetOptions
    RULES = (holes_are_known, holes_are_filled, masks_can_be_drawn)
    NEEDED_IN_TRAINING: ClassVar[tuple[str, ...]] = ("gt_size",)
    GIVES_HOLES = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        check_backend(opt)
        self.training = opt.get("phase") == "train"
        self.gt_size = int(opt["gt_size"]) if self.training else None
        self.role = "gt" if opt.get("dataroot_gt") else "lq"
        if self.training and self.role == "lq":
            raise InputError("dataroot_gt is not given; training needs whole images")
        roots = roots_of(opt, f"dataroot_{self.role}")
        lists = lists_of(opt, "meta_info_file", len(roots))
        self.sources = [open_source(root, meta_info=listed) for root, listed in zip(roots, lists, strict=True)]
        weights = opt.get("source_weights") if self.training else None
        self.mixture = Mixture([len(source.names) for source in self.sources], weights)
        options = InpaintDatasetOptions.of(opt)
        self.flips = options.use_hflip
        self.distortions = Distortions() if options.augment == "distortions" and self.training else None
        self._choose_masks(options)
        self._check_sizes()
        self.gives_bytes = False

    def _choose_masks(self, options: InpaintDatasetOptions) -> None:
        self.masks = open_source(options.dataroot_mask) if options.dataroot_mask else None
        self.kind = options.mask_kind
        self.mix = mix_from_options(options.mask_gen)
        self.dilate = options.mask_dilate
        if self.masks is None and self.role == "lq":
            raise InputError("dataroot_mask is not given; images without ground truth need masks")
        if self.masks is None and self.kind != "random":
            evaluation_size(self.kind, 256)  # raises for an unknown kind
        if self.masks is not None and not self.training:
            absent = [name for source in self.sources for name in source.names if name not in self.masks]
            if absent:
                raise InputError(
                    f"{len(absent)} images have no mask of the same name under {self.masks.path.resolve()}: "
                    f"{some(absent)}; add masks, or leave dataroot_mask out to generate them"
                )

    def _check_sizes(self) -> None:
        faults = []
        for source in self.sources:
            for name, size in source.sizes(source.names).items():
                if self.gt_size is not None and self.distortions is None and min(size) < self.gt_size:
                    faults.append(f"{source.location(name)}: {size[0]}x{size[1]}, smaller than gt_size {self.gt_size}")
                if self.masks is not None and not self.training and self.masks.size(name) != size:
                    high, wide = self.masks.size(name)
                    faults.append(f"{source.location(name)}: {size[0]}x{size[1]}, its mask {high}x{wide}")
        if faults:
            raise InputError(f"{len(faults)} images have wrong sizes: {some(faults)}; correct or remove them")

    @property
    def paths(self) -> list[dict[str, str]]:
        """The paths of the images, as in BasicSR's datasets."""
        places = (source.location(name) for source, name in map(self._image, range(len(self))))
        return [{"lq_path": place, "gt_path": place} for place in places]

    def give_bytes(self) -> None:
        """Return uint8 images and masks if that is lossless; the model converts them to float."""
        self.gives_bytes = all(source.is_8bit for source in self.sources)

    def __len__(self) -> int:
        return len(self.mixture)

    def _image(self, draw: int) -> tuple[ImageSource, str]:
        place, index = self.mixture.locate(draw)
        return self.sources[place], self.sources[place].names[index]

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        number = draw.number if isinstance(draw, Draw) else draw
        source, name = self._image(number)
        image = source.view(name)
        if self.gt_size is not None:
            rng = self.random(number)
            shown = self._augmented(image, self.gt_size, rng)
            mask = self._training_mask(self.gt_size, rng)
        else:
            shown, mask = image[:], self._mask_of(name, *image.shape[:2])
        place = source.location(name)
        store = to_bytes if self.gives_bytes else to_tensor
        holes = torch.from_numpy(np.ascontiguousarray(mask))[None]
        return {
            self.role: store(shown),
            "mask": holes if self.gives_bytes else holes.float(),
            "gt_path": place,
            "lq_path": place,
        }

    def _augmented(self, image: Picture, size: int, rng: np.random.Generator) -> np.ndarray:
        flip = self.flips and rng.random() < 0.5
        if self.distortions is not None:
            square = self.distortions(image[:], size=size, rng=rng)
            return cv2.flip(square, 1) if flip else square
        top, left = random_corner(rng, image, size)
        return turned(image[top : top + size, left : left + size], flip=flip, turns=0)

    def _training_mask(self, size: int, rng: np.random.Generator) -> np.ndarray:
        if self.masks is not None:
            mask = binary(self.masks.read(str(rng.choice(self.masks.names))), dilate=self.dilate)
            return _fitted(mask, size, rng)
        mix = self.mix if self.kind == "random" else EVALUATION[f"{self.kind}_{evaluation_size(self.kind, size)}"]
        return mixed_mask(rng, mix, height=size, width=size)

    def _mask_of(self, name: str, height: int, width: int) -> np.ndarray:
        if self.masks is not None:
            return binary(self.masks.read(name), dilate=self.dilate)
        if self.kind == "random":
            key, mix = "random", self.mix
        else:
            key = f"{self.kind}_{evaluation_size(self.kind, min(height, width))}"
            mix = EVALUATION[key]
        return mask_of_name(mix, key=key, height=height, width=width, seed=self.seed, name=name)


def _fitted(mask: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a mask, which is tiled first if it is smaller."""
    repeats = [-(-size // side) for side in mask.shape]
    mask = np.tile(mask, repeats)
    top, left = random_corner(rng, mask, size)
    return mask[top : top + size, left : left + size]


# The augmentation of the published Places recipe: one warp (perspective, affine, lens) and a change of colours.


_CHANCE = 0.5  # probability of each step, as in the published code


@dataclass(frozen=True)
class Distortions:
    """Random square of an image after warps and colour changes, each step with probability one half.

    LaMa's published steps (`distortions`) interpolate three times; here the warps are composed and interpolated once.
    The image is mirrored at its borders.
    """

    perspective: float = 0.06  # standard deviation of the corner shifts relative to the sides
    scale: tuple[float, float] = (0.7, 1.3)
    rotate: float = 40.0  # degrees to either side
    shear: float = 0.1  # degrees to either side
    lens: float = 0.05
    brightness: float = 0.2
    contrast: float = 0.2
    hsv: tuple[int, int, int] = (5, 30, 5)

    def __call__(self, image: np.ndarray, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """Convert an image of 8 or 16 bits (H, W, C) to uint8 RGB (size, size, 3)."""
        height, width = image.shape[:2]
        x, y = self._places(height, width, size, rng)
        if x.ndim == 1:
            left, top = int(x[0]), int(y[0])
            square = _as_rgba(image[top : top + size, left : left + size])
        else:
            # OpenCV reads four channels more than twice as fast as three, with the same result.
            square = cv2.remap(_as_rgba(image), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return self._recoloured(cv2.cvtColor(square, cv2.COLOR_RGBA2RGB), rng)

    def _places(self, height: int, width: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where in the image each pixel of the square comes from: x and y, float32 (size, size).

        If that is a square of the image as it is: x of the columns and y of the rows, whole numbers, (size,). Computed
        in float64 and in few passes over whole maps, since each pass costs as much as reading the image.
        """
        canvas_h, canvas_w = max(height, size), max(width, size)
        top, left = int(rng.integers(canvas_h - size + 1)), int(rng.integers(canvas_w - size + 1))
        x, y = np.arange(left, left + size, dtype=np.float64), np.arange(top, top + size, dtype=np.float64)
        # The lens takes (x, y) to centre + factor (x, y), with x along rows and y along columns.
        factor, centre = None, np.zeros(2)
        if rng.random() < _CHANCE:
            factor, centre = self._through_a_lens(x, y, canvas_h, canvas_w, rng)
        centre -= (canvas_w - width) // 2, (canvas_h - height) // 2
        warp = self._warp(height, width, rng)
        if factor is None and warp is None and (canvas_h, canvas_w) == (height, width):
            return x, y
        inverse = np.eye(3) if warp is None else np.linalg.inv(warp)
        inverse[:, 2] += inverse[:, :2] @ centre
        u, v = (_along(row, x, y, factor) for row in inverse[:2])
        if tuple(inverse[2]) != (0, 0, 1):
            depth = _along(inverse[2], x, y, factor)
            u /= depth
            v /= depth
        return u.astype(np.float32), v.astype(np.float32)

    def _through_a_lens(
        self, x: np.ndarray, y: np.ndarray, height: int, width: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Radial distortion r (1 + k r^2 + k r^4) around a shifted centre, r in image widths.

        Makes `x` and `y` relative to the centre; returns the factor of each pixel, and the centre.
        """
        k, shift_x, shift_y = (rng.uniform(-self.lens, self.lens) for _ in range(3))
        centre = np.array([width * (0.5 + shift_x), height * (0.5 + shift_y)])
        x -= centre[0]
        y -= centre[1]
        # The square completed: 1 + k r^2 + k r^4 = k (r^2 + 1/2)^2 + 1 - k/4.
        factor = np.add.outer((y / width) ** 2, (x / width) ** 2 + 0.5)
        factor *= factor
        factor *= k
        factor += 1 - k / 4
        return factor, centre

    def _warp(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray | None:
        """The 3 x 3 matrix of perspective and affine warp, from the image to the warped image; None without either."""
        warp = None
        if rng.random() < _CHANCE:
            corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
            inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
            moved = np.abs(rng.normal(0, rng.uniform(0, self.perspective), (4, 2))).clip(max=0.24) * (width, height)
            warp = cv2.getPerspectiveTransform((corners + inwards * moved).astype(np.float32), corners)
        if rng.random() < _CHANCE:
            affine = self._affine(height, width, rng)
            warp = affine if warp is None else affine @ warp
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
            cv2.insertChannel(equalise.apply(cv2.extractChannel(light, 0)), light, 0)
            image = cv2.cvtColor(light, cv2.COLOR_LAB2RGB)
        # The remaining steps change each value independently, so they become a table of 256 values.
        if rng.random() < _CHANCE:
            gain = 1 + rng.uniform(-self.contrast, self.contrast)
            lift = rng.uniform(-self.brightness, self.brightness) * 255
            image = cv2.LUT(image, _rounded(np.arange(256) * gain + lift))
        if rng.random() < _CHANCE:
            hue, saturation, value = (rng.uniform(-limit, limit) for limit in self.hsv)
            levels = np.arange(256)
            tables = (levels + round(hue)) % 180, *(_rounded(levels + shift) for shift in (saturation, value))
            # One plane after the other: OpenCV's tables for three channels at once take longer.
            planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
            planes = [cv2.LUT(plane, table.astype(np.uint8)) for plane, table in zip(planes, tables, strict=True)]
            image = cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB)
        return image


def _as_rgba(image: np.ndarray) -> np.ndarray:
    """Convert an image of 8 or 16 bits with 1 to 4 channels to uint8 RGBA."""
    if image.dtype == np.uint16:
        image = (image / 257).round().astype(np.uint8)
    if image.shape[2] < 3:
        return cv2.cvtColor(np.ascontiguousarray(image[..., :1]), cv2.COLOR_GRAY2RGBA)
    return cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if image.shape[2] == 3 else np.ascontiguousarray(image)


def _along(row: np.ndarray, x: np.ndarray, y: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """factor (a x + b y) + c for each y (rows) and x (columns)."""
    a, b, c = row
    if factor is None:
        return np.add.outer(b * y + c, a * x)
    made = np.add.outer(b * y, a * x)
    made *= factor
    made += c
    return made


def _rounded(levels: np.ndarray) -> np.ndarray:
    return levels.round().clip(0, 255).astype(np.uint8)
