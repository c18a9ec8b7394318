"""Rules about more than one option. Each yields (keys, what is wrong and what to do)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from basicsr.utils.registry import ARCH_REGISTRY

from diffir_sr.archs.geometry import geometry_of
from diffir_sr.errors import OptionError
from diffir_sr.options.constructors import find
from diffir_sr.options.report import Keys, Report
from diffir_sr.options.schema_train import SCHEDULERS
from diffir_sr.options.training import BASICSR_MODELS
from diffir_sr.options.view import InvalidValue, View

Found = Iterator[tuple[Keys, str]]
Rule = Callable[[View], Found]

INPAINTING = ("DiffIRInpaintS1Model", "DiffIRInpaintS2Model")
_STAGE_OF_MODEL = {"DiffIRS1Model": "DiffIRS1", "DiffIRS2Model": "DiffIRS2", "DiffIRGANS2Model": "DiffIRS2"}
_STAGE_OF_MODEL |= {"DiffIRInpaintS1Model": "DiffIRS1", "DiffIRInpaintS2Model": "DiffIRS2"}
TAUGHT = ("DiffIRS2Model", "DiffIRGANS2Model", "DiffIRInpaintS2Model")
WARMED_UP = ("DiffIRS2Model", "DiffIRGANS2Model")  # those that read encoder_iter
ADVERSARIAL = ("DiffIRGANS2Model", "SRGANModel", "ESRGANModel", *INPAINTING)


def apply_rules(rules: Iterable[Rule], view: View, report: Report) -> None:
    """Add to the report what the rules find; a rule that needs a value with a problem says nothing."""
    found: list[tuple[Keys, str]] = []
    for rule in rules:
        try:
            found.extend(rule(view))
        except InvalidValue:
            continue
    report.problems.extend(found)


def right_network(view: View) -> Found:
    """A model trains or tests the network of its stage."""
    wanted = _STAGE_OF_MODEL.get(view.model)
    if wanted and view.has("network_g", "type") and view.stage("network_g") != wanted:
        given = view.get("network_g", "type")
        yield ("network_g", "type"), f"{view.model} works on a {wanted} network, found {given!r}"


def right_teacher(view: View) -> Found:
    """Stage 2 is taught by a stage-1 network."""
    if view.model in TAUGHT and view.has("network_S1", "type") and view.stage("network_S1") != "DiffIRS1":
        given = view.get("network_S1", "type")
        yield ("network_S1", "type"), f"the teacher of stage 2 is a DiffIRS1 network, found {given!r}"


def teacher_is_given(view: View) -> Found:
    """Training stage 2 needs the teacher's network and its weights."""
    if not view.is_train or view.model not in TAUGHT:
        return
    if not view.has("network_S1"):
        yield (
            ("network_S1",),
            f"missing: {view.model} learns from stage 1; give the network as stage 1 trained it",
        )
    if not view.has("path", "pretrain_network_S1"):
        yield (
            ("path", "pretrain_network_S1"),
            f"missing: {view.model} learns from stage 1; give its weights, experiments/<name>/models/net_g_latest.pth",
        )


def adversary_has_a_start(view: View) -> Found:
    """The GAN stage starts from a trained stage 2, or resumes."""
    resumes = view.has("path", "resume_state")
    if (
        view.is_train
        and view.model == "DiffIRGANS2Model"
        and not resumes
        and not view.has("path", "pretrain_network_g")
    ):
        yield (
            ("path", "pretrain_network_g"),
            "missing: the GAN stage needs a stage-2 start; give the weights of a DiffIRS2Model training",
        )


def adversary_is_complete(view: View) -> Found:
    """A GAN training has a discriminator, its loss and its optimizer."""
    if view.is_train and view.model in ADVERSARIAL and view.has("train"):
        for keys in (("network_d",), ("train", "optim_d"), ("train", "gan_opt")):
            if not view.has(*keys):
                yield keys, f"missing: {view.model} trains against a discriminator"


def losses_suit_the_task(view: View) -> Found:
    """Losses that see the holes belong to inpainting, and inpainting to them."""
    if not view.is_train or view.model not in (*TAUGHT, *ADVERSARIAL, *_STAGE_OF_MODEL):
        return
    fills = view.model in INPAINTING
    for section in ("pixel_opt", "gan_opt"):
        kind = view.get("train", section, "type") if view.has("train", section) else None
        masked = kind in ("MaskedL1Loss", "MaskedGANLoss")
        if kind and masked and not fills:
            yield ("train", section, "type"), f"{kind} needs masks, which only {' and '.join(INPAINTING)} have"
        if kind and section == "gan_opt" and fills and not masked:
            yield ("train", section, "type"), f"{view.model} takes MaskedGANLoss, found {kind!r}"
    if fills and view.has("network_g") and view.task() != "inpaint":
        yield ("network_g", "task"), f"{view.model} fills holes: set task: inpaint, found {view.task()!r}"


def layers_can_be_compared(view: View) -> Found:
    """Feature matching needs a discriminator that shows what its layers make of an image."""
    if not view.is_train or view.model not in INPAINTING or not view.has("train", "feature_matching_opt"):
        return
    arch = find(ARCH_REGISTRY, view.get("network_d", "type"))
    if arch is not None and not hasattr(arch, "activations"):
        yield (
            ("network_d", "type"),
            f"{view.get('network_d', 'type')} does not show its layers, which train.feature_matching_opt compares; "
            "choose NLayerDiscriminator, or remove feature_matching_opt",
        )


def something_to_learn(view: View) -> Found:
    """A training compares images with the ground truth in some way."""
    if view.is_train and view.model in (*_STAGE_OF_MODEL, "SRModel") and view.has("train"):
        losses = ("pixel_opt", "perceptual_opt")
        if not any(view.has("train", loss) for loss in losses):
            yield (
                ("train", "pixel_opt"),
                "missing: neither pixel_opt nor perceptual_opt is given; nothing is learnt",
            )


def warm_up_is_complete(view: View) -> Found:
    """The warm-up has learning rates of its own, which must be given."""
    if not view.is_train or view.model not in WARMED_UP or view.get("train", "encoder_iter", default=0) == 0:
        return
    for part in ("encoder", "sr") if view.model == "DiffIRS2Model" else ("sr",):
        for key in (f"lr_{part}", f"gamma_{part}", f"lr_decay_{part}"):
            if not view.has("train", key):
                yield ("train", key), "missing: it rules the learning rate, because encoder_iter is above 0"


def teacher_has_the_same_geometry(view: View) -> Found:
    """Teacher and student see the same task at the same scale."""
    if view.model in TAUGHT and view.has("network_S1"):
        ours, theirs = view.geometry(), view.geometry("network_S1")
        if ours and theirs and ours != theirs:
            yield (
                ("network_S1",),
                f"teacher and student differ: task {theirs.task!r}, scale {theirs.scale} here, "
                f"task {ours.task!r}, scale {ours.scale} in network_g",
            )


def geometry_exists(view: View) -> Found:
    """There is a network for this task and scale."""
    for network in ("network_g", "network_S1"):
        if view.has(network, "type") and view.stage(network):
            task, scale = view.task(network), view.get(network, "scale")
            try:
                geometry_of(task, scale)
            except OptionError as error:
                yield (network, "task" if str(error).startswith("task") else "scale"), str(error)


def scales_agree(view: View) -> Found:
    """The file's scale is that of its network."""
    geometry = view.geometry()
    if geometry and view.has("scale") and view.get("scale") != geometry.scale:
        told = f"network_g.scale is {geometry.scale}" if view.has("network_g", "scale") else (
            f"network_g restores at scale {geometry.scale} (task {geometry.task!r}, no scale given)"
        )  # fmt: skip
        yield ("scale",), f"{view.get('scale')} here, but {told}; make both the same"


def scale_is_known(view: View) -> Found:
    """Pairs of images have a scale between them, which the file or its network tells."""
    paired = [name for name, kind in view.datasets() if kind in ("PairedDataset", "PairedImageDataset")]
    if paired and view.scale() is None:
        yield (
            ("scale",),
            f"missing: datasets.{paired[0]} needs the size of the output over the size of the input",
        )


def phases_fit(view: View) -> Found:
    """A training trains and validates; a test does neither."""
    if view.is_train and "train" not in dict(view.datasets()):
        yield ("datasets", "train"), "missing: there is nothing to train on"
    if view.is_train:
        for name, _ in view.datasets(phase="test"):
            yield (
                ("datasets", name),
                "test datasets are for `basicsr test`; in a training, call it val_<name>",
            )
    elif "train" in dict(view.datasets()):
        yield (
            ("datasets", "train"),
            "this is an option file for `basicsr train`; a test has test and val datasets",
        )
    elif not list(view.datasets()):
        yield ("datasets",), "there is nothing to test; give a dataset test_<name>"


def optimizers_exist_in_basicsr(view: View) -> Found:
    """BasicSR's models build one optimizer and fewer schedulers than ours."""
    if view.is_train and view.model in BASICSR_MODELS:
        for optimizer in ("optim_g", "optim_d"):
            kind = view.get("train", optimizer, "type", default="Adam")
            if kind != "Adam":
                yield ("train", optimizer, "type"), f"BasicSR's {view.model} knows Adam alone, found {kind!r}"
        kind = view.get("train", "scheduler", "type")
        if kind == "CosineAnnealingRestartCyclicLR":
            yield ("train", "scheduler", "type"), f"BasicSR's {view.model} has no {kind}"


def schedule_is_consistent(view: View) -> Found:
    """Lists that belong together have one length."""
    keys = ("train", "scheduler")
    kind = view.get(*keys, "type")
    if kind not in SCHEDULERS:
        return
    if kind.startswith("MultiStep"):
        lists = {"restarts": view.get(*keys, "restarts", default=[0])}
    else:
        lists = {"periods": view.get(*keys, "periods", default=[])}
    lists["restart_weights"] = view.get(*keys, "restart_weights", default=[1])
    if kind == "CosineAnnealingRestartCyclicLR":
        lists["eta_mins"] = view.get(*keys, "eta_mins", default=[0])
    if len({len(values) for values in lists.values()}) > 1:
        counts = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        yield keys, f"these lists must be of one length: {counts}"


def schedule_lasts(view: View) -> Found:
    """A schedule of periods covers the whole training."""
    periods = view.get("train", "scheduler", "periods", default=[])
    iterations = view.get("train", "total_iter", default=0)
    if periods and sum(periods) < iterations:
        yield (
            ("train", "scheduler", "periods"),
            f"they end at iteration {sum(periods)}, but total_iter is {iterations}; make them last as long",
        )


def wandb_has_its_source(view: View) -> Found:
    """Weights & Biases copies TensorBoard's log."""
    if view.is_train and view.has("logger", "wandb", "project") and not view.get("logger", "use_tb_logger"):
        yield ("logger", "wandb", "project"), "needs logger.use_tb_logger: true, whose log it copies"


RULES: tuple[Rule, ...] = (
    right_network,
    right_teacher,
    teacher_is_given,
    adversary_has_a_start,
    adversary_is_complete,
    losses_suit_the_task,
    layers_can_be_compared,
    something_to_learn,
    warm_up_is_complete,
    geometry_exists,
    teacher_has_the_same_geometry,
    scales_agree,
    scale_is_known,
    phases_fit,
    optimizers_exist_in_basicsr,
    schedule_is_consistent,
    schedule_lasts,
    wandb_has_its_source,
)
