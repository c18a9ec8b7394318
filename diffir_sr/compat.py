"""Patches of BasicSR 1.4.2 and nothing else: each says why, when it is made and until when it is needed."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import save_atomically
from diffir_sr.import_hook import imported


@dataclass(frozen=True)
class Patch:
    """One patch: why BasicSR needs it, when it is made, until when it stays, and the function that makes it."""

    reason: str
    condition: str
    until: str
    make: Callable[[], None]


BEFORE: list[Patch] = []  # made before BasicSR is imported, which fails or prints without them
AFTER: list[Patch] = []


def _patch(
    patches: list[Patch], *, reason: str, condition: str = "always", until: str
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def note(make: Callable[[], None]) -> Callable[[], None]:
        patches.append(Patch(reason, condition, until, make))
        return make

    return note


class UnknownNameError(OptionError, KeyError):
    """A registry has no such name (a KeyError too, as BasicSR's callers expect)."""

    __str__ = Exception.__str__


class NameClashError(OptionError, AssertionError):
    """Two packages register the same name (an AssertionError too, as BasicSR's callers expect)."""


@_patch(
    BEFORE,
    reason="imports torchvision.transforms.functional_tensor, removed in torchvision 0.17",
    condition="torchvision has no such module",
    until="BasicSR imports rgb_to_grayscale from torchvision.transforms.functional",
)
def restore_functional_tensor() -> None:
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    import torchvision.transforms.functional

    # BasicSR takes one function from there, rgb_to_grayscale, which the public module has.
    sys.modules[name] = torchvision.transforms.functional


@_patch(
    BEFORE,
    reason="imports distutils, which left Python in 3.12; setuptools brings it back when it is imported first",
    condition="Python has no distutils",
    until="BasicSR does without distutils",
)
def bring_back_distutils() -> None:
    if importlib.util.find_spec("distutils") is None:
        importlib.import_module("setuptools")


@_patch(
    AFTER,
    reason="registries print when they fall back to a suffix, their errors name neither choices nor origins, and a "
    "package that adds names has to import all that it adds",
    until="BasicSR's registries take names whose module is imported on first use",
)
def extend_registries() -> None:
    from basicsr.utils.registry import Registry

    def names(self: Any) -> dict[str, Any]:
        return {**_promised(self), **self._obj_map}

    def get(self: Any, name: str, suffix: str = "basicsr") -> Any:
        for known in (name, f"{name}_{suffix}"):
            if known not in self._obj_map and known in _promised(self):
                self._obj_map[known] = imported(_promised(self)[known])
            if known in self._obj_map:
                return self._obj_map[known]
        raise UnknownNameError(describe_unknown(self, name))

    def do_register(self: Any, name: str, obj: Any, suffix: str | None = None) -> None:
        name = f"{name}_{suffix}" if isinstance(suffix, str) else name
        known = names(self).get(name)
        if known is not None:
            raise NameClashError(
                f"two {self._name}s are called {name!r}: one of {_origin(known)}, one of {_origin(obj)}; "
                "rename one, or install or list only one of the two packages"
            )
        self._obj_map[name] = obj

    Registry.get = get
    Registry._do_register = do_register
    Registry.__contains__ = lambda self, name: name in names(self)
    Registry.keys = lambda self: names(self).keys()
    Registry.__iter__ = lambda self: iter([(name, get(self, name)) for name in names(self)])


def promise(registry: Any, name: str) -> None:
    """Add "module:attribute" to a registry, to be imported when it is asked for; raises NameClashError."""
    module, _, attribute = name.partition(":")
    known = {**_promised(registry), **registry._obj_map}.get(attribute)
    if known is not None and known != name:
        raise NameClashError(
            f"two {registry._name}s are called {attribute!r}: one of {_origin(known)}, one of {module}; "
            "rename one, or install or list only one of the two packages"
        )
    _promised(registry)[attribute] = name


def _promised(registry: Any) -> dict[str, str]:
    """Attribute -> "module:attribute" of what a registry has not imported yet; kept with the registry."""
    return registry.__dict__.setdefault("_promised", {})


def describe_unknown(registry: Any, name: str) -> str:
    """One message: the name is not in the registry, the nearest that is, and all that are with their origins."""
    near = difflib.get_close_matches(name, registry.keys(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    everything = {**_promised(registry), **registry._obj_map}
    known = ", ".join(f"{key} ({_origin(thing)})" for key, thing in sorted(everything.items()))
    return (
        f"no {registry._name} is named {name!r}; {hint}Known: {known}. "
        "A plugin adds names when it is installed or listed under 'plugins' in the option file"
    )


def _origin(thing: Any) -> str:
    if isinstance(thing, str):  # of a promise
        return thing.partition(":")[0]
    return getattr(thing, "__module__", "unknown module")


@_patch(
    AFTER,
    reason="models know CUDA and the CPU alone",
    condition="made always, acts where torch finds an accelerator of another kind",
    until="BasicSR's models take the accelerator that torch reports",
)
def choose_accelerator() -> None:
    from basicsr.models.base_model import BaseModel

    from diffir_sr.devices import default_device

    start = BaseModel.__init__

    def init(self: Any, opt: dict[str, Any]) -> None:
        start(self, opt)
        if opt["num_gpu"] != 0 and default_device().type != "cpu":
            self.device = default_device()

    BaseModel.__init__ = init


@_patch(
    AFTER,
    reason="distributed start-up divides by the number of GPUs; DDP asks for a CUDA device",
    condition="made always, acts where there is no CUDA device",
    until="BasicSR starts distributed runs on the CPU",
)
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


@_patch(
    AFTER,
    reason="a checkpoint that cannot be saved is a warning ('Just ignore it.'), and a killed save leaves half a file",
    until="BasicSR saves whole files and fails where it cannot",
)
def save_or_fail() -> None:
    from basicsr.models.base_model import BaseModel
    from basicsr.utils.dist_util import master_only

    def save_network(self: Any, net: Any, net_label: str, current_iter: int, param_key: Any = "params") -> None:
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        found = {}
        for key, one in zip(keys, nets, strict=True):
            tensors = self.get_bare_model(one).state_dict()
            found[key] = {name.removeprefix("module."): tensor.cpu() for name, tensor in tensors.items()}
        label = "latest" if current_iter == -1 else current_iter
        save_atomically(found, os.path.join(self.opt["path"]["models"], f"{net_label}_{label}.pth"))

    def save_training_state(self: Any, epoch: int, current_iter: int) -> None:
        if current_iter == -1:  # the end of a training, whose last state is there
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }
        save_atomically(state, os.path.join(self.opt["path"]["training_states"], f"{current_iter}.state"))

    BaseModel.save_network = master_only(save_network)
    BaseModel.save_training_state = master_only(save_training_state)


@_patch(
    AFTER,
    reason="an unreadable image surfaces as AttributeError of None without the name of the file",
    until="BasicSR's imfrombytes raises for bytes that it cannot decode",
)
def name_unreadable_images() -> None:
    from basicsr.data import paired_image_dataset, single_image_dataset

    for module in (paired_image_dataset, single_image_dataset):
        setattr(module, "imfrombytes", _decoded_or_raised(module.imfrombytes))  # noqa: B010 - no attribute to pyright
    for dataset in (paired_image_dataset.PairedImageDataset, single_image_dataset.SingleImageDataset):
        _name_failures(dataset)


class _UndecodableError(Exception):
    """OpenCV gave no picture for the bytes of a file."""


def _decoded_or_raised(decode: Callable[..., Any]) -> Callable[..., Any]:
    import cv2

    @wraps(decode)
    def imfrombytes(content: bytes, *args: Any, **kwargs: Any) -> Any:
        try:
            found = decode(content, *args, **kwargs)
        except (AttributeError, cv2.error) as error:  # it works on the None that OpenCV gives; or there are no bytes
            raise _UndecodableError("no picture can be decoded from its bytes") from error
        if found is None:
            raise _UndecodableError("no picture can be decoded from its bytes")
        return found

    return imfrombytes


def _name_failures(dataset: Any) -> None:
    read = dataset.__getitem__

    @wraps(read)
    def getitem(self: Any, index: int) -> Any:
        try:
            return read(self, index)
        except (_UndecodableError, OSError) as error:
            raise InputError(f"cannot read {self.paths[index]}: missing or damaged image file ({error})") from error

    dataset.__getitem__ = getitem


@_patch(
    AFTER,
    reason="a damaged LMDB ends the process; a second opening, or a worker after a fork, is refused by py-lmdb >= 1.7",
    until="BasicSR reads LMDBs without mapping them and shares what it opened",
)
def read_lmdbs_safely() -> None:
    from basicsr.utils.file_client import LmdbBackend

    from diffir_sr.files.lmdb_file import LmdbFile

    def init(
        self: Any,
        db_paths: Any,
        client_keys: Any = "default",
        *,
        readonly: bool = True,
        lock: bool = False,
        **other: Any,
    ) -> None:
        if not readonly or lock or any(other.values()):
            given = {"readonly": readonly, "lock": lock, **other}
            raise OptionError(f"io_backend of type lmdb: LMDBs are opened read-only and shared, which excludes {given}")
        paths = db_paths if isinstance(db_paths, list) else [db_paths]
        keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.db_paths = [str(path) for path in paths]
        self._client = {key: LmdbFile(path) for key, path in zip(keys, self.db_paths, strict=True)}

    def get(self: Any, filepath: Any, client_key: str) -> bytes | None:
        return self._client[client_key].get(str(filepath).encode())

    LmdbBackend.__init__ = init  # pyright: ignore[reportAttributeAccessIssue] - refuses the rest by name
    LmdbBackend.get = get


# Repairs that are made where they are needed.


@contextmanager
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


def forget_log() -> None:
    """Close the log of a run: BasicSR opens one per process, and the next run must not write into it."""
    logger = sys.modules.get("basicsr.utils.logger")
    if logger is None:
        return
    root = logging.getLogger("basicsr")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        with suppress(OSError):  # its last lines find no room: what ended the run says so
            handler.close()
    logger.initialized_logger.pop("basicsr", None)
