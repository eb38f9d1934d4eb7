"""Small runs of systems that learn from sums, and one whose round has two phases.

Everything is real but small: phantoms of three sites, the smallest network, two rounds.
"""

import io

import pytest
import torch
from rich.console import Console

from secure_natfl.run_folder import RunFolder
from secure_natfl.summed import run as summed_run
from secure_natfl.summed.run import SummedRun
from secure_natfl.summed.weight_vectors import layout_of, tensors_of
from secure_natfl.system_tables import FedAvg
from secure_natfl.systems.fedavg import Averaging
from secure_natfl.systems.summed import Phase
from secure_natfl.toml_config import load

SMALL = """
[data]
size = 32

[[data.hospitals]]
name = "children"
kind = "phantom"
hospital = "children"
images = 60
sites = 3
architectures = ["test_efficientnet"]

[models]
central = "test_efficientnet"
pretrain_epochs = 0

[system]
kind = "fedavg"
rounds = 2
local_epochs = 1

[run]
seed = 0
baselines = false

[aggregation]
kind = "plain"

[privacy]
mechanism = "none"
clip = 8.0
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The configuration with changes, and one text in place of another before that."""
    folder = tmp_path_factory.mktemp("config")

    def made(*changes, instead=("", "")):
        file = folder / "small.toml"
        file.write_text(SMALL.replace(*instead) if instead[0] else SMALL)
        return load(str(file), changes)

    return made


def console():
    return Console(file=io.StringIO())


def played(config, path, said=None):
    """Play without reports: what `SummedRun` leaves."""
    text = "# test\n"
    folder = RunFolder.open(path, config, text, resume=path.exists())
    try:
        return SummedRun(config, folder, said or console()).play()
    finally:
        if folder._lock is not None:
            folder._lock.close()


def digests(results):
    return [digest for summary in results.rounds for digest in summary["aggregate_sha256"]]


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    return played(small(), tmp_path_factory.mktemp("plain") / "run")


class Halves(Averaging):
    """FedAvg that sends its update in two phases of other sizes, the second after the first."""

    def __init__(self, *given):
        super().__init__(*given)
        names = list(self._sent)
        self._parts = {
            "first": {name: self._sent[name] for name in names[:9]},
            "second": {name: self._sent[name] for name in names[9:]},
        }
        self._waiting = {
            site.name: torch.zeros(self._layout.size) for site in self.federation.sites
        }
        self.calls = []

    def phases(self, round_number):
        del round_number
        span = super().phases(0)[0].span
        return tuple(Phase(name, layout_of(part), span) for name, part in self._parts.items())

    def contribute(self, site, round_number, phase, begin):
        self.calls.append((site.name, round_number, phase))
        cut = layout_of(self._parts["first"]).size
        if phase == "first":
            whole = super().contribute(site, round_number, phase, begin)
            self._waiting[site.name] = torch.from_numpy(whole)
            return whole[:cut]
        assert begin is None
        return self._waiting[site.name].numpy()[cut:]

    def absorb(self, sums, round_number, phase):
        for group, opened in sums.items():
            part = self._parts[phase]
            moved = tensors_of(opened.mean, part)
            for name in part:
                self._shared[group][name] = self._shared[group][name] + moved[name]

    def state(self):
        waiting = {f"site/{name}/waiting": held.double() for name, held in self._waiting.items()}
        return super().state() | waiting

    def restore(self, state):
        super().restore(state)
        for name in self._waiting:
            self._waiting[name] = state[f"site/{name}/waiting"].clone()


@pytest.fixture
def halves(monkeypatch):
    made = []

    def make(*given):
        made.append(Halves(*given))
        return made[-1]

    monkeypatch.setattr(FedAvg, "phases", property(lambda self: 2))
    monkeypatch.setattr(summed_run, "make_system", make)
    return made


def shared(results):
    return {k: v for k, v in results.system.state().items() if not k.startswith("site/")}
