"""The sections of an option file: their options, and the checks that apply to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import Field
from pydantic.fields import FieldInfo

from diffir_sr.families import declaring
from diffir_sr.families.basicsr import MetricArguments, VggOptions
from diffir_sr.option_types import (
    Built,
    Count,
    CountOrZero,
    Gpus,
    Keys,
    Names,
    NotNegative,
    Number,
    Positive,
    Probability,
    Section,
    Seed,
    Small,
    SmallOrZero,
    Whole,
)
from diffir_sr.options.check import (
    Declared,
    Known,
    Report,
    argument_names,
    arguments_of,
    as_mapping,
    check_arguments,
    check_declared,
    check_section,
    check_type,
    declared,
    fields_of,
    find,
    named,
    nearest,
    nested_section,
    signature_of,
)

PHASES = re.compile(r"train|(val|test)(_.+)?")
_PATH_FIELDS = {
    "pretrain_network": "pretrain_network_g",
    "param_key": "param_key_g",
    "strict_load": "strict_load_g",
}


def standard_models() -> dict[str, Any]:
    """The registered models that train by the loop of this package, by name; option files are shared between them."""
    return {name: kind for name, kind in MODEL_REGISTRY if is_standard(kind)}


def is_standard(model: Any) -> bool:
    """Whether a model trains by the loop of this package, so that all options of `train` and `val` are known."""
    return bool(getattr(declaring(model), "STANDARD_LOOP", False))


def readers(attribute: str = "OPTIONS") -> dict[str, tuple[Declared, list[str]]]:
    """Options of `train` (VAL_OPTIONS: of `val`) that only some models read: the declaration, and these models."""
    found: dict[str, tuple[Declared, list[str]]] = {}
    for name, kind in standard_models().items():
        options = declared(kind, attribute)
        for option in options.known:
            found.setdefault(option, (options, []))[1].append(name)
    return found


def top_readers() -> dict[str, tuple[Declared, list[str]]]:
    """The same for options at the top level of a file, which models and datasets declare."""
    found: dict[str, tuple[Declared, list[str]]] = {}
    for registry in (MODEL_REGISTRY, DATASET_REGISTRY):
        for _, kind in registry:
            options = declared(kind, "TOP_OPTIONS")
            for option in options.known:
                names = found.setdefault(option, (options, []))[1]
                names += [declaring(kind).__name__] if declaring(kind).__name__ not in names else []
    return found


def _known(several: dict[str, tuple[Declared, list[str]]]) -> Known:
    return {name: options.known[name] for name, (options, _) in several.items()}


def known_options(values: dict[str, Any]) -> dict[str, set[str]]:
    """The options that exist in each section of this file, for hints about options in the wrong section."""
    data = set(Loader.model_fields).union(*(declared(kind).all_names for _, kind in DATASET_REGISTRY))
    sections = {"val": ValOptions, "path": PathOptions, "logger": LoggerOptions}
    names = {section: set(schema.model_fields) for section, schema in sections.items()}
    names["train"] = {*TrainLoop.model_fields, *readers()}
    names["val"] |= readers("VAL_OPTIONS").keys()
    network = as_mapping(values.get("network_g"), (), Report())
    arguments = argument_names(find(ARCH_REGISTRY, network.get("type")))
    return {"": {*Options.model_fields, *top_readers()}, **names, "datasets.*": data, "network_g": arguments}


def default_at(values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """What holds where a file leaves out the option at `keys`: its field's or its argument's default, else None."""
    at, name = keys[:-1], keys[-1]
    section: Any = values
    for key in at:
        section = section.get(key) if isinstance(section, dict) else None
    kind = section.get("type") if isinstance(section, dict) else None
    known, target = _known_at(values, at, kind)
    parameter = signature_of(target).get(name) if target is not None else None
    if parameter is not None and parameter.default is not parameter.empty:
        return parameter.default
    info = _field_of(known, name)
    return None if info is None or info.is_required() else info.get_default(call_default_factory=True)


def _field_of(known: Known, name: str) -> FieldInfo | None:
    section, field = known.get(name, (None, ""))
    return section.model_fields[field] if section is not None else None


def _known_at(values: dict[str, Any], at: tuple[str, ...], kind: Any) -> tuple[Known, Any]:
    """The options that have fields in the section at `at`, and the class whose arguments the others are."""
    model = find(MODEL_REGISTRY, values.get("model_type"))
    match at:
        case ():
            return {**_known(top_readers()), **fields_of(Options)}, None
        case ("path",):
            return fields_of(PathOptions), None
        case ("logger",):
            return fields_of(LoggerOptions), None
        case ("train",):
            return {**_known(readers()), **declared(model, base=TrainLoop).known}, None
        case ("val",):
            return {**_known(readers("VAL_OPTIONS")), **declared(model, "VAL_OPTIONS", base=ValOptions).known}, None
        case ("datasets", _):
            return declared(find(DATASET_REGISTRY, kind), base=Loader).known, None
        case ("train", "scheduler"):
            return (fields_of(SCHEDULERS[kind]) if kind in SCHEDULERS else {}), None
        case ("train", str(name)) if name.startswith("optim_"):
            return {}, getattr(torch.optim, str(kind), None)
        case ("train", _):
            target = find(LOSS_REGISTRY, kind)
        case (_,):
            target = find(ARCH_REGISTRY, kind)
        case _:  # a section inside a dataset's
            parent = _field_of(_known_at(values, at[:-1], values["datasets"][at[1]].get("type"))[0], at[-1])
            nested = nested_section(parent) if parent is not None else None
            return (fields_of(nested) if nested is not None else {}), None
    also = fields_of(VggOptions) if at[-1] == "perceptual_opt" else {}
    return {**also, **arguments_of(target)}, target


def check_structure(values: dict[str, Any], report: Report, *, is_train: bool) -> dict[str, Any]:
    """All options with converted values; problems go to the report."""
    networks = [name for name in values if name.startswith("network_")]
    known = {**_known(top_readers()), **dict.fromkeys(networks, (Options, "network_d")), **fields_of(Options)}
    checked = check_section(known, values, (), report, skip=("path", "train", "val"))
    model_type = values.get("model_type")
    model = (
        named(MODEL_REGISTRY, model_type, ("model_type",), report, kind="model")
        if isinstance(model_type, str)
        else None
    )
    if "path" in values:
        checked["path"] = _check_path(values["path"], networks, model, report)
    for name in networks:
        if isinstance(values[name], dict):
            checked[name] = _check_network(values[name], (name,), report)
    checked["datasets"] = _check_datasets(values.get("datasets"), report)
    checked["train"] = _check_train(values, model, report, is_train=is_train)
    checked["val"] = _check_val(values.get("val"), model, report)
    # Order and presence of keys are those of the file.
    return {name: checked[name] for name in values}


def named_classes(values: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys of the section, class) for every class in a file that may declare rules."""
    if (model := find(MODEL_REGISTRY, values.get("model_type"))) is not None:
        yield (), model
    train = as_mapping(values.get("train"), (), Report())
    sections = [((name,), values[name], ARCH_REGISTRY) for name in values if name.startswith("network_")]
    sections += [
        (("datasets", name), one, DATASET_REGISTRY)
        for name, one in as_mapping(values.get("datasets"), (), Report()).items()
    ]
    sections += [(("train", name), train[name], LOSS_REGISTRY) for name in train if name.endswith("_opt")]
    for keys, section, registry in sections:
        kind = find(registry, section.get("type")) if isinstance(section, dict) else None
        if kind is not None:
            yield keys, kind


def _check_path(given: Any, networks: list[str], model: Any, report: Report) -> Any:
    given = as_mapping(given, ("path",), report)
    labels = {name.removeprefix("network_") for name in networks}
    kinds = [model, *standard_models().values()]  # option files are often adapted from one model to another
    labels |= {helper.name for kind in kinds for helper in getattr(kind, "frozen_networks", ())}
    also: Known = {
        f"{prefix}_{label}": (PathOptions, name) for prefix, name in _PATH_FIELDS.items() for label in labels
    }
    lost = [name for name in given if _label(name) not in (None, *labels) and name not in PathOptions.model_fields]
    for name in lost:
        report.problem(("path", name), f"there is no section network_{_label(name)} for this option")
    return check_section({**also, **fields_of(PathOptions)}, given, ("path",), report, skip=lost)


def _label(name: str) -> str | None:
    prefix = next((prefix for prefix in _PATH_FIELDS if name.startswith(f"{prefix}_")), None)
    return name.removeprefix(f"{prefix}_") if prefix else None


def _check_network(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    arch = check_type(ARCH_REGISTRY, given, keys, report, kind="arch")
    return check_arguments(arch, given, keys, report) if arch else given


def _check_datasets(given: Any, report: Report) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    # That `datasets` is a section is checked with the fields of the top level.
    for phase, options in (given if isinstance(given, dict) else {}).items():
        keys = ("datasets", phase)
        if not PHASES.fullmatch(phase):
            report.problem(keys, "unknown phase of a dataset; expected train, val, val_<name>, test or test_<name>")
        if not isinstance(options, dict):
            as_mapping(options, keys, report)
            if options is None:
                report.problem(keys, "expected a section (key: value), found nothing (~)")
        checked[phase] = _check_dataset(options, keys, report) if isinstance(options, dict) else options
    return checked


def _check_dataset(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    dataset = check_type(DATASET_REGISTRY, given, keys, report, kind="dataset")
    if dataset is None:  # the type has a problem already, so its options are unknown
        known = fields_of(Loader)
        return check_section(known, given, keys, report, skip={"type"} | (given.keys() - known.keys()))
    options = declared(dataset, base=Loader)
    return check_declared(options, given, keys, report, what=f"dataset type {given['type']}")


def _check_train(values: dict[str, Any], model: Any, report: Report, *, is_train: bool) -> Any:
    if is_train and values.get("train") is None:
        report.problem(("train",), "missing: a training needs losses, an optimizer and total_iter")
    given = as_mapping(values.get("train"), ("train",), report)
    if not isinstance(values.get("train"), dict):
        return values.get("train")
    keys, standard = ("train",), model is None or is_standard(model)
    options = Declared(fields_of(TrainLoop), whole=True) if model is None else declared(model, base=TrainLoop)
    own = set(options.all_names)
    if standard:  # options of other models have no effect, and cause a warning
        options.known = {**_known(readers()), **options.known}
    built = [name for name in given if name.endswith("_opt") or name.startswith("optim_")]
    # For every model: BasicSR builds objects from these two.
    others = [] if standard else [name for name in built if name not in options.all_names]
    others += [name for name in given if standard and name not in own and given[name] is None]
    optional = set(options.known) if not is_train else set(options.known) - own
    what = f"model type {getattr(model, '__name__', '')}"
    checked = check_declared(options, given, keys, report, what=what, skip=others, optional=optional)
    for name in sorted(built):
        section = as_mapping(given[name], (*keys, name), report if name in others else Report())
        if isinstance(given[name], dict):
            check = _check_optimizer if name.startswith("optim_") else _check_loss
            checked[name] = check(section, (*keys, name), report)
    if scheduler := as_mapping(given.get("scheduler"), (), Report()):
        checked["scheduler"] = _check_scheduler(scheduler, (*keys, "scheduler"), report, strict=standard)
    return checked


def _check_val(given: Any, model: Any, report: Report) -> Any:
    val = as_mapping(given, ("val",), report)
    if not val:
        return given
    # BasicSR's models for videos and faces read additional options here.
    options = declared(model, "VAL_OPTIONS", base=ValOptions)
    if model is None or is_standard(model):
        options.whole = True
        options.known = {**_known(readers("VAL_OPTIONS")), **options.known}
    what = f"val of model type {getattr(model, '__name__', '')}"
    checked = check_declared(options, val, ("val",), report, what=what)
    if isinstance(val.get("metrics"), dict):
        metrics = val["metrics"].items()
        checked["metrics"] = {name: _check_metric(one, ("val", "metrics", name), report) for name, one in metrics}
    return checked


def _check_metric(given: Any, keys: Keys, report: Report) -> Any:
    """One entry of `val.metrics`; unknown arguments are a problem even if the metric has **kwargs."""
    if given is None:
        report.problem(keys, "expected a section (key: value), found nothing (~); remove the metric")
    options = as_mapping(given, keys, report)
    metric = check_type(METRIC_REGISTRY, options, keys, report, kind="metric") if isinstance(given, dict) else None
    if metric is None:
        return given
    also: Known = {"better": (MetricArguments, "better")}
    section, name = {**also, **arguments_of(metric)}["better"]
    # By default, BasicSR assumes that higher is better.
    better = {} if section.model_fields[name].default == "higher" else {"better": section.model_fields[name].default}
    check = partial(check_arguments, leave_out=("img", "img2"), also=also, any_keyword=False)
    return better | check(metric, options, keys, report)


def _check_loss(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    loss = check_type(LOSS_REGISTRY, given, keys, report, kind="loss")
    also = fields_of(VggOptions) if keys[-1] == "perceptual_opt" else None
    return given if loss is None else check_arguments(loss, given, keys, report, also=also)


def _check_optimizer(given: dict[str, Any], keys: Keys, report: Report) -> dict[str, Any]:
    known = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    name = given.get("type")
    if not isinstance(name, str) or name not in known:
        near = nearest(name, known) if isinstance(name, str) else None
        hint = f"did you mean {near!r}? " if near else ""
        report.problem((*keys, "type"), f"torch.optim has no optimizer {name!r}; {hint}Known: {_list(known)}")
        return given
    return check_arguments(known[name], given, keys, report, leave_out=("params",))


def _check_scheduler(given: dict[str, Any], keys: Keys, report: Report, *, strict: bool) -> dict[str, Any]:
    name = given.get("type")
    if isinstance(name, str) and name in SCHEDULERS:
        return check_section(fields_of(SCHEDULERS[name]), given, keys, report)
    if strict or not isinstance(name, str):
        near = nearest(name, SCHEDULERS) if isinstance(name, str) else None
        hint = f"did you mean {near!r}? " if near else ""
        report.problem((*keys, "type"), f"no scheduler is named {name!r}; {hint}Known: {_list(SCHEDULERS)}")
    else:
        report.warn(keys, f"keys of scheduler {name!r} are not checked (it is defined by the model)")
    return given


def _list(names: Any) -> str:
    return ", ".join(sorted(names))


# The options that exist for every model: top level, `path`, `train`, `val`, `logger`, loaders, schedulers.


class PathOptions(Section):
    """Weights to start from. pretrain_network_<x>, param_key_<x>, strict_load_<x> exist per network_<x>."""

    pretrain_network_g: str | None = Field(None, description="Weights file of network_g to start from or to test.")
    pretrain_network_d: str | None = Field(None, description="Weights file of the discriminator to start from.")
    param_key_g: str | None = Field(
        "params", description="Key in pretrain_network_g to load: params_ema (averaged weights) or params."
    )
    param_key_d: str | None = Field("params", description="Key in pretrain_network_d to load.")
    strict_load_g: bool = Field(
        True,
        description="Whether the file must contain exactly the weights of network_g. False also starts "
        "super-resolution from another scale.",
    )
    strict_load_d: bool = Field(True, description="Whether the file must contain exactly the weights of network_d.")
    resume_state: str | None = Field(None, description="Training state (.state) to resume from.")
    ignore_resume_networks: Names = Field(
        [],
        description="Networks that are loaded from pretrain_* also on resuming; those that are not trained always are.",
    )


class ValOptions(Section):
    """Validation and testing: when and how images are restored and measured."""

    val_freq: Count = Field(5000, description="Iterations between validations during training.")
    save_img: bool = Field(False, description="Whether restored images are saved; default true for testing.")
    suffix: str | None = Field(None, description="Suffix of saved file names; by default the name of the run.")
    pbar: bool = Field(True, description="Whether a progress bar is shown.")
    seed: Seed = Field(0, description="Seed of the initial noise, which depends only on this seed and the image.")
    metrics: dict[str, Any] | None = Field(
        None,
        description="Metrics by the name to log, each with a type, its arguments and better (higher, lower).",
    )
    window_size: SmallOrZero | None = Field(
        None, description="No effect (present in published files): padding is a property of the network."
    )


class WandbOptions(Section):
    """Weights & Biases (extra `wandb`)."""

    project: str | None = Field(None, description="Project to log to; required for logging.")
    resume_id: str | None = Field(
        None, description="Run to append to; by default a new one or, on resuming, the previous one."
    )


class TrackioOptions(Section):
    """trackio (extra `trackio`): curves in a local file and a local page."""

    project: str | None = Field(None, description="Project to log to; required for logging.")


class LoggerOptions(Section):
    """Logging and checkpoints during training."""

    print_freq: Count = Field(100, description="Iterations between log lines.")
    save_checkpoint_freq: Count = Field(5000, description="Iterations between checkpoints.")
    keep_states: Count | None = Field(
        5, description="Number of newest training states to keep; ~ keeps all. Saved networks are always kept."
    )
    keep_states_every: Count | None = Field(
        None, description="Also keep the states of iterations that are multiples of this."
    )
    use_tb_logger: bool = Field(False, description="Whether TensorBoard files are written to tb_logger/<name>.")
    wandb: WandbOptions | None = Field(None, description="Curves on Weights & Biases.")
    trackio: TrackioOptions | None = Field(None, description="Curves in trackio.")
    report: bool = Field(
        False,
        description="Whether the run ends by writing a report, experiments/<name>/report.html (needs matplotlib).",
    )


class DistParams(Section):
    """Settings of distributed training; used with `--launcher slurm`."""

    backend: Literal["nccl", "gloo", "mpi"] = Field("nccl", description="Backend of torch.distributed.")
    port: Annotated[Whole, Field(ge=1, le=65535)] | None = Field(None, description="Port of the first process.")


class AlertOptions(Section):
    """What raises an alert during training, and what an alert does; ~ for a limit switches it off."""

    action: Literal["rollback", "stop", "warn"] = Field(
        "rollback",
        description="rollback goes on from the last good state with a lower learning rate and another order of the "
        "images; stop ends the run; warn says it in the log. Values that are not finite stop a run that only warns.",
    )
    lr_factor: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.5, description="Factor on every learning rate from a rollback on."
    )
    min_interval: Count = Field(
        10_000, description="Iterations after an alert within which another one ends the run instead of a rollback."
    )
    start: CountOrZero = Field(
        1000, description="Iterations at the start of a training in which only values that are not finite are an alert."
    )
    patience: Count = Field(
        20, description="Log lines in a row that discriminator_loss, colour_shift and the priors' limits need."
    )
    replay: CountOrZero = Field(
        1000,
        description="Most iterations that are computed again from the last good state to name the module in which a "
        "value that is not finite arose; 0 is none.",
    )
    loss_zscore: Positive | None = Field(
        8.0,
        description="A loss this many standard deviations above its mean over the last 50 log lines; the deviation "
        "counts as a tenth of the mean or more.",
    )
    grad_zscore: Positive | None = Field(10.0, description="The same for the norm of network_g's gradient.")
    psnr_drop: Positive | None = Field(5.0, description="A PSNR at validation this many dB below the best so far.")
    discriminator_loss: Positive | None = Field(
        0.01, description="A discriminator whose losses of real and restored images are together below this has won."
    )
    colour_shift: Positive | None = Field(
        0.05,
        description="Mean of the restored images further than this from that of the ground truth, in any colour; "
        "values are in [0, 1].",
    )
    prior_spread: Positive | None = Field(
        1e-6,
        description="A prior is dead whose variance over the pictures of a batch is below this share of its mean "
        "square, or whose encoder gets no gradient.",
    )
    prior_cosine: Annotated[Number, Field(ge=-1, le=1)] | None = Field(
        0.5, description="A cosine between the priors of stage 2 and of its teacher below this."
    )


class TrainLoop(Section):
    """Options of BasicSR's training loop and base model, for every model."""

    total_iter: Count = Field(description="Iterations to train for.")
    warmup_iter: Annotated[Whole, Field(ge=-1, le=10**12)] = Field(
        -1, description="Iterations of linear warm-up of the learning rate; -1 for none."
    )
    ema_decay: Probability = Field(
        0.0, description="Decay of the moving average of the weights (params_ema); 0 for no average."
    )
    optim_g: Built | None = Field(None, description="Optimizer of network_g: a class of torch.optim and its arguments.")
    scheduler: Built | None = Field(None, description="Schedule of the learning rate.")
    pixel_opt: Built | None = Field(None, description="Loss between the restored image and the ground truth.")
    perceptual_opt: Built | None = Field(
        None, description="Loss between VGG features of both images; vgg_path is the file with the VGG weights."
    )
    alerts: AlertOptions | None = Field(None, description="What watches over the training.")


class MultiStep(Section):
    """MultiStepLR, MultiStepRestartLR: the learning rate decreases at given iterations."""

    type: str = Field(description="MultiStepLR or MultiStepRestartLR (the same).")
    milestones: list[Count] = Field(description="Iterations at which the learning rate is multiplied by gamma.")
    gamma: Positive = Field(0.1, description="Factor at each milestone.")
    restarts: list[CountOrZero] = Field(
        [0], description="Iterations at which the schedule restarts from the initial learning rate."
    )
    restart_weights: list[Positive] = Field([1.0], description="Factor on the initial learning rate at each restart.")


class CosineRestart(Section):
    """CosineAnnealingRestartLR: half a cosine from the learning rate to eta_min in each period."""

    type: str = Field(description="CosineAnnealingRestartLR.")
    periods: list[Count] = Field(min_length=1, description="Iterations of each period; together at least total_iter.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on the learning rate in each period.")
    eta_min: NotNegative = Field(0.0, description="Learning rate at the end of every period.")


class CosineRestartCyclic(Section):
    """CosineAnnealingRestartCyclicLR: the same with its own eta_min for each period (published deblurring)."""

    type: str = Field(description="CosineAnnealingRestartCyclicLR.")
    periods: list[Count] = Field(min_length=1, description="Iterations of each period; together at least total_iter.")
    restart_weights: list[Positive] = Field([1.0], description="Factor on the learning rate in each period.")
    eta_mins: list[NotNegative] = Field([0.0], description="Learning rate at the end of each period.")


SCHEDULERS: dict[str, type[Section]] = {
    "MultiStepLR": MultiStep,
    "MultiStepRestartLR": MultiStep,
    "CosineAnnealingRestartLR": CosineRestart,
    "CosineAnnealingRestartCyclicLR": CosineRestartCyclic,
}


class IoBackend(Section):
    """How images are stored."""

    type: Literal["disk", "lmdb", "webdataset", "memcached"] = Field(
        description="disk (folders of images), lmdb, webdataset (folders of .tar files) or memcached."
    )
    readonly: bool = Field(True, description="Whether an LMDB is opened read-only.")
    lock: bool = Field(False, description="Whether an LMDB is locked against writers.")
    readahead: bool = Field(False, description="Whether the system reads ahead in an LMDB.")
    server_list_cfg: str | None = Field(None, description="Server list of memcached.")
    client_cfg: str | None = Field(None, description="Client settings of memcached.")
    sys_path: str | None = Field(None, description="Path of the Python module of memcached.")


class Loader(Section):
    """Options of every dataset, of any type."""

    name: str = Field(description="Name in logs and of the results folder.")
    type: str = Field(description="Class of the dataset.")
    batch_size_per_gpu: Small | None = Field(None, description="Images per step and GPU; required in datasets.train.")
    num_worker_per_gpu: Annotated[Whole, Field(ge=0, le=1024)] | None = Field(
        None, description="Worker processes per GPU that load images; required in datasets.train."
    )
    dataset_enlarge_ratio: Annotated[Whole, Field(ge=1, le=10**6)] = Field(
        1, description="Repetitions of the dataset per epoch; used in train."
    )
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(
        None,
        description="cpu: batches wait in a queue; cuda (requires pin_memory) or ~: the next batch is copied ahead.",
    )
    num_prefetch_queue: Small = Field(1, description="Length of the queue with prefetch_mode cpu.")
    pin_memory: bool = Field(
        False, description="Whether batches are stored in pinned memory, which copies to GPUs faster."
    )
    persistent_workers: bool = Field(
        False, description="Whether worker processes are kept between epochs; used in train."
    )
    use_shuffle: bool = Field(
        True, description="No effect (present in published files): training data is always shuffled."
    )
    io_backend: IoBackend | None = Field(
        None, description="How images are stored; by default as the roots are: lmdb, webdataset or disk."
    )


class Options(Section):
    """An option file."""

    base: str | list[str] | None = Field(
        None, description="Option files to extend, relative to this one; keys here and in later files override."
    )
    plugins: list[str] | None = Field(
        None, description="Modules to import first, which register archs, losses and so on."
    )
    name: str = Field(min_length=1, description="Name of the run; results go to experiments/<name> or results/<name>.")
    model_type: str = Field(
        description="The model to train or test: a class of this package, of BasicSR or of a plugin."
    )
    scale: Small | None = Field(None, description="Ratio of output size to input size; by default that of the network.")
    num_gpu: Gpus = Field("auto", description="GPUs to use without a launcher: auto (all) or a number; 0 means CPU.")
    manual_seed: Seed | None = Field(None, description="Seed of all random numbers; by default a new one.")
    find_unused_parameters: bool = Field(
        False, description="Whether distributed training searches for parameters without gradient."
    )
    datasets: dict[str, Any] = Field(description="Datasets: train, val, val_<name>, test, test_<name>.")
    network_g: Built = Field(description="The restoration network.")
    network_d: Built | None = Field(None, description="The discriminator; used in GAN training.")
    path: PathOptions | None = Field(None, description="Weights to start from.")
    train: TrainLoop | None = Field(None, description="Losses, optimizers, schedule; required for training.")
    val: ValOptions | None = Field(None, description="Validation and testing; ~ disables validation.")
    logger: LoggerOptions | None = Field(None, description="Logging and checkpoints.")
    licence: str | None = Field(None, description="Licence of the weights, for their model card, such as MIT.")
    dist_params: DistParams | None = Field(None, description="Settings of distributed training.")
