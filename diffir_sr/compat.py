"""Every repair of BasicSR 1.4.2, each with its reason, its condition and a test. `apply()` runs them once."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any

from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import save_atomically


@dataclass(frozen=True)
class Patch:
    """One repair: why it is needed, and the function that makes it where its condition holds."""

    reason: str
    make: Callable[[], None]


PATCHES: list[Patch] = []
_applied = False


def _patch(reason: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def note(make: Callable[[], None]) -> Callable[[], None]:
        PATCHES.append(Patch(reason, make))
        return make

    return note


def apply() -> None:
    """Make every repair whose condition holds; a second call does nothing."""
    global _applied
    if not _applied:
        _applied = True
        for patch in PATCHES:
            patch.make()


class UnknownNameError(OptionError, KeyError):
    """A registry has no such name (a KeyError too, as BasicSR's callers expect)."""

    __str__ = Exception.__str__


class NameClashError(OptionError, AssertionError):
    """Two packages register the same name (an AssertionError too, as BasicSR's callers expect)."""


@_patch("imports torchvision.transforms.functional_tensor, removed in torchvision 0.17")
def restore_functional_tensor() -> None:
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    import torchvision.transforms.functional

    # BasicSR takes one function from there, rgb_to_grayscale, which the public module has.
    sys.modules[name] = torchvision.transforms.functional


@_patch("imports distutils, which left Python in 3.12; setuptools brings it back when it is imported first")
def bring_back_distutils() -> None:
    if importlib.util.find_spec("distutils") is None:
        importlib.import_module("setuptools")


@_patch("the Frechet distance asks scipy's sqrtm for an estimate of its error, which scipy 1.18 does not give")
def give_fid_its_sqrtm() -> None:
    from basicsr.metrics import fid
    from scipy import linalg

    if "disp" not in inspect.signature(linalg.sqrtm).parameters:
        # The estimate is not used; with `disp` there is none to return.
        fid.linalg = SimpleNamespace(sqrtm=lambda a, disp=True: linalg.sqrtm(a) if disp else (linalg.sqrtm(a), None))


@_patch("registries print when they fall back to a suffix, and their errors name neither choices nor origins")
def explain_registries() -> None:
    from basicsr.utils.registry import Registry

    def get(self: Any, name: str, suffix: str = "basicsr") -> Any:
        for known in (name, f"{name}_{suffix}"):
            if known in self._obj_map:
                return self._obj_map[known]
        raise UnknownNameError(describe_unknown(self, name))

    def do_register(self: Any, name: str, obj: Any, suffix: str | None = None) -> None:
        name = f"{name}_{suffix}" if isinstance(suffix, str) else name
        known = self._obj_map.get(name)
        if known is not None:
            raise NameClashError(
                f"two {self._name}s are called {name!r}: one of {_origin(known)}, one of {_origin(obj)}; "
                "rename one, or install or list only one of the two packages"
            )
        self._obj_map[name] = obj

    Registry.get = get
    Registry._do_register = do_register


def describe_unknown(registry: Any, name: str) -> str:
    """One message: the name is not in the registry, the nearest that is, and all that are with their origins."""
    near = difflib.get_close_matches(name, registry.keys(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(f"{key} ({_origin(thing)})" for key, thing in sorted(registry))
    return (
        f"no {registry._name} is called {name!r}; {hint}Known: {known}. "
        "A plugin adds names when it is installed or listed under 'plugins' in the option file"
    )


def _origin(thing: Any) -> str:
    return getattr(thing, "__module__", "unknown module")


@_patch("parse_options knows --local_rank alone; torch >= 2 passes --local-rank, torchrun sets LOCAL_RANK")
def accept_local_rank() -> None:
    import basicsr.test
    import basicsr.train
    import basicsr.utils.options as options

    original = options.parse_options

    @wraps(original)
    def parse_options(*args: Any, **kwargs: Any) -> Any:
        sys.argv = normalise_local_rank(sys.argv, environment=os.environ)
        return original(*args, **kwargs)

    options.parse_options = basicsr.train.parse_options = basicsr.test.parse_options = parse_options


def normalise_local_rank(argv: list[str], *, environment: Any) -> list[str]:
    """`argv` with --local-rank spelt --local_rank, or added from LOCAL_RANK where neither is given."""
    argv = [arg.replace("--local-rank", "--local_rank", 1) if arg.startswith("--local-rank") else arg for arg in argv]
    given = any(arg.startswith("--local_rank") for arg in argv)
    if not given and environment.get("LOCAL_RANK"):
        argv.append(f"--local_rank={environment['LOCAL_RANK']}")
    return argv


@_patch("distributed start-up divides by the number of GPUs; DDP asks for a CUDA device")
def distribute_without_cuda() -> None:
    import torch
    from basicsr.models.base_model import BaseModel
    from basicsr.utils import dist_util

    start_on_gpus = dist_util._init_dist_pytorch

    def init_dist_pytorch(backend: str, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            start_on_gpus(backend, **kwargs)
        else:
            torch.distributed.init_process_group(backend="gloo", **kwargs)

    to_gpu = BaseModel.model_to_device

    def model_to_device(self: Any, net: torch.nn.Module) -> torch.nn.Module:
        if not self.opt["dist"] or self.device.type == "cuda":
            return to_gpu(self, net)
        unused = self.opt.get("find_unused_parameters", False)
        return torch.nn.parallel.DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    dist_util._init_dist_pytorch = init_dist_pytorch
    BaseModel.model_to_device = model_to_device


@_patch("a checkpoint that cannot be saved is a warning ('Just ignore it.'), and a killed save leaves half a file")
def save_or_fail() -> None:
    import basicsr.models.base_model as module

    # The two methods of BaseModel that save call torch.save through this module's global name.
    module.torch = _TorchWithSafeSave(module.torch)


class _TorchWithSafeSave:
    """The torch module, with a `save` that is all or nothing and stops the program when it fails."""

    def __init__(self, torch_module: Any) -> None:
        self._torch = torch_module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def save(self, thing: Any, path: str) -> None:
        save_atomically(thing, path)


@_patch("an unreadable image surfaces as AttributeError without the name of the file")
def name_unreadable_images() -> None:
    from basicsr.data.paired_image_dataset import PairedImageDataset
    from basicsr.data.single_image_dataset import SingleImageDataset

    for dataset in (PairedImageDataset, SingleImageDataset):
        _name_failures(dataset)


def _name_failures(dataset: Any) -> None:
    read = dataset.__getitem__

    @wraps(read)
    def getitem(self: Any, index: int) -> Any:
        try:
            return read(self, index)
        except (AttributeError, TypeError, OSError) as error:
            raise InputError(f"cannot read {self.paths[index]}: missing or damaged image file ({error})") from error

    dataset.__getitem__ = getitem


@_patch("a damaged LMDB ends the process; a second opening, or a worker after a fork, is refused by py-lmdb >= 1.7")
def read_lmdbs_safely() -> None:
    from basicsr.utils.file_client import LmdbBackend

    from diffir_sr.files.lmdb_file import LmdbFile

    def init(self: Any, db_paths: Any, client_keys: Any = "default", **_: Any) -> None:
        paths = db_paths if isinstance(db_paths, list) else [db_paths]
        keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.db_paths = [str(path) for path in paths]
        self._client = {key: LmdbFile(path) for key, path in zip(keys, self.db_paths, strict=True)}

    def get(self: Any, filepath: Any, client_key: str) -> bytes | None:
        return self._client[client_key].get(str(filepath).encode())

    LmdbBackend.__init__ = init  # pyright: ignore[reportAttributeAccessIssue] - takes the same and ignores the rest
    LmdbBackend.get = get
