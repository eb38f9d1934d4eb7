"""The run of one cell: what its study does not ask for is left out, what cells share is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from protocols.chain import canonical, digest
from secure_natfl.config import Config
from secure_natfl.config import Run as RunTable
from secure_natfl.federation import Federation, build
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.results import State
from secure_natfl.run import Run
from secure_natfl.run_folder import load_network, save_network
from secure_natfl.setup import public_networks
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Cell, without_federation
from secure_natfl.systems.natimg_fl import NatImgFL, Released


@dataclass(frozen=True)
class Job:
    """A cell to play, and where."""

    cell: Cell
    folder: StudyFolder


class StudyRun(Run):
    """A run that leaves out what its study does not ask for, and shares what cells have in common.

    Images and public networks are read once per process and fold. Where nothing that the server
    returns enters personal training (`downward` is off), a site's own network is trained once per
    fold and seed, whatever the noise.
    """

    job: Job

    @property
    def personal(self) -> bool:
        """Whether personal models are asked for."""
        return "personalised" in self.job.cell.models

    def _federation(self, sites: Path) -> Federation:
        del sites
        return start_of(self.config, self.job.folder)[0]

    def _networks(self, federation: Federation) -> dict[str, Network]:
        del federation
        return start_of(self.config, self.job.folder)[1]

    def _curve(self, system: NatImgFL, state: State) -> dict[str, dict[str, float | None]]:
        state.answering = self._answering(system, state)
        return {}

    def _answering(self, system: NatImgFL, state: State) -> dict[str, Network]:
        return super()._answering(system, state) if self.personal else state.personal

    def _personalise(
        self, number: int, system: NatImgFL, state: State, released: Released
    ) -> dict[str, float]:
        if not self.personal:
            return {}
        if system.options.downward != "off":
            return super()._personalise(number, system, state, released)
        key = digest(canonical([_alone(self.config).identity, number]))[:20]
        files = {name: self.job.folder.shared / f"{key}-{name}" for name in state.personal}
        if all(file.exists() for file in files.values()):
            for name, file in files.items():
                load_network(state.personal[name], file)
                state.personal[name].eval()
            return {}
        losses = super()._personalise(number, system, state, released)
        for name, file in files.items():
            part = file.with_name(f"{file.name}.{self.job.cell.id}")
            save_network(state.personal[name], part)
            part.replace(file)
        return losses


@lru_cache(maxsize=6)
def _start(text: str, folder: StudyFolder) -> tuple[Federation, dict[str, Network]]:
    config = Config.model_validate_json(text)
    federation = build(config, folder.hospital_key)
    return federation, public_networks(config, federation, Stages(Console(quiet=True)))


def start_of(config: Config, folder: StudyFolder) -> tuple[Federation, dict[str, Network]]:
    """The images and public networks of a cell: read once per process for each of its folds."""
    same = without_federation(config)
    system = same.natimg.model_copy(update={"local_epochs": 1})
    return _start(
        same.model_copy(update={"system": system, "run": RunTable()}).model_dump_json(), folder
    )


def _alone(config: Config) -> Config:
    """Of a configuration what a site's own training depends on where nothing comes back to it."""
    same, system = without_federation(config), config.natimg
    weights = {
        "natural_weight": system.natural_weight,
        "alignment_weight": system.alignment_weight,
    }
    return same.model_copy(update={"system": same.natimg.model_copy(update=weights)})
