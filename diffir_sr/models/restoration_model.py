"""What every stage of training shares: lq, gt -> losses -> step -> moving average -> log; loading; validation."""

from __future__ import annotations

import contextlib
import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffir_sr.checkpoints import fit, fitting, read_weights
from diffir_sr.compat import vgg_features_from
from diffir_sr.data.records import append_record, read_records
from diffir_sr.diffusion.noise import IterationNoise, Noise, RowsNoise
from diffir_sr.errors import InputError, OptionError
from diffir_sr.families.base import Restores
from diffir_sr.metrics import protocol
from diffir_sr.models import validation as measuring
from diffir_sr.models.auxiliary import BuiltOnce, Frozen, something_to_learn
from diffir_sr.models.batches import BatchPreparation, MixingAugs, Role, SharpenedTargets
from diffir_sr.models.distributed import exchange, gathered, refuse_broken_weights
from diffir_sr.models.optimization import (
    Acceleration,
    ScaledSteps,
    accelerate,
    build_scheduler,
    channels_last,
    gradient_norm,
    in_precision,
    step_can_be_computed,
)
from diffir_sr.models.saving import CardFiles, load_scale, load_sums, save_scale, save_sums
from diffir_sr.option_types import Positive, Rule, View
from diffir_sr.options.schema import PathOptions, TrainLoop, ValOptions
from diffir_sr.weights.backbones import load_vgg

logger = logging.getLogger("basicsr")
Losses = dict[str, Tensor]


def has_batch_norm(net: nn.Module) -> bool:
    """Whether what a network makes of a picture in training depends on the others of its batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules())


def _detached(values: Losses) -> Losses:
    return {name: value.detach() for name, value in values.items()}


def _means(parts: Sequence[Losses]) -> Losses:
    return {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in parts[0]}


class RestorationOptions(BuiltOnce, Acceleration):
    """What every model of this package reads."""

    clip_grad_norm: Positive | None = Field(
        None, description="Largest total norm of network_g's gradient; by default there is no limit."
    )
    mixing_augs: MixingAugs | None = Field(None, description="Mixup; needed by published deblurring files.")


class RestorationModel(SRModel, ABC):
    """A BasicSR model that trains a restoring network; a derived class says only which losses it has.

    The network trained is `net_g`, its exponential moving average `net_g_ema` (None without `ema_decay`).
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.net_g_ema: nn.Module | None = None
        self.gt: Tensor | None = None
        self.log_dict: dict[str, float] = {}
        self._sums: dict[str, tuple[Any, int]] = {}
        self._norms: Losses = {}  # of the gradients of the last step
        self.best_metric_results: dict[str, Any] = {}
        self.card_files = CardFiles(opt)
        self.acceleration = Acceleration.of(opt["train"] if opt["is_train"] else None)
        self.scaled: ScaledSteps | None = None  # in float16
        self._rows = slice(0), 0  # the part of the batch that is computed now, and pictures in the batch
        super().__init__(opt)
        self.restoring = measuring.Restoring(self.device)

    # Set-up

    # What option files may say (see `option_types`); derived classes add their own.
    OPTIONS: ClassVar[Any] = RestorationOptions
    TOP_OPTIONS: ClassVar[Any] = SharpenedTargets
    RULES: ClassVar[tuple[Rule, ...]] = (something_to_learn, step_can_be_computed)
    STANDARD_LOOP: ClassVar[bool] = True  # it trains by the loop, the schedulers and the `val` of this package
    NETWORK_G: ClassVar[str] = ""  # the class of network that it trains, if only one will do
    TITLE: ClassVar[str] = ""  # of the training, in messages: "stage 1"
    MADE_BY: ClassVar[Mapping[str, str]] = {}  # of network_<x>, the model type that writes its weights
    RECIPE: ClassVar[Callable[[View], str | None] | None] = None  # the shipped recipe for a file's network

    WHOLE_BATCHES: ClassVar[bool] = False  # whether losses are of whole batches, which cannot be computed in parts
    takes_bytes: ClassVar[bool] = True  # whether training batches may be uint8
    prior_encoder: ClassVar[str] = ""  # the part of net_g that finds a prior, if there is one: its gradient is watched
    frozen_networks: ClassVar[tuple[Frozen, ...]] = ()  # what a training uses and does not train, as `self.frozen`
    starts_from_stage_1: ClassVar[bool] = False  # whether a training may take the body of a stage-1 file

    @classmethod
    def check_weights(cls, opt: dict[str, Any]) -> None:
        """Raise CheckpointError for weights files that do not belong where the options name them.

        Called before a run makes its folders; reads what loading will read again.
        """
        path, is_train = PathOptions.of(opt["path"]), opt["is_train"]
        if path.pretrain_network_g:
            weights = read_weights(path.pretrain_network_g, key=path.param_key_g)
            starting = is_train and not path.resume_state
            fitting(
                build_network(opt["network_g"]),
                weights,
                where="path.pretrain_network_g",
                strict=path.strict_load_g,
                starting=starting,
                from_stage_1=starting and cls.starts_from_stage_1,
            )
        if is_train:
            for helper in cls.frozen_networks:
                helper.check(opt)

    def print_network(self, net: nn.Module) -> None:
        bare = self.get_bare_model(net)
        count = sum(weight.numel() for weight in bare.parameters())
        logger.info(f"Network: {type(bare).__name__}, {count:,d} parameters")

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load `path.pretrain_network_g`; a file of another stage, task, scale or size is refused with its name."""
        weights = read_weights(load_path, key=param_key)
        starting = self.is_train and not self.resumes
        loaded = fit(
            self.get_bare_model(net),
            weights,
            where="path.pretrain_network_g",
            strict=strict,
            starting=starting,
            from_stage_1=starting and self.starts_from_stage_1,
        )
        logger.info(f"Loaded {loaded}")

    @property
    def resumes(self) -> bool:
        return bool(self.opt["path"].get("resume_state"))

    def init_training_settings(self) -> None:
        train = self.opt["train"]
        self.net_g.train()
        if self.acceleration.accumulation > 1:
            self._check_parts()
        accelerate(self.get_bare_model(self.net_g), self.acceleration, self.device)
        if self.acceleration.autocast == "float16":
            self.scaled = ScaledSteps(self.device)
        self.ema_decay = TrainLoop.of(train).ema_decay
        if self.ema_decay > 0:
            self.net_g_ema = self._start_average()
        self.frozen = {helper.name: helper.load(self.opt, self.device) for helper in self.frozen_networks}
        self.batches = BatchPreparation(self.opt, self.device)
        self.cri_pix = build_loss(train["pixel_opt"]).to(self.device) if train.get("pixel_opt") else None
        self.cri_perceptual = self._perceptual_loss(train.get("perceptual_opt"))
        if self.cri_pix is None and self.cri_perceptual is None:
            raise OptionError("train: a stage needs pixel_opt or perceptual_opt, found neither")
        self.setup_optimizers()
        self.schedulers = [build_scheduler(optimizer, train["scheduler"]) for optimizer in self.scheduled()]

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """`net` on the device, wrapped for several of them; in the memory format that training asks for."""
        if self.acceleration.channels_last:
            net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return super().model_to_device(net)

    def _check_parts(self) -> None:
        net = self.get_bare_model(self.net_g)
        if self.WHOLE_BATCHES or has_batch_norm(net):
            raise OptionError(
                f"train.accumulation: {type(self).__name__} with {type(net).__name__} computes statistics of whole "
                "batches, which parts do not have; leave it out"
            )

    def _start_average(self) -> nn.Module:
        """The moving average starts as a copy of the network as loaded; when resuming, as it was saved."""
        average = copy.deepcopy(self.get_bare_model(self.net_g)).eval().requires_grad_(False)
        if self.resumes:
            weights = read_weights(self.opt["path"]["pretrain_network_g"], key="params_ema")
            fit(average, weights, where="moving average", strict=True)
        return average

    def _perceptual_loss(self, opt: dict[str, Any] | None) -> nn.Module | None:
        if not opt:
            return None
        arguments = {name: value for name, value in opt.items() if name != "vgg_path"}
        with vgg_features_from(lambda vgg_type: load_vgg(vgg_type, vgg_path=opt.get("vgg_path"))):
            return build_loss(arguments).to(self.device)

    def scheduled(self) -> list[Optimizer]:
        """The optimizers whose rate `train.scheduler` sets."""
        return self.optimizers

    def setup_optimizers(self) -> None:
        self.optimizer_g = self.optimizer_of(self.net_g.parameters(), "optim_g")
        self.optimizers.append(self.optimizer_g)

    def optimizer_of(self, weights: Iterable[nn.Parameter], section: str) -> Optimizer:
        """The torch optimizer that `train.<section>` describes, over `weights`."""
        opt = dict(self.opt["train"][section])
        kind = getattr(torch.optim, opt.pop("type"), None)
        if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
            raise OptionError(f"train.{section}.type: torch.optim has no optimizer of this name")
        optimizer = kind(list(weights), **opt)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # what warmup_iter rises to
        return optimizer

    def build_net(self, section: str) -> nn.Module:
        """The bare network that an option section describes, on the device."""
        return build_network(self.opt[section]).to(self.device)

    # Training

    def feed_data(self, data: dict[str, Any]) -> None:
        self.gt = self._on_device(data["gt"]) if "gt" in data else None
        if "kernel1" in data and self.gt is not None:
            self.lq, self.gt = self.batches.prepare(data, self.gt)
        else:
            self.lq = self._on_device(data["lq"])

    def target(self, role: Role) -> Tensor:
        """What a loss compares with: the ground truth, sharpened where the options ask for it."""
        assert self.gt is not None  # a training dataset has ground truth
        return self.batches.target(self.gt, role)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        self.batches.load(int(resume_state["iter"]))
        self._sums = load_sums(self.opt, int(resume_state["iter"]), device=self.device)
        if self.scaled:
            self._resume_scale(int(resume_state["iter"]))
        self.card_files.resumed(int(resume_state["iter"]), averaged=self.net_g_ema is not None)

    def _resume_scale(self, iteration: int) -> None:
        state = load_scale(self.opt, iteration)
        if state and self.scaled:
            self.scaled.restore(state)
        else:
            logger.warning("The training state holds no scale of float16 losses: it begins anew")

    def _on_device(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)  # datasets may give uint8, which is less to copy
        return images.float() * (1 / 255) if images.dtype == torch.uint8 else images

    @abstractmethod
    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        """Losses of the current batch that are optimised, and values that are only watched."""

    def run_network(self, *inputs: Tensor, **options: Any) -> Any:
        """net_g(*inputs, **options) in the precision of `train.autocast`; what it returns is float32."""
        if self.acceleration.channels_last:
            inputs = channels_last(inputs)
        return in_precision(lambda: self.net_g(*inputs, **options), self.acceleration.autocast, self.device)

    def optimizer_at(self, current_iter: int) -> Optimizer:
        """The optimizer that makes the step of this iteration."""
        return self.optimizer_g

    def optimize_parameters(self, current_iter: int) -> None:
        self.lq, self.gt = self.batches.mixed(self.lq, self.gt, current_iter)
        losses, watched = self.find_gradients(current_iter)
        self.take_step(self.optimizer_at(current_iter))
        self.update_average()
        self.note(current_iter, losses | watched)

    def find_gradients(self, current_iter: int, *, learns: bool = True) -> tuple[Losses, Losses]:
        """Gradients of the losses of the batch, computed in `train.accumulation` parts; returns `compute_losses`.

        Losses are means over pictures, so that the mean over the parts is that of the batch. Several processes exchange
        gradients with the last part alone. Without `learns` nothing is differentiated.
        """
        parts = self.acceleration.accumulation
        found: list[tuple[Losses, Losses]] = []
        for number in range(parts):
            with self._only(number, parts), exchange(self.net_g, number == parts - 1):
                losses, watched = self.compute_losses(current_iter)
                if learns:
                    if number == 0:
                        self.optimizer_at(current_iter).zero_grad(set_to_none=True)
                    loss = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
                    loss = loss if parts == 1 else loss / parts
                    self.scaled.backward(loss) if self.scaled else loss.backward()
            found.append((_detached(losses), _detached(watched)))
        if parts == 1:
            return found[0]
        losses, watched = zip(*found, strict=True)
        return _means(losses), _means(watched)

    @contextlib.contextmanager
    def _only(self, number: int, parts: int) -> Iterator[None]:
        """While open, the batch is its part `number` of `parts`."""
        if parts == 1:
            yield
            return
        lq, gt, count = self.lq, self.gt, len(self.lq)
        if count % parts:
            raise OptionError(f"train.accumulation: {parts} parts of a batch of {count} pictures; choose a divisor")
        rows = slice(number * count // parts, (number + 1) * count // parts)
        self._rows = rows, count
        self.lq, self.gt = lq[rows], None if gt is None else gt[rows]
        try:
            yield
        finally:
            self.lq, self.gt = lq, gt
            self._rows = slice(0), 0

    def rows_of(self, draws: Any) -> Any:
        """Of what was drawn for each picture of a whole batch, what belongs to the part that is computed now."""
        rows, count = self._rows
        return draws[rows] if count else draws

    @property
    def batch_size(self) -> int:
        """Pictures of the whole batch, whatever the part that is computed now."""
        return self._rows[1] or len(self.lq)

    def take_step(self, optimizer: Optimizer) -> None:
        """The step of `optimizer` along the gradients found."""
        if self.scaled:
            self.scaled.unscale(optimizer)
        self._norms = self.gradient_norms(optimizer)
        limit = self.opt["train"].get("clip_grad_norm")
        if limit:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, limit)
        if not self.scaled:
            optimizer.step()
        elif not self.scaled.step(optimizer):
            self._norms = {}
            logger.info(f"Left out a step whose gradients overflow in float16 ({self.scaled.skipped} since the start)")

    def gradient_norms(self, optimizer: Optimizer) -> Losses:
        """Norm of the gradient before clipping, of all that `optimizer` moves and of the encoder of the prior alone."""
        norms = {"grad_norm": gradient_norm(weight for group in optimizer.param_groups for weight in group["params"])}
        if self.prior_encoder:
            part = self.get_bare_model(self.net_g).get_submodule(self.prior_encoder)
            norms["grad_norm_prior"] = gradient_norm(part.parameters())
        return norms

    def update_average(self) -> None:
        if self.net_g_ema is not None:
            now = [weight.detach() for weight in self.get_bare_model(self.net_g).parameters()]
            average = list(self.net_g_ema.parameters())
            get_ema_multi_avg_fn(self.ema_decay)(average, now, 0)  # pyright: ignore[reportArgumentType]

    def note(self, current_iter: int, values: Losses) -> None:
        """Sum values up and, when the log prints, read their means: reading a number waits for the device."""
        self.card_files.iteration = current_iter
        norms, self._norms = self._norms, {}
        for name, value in {**values, **norms}.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value.detach().reshape(()).float(), count + 1)
        if current_iter % int(self.opt["logger"]["print_freq"]) == 0:
            self.log_dict = self.reduce_loss_dict({name: total / count for name, (total, count) in self._sums.items()})
            self._sums = {}

    def image_losses(self, restored: Tensor) -> Losses:
        """Pixel and perceptual losses of restored images against the ground truth."""
        losses: Losses = {}
        if self.cri_pix is not None:
            losses["l_pix"] = self.cri_pix(restored, self.target("l1"))
        if self.cri_perceptual is not None:
            perceptual, style = self.cri_perceptual(restored, self.target("percep"))
            named = {"l_percep": perceptual, "l_style": style}
            losses |= {name: loss for name, loss in named.items() if loss is not None}
        return losses

    @torch.no_grad()
    def colour_shift(self, restored: Tensor) -> Losses:
        """Mean of restored images (B, 3, H, W) minus that of the ground truth, for each colour; only watched."""
        shift = (restored.detach() - self.target("l1")).mean(dim=(0, 2, 3))
        return dict(zip(("shift_r", "shift_g", "shift_b"), shift.unbind(), strict=False))

    def noise_at(self, current_iter: int) -> Noise:
        """Randomness of an iteration: a function of seed, iteration and rank, so that resuming changes nothing."""
        noise = IterationNoise(seed=int(self.opt["manual_seed"]), iteration=current_iter, rank=int(self.opt["rank"]))
        rows, count = self._rows
        return RowsNoise(noise, first=rows.start, count=count) if count else noise

    # Evaluation

    @property
    def evaluated_net(self) -> nn.Module:
        """The network that validation and test use: the moving average where there is one."""
        return self.net_g_ema if self.net_g_ema is not None else self.get_bare_model(self.net_g)

    def restored(self, net: nn.Module) -> Tensor:
        """The current batch restored as `diffir restore` does it, with `val.seed` as its seed."""
        seed = ValOptions.of(self.opt.get("val")).seed
        conditions: dict[str, Tensor] = {}
        if isinstance(net, Restores) and "gt" in net.conditions:
            if self.gt is None:
                raise InputError(
                    f"{type(net).__name__} restores with the ground truth, and this dataset has none: give "
                    "dataroot_gt, or test a network that needs the degraded images alone (DiffIR: stage-2)"
                )
            conditions["gt"] = self.gt
        return self.restoring(net, self.lq, seed=seed, **conditions)

    def test(self) -> None:
        net = self.evaluated_net
        was_training = net.training
        net.eval()
        try:
            # Pictures of all sizes come here, and each would be compiled for.
            plain = torch.compiler.set_stance("force_eager" if self.acceleration.compile else "default")
            with torch.inference_mode(), plain:
                self.output = self.restored(net)
        finally:
            net.train(was_training)

    def dist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Restore and measure every image of a dataset; ranks share the images, rank 0 reports."""
        dataset, opt = dataloader.dataset, ValOptions.of(self.opt.get("val"))
        rank, world_size = self.opt["rank"], self.opt["world_size"]
        metrics = opt.metrics or {}
        watch, scores = measuring.Stopwatch(), {}
        names = measuring.result_names(dataset)
        unreadable: list[str] | None = None if self.is_train else []
        shown = measuring.samples(dataset, rank=rank, world_size=world_size, progress=opt.pbar, unreadable=unreadable)
        for index, batch in shown:
            self.feed_data(batch)
            self.test()
            if save_img:
                measuring.write_image(self.output, self._picture_path(dataset, names[index], current_iter))
            scores[index] = (names[index], measuring.measure(self.output, self.gt, metrics))
        result = measuring.joined(gathered(scores))
        result.seconds = watch.seconds()
        if result.names:
            self._report(dataset.opt["name"], result, metrics, current_iter, tb_logger)
        if unreadable:
            raise InputError(
                f"{dataset.opt['name']}: {len(unreadable)} of {len(dataset)} images could not be read and are left out "
                f"of results and metrics, first: {unreadable[0]}"
            )

    def _picture_path(self, dataset: Any, name: str, current_iter: Any) -> Path:
        folder = Path(self.opt["path"]["visualization"])
        if self.is_train:
            return folder / name / f"{name}_{current_iter}.png"
        suffix = ValOptions.of(self.opt.get("val")).suffix or self.opt["name"]
        return folder / dataset.opt["name"] / f"{name}_{suffix}.png"

    def _report(
        self,
        dataset_name: str,
        scores: measuring.Scores,
        metrics: dict[str, Any],
        current_iter: Any,
        tb_logger: Any,
    ) -> None:
        if self.opt["rank"] != 0:
            return
        lines = [
            f"Validation {dataset_name}: {len(scores.names)} images, {scores.seconds / len(scores.names):.2f} s/image"
        ]
        left_out = metrics.keys() - scores.values[0].keys()
        metrics = {name: opt for name, opt in metrics.items() if name not in left_out}
        if metrics:
            self._initialize_best_metric_results(dataset_name)
            for name, opt in metrics.items():
                value = scores.mean(name)
                self._update_best_metric_result(dataset_name, name, value, current_iter)
                best = self.best_metric_results[dataset_name][name]
                lines.append(
                    f"\t # {name} ({protocol(opt)}): {value:.4f}"
                    + (f"\tBest: {best['val']:.4f} @ {best['iter']} iter" if self.is_train else "")
                )
                if tb_logger:
                    tb_logger.add_scalar(f"metrics/{dataset_name}/{name}", value, current_iter)
            if self.is_train:
                row = {name: scores.mean(name) for name in metrics}
                record = {"iter": current_iter, "dataset": dataset_name, **row}
                scores.write_csv(Path(self.opt["path"]["log"]) / f"validation_{dataset_name}.csv")
                append_record(Path(self.opt["path"]["log"]) / "validation.jsonl", record)
                self.card_files.measured(self.evaluated_net, current_iter)
            else:
                scores.write_csv(Path(self.opt["path"]["results_root"]) / f"{dataset_name}.csv")
        if left_out:
            lines.append(f"\t (no ground truth: left out {', '.join(sorted(left_out))}, which compare with it)")
        logger.info("\n".join(lines))

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """The best values so far: of a run that was resumed, or went back after an alert, those in its record."""
        if dataset_name in self.best_metric_results:
            return
        super()._initialize_best_metric_results(dataset_name)
        for row in read_records(Path(self.opt["path"]["log"]) / "validation.jsonl") if self.is_train else []:
            for name in self.best_metric_results[dataset_name]:
                if row.get("dataset") == dataset_name and name in row:
                    self._update_best_metric_result(dataset_name, name, row[name], row["iter"])

    # Saving

    def save(self, epoch: int, current_iter: int) -> None:
        refuse_broken_weights(self.get_bare_model(self.net_g), current_iter)
        if self.net_g_ema is not None:
            nets = [self.net_g, self.net_g_ema]
            self.save_network(nets, "net_g", current_iter, param_key=["params", "params_ema"])  # pyright: ignore
        else:
            self.save_network(self.net_g, "net_g", current_iter)
        self.card_files.save(self.evaluated_net, current_iter, averaged=self.net_g_ema is not None)
        self.save_others(current_iter)
        self.batches.save(current_iter)
        save_sums(self._sums, self.opt, current_iter)
        if self.scaled:
            save_scale(self.scaled.state(), self.opt, current_iter)
        gathered(None)  # a state is there when all that every rank keeps beside it is
        self.save_training_state(epoch, current_iter)

    def save_others(self, current_iter: int) -> None:
        """Save what a stage trains beside `net_g`, before the training state is written."""


# Training of any network that makes a restored picture of a degraded one.


class PlainModel(RestorationModel):
    """Trains a network that is called as net(lq), such as those of BasicSR's registry, on pixel and perceptual losses.

    Validation, test and what is saved are those of every model of this package: the moving average is measured, and
    the saved file says which network it holds.
    """

    OPTIONS = ()

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        restored = self.run_network(self.lq)
        return self.image_losses(restored), self.colour_shift(restored)
