"""Training of AutoDIR in three stages: assessor, diffusion, correction. Each stage trains its part only."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffir_sr.archs.autodir_arch import AutoDIR
from diffir_sr.archs.autodir_assessor import CATEGORIES, CLEAN, confusion_table, mixed, prompt_of
from diffir_sr.data.records import append_record
from diffir_sr.diffusion.noise import Noise
from diffir_sr.diffusion.sampling import dropped
from diffir_sr.errors import InputError, OptionError
from diffir_sr.files.atomic import save_text
from diffir_sr.losses import semantic_agnostic_loss
from diffir_sr.models import validation as measuring
from diffir_sr.models.distributed import gathered
from diffir_sr.models.restoration_model import Losses, RestorationModel
from diffir_sr.option_types import Found, NotNegative, Number, Section, View, Whole
from diffir_sr.options.schema import ValOptions

logger = logging.getLogger("basicsr")


class StageOptions(Section):
    """Inference in validation."""

    steps: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(None, description="Steps of the sampler.")
    structure: Number | None = Field(None, description="Factor on the correction; 0 shows the diffusion alone.")
    assess: bool = Field(
        False, description="Whether the assessor chooses the degradations; by default the dataset's labels do."
    )


def is_autodir(view: View, at: tuple[str, ...]) -> Found:
    """All stages train AutoDIR."""
    if view.get("network_g", "type", default="AutoDIR").removesuffix("_basicsr") != "AutoDIR":
        yield ("network_g", "type"), f"{view.model} trains AutoDIR, found {view.get('network_g', 'type')!r}"


class _Stage(RestorationModel):
    """Base of the stages: one network, of which a part is trained, and labelled pairs."""

    VAL_OPTIONS: ClassVar[Any] = StageOptions
    RULES = (is_autodir,)
    NETWORK_G: ClassVar[str] = "AutoDIR"

    def __init__(self, opt: dict[str, Any]) -> None:
        self.label: Tensor | None = None
        super().__init__(opt)

    @property
    def system(self) -> AutoDIR:
        """The network without wrappers."""
        net = self.get_bare_model(self.net_g)
        if not isinstance(net, AutoDIR):
            raise OptionError(f"network_g: {type(self).__name__} trains AutoDIR, found {type(net).__name__}")
        return net

    def learning(self, system: AutoDIR) -> list[nn.Module]:
        """The parts to train."""
        raise NotImplementedError

    def setup_optimizers(self) -> None:
        system = self.system.eval().requires_grad_(False)
        for part in self.learning(system):
            part.train().requires_grad_(True)
        weights = [weight for weight in system.parameters() if weight.requires_grad]
        self.optimizer_g = self.optimizer_of(weights, "optim_g")
        self.optimizers.append(self.optimizer_g)

    def feed_data(self, data: dict[str, Any]) -> None:
        super().feed_data(data)
        self.label = data["label"].to(self.device) if "label" in data else None

    def labels(self) -> Tensor:
        """One-hot labels (B, 8) of the batch; raises InputError for a dataset without."""
        if self.label is None:
            raise InputError(
                f"{type(self).__name__} needs a dataset with labels of the degradations: LabelledPairsDataset"
            )
        return F.one_hot(self.label, len(CATEGORIES)).float()

    def clean(self) -> Tensor:
        assert self.gt is not None  # a training dataset has ground truth
        return self.gt

    def states(self, system: AutoDIR) -> Tensor:
        """Prompt states (9, T, D) of the categories and, last, of the empty prompt, encoded as in training."""
        with torch.no_grad():
            return system.assessor.text([*map(prompt_of, CATEGORIES), ""], mask_pads=True)[0]

    def restored(self, net: nn.Module) -> Tensor:
        if isinstance(net, AutoDIR):
            given = StageOptions.of(self.opt.get("val"))
            known = None if given.assess or self.label is None else [CATEGORIES[int(self.label[0])]]
            if known == [CLEAN]:
                known = None
            net.adjust(steps=given.steps, structure=given.structure, degradations=known)
        return super().restored(net)


class AssessorOptions(Section):
    """Training of the assessor."""

    semantic_agnostic_weight: NotNegative = Field(
        1.0, description="Weight of the probability of the degradation in the clean counterpart of a picture."
    )
    clean_weight: NotNegative = Field(
        0.0, description="Weight of the loss on the ground truth of degraded pictures, whose category is no."
    )
    train_text: bool = Field(
        False, description="Whether the text tower is trained, too; published towers need no training."
    )


class AutoDIRAssessorModel(_Stage):
    """Stage 1: training of the assessor. `train.pixel_opt` is FidelityLoss or CategoryCrossEntropy."""

    TITLE: ClassVar[str] = "the assessor's stage"
    OPTIONS: ClassVar[Any] = AssessorOptions

    def learning(self, system: AutoDIR) -> list[nn.Module]:
        clip = system.assessor.clipmodel
        parts = [clip.vision_model, clip.visual_projection]
        if AssessorOptions.of(self.opt["train"]).train_text:
            parts = [clip]  # including the scale of the logits
        return parts

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        assert self.cri_pix is not None  # perceptual losses make no sense here
        labels, given = self.labels(), AssessorOptions.of(self.opt["train"])
        p = self.run_network(self.lq)
        losses: Losses = {"l_category": self.cri_pix(p, labels)}
        faulty = self.label != CATEGORIES.index(CLEAN)
        if (given.semantic_agnostic_weight or given.clean_weight) and bool(faulty.any()):
            clean = self.run_network(self.clean()[faulty])
            if given.semantic_agnostic_weight:
                losses["l_agnostic"] = given.semantic_agnostic_weight * semantic_agnostic_loss(clean, labels[faulty])
            if given.clean_weight:
                nothing = F.one_hot(torch.full((len(clean),), CATEGORIES.index(CLEAN)), len(CATEGORIES))
                losses["l_clean"] = given.clean_weight * self.cri_pix(clean, nothing.to(clean))
        right = (p.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
        return losses, {"right": right}

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Classify every picture and its ground truth, and log the confusion table."""
        dataset, net = dataloader.dataset, self.evaluated_net
        was_training = net.training
        net.eval()
        rank, world = self.opt["rank"], self.opt["world_size"]
        progress = ValOptions.of(self.opt.get("val")).pbar
        called: dict[int, tuple[str, dict[str, float]]] = {}
        try:
            for index, batch in measuring.samples(dataset, rank=rank, world_size=world, progress=progress):
                self.feed_data(batch)
                truth = int(self.labels().argmax())
                with torch.inference_mode():
                    predicted = net(self.lq).argmax(dim=1).item()
                    clean = None if self.gt is None else net(self.gt).argmax(dim=1).item()
                called[index] = ("", {"truth": truth, "predicted": predicted, "clean": -1 if clean is None else clean})
        finally:
            net.train(was_training)
            for part in self.learning(self.system) if self.is_train else []:
                part.train()
        scores = measuring.joined(gathered(called))
        if self.opt["rank"] == 0 and scores.values:
            self._tell(dataset.opt["name"], scores.values, current_iter)

    def _tell(self, name: str, rows: list[dict[str, float]], current_iter: Any) -> None:
        table = torch.zeros(len(CATEGORIES), len(CATEGORIES), dtype=torch.long)
        for row in rows:
            table[int(row["truth"]), int(row["predicted"])] += 1
            if row["clean"] >= 0:
                table[CATEGORIES.index(CLEAN), int(row["clean"])] += 1
        faulty = table[: len(CATEGORIES) - 1]
        shares = {
            "accuracy": float(faulty.diagonal().sum() / faulty.sum()),
            "clean_accuracy": float(table[-1, -1] / table[-1].sum().clamp(min=1)),
        }
        logger.info(
            f"Validation {name}: {len(rows)} degraded pictures, {shares['accuracy']:.1%} named right; of their ground "
            f"truth {shares['clean_accuracy']:.1%} found clean\n{confusion_table(table)}"
        )
        if self.is_train:
            log = Path(self.opt["path"]["log"])
            append_record(log / "validation.jsonl", {"iter": current_iter, "dataset": name, **shares})
            self.card_files.measured(self.evaluated_net, current_iter)
        else:
            log = Path(self.opt["path"]["results_root"])
        about = {
            "categories": CATEGORIES,
            "rows: true category, columns: predicted": table.tolist(),
            **shares,
        }
        save_text(json.dumps(about, indent=1) + "\n", log / f"confusion_{name}.json")


class DropoutOptions(Section):
    """Training of the diffusion and of the correction."""

    cfg_dropout: Literal["independent", "shared", "none"] = Field(
        "independent",
        description="How text and picture are dropped in 10 % of the samples each: independently (published), or by "
        "one shared draw; none drops nothing, for a network that is used without guidance.",
    )


class DiffusionOptions(DropoutOptions):
    """Training of the diffusion."""

    relative_loss: bool = Field(
        False,
        description="Divide what the network answers and what is sought, in each sample, by the mean magnitude of the "
        "latter. Without it a degradation that changes every pixel by much, such as darkness, determines how a small "
        "network learns, and blur or noise, where little is to do, come last. For `prediction: residual` or "
        "`difference`.",
    )


_LEAST = 0.02  # of the range [-1, 1]: magnitudes below it count as this


class AutoDIRDiffusionModel(_Stage):
    """Stage 2: training of the U-Net to predict the noise in restored latents. `train.pixel_opt` is its loss."""

    TITLE: ClassVar[str] = "the diffusion's stage"
    MADE_BY: ClassVar[Mapping[str, str]] = {"network_g": "AutoDIRAssessorModel"}
    OPTIONS: ClassVar[Any] = DiffusionOptions

    def learning(self, system: AutoDIR) -> list[nn.Module]:
        return [system.diffusion.unet]

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        assert self.cri_pix is not None
        noisy, condition, t, context, eps, clean = self.prepared(self.noise_at(current_iter))
        diffusion = self.system.diffusion
        found = self.answer(noisy, condition, t, context)
        sought = diffusion.sought(clean, eps, t, condition)
        if DiffusionOptions.of(self.opt["train"]).relative_loss:
            magnitude = sought.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=_LEAST)
            found, sought = found / magnitude, sought / magnitude
        return {"l_noise": self.cri_pix(found, sought)}, {}

    def answer(self, noisy: Tensor, condition: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The U-Net's prediction in the precision of `train.autocast`."""
        from diffir_sr.models.optimization import Acceleration, in_precision

        autocast = Acceleration.of(self.opt["train"]).autocast
        return in_precision(lambda: self.system.diffusion(noisy, condition, t, context), autocast, self.device)

    def prepared(self, noise: Noise, *, t_max: int | None = None) -> tuple[Tensor, ...]:
        """Noisy latents, condition, t, prompt states after dropout, eps and clean latents of the batch."""
        system = self.system
        diffusion, labels, count = system.diffusion, self.labels(), len(self.lq)
        uniform = torch.special.ndtr(noise.normal((count, 3), "draws").double())
        with torch.no_grad():
            mean, _ = diffusion.latents.moments(2 * self.clean() - 1)
            clean = diffusion.target(2 * self.clean() - 1, noise.normal(mean.shape, "posterior").to(mean))
            condition = diffusion.condition(2 * self.lq - 1)
        last = len(system.sigmas.kept) if t_max is None else t_max
        t = (uniform[:, 2] * last).long().clamp(max=last - 1).to(self.device)
        eps = noise.normal(clean.shape, "eps").to(clean)
        how = DropoutOptions.of(self.opt["train"]).cfg_dropout
        no_text, no_picture = (one.to(self.device) for one in dropped(uniform[:, :2], how=how))
        states = self.states(system)
        context = torch.where(no_text[:, None, None], states[-1:], mixed(labels, states[:-1]))
        condition = torch.where(no_picture[:, None, None, None], torch.zeros_like(condition), condition)
        return diffusion.q_sample(clean, eps, t), condition, t, context, eps, clean


class CorrectionOptions(Section):
    """Training of the correction."""

    scm_t_max: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        1000,
        description="Upper bound of t. At the published 1000, one-step estimates from almost pure noise are useless.",
    )


class AutoDIRCorrectionModel(AutoDIRDiffusionModel):
    """Stage 3: training of the correction on one-step estimates of the diffusion from noisy latents."""

    TITLE: ClassVar[str] = "the correction's stage"
    MADE_BY: ClassVar[Mapping[str, str]] = {"network_g": "AutoDIRDiffusionModel"}
    OPTIONS: ClassVar[Any] = CorrectionOptions

    def learning(self, system: AutoDIR) -> list[nn.Module]:
        return [system.correction]

    def compute_losses(self, current_iter: int) -> tuple[Losses, Losses]:
        assert self.cri_pix is not None
        system, t_max = self.system, CorrectionOptions.of(self.opt["train"]).scm_t_max
        with torch.no_grad():
            noisy, condition, t, context, _, _ = self.prepared(self.noise_at(current_iter), t_max=t_max)
            found = self.answer(noisy, condition, t, context)
            made = system.diffusion.pictures(system.diffusion.cleaned(noisy, found, t, condition))
        gt = 2 * self.clean() - 1
        corrected = system.correction(2 * self.lq - 1, made)
        return {"l_pix": self.cri_pix(corrected, gt)}, {"l_before": F.mse_loss(made, gt)}
