"""Rules that involve several options and hold for every model and dataset, and the evaluation of rules of classes.

Each rule yields (keys, what is wrong and what to do). Rules for one kind of model, dataset or network are declared on
its class; see `option_types`.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from pydantic.fields import FieldInfo

from diffir_sr.errors import OptionError
from diffir_sr.families import declaring
from diffir_sr.option_types import Found, Keys, SizeRule
from diffir_sr.options.check import Report, declared, find, gathered, nested_section
from diffir_sr.options.schema import (
    SCHEDULERS,
    Loader,
    default_at,
    named_classes,
    readers,
    standard_models,
    top_readers,
)

MISSING: Any = object()
ROOTS = ("dataroot_gt", "dataroot_lq")
_LARGEST = 10**6  # limit for integers that determine the size of a network


class InvalidValue(Exception):  # noqa: N818 - a signal, not an error: the rule is skipped
    """A rule requested a value that itself has a problem."""


class OptionView:
    """Read access to checked options, for rules that involve several of them; see `option_types.View`."""

    def __init__(self, values: dict[str, Any], report: Report, *, is_train: bool) -> None:
        self.values = values
        self.is_train = is_train
        self._report = report

    @property
    def model(self) -> str:
        """The model type. Raises InvalidValue if there is no such model."""
        return self.get("model_type")

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value, or `default` if it is absent or ~. Raises InvalidValue if it has a problem."""
        if self._report.touches(keys):
            raise InvalidValue
        value = self._at(keys)
        return default if value is MISSING or value is None else value

    def effective(self, *keys: str) -> Any:
        """The value, or the declared default where it is absent or ~. Raises InvalidValue if it has a problem."""
        value = self.get(*keys)
        return default_at(self.values, keys) if value is None else value

    def has(self, *keys: str) -> bool:
        """Whether the key exists and is not ~, valid or not."""
        return self._at(keys) not in (MISSING, None)

    def kind(self, *keys: str) -> Any:
        """The class named by a section, or the model without keys. None if there is none."""
        registry = {"datasets": DATASET_REGISTRY, "train": LOSS_REGISTRY}.get(keys[0] if keys else "", ARCH_REGISTRY)
        return find(registry, self.get(*keys, "type")) if keys else find(MODEL_REGISTRY, self.model)

    def declares(self, name: str, *keys: str) -> Any:
        """The attribute `name` of `kind(*keys)`, or of the substitute for a foreign class; None if it is missing."""
        return getattr(declaring(self.kind(*keys)), name, None)

    def datasets(self, *, phase: str | None = None) -> Iterator[tuple[str, str]]:
        """(name, type without BasicSR's suffix) of each dataset, or of one phase: train, val or test."""
        for name, options in (self._at(("datasets",)) if self.has("datasets") else {}).items():
            if isinstance(options, dict) and phase in (None, name.split("_")[0]):
                yield name, str(options.get("type")).removesuffix("_basicsr")

    def models_with(self, name: str) -> list[str]:
        """The model types whose class has a truthy attribute `name`."""
        return [model for model, kind in standard_models().items() if getattr(declaring(kind), name, False)]

    def size_rule(self, network: str = "network_g") -> SizeRule | None:
        """The size rule of a network, None if its class has none. Raises InvalidValue if there is no such network."""
        arch = self.kind(network)
        if rule := getattr(arch, "size_rule_of", None):
            try:
                return rule(lambda name, default: self.get(network, name, default=default))
            except OptionError:
                raise InvalidValue from None
        multiple_of, scale = getattr(arch, "multiple_of", None), getattr(arch, "scale", None)
        return SizeRule(multiple_of, scale) if isinstance(multiple_of, int) and isinstance(scale, int) else None

    def scale(self) -> int | None:
        """Ratio of output size to input size, from the network or otherwise from the file."""
        rule = self.size_rule()
        return rule.scale if rule else self.get("scale")

    def patch_fault(self, size: int) -> str | None:
        """What is wrong with training patches of `size` ground-truth pixels; None if they fit."""
        rule, scale = self.size_rule(), self.scale() or 1
        multiple = (rule.multiple_of if rule else 1) * scale
        if size % multiple == 0:
            return None
        lower = size // multiple * multiple
        near = f"{lower} or {lower + multiple}" if lower else str(multiple)
        takes = f"multiples of {rule.multiple_of}" if rule else "a whole number of"
        return (
            f"{size} is not possible: at scale {scale}, degraded patches must have {takes} pixels; "
            f"choose a multiple of {multiple}, for example {near}"
        )

    def _at(self, keys: tuple[str, ...]) -> Any:
        value: Any = self.values
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return MISSING
            value = value[key]
        return value


Rule = Callable[[OptionView], Found]


def apply_rules(view: OptionView, report: Report) -> None:
    """Add the findings of all rules to the report."""
    datasets = [name for name, _ in view.datasets()]
    report.problems += asked(
        [
            *RULES,
            *(partial(rule, name=name) for name in datasets for rule in DATASET_RULES),
            *_declared_rules(view, "RULES"),
        ],
        view,
    )
    networks = [name for name in view.values if name.startswith("network_")]
    train = view.values.get("train")
    optimizers = [name for name in train if name.startswith("optim_")] if isinstance(train, dict) else []
    report.problems += asked(
        [
            *(partial(network_can_be_built, name=name) for name in networks),
            *(partial(optimizer_works, name=name) for name in optimizers),
        ],
        view,
    )


def apply_warnings(view: OptionView, report: Report) -> None:
    """Add warnings, which do not prevent a run, to the report."""
    report.warnings += asked([*WARNINGS, *_declared_rules(view, "WARNINGS")], view)


def asked(rules: Iterable[Rule], view: OptionView) -> list[tuple[Keys, str]]:
    """Findings of rules; a rule that needs a value with a problem is skipped."""
    found: list[tuple[Keys, str]] = []
    for rule in rules:
        try:
            found.extend(rule(view))
        except InvalidValue:
            continue
    return found


def _declared_rules(view: OptionView, attribute: str) -> Iterator[Rule]:
    for keys, kind in named_classes(view.values):
        yield from (partial(rule, at=keys) for rule in gathered(kind, attribute))


# Rules about the whole file


def right_network(view: OptionView) -> Found:
    """A model requires its own network, or one derived from it."""
    wanted = view.declares("NETWORK_G")
    if wanted and view.has("network_g", "type") and not _derives(view.kind("network_g"), wanted):
        given = view.get("network_g", "type")
        yield ("network_g", "type"), f"{view.model} works on a {wanted} network, found {given!r}"


def helpers_are_right(view: OptionView) -> Found:
    """Auxiliary networks of a training are given, of the right kind and with their weights."""
    for helper in view.declares("frozen_networks") or ():
        weights = f"pretrain_{helper.section}"
        if view.is_train and not view.has(helper.section):
            yield (helper.section,), f"missing: {helper.role}; give the options that the network was trained with"
        if view.is_train and not view.has("path", weights):
            yield ("path", weights), f"missing: {helper.role}; give its weights ({helper.source})"
        if helper.arch and view.has(helper.section, "type") and not _derives(view.kind(helper.section), helper.arch):
            given = view.get(helper.section, "type")
            yield (helper.section, "type"), f"{helper.role}: expected a {helper.arch} network, found {given!r}"


def _derives(kind: Any, name: str) -> bool:
    return any(one.__name__ == name for one in getattr(kind, "__mro__", ()))


def scales_agree(view: OptionView) -> Found:
    """The scale in the file is that of the network."""
    rule = view.size_rule()
    if rule and view.has("scale") and view.get("scale") != rule.scale:
        stated = f"network_g.scale is {rule.scale}"
        if not view.has("network_g", "scale"):
            stated = f"network_g has scale {rule.scale} (by default)"
        yield ("scale",), f"{view.get('scale')} here, but {stated}; make both the same"


def scale_is_known(view: OptionView) -> Found:
    """For pairs of images, the scale is given by the file or its network."""
    paired = [name for name, _ in view.datasets() if view.declares("NEEDS_SCALE", "datasets", name)]
    if paired and view.scale() is None:
        yield (
            ("scale",),
            f"missing: datasets.{paired[0]} needs the ratio of output size to input size",
        )


def phases_fit(view: OptionView) -> Found:
    """A training has training and validation data, a test only test data."""
    if view.is_train and "train" not in dict(view.datasets()):
        yield ("datasets", "train"), "missing: there is nothing to train on"
    if view.is_train:
        for name, _ in view.datasets(phase="test"):
            yield (
                ("datasets", name),
                "test datasets are for `basicsr test`; in a training, name it val_<name>",
            )
    elif "train" in dict(view.datasets()):
        yield (
            ("datasets", "train"),
            "this is an option file for `basicsr train`; a test has test and val datasets",
        )
    elif not list(view.datasets()):
        yield ("datasets",), "there is nothing to test; give a dataset test_<name>"


def schedule_is_consistent(view: OptionView) -> Found:
    """Lists that belong together have the same length."""
    keys = ("train", "scheduler")
    kind = view.get(*keys, "type")
    if kind not in SCHEDULERS:
        return
    if kind.startswith("MultiStep"):
        lists = {"restarts": view.effective(*keys, "restarts")}
    else:
        lists = {"periods": view.get(*keys, "periods", default=[])}
    lists["restart_weights"] = view.effective(*keys, "restart_weights")
    if "eta_mins" in SCHEDULERS[kind].model_fields:
        lists["eta_mins"] = view.effective(*keys, "eta_mins")
    if len({len(values) for values in lists.values()}) > 1:
        counts = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        yield keys, f"these lists must have the same length: {counts}"


def schedule_lasts(view: OptionView) -> Found:
    """The periods of a schedule cover the whole training."""
    periods = view.get("train", "scheduler", "periods", default=[])
    iterations = view.get("train", "total_iter", default=0)
    if periods and sum(periods) < iterations:
        yield (
            ("train", "scheduler", "periods"),
            f"they end at iteration {sum(periods)}, but total_iter is {iterations}; extend them to total_iter",
        )


RULES: tuple[Rule, ...] = (
    right_network,
    helpers_are_right,
    scales_agree,
    scale_is_known,
    phases_fit,
    schedule_is_consistent,
    schedule_lasts,
)


# What can be built


def network_can_be_built(view: OptionView, name: str) -> Found:
    """The constructor accepts the options; tried without allocating the weights if the network allows it."""
    arch, section = view.kind(name), view.get(name)
    if arch is None or not section:
        return
    for keys, value in _leaves(section, (name,)):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
            yield keys, f"expected {_LARGEST:,} or less, found {value}: a network of this size cannot be built"
            return
    fault = _building_fault(arch, json.dumps({key: section[key] for key in section if key != "type"}, default=str))
    if fault:
        yield (name,), f"{section['type']} cannot be built with these options: {fault}"


@cache
def _building_fault(arch: Callable[..., Any], arguments: str) -> str | None:
    given = json.loads(arguments)
    random_state = torch.get_rng_state()
    try:
        # Constructors that read values (SwinIR) need real memory; such a network is built temporarily.
        for device in ("meta", "cpu"):
            try:
                with torch.device(device), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about missing weights
                    arch(**copy.deepcopy(given))
                return None
            except OptionError as error:
                return str(error)
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
        return fault
    finally:
        torch.set_rng_state(random_state)


def optimizer_works(view: OptionView, name: str) -> Found:
    """An optimizer accepts its arguments, and can make a step from gradients alone."""
    section = view.get("train", name)
    kind = getattr(torch.optim, str(section.get("type")), None) if isinstance(section, Mapping) else None
    if kind is None:
        return
    arguments = {key: value for key, value in section.items() if key != "type"}
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones_like(weight)
    try:
        kind([weight], **copy.deepcopy(arguments)).step()
    except Exception as error:
        yield ("train", name), f"{section['type']} does not work with these options: {type(error).__name__}: {error}"


def _leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*keys, index))
    else:
        yield keys, value


# Rules about one dataset: patch sizes, loaders, storage


def is_lmdb(path: str) -> bool:
    """Whether the root of a dataset is an LMDB (or its manifest) rather than a folder of images."""
    return path.rstrip("/\\").removesuffix(".manifest.jsonl").endswith(".lmdb")


def roots_in(options: Mapping[str, Any], key: str) -> list[str]:
    """The paths under a key of a dataset, which may be a single path or a list."""
    given = options.get(key)
    return [path for path in (given if isinstance(given, list) else [given]) if isinstance(path, str)]


def training_loader_is_complete(view: OptionView, name: str) -> Found:
    """Training data has options for cropping and loading."""
    if name != "train" or not view.is_train:
        return
    known = declared(view.kind("datasets", name), base=Loader).known
    needed = view.declares("NEEDED_IN_TRAINING", "datasets", name) or ()
    for key in ("batch_size_per_gpu", "num_worker_per_gpu", *needed):
        if not view.has("datasets", name, key) and key in known:
            section, field = known[key]
            yield ("datasets", name, key), f"missing: {section.model_fields[field].description}"


def patches_fit(view: OptionView, name: str) -> Found:
    """Patch sizes give whole degraded pixels, and are accepted by the network."""
    if not view.is_train or name != "train":
        return
    cut = "gt_size" in (view.declares("NEEDED_IN_TRAINING", "datasets", name) or ())
    at = ("datasets", name)
    sizes: dict[Keys, Any] = {(*at, "gt_size"): view.get(*at, "gt_size")}
    sizes |= {(*at, "gt_sizes", index): size for index, size in enumerate(view.get(*at, "gt_sizes", default=[]))}
    for keys, size in sizes.items() if cut else ():
        if size is not None and (fault := view.patch_fault(size)):
            yield keys, fault


def readers_exist(view: OptionView, name: str) -> Found:
    """Persistent workers need workers."""
    if view.effective("datasets", name, "persistent_workers"):
        if name != "train":
            yield (
                ("datasets", name, "persistent_workers"),
                "only training has worker processes; remove it here",
            )
        elif view.get("datasets", name, "num_worker_per_gpu") == 0:
            yield ("datasets", name, "persistent_workers"), "needs num_worker_per_gpu above 0"


def prefetching_is_possible(view: OptionView, name: str) -> Found:
    """Prefetching to the GPU needs pinned memory."""
    at = ("datasets", name)
    if view.get(*at, "prefetch_mode") == "cuda" and not view.effective(*at, "pin_memory"):
        yield (*at, "prefetch_mode"), "cuda needs pin_memory: true"


def storage_is_consistent(view: OptionView, name: str) -> Found:
    """The kind of the roots agrees with `io_backend`."""
    at = ("datasets", name)
    known = declared(view.kind(*at), base=Loader).known
    given = {root: view.get(*at, root) for root in ROOTS if root in known and view.has(*at, root)}
    stored = view.get(*at, "io_backend", "type")
    for root, path in [(name, path) for name in given for path in roots_in(given, name)]:
        if stored == "lmdb" and not is_lmdb(path):
            yield (*at, root), f"io_backend is lmdb, but {path!r} does not end in .lmdb; remove io_backend"
        if stored in ("disk", "webdataset") and is_lmdb(path):
            yield (*at, root), f"io_backend is {stored}, but {path!r} names an LMDB; remove io_backend"


def sources_are_paired(view: OptionView, name: str) -> Found:
    """Lists of roots have as many partners and weights."""
    at = ("datasets", name)
    known = declared(view.kind(*at), base=Loader).known
    if "source_weights" not in known:
        return
    given = {key: view.get(*at, key) for key in (*ROOTS, "source_weights") if key in known and view.has(*at, key)}
    counts = {key: len(value) if isinstance(value, list) else 1 for key, value in given.items()}
    lq, gt = (counts.get(root) for root in reversed(ROOTS))
    if lq and gt and lq != gt:
        yield (*at, "dataroot_lq"), f"has {lq} entries, but dataroot_gt has {gt}; give the same number"
    elif "source_weights" in counts and counts["source_weights"] != max(counts.get(root, 0) for root in ROOTS):
        count = max(counts.get(root, 0) for root in ROOTS)
        yield (*at, "source_weights"), f"{counts['source_weights']} weights for {count} sources; give one per source"


DATASET_RULES: tuple[Callable[..., Found], ...] = (
    training_loader_is_complete,
    patches_fit,
    readers_exist,
    prefetching_is_possible,
    storage_is_consistent,
    sources_are_paired,
)


# Options without effect


def options_of_other_models(view: OptionView) -> Found:
    """Options that only other models read have no effect; option files are often adapted from one model to another."""
    if not view.declares("STANDARD_LOOP"):
        return
    for section, attribute in (("train", "OPTIONS"), ("val", "VAL_OPTIONS")) if view.is_train else ():
        own, known = declared(view.kind(), attribute).all_names, readers(attribute)
        others: dict[tuple[str, ...], list[str]] = {}
        for key in [key for key in view.get(section, default={}) if key in known and key not in own]:
            options, models = known[key]
            owner, field = options.known[key]
            if _is_on(view.get(section, key), owner.model_fields[field]):
                others.setdefault(tuple(models), []).append(key)
        for models, keys in others.items():
            yield (
                (section, keys[0]),
                f"has no effect{_also(keys)}: {view.model} does not read it (only {', '.join(models)})",
            )


def top_options_of_others(view: OptionView) -> Found:
    """The same for options at the top level, which models and datasets read."""
    if not view.declares("STANDARD_LOOP"):
        return
    kinds = [view.kind(), *(view.kind("datasets", name) for name, _ in view.datasets())]
    own = {name for kind in kinds for name in declared(kind, "TOP_OPTIONS").known}
    others: dict[tuple[str, ...], list[str]] = {}
    known = top_readers()
    for key in [key for key in view.values if key in known and key not in own and view.has(key)]:
        others.setdefault(tuple(known[key][1]), []).append(key)
    for names, keys in others.items():
        yield (keys[0],), f"has no effect{_also(keys)}: only {', '.join(names)} reads it"


def shuffling_is_always_on(view: OptionView) -> Found:
    """Published files contain a switch that nothing reads."""
    for name, _ in view.datasets(phase="train"):
        if view.effective("datasets", name, "use_shuffle") is False:
            yield ("datasets", name, "use_shuffle"), "has no effect: training data is always shuffled"


def _is_on(value: Any, info: FieldInfo) -> bool:
    """Whether an option requests anything; a section of switches does if one differs from its default."""
    nested = nested_section(info)
    if nested is None or not isinstance(value, Mapping):
        return bool(value)
    return any(given and given != nested.model_fields[name].default for name, given in value.items())


def _also(keys: list[str]) -> str:
    return f" (also {', '.join(keys[1:])})" if keys[1:] else ""


WARNINGS: tuple[Rule, ...] = (options_of_other_models, top_options_of_others, shuffling_is_always_on)
