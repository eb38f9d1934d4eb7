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
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from protocols.errors import ConfigError
from secure_natfl import config as tables
from secure_natfl.config import Config, DpSgd
from secure_natfl.deep_training import trained_parameters
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.compression import LEFT, RIGHT, Compression
from secure_natfl.methods.dual_distillation import Lessons, Pair, learn
from secure_natfl.methods.low_rank import Matrix, flattened
from secure_natfl.methods.plain_models import Plain, parameter_count, started
from secure_natfl.methods.private_layers import private_names, train_privately
from secure_natfl.methods.task_network import below
from secure_natfl.seeds import Seeds
from secure_natfl.surgery import fitted, frozen
from secure_natfl.system_tables import FedMic as Table
from secure_natfl.systems.grouped import Grouped
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import SITE, Phase, Summed, Trait, Vector
from secure_natfl.training import Schedule

RECONSTRUCTION = (
    "FedMIC (Ren, Hu, Chen and Wang, arXiv:2407.02261), a reconstruction from the abstract and "
    "from FedKD, its lineage: losses, ranks and networks are this project's reading, and none of "
    "the paper's figures is claimed."
)


class FedMic(Grouped):
    """The system, as `SummedSystem` describes it; cohort, groups and weights as `Grouped` has them.

    students: group → the shared student. pairs: site → its teacher, beside the student that it
    trained last. thin: the form of what is sent, with bases and memories.
    """

    name = "fedmic"
    reconstruction = RECONSTRUCTION
    options: Table

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
        self.thin = Compression(self.options, shapes)
        for group in federation.groups:
            self.thin.start(group, np.random.default_rng(seeds.integer("basis", group)))

    # What is agreed before a round.

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """Two sums of thin matrices; of the other forms one, of all weights."""
        del round_number
        return tuple(Phase(name, layout) for name, layout in self.thin.layouts.items())

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
        place = f"{SITE}{site.name}"
        if phase == RIGHT:
            return self.thin.second(place, site.group)
        update = self._trained(site, round_number, begin)
        return self.thin.first(place, site.group, update, round_number)

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """The first sum becomes the basis P̂, the second the update; other forms are the update.

        The basis of a group that was not opened is zero: nothing is said in it, and all kept.
        """
        for group, student in self.students.items():
            if group in sums:
                found = self.thin.opened(group, sums[group].mean, phase, round_number)
                weights = self._shared(student)
                with torch.no_grad():
                    for name, matrix in found.items():
                        weights[name].add_(torch.from_numpy(matrix).view_as(weights[name]))
            elif phase == LEFT:
                self.thin.unopened(group)

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
        found = {name: torch.from_numpy(matrix) for name, matrix in self.thin.kept.items()}
        for path, module in self._modules().items():
            found |= {f"{path}/{name}": value for name, value in module.state_dict().items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        modules = self._modules()
        for path, module in modules.items():
            module.load_state_dict(below(state, f"{path}/"))
        others = {n: v for n, v in state.items() if not n.startswith(tuple(modules))}
        self.thin.kept = {name: value.numpy() for name, value in others.items()}

    def parts(self) -> dict[str, bool]:
        """What is on and off."""
        return {
            "distillation of decisions": self.options.decisions,
            "distillation of representations": self.options.representations,
            "the student learns from the teacher": not isinstance(self.config.privacy, DpSgd),
            "parameter decomposition": self.options.compression != "off",
            "error feedback": self.thin.summable,
        }

    def traits(self) -> dict[str, Trait]:
        """Sizes, and the numbers that a site sends and receives in a round."""
        student = parameter_count(next(iter(self.students.values())))
        teacher = max(parameter_count(pair.teacher) for pair in self.pairs.values())
        up, down = self.thin.numbers(student)
        return {
            "student parameters": student,
            "teacher parameters": teacher,
            "numbers sent per round": up,
            "numbers received per round": down,
            "compression ratio": student / up,
            "averaged teachers would send, times as much": teacher / up,
        }

    # Within.

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
        found, table = dict(student.named_parameters()), self.config.privacy
        if isinstance(table, DpSgd):
            return {name: found[name] for name in private_names(student, table)}
        return {name: p for name, p in found.items() if not name.startswith("network.natural.")}

    def _modules(self) -> dict[str, nn.Module]:
        """Path of names → what has weights that go on."""
        found: dict[str, nn.Module] = {f"student/{g}": s for g, s in self.students.items()}
        for site, pair in self.pairs.items():
            found |= {f"site/{site}/teacher": pair.teacher, f"site/{site}/bridge": pair.bridge}
        return found

    def _trained(self, site: Site, round_number: int, begin: Begin | None) -> dict[str, Matrix]:
        """What the student learns at a site: layer → matrix, after less before."""
        student, table = self.pairs[site.name].student, self.config.privacy
        if isinstance(table, DpSgd):
            student.load_state_dict(self.students[site.group].state_dict())
            naturals = self.federation.naturals.images
            random = self.seeds.protective(os.urandom, "drawn images", site.name, round_number)
            train_privately(student, site, table, naturals, begin, random)
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
    return made


def falling(round_number: int, rounds: int) -> float:
    """Share of the learning rate in a round: from 1 down along a cosine, so that all settle."""
    return 0.5 * (1 + math.cos(math.pi * round_number / rounds))
