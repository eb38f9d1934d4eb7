"""A site's own work: its images, its ledger, its models; a mechanism alone lets anything out."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from protocols.dp_sgd import Descent
from protocols.errors import DataError, ModelError, ProtocolError
from protocols.ledger import ReleaseKey
from protocols.mechanisms import Paid, Released, TrainedOutput
from protocols.messages import RoundPlan
from secure_natfl.config import Config
from secure_natfl.data.overlap import check_overlap
from secure_natfl.deploy.agreement import Agreement
from secure_natfl.deploy.site_file import SiteFile, own_config
from secure_natfl.deploy.standing import Standing, standing
from secure_natfl.federation import Federation, Site, assemble
from secure_natfl.fine_tuning import fresh
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.run_folder import (
    RunFolder,
    load_arrays,
    load_network,
    save_arrays,
    save_network,
)
from secure_natfl.setup import public_networks, speaking_inputs
from secure_natfl.site_state import open_ledger, secret
from secure_natfl.sources import load_hospital
from secure_natfl.systems.natimg_fl import Returned, Rows
from secure_natfl.systems.speaking import Speaking


class SiteTraining:
    """One site's side of NatIMG-FL, from its own file; what it must not forget is on its own disk.

    folder: the site's, named as the site. DataError where the images are not what was declared.
    """

    def __init__(self, folder: Path, session: str, own: SiteFile, agreed: Agreement) -> None:
        config = own_config(agreed.config, own, folder)
        self._folder, self._session, self._shares = folder, session, own.policy.share_scores
        self.site = _load(config, folder, agreed)
        self.agreed = agreed.with_own(self.site)
        self.ledger = open_ledger(config, folder, self.site.name, self.site.records)
        self._steps = RunFolder(folder / "sessions" / session, "", agreed.seeds)

    def release(self, plan: RoundPlan) -> Released:
        """The integers for an accepted plan: the stored ones, or charged, trained and stored."""
        self._check(plan)
        mechanism = self.agreed.terms.mechanisms[self.site.name]
        key, layout = ReleaseKey(self._session, plan.round), self.agreed.layout
        before = mechanism.again(self.ledger, key, layout)
        if before is not None:
            return before
        paid: list[Paid] = []
        outputs = self.agreed.system.contribute(
            self._speaking,
            plan.subset.astype(np.int64),
            plan.round,
            self._returned(plan.round),
            self._begin(key, paid),
        )
        if isinstance(mechanism, TrainedOutput):
            return mechanism.release(outputs, layout, paid[0])
        return mechanism.release(mechanism.bound(outputs, layout), self.ledger, key, os.urandom)

    def learn(self, plan: RoundPlan, central: bytes) -> Standing:
        """Take up a round's central model, once; what the site says of itself since."""
        name = _step(plan.round)
        if not self._steps.done(name):
            self._check(plan)
            self._take_up(name, plan, central)
        stated = (self._steps.intact(name) / "standing.json").read_bytes()
        return Standing.model_validate_json(stated)

    def close(self) -> None:
        """Let another process open the ledger."""
        self.ledger.close()

    @cached_property
    def _networks(self) -> dict[str, Network]:
        return public_networks(self.agreed.config, self._alone, _silent())

    @cached_property
    def _speaking(self) -> Speaking:
        found = speaking_inputs(
            self.agreed.config,
            self._alone,
            self._networks,
            self._folder.parent,
            self.agreed.seeds,
            _silent(),
        )
        return found[self.site.name]

    @property
    def _alone(self) -> Federation:
        return replace(self.agreed.federation, sites=(self.site,))

    def _check(self, plan: RoundPlan) -> None:
        """The plan asks for what was agreed, no more: the noise counts on it."""
        agreed, rounds = self.agreed, range(self.agreed.config.system.rounds)
        same = all(group in agreed.groups for group in plan.groups_of(self.site.name))
        asked = (plan.layout, plan.size, len(plan.subset))
        own = (agreed.layout_id, agreed.layout.size, agreed.config.proxies.per_round)
        known = plan.subset.max() < len(agreed.federation.natural_records)
        if not (same and plan.round in rounds and asked == own and known):
            raise ProtocolError(
                "the plan's group, weights, images or round are not those agreed on",
                where=f"{self.site.name}, round {plan.round}",
                fix="start a new session to change what is agreed on",
            )
        if plan.round and not self._steps.done(_step(plan.round - 1)):
            raise ProtocolError(
                f"this site has not taken up round {plan.round - 1}",
                where=self.site.name,
                fix="let the server send what it missed",
            )

    def _begin(self, key: ReleaseKey, paid: list[Paid]) -> Callable[[int], Descent]:
        """What charges for a training under noise and gives it its steps."""
        mechanism = self.agreed.terms.mechanisms[self.site.name]

        def begin(size: int) -> Descent:
            if not isinstance(mechanism, TrainedOutput) or mechanism.training.size != size:
                raise ModelError(
                    f"a head of {size} parameters",
                    where=self.site.name,
                    why="the terms were agreed on for another one",
                )
            paid.append(mechanism.begin(self.ledger, key, os.urandom))
            return paid[0].descent

        return begin

    def _returned(self, round_number: int) -> Returned | None:
        """What the central model of the round before says of all images asked so far."""
        if not round_number:
            return None
        step = self._steps.intact(_step(round_number - 1))
        central = self._central()
        load_network(central, step / "central.safetensors")
        rows: Rows = load_arrays(step / "rows.npz")["rows"]
        group = self.agreed.system.group_of(self.site)
        return self.agreed.system.returned(central, rows, group)

    def _take_up(self, name: str, plan: RoundPlan, sent: bytes) -> None:
        """Personalise, score, and write it all down as one step."""
        system, config = self.agreed.system, self.agreed.config
        central, personal = self._central(), self._fresh(self.site.architecture, "personal")
        _fill(central, sent)
        rows: Rows = plan.subset.astype(np.int64)
        if plan.round:
            before = self._steps.intact(_step(plan.round - 1))
            load_network(personal, before / "personal.safetensors")
            rows = np.concatenate([load_arrays(before / "rows.npz")["rows"], rows])
        group = system.group_of(self.site)
        returned = system.returned(central, rows, group)
        loss = system.personalise(personal, self.site, central, returned, plan.round)
        stated = Standing(parameters=personal.parameter_count)
        if self._shares:
            answering = system.answering(personal, self.site, central)
            head = system.heads.index(group)
            last = plan.round + 1 == config.system.rounds
            stated = standing(self.site, personal, answering, central, head, loss, last=last)

        def keep(part: Path) -> None:
            save_network(personal, part / "personal.safetensors")
            (part / "central.safetensors").write_bytes(sent)
            save_arrays(part / "rows.npz", rows=rows)
            (part / "standing.json").write_text(stated.model_dump_json())

        self._steps.finish(name, keep)

    def _central(self) -> Network:
        return self._fresh(
            self.agreed.config.models.central, "central", len(self.agreed.system.heads)
        )

    def _fresh(self, architecture: str, purpose: str, heads: int = 1) -> Network:
        classes = len(self.agreed.federation.task.classes)
        purposes = (purpose,) if purpose == "central" else (purpose, self.site.name)
        start = self.agreed.seeds.torch(*purposes)
        return fresh(self._networks[architecture], classes, start, heads)


def _load(config: Config, folder: Path, agreed: Agreement) -> Site:
    """The site's own images, checked against what it declared and against the public ones."""

    def key(name: str) -> bytes:
        return secret(folder.parent / name, "identity", os.urandom)

    (table,), name = config.data.hospitals, folder.name
    records = load_hospital(table, config.data, key)
    naturals = agreed.federation.natural_records
    check_overlap(naturals.images, records)
    (site,) = assemble(config, [records], naturals).sites
    declared = next(one for one in agreed.federation.sites if one.name == name)
    _compare(name, "patients", site.patients, declared.patients)
    _compare(name, "as the unit", site.unit, declared.unit)
    _compare(name, "as classes", site.task.classes, declared.task.classes)
    _compare(name, "as the kind of labels", site.task.form, declared.task.form)
    return site


def _compare(name: str, what: str, found: object, stated: object) -> None:
    if found != stated:
        raise DataError(
            f"{found} {what} here, {stated} declared",
            where=name,
            why="weights and noise were agreed on for what was declared",
            fix="correct site.toml, or have the consortium sign a list with these figures",
        )


def _fill(network: Network, sent: bytes) -> None:
    """Load tensors that came from outside; ProtocolError unless they are this network's."""
    try:
        tensors = load_tensors(sent)
        own = network.state_dict()
        same = tensors.keys() == own.keys() and all(
            tensors[name].shape == own[name].shape and tensors[name].dtype == own[name].dtype
            for name in own
        )
        finite = all(bool(one.isfinite().all()) for one in tensors.values())
    except (SafetensorError, ValueError):
        same = finite = False
    if not (same and finite):
        raise ProtocolError("the central model that was sent is not of this federation")
    network.load_state_dict(tensors)


def _step(round_number: int) -> str:
    return f"round-{round_number:03d}"


def _silent() -> Stages:
    return Stages(Console(file=io.StringIO()))
