"""The `[system]` table of every kind of system. Each owner's keys stand here, documented.

`rounds` and `phases` are common: a round opens `phases` sums, one after the other.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[FiniteFloat, Field(ge=0)]
Rate = Annotated[FiniteFloat, Field(gt=0)]
Participation = Annotated[FiniteFloat, Field(gt=0, le=1)]


class Table(BaseModel):
    """A frozen table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _System(Table):
    """What every system has."""

    rounds: Positive = 2

    @property
    def phases(self) -> int:
        """How many sums a round opens, one after the other; a table with several overrides it."""
        return 1

    @property
    def asks_proxies(self) -> bool:
        """Whether public images are asked; a table of such a system overrides it."""
        return False

    @property
    def starts_public(self) -> bool:
        """Whether networks start from `models.pretrain_epochs` on the public natural images."""
        return False


class NatImg(_System):
    """NatIMG-FL: every weight set to 0 or part set to "off" is an ablation."""

    kind: Literal["natimg-fl"] = "natimg-fl"
    rounds: Positive = 2
    local_epochs: Positive = 4
    """Epochs of each personal model in each round."""
    head_steps: Positive = 60
    distill_epochs: Positive = 6
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 2.0
    natural_weight: Weight = 1.0
    alignment_weight: Weight = 0.5
    distillation_weight: Weight = 1.0
    beta: Literal["uniform", "entropy", "natural", "class"] = "natural"
    """Fine-grained upward weight: per sample, or per sample × class ("class")."""
    alpha: Literal["equal", "size"] = "size"
    alpha_max: Annotated[int, Field(ge=1, le=16)] = 4
    downward: Literal["off", "constant", "reliability"] = "reliability"
    heads: Literal["group", "single"] = "group"

    @property
    def asks_proxies(self) -> bool:
        """Natural images carry all that is shared."""
        return True


class Summing(_System):
    """What systems that learn from sums of updates share."""

    participation: Participation = 1.0
    """Share of a group's sites that take part in a round, drawn anew each round, in public."""
    alpha: Literal["equal", "size"] = "size"
    alpha_max: Annotated[int, Field(ge=1, le=16)] = 4
    """Largest weight of a site, in those of the smallest site of its group."""
    local_epochs: Positive = 1
    """Epochs over a site's training images in each round."""
    learning_rate: Rate = 1e-3
    """Largest rate of the local optimiser, which warms up and cools down in every round."""

    @property
    def starts_public(self) -> bool:
        """Whatever the privacy mechanism is, so that mechanisms differ by nothing else."""
        return True


class FedAvg(Summing):
    """FedAvg (McMahan et al. 2017), and by its keys FedProx and FedBN."""

    kind: Literal["fedavg"] = "fedavg"
    rounds: Positive = 10
    proximal: Weight = 0.0
    """FedProx (Li et al. 2020): µ/2 times the squared distance from the shared weights."""
    keep_norms: bool = False
    """FedBN (Li et al. 2021): normalisation layers stay at the site, statistics and all."""


class PublicPack(Table):
    """An npz pack of public images that join the unlabelled pool of the proxies."""

    path: str
    without: list[str] = []
    """Classes of the pack that are left out."""


class UniMed(Summing):
    """UniMed: one encoder of many tasks; `models.pretrain_epochs` are of masked public images."""

    kind: Literal["unimed"] = "unimed"
    rounds: Positive = 4
    """Stages: in each, a cohort of tasks adds what it knows to the encoder."""
    alpha: Literal["equal", "size"] = "equal"
    merge: Literal["param_avg", "feature_distill"] = "param_avg"
    """What is summed: the encoders' changes, or their features of public images."""
    mask: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.75
    """Share of an image's patches that are hidden in masked image modelling."""
    pool: list[PublicPack] = []
    joins: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Hospital → the stage from which its task takes part, from 1; 0: never, it is held out."""
    local_epochs: Positive = 2
    """Epochs of a site in each stage."""
    learning_rate: Rate = 1e-3
    """Largest rate at the sites in the stages."""
    tune_rate: Rate = 1e-3
    """Largest rate of the fine-tuning after the last stage."""
    anchor: Weight = 0.0
    """Knowledge accumulation: weight of half the squared distance to the last stage's encoder."""
    distill_epochs: Positive = 6
    """Of `feature_distill`: the server's epochs over the public images that were asked."""
    masked_weight: Weight = 0.1
    """Of `feature_distill`: weight of masked image modelling beside the features."""
    tune_epochs: Annotated[int, Field(ge=0)] = 6
    """Epochs of every site's own model on the last encoder; 0: a linear probe."""

    @property
    def asks_proxies(self) -> bool:
        """Public images are the unlabelled pool, and of `feature_distill` what is asked."""
        return True


class FedMic(Summing):
    """FedMIC: `models.central` is the shared student, a site's architecture its private teacher."""

    kind: Literal["fedmic"] = "fedmic"
    rounds: Positive = 10
    local_epochs: Positive = 1
    """Epochs of teacher and student over a site's training images in each round."""
    learning_rate: Rate = 2e-3
    decisions: bool = True
    """Teacher and student learn from each other's answers."""
    representations: bool = True
    """Teacher and student learn from each other's features."""
    compression: Literal["power_secure", "svd_plain", "off"] = "power_secure"
    """"power_secure" adds up under encryption; "svd_plain", as published, only in simulation."""
    rank: Positive = 4
    """Of "power_secure": directions of each layer's update, the same in every round."""
    rank_rule: Literal["energy", "aic"] = "energy"
    """Of "svd_plain": how many singular values each client sends."""
    energy_start: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.95
    """Share of an update's square that "energy" keeps at the beginning, and by the last round:"""
    energy_end: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.98

    @property
    def phases(self) -> int:
        """The summable form needs two: the shared basis first, then the updates in it."""
        return 2 if self.compression == "power_secure" else 1


class PppmlHmi(Summing):
    """PPPML-HMI: Per-FedAvg, summed around a ring, and a few own steps at every site."""

    kind: Literal["pppml-hmi"] = "pppml-hmi"
    rounds: Positive = 10
    local_epochs: Positive = 1
    """Passes over a site's training images in each round; a step takes two batches of them."""
    order: Literal["first", "hessian-free"] = "first"
    """Whether the gradient after the own step leaves the Hessian out, or has its product."""
    inner_rate: Rate = 0.05
    """α, of an own step: plain gradient descent. Under dp-sgd only α/β is heeded."""
    learning_rate: Rate = 1e-3
    """β, of the shared weights. Under dp-sgd the rate stands in the privacy table."""
    optimiser: Literal["sgd", "adam"] = "adam"
    """What moves the shared weights along the gradient; it starts afresh in every round."""
    own_steps: Annotated[int, Field(ge=0)] = 20
    """K: own steps of rate α from the shared weights, after every round; nothing of them is sent.
    """
    validation_folds: Literal[0] | Annotated[int, Field(ge=2)] = 5
    """One part in so many of a site's training patients trains nothing and chooses among the own
    steps, 0 to K; 0: all images train, and all K are taken."""


class Distilled(Summing):
    """Baselines that distil: FedMD, FedDF, DS-FL and FedAUX, each by its published rule."""

    kind: Literal["distilled"] = "distilled"
    method: Literal["fedmd", "feddf", "ds-fl", "fedaux"] = "fedmd"
    rounds: Positive = 3
    alpha: Literal["equal", "size"] = "equal"
    distill_epochs: Positive = 6
    """Epochs over the public images of a round, at the sites or at the server."""
    distill_rate: Rate = 1e-3
    """Largest rate of the optimiser that fits the answers."""
    sharpening: Annotated[FiniteFloat, Field(gt=0)] = 0.1
    """Of "ds-fl": the temperature on the mean of probabilities; below 1 it takes entropy away."""
    certainty_decay: Annotated[FiniteFloat, Field(gt=0)] = 0.01
    """Of "fedaux": λ of the regression of local against public, per record."""

    @property
    def phases(self) -> int:
        """A shared student takes two: the mean of its weights, then the answers that teach it."""
        return 2 if self.method in ("feddf", "fedaux") else 1

    @property
    def asks_proxies(self) -> bool:
        """Answers on public images are what is shared."""
        return True


System = Annotated[
    NatImg | FedAvg | UniMed | FedMic | PppmlHmi | Distilled, Field(discriminator="kind")
]
