"""BasicSR's VGG features on weights that are really there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def vgg_features_from(build: Callable[[str], Any]) -> Iterator[None]:
    """While open, BasicSR's VGGFeatureExtractor takes its network from `build(vgg_type)`.

    BasicSR loads one fixed file, a VGG19's, for every vgg_type, insists on the classifier's weights, and calls
    torchvision with an argument that is going away.
    """
    import basicsr.archs.vgg_arch as module

    class Networks:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda **_: build(name)

    kept = module.vgg, module.VGG_PRETRAIN_PATH
    module.vgg, module.VGG_PRETRAIN_PATH = Networks(), ""
    try:
        yield
    finally:
        module.vgg, module.VGG_PRETRAIN_PATH = kept
