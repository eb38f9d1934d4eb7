"""`natfl attack` on runs that add up updates: which rows there are, and what the coalition sees."""

import io

import pytest
from rich.console import Console

from attacks.verdicts import Verdict
from protocols.errors import ConfigError
from secure_natfl.execute import execute as play_run
from secure_natfl.leakage.attacked import AttackedRun, SumsRun
from secure_natfl.leakage.execute import Wish, execute
from secure_natfl.leakage.gradient_lab import gradient_lab
from secure_natfl.leakage.notebook import open_run
from secure_natfl.leakage.rows import all_rows
from secure_natfl.progress import Stages
from secure_natfl.toml_config import load

SMALL = """
[data]
size = 16

[[data.hospitals]]
name = "children"
kind = "phantom"
hospital = "children"
images = 120
sites = 3
architectures = ["test_efficientnet"]

[models]
central = "test_efficientnet"
pretrain_epochs = 0

[system]
kind = "fedavg"
rounds = 1
local_epochs = 2

[run]
seed = 0
baselines = false

[privacy]
mechanism = "none"
clip = 8.0
"""
"""Three sites of phantoms; sums are opened by the sites together."""

NOISY = ("privacy.mechanism=client-gaussian", "privacy.override=true")
PLAIN = ("aggregation.kind=plain", "aggregation.custody=none")


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A finished run of the small federation with changes, opened."""
    folder = tmp_path_factory.mktemp("sums")
    (folder / "small.toml").write_text(SMALL)

    def run(name, *changes):
        path = folder / name
        if not path.exists():
            changes = (*changes, "speed.threads=1")
            play_run(load(str(folder / "small.toml"), changes), path, "natfl run", quiet())
        return AttackedRun.open(path, Stages(quiet()))

    return run


@pytest.fixture(scope="module")
def hidden(played):
    return played("hidden")


def test_rows_on_keys_and_updates_are_there_and_the_rest_is_listed(hidden):
    assert isinstance(hidden, SumsRun)
    rows, without = all_rows(hidden, "full")
    names = {"C1", "C2", "C2b", "C3", "G1", "G1i", "G2", "G3", "G3i", "G4", "G5a", "G5b"}
    assert {row.id for row in rows} == names
    updates = [row for row in rows if row.id.startswith("G")]
    assert all(row.arms[0] == "undefended" and row.arms[-1] == "protected" for row in updates)
    assert all("the sum of 2 sites' updates" in row.view for row in updates)
    told = " ".join(one.what for one in without)
    assert all(name in told for name in ("L1,", "L3:", "A1,", "optimiser"))


def test_an_attack_on_hidden_sums_ends_with_verdicts(hidden):
    wish = Wish.read("C2,G1", "fast", None, 60.0)
    report = execute(hidden.folder.path, wish, "natfl attack D", quiet())
    found = {(row.criteria.id, arm.arm): arm for row in report.rows for arm in row.arms}
    assert found["C2", "slots"].score == 1
    assert found["C2", "slots"].verdict is Verdict.CONTROL
    assert found["C2", "protected"].score == pytest.approx(1 / 3, abs=0.05)
    # Phantoms are so alike that the mean image leaves an exact one hardly the control's margin.
    assert found["G1", "undefended"].score == pytest.approx(1, abs=1e-3)
    assert found["G1", "protected"].score < found["G1", "undefended"].score - 0.1
    promises = {row.criteria.id: row.criteria.promise for row in report.rows}
    assert "single updates stay shut" in promises["G1"]
    assert len(report.not_tested) > 10


def test_what_is_seen_follows_mode_and_noise(played, hidden):
    """Two honest sites of three where sums are opened; one, with its noise, in the clear."""
    shared = gradient_lab(hidden).shared
    assert (shared.sites, shared.passes, shared.site_noise) == (2, 2, 0)
    noisy = played("noisy", *NOISY, *PLAIN)
    mechanism, shared = next(iter(noisy.terms.mechanisms.values())), gradient_lab(noisy).shared
    assert mechanism.honest > shared.sites == 1
    assert shared.site_noise == mechanism.sigma_share * mechanism.step / mechanism.clip_norm


def test_the_notebook_asks_for_a_run_of_answers(hidden):
    with pytest.raises(ConfigError, match="no answers"):
        open_run(str(hidden.folder.path), {})
