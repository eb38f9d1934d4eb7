"""FedMIC, reconstructed: a private teacher, a small shared student, and updates of low rank.

Source: Ren, Hu, Chen and Wang, "FedMIC", arXiv 2407.02261. Only its abstract is public here, and
no code is known, so this is a *reconstruction* from it and from its lineage, FedKD (Wu et al. 2022,
Nature Communications 13:2032); none of the paper's figures is claimed.

(1) Dual distillation: at every site the shared student learns from labels and from a teacher that
never leaves; once it came back with what all sites know, the teacher learns from it. Both in
decisions and in representations. The site answers with its teacher.
(2) Global parameter decomposition: what the student learned is sent at low rank. "svd_plain" is the
published form, a rank per client, matrix and direction, which only a server that sees each client's
factors can use; "power_secure" says as much in two sums that reveal Σα·M of rank r and no more.

With noise in training (dp-sgd) the student is trained under it on labels alone: no noise covers
the teacher, which may learn from the student and never speak through it.

This file knows nothing of keys, noise or messages.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from protocols.errors import ConfigError, PrivacyError
from protocols.quantize import Layout, Segment
from secure_natfl import config as tables
from secure_natfl.config import Config, DpSgd
from secure_natfl.deep_training import train_layers, trained_names, trained_parameters
from secure_natfl.dp_training import Cohort, Recipe
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.dual_distillation import Lessons, Pair, learn
from secure_natfl.methods.low_rank import (
    Matrix,
    RankRule,
    SharedBasis,
    energy_at,
    flattened,
    orthonormal,
    rank_by_aic,
    rank_by_energy,
    reduced,
)
from secure_natfl.methods.plain_models import Plain, parameter_count, started
from secure_natfl.seeds import Seeds
from secure_natfl.surgery import fitted, frozen
from secure_natfl.system_tables import FedMic as Table
from secure_natfl.systems.cohorts import declared_weights, drawn_cohort
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import SITE, Phase, Rows, Summed, Trait, Vector
from secure_natfl.training import Schedule, features_of

RECONSTRUCTION = (
    "FedMIC (Ren, Hu, Chen and Wang, arXiv:2407.02261), a reconstruction from the abstract and "
    "from FedKD, its lineage: losses, ranks and networks are this project's reading, and none of "
    "the paper's figures is claimed."
)
Matrices = dict[str, Matrix]

_LEFT: Final = "left"
_RIGHT: Final = "right"
_WHOLE: Final = "update"
_MEMORY: Final = "memory"


class FedMic:
    """The system, as `SummedSystem` describes it.

    students: group → the shared student. pairs: site → its teacher, beside the student that it
    trained last. kept: what else goes from phase to phase, by a path of its names: bases of a
    group, "left/GROUP/layer" and "right/GROUP/layer"; a site's "site/NAME/update/layer" of this
    round, and what it could not say yet, "site/NAME/memory/layer".
    """

    name = "fedmic"
    reconstruction = RECONSTRUCTION

    def __init__(self, config: Config, federation: Federation, seeds: Seeds) -> None:
        if not isinstance(config.system, Table):
            raise ConfigError(f"the table is of {config.system.kind}", where="system.kind")
        self.options, self.config = config.system, config
        self.federation, self.seeds = federation, seeds
        student = self._network(config.models.central)
        self.students = {group: copy.deepcopy(student) for group in federation.groups}
        self.pairs = {
            site.name: Pair(
                self._network(site.architecture),
                copy.deepcopy(student),
                seeds.torch("bridge", site.name),
            )
            for site in federation.sites
        }
        shapes = {name: tuple(p.shape) for name, p in self._shared(student).items()}
        self.basis = SharedBasis.of(shapes, self.options.rank)
        self.kept: Matrices = {}
        for group in federation.groups:
            draw = np.random.default_rng(seeds.integer("basis", group))
            self._keep(self.basis.drawn(draw), _RIGHT, group)
        self._numbers = {"up": 0, "down": 0}

    # What is agreed before a round.

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """Two sums of thin matrices; of the other forms one, of all weights."""
        del round_number
        first, second = self.basis.left_layout, self.basis.right_layout
        if self._summable and second is not None:
            return Phase(_LEFT, first), Phase(_RIGHT, second)
        shapes = self.basis.shapes
        dense = Layout(tuple(Segment(s.name, s.rows, s.columns) for s in shapes))
        return (Phase(_WHOLE, dense),)

    def asked(self, round_number: int, phase: str) -> Rows:
        """No public image is asked."""
        del round_number, phase
        return np.zeros(0, dtype=np.int64)

    def cohort(self, round_number: int) -> tuple[str, ...]:
        """The configured share of each group, drawn anew each round."""
        fewest = self.config.aggregation.min_participants
        return drawn_cohort(
            self.options, self.federation, self.group_of, round_number, self.seeds, fewest
        )

    def group_of(self, site: Site) -> str:
        """Sites of a group share one student."""
        return site.group

    def weights(self) -> dict[str, int]:
        """α from declared sizes."""
        return declared_weights(self.options, self.federation, self.group_of)

    def trained_parameters(self, site: Site) -> int:
        """Under noise the student's layers train, and nothing of the teacher."""
        del site
        table = self.config.privacy
        if not isinstance(table, DpSgd):
            return 0
        classes, size = len(self.federation.task.classes), self.config.data.size
        return trained_parameters(self.config.models.central, size, classes, table.layers)

    # A round.

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """Train, then send M·Q [m, r] of every layer; then Mᵀ·P̂ [n, r] for the basis of all.

        M is what the student learned and what the site could not say before. Without a summable
        form M itself, at the site's own ranks where it is "svd_plain".
        """
        mine = SITE.rstrip("/"), site.name
        if phase == _RIGHT:
            update, left = self._kept(*mine, _WHOLE), self._kept(_LEFT, site.group)
            self._keep(self.basis.unsaid(update, left), *mine, _MEMORY)
            return self._packed(1, self.basis.right_sums(update, left))
        update = self._trained(site, round_number, begin)
        if self._summable:
            memory = self._kept(*mine, _MEMORY)
            update = {name: m + memory.get(name, 0.0) for name, m in update.items()}
            self._keep(update, *mine, _WHOLE)
            update = self.basis.left_sums(update, self._kept(_RIGHT, site.group))
        elif self.options.compression == "svd_plain":
            update, self._numbers["up"] = reduced(update, self._rule(round_number))
        return self._packed(0, update)

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """The first sum becomes the basis P̂, the second the update; other forms are the update.

        The basis of a group that was not opened is zero: nothing is said in it, and all kept.
        """
        for group in self.students:
            if group in sums:
                self._take_up(group, sums[group].mean, round_number, phase)
            elif phase == _LEFT:
                zero = {s.name: np.zeros((s.rows, s.rank)) for s in self.basis.factored}
                self._keep(zero, _LEFT, group)

    def personalise(self, site: Site, round_number: int) -> float | None:
        """The teacher learns from labels and from the student that came back; its loss.

        Sites outside the cohort do so too: they received the student, and send nothing.
        """
        return self._learn("teacher", site, round_number)

    # What comes of it.

    def answering(self, site: Site) -> nn.Module:
        """The site's private teacher."""
        return self.pairs[site.name].teacher.eval()

    def central(self, site: Site) -> nn.Module | None:
        """The shared student."""
        return self.students[site.group].eval()

    def state(self) -> dict[str, Tensor]:
        """Students, bases, and of every site its teacher, bridge, update and memory."""
        found = {name: torch.from_numpy(matrix) for name, matrix in self.kept.items()}
        for path, module in self._modules().items():
            found |= {f"{path}/{name}": value for name, value in module.state_dict().items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        modules = self._modules()
        for path, module in modules.items():
            module.load_state_dict(_below(f"{path}/", state))
        others = {n: v for n, v in state.items() if not n.startswith(tuple(modules))}
        self.kept = {name: value.numpy() for name, value in others.items()}

    def parts(self) -> dict[str, bool]:
        """What is on and off."""
        return {
            "distillation of decisions": self.options.decisions,
            "distillation of representations": self.options.representations,
            "the student learns from the teacher": not self._private,
            "parameter decomposition": self.options.compression != "off",
            "error feedback": self._summable,
        }

    def traits(self) -> dict[str, Trait]:
        """Sizes, and the numbers that a site sends and receives in a round."""
        student = parameter_count(next(iter(self.students.values())))
        teacher = max(parameter_count(pair.teacher) for pair in self.pairs.values())
        up = down = self.basis.numbers
        if not self._summable:
            up, down = (self._numbers[way] or student for way in ("up", "down"))
        return {
            "student parameters": student,
            "teacher parameters": teacher,
            "numbers sent per round": up,
            "numbers received per round": down,
            "compression ratio": student / up,
            "averaged teachers would send, times as much": teacher / up,
        }

    # Within.

    @property
    def _summable(self) -> bool:
        return self.options.compression == "power_secure"

    @property
    def _private(self) -> bool:
        """Whether noise in the training covers the student."""
        return isinstance(self.config.privacy, DpSgd)

    def _network(self, architecture: str) -> Plain:
        """The public start of an architecture, without statistics that a batch would move."""
        made = started(self.config, self.federation, architecture, self.federation.task, self.seeds)
        if not isinstance(made, Plain):
            raise ConfigError(
                "FedMIC tells classes of flat images apart",
                where=architecture,
                fix="for masks and volumes take pppml-hmi",
            )
        models = self.config.models
        learned = models.pretrain_epochs > 0 or models.weights != "none"
        inner = made.network
        inner.backbone = frozen(inner.backbone) if learned else fitted(inner.backbone)
        return made

    def _shared(self, student: nn.Module) -> dict[str, nn.Parameter]:
        """What is sent of a student: its weights, or those of them that train under noise."""
        found = dict(student.named_parameters())
        table = self.config.privacy
        if isinstance(table, DpSgd) and isinstance(student, Plain):
            names = trained_names(student.network, table.layers)
            return {f"network.{name}": found[f"network.{name}"] for name in names}
        return {name: p for name, p in found.items() if not name.startswith("network.natural.")}

    def _modules(self) -> dict[str, nn.Module]:
        """Path of names → what has weights that go on."""
        found: dict[str, nn.Module] = {f"student/{g}": s for g, s in self.students.items()}
        for site, pair in self.pairs.items():
            found |= {f"site/{site}/teacher": pair.teacher, f"site/{site}/bridge": pair.bridge}
        return found

    def _keep(self, matrices: Mapping[str, Matrix], *path: str) -> None:
        self.kept |= {"/".join((*path, name)): matrix for name, matrix in matrices.items()}

    def _kept(self, *path: str) -> Matrices:
        return _below("/".join((*path, "")), self.kept)

    def _packed(self, phase: int, matrices: Mapping[str, Matrix]) -> Vector:
        return self.phases(0)[phase].layout.pack(matrices)

    def _take_up(self, group: str, mean: Vector, round_number: int, phase: str) -> None:
        """The student, or the basis, of a group takes up one opened mean."""
        number = 1 if phase == _RIGHT else 0
        found = self.phases(round_number)[number].layout.unpack(mean)
        if phase == _LEFT:
            thin = {s.name: orthonormal(found.pop(s.name)) for s in self.basis.factored}
            self._keep(thin, _LEFT, group)
        elif phase == _RIGHT:
            self._keep({name: orthonormal(m) for name, m in found.items()}, _RIGHT, group)
            found = self.basis.rebuilt(self._kept(_LEFT, group), found)
        elif self.options.compression == "svd_plain":
            found, self._numbers["down"] = reduced(found, self._rule(round_number))
        weights = self._shared(self.students[group])
        with torch.no_grad():
            for name, matrix in found.items():
                weights[name].add_(torch.from_numpy(matrix).view_as(weights[name]))

    def _rule(self, round_number: int) -> RankRule:
        """How many singular values a client, and the server, keep in a round."""
        if self.options.rank_rule == "aic":
            return rank_by_aic
        ends = self.options.energy_start, self.options.energy_end
        return rank_by_energy(energy_at(round_number, self.options.rounds, *ends))

    def _trained(self, site: Site, round_number: int, begin: Begin | None) -> Matrices:
        """What the student learns at a site: layer → matrix, after less before."""
        student = self.pairs[site.name].student
        if self._private:
            student.load_state_dict(self.students[site.group].state_dict())
            self._train_noisily(student, site, round_number, begin)
        else:
            self._learn("student", site, round_number)
        before, after = (self._shared(one) for one in (self.students[site.group], student))
        return {
            name: flattened((p.detach().double() - before[name].detach().double()).numpy())
            for name, p in after.items()
        }

    def _learn(self, who: Literal["teacher", "student"], site: Site, round_number: int) -> float:
        """One of a site's pair learns from the shared student as it is, or goes on from it."""
        pair, options = self.pairs[site.name], self.options
        pair.student.load_state_dict(self.students[site.group].state_dict())
        schedule = Schedule(
            options.local_epochs,
            max(2, self.config.models.batch // 2),
            options.learning_rate * falling(round_number, options.rounds),
        )
        lessons = Lessons(options.decisions, options.representations)
        draw = self.seeds.torch(who, site.name, round_number)
        return learn(pair, who, site.train, lessons, schedule, draw)

    def _train_noisily(
        self, student: Plain, site: Site, round_number: int, begin: Begin | None
    ) -> None:
        """The student alone, on labels alone, under noise that `begin` charges for; in place."""
        table, naturals = self.config.privacy, self.federation.naturals.images
        if begin is None or not isinstance(table, DpSgd):
            raise PrivacyError("training under noise without a charge", where=site.name)
        train_layers(
            student.network,
            table.layers,
            naturals,
            features_of(student.network.backbone, naturals),
            Cohort.of_patients(site.train, site.train_patients),
            begin,
            Recipe(
                rate=table.learning_rate,
                momentum=0.0,
                images=table.max_images_per_patient,
                average=0.0,
            ),
            multi_label=site.train.multi_label,
            random=self.seeds.protective(os.urandom, "drawn images", site.name, round_number),
        )


def make(config: Config, federation: Federation, seeds: Seeds) -> FedMic:
    """The system; ConfigError where mechanism, aggregation or networks do not fit it."""
    made, privacy = FedMic(config, federation, seeds), config.privacy
    in_clear = isinstance(config.aggregation, tables.Plain) and isinstance(privacy, tables.NoNoise)
    if made.options.compression == "svd_plain" and not in_clear:
        raise ConfigError(
            'factors of single clients do not add up: "svd_plain" is a simulation',
            where="system.compression",
            fix='take "power_secure", or aggregation.kind = "plain" and privacy.mechanism = "none"',
        )
    if made.options.compression == "power_secure" and not made.basis.factored:
        raise ConfigError(
            f"no layer that is sent is shorter at rank {made.options.rank}",
            where="system.rank",
            fix='lower it, send more layers, or set system.compression = "off"',
        )
    return made


def falling(round_number: int, rounds: int) -> float:
    """Share of the learning rate in a round: from 1 down along a cosine, so that all settle."""
    return 0.5 * (1 + math.cos(math.pi * round_number / rounds))


def _below(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): value for n, value in named.items() if n.startswith(prefix)}
