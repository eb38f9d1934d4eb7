"""A finished run as it is attacked: its configuration, its messages, and its systems built again.

What an adversary knows follows from the public configuration and from the transcript. The private
images are loaded too, for a laboratory plays their owners, and scoring holds guesses against them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from protocols.chain import SigningKey
from protocols.envelope import authentic, kind_of, outline
from protocols.errors import NatflError, RunFolderError
from protocols.messages import Opening, RoundPlan
from protocols.policy import DECRYPTOR, SERVER, holder_name
from protocols.transcript import TORN, Transcript
from secure_natfl.config import Config
from secure_natfl.federation import Federation, build
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.report.model import Report
from secure_natfl.run_folder import RunFolder
from secure_natfl.schedule import Schedule
from secure_natfl.setup import public_networks
from secure_natfl.site_state import secret, state_folder
from secure_natfl.summed.terms import agree_sums
from secure_natfl.system_tables import NatImg
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.systems.summed import SummedSystem, make_system
from secure_natfl.terms import Terms, agree
from secure_natfl.toml_config import load

_OTHER_TERMS: Final = "sites of this size did not agree on the signed plans' terms"


@dataclass(frozen=True, eq=False)
class AttackedRun(ABC):
    """A finished run. `open` makes one; what is costly is built when it is first asked for.

    An `AnswersRun` shows answers to public images, a `SumsRun` sums of whatever its system sends.
    """

    folder: RunFolder
    config: Config
    transcript: Transcript
    report: Report
    stages: Stages

    @classmethod
    def open(cls, path: Path, stages: Stages, truth: Path | None = None) -> AttackedRun:
        """Read and check a run folder; nothing in it is changed.

        truth: the folder that the private images' paths start from, by default that of the run.
        Raises RunFolderError where there is no finished run, where its configuration was changed,
        or where its transcript is not what was signed.
        """
        for name in ("run.json", "report.json", "config.toml", "transcript/index.jsonl"):
            if not (path / name).is_file():
                raise RunFolderError(
                    "no finished run is here",
                    where=str(path),
                    why=f"{name} is missing",
                    fix="name the folder of a run that wrote its report; --resume ends a run",
                )
        config = load(str(path / "config.toml"))
        report = _report(path)
        if config.identity != report.config_sha256:
            raise RunFolderError(
                "config.toml is not what this run was started with",
                where=str(path),
                why=f"{config.identity[:12]} is not {report.config_sha256[:12]}",
                fix="put the file back, or attack the run with the version that played it",
            )
        folder = RunFolder.open(path, config, "", resume=True)
        transcript = Transcript(path / "transcript")
        try:
            _check(transcript, _keys(config, path), report)
        finally:
            transcript.close()
        if truth is not None:
            data = config.data.model_copy(update={"root": str(truth)})
            config = config.model_copy(update={"data": data})
        kind = AnswersRun if isinstance(config.system, NatImg) else SumsRun
        return kind(folder, config, transcript, report, stages)

    @property
    @abstractmethod
    def terms(self) -> Terms:
        """What the parties had agreed on, of a round's first sum."""

    @property
    def plans(self) -> list[RoundPlan]:
        """The signed plan of each round, the last attempt's."""
        plans = {plan.round: plan for plan in self.transcript.view([SERVER]).of(RoundPlan)}
        return [plans[number] for number in sorted(plans)]

    @cached_property
    def federation(self) -> Federation:
        """All sites with their private images, and the public ones."""
        sites = state_folder(self.config, self.folder.path)
        with self.stages.stage("Load and check images"):
            built = build(self.config, lambda name: secret(sites / name, "identity", os.urandom))
        if built.proxy_digest != self.plans[0].proxies:
            raise _other_images("the public images are not those of the signed plans")
        return built


@dataclass(frozen=True, eq=False)
class AnswersRun(AttackedRun):
    """A run of NatIMG-FL."""

    @cached_property
    def networks(self) -> dict[str, Network]:
        """Architecture → its public start."""
        return public_networks(self.config, self.federation, self.stages)

    @cached_property
    def system(self) -> NatImgFL:
        """The system as configured."""
        return NatImgFL(self.config, self.federation, self.folder.seeds)

    @cached_property
    def terms(self) -> Terms:
        """What the parties had agreed on."""
        agreed = self.agreed_under(self.config)
        if agreed.digest != self.plans[0].terms:
            raise _other_images(_OTHER_TERMS)
        return agreed

    def agreed_under(self, config: Config) -> Terms:
        """What the same parties would have agreed on under another configuration of privacy."""
        groups = {site.name: self.system.group_of(site) for site in self.federation.sites}
        layout = self.system.layout(config.proxies.per_round)
        return agree(config, self.federation, layout, self.system.weights(), groups)


@dataclass(frozen=True, eq=False)
class SumsRun(AttackedRun):
    """A run of a system that learns from sums."""

    @cached_property
    def system(self) -> SummedSystem:
        """The system as it was before the first round."""
        return make_system(self.config, self.federation, self.folder.seeds)

    @cached_property
    def schedule(self) -> Schedule:
        """What the parties had agreed on for every sum."""
        agreed = agree_sums(self.config, self.federation, self.system)
        if agreed.digest != self.plans[0].terms:
            raise _other_images(_OTHER_TERMS)
        return agreed

    @property
    def terms(self) -> Terms:
        """Those of a round's first sum."""
        return self.schedule.agreed[0].terms

    @property
    def sends_updates(self) -> bool:
        """Whether weights or their changes are added up, and not answers to public images."""
        phases = self.system.phases(0)
        return not any(len(self.system.asked(0, phase.name)) for phase in phases)


def _report(path: Path) -> Report:
    try:
        return Report.model_validate_json((path / "report.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            "report.json cannot be read",
            where=str(path),
            why=str(error).splitlines()[0],
            fix="end the run again with natfl run … --resume",
        ) from None


def _keys(config: Config, path: Path) -> dict[str, bytes]:
    """Party → verify key, of all whose keys this machine keeps."""
    sites = state_folder(config, path)
    files = {SERVER: path / "server" / "signing.key", DECRYPTOR: path / "decryptor" / "key"}
    for name in config.site_names():
        files[name] = sites / name / "signing.key"
        own = sites / name / "holder.key"
        files[holder_name(name)] = own if own.exists() else files[name]
    return {
        name: SigningKey(file.read_bytes()).public for name, file in files.items() if file.exists()
    }


def _check(transcript: Transcript, keys: Mapping[str, bytes], report: Report) -> None:
    """Chain, blobs, signatures, and the sums that the report names."""
    transcript.verify()
    opened: dict[tuple[int, str], str] = {}
    for entry in transcript.entries:
        if entry.kind == TORN:
            continue
        blob = transcript.read(entry)
        message = outline(blob)
        key = keys.get(message.sender)
        if key is None:
            raise _tampered(entry.seq, f"{message.sender} is no party of this run")
        try:
            authentic(blob, kind_of(blob), sender=message.sender, verify_key=key)
        except NatflError as error:
            raise _tampered(entry.seq, error.why or error.what) from None
        if isinstance(message, Opening):
            opened[message.round, message.group] = message.sha256
    if set(opened.values()) != set(report.aggregate_sha256):
        raise _tampered(len(transcript.entries), "the sums are not those of report.json")


def _other_images(why: str) -> RunFolderError:
    return RunFolderError(
        "the images are not those of this run",
        where="--truth, or data.root",
        why=why,
        fix="name the folder that the run found its images in",
    )


def _tampered(line: int, why: str) -> RunFolderError:
    return RunFolderError(
        "the transcript was tampered with",
        where=f"transcript, line {line}",
        why=why,
        fix="attack a run whose messages are as they were signed",
    )
