"""Nodes for ComfyUI: load a model of diffir_sr, and restore whole images, with a mask for inpainting."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from diffir_sr import Restorer, load_restorer
from diffir_sr.errors import InputError
from diffir_sr.weights.registry import registry

FOLDER = "diffir"  # under ComfyUI's models folder
folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


class DiffIRLoad:
    """Loads a named model of `diffir models list`, or a file of ComfyUI/models/diffir."""

    CATEGORY = "image/restoration"
    RETURN_TYPES = ("DIFFIR",)
    RETURN_NAMES = ("restorer",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the name that ComfyUI calls
        named = [name for name, entry in registry().items() if entry.kind == "restorer"]
        return {"required": {"model": ([*named, *folder_paths.get_filename_list(FOLDER)], {"default": "sr_x4"})}}

    def load(self, model: str) -> tuple[Restorer]:
        file = folder_paths.get_full_path(FOLDER, model)
        device = str(comfy.model_management.get_torch_device())
        return (load_restorer(file, device=device) if file else load_restorer(model=model, device=device),)


class DiffIRRestore:
    """Restores each image of a batch as a whole; models for inpainting need a mask, 1 for missing pixels."""

    CATEGORY = "image/restoration"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "restore"
    INPUTS: ClassVar[dict[str, Any]] = {
        "required": {
            "restorer": ("DIFFIR",),
            "image": ("IMAGE",),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
        },
        "optional": {"mask": ("MASK",)},
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - as above
        return cls.INPUTS

    def restore(
        self, restorer: Restorer, image: torch.Tensor, seed: int, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        """`image` (B, H, W, C) and `mask` (B or 1, H, W) in [0, 1]; returns (B, H * scale, W * scale, C)."""
        count = len(image)
        if mask is not None and len(mask) not in (1, count):
            raise InputError(f"{count} images and {len(mask)} masks; give one mask per image, or one for all")
        progress = comfy.utils.ProgressBar(count)
        restored = []
        for index, one in enumerate(image):
            comfy.model_management.throw_exception_if_processing_interrupted()
            # Nodes such as sharpening leave values a little outside; NaN stays, and is refused.
            pixels = one.detach().float().cpu().clamp(0, 1).numpy()
            missing = None if mask is None else mask[index % len(mask)].detach().float().cpu().numpy()
            restored.append(torch.from_numpy(restorer(pixels, mask=missing, seed=seed)))
            progress.update(1)
        return (torch.stack(restored),)


NODE_CLASS_MAPPINGS = {"DiffIRLoad": DiffIRLoad, "DiffIRRestore": DiffIRRestore}
NODE_DISPLAY_NAME_MAPPINGS = {"DiffIRLoad": "Load DiffIR Model", "DiffIRRestore": "Restore Image (DiffIR)"}
